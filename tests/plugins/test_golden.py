"""Values and gradients equal the authors' own code, in float64."""

import numpy as np
import pytest
import torch
from mmcv.cnn.bricks.context_block import ContextBlock

from mmattn.ops import BACKENDS, use_backend
from mmattn.plugins import (
    BAM,
    CBAM,
    ECA,
    GC,
    GCT,
    SE,
    SGE,
    SRM,
    CoordAttention,
    SimAM,
    TripletAttention,
)
from tests.data import GOLDEN
from tests.zoo import assert_close, scramble

MODULES = {
    "se_r16": (SE, {}),
    "se_r16_nobias": (SE, dict(bias=False)),
    "sge_g64": (SGE, dict(groups=64)),
    "sge_g8": (SGE, dict(groups=8)),
    "gc_r4_add": (GC, dict(ratio=4)),
    "gc_r4_avg": (GC, dict(ratio=4, pooling="avg")),
    "gc_r4_mul_add": (GC, dict(ratio=4, fusion=("mul", "add"))),
    "gct_l1": (GCT, dict(norm="l1")),
    "gct_l1_after_relu": (GCT, dict(norm="l1", after_relu=True)),
    "gct_l2": (GCT, {}),
    "cbam_train": (CBAM, {}),
    "cbam_eval": (CBAM, {}),
    "bam_train": (BAM, {}),
    "bam_eval": (BAM, {}),
    "coord_r8_train": (CoordAttention, dict(ratio=8)),
    "coord_r8_eval": (CoordAttention, dict(ratio=8)),
    "triplet_train": (TripletAttention, {}),
    "triplet_eval": (TripletAttention, {}),
    "eca_k3": (ECA, {}),
    "eca_k5": (ECA, dict(kernel_size=5)),
    "srm_train": (SRM, {}),
    "srm_eval": (SRM, {}),
    "simam_1e-4": (SimAM, {}),
    "simam_0.1": (SimAM, dict(e_lambda=0.1)),
}


@pytest.mark.parametrize("backend", ["reference", "eager", "eager's own passes"])
@pytest.mark.parametrize("name", MODULES)
def test_values_and_gradients_equal_the_authors(name, backend, monkeypatch):
    if backend not in BACKENDS:  # which maps as small as these do not take
        backend = "eager"
        monkeypatch.setattr("mmattn.ops._backend.EAGER_FROM", 0)
    cls, arguments = MODULES[name]
    golden = {
        k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "modules" / f"{name}.npz").items()
    }
    x = golden["x"].requires_grad_()
    training = not name.endswith("_eval")
    module = cls(in_channels=x.shape[1], **arguments).double().train(training)
    state = {k.removeprefix("param/"): v for k, v in golden.items() if k.startswith("param/")}
    module.load_state_dict(state)
    with use_backend(backend):
        y = module(x)
    y.backward(golden["dy"])
    for key, buffer in module.named_buffers():  # running statistics move in training alone
        assert torch.equal(buffer, state[key]) != training, key
        if key.endswith("num_batches_tracked"):
            assert buffer == state[key] + training, key
    assert_close(y, golden["y"], 1e-10, "y")
    assert_close(x.grad, golden["dx"], 1e-10, "dx")
    gradients = {k for k in golden if k.startswith("dparam/")}
    assert gradients == {f"dparam/{k}" for k, _ in module.named_parameters()}
    for key, parameter in module.named_parameters():
        assert_close(parameter.grad, golden[f"dparam/{key}"], 1e-10, key)


@pytest.mark.parametrize("pooling", ["att", "avg"])
@pytest.mark.parametrize("fusion", [("add",), ("mul",), ("add", "mul")])
def test_gc_equals_mmcv(pooling, fusion):
    torch.manual_seed(0)
    ours = scramble(GC(32, ratio=8, pooling=pooling, fusion=fusion).double())
    theirs = ContextBlock(
        32, 1 / 8, pooling_type=pooling, fusion_types=tuple(f"channel_{f}" for f in fusion)
    ).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 32, 5, 6, dtype=torch.float64)
    dy = torch.randn_like(x)
    results = []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.backward(dy)
        results.append([y, leaf.grad, *(p.grad for _, p in sorted(module.named_parameters()))])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, 1e-12)
