"""Every implementation of every fused operator against its equation in float64."""

import json
import mmap

import pytest
import torch

from mmattn.ops import _backend, _chunks, use_backend
from tests.operators import (
    CASES,
    FIRST,
    OPERATORS,
    VARIANTS,
    draw_inputs,
    every_case,
    every_operator,
    reference,
    run,
)
from tests.zoo import PLUGINS, assert_close

# of y, over max(1, its largest value); gradients sum up more: see compare()
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
SHAPES = {
    "odd": (2, 64, 5, 7),
    "one sample": (1, 64, 6, 4),
    "24 channels": (2, 24, 5, 6),
    "one channel a group": (2, 4, 3, 5),
    "one pixel": (3, 64, 1, 1),
    "a row": (2, 64, 1, 9),
    "a column": (2, 64, 9, 1),
    "no sample": (0, 64, 4, 5),
}
# bytes: an entry each, three entries of 'odd' in float64 with a remainder, everything at once
CHUNKS = (1, 3 * 16 * 35 * 8 + 10, 1 << 30)

pytestmark = pytest.mark.filterwarnings("ignore:(std|var).*degrees of freedom")  # for N = 0


@pytest.fixture(autouse=True)
def unwritten_is_nan(monkeypatch):
    """Memory that an implementation was to write and did not shows."""

    def filled(allocate):
        def allocate_filled(*args, **kwargs):
            t = allocate(*args, **kwargs)
            return t.fill_(float("nan")) if t.is_floating_point() and not t.is_meta else t

        return allocate_filled

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))


@pytest.fixture(params=["plain", "eager"])
def who(request, monkeypatch):
    """Both sides of the size from which eager's own passes run."""
    monkeypatch.setattr(_backend, "EAGER_FROM", 0 if request.param == "eager" else 1 << 60)
    with use_backend("eager"):
        yield request.param


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(_backend, "EAGER_FROM", 0)
    with use_backend("eager"):
        yield


def compare(actual, expected, dtype, what=""):
    """Of y, dx and the gradient of each tensor; the last are sums over the map or the samples."""
    assert actual[0].dtype == dtype, what
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert (a is None) == (b is None), f"{what}: {i}"
        if a is not None:
            times = (1, 4, 8)[min(i, 2)]
            assert_close(
                a, b, times * TOLERANCE[dtype], f"{what}: {('y', 'dx')[i] if i < 2 else i}"
            )


def test_every_operator_is_tested():
    assert set(OPERATORS) <= set(VARIANTS), "tests/operators.py needs variants of the others"
    assert all(VARIANTS.values())


# values and gradients ----------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_values_and_gradients(name, variant, dtype, who):
    for what, shape in SHAPES.items():
        inputs = draw_inputs(name, variant, shape, dtype)
        assert OPERATORS[name].implementation(inputs.x, inputs.tensors) == who
        compare(run(OPERATORS[name], inputs), reference(name, inputs), dtype, what)


@every_case
@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks(name, variant, chunk, eager, monkeypatch):
    monkeypatch.setattr(_chunks, "CHUNK", chunk)
    for what, shape in SHAPES.items():
        for last in (False, True):
            inputs = draw_inputs(name, variant, shape)
            if last:
                inputs = inputs._replace(x=inputs.x.to(memory_format=torch.channels_last))
            compare(run(OPERATORS[name], inputs), reference(name, inputs), torch.float64, what)


@pytest.mark.parametrize(
    ("name", "variant", "dtype"),
    [(*case, torch.float32) for case in CASES] + [(*case, torch.bfloat16) for case in FIRST],
    ids=str,
)
def test_a_map_of_several_chunks(name, variant, dtype):
    """As it is used: a map that 'auto' gives to eager, in chunks of their real size."""
    rows = _chunks.CHUNK * 3 // 2 // (32 * 121 * dtype.itemsize)
    inputs = draw_inputs(name, variant, (1, 32, rows, 121), dtype)
    assert inputs.x.nbytes > _chunks.CHUNK
    with use_backend("auto"):
        assert OPERATORS[name].implementation(inputs.x, inputs.tensors) == "eager"
        compare(run(OPERATORS[name], inputs), reference(name, inputs), dtype)


