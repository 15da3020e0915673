"""The Triton kernels of the gated channel transformation, on a GPU or in the interpreter."""

import pytest
import torch

from mmattn.ops import gct, use_backend
from tests import kernels
from tests.operators import VARIANTS, reference

pytest.importorskip("triton")

pytestmark = kernels.needs_kernels("gct")
every_variant = pytest.mark.parametrize("variant", VARIANTS["gct"])
every_dtype = pytest.mark.parametrize("dtype", kernels.DTYPES, ids=str)
L2, L1 = "l2", "l1"
POSITIVE = "l1 after relu"


@pytest.fixture(autouse=True)
def unwritten_is_nan(monkeypatch):
    kernels.fill_with_nan(monkeypatch)


@every_variant
def test_values_and_gradients(variant):
    kernels.check_values("gct", variant, torch.float32)


@every_variant
@pytest.mark.parametrize("dtype", kernels.DTYPES[1:], ids=str)
def test_half_precision(variant, dtype):
    kernels.check_values("gct", variant, dtype, ["odd"])


@pytest.mark.parametrize("norm", [L2, L1])
def test_several_tiles_and_parts(norm, monkeypatch):
    kernels.small_tiles(monkeypatch)
    kernels.check_values("gct", norm, torch.float32, ["odd", "long rows"])


def test_more_samples_than_are_added_at_a_time():
    kernels.check("gct", kernels.draw("gct", L2, (11, 5, 2, 3)))


@pytest.mark.parametrize("norm", [L2, L1])
@pytest.mark.parametrize("gate", ["1+tanh", "sigmoid", "1+elu"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_options(norm, gate, scale):
    inputs = kernels.draw("gct", L2, (2, 6, 5, 7))
    scale = None if scale is None else torch.tensor(scale, device=kernels.DEVICE)
    tensors = *inputs.tensors[:3], scale
    for eps in (1e-5, 0.3):  # one that matters
        kernels.check("gct", inputs._replace(tensors=tensors, options=(eps, norm, False, gate)))


@pytest.mark.parametrize("norm", [L2, L1])
def test_layouts(norm):
    kernels.check_layouts("gct", norm, torch.float32)


@pytest.mark.parametrize("dtype", kernels.DTYPES[::2], ids=str)
def test_repeats_bit_for_bit_and_changes_no_input(dtype, monkeypatch):
    kernels.small_tiles(monkeypatch)
    kernels.check_repeats("gct", L2, dtype)


def test_gradients_only_for_what_asks():
    kernels.check_needs("gct", L2)


@pytest.mark.parametrize("variant", [L2, POSITIVE])
@pytest.mark.slow  # test_dispatch.py compiles the first variant
def test_compiled(variant, monkeypatch):
    kernels.check_compiled(monkeypatch, "gct", variant)


@every_dtype
@pytest.mark.parametrize(("gate", "neutral"), [("1+tanh", None), ("1+elu", None), ("sigmoid", 0.5)])
def test_a_neutral_gate_is_exact(dtype, gate, neutral):
    inputs = kernels.draw("gct", L2, (2, 6, 5, 7), dtype)
    alpha, gamma, beta, _ = inputs.tensors
    scale = None if neutral is None else torch.tensor(neutral, device=kernels.DEVICE)
    tensors = alpha, torch.zeros_like(gamma), torch.zeros_like(beta), scale
    for norm in (L2, L1):
        inputs = inputs._replace(tensors=tensors, options=(1e-5, norm, False, gate))
        for x in (inputs.x, inputs.x.contiguous(memory_format=torch.channels_last)):
            y, dx, *_ = kernels.kernels("gct", inputs._replace(x=x))
            assert torch.equal(y, x)
            assert torch.equal(dx, inputs.dy)


@pytest.mark.parametrize("variant", [L2, L1])
def test_sums_in_float32(variant):
    inputs = kernels.draw("gct", variant, (1, 3, 40, 40), torch.float16)
    inputs = inputs._replace(x=100 + inputs.x)
    found = kernels.kernels("gct", inputs)
    kernels.compare(found[:1], reference("gct", inputs)[:1], torch.float16)
    assert all(t.isfinite().all() for t in found if t is not None)


def test_the_gradient_at_zero():
    """0 as of torch.abs, but with after_relu 1: there x is summed as it is."""
    generator = torch.Generator().manual_seed(0)
    for variant in (L1, POSITIVE):
        inputs = kernels.draw("gct", variant, (2, 6, 5, 7))
        zero = torch.rand(inputs.x.shape, generator=generator) < 0.5
        inputs.x[zero.to(kernels.DEVICE)] = 0
        kernels.check("gct", inputs, variant)


def test_a_map_of_zeros():
    for variant in (L2, L1):
        inputs = kernels.draw("gct", variant, (2, 6, 5, 7))
        found = kernels.check("gct", inputs._replace(x=torch.zeros_like(inputs.x)), variant)
        assert all(t.isfinite().all() for t in found if t is not None)


@pytest.mark.parametrize("gate", ["1+tanh", "sigmoid", "1+elu"])
def test_a_saturated_gate(gate):
    inputs = kernels.draw("gct", L2, (1, 6, 4, 5))
    beta = torch.tensor([-200.0, -20, -2, 2, 20, 200], device=kernels.DEVICE).view(1, 6, 1, 1)
    tensors = *inputs.tensors[:2], beta, None
    found = kernels.check("gct", inputs._replace(tensors=tensors, options=(1e-5, L2, False, gate)))
    assert not found[0][:, 0].any()


def test_a_nan_stays():
    inputs = kernels.draw("gct", L2, (2, 6, 5, 7))
    inputs.x[1, 2, 3, 4] = torch.nan
    for norm in (L2, L1):
        with use_backend("triton"):
            y = gct(inputs.x, *inputs.tensors[:3], norm=norm)
        assert y[0].isfinite().all()
        assert y[1].isnan().all()


def test_a_map_without_pixels():
    inputs = kernels.draw("gct", L2, (2, 6, 0, 5))
    found = kernels.kernels("gct", inputs)
    assert found[0].shape == found[1].shape == inputs.x.shape


def test_launches(monkeypatch):
    inputs = kernels.draw("gct", L2, (2, 6, 5, 7))
    assert kernels.launched(monkeypatch, "gct", inputs, (True,) * 4 + (False,)) == (3, 4)
    assert kernels.launched(monkeypatch, "gct", inputs, (True,) + (False,) * 4) == (3, 3)
    assert kernels.launched(monkeypatch, "gct", inputs, (False,) + (True,) * 3 + (False,)) == (3, 3)
