"""The Triton kernels of gc, on a GPU or in Triton's interpreter, against float64."""

import pytest
import torch

pytest.importorskip("triton")

from torch._subclasses.fake_tensor import FakeTensorMode

from mmattn.ops import use_backend
from mmattn.ops.gc import OPERATOR
from mmattn.ops.gc import triton as kernels
from tests.kernels import fill_with_nan
from tests.operators import VARIANTS, draw_inputs, reference, run, why_no_kernels
from tests.zoo import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
runs = pytest.mark.skipif(bool(why_no_kernels("gc")), reason=why_no_kernels("gc"))
# of y and dx, which are rounded to the dtype, and of what is summed and kept in float32
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SUMS = 1e-5
LAST = torch.channels_last
BOTH = "add, mul, gate scale"

every_variant = pytest.mark.parametrize("variant", VARIANTS["gc"])
every_format = pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=str)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
A_TILE, MANY = "a tile a program", "many tiles a program"
FIRST = torch.contiguous_format


@pytest.fixture(autouse=True)
def unwritten_is_nan(monkeypatch):
    fill_with_nan(monkeypatch)


@pytest.fixture
def sweep(request, monkeypatch):
    """What small maps are to 132 multiprocessors, and large ones."""
    if request.param == MANY:
        monkeypatch.setattr(kernels, "_MULTIPROCESSORS", 1)
    return request.param


def draw(variant, shape, dtype=torch.float32, memory_format=torch.contiguous_format):
    """Inputs with parameters in float32, as in training."""
    inputs = draw_inputs("gc", variant, shape)
    x, dy = (t.to(DEVICE, dtype).contiguous(memory_format=memory_format) for t in inputs[::3])
    tensors = tuple(None if t is None else t.to(DEVICE, torch.float32) for t in inputs.tensors)
    return inputs._replace(x=x, dy=dy, tensors=tensors)


def compute(inputs, wanted=lambda i: True):
    """Y and the gradients of x and of each tensor."""
    with use_backend("triton"):
        assert OPERATOR.implementation(inputs.x, inputs.tensors) == "triton"
        return run(OPERATOR, inputs, wanted)


