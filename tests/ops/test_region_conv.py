"""region_conv2d against plain float64 loops, and its implementations against each other."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo import lookup_backend
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from mmattn.ops import region_conv2d, use_backend
from mmattn.ops.region_conv import eager
from mmattn.ops.region_conv._custom_op import plan
from tests.zoo import assert_close

BACKENDS = ["reference", "eager"]
on_each_device = pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
each_backend = pytest.mark.parametrize("backend", BACKENDS)


# region maps -------------------------------------------------------------------------------------


def salt(n, m, h, w):
    return torch.randint(m, (n, h, w), generator=torch.Generator().manual_seed(1))


def smooth(n, m, h, w):
    """Diagonal bands, shifted from sample to sample."""
    band = (torch.arange(h)[:, None] + torch.arange(w)) * m // (h + w)
    return (band + torch.arange(n)[:, None, None]) % m


def one(n, m, h, w):
    """The last region everywhere: all others are empty."""
    return torch.full((n, h, w), m - 1)


def hole(n, m, h, w):
    """Salt and pepper without the regions 0 and m - 2."""
    region = salt(n, m, h, w)
    return torch.where((region == 0) | (region == m - 2), m - 1, region)


REGIONS = [one, hole, salt, smooth]


# a problem and what comes of it ------------------------------------------------------------------


def pair(value):
    return (value, value) if isinstance(value, int) else value


class Case:
    """Random tensors for one set of shapes; ``guide`` has its argmax at ``region``."""

    def __init__(
        self,
        n=2,
        m=4,
        channels=(6, 8),
        size=(6, 7),
        kernel=(3, 3),
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        region=salt,
        dtype=torch.float64,
        seed=0,
    ):
        self.options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
        self.out_size = tuple(
            (e + 2 * p - d * (k - 1) - 1) // s + 1
            for e, k, s, p, d in zip(
                size, kernel, pair(stride), pair(padding), pair(dilation), strict=True
            )
        )
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.x = draw(n, channels[0], *size)
        self.filters = draw(n, m, channels[1], channels[0] // groups, *kernel)
        self.dy = draw(n, channels[1], *self.out_size)
        self.region = region(n, m, *self.out_size)
        guide = draw(n, m, *self.out_size)
        highest = guide.amax(1, keepdim=True) + 0.25
        self.guide = guide.scatter(1, self.region[:, None], highest)

    def to(self, *args, **kwargs):
        for name in ("x", "filters", "dy", "guide"):
            setattr(self, name, getattr(self, name).to(*args, **kwargs))
        self.region = self.region.to(self.x.device)
        return self

    def leaves(self):
        return [t.detach().requires_grad_() for t in (self.x, self.filters, self.guide)]

    def run(self, backend="eager", candidates=None, function=region_conv2d):
        """Output and gradients of x, filters and guide."""
        x, filters, guide = leaves = self.leaves()
        with use_backend(backend):
            y = function(
                x, filters, self.region, **self.options, guide=guide, candidates=candidates
            )
            return [y, *torch.autograd.grad(y, leaves, self.dy)]

    def expected(self, candidates=None):
        """The same by the reference in float64."""
        twin = object.__new__(Case)
        vars(twin).update(vars(self))
        return twin.to("cpu", torch.float64).run("reference", candidates)


RESULTS = ("y", "dx", "dfilters", "dguide")


def assert_same(actual, expected, tolerance):
    for what, a, b in zip(RESULTS, actual, expected, strict=True):
        assert_close(a.cpu(), b.cpu(), tolerance, what)


def by_loops(x, filters, region, guide, dy, stride, padding, dilation, groups, candidates=None):
    """Output and gradients, from the equations, in plain Python."""
    n, _, height, width = x.shape
    _, m, out_channels, size, kh, kw = filters.shape
    dx, dfilters, dguide, y = (torch.zeros_like(t) for t in (x, filters, guide, dy))
    for i, p, q in itertools.product(range(n), range(y.shape[2]), range(y.shape[3])):
        taps = [
            (c, a, b, p * stride[0] + a * dilation[0] - padding[0],
             q * stride[1] + b * dilation[1] - padding[1])
            for c, a, b in itertools.product(range(size), range(kh), range(kw))
        ]  # fmt: skip
        taps = [t for t in taps if 0 <= t[3] < height and 0 <= t[4] < width]
        own = region[i, p, q].item()
        answers = [0.0] * m  # q_j: region j's answer along dy
        for o in range(out_channels):
            first = o // (out_channels // groups) * size  # the group's first input channel
            up = dy[i, o, p, q].item()
            for c, a, b, row, column in taps:
                value = x[i, first + c, row, column].item()
                weights = filters[i, :, o, c, a, b].tolist()
                y[i, o, p, q] += weights[own] * value
                dx[i, first + c, row, column] += weights[own] * up
                dfilters[i, own, o, c, a, b] += value * up
                for j, weight in enumerate(weights):
                    answers[j] += weight * value * up
        scores = guide[i, :, p, q].tolist()
        rank = sorted(range(m), key=lambda j: -scores[j])[:candidates]
        total = sum(math.exp(scores[j]) for j in rank)
        soft = [math.exp(scores[j]) / total if j in rank else 0.0 for j in range(m)]
        mean = sum(s * a for s, a in zip(soft, answers, strict=True))
        for j in range(m):
            dguide[i, j, p, q] = soft[j] * (answers[j] - mean)
    return y, dx, dfilters, dguide


@each_backend
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("candidates", [None, 2])
def test_loops(backend, groups, candidates):
    """Nothing is symmetric: neither kernel, stride, padding, dilation nor map."""
    case = Case(
        channels=(4, 2), size=(5, 4), kernel=(2, 3), stride=(2, 1), padding=(1, 3),
        dilation=(3, 2), groups=groups,
    )  # fmt: skip
    expected = by_loops(
        case.x, case.filters, case.region, case.guide, case.dy,
        (2, 1), (1, 3), (3, 2), groups, candidates,
    )  # fmt: skip
    assert_same(case.run(backend, candidates), expected, 1e-12)


# eager against the reference ---------------------------------------------------------------------


@pytest.fixture
def unwritten_is_nan(monkeypatch):
    """Memory that was to be written and was not shows."""

    def filled(allocate):
        def allocate_and_fill(*args, **kwargs):
            t = allocate(*args, **kwargs)
            return t.fill_(float("nan") if t.is_floating_point() else 1 << 30)

        return allocate_and_fill

    for owner, name in (
        (torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))


SHAPES = {
    "3x3": dict(n=3, padding=1),
    "3x3, nothing symmetric": dict(n=1, stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "1x1": dict(n=3, kernel=(1, 1)),
    "1x1, stride": dict(n=2, kernel=(1, 1), stride=(2, 3)),
    "1x1, padding": dict(n=1, kernel=(1, 1), padding=(1, 2), stride=(1, 2)),
    "1x1, groups": dict(n=3, kernel=(1, 1), groups=2),
    "1x3, groups": dict(n=3, kernel=(1, 3), padding=(0, 1), groups=2),
    "1x3, depthwise": dict(n=1, channels=(8, 8), kernel=(1, 3), padding=(0, 1), groups=8),
    "1x1, many regions": dict(n=1, m=300, channels=(2, 3), size=(20, 21), kernel=(1, 1)),
    "one pixel": dict(n=3, size=(1, 1), padding=1),
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: torch.cat([x, x, x], 3)[:, :, :, 1 : 1 + x.shape[3]],
}
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


@on_each_device
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_eager_equals_the_reference(device, region, shape, layout, dtype, unwritten_is_nan):
    case = Case(**SHAPES[shape], region=region, dtype=dtype).to(device)
    case.x = LAYOUTS[layout](case.x)
    candidates = 2 if layout == "sliced" else None
    results = case.run("eager", candidates)
    assert all(t.dtype == dtype for t in results)
    assert_same(results, case.expected(candidates), TOLERANCES[dtype])
    y = results[0]
    if y.numel() and y[0, 0].numel() > 1:  # else it is in any order
        last = layout == "channels_last"
        assert y.is_contiguous(memory_format=torch.channels_last) == last
        assert y.is_contiguous() != last


@each_backend
@pytest.mark.parametrize("shape", ["3x3", "1x1", "1x3, groups"])
@pytest.mark.parametrize("candidates", [None, 2])
def test_no_sample(backend, shape, candidates):
    case = Case(**{**SHAPES[shape], "n": 0})
    results = case.run(backend, candidates)
    for actual, like in zip(results, (case.dy, case.x, case.filters, case.guide), strict=True):
        assert actual.shape == like.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_regions_larger_than_a_chunk(dtype, monkeypatch, unwritten_is_nan):
    monkeypatch.setattr(eager, "_CHUNK_BYTES", dict(cpu=1, cuda=1))  # 128 pixels
    for region in REGIONS:
        case = Case(m=2, channels=(3, 4), size=(20, 21), padding=1, region=region, dtype=dtype)
        assert_same(case.run(), case.expected(), TOLERANCES[dtype])


@pytest.mark.parametrize("kernel", [(1, 3), (1, 1)])
def test_half_precision_is_summed_in_float32(kernel, monkeypatch):
    """In float16, sums above 2048 lose ones, and products of 300 and 300 overflow."""
    # 23 chunks of 125 and 126 pixels
    monkeypatch.setattr(eager, "_CHUNK_BYTES", dict(cpu=1, cuda=1))
    case = Case(n=1, m=2, channels=(1, 1), size=(60, 50), kernel=kernel, region=one)
    for t in (case.x, case.filters, case.dy):
        t.fill_(1)
    case.to(torch.float16)
    expected = torch.zeros_like(case.filters)
    expected[:, 1] = case.dy.numel()  # 2880 or 3000
    assert torch.equal(case.run()[2], expected)
    case.x.fill_(300)
    case.dy.fill_(300)
    # the regions answer the same: no gradient, but for float32's rounding
    assert_close(case.run()[3], torch.zeros_like(case.guide), 0.1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_generated_shapes(data):
    def draw(least, most):
        return data.draw(st.integers(least, most))

    groups = draw(1, 3)
    kernel, stride, padding, dilation = (
        (draw(*limits), draw(*limits)) for limits in ((1, 3), (1, 3), (0, 2), (1, 2))
    )
    size = tuple(
        draw(max(1, d * (k - 1) + 1 - 2 * p), 8)
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    )
    m = draw(2, 9)
    case = Case(
        n=draw(0, 3), m=m, channels=(groups * draw(1, 3), groups * draw(1, 3)), size=size,
        kernel=kernel, stride=stride, padding=padding, dilation=dilation, groups=groups,
        region=data.draw(st.sampled_from(REGIONS)), seed=draw(0, 9),
    )  # fmt: skip
    case.x = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))](case.x)
    candidates = data.draw(st.none() | st.integers(2, m))
    assert_same(case.run("eager", candidates), case.expected(candidates), 1e-12)


@each_backend
@pytest.mark.parametrize("kernel", [(3, 2), (1, 1)])
def test_gradcheck(backend, kernel):
    case = Case(
        m=3, channels=(2, 4), size=(3, 4), kernel=kernel, stride=(1, 2), padding=(1, 0), groups=2
    )
    x, filters, _ = case.leaves()
    with use_backend(backend):
        assert gradcheck(
            lambda x, filters: region_conv2d(x, filters, case.region, **case.options), (x, filters)
        )


@each_backend
@pytest.mark.parametrize("wanted", [w for r in (1, 2) for w in itertools.combinations(range(3), r)])
def test_a_part_of_the_gradients(backend, wanted):
    case = Case(padding=1)
    every = case.run(backend)[1:]
    leaves = [t.requires_grad_(i in wanted) for i, t in enumerate(case.leaves())]
    with use_backend(backend):
        y = region_conv2d(leaves[0], leaves[1], case.region, **case.options, guide=leaves[2])
    y.backward(case.dy)
    for i, (leaf, gradient) in enumerate(zip(leaves, every, strict=True)):
        if i in wanted:
            assert_close(leaf.grad, gradient, 1e-14, RESULTS[1 + i])
        else:
            assert leaf.grad is None


@each_backend
def test_what_does_not_matter(backend):
    """The guide in the forward pass, the integers' type, and strides of any kind."""
    case = Case(padding=1)
    y, dx, dfilters, _ = case.run(backend)
    with use_backend(backend):
        for region in (
            case.region.to(torch.uint8),
            case.region.int(),
            case.region.transpose(1, 2).contiguous().transpose(1, 2),
        ):
            assert torch.equal(region_conv2d(case.x, case.filters, region, 1, 1), y)
        x, filters, _ = case.leaves()
        swapped = filters.transpose(2, 3).contiguous().transpose(2, 3)
        y = region_conv2d(x, swapped, case.region, 1, 1)
    y.backward(case.dy.flip(3).contiguous().flip(3))
    assert_close(x.grad, dx, 1e-14)
    assert_close(filters.grad, dfilters, 1e-14)
    # sum() hands down an expanded gradient
    with use_backend(backend):
        region_conv2d(x, filters, case.region, 1, 1).sum().backward()
    case.dy = torch.ones_like(case.dy)
    _, more_dx, more_dfilters, _ = case.run(backend)
    assert_close(x.grad, dx + more_dx, 1e-13)
    assert_close(filters.grad, dfilters + more_dfilters, 1e-13)


