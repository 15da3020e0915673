"""The Triton kernels of sge, on a GPU or in Triton's interpreter, against float64."""

import itertools

import pytest
import torch

pytest.importorskip("triton")

from torch._subclasses.fake_tensor import FakeTensorMode

from mmattn.ops import sge, use_backend
from mmattn.ops.sge import OPERATOR, reference
from mmattn.ops.sge import triton as kernels
from tests.kernels import fill_with_nan
from tests.operators import why_no_kernels
from tests.zoo import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
runs = pytest.mark.skipif(bool(why_no_kernels("sge")), reason=why_no_kernels("sge"))
# of y and dx; sums over pixels add up as many roundings of x, but no less exactly
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LAST = torch.channels_last

# the interpreter's exp warns of infinity, whose inverse is the right sigmoid
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


@pytest.fixture(autouse=True)
def unwritten_is_nan(monkeypatch):
    fill_with_nan(monkeypatch)


# tiles are of 256 and 128 pixels, or if wide of 32 and 16
SEVERAL_TILES = {"wide": (1, 12, 7, 11)} | dict.fromkeys(
    ("a group a program", "split", "one split", "64-bit offsets"), (1, 12, 17, 37)
)

# limits under which small maps take each form
FORMS = {
    "a group a program": {},
    "split": dict(_ON_CHIP=0),
    "one split": dict(_ON_CHIP=0, _PROGRAMS=1),
    "64-bit offsets": dict(_ON_CHIP=0, _LONGEST=0),
    "wide": dict(_WIDEST=0),
}


@pytest.fixture
def form(request, monkeypatch):
    for name, value in FORMS[request.param].items():
        monkeypatch.setattr(kernels, name, value)
    return request.param


# the same and both orders of memory, so that every two values meet in half of the runs
FORMATS = [torch.contiguous_format, LAST]


def in_turn(names, firsts, forms=("a group a program", "split", "wide")):
    """Every first value with every form, and each of them in both orders of memory."""
    rows = [
        (first, FORMATS[(i + j) % 2], form)
        for i, first in enumerate(firsts)
        for j, form in enumerate(forms)
    ]
    return pytest.mark.parametrize(
        (*names, "memory_format", "form"), rows, indirect=["form"], ids=str
    )


every_form = pytest.mark.parametrize("form", ["a group a program", "split", "wide"], indirect=True)
# where the third has the same code or a check of its own: the interpreter is slow
two_forms = pytest.mark.parametrize("form", ["a group a program", "split"], indirect=True)


class Case:
    """Random tensors, and what sge makes of them."""

    def __init__(
        self,
        shape,
        groups=2,
        normalize=True,
        gate_scale=None,
        dtype=torch.float32,
        memory_format=torch.contiguous_format,
        offset=0.5,
        eps=1e-5,
    ):
        generator = torch.Generator().manual_seed(sum(shape))

        def draw(*size):
            return torch.randn(size, generator=generator)

        def place(t):
            return t.to(DEVICE, dtype).contiguous(memory_format=memory_format)

        self.x, self.dy = place(draw(*shape) + offset), place(draw(*shape))
        self.weight, self.bias = (draw(1, groups, 1, 1).to(DEVICE) for _ in range(2))
        self.gate_scale = None if gate_scale is None else torch.tensor(gate_scale, device=DEVICE)
        self.options = groups, eps, normalize

    def run(self, needs=(True, True, True)):
        """Y and the gradients of x, weight and bias; None for those that are not needed."""
        inputs = [
            t.detach().requires_grad_(need)
            for t, need in zip((self.x, self.weight, self.bias), needs, strict=True)
        ]
        with use_backend("triton"):
            assert OPERATOR.implementation(self.x) == "triton"
            y = sge(*inputs, *self.options, self.gate_scale)
            if any(needs):
                y.backward(self.dy)
        return y.detach(), *(t.grad for t in inputs)

    def expected(self):
        inputs = [
            t.detach().cpu().double().requires_grad_() for t in (self.x, self.weight, self.bias)
        ]
        scale = None if self.gate_scale is None else self.gate_scale.cpu().double()
        y = reference.sge(*inputs, scale, *self.options)
        return y, *torch.autograd.grad(y, inputs, self.dy.cpu().double())

    def check(self, tolerance=None):
        before = [t.clone() for t in (self.x, self.dy, self.weight, self.bias)]
        found = self.run()
        maps = tolerance or TOLERANCE[self.x.dtype]
        sums = max(tolerance or 0, 1e-5)  # in float32 in every dtype
        for what, a, b, limit in zip(
            ("y", "dx", "dweight", "dbias"),
            found,
            self.expected(),
            (maps, maps, sums, sums),
            strict=True,
        ):
            assert_close(a.cpu(), b, limit, what)
        assert found[0].dtype == found[1].dtype == self.x.dtype
        for a, b in zip(before, (self.x, self.dy, self.weight, self.bias), strict=True):
            assert torch.equal(a, b)
        return found


