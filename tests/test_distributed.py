"""Two processes compute what one process computes on the joint batch, and every layer learns."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed_worker import train
from tests.zoo import (
    CASES,
    CONV_CASES,
    CONV_IDS,
    IDS,
    NEVER_IDENTITY,
    PLUGINS,
    assert_close,
)

REPO = Path(__file__).parents[1]
BACKBONE = dict(depth=50, base_channels=16, norm_eval=True)
CASES_TRAINED = {
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
CASES_TRAINED["SGE, accumulated"] = dict(CASES_TRAINED["SGE"], accumulate=2)
# the last names of the parameters that are the case's own
OWN = {
    "SGE": ("sge.weight", "sge.bias"),
    "GCT": ("0.alpha", "0.gamma", "0.beta"),
    "Attach": ("sge.weight", "sge.bias"),
    "DRConv": (
        "conv2.weight", "conv2.routing_fc.weight", "conv2.routing_fc.bias", "conv2.masknet.weight",
    ),
}  # fmt: skip


LAYERS = dict(zip(IDS + CONV_IDS, CASES + CONV_CASES, strict=True))
GATED = {
    f"{name}, as identity": (name, dict(identity_init=True))
    for name in [*sorted(PLUGINS.keys() - NEVER_IDENTITY), "GCTConv2d"]
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes, and what one, have learned and seen; one launch for all tests."""
    folder = tmp_path_factory.mktemp("two")
    cases = {name: BACKBONE | case for name, case in CASES_TRAINED.items()}
    argv = [str(folder), json.dumps(cases), json.dumps(LAYERS | GATED)]
    # torchrun's own imports would take as long as the training: test_shell_scripts.py has it
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.distributed_worker", *argv],
        cwd=REPO,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        one = {name: train(name, case, 1, str(folder)) for name, case in cases.items()}
        _, said = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, said
    two = torch.load(folder / "found.pth", weights_only=True)
    for name, (start, _) in one.items():
        for key, value in start.items():
            assert torch.equal(two["start"][name][key], value), f"{name}: {key}"
    return dict(two, alone={name: weights for name, (_, weights) in one.items()})


def test_accumulated_batches_equal_one(found):
    for weights in (found["alone"], found["weights"]):
        whole, halves = weights["SGE"], weights["SGE, accumulated"]
        for key, value in whole.items():
            assert_close(halves[key], value, 1e-12, key)


@pytest.mark.parametrize("name", CASES_TRAINED)
def test_two_processes_equal_one(name, found):
    one, two = found["alone"][name], found["weights"][name]
    assert one.keys() == two.keys()
    learned = set()
    for key, value in one.items():
        assert_close(two[key], value, 1e-12, key)
        own = [kind for kind in OWN[name.partition(",")[0]] if key.endswith(f".{kind}")]
        if own:
            start = found["start"][name][key]
            # weight decay alone would shorten it
            shorter = start * (value * start).sum() / start.square().sum().clamp(min=1e-30)
            assert (value - shorter).abs().max() > 1e-14, f"{key} did not learn"
            learned.update(own)
    assert learned == set(OWN[name.partition(",")[0]])


def test_no_parameter_is_left_without_a_gradient(found):
    """DDP waits for it, else, and the gradients of the others stay what one process found."""
    for outcome in found["outcomes"]:  # of each process; one test, for one launch
        assert outcome.keys() == {*LAYERS, *GATED, "unused"}
        assert {name: said for name, said in outcome.items() if said and name != "unused"} == {}


def test_a_parameter_without_a_gradient_would_be_noticed(found):
    for outcome in found["outcomes"]:
        assert "the mean over the processes" in outcome["unused"]