@each_backend
@pytest.mark.parametrize("equal", [[0, 1], [1, 11, 21], [5, 9, 13, 30]], ids=str)
def test_candidates_of_equal_scores(backend, equal):
    """Which of them topk names first is not what argmax says; here, the region is one of them."""
    case = Case(n=1, m=32, channels=(2, 2), size=(2, 3), kernel=(1, 1))
    case.guide[:, equal] = case.guide.max() + 1
    case.region = case.guide.argmax(1)
    candidates = len(equal)
    expected = by_loops(
        case.x, case.filters, case.region, case.guide, case.dy,
        (1, 1), (0, 0), (1, 1), 1, candidates,
    )  # fmt: skip
    assert_same(case.run(backend, candidates), expected, 1e-12)
    # all are equal as after loading plain weights: any will do, but with the region's own
    case.guide.zero_()
    case.region.zero_()
    dguide = case.run(backend, candidates)[3]
    assert (dguide[:, 0] != 0).all()
    assert ((dguide != 0).sum(1) == candidates).all()


# memory ------------------------------------------------------------------------------------------


def peak_bytes(function):
    """The most memory that was allocated at one time, beside what was there before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    steps = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(steps))


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")
@pytest.mark.parametrize("candidates", ["no guide", None, 2])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)])
def test_memory_does_not_grow_with_the_regions(candidates, kernel):
    few, many = (
        Case(m=m, channels=(16, 16), size=(32, 32), kernel=kernel, dtype=torch.float32)
        for m in (2, 16)
    )

    def growth(backend):
        peaks = []
        for case in (few, many):
            x, filters, guide = case.leaves()
            surrogate = dict(guide=guide, candidates=candidates)
            options = {} if candidates == "no guide" else surrogate

            def step(x=x, filters=filters, region=case.region, dy=case.dy, options=options):
                with use_backend(backend):
                    region_conv2d(x, filters, region, **options).backward(dy)

            step()  # once-only allocations are no part of it
            peaks.append(peak_bytes(step))
        return (peaks[1] - peaks[0]) / (4 * few.dy.numel())  # in output maps

    def maps(name):
        return (getattr(many, name).numel() - getattr(few, name).numel()) / few.dy.numel()

    own_gradients = maps("filters")
    if candidates != "no guide":
        own_gradients += 5 * maps("guide")  # a few maps of scores, of one channel a region
    assert growth("eager") < 1.1 * own_gradients < 8
    assert growth("reference") > 14  # the measure sees what it should


@pytest.mark.parametrize("candidates", ["no guide", None, 2])
def test_what_is_kept_for_the_backward_pass(candidates):
    """The output only where it saves a convolution."""
    case = Case()
    x, filters, guide = case.leaves()
    surrogate = dict(guide=guide, candidates=candidates)
    options = {} if candidates == "no guide" else surrogate
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        y = region_conv2d(x, filters, case.region, **options)
    kept = [t for t in kept if t is not None and t.is_floating_point()]
    expected = {x, filters, *([guide] if options else []), *([y] if candidates == 2 else [])}
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in expected}


# around PyTorch ----------------------------------------------------------------------------------


@each_backend
def test_autocast(backend):
    case = Case(padding=1, dtype=torch.float32)
    full = case.run(backend)
    x, filters, guide = leaves = case.leaves()
    with use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            y = region_conv2d(x, filters, case.region, 1, 1, guide=guide)
            mixed = region_conv2d(x, filters.bfloat16(), case.region, 1, 1)
            double = region_conv2d(x.double(), filters.double(), case.region, 1, 1)
        gradients = torch.autograd.grad(y, leaves, case.dy.bfloat16())
        y32 = region_conv2d(x, filters, case.region, 1, 1, guide=guide)
        if backend == "eager":
            with torch.autocast("cpu", torch.bfloat16):  # too late to round anything
                assert_same([y32, *torch.autograd.grad(y32, leaves, case.dy)], full, 1e-6)
    assert y.dtype == torch.bfloat16
    assert torch.equal(mixed, y)
    assert double.dtype == torch.float64
    assert all(g.dtype == torch.float32 for g in gradients)
    assert_same([y, *gradients], full, 2e-2)
    assert not torch.equal(y.float(), full[0])


@pytest.mark.parametrize(("candidates", "layout"), [(None, "contiguous"), (2, "channels_last")])
def test_compiles_to_one_graph(candidates, layout):
    torch._dynamo.reset()

    graphs = []

    def backend(module, inputs):  # without a compiler of C++
        graphs.append(str(module.graph))
        return lookup_backend("aot_eager")(module, inputs)

    compiled = torch.compile(region_conv2d, backend=backend, fullgraph=True)
    for case in (
        Case(padding=1, groups=2),
        Case(n=3, size=(5, 9), padding=1, groups=2),  # now the sizes become symbols
        Case(n=4, size=(8, 6), padding=1, groups=2),
    ):
        case.x = LAYOUTS[layout](case.x)
        results = case.run("eager", candidates, compiled)
        assert_same(results, case.expected(candidates), 1e-12)
        last = layout == "channels_last"
        assert results[0].is_contiguous(memory_format=torch.channels_last) == last
    assert all("mmattn.region_conv2d" in graph for graph in graphs)  # not the reference
    assert len(graphs) == 2


@pytest.mark.parametrize(
    ("kernel", "layout", "candidates"),
    [((3, 3), "contiguous", None), ((1, 1), "channels_last", 2), ((3, 2), "sliced", 2)],
)
def test_opcheck(kernel, layout, candidates):
    case = Case(kernel=kernel, stride=(2, 1))
    x, filters, guide = case.leaves()
    x = LAYOUTS[layout](x.detach()).requires_grad_()
    where = plan(case.region, 4)
    geometry = [2, 1], [0, 0], [1, 1]
    forward = torch.ops.mmattn.region_conv2d.default
    backward = torch.ops.mmattn.region_conv2d_backward.default
    needs = {None: (True, True), 2: (kernel == (1, 1), kernel != (1, 1))}[candidates]
    out_size = list(case.out_size)
    first = (x, filters, guide, *where, out_size, *geometry, candidates, "eager")
    second = (case.dy, x.detach(), filters.detach(), *where, *geometry, *needs, "eager")
    for operator, arguments in ((forward, first), (backward, second)):
        opcheck(operator, arguments)
        # which leaves strides out
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(a) if torch.is_tensor(a) else a for a in arguments]
            fake = operator(*fakes)
        for a, b in zip(iterate(fake), iterate(operator(*arguments)), strict=True):
            assert (a.shape, a.stride()) == (b.shape, b.stride())


def iterate(result):
    return (result,) if torch.is_tensor(result) else result


@each_backend
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(backend, use_reentrant):
    case = Case(padding=1)

    def checkpointed(*args, **options):
        return checkpoint(region_conv2d, *args, **options, use_reentrant=False)

    def reentrant(x, filters, region, guide, candidates, **options):
        def function(x, filters, region, guide):
            return region_conv2d(x, filters, region, **options, guide=guide)

        return checkpoint(function, x, filters, region, guide, use_reentrant=True)

    function = reentrant if use_reentrant else checkpointed
    x, filters, guide = leaves = case.leaves()
    with use_backend(backend):
        y = function(x, filters, case.region, guide=guide, candidates=None, **case.options)
        y.backward(case.dy)
        results = [y, *(leaf.grad for leaf in leaves)]
        for actual, expected in zip(results, case.run(backend), strict=True):
            assert torch.equal(actual, expected)


@on_each_device
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)])
@pytest.mark.parametrize("candidates", [None, 2])
def test_deterministic_algorithms(device, kernel, candidates):
    case = Case(channels=(16, 16), size=(40, 30), kernel=kernel, dtype=torch.float32).to(device)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (case.run(candidates=candidates) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for what, a, b in zip(RESULTS, first, second, strict=True):
        assert torch.equal(a, b), what


def test_meta_device():
    case = Case(stride=2).to("meta")
    y = region_conv2d(case.x, case.filters, case.region, stride=2)
    assert (y.shape, y.device.type) == ((2, 8, 2, 3), "meta")


# ONNX --------------------------------------------------------------------------------------------


class Operator(torch.nn.Module):
    def __init__(self, options):
        super().__init__()
        self.options = options

    def forward(self, x, filters, guide):
        return region_conv2d(x, filters, guide.argmax(1), **self.options, guide=guide)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("shape", ["3x3, nothing symmetric", "1x3, groups"])
def test_onnx(dynamo, shape, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    case = Case(**{**SHAPES[shape], "n": 2}, dtype=torch.float32)
    names, inputs = ["x", "filters", "guide"], (case.x, case.filters, case.guide)
    file = str(tmp_path / "operator.onnx")
    torch.onnx.export(
        Operator(case.options).eval(), inputs, file,
        input_names=names, dynamo=dynamo, verbose=False,
    )  # fmt: skip
    assert {node.domain for node in onnx.load(file).graph.node} <= {"", "ai.onnx"}
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    other = Case(**{**SHAPES[shape], "n": 2}, dtype=torch.float32, seed=1, region=smooth)
    for c in (case, other):
        feed = dict(x=c.x.numpy(), filters=c.filters.numpy(), guide=c.guide.numpy())
        y = torch.from_numpy(session.run(None, feed)[0])
        assert_close(y, c.expected()[0], 1e-5)


# messages ----------------------------------------------------------------------------------------

# what is wrong: (arguments in place of good ones, error, what it says)
WRONG = {
    "x, 3 axes": (
        dict(x=torch.ones(2, 6, 5)),
        ValueError,
        r"feature map \(N, C, H, W\), got shape \(2, 6, 5\)",
    ),
    "integer x": (dict(x=torch.ones(2, 6, 6, 7).int()), TypeError, r"got torch.int32; use x.float"),
    "integer filters": (
        dict(filters=torch.ones(2, 4, 8, 6, 3, 3).long()),
        TypeError,
        "floating-point filters, got torch.int64",
    ),
    "two dtypes": (
        dict(filters=torch.ones(2, 4, 8, 6, 3, 3).half()),
        TypeError,
        "one dtype, got torch.float32 and torch.float16; convert one, or use autocast",
    ),
    "filters of another batch": (
        dict(filters=torch.ones(1, 4, 8, 6, 3, 3)),
        ValueError,
        r"= \(2, m, O, 6, kh, kw\), got \(1, 4, 8, 6, 3, 3\)",
    ),
    "filters of other channels": (
        dict(filters=torch.ones(2, 4, 8, 3, 3, 3)),
        ValueError,
        r"= \(2, m, O, 6, kh, kw\), got \(2, 4, 8, 3, 3, 3\)",
    ),
    "filters without groups": (
        dict(groups=2),
        ValueError,
        r"= \(2, m, O, 3, kh, kw\), got \(2, 4, 8, 6, 3, 3\)",
    ),
    "filters, 5 axes": (
        dict(filters=torch.ones(4, 8, 6, 3, 3)),
        ValueError,
        r"filters \(N, m, O, C, kh, kw\) .* got \(4, 8, 6, 3, 3\)",
    ),
    "one region": (
        dict(filters=torch.ones(2, 1, 8, 6, 3, 3)),
        ValueError,
        "at least 2 regions, got 1; one region is a plain convolution",
    ),
    "groups and channels": (dict(groups=4), ValueError, "divide the 6 channels, got 4"),
    "groups and output channels": (
        dict(groups=3, filters=torch.ones(2, 4, 8, 2, 3, 3)),
        ValueError,
        "divide the 8 output channels, got 3",
    ),
    "no groups": (dict(groups=0), ValueError, "groups to divide the 6 channels, got 0"),
    "groups, a float": (dict(groups=2.0), ValueError, "divide the 6 channels, got 2.0"),
    "region of x's size": (
        dict(region=torch.zeros(2, 6, 7).long()),
        ValueError,
        r"\(N, H', W'\) = \(2, 4, 5\), the size of the output, got \(2, 6, 7\)",
    ),
    "region with channels": (
        dict(region=torch.zeros(2, 1, 4, 5).long()),
        ValueError,
        r"= \(2, 4, 5\), the size of the output, got \(2, 1, 4, 5\)",
    ),
    "float region": (
        dict(region=torch.zeros(2, 4, 5)),
        TypeError,
        "integer region map, got torch.float32",
    ),
    "bool region": (
        dict(region=torch.zeros(2, 4, 5).bool()),
        TypeError,
        "integer region map, got torch.bool",
    ),
    "region too high": (
        dict(region=torch.full((2, 4, 5), 4)),
        ValueError,
        "regions from 0 to 3, got values from 4 to 4",
    ),
    "region too low": (
        dict(region=torch.arange(40).view(2, 4, 5) % 3 - 1),
        ValueError,
        "regions from 0 to 3, got values from -1 to 1",
    ),
    "guide of other regions": (
        dict(guide=torch.ones(2, 3, 4, 5)),
        ValueError,
        r"guide \(N, m, H', W'\) = \(2, 4, 4, 5\), got \(2, 3, 4, 5\)",
    ),
    "kernel too large": (
        dict(dilation=(1, 4)),
        ValueError,
        r"fits into the padded map, got a kernel of \(3, 9\) pixels for a map of \(6, 7\)",
    ),
    "one candidate": (
        dict(candidates=1),
        ValueError,
        "candidates from 2 to m = 4, or None for all, got 1",
    ),
    "candidates, more than regions": (dict(candidates=5), ValueError, "to m = 4, .* got 5"),
    "candidates, a float": (dict(candidates=2.0), ValueError, "to m = 4, .* got 2.0"),
    "stride 0": (dict(stride=0), ValueError, "stride to be an integer from 1 on, or two, got 0"),
    "stride, a float": (dict(stride=1.5), ValueError, "stride to be an integer .* got 1.5"),
    "stride, three": (dict(stride=(1, 1, 1)), ValueError, r"stride .* got \(1, 1, 1\)"),
    "stride, a bool": (dict(stride=True), ValueError, "stride .* got True"),
    "padding below 0": (dict(padding=(0, -1)), ValueError, r"padding .* from 0 .* got \(0, -1\)"),
    "padding, a word": (dict(padding="same"), ValueError, "padding to be an integer .* got 'same'"),
    "dilation 0": (dict(dilation=(1, 0)), ValueError, r"dilation .* from 1 on.* got \(1, 0\)"),
}


@each_backend
@pytest.mark.parametrize("name", WRONG)
def test_messages(backend, name):
    arguments, error, message = WRONG[name]
    case = Case(dtype=torch.float32)
    good = dict(x=case.x, filters=case.filters, region=case.region, guide=case.guide)
    with use_backend(backend):
        region_conv2d(**good)
        with pytest.raises(error, match=f"^region_conv2d expects .*{message}"):
            region_conv2d(**{**good, **arguments})


def test_function_transforms():
    x, filters = torch.randn(2, 4, 5, 6), torch.randn(2, 3, 4, 4, 3, 3)
    region = torch.randint(3, (2, 5, 6))

    def loss(x):
        return region_conv2d(x, filters, region, padding=1).square().sum()

    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    assert_close(torch.func.grad(loss)(x), leaf.grad, 1e-5)
    dx = torch.randn_like(x)
    assert_close(torch.func.jvp(loss, (x,), (dx,))[1], (leaf.grad * dx).sum(), 1e-4)
    each = torch.func.vmap(lambda x: region_conv2d(x, filters, region, padding=1))(
        torch.stack([x, 2 * x])
    )
    y = region_conv2d(x, filters, region, padding=1)
    assert_close(each, torch.stack([y, 2 * y]), 1e-5)