@every_case
def test_parameters_in_float32_of_a_half_map(name, variant, who):
    """What amp does: their gradients come in their own dtype, unrounded."""
    inputs = draw_inputs(name, variant, (2, 64, 5, 7), torch.bfloat16)
    half = inputs.to(torch.float32)._replace(x=inputs.x, dy=inputs.dy)
    found = run(OPERATORS[name], half)
    compare(found, reference(name, inputs), torch.bfloat16)
    assert {g.dtype for g in found[2:] if g is not None} == {torch.float32}


@every_case
def test_float16_does_not_overflow(name, variant, who):
    """Sums over a large map leave float16's range long before its mean does."""
    inputs = draw_inputs(name, variant, (1, 16, 40, 40), torch.float16)
    inputs = inputs._replace(x=100 + 50 * inputs.x)
    y, *gradients = run(OPERATORS[name], inputs)
    compare((y,), reference(name, inputs)[:1], torch.float16)
    assert gradients[0].isfinite().all()


@every_case
def test_a_constant_map(name, variant, who):
    """No spread: what divides by it stays finite, and is the reference's."""
    for value in (0.0, 0.7):
        inputs = draw_inputs(name, variant, (2, 64, 5, 7))
        inputs = inputs._replace(x=torch.full_like(inputs.x, value))
        found, expected = run(OPERATORS[name], inputs), reference(name, inputs)
        for a, b in zip(found, expected, strict=True):
            if a is not None:
                assert a.isfinite().all()
                assert_close(a, b, 1e-8)
        # not float16: dividing by eps alone takes a gradient past its range, in theory too
        for dtype in (torch.float32, torch.bfloat16):
            found = run(OPERATORS[name], inputs.to(dtype))
            assert all(t is None or t.isfinite().all() for t in found)


@every_case
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_map_without_pixels(name, variant, backend):
    """There is nothing to compute, but a network may come to it."""
    inputs = draw_inputs(name, variant, (2, 64, 0, 5))
    if name == "cbam":
        pytest.skip("PyTorch has no maximum of nothing")
    with use_backend(backend):
        found = run(OPERATORS[name], inputs)
    assert found[0].shape == found[1].shape == inputs.x.shape


