"""The launchers: do they call torchrun and srun as they say, and is a training started so one?"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
SCRIPTS = sorted(TOOLS.glob("*.sh"))
STUB = '#!/usr/bin/env bash\nprintf "%s\\n" "PYTHONPATH=$PYTHONPATH" "$@"\n'


@pytest.fixture
def call(tmp_path):
    """Runs a script with ``srun`` and ``python`` replaced by a stub that prints its arguments."""
    for name in ("srun", "python"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)

    def run(script, *argv, **env):
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "PYTHONPATH")}
        done = subprocess.run(
            [TOOLS / script, *argv],
            cwd=tmp_path,
            env={**clean, "PATH": path, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_script_is_sound_and_explains_itself(script, call):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    for argv in ([], ["only-one"]):
        status, out, err = call(script.name, *argv)
        assert (status, out) == (2, [])
        assert err.startswith(f"usage: {script.name} ")


def test_torchrun_on_one_machine(call):
    status, out, _ = call("dist_train.sh", "a b.py", "4", "--resume", "--cfg-options", "k=1 2")
    assert status == 0
    assert out == [
        f"PYTHONPATH={TOOLS}/..",
        *["-m", "torch.distributed.run", "--nnodes=1", "--node_rank=0"],
        *["--master_addr=127.0.0.1", "--master_port=29500", "--nproc_per_node=4"],
        *[f"{TOOLS}/train.py", "a b.py", "--launcher", "pytorch"],
        *["--resume", "--cfg-options", "k=1 2"],
    ]


def test_torchrun_on_several_machines(call):
    env = dict(NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1", PORT="1234", PYTHONPATH="/mine")
    status, out, _ = call("dist_test.sh", "c.py", "a.pth", "8", "--tta", **env)
    assert status == 0
    assert out[0] == f"PYTHONPATH={TOOLS}/..:/mine"
    assert {"--nnodes=2", "--node_rank=1", "--master_addr=10.0.0.1", "--master_port=1234"} < set(
        out
    )
    assert out[-6:] == [f"{TOOLS}/test.py", "c.py", "a.pth", "--launcher", "pytorch", "--tta"]


@pytest.mark.parametrize(
    ("argv", "tail"),
    [
        ([], []),
        (["work"], ["--work-dir", "work"]),
        (["--resume"], ["--resume"]),
        (["a b", "--amp"], ["--work-dir", "a b", "--amp"]),
    ],
)
def test_srun_trains(call, argv, tail):
    env = dict(GPUS="2", SRUN_ARGS="--qos=high --time=60")
    status, out, _ = call("slurm_train.sh", "part", "job", "c.py", *argv, **env)
    assert status == 0
    assert out[1:] == [
        *["--partition=part", "--job-name=job", "--gres=gpu:2", "--ntasks=2"],
        *["--ntasks-per-node=2", "--cpus-per-task=5", "--kill-on-bad-exit=1"],
        *["--qos=high", "--time=60"],
        *["python", "-u", f"{TOOLS}/train.py", "c.py", "--launcher", "slurm", *tail],
    ]


def test_srun_tests(call):
    env = dict(GPUS="16", CPUS_PER_TASK="3", PYTHON="/venv/bin/python")
    status, out, _ = call("slurm_test.sh", "part", "job", "c.py", "a.pth", "--tta", **env)
    assert status == 0
    assert {"--gres=gpu:8", "--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=3"} < set(out)
    tail = ["/venv/bin/python", "-u", f"{TOOLS}/test.py", "c.py", "a.pth", "--launcher", "slurm"]
    assert out[-8:] == [*tail, "--tta"]


@pytest.mark.once
def test_two_processes_train_together(tmp_path):
    draw = [sys.executable, TOOLS / "dataset" / "draw_shapes.py", tmp_path / "shapes"]
    subprocess.run([*draw, "--train", "8", "--val", "3", "--size", "224"], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    config = "mmattn::demo/faster-rcnn_r50w16-sge-c2-c5_fpn_600it_shapes.py"
    options = ["data_root=shapes", "train_cfg.max_iters=2"]
    options += ["default_hooks.logger.interval=1", "train_dataloader.batch_size=2"]
    done = subprocess.run(
        [TOOLS / "dist_train.sh", config, "2", "--work-dir", "work", "--cfg-options", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable, "PORT": port, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"Iter\(train\) +\[(\d)/2\]", done.stdout) == ["1", "2"]  # rank 0 speaks
    assert done.stdout.count("last checkpoint: work/iter_2.pth") == 1
