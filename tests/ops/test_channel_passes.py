"""The passes that the kernels of several operators are made of."""

import itertools
import mmap

import pytest
import torch

pytest.importorskip("triton")

from mmattn.ops import _channel_passes as passes
from mmattn.ops import _triton
from tests import kernels

runs = kernels.needs_kernels("se")

FUNCTIONS = {
    "x": lambda x, dy: x,
    "square": lambda x, dy: x.square(),
    "abs": lambda x, dy: x.abs(),
    "product": lambda x, dy: x * dy,
}
FACTORS = {
    "one": lambda other: 1,
    "other": lambda other: other,
    "sign": lambda other: other.sign(),
}


@pytest.fixture(autouse=True)
def unwritten_is_nan(monkeypatch):
    kernels.fill_with_nan(monkeypatch)


def draw(shape, dtype=torch.float32, layout="contiguous"):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(kernels.DEVICE, dtype)
    return kernels.LAYOUTS[layout](x)


@runs
@pytest.mark.parametrize(
    ("of", "programs", "layout"),
    # every two values meet
    [
        (of, programs, ("contiguous", "channels_last")[(i + j) % 2])
        for i, of in enumerate(passes.OF)
        for j, programs in enumerate((1, 12, 2048))
    ],
)
def test_sums(of, layout, programs, monkeypatch):
    """Rows of every alignment; one part, several of several steps, and one for every step."""
    monkeypatch.setattr(passes, "_TILE", 128)
    monkeypatch.setattr(passes, "_PROGRAMS", programs)
    seen = set()
    shapes = [(2, 3, 1, pixels) for pixels in (1, 36, 701)]
    shapes += [(2, channels, 3, 11) for channels in (2, 40)]
    for shape, dtype in zip(shapes, itertools.cycle(kernels.DTYPES)):
        x, dy = draw(shape, dtype, layout), draw(shape, dtype, layout).flip(0)
        dy = _triton.dense_like(dy, x)
        parts = passes.channel_sums(x, of, dy if of == "product" else None)
        assert parts.dtype == torch.float32
        assert parts.shape[1:] == shape[:2]
        expected = FUNCTIONS[of](x.double(), dy.double()).sum((2, 3))
        kernels.assert_close(parts.sum(0).cpu(), expected.cpu(), 1e-5, f"{shape}")
        seen.add(len(parts))
    assert (max(seen) > 1) == (programs > 1)