@pytest.mark.parametrize("name", ["SE", "SGE", "GC", "GCT", "CBAM"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_neutral_gate_is_exact(name, dtype, who):
    variants = [{}, dict(fusion=("add", "mul"))] if name == "GC" else [{}]
    for arguments in variants:
        module = PLUGINS[name](in_channels=64, identity_init=True, **arguments).to(dtype)
        x = (3 * torch.randn(2, 64, 7, 9)).to(dtype)
        for layout in (torch.contiguous_format, torch.channels_last):
            assert torch.equal(module(x.to(memory_format=layout)), x)


# layouts -----------------------------------------------------------------------------------------

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: _placed(
        x, (0, 2, x.shape[2], 1), (..., slice(1, -1), slice(None, None, 2), slice(1, None))
    ),
    "permuted": lambda x: x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
    "flat": lambda x: x.flatten(2).mT.contiguous().mT.unflatten(2, x.shape[2:]),
}


def _placed(x, more, index):
    """``x`` as a part, by index, of a larger tensor that is NaN elsewhere."""
    whole = torch.full(
        [a + b for a, b in zip(x.shape, more, strict=True)], torch.nan, dtype=x.dtype
    )
    whole[(slice(None), *index[1:])].copy_(x)
    return whole[(slice(None), *index[1:])]


@every_case
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(name, variant, layout, who):
    inputs = draw_inputs(name, variant, (2, 64, 5, 7))
    expected = reference(name, inputs)
    x = LAYOUTS[layout](inputs.x)
    assert torch.equal(x, inputs.x)
    for of_dy, arrange in LAYOUTS.items():
        found = run(OPERATORS[name], inputs._replace(x=x, dy=arrange(inputs.dy)))
        compare(found, expected, torch.float64, of_dy)
        for t in found[:2]:
            if layout in ("contiguous", "channels_last"):
                assert t.stride() == x.stride(), of_dy


@every_case
def test_repeated_and_expanded(name, variant, who):
    """What sum() and mean() hand down, a batch of one image, and one pixel everywhere."""
    inputs = draw_inputs(name, variant, (2, 64, 5, 7))
    for t in (inputs.dy[:1, :1, :1, :1], inputs.dy[:, :, :1, :1], inputs.dy[:, :1]):
        expanded = inputs._replace(dy=t.expand_as(inputs.x))
        found = run(OPERATORS[name], expanded)
        compare(found, reference(name, expanded), torch.float64)
    for t in (inputs.x[:1], inputs.x[:, :1], inputs.x[:, :, :1]):
        expanded = inputs._replace(x=t.expand_as(inputs.x))
        compare(run(OPERATORS[name], expanded), reference(name, expanded), torch.float64)


@every_operator
def test_offsets_past_31_bits(name, variant, who):
    """A second sample 2^31 elements on, in memory of which only the used pages exist."""
    inputs = draw_inputs(name, variant, (2, 64, 5, 7), torch.float16)
    far = (1 << 31) + 5
    size = 2 * (far + inputs.x.numel())
    try:
        reserved = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    except (AttributeError, OSError, ValueError) as error:
        pytest.skip(f"cannot reserve {size} bytes: {error}")
    base = torch.frombuffer(reserved, dtype=torch.float16)
    x = base.as_strided(inputs.x.shape, (far, 35, 7, 1)).copy_(inputs.x)
    found = run(OPERATORS[name], inputs._replace(x=x))
    compare(found, reference(name, inputs), torch.float16)


# what stays as it was ----------------------------------------------------------------------------


def bits(found):
    return [None if t is None else t.clone() for t in found]


def same(a, b):
    return all(
        (p is None) == (q is None) and (p is None or torch.equal(p, q))
        for p, q in zip(a, b, strict=True)
    )


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeats_bit_for_bit_and_changes_no_input(name, variant, dtype, eager, monkeypatch):
    monkeypatch.setattr(_chunks, "CHUNK", 1 << 18)
    for shape in ((2, 64, 5, 7), (2, 32, 80, 121)):
        inputs = draw_inputs(name, variant, shape, dtype)
        everything = (inputs.x, inputs.dy, *inputs.tensors)
        before = bits(everything)
        first = run(OPERATORS[name], inputs)
        assert same(everything, before)
        assert first[0].data_ptr() != inputs.x.data_ptr()
        torch.empty(1 << 20).normal_()  # other memory is handed out
        assert same(run(OPERATORS[name], inputs), first)
        with torch.no_grad():  # nothing to save: the same values
            assert torch.equal(OPERATORS[name](*inputs[:3]), first[0])


@every_case
def test_gradients_only_for_what_asks(name, variant, who):
    inputs = draw_inputs(name, variant, (2, 64, 5, 7))
    everything = run(OPERATORS[name], inputs)
    learned = [i for i, g in enumerate(everything[1:]) if g is not None]
    subsets = [set(), {0}, set(learned) - {0}, set(learned[1::2]), *({i} for i in learned)]
    for subset in subsets:
        y, *gradients = run(OPERATORS[name], inputs, subset.__contains__)
        assert torch.equal(y, everything[0]), subset
        for i, (a, b) in enumerate(zip(gradients, everything[1:], strict=True)):
            if i in subset:
                assert_close(a, b, 1e-13, f"{subset}: {i}")
            else:
                assert a is None, f"{subset}: {i}"


@every_case
def test_no_gradient_of_x_is_computed_in_vain(name, variant):
    """The contract of an implementation: None where ``needs`` says so."""
    inputs = draw_inputs(name, variant, (2, 64, 5, 7))
    eager = OPERATORS[name].eager
    _, saved = eager.forward(*inputs[:3])
    needs = (False, *(t is not None and t.dim() > 0 for t in inputs.tensors))
    dx, *gradients = eager.backward(inputs.dy, *inputs[:2], saved, inputs.options, needs)
    assert dx is None
    assert len(gradients) == len(inputs.tensors)
    frozen = (True, *(False for _ in inputs.tensors))
    dx, *_ = eager.backward(inputs.dy, *inputs[:2], saved, inputs.options, frozen)
    compare((dx,), reference(name, inputs)[1:2], torch.float64)


# memory ------------------------------------------------------------------------------------------


@every_case
def test_saves_x_and_small_statistics(name, variant, eager):
    """Of other things, a value a pixel and a few a channel at most, in float32."""
    for dtype in (torch.float32, torch.bfloat16):
        n, c, h, w = shape = (2, 64, 40, 40)
        inputs = draw_inputs(name, variant, shape, dtype)
        x = inputs.x.requires_grad_()
        own = {t.untyped_storage().data_ptr() for t in (x, *inputs.tensors) if t is not None}
        saved = {}

        def pack(t, own=own, saved=saved):
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            OPERATORS[name](*inputs[:3])
        assert sum(saved.values()) <= 4 * (8 * n * c + n * h * w)
        assert sum(saved.values()) < inputs.x.nbytes / 8


def peak(function, trace) -> int:
    """Bytes that a call holds beyond what was there, at most, with what its operators hold."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    profile.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


@every_case
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_takes_no_more_memory_than_the_reference(name, variant, last, tmp_path, monkeypatch):
    """On a map of many chunks, as those of a detector are, but for a value a pixel."""
    monkeypatch.setattr(_chunks, "CHUNK", 1 << 17)
    monkeypatch.setattr(_backend, "EAGER_FROM", 0)
    operator = OPERATORS[name]
    inputs = draw_inputs(name, variant, (2, 64, 64, 96), torch.float32)
    if last:
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (inputs.x, inputs.dy))
        inputs = inputs._replace(x=x, dy=dy)

    def authors(x, tensors, options):
        return operator.reference(x, *tensors, *options)

    with use_backend("auto"):
        found = peak(lambda: run(operator, inputs), tmp_path / "own")
    allowed = peak(lambda: run(authors, inputs), tmp_path / "authors") + inputs.x.nbytes // 32
    assert found > 2 * inputs.x.nbytes - 1  # y and dx at least: something was measured
    assert found <= allowed, f"{found / inputs.x.nbytes:.2f} maps"


@every_case
def test_half_precision_takes_chunks_of_float32_only(name, variant, tmp_path, monkeypatch):
    """What PyTorch's operators one by one hold in float32 are whole maps."""
    monkeypatch.setattr(_chunks, "CHUNK", 1 << 16)
    monkeypatch.setattr(_backend, "EAGER_FROM", 0)
    operator = OPERATORS[name]
    inputs = draw_inputs(name, variant, (2, 64, 64, 96), torch.bfloat16)

    def authors(x, tensors, options):
        return operator.reference(x, *tensors, *options)

    with use_backend("auto"):
        found = peak(lambda: run(operator, inputs), tmp_path / "own")

    def plain(x, tensors, options):
        return operator.plain(x, *tensors, *options)

    allowed = inputs.x.nbytes // 16 + max(
        peak(lambda f=f: run(f, inputs), tmp_path / "other") for f in (authors, plain)
    )
    assert found <= allowed, (
        f"{found / inputs.x.nbytes:.2f} maps, not {allowed / inputs.x.nbytes:.2f}"
    )