# values -----------------------------------------------------------------------------------------

CASES = {
    "channels of a group no power of two": dict(shape=(2, 6, 3, 7)),
    "not normalized": dict(shape=(1, 6, 5, 5), normalize=False),
    "gate scale": dict(shape=(1, 10, 2, 8), gate_scale=0.7),
    "one channel a group": dict(shape=(1, 3, 4, 5), groups=3),
    "one group": dict(shape=(1, 20, 3, 11), groups=1, eps=0.1),
    "one pixel": dict(shape=(2, 4, 1, 1)),
}


@runs
@in_turn(["name"], CASES)
def test_values(name, memory_format, form):
    Case(**CASES[name], memory_format=memory_format).check()


@runs
@pytest.mark.parametrize("form", FORMS, indirect=True)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=str)
def test_several_tiles(memory_format, form):
    case = Case(SEVERAL_TILES[form], memory_format=memory_format)
    cut = kernels._Plan(case.x, 2).split()
    assert (cut[1][0] == 1) == (form == "one split")
    assert cut[1][1] > cut[2]["BLOCK_P"]
    assert (str(cut[2]["INDEX"]) == "int64") == (form == "64-bit offsets")
    for a, b in zip(case.check(), case.run(), strict=True):
        assert torch.equal(a, b)  # bit for bit


@runs
@in_turn(["dtype"], [torch.float16, torch.bfloat16])
def test_half_precision(dtype, memory_format, form):
    # 24 bytes a group and pixel: dz and that are kept; of 12 x is read again
    Case((1, 24, 3, 7), dtype=dtype, memory_format=memory_format).check()
    if form != "wide":
        Case((1, 12, 3, 7), dtype=dtype, memory_format=memory_format, gate_scale=0.5).check()


@runs
@two_forms
def test_half_precision_is_summed_in_float32(form):
    case = Case((1, 2, 30, 40), groups=1, dtype=torch.float16, normalize=False)
    case.x.fill_(100)  # 120,000 is no float16
    case.weight.fill_(1e-4)
    case.bias.zero_()
    torch.testing.assert_close(case.run()[0], (case.x * torch.tensor(2.0).sigmoid()).half())


@runs
def test_sums_of_many_splits(monkeypatch):
    """More parts than a prologue adds up, and the last of a different length."""
    monkeypatch.setattr(kernels, "_ON_CHIP", 0)
    case = Case((1, 33, 25, 44), groups=1)
    assert kernels._Plan(case.x, 1).split()[1][0] > kernels._SPLITS.value
    case.check(tolerance=1e-5)


@runs
@every_form
def test_spread_of_large_values(form):
    """The squares are of centred values: t is 10,000 with a spread of 40."""
    case = Case((1, 8, 9, 10), offset=50)
    error = (case.run()[0].cpu() - case.expected()[0]).abs() / case.x.cpu().abs()
    assert error.max() < 1e-5


@runs
@two_forms
def test_a_map_without_spread(form):
    case = Case((1, 8, 5, 6))
    case.x.zero_()
    assert all(t.isfinite().all() for t in case.check())
    case.x = torch.full_like(case.x, 2.0)  # sums of which are exact
    assert all(t.isfinite().all() for t in case.check())


@runs
@two_forms
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_a_neutral_gate_is_exact(dtype, form):
    case = Case((1, 12, 5, 7), gate_scale=0.5, dtype=dtype)
    case.weight.zero_()
    case.bias.zero_()
    y, dx, *_ = case.run()
    assert torch.equal(y, case.x)
    assert torch.equal(dx, case.dy)  # nothing flows through a gate of zero weights


@runs
@two_forms
def test_parameters_in_half_precision(form):
    case = Case((1, 12, 5, 7), gate_scale=0.5, dtype=torch.float16)
    case.weight, case.bias = case.weight.half(), case.bias.half()
    case.gate_scale = case.gate_scale.half()
    y, dx, dweight, dbias = case.run()
    for a, b in zip((y, dx, dweight, dbias), case.expected(), strict=True):
        assert a.dtype == torch.float16
        assert_close(a.cpu(), b, 1e-3)


# layouts ----------------------------------------------------------------------------------------