@runs
@pytest.mark.parametrize("times", passes.TIMES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_scale_and_shift(times, layout, monkeypatch):
    monkeypatch.setattr(passes, "_TILE", 128)
    shapes = [(2, 3, 1, 36), (2, 3, 1, 131), (2, 20, 3, 5)]
    for shape, dtype in zip(shapes, itertools.cycle(kernels.DTYPES)):
        x, other = draw(shape, dtype, layout), draw(shape, dtype, layout).flip(0)
        other = _triton.dense_like(other, x)
        other.masked_fill_(other < -1, 0)
        a, b = draw((2, *shape[:2])).unbind()
        for scale, shift in ((a, b), (None, b), (a, None)):
            y = passes.scale_and_shift(x, scale, shift, times, None if times == "one" else other)
            assert y.dtype == dtype
            assert y.stride() == x.stride()
            expected = x.double() * (1 if scale is None else scale.double()[..., None, None])
            if shift is not None:
                expected += FACTORS[times](other.double()) * shift.double()[..., None, None]
            kernels.assert_close(y.cpu(), expected.cpu(), kernels.TOLERANCE[dtype], f"{shape}")


def test_a_gradient_is_copied_only_where_its_strides_differ():
    x, last = draw((2, 8, 3, 5)), torch.channels_last
    for dy, same in ((x.flip(0), True), (x.contiguous(memory_format=last), False)):
        arranged = _triton.dense_like(dy, x)
        assert arranged.stride() == x.stride()
        assert torch.equal(arranged, dy)
        assert (arranged.data_ptr() == dy.data_ptr()) == same
    # of one pixel, or one channel, the stride means nothing
    for shape in ((2, 8, 1, 1), (2, 1, 3, 5)):
        x = draw(shape)
        strides = [s if n > 1 else 77 for s, n in zip(x.stride(), shape, strict=True)]
        dy = x.clone().as_strided(shape, strides)
        assert dy.stride() != x.stride()
        arranged = _triton.dense_like(dy, x)
        assert arranged.stride() == x.stride()
        assert torch.equal(arranged, x)
        assert arranged.data_ptr() == dy.data_ptr()


def test_every_step_is_someones():
    for base, steps in itertools.product((0, 1, 16, 500, 5000), (0, 1, 2, 7, 100, 5000)):
        splits, each = passes._splits(base, steps)
        assert 1 <= splits <= passes._MOST_PARTS
        assert splits * each >= steps > (splits - 1) * each or steps == 0
    # maps of a detector: enough programs, and not many parts to add
    for n, channels, pixels in ((2, 256, 66800), (2, 512, 16700), (2, 1024, 4200), (2, 2048, 1050)):
        for last in (False, True):
            x = torch.empty(1, device="meta").expand(n, channels, 1, pixels)
            blocks, (down, across), align = passes._tiles(x, last)
            step = blocks.get("BLOCK") or blocks["PIXELS"]
            base = n * across if last else down
            splits, _ = passes._splits(base, -(-pixels // step))
            assert 1000 <= base * splits <= 2 * passes._PROGRAMS
            assert splits * n * channels * 4 <= 0.02 * n * channels * pixels * 4 or splits <= 16
            assert (channels if last else pixels) % align == 0


def test_maps_of_many_sizes_share_few_kernels():
    def variants(size, last):
        x = torch.empty(1, device="meta").expand(2, 256, *size)
        blocks, _, align = passes._tiles(x, last)
        return (*blocks.items(), align)

    sizes = [(h, w) for h in range(150, 350, 7) for w in range(150, 350, 3)]
    assert len({variants(size, False) for size in sizes}) <= 3
    assert len({variants(size, True) for size in sizes}) == 1


@runs
@pytest.mark.skipif(kernels.DEVICE == "cuda", reason="reserves memory without using it")
def test_offsets_past_31_bits():
    """Rows of which only the first pixels exist in memory."""
    rows, row = 4, (1 << 30) + 16
    size = 2 * rows * row
    try:
        reserved = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    except (AttributeError, OSError, ValueError) as error:
        pytest.skip(f"cannot reserve {size} bytes: {error}")
    x = torch.frombuffer(reserved, dtype=torch.float16).view(rows, row)
    values = draw((rows, 16), torch.float16)
    sums = values.float().sum(1)
    a = draw((rows,))

    x[:, :16] = values
    parts = torch.zeros(rows)
    blocks = dict(ALIGN=8, ROWS=4, BLOCK=16)
    passes._sum_rows_kernel[(1,)](x, None, parts, rows, row // 8, 1, 1, OF="x", **blocks)
    kernels.assert_close(parts, sums, 1e-5)
    passes._write_rows_kernel[(1,)](x, None, a, None, x, rows, row // 8, TIMES="one", **blocks)
    kernels.assert_close(x[:, :16], values * a[:, None], 2e-3)

    # as four pixels of many channels
    x[:, :16] = values
    blocks = dict(ALIGN=8, PIXELS=4, CHANNELS=16)
    parts, scale = torch.zeros(16), draw((16,))
    sizes = rows, row // 8
    passes._sum_columns_kernel[(1,)](x, None, parts, 1, *sizes, 1, 1, OF="x", **blocks)
    kernels.assert_close(parts, values.float().sum(0), 1e-5)
    passes._write_columns_kernel[(1,)](x, None, scale, None, x, *sizes, TIMES="one", **blocks)
    kernels.assert_close(x[:, :16], values * scale, 2e-3)


# what test_kernels_compile.py runs
COMPILE = """
import sys

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from mmattn.ops import _channel_passes as passes
    from mmattn.ops.gct import triton as gct
    from mmattn.ops.se import triton as se
except ImportError as error:
    sys.exit(f"skip: {error}")

NUMBERS = dict.fromkeys(
    ("rows", "units", "splits", "steps", "samples", "pixels", "stride", "channels", "width",
     "columns", "mean_programs"), "i32"
) | dict(eps="fp32")
MAPS = ("x", "other", "y")


def compiled(kernel, dtype="*fp32", num_warps=4, absent=(), **constants):
    constants |= dict.fromkeys(absent)
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = NUMBERS.get(name) or (dtype if name in MAPS else "*fp32")
        if name not in NUMBERS:
            attributes[(i,)] = [["tt.divisibility", 16]]
    try:
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        target = GPUTarget("cuda", 90, 32)
    except TypeError as error:  # the interface of another Triton
        sys.exit(f"skip: {error}")
    return triton.compile(source, target=target, options=dict(num_warps=num_warps)).asm["ptx"]


for dtype, align in (("*fp32", 4), ("*bf16", 8)):
    rows, columns = dict(ROWS=4, BLOCK=512), dict(PIXELS=32, CHANNELS=64)
    for sums, write, blocks in (
        (passes._sum_rows_kernel, passes._write_rows_kernel, rows),
        (passes._sum_columns_kernel, passes._write_columns_kernel, columns),
    ):
        # 16 bytes at a time, although neither H W nor C is known to be a multiple of 16
        ptx = compiled(sums, dtype, OF="product", ALIGN=align, **blocks)
        assert "ld.global.v4.b32" in ptx, (sums, dtype)
        ptx = compiled(write, dtype, TIMES="sign", ALIGN=align, **blocks)
        assert "ld.global.v4.b32" in ptx and "st.global.v4.b32" in ptx, (write, dtype)
layer, channel = se._layer_blocks(64), se._channel_blocks(16)
compiled(se._hidden_kernel, **layer)
compiled(se._gate_kernel, absent=("b2",), **channel)
compiled(se._hidden_gradient_kernel, absent=("scale",), **layer)
compiled(se._gradients_kernel, **channel)
blocks = dict(BLOCK=64, SPLITS=passes.parts_at_a_time(64))
compiled(gct._forward_kernel, absent=("scale",), NORM="l2", GATE="1+tanh", **blocks)
compiled(gct._backward_kernel, NORM="l1", GATE="1+elu", **blocks)
compiled(gct._sum_samples_kernel, BLOCK=128, SAMPLES=8)
"""
