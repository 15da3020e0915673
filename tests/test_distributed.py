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
    "Attach": dict(
        attach=[
            dict(
                cfg=dict(type="mmattn.SGE", groups=8),
                after=r"backbone\.layer\d|neck\.(lateral|fpn)_convs\.\d",
            )
        ]
    ),
    "DRConv": dict(dcn=dict(type="mmattn.DRConv2d"), stage_with_dcn=(False, False, True, True)),
}
# the first once more, with two batches of half the size for each update
CASES["SGE, accumulated"] = dict(CASES["SGE"], accumulate=2)
# the last names of the parameters that are the case's own
OWN = {
    "SGE": ("sge.weight", "sge.bias"),
    "GCT": ("0.alpha", "0.gamma", "0.beta"),
    "Attach": ("sge.weight", "sge.bias"),
    "DRConv": (
        "conv2.weight", "conv2.routing_fc.weight", "conv2.routing_fc.bias", "conv2.masknet.weight",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process and what two processes learn, and where they started."""
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
    return loaded


def test_accumulated_batches_equal_one(results):
    for result in results:
        whole, halves = (result["weights"][name] for name in ("SGE", "SGE, accumulated"))
        for key, value in whole.items():
            assert_close(halves[key], value, 1e-12, key)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name, results):
    one, two = (result["weights"][name] for result in results)
    assert one.keys() == two.keys()
    learned = set()
    for key, value in one.items():
        assert_close(two[key], value, 1e-12, key)
        own = [kind for kind in OWN[name.partition(",")[0]] if key.endswith(f".{kind}")]
        if own:
            start = results[0]["start"][name][key]
            # weight decay alone would shorten it
            shorter = start * (value * start).sum() / start.square().sum().clamp(min=1e-30)
            assert (value - shorter).abs().max() > 1e-14, f"{key} did not learn"
            learned.update(own)
    assert learned == set(OWN[name.partition(",")[0]])