@runs
@two_forms
def test_layouts(form):
    case = Case((2, 6, 5, 6))
    plain = case.check()
    assert all(t.is_contiguous() for t in plain[:2])

    x, dy = case.x, case.dy
    case.x, case.dy = (t.contiguous(memory_format=LAST) for t in (x, dy))
    last = case.check()
    assert all(t.is_contiguous(memory_format=LAST) for t in last[:2])
    assert not any(t.is_contiguous() for t in last[:2])

    case.x = x  # and dy in the other layout
    mixed = case.run()
    # a crop with steps and swapped axes, offset in memory; parameters a step apart
    case.x = x.new_zeros(2, 13, 6, 9).transpose(2, 3)[:, 1::2, 2:7]
    case.x.copy_(x)
    case.dy = dy.flip(3).contiguous().flip(3)
    for name in ("weight", "bias"):
        strided = torch.zeros(1, 4, 1, 1, device=DEVICE)[:, ::2]
        setattr(case, name, strided.copy_(getattr(case, name)))
    sliced = case.run()
    for a, b, c, d in zip(plain, last, mixed, sliced, strict=True):
        assert_close(b, a, 2e-6)  # sums in another order
        assert torch.equal(a, c)
        assert torch.equal(a, d)


@runs
@two_forms
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=str)
def test_expanded_gradient(memory_format, form):
    """What the backward pass of sum() hands down."""
    case = Case((2, 8, 3, 5), memory_format=memory_format)
    case.dy = case.dy[:1, :1, :1, :1].expand_as(case.dy)
    case.check()


def test_channels_last_is_not_copied(monkeypatch):
    seen = []
    monkeypatch.setattr(kernels._triton, "launch", lambda kernel, grid, *a, **c: seen.append(a))
    case = Case((2, 8, 3, 5), memory_format=LAST)
    tensors = case.weight, case.bias, None
    _, saved = kernels.forward(case.x, tensors, case.options)
    kernels.backward(case.dy, case.x, tensors, saved, case.options, (True,) * 3 + (False,))
    assert seen[0][0] is case.x
    assert seen[1][0] is case.dy
    assert seen[1][1] is case.x


# gradients, and nothing to do -----------------------------------------------------------


@runs
@every_form
@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 0)], ids=str)
def test_only_what_is_needed(needs, form):
    case = Case((1, 12, 5, 7))
    every = case.run()
    needed = case.run(tuple(map(bool, needs)))
    for a, b, need in zip(needed, every, (1, *needs), strict=True):
        if need:
            assert torch.equal(a, b)
        else:
            assert a is None


@pytest.mark.parametrize("shape", [(0, 8, 3, 5), (2, 0, 3, 5), (2, 8, 0, 5)], ids=str)
def test_nothing_to_do(shape, monkeypatch):
    monkeypatch.setattr(kernels._triton, "launch", None)
    case = Case(shape)
    tensors = case.weight, case.bias, None
    y, saved = kernels.forward(case.x, tensors, case.options)
    dx, dweight, dbias, _ = kernels.backward(
        case.dy, case.x, tensors, saved, case.options, (True,) * 3 + (False,)
    )
    assert y.shape == dx.shape == shape
    assert dweight.tolist() == dbias.tolist() == [0.0] * 2


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=str)
def test_without_memory(memory_format):
    """Shapes, dtypes and layouts for a compiler; nothing else, and nothing of full size saved."""
    with FakeTensorMode():
        case = Case((2, 512, 70, 80), 4, dtype=torch.float16, memory_format=memory_format)
        tensors = case.weight, case.bias, None
        y, saved = kernels.forward(case.x, tensors, case.options)
        dx, *rest = kernels.backward(
            case.dy, case.x, tensors, saved, case.options, (True,) * 3 + (False,)
        )
    assert y.shape == dx.shape == case.x.shape
    assert y.dtype == dx.dtype == torch.float16
    assert y.stride() == dx.stride() == case.x.stride()
    assert [t.shape for t in saved] == [(2, 512), (2, 4), (2, 4)]
    assert [t.numel() for t in rest[:2]] == [4, 4]
    assert {t.dtype for t in (*saved, *rest[:2])} == {torch.float32}


# how it is cut ----------------------------------------------------------------------------------


def plan(shape, groups=64, dtype=torch.float32, memory_format=torch.contiguous_format):
    x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=memory_format)
    return kernels._Plan(x, groups)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=str)
def test_which_groups_stay_on_chip(memory_format):
    def on_chip(*args):
        return plan(*args, memory_format=memory_format).group

    assert on_chip((2, 2048, 25, 42))
    assert on_chip((2, 1024, 50, 84), 64, torch.float16)
    assert not on_chip((2, 1024, 50, 84))
    assert not on_chip((2, 256, 200, 334), 64, torch.float16)
    assert not on_chip((2, 512, 7, 7), 1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=str)
