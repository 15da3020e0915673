"""The Triton kernels of region_conv2d, on a GPU or in Triton's interpreter, against float64."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch.nn import functional as F

pytest.importorskip("triton")

from mmattn.ops.region_conv import triton as rc
from tests.zoo import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# that interpreter stores nothing at all
broken = Version(rc.triton.__version__) < Version("3.2") and Version(np.__version__) >= Version("2")
interpreted = rc._INTERPRETED and not broken
runs = pytest.mark.skipif(
    not interpreted and (rc._INTERPRETED or DEVICE == "cpu"),
    reason="needs a CUDA device, or TRITON_INTERPRET=1 before triton is imported "
    "(with NumPy 2, Triton 3.2 or later)",
)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def unwritten_is_nan(monkeypatch):
    """Memory that a kernel was to write and did not shows."""

    def filled(allocate):
        def allocate_filled(*args, **kwargs):
            t = allocate(*args, **kwargs)
            return t.fill_(float("nan")) if t.is_floating_point() else t

        return allocate_filled

    monkeypatch.setattr(torch, "empty", filled(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty))


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """PyTorch allows TF32 in convolutions by default, and so does the kernel."""
    assert rc._allows_tf32()
    monkeypatch.setattr(rc, "_allows_tf32", lambda: False)


@pytest.fixture
def tf32(full_float32, monkeypatch):
    monkeypatch.setattr(rc, "_allows_tf32", lambda: True)


# region maps -------------------------------------------------------------------------------------


def salt(n, m, h, w):
    return torch.randint(m, (n, h, w), generator=torch.Generator().manual_seed(1))


def stripes(n, m, h, w):
    return (torch.arange(w).expand(n, h, w) * m // w + torch.arange(n)[:, None, None]) % m


def one(n, m, h, w):
    return torch.full((n, h, w), m - 1)


def hole(n, m, h, w):
    """Salt and pepper without the regions 0 and m - 2."""
    region = salt(n, m, h, w)
    return torch.where((region == 0) | (region == m - 2), m - 1, region)


# what the caller and autograd do -----------------------------------------------------------------


def plan(region, m):
    group = region.flatten(1) + m * torch.arange(len(region))[:, None]
    order = group.flatten().argsort(stable=True)
    offsets = torch.cat([torch.zeros(1), group.flatten().bincount(minlength=len(region) * m)])
    return order.to(DEVICE), offsets.cumsum(0).to(DEVICE, torch.int32)


def expected(x, filters, region, dy, **geometry):
    """The output and both gradients by plain convolutions in float64."""
    x, filters, dy = (t.detach().cpu().double() for t in (x, filters, dy))
    x.requires_grad_()
    filters.requires_grad_()
    y = 0
    for j in range(filters.shape[1]):
        every = [F.conv2d(a[None], f, **geometry) for a, f in zip(x, filters[:, j], strict=True)]
        y = y + torch.cat(every) * (region == j)[:, None]
    return y, *torch.autograd.grad(y, (x, filters), dy)


class Case:
    """Random tensors for one set of shapes, and the three functions applied to them."""

    def __init__(
        self,
        n=1,
        m=3,
        channels=(5, 33),
        size=(7, 9),
        kernel=(1, 1),
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
        region=salt,
        dtype=torch.float32,
    ):
        self.c, self.o = channels
        self.size, self.kernel = size, kernel
        self.geometry = dict(stride=stride, padding=padding, dilation=dilation)
        self.out_size = tuple(
            (e + 2 * p - d * (k - 1) - 1) // s + 1
            for e, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
        )
        self.region = region(n, m, *self.out_size)
        self.order, self.offsets = plan(self.region, m)
        generator = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(shape, generator=generator).to(DEVICE, dtype)

        self.x = draw(n, self.c, *size)
        self.filters = draw(n, m, self.o, self.c, *kernel)
        self.dy = draw(n, self.o, *self.out_size)

    def run(self):
        where = self.order, self.offsets
        geometry = self.geometry.values()
        return (
            rc.forward(self.x, self.filters, *where, self.out_size, *geometry),
            rc.backward_input(self.dy, self.filters, *where, self.size, *geometry),
            rc.backward_filters(self.dy, self.x, *where, self.kernel, *geometry),
        )

    def check(self):
        results = self.run()
        dtype = self.x.dtype
        reference = expected(self.x, self.filters, self.region, self.dy, **self.geometry)
        for what, a, b in zip(("y", "dx", "dfilters"), results, reference, strict=True):
            assert a.dtype == dtype, what
            assert_close(a, b, TOLERANCE[dtype], what)
        return results


SAME = dict(kernel=(3, 3), padding=(1, 1))
ODD = dict(kernel=(3, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2), region=stripes)
CASES = {
    "3x3, a region without pixels": dict(n=3, region=hole, **SAME),
    "3x3, every pair asymmetric": ODD,
    "1x3, one region": dict(
        n=2, kernel=(1, 3), stride=(1, 2), padding=(1, 0), dilation=(3, 2), region=one
    ),
    # rows of dx between the strides get no gradient
    "1x1, stride": dict(n=3, channels=(33, 5), stride=(2, 3)),
    "1x1, padding": dict(padding=(1, 2)),
    # and neither do those past the last window
    "2x1, a smaller output": dict(kernel=(2, 1)),
    "3x3, no tap inside for a border": dict(size=(2, 3), kernel=(3, 3), padding=(3, 4)),
    # several tiles of pixels, of rows, of columns and of the sum
    "1x3, many blocks": dict(
        m=2, channels=(40, 70), size=(10, 17), kernel=(1, 3), padding=(0, 1), region=stripes
    ),
    # the search for a tile's group goes on past 128 groups
    "1x1, many groups": dict(n=3, m=50, channels=(2, 3)),
    "no pixel to spare": dict(channels=(1, 1), size=(1, 1)),
}


@runs
@pytest.mark.parametrize("name", CASES)
def test_values(name):
    Case(**CASES[name]).check()


@runs
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [dict(m=2, **SAME), dict(n=2)], ids=["3x3", "1x1"])
def test_half_precision(dtype, shape):
    Case(**shape, dtype=dtype).check()


@runs
def test_half_precision_is_summed_in_float32():
    case = Case(channels=(1, 1), size=(40, 70), m=2, region=one, dtype=torch.float16)
    case.x.fill_(1)
    case.dy.fill_(1)
    dfilters = case.run()[2]
    # summed in float16, ones stop at 2048
    assert dfilters.flatten().tolist() == [0, 2800]


@runs
def test_tf32(tf32, monkeypatch):
    assert rc._config(torch.float32, (64, 64, 32), 4, 3)["PRECISION"] == "tf32"
    if DEVICE == "cuda":
        monkeypatch.setitem(TOLERANCE, torch.float32, 5e-3)
    Case(m=2, channels=(40, 20), kernel=(1, 3), padding=(0, 1)).check()


def test_the_switch_for_tf32_is_that_of_convolutions():
    code = (
        "import torch; from mmattn.ops.region_conv import triton as t; a = t._allows_tf32();"
        "torch.backends.cudnn.allow_tf32 = False; print(a, t._allows_tf32())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


@runs
def test_split_sums(monkeypatch):
    """The parts of a long sum, of which some may be empty, are added up."""
    monkeypatch.setattr(rc, "_splits", lambda programs, pixels: 3)
    Case(n=2, channels=(5, 6), size=(7, 30), region=hole).check()
    Case(n=2, channels=(5, 6), dtype=torch.float16).check()


def test_splits_are_bounded():
    assert rc._splits(programs=16, pixels=200 * 336) == 16
    assert rc._splits(programs=16, pixels=50 * 84) == 4
    assert rc._splits(programs=2000, pixels=200 * 336) == 1
    assert rc._splits(programs=16, pixels=7) == 1


@runs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_memory_formats(dtype):
    case = Case(n=2, size=(5, 6), m=2, kernel=(1, 3), padding=(0, 1), dtype=dtype)
    plain = case.check()
    assert all(t.is_contiguous() for t in plain)

    x, dy = case.x, case.dy
    case.x = x.contiguous(memory_format=torch.channels_last)
    case.dy = dy.contiguous(memory_format=torch.channels_last)
    last = case.run()
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in last[:2])
    assert not any(t.is_contiguous() for t in last[:2])
    assert last[2].is_contiguous()

    # steps, a crop, an offset and swapped axes; a transposed bank, and int32 numbers
    case.x = x.new_zeros(2, 11, 6, 9).transpose(2, 3)[:, 1::2, 2:7]
    case.x.copy_(x)
    case.dy = dy.flip(3).contiguous().flip(3)[:, :, :]
    case.filters = case.filters.transpose(2, 3).contiguous().transpose(2, 3)
    case.order = case.order.int()
    sliced = case.run()

    for a, b, c in zip(plain, last, sliced, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@runs
def test_expanded_gradient():
    """What the backward pass of sum() hands down."""
    case = Case(m=2)
    case.dy = case.dy[:1, :1, :1, :1].expand_as(case.dy)
    case.check()


@runs
def test_repeats_bit_for_bit():
    case = Case(m=2, **ODD)
    for a, b in zip(case.run(), case.run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "shape",
    [dict(n=0, **SAME), dict(channels=(0, 3)), dict(channels=(3, 0), **SAME), dict(no_pixels=True)],
    ids=["no sample", "no input channel", "no output channel", "no output pixel"],
)
def test_nothing_to_do(shape, monkeypatch):
    monkeypatch.setattr(rc, "_INTERPRETED", True)  # tensors may be anywhere: nothing is launched
    for kernel in ("_forward_kernel", "_backward_input_kernel", "_backward_filters_kernel"):
        monkeypatch.setattr(rc, kernel, None)
    no_pixels = shape.pop("no_pixels", False)
    case = Case(**shape)
    if no_pixels:
        case.out_size = (0, 3)
        case.dy = case.dy[:, :, :0, :3]
        case.order, case.offsets = case.order[:0], torch.zeros_like(case.offsets)
    y, dx, dfilters = case.run()
    assert y.shape == (len(case.x), case.o, *case.out_size)
    assert dx.shape == case.x.shape
    if len(case.x):  # without samples offsets does not tell m
        assert dfilters.shape == case.filters.shape
    assert not any(t.any() for t in (y, dx, dfilters))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32], ids=str)
def test_other_dtypes_are_named(dtype):
    with pytest.raises(TypeError, match=f"got {dtype}; .* 'eager'"):
        Case(dtype=dtype).run()


def test_mixed_dtypes_are_named():
    case = Case()
    case.filters = case.filters.half()
    with pytest.raises(TypeError, match="one dtype.* got torch.float16, torch.float32"):
        case.run()


def test_cpu_tensors_are_named(monkeypatch):
    monkeypatch.setattr(rc, "_INTERPRETED", False)
    x, filters = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 2, 2, 1, 1)
    with pytest.raises(ValueError, match="expects CUDA tensors, got cpu; choose 'eager' or 'auto'"):
        rc.forward(x, filters, *plan(one(1, 2, 3, 4), 2), (3, 4), (1, 1), (0, 0), (1, 1))


# what test_kernels_compile.py runs
COMPILE = """
import sys

try:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from mmattn.ops.region_conv import triton as rc
except ImportError as error:
    sys.exit(f"skip: {error}")

POINTERS = dict.fromkeys(("x", "y", "dy", "dx", "filters", "dfilters"))
POINTERS |= dict(order="*i64", offsets="*i32")


def check(kernel, arch, dtype, aligned, config, **constants):
    options = {k: config.pop(k) for k in ("num_warps", "num_stages")}
    constants = {k: v for k, v in (config | constants).items() if k in kernel.arg_names}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = POINTERS.get(name, "i32") or dtype
        if name in POINTERS or (aligned and name in ("in_channels", "out_channels")):
            attributes[(i,)] = [["tt.divisibility", 16]]
    try:
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        target = GPUTarget("cuda", arch, 32)
    except TypeError as error:  # the interface of another Triton
        sys.exit(f"skip: {error}")
    shared = triton.compile(source, target=target, options=options).metadata.shared
    assert shared <= 99 * 1024, (kernel.__name__, arch, dtype, shared)


for arch, dtype, name, tf32, channels in (
    (80, torch.float32, "*fp32", False, 256),
    (80, torch.bfloat16, "*bf16", False, 256),
    (90, torch.float32, "*fp32", True, 256),
    (90, torch.float16, "*fp16", False, 33),
):
    torch.backends.cudnn.allow_tf32 = tf32
    aligned = channels % 16 == 0
    for kernel in (rc._forward_kernel, rc._backward_input_kernel):
        config = rc._pixel_tiles(dtype, 4096, channels, channels)
        check(kernel, arch, name, aligned, config, KERNEL_W=3, TAPS=9, ACCUMULATE=True)
    config = rc._filter_tiles(dtype, channels, channels)
    check(rc._backward_filters_kernel, arch, name, aligned, config, KERNEL_W=3, TAPS=9)
"""
