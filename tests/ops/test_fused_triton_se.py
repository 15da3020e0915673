"""The Triton kernels of squeeze-and-excitation, on a GPU or in the interpreter."""

import pytest
import torch

from mmattn.ops import se, use_backend
from tests import kernels
from tests.operators import VARIANTS, reference

pytest.importorskip("triton")

from mmattn.ops import _triton
from mmattn.ops.se import triton as own

pytestmark = kernels.needs_kernels("se")
every_variant = pytest.mark.parametrize("variant", VARIANTS["se"])
every_dtype = pytest.mark.parametrize("dtype", kernels.DTYPES, ids=str)


@pytest.fixture(autouse=True)
def unwritten_is_nan(monkeypatch):
    kernels.fill_with_nan(monkeypatch)


@every_variant
def test_values_and_gradients(variant):
    kernels.check_values("se", variant, torch.float32)


@every_variant
@pytest.mark.parametrize("dtype", kernels.DTYPES[1:], ids=str)
def test_half_precision(variant, dtype):
    kernels.check_values("se", variant, dtype, ["odd"])


def test_several_tiles_and_parts(monkeypatch):
    kernels.small_tiles(monkeypatch)
    kernels.check_values("se", "bias", torch.float32, ["odd", "long rows"])


def test_a_wide_hidden_layer():
    """More than one block of hidden units, and of channels in the kernels that sum over them."""
    blocks = own._layer_blocks
    own_blocks = dict(HIDDEN=4, CHANNELS=16, SPLITS=2, num_warps=4)
    for width, channels in ((70, 9), (5, 40)):
        generator = torch.Generator().manual_seed(0)
        inputs = kernels.draw("se", "bias", (2, channels, 2, 3))
        w1, w2 = (
            torch.randn(shape, generator=generator).to(kernels.DEVICE) / shape[1] ** 0.5
            for shape in ((width, channels), (channels, width))
        )
        b1 = torch.randn(width, generator=generator).to(kernels.DEVICE)
        inputs = inputs._replace(tensors=(w1, b1, w2, inputs.tensors[3], None))
        kernels.check("se", inputs, f"{width}")
        try:
            own._layer_blocks = lambda channels: own_blocks
            kernels.check("se", inputs, f"{width}, small blocks")
        finally:
            own._layer_blocks = blocks


def test_many_samples(monkeypatch):
    """More than the sums of the weights take at a time, and than a grid's second axis does."""
    kernels.check("se", kernels.draw("se", "bias", (6, 5, 2, 3)))
    grids, inputs = [], kernels.draw("se", "bias", (70_000, 2, 1, 1))
    monkeypatch.setattr(_triton, "launch", lambda kernel, grid, *a, **c: grids.append(grid))
    _, saved = own.forward(*inputs[:3])
    own.backward(inputs.dy, *inputs[:2], saved, (), (True,) * 5 + (False,))
    assert len(grids) == 8
    assert all(size < 65_536 for grid in grids for size in grid[1:])


def test_weights_in_any_strides_and_dtype():
    inputs = kernels.draw("se", "bias", (2, 6, 5, 7))
    expected = kernels.kernels("se", inputs)
    w1, b1, w2, b2, scale = inputs.tensors
    transposed = inputs._replace(
        tensors=(w1.mT.contiguous().mT, b1, w2.mT.contiguous().mT, b2, scale)
    )
    assert not transposed.tensors[0].is_contiguous()
    assert kernels.same(kernels.kernels("se", transposed), expected)

    half = inputs.to(torch.float16)
    found = kernels.kernels("se", half)
    assert {t.dtype for t in found if t is not None} == {torch.float16}
    for a, b in zip(found, reference("se", half), strict=True):
        if a is not None:
            kernels.assert_close(a.cpu(), b.cpu(), 2e-3)


def test_layouts():
    kernels.check_layouts("se", "bias", torch.float32)


@pytest.mark.parametrize("dtype", kernels.DTYPES[::2], ids=str)
def test_repeats_bit_for_bit_and_changes_no_input(dtype, monkeypatch):
    kernels.small_tiles(monkeypatch)
    kernels.check_repeats("se", "bias", dtype)


@every_variant
def test_gradients_only_for_what_asks(variant):
    kernels.check_needs("se", variant)


@every_variant
@pytest.mark.slow  # test_dispatch.py compiles the first variant
def test_compiled(variant, monkeypatch):
    kernels.check_compiled(monkeypatch, "se", variant)


@every_dtype
def test_a_neutral_gate_is_exact(dtype):
    inputs = kernels.draw("se", "bias", (2, 6, 5, 7), dtype)
    w1, b1, w2, b2, _ = inputs.tensors
    scale = torch.tensor(0.5, device=kernels.DEVICE)
    tensors = w1, b1, torch.zeros_like(w2), torch.zeros_like(b2), scale
    for x in (inputs.x, inputs.x.contiguous(memory_format=torch.channels_last)):
        y, dx, *_ = kernels.kernels("se", inputs._replace(x=x, tensors=tensors))
        assert torch.equal(y, x)
        assert torch.equal(dx, inputs.dy)  # nothing flows through a gate of zero weights


def test_sums_in_float32():
    """The sum of this map is far beyond float16, its mean is not."""
    inputs = kernels.draw("se", "bias", (1, 3, 40, 40), torch.float16)
    inputs = inputs._replace(x=100 + inputs.x)
    found = kernels.kernels("se", inputs)
    kernels.compare(found[:1], reference("se", inputs)[:1], torch.float16)
    assert all(t.isfinite().all() for t in found if t is not None)


def test_a_nan_stays():
    """A ReLU that took the larger of NaN and 0 would hide it."""
    inputs = kernels.draw("se", "bias", (2, 6, 5, 7))
    inputs.x[1, 2, 3, 4] = torch.nan
    with use_backend("triton"):
        y = se(inputs.x, *inputs.tensors)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


def test_a_saturated_gate():
    inputs = kernels.draw("se", "bias", (1, 6, 4, 5))
    *tensors, _, scale = inputs.tensors
    b2 = torch.tensor([-200.0, -20, -2, 2, 20, 200], device=kernels.DEVICE)
    found = kernels.check("se", inputs._replace(tensors=(*tensors, b2, scale)))
    assert not found[0][:, 0].any()


def test_a_map_without_pixels():
    inputs = kernels.draw("se", "bias", (2, 6, 0, 5))
    found = kernels.kernels("se", inputs)
    assert found[0].shape == found[1].shape == inputs.x.shape


def test_launches(monkeypatch):
    inputs = kernels.draw("se", "bias", (2, 6, 5, 7))
    assert kernels.launched(monkeypatch, "se", inputs, (True,) * 5 + (False,)) == (4, 4)
    assert kernels.launched(monkeypatch, "se", inputs, (False,) + (True,) * 4 + (False,)) == (4, 3)