def test_maps_of_changing_size_share_kernels(memory_format):
    for shape, groups, dtype in itertools.product(
        ((2, 256), (1, 1024), (2, 2048)), (1, 64), (torch.float32, torch.float16)
    ):
        cuts = [plan((*shape, h, w), groups, dtype, memory_format) for h, w in SIZES]
        constants = [dict(cut.split()[2]) for cut in cuts]
        alignments = {c.pop("ALIGN") for c in constants}
        assert len({tuple(c.items()) for c in constants}) == 1
        # 16 bytes, 8 and so on, if the rows of pixels are aligned at all
        assert alignments <= ({1} if memory_format is LAST else {1, 2, 4, 16 // dtype.itemsize})
        assert memory_format is LAST or max(alignments) == 16 // dtype.itemsize


SIZES = [(25, 42), (42, 25), (50, 84), (67, 50), (200, 334), (333, 200), (25, 41)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST], ids=str)
@pytest.mark.parametrize("groups", [1, 3, 64])
def test_splits_cover_the_pixels(groups, memory_format):
    for samples, h, w in ((1, 1, 1), (2, 25, 42), (1, 333, 200), (64, 50, 84)):
        cut = plan((samples, 192, h, w), groups, memory_format=memory_format)
        (programs,), (splits, chunk), constants = cut.split()
        assert (splits - 1) * chunk < h * w <= splits * chunk
        assert chunk % constants["BLOCK_P"] == 0
        assert programs % (samples * splits) == 0
        # several programs to each of 132 multiprocessors, unless they would have next to nothing
        assert programs >= 264 or chunk <= 2 * constants["BLOCK_P"]
        assert programs <= 2 * kernels._PROGRAMS or splits == 1


# what test_kernels_compile.py runs
COMPILE = """
import re
import sys

try:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from mmattn.ops import _triton
    from mmattn.ops.sge import triton as kernels
except ImportError as error:
    sys.exit(f"skip: {error}")

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
launched = []
_triton.has_memory = lambda x: True
_triton.launch = lambda kernel, grid, *args, **constants: launched.append((kernel, args, constants))


def special(kernel, i):
    return not kernel.params[i].do_not_specialize


def check(kernel, args, constants):
    options = dict(num_warps=constants.pop("num_warps"))
    signature, attributes = {}, {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, args)):
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        elif value is None or (value == 1 and special(kernel, i)):
            signature[name] = "constexpr"
            constants[name] = value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        aligned = isinstance(value, int) and value % 16 == 0 and special(kernel, i)
        if aligned or isinstance(value, torch.Tensor):
            attributes[(i,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(kernel.arg_names[len(args):], "constexpr")
    try:
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
        target = GPUTarget("cuda", 90, 32)
    except TypeError as error:  # the interface of another Triton
        sys.exit(f"skip: {error}")
    compiled = triton.compile(source, target=target, options=options)
    shared = compiled.metadata.shared
    assert shared <= 48 * 1024, (kernel.__name__, shared)
    if constants["ALIGN"] * args[0].itemsize == 16:  # although H W is not known to divide by 16
        assert re.search(r"ld[.]global\\S*[.]v4[.]b32", compiled.asm["ptx"]), kernel.__name__


LONGEST = kernels._LONGEST
for shape, groups, dtype, memory_format, scale, normalize, longest in (
    ((2, 512, 100, 167), 64, torch.float32, torch.contiguous_format, None, True, LONGEST),
    ((1, 256, 200, 333), 64, torch.float16, torch.contiguous_format, 0.5, False, 0),
    ((1, 1024, 50, 84), 64, torch.bfloat16, torch.channels_last, 0.5, True, LONGEST),
    ((2, 2048, 25, 42), 64, torch.float16, torch.contiguous_format, None, False, LONGEST),
    ((1, 600, 50, 84), 1, torch.float16, torch.channels_last, None, True, 0),
):
    kernels._LONGEST = longest  # of offsets in 32 bits
    x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=memory_format)
    w = torch.empty(1, groups, 1, 1, device="meta")
    tensors = w, w, None if scale is None else torch.tensor(scale, device="meta")
    options = groups, 1e-5, normalize
    _, saved = kernels.forward(x, tensors, options)
    kernels.backward(x, x, tensors, saved, options, (True, True, True, False))
assert len(launched) == 5 + 4 + 2 + 2 + 6, len(launched)
for kernel, args, constants in launched:
    check(kernel, args, constants)
"""