def check(inputs, maps=None, sums=SUMS):
    before = [t.clone() for t in (inputs.x, inputs.dy, *inputs.tensors) if t is not None]
    found = compute(inputs)
    for i, (a, b) in enumerate(zip(found, reference("gc", inputs), strict=True)):
        assert (a is None) == (b is None), i
        if a is not None:
            limit = maps or TOLERANCE[inputs.x.dtype] if i < 2 else sums
            assert_close(a.cpu(), b.cpu(), limit, ("y", "dx")[i] if i < 2 else f"tensor {i - 2}")
    assert found[0].dtype == found[1].dtype == inputs.x.dtype
    after = [t for t in (inputs.x, inputs.dy, *inputs.tensors) if t is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return found


# values -----------------------------------------------------------------------------------------


@runs
@every_format
@every_variant
def test_values(variant, memory_format):
    check(draw(variant, (2, 24, 5, 7), memory_format=memory_format))


@runs
@every_variant
def test_one_pixel(variant):
    check(draw(variant, (3, 8, 1, 1)))


def pairs(names, *rows):
    """Every two values meet; the interpreter is too slow for every three."""
    return pytest.mark.parametrize(names, rows, ids=str, indirect=["sweep"])


@runs
@pairs(
    ("sweep", "memory_format", "variant"),
    (A_TILE, FIRST, BOTH),
    (A_TILE, LAST, "mul, mean, gate scale"),
    (MANY, FIRST, "mul, mean, gate scale"),
    (MANY, LAST, BOTH),
)
def test_many_tiles(variant, memory_format, sweep):
    """Of a few channels by many pixels; of many by a few, with blocks of hidden values."""
    check(draw(variant, (1, 8, 20, 27), memory_format=memory_format))
    check(draw(variant, (1, 260, 5, 10), memory_format=memory_format))


@runs
@every_variant
def test_half_precision(variant):
    check(draw(variant, (2, 24, 5, 7), torch.float16))
    check(draw(variant, (1, 24, 5, 8), torch.bfloat16, LAST))


@runs
@pairs(("sweep", "memory_format"), (A_TILE, LAST), (MANY, FIRST))
def test_many_tiles_in_half_precision(memory_format, sweep):
    check(draw(BOTH, (1, 260, 5, 10), torch.bfloat16, memory_format))


@runs
def test_many_parts(monkeypatch):
    """More programs to a sample than the next kernel adds up at a time."""
    monkeypatch.setattr(kernels, "_PARTS", 2)
    check(draw(BOTH, (2, 130, 5, 29), memory_format=LAST))


@runs
def test_more_samples_than_are_added_at_a_time():
    check(draw(BOTH, (6, 5, 2, 3)))


def test_channels_that_fill_a_tile_alone():
    """Where not even a sector of every channel fits, a tile is narrower."""
    _, _, config = kernels._tiles_of_all_channels(torch.empty(1, 20000, 2, 9), 4096, 8192, 512)
    assert config["BLOCK_P"] == 1


@runs
def test_a_hidden_layer_wider_than_the_map():
    inputs = draw(BOTH, (2, 12, 3, 5))
    generator = torch.Generator().manual_seed(1)
    p = 150
    sizes = [(p, 12), (p,), (p,), (p,), (12, p), (12,)]
    add = [torch.randn(s, generator=generator).to(DEVICE) / s[-1] ** 0.5 for s in sizes]
    check(inputs._replace(tensors=(*inputs.tensors[:2], *add, *inputs.tensors[8:])))


@runs
@pairs(
    ("sweep", "memory_format", "sign"),
    (A_TILE, FIRST, 1),
    (A_TILE, LAST, -1),
    (MANY, FIRST, -1),
    (MANY, LAST, 1),
)
def test_large_logits(memory_format, sweep, sign):
    """Exponentials are taken of differences to the largest logit, whichever tile has it."""
    inputs = draw("add", (1, 260, 5, 10), memory_format=memory_format)
    weight = inputs.tensors[0] / inputs.tensors[0].square().sum()
    # logits rise, or fall, by more from tile to tile than an exponential can hold
    ramp = sign * torch.linspace(-200, 200, 50, device=DEVICE).view(1, 1, 5, 10)
    inputs.x.mul_(0.1).add_(ramp * weight)
    check(inputs, maps=1e-4, sums=2e-3)


@runs
def test_half_precision_is_summed_in_float32():
    inputs = draw("add, mean, 1x1 kernels", (1, 2, 50, 60), torch.float16)
    inputs.x.fill_(100)  # 300,000 is no float16
    _, saved = kernels.forward(*inputs[:3])
    assert saved[0].tolist() == [[100, 100]]


@runs
@every_dtype
@every_format
@pytest.mark.parametrize("variant", ["add", BOTH, "mul, mean, gate scale"])
def test_a_neutral_gate_is_exact(variant, memory_format, dtype):
    inputs = draw(variant, (2, 24, 5, 7), dtype, memory_format)
    for start in (2, 8):  # w2 and b2
        if inputs.tensors[start] is not None:
            inputs.tensors[start + 4].zero_()
            inputs.tensors[start + 5].zero_()
    assert torch.equal(compute(inputs, lambda i: False)[0], inputs.x)


@runs
@every_variant
def test_parameters_in_half_precision(variant):
    inputs = draw_inputs("gc", variant, (1, 12, 5, 7), torch.float16).to(DEVICE)
    for a, b in zip(compute(inputs), reference("gc", inputs), strict=True):
        if a is not None:
            assert a.dtype == torch.float16
            assert_close(a.cpu(), b.cpu(), 1e-3)


@runs
def test_what_is_not_finite_stays_so():
    for value in (float("nan"), float("inf")):
        inputs = draw("add", (2, 8, 5, 7))
        inputs.x[0, 3, 2, 2] = value
        y, dx, *_ = compute(inputs)
        assert not y[0].isfinite().any()
        assert not dx[0].isfinite().any()
        assert y[1].isfinite().all()
        assert dx[1].isfinite().all()


# layouts ----------------------------------------------------------------------------------------


@runs
@pytest.mark.parametrize("variant", ["add", BOTH])
def test_layouts(variant):
    inputs = draw(variant, (2, 12, 5, 6))
    plain = check(inputs)
    assert all(t.is_contiguous() for t in plain[:2])

    x, dy = inputs.x, inputs.dy
    last = check(
        inputs._replace(x=x.contiguous(memory_format=LAST), dy=dy.contiguous(memory_format=LAST))
    )
    assert all(t.is_contiguous(memory_format=LAST) for t in last[:2])
    assert not any(t.is_contiguous() for t in last[:2])

    # dy in the other layout
    mixed = compute(inputs._replace(dy=dy.contiguous(memory_format=LAST)))
    # a crop with steps and swapped axes, offset in memory; parameters a step apart
    crop = x.new_zeros(2, 25, 6, 9).transpose(2, 3)[:, 1::2, 2:7]
    crop.copy_(x)
    strided = tuple(
        t
        if t is None or not t.dim()
        else torch.zeros(*t.shape[:-1], 2 * t.shape[-1], device=DEVICE)[..., ::2].copy_(t)
        for t in inputs.tensors
    )
    sliced = compute(inputs._replace(x=crop, dy=dy.flip(3).contiguous().flip(3), tensors=strided))
    for a, b, c, d in zip(plain, last, mixed, sliced, strict=True):
        if a is not None:
            assert_close(b, a, SUMS)  # sums in another order
            assert torch.equal(a, c)
            assert torch.equal(a, d)


@runs
@every_format
@pytest.mark.parametrize("variant", ["add", "mul, mean, gate scale"])
def test_expanded_gradient(variant, memory_format):
    """What the backward pass of sum() hands down."""
    inputs = draw(variant, (2, 8, 3, 5), memory_format=memory_format)
    check(inputs._replace(dy=inputs.dy[:1, :1, :1, :1].expand_as(inputs.dy)))


@pytest.mark.parametrize("variant", VARIANTS["gc"])
def test_maps_are_not_copied_and_read_no_more_than_needed(variant, monkeypatch):
    seen = []
    monkeypatch.setattr(kernels, "launch", lambda kernel, grid, *a, **c: seen.append(a))
    inputs = draw(variant, (2, 8, 3, 5), memory_format=LAST)
    y, saved = kernels.forward(*inputs[:3])
    maps = [[t is inputs.x or t is y for t in a].count(True) for a in seen]
    assert maps == [1, 0, 0, 2]
    seen.clear()
    needs = (True, *(t is not None for t in inputs.tensors))
    dx, *_ = kernels.backward(inputs.dy, inputs.x, inputs.tensors, saved, (), needs)
    maps = [[t is inputs.dy or t is inputs.x or t is dx for t in a].count(True) for a in seen]
    pools = inputs.tensors[0] is not None
    # the sums are handed x, and leave it unless there is a gate
    assert maps[:4] == [2, 0, 0, 3 if pools else 2]
    assert set(maps[4:]) == {0}
    assert len(maps) == 4 + ("add" in variant) + ("mul" in variant)


# gradients, repetition, nothing to do -----------------------------------------------------------


@runs
@pytest.mark.parametrize("variant", ["mul, 1x1 kernels", "add, mean, 1x1 kernels"])
def test_only_what_is_needed(variant):
    inputs = draw(variant, (1, 12, 5, 7))
    everything = compute(inputs)
    learned = [i for i, g in enumerate(everything[1:]) if g is not None]
    for subset in (set(), {0}, set(learned) - {0}, set(learned[1::2]), {learned[-1]}):
        y, *found = compute(inputs, subset.__contains__)
        assert torch.equal(y, everything[0])
        for i, (a, b) in enumerate(zip(found, everything[1:], strict=True)):
            assert torch.equal(a, b) if i in subset else a is None


@runs
@pairs(("sweep", "memory_format"), (A_TILE, FIRST), (MANY, LAST))
def test_repeats_bit_for_bit(memory_format, sweep):
    inputs = draw(BOTH, (1, 70, 9, 13), memory_format=memory_format)
    for a, b in zip(compute(inputs), compute(inputs), strict=True):
        assert a is b is None or torch.equal(a, b)


@runs
@every_variant
def test_no_sample(variant):
    for t in check(draw(variant, (0, 8, 3, 5)))[2:]:
        assert t is None or not t.any()


@runs
@every_variant
def test_no_pixel(variant):
    y, dx, *_ = compute(draw(variant, (2, 8, 0, 5)))
    assert y.shape == dx.shape == (2, 8, 0, 5)


@every_format
@every_variant
def test_without_memory(variant, memory_format):
    """Shapes, dtypes and layouts for a compiler; nothing else, and nothing of full size saved."""
    inputs = draw(variant, (2, 64, 7, 8), torch.float16, memory_format)
    real = [None if t is None else t.shape for t in (inputs.x, *inputs.tensors)]
    needs = tuple(t is not None for t in (inputs.x, *inputs.tensors))
    with FakeTensorMode() as mode:
        x, dy, *tensors = (
            None if t is None else mode.from_tensor(t)
            for t in (inputs.x, inputs.dy, *inputs.tensors)
        )
        y, saved = kernels.forward(x, tuple(tensors), ())
        found = kernels.backward(dy, x, tuple(tensors), saved, (), needs)
    assert y.shape == found[0].shape == x.shape
    assert y.dtype == found[0].dtype == torch.float16
    assert y.stride() == found[0].stride() == x.stride()
    assert all(t.dtype == torch.float32 and t.numel() <= 2 * 64 for t in saved)
    assert len(found) == len(real)
    for t, shape in zip(found[:-1], real[:-1], strict=True):
        assert (t is None) == (shape is None)
        assert t is None or t.numel() == shape.numel()


# how it is cut ----------------------------------------------------------------------------------

SIZES = [(25, 42), (42, 25), (50, 84), (67, 50), (100, 167), (200, 334), (333, 200)]


def cuts(x):
    yield kernels._tiles_of_all_channels(x, 8192, 16384, 1024)
    yield kernels._tiles_of_all_channels(x, 4096, 32768 // x.itemsize, 2048 // x.itemsize)
    yield kernels._tiles(x)[1:]


@every_format
@every_dtype
@pytest.mark.parametrize("channels", [64, 256, 512, 1024, 2048])
def test_tiles(channels, dtype, memory_format):
    """Few kernels for maps of changing size, tiles that registers hold, and enough programs."""
    for kernel in range(3):
        seen = set()
        for h, w in SIZES:
            x = torch.empty(2, channels, h, w, dtype=dtype, device="meta")
            splits, _, config = [*cuts(x.contiguous(memory_format=memory_format))][kernel]
            assert 1 <= splits <= -(-h * w // config["BLOCK_P"])
            assert config["BLOCK_C"] * config["BLOCK_P"] <= 1024 * config["num_warps"]
            if kernel < 2 and channels * h * w > 1 << 22:
                assert 2 * splits >= 120
            seen.add(tuple(config.items()))
        alignments = 1 if memory_format == LAST else 16 // x.itemsize
        assert len(seen) <= {1: 1, 4: 3, 8: 4}[alignments]


# what test_kernels_compile.py runs
COMPILE = """
import sys

try:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from mmattn.ops.gc import triton as kernels
except ImportError as error:
    sys.exit(f"skip: {error}")

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
launched = []
kernels.has_memory = lambda x: True
kernels.launch = lambda kernel, grid, *args, **constants: launched.append((kernel, args, constants))


def new(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def fusion(c, p):
    return new(p, c, 1, 1), new(p), new(p, 1, 1), new(p, 1, 1), new(c, p, 1, 1), new(c)


def call(shape, dtype, memory_format, add, mul, mask=True, needs_x=True):
    c, p = shape[1], shape[1] // 16
    x = new(*shape, dtype=dtype).contiguous(memory_format=memory_format)
    fusions = *(fusion(c, p) if add else (None,) * 6), *(fusion(c, p) if mul else (None,) * 6)
    pools = (new(1, c, 1, 1), new(1)) if mask else (None, None)
    tensors = *pools, *fusions, new() if mul else None
    y, saved = kernels.forward(x, tensors, ())
    kernels.backward(x, x, tensors, saved, (), (needs_x,) + (True,) * 14 + (False,))


def compile(arch, kernel, args, constants):
    options = {k: constants.pop(k) for k in ("num_warps",) if k in constants}
    signature, fixed, attributes = {}, dict(constants), {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, (*args, *constants.values()))):
        if value is None or name in constants:
            signature[name] = "constexpr"
            fixed[name] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    try:
        source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
        target = GPUTarget("cuda", arch, 32)
    except TypeError as error:  # the interface of another Triton
        sys.exit(f"skip: {error}")
    shared = triton.compile(source, target=target, options=options).metadata.shared
    assert shared <= 48 * 1024, (kernel.__name__, shared)


call((2, 512, 20, 33), torch.float32, torch.contiguous_format, True, False)
# of these the passes over the map alone
launched = [a for a in launched if "rows" in a[0].arg_names]
some = launched
launched = []
call((2, 256, 20, 33), torch.float16, torch.contiguous_format, False, True, mask=False)
some += [a for a in launched if a[0] in (kernels._pool_kernel, kernels._sum_kernel)]
launched.clear()
call((2, 256, 20, 33), torch.float32, torch.channels_last, True, False, needs_x=False)
some += [a for a in launched if a[0] is kernels._dx_kernel]
launched = some
call((2, 256, 20, 32), torch.bfloat16, torch.channels_last, True, True)
for i, (kernel, args, constants) in enumerate(launched):
    compile(90 if i % 2 else 80, kernel, args, constants)
"""
