"""Two processes through torchrun compute what one process computes on the joint batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.zoo import assert_close

WORKER = str(Path(__file__).with_name("distributed_worker.py"))
BACKBONE = dict(depth=50, base_channels=16, norm_eval=True)
CASES = {
    "SGE": dict(plugins=[dict(cfg=dict(type="mmattn.SGE", groups=8), position="after_conv3")]),
    "GCT": dict(conv_cfg=dict(type="mmattn.GCTConv2d")),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process and what two processes learn."""
    cases = json.dumps({name: BACKBONE | case for name, case in CASES.items()})
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    loaded = []
    for launcher in ([], torchrun):
        out = tmp_path_factory.mktemp("weights") / "weights.pth"
        command = [sys.executable, *launcher, WORKER, cases, str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        loaded.append(torch.load(out, weights_only=True))
    assert [r["world"] for r in loaded] == [1, 2]
    return [r["weights"] for r in loaded]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name, results):
    one, two = (weights[name] for weights in results)
    assert one.keys() == two.keys()
    start = {"alpha": 1, "gamma": 0, "beta": 0} if name == "GCT" else {"weight": 0, "bias": 1}
    learned = set()
    for key, value in one.items():
        assert_close(two[key], value, 1e-12, key)
        *_, owner, kind = key.split(".")
        if owner in ("sge", "0") and kind in start:
            assert (value - start[kind]).abs().max() > 1e-9, f"{key} did not learn"
            learned.add(kind)
    assert learned == set(start)
