"""A detector's training on two processes, one of which is killed, goes on as if it had not been."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/demo/faster-rcnn_r50w16-sge-c2-c5_fpn_600it_shapes.py"
ITERATIONS = 12


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_weights_after_a_kill_and_a_resume(tmp_path):
    data = tmp_path / "shapes"
    draw = [sys.executable, ROOT / "tools/dataset/draw_shapes.py", data, "--train", "20"]
    subprocess.run([*draw, "--val", "4"], check=True)
    options = [
        f"data_root={data}/",
        f"train_cfg.max_iters={ITERATIONS}",
        "train_cfg.val_begin=1000",
        "train_dataloader.batch_size=1",
        "default_hooks.checkpoint.interval=5",
        "default_hooks.logger.interval=1",
    ]

    def start(work_dir, *more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = ["bash", ROOT / "tools/dist_train.sh", CONFIG, "2", "--work-dir", work_dir]
        return subprocess.Popen(
            [*map(str, command), *more, "--cfg-options", *options],
            env=os.environ | {"PYTHON": sys.executable, "PORT": port, "OMP_NUM_THREADS": "1"},
        )

    assert start(tmp_path / "straight").wait() == 0
    killed = start(tmp_path / "killed")
    while iteration(tmp_path / "killed") < 7:
        assert killed.poll() is None, "the training ended before it could be killed"
        time.sleep(0.05)
    os.kill(processes(killed.pid)[-1], signal.SIGKILL)
    assert killed.wait(timeout=120) != 0
    assert not (tmp_path / "killed" / f"iter_{ITERATIONS}.pth").exists()
    assert start(tmp_path / "killed", "--resume").wait() == 0
    straight, resumed = (
        torch.load(tmp_path / name / f"iter_{ITERATIONS}.pth", weights_only=False)["state_dict"]
        for name in ("straight", "killed")
    )
    assert straight.keys() == resumed.keys()
    different = [name for name, value in straight.items() if not torch.equal(value, resumed[name])]
    assert different == []


def iteration(work_dir):
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    lines = logs[-1].read_text().splitlines() if logs else []
    return json.loads(lines[-1])["iter"] if lines else 0


def processes(launcher):
    """The processes that torchrun has started, each a training."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()[1:]]
    return sorted(pid for pid, parent in pairs if parent == launcher)
