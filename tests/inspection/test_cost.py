"""FLOPs, activations and times against figures that were worked out by hand."""

import copy

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import mmattn
from mmattn.convs import CondConv2d, DRConv2d, SKConv2d
from mmattn.inspection import cost
from mmattn.inspection.cost import Flops, Stopwatch, activation_bytes, flops
from mmattn.plugins import SE, SGE, NonLocal, SimAM
from tests.zoo import CASES, IDS, PLUGINS


class Call(nn.Module):
    """A model that is one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def count(model, *inputs):
    model.eval()  # of mmdet's backbones it returns nothing
    return flops(model, *inputs)[""]


X = torch.randn(2, 6, 8, 10)
N = X.numel()


@pytest.mark.parametrize(
    ("module", "multiply_adds", "elementwise"),
    [
        (nn.Conv2d(6, 4, 3, padding=1), 2 * 8 * 10 * 4 * 6 * 9, 0),
        (nn.Conv2d(6, 4, 3, stride=2, groups=2, bias=False), 2 * 3 * 4 * 4 * 3 * 9, 0),
        (nn.Conv2d(6, 4, (3, 1), dilation=2), 2 * 4 * 10 * 4 * 6 * 3, 0),
        # every input pixel meets the whole kernel
        (nn.ConvTranspose2d(6, 4, 2, stride=2), 2 * 8 * 10 * 6 * 4 * 4, 0),
        (nn.Linear(10, 3), 2 * 6 * 8 * 10 * 3, 0),
        (nn.BatchNorm2d(6), 0, 2 * N),
        (nn.GroupNorm(2, 6), 0, 5 * N),
        (nn.LayerNorm(10), 0, 5 * N),
        (nn.ReLU(), 0, N),
        (nn.Softmax(1), 0, N),
        (nn.AdaptiveAvgPool2d(1), 0, N),
        (nn.MaxPool2d(2), 0, N),
        (nn.Upsample(scale_factor=2), 0, 4 * N),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 0, 4 * 4 * N),
        (Call(lambda x: x * x.mean((2, 3), keepdim=True) + 1), 0, 3 * N),
        (Call(lambda x: x.clone().mul_(2).sigmoid_()), 0, 2 * N),
        (Call(lambda x: x.flatten(2) @ x.flatten(2).mT), 2 * 6 * 80 * 6, 0),
        (Call(lambda x: torch.einsum("nchw,ndhw->ncd", x, x)), 2 * 6 * 80 * 6, 0),
        (Call(lambda x: x.new_zeros(8, 8).addmm_(x[0, 0], x[0, 0].mT)), 8 * 10 * 8, 0),
        (Call(lambda x: x.argmax(1)), 0, N),
        (Call(lambda x: F.pad(torch.cat([x, x.roll(1)]), [1, 1]).permute(1, 0, 2, 3)), 0, 0),
        (Call(lambda x: torch.arange(x.shape[1]) * 2 + 1), 0, 0),
        (Call(lambda x: F.dropout(x, training=False).half().float()), 0, 0),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operators(module, multiply_adds, elementwise, device):
    # to(device) would move a module that the other device's test needs
    inputs = X if device == "cpu" else X.to(device)
    module = module if device == "cpu" else _on_meta(module)
    assert count(module, inputs) == Flops(multiply_adds, elementwise)


def _on_meta(module):
    return copy.deepcopy(module).to("meta")


@pytest.mark.parametrize("weights", [True, False])
def test_attention_of_pytorch_is_no_unknown_kernel(weights):
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    found = count(Call(lambda x: layer(x, x, x, need_weights=weights)), x)
    # three projections and one behind, then two products of each head
    assert found.multiply_adds == 3 * (4 * 5 * 8 * 8 + 2 * 5 * 5 * 8)
    found = count(Call(F.scaled_dot_product_attention), x[:, None], x[:, None], x[:, None])
    assert found.multiply_adds == 3 * 2 * 5 * 5 * 8


def test_deformable_convolution():
    from torchvision.ops import deform_conv2d

    offset, weight = torch.zeros(2, 18, 8, 10), torch.randn(4, 6, 3, 3)
    found = count(Call(lambda x: deform_conv2d(x, offset, weight, padding=1)), X)
    assert found == Flops(2 * 8 * 10 * 4 * 6 * 9, 0)


@pytest.mark.parametrize("regions", [2, 8])
@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_drconv_is_one_convolution(regions, backend):
    """The filters of all regions are made, but a pixel meets one of them."""
    conv = DRConv2d(6, 4, 3, stride=2, padding=1, groups=2, regions=regions, templates=3)
    size = 4 * 3 * 9
    guide = 8 * 10 * 6 * regions
    routing = 6 * 3 * regions
    filters = regions * 3 * size
    # a region-wise convolution; whatever the process computes with, eager is what is counted
    with mmattn.ops.use_backend(backend):
        found = count(conv, X)
    assert found.multiply_adds == 2 * (4 * 5 * size + guide + routing + filters)


def test_pytorchs_own_counter_knows_drconv():
    conv = DRConv2d(6, 4, 3, padding=1, bias=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        conv(X)
    assert counter.get_total_flops() == 2 * count(conv, X).multiply_adds


def test_other_convolutions():
    cond = CondConv2d(6, 4, 3, padding=1, experts=5, bias=False)
    size = 4 * 6 * 9
    assert count(cond, X).multiply_adds == 2 * (80 * size + 6 * 5 + 5 * size)
    sk = SKConv2d(8, 8, 3, padding=1, branch_groups=4, ratio=2, bias=False)
    size = 8 * 8 * 9
    found = count(sk, torch.randn(2, 8, 8, 10))
    assert found.multiply_adds == 2 * (80 * (size + size // 4) + 8 * 4 + 4 * 16)


def test_plugins_by_hand():
    x, size = torch.randn(2, 32, 8, 10), 2 * 32 * 80
    # mean and product pass over the map; relu and sigmoid over vectors
    assert count(SE(32, ratio=4), x) == Flops(2 * 2 * 32 * 8, 2 * size + 2 * (8 + 32))
    # y = x * sigmoid(d / (4 (sum d / (n - 1) + lambda)) + 1/2), d = (x - mean)^2
    assert count(SimAM(32), x).multiply_adds == 0
    assert count(SimAM(32), x).elementwise >= 6 * size
    # the mean of a group times the map, summed; the gate times the map
    groups = 2 * 8 * 80
    found = count(SGE(32, groups=8), x)
    assert 4 * size + 6 * groups <= found.elementwise <= 4 * size + 10 * groups
    assert found.multiply_adds == 0
    # four projections of 32 x 16, and the positions times the positions, twice
    found = count(NonLocal(32), x)
    assert found.multiply_adds == 2 * (4 * 80 * 32 * 16 + 2 * 80 * 80 * 16)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_no_plugin_is_free(name, arguments):
    x = torch.randn(1, 64, 8, 10)
    module = PLUGINS[name](64, **arguments).eval()
    found = flops(module, x)[""]
    assert found.elementwise >= x.numel()  # the product or the sum with the map, at least
    assert found == flops(_on_meta(module), x.to("meta"))[""]


def build(device="cpu", **backbone):
    plugins = backbone.pop("attach", None)
    with torch.device(device), DefaultScope.overwrite_default_scope("mmdet"):
        model = MMENGINE_MODELS.build({"type": "mmdet.ResNet", **backbone})
        if plugins:
            mmattn.attach(model, plugins)
    model.eval()
    return model


def test_the_multiply_adds_are_those_of_mmengines_analysis():
    model = build(depth=18, base_channels=16)
    x = torch.randn(1, 3, 32, 48)
    theirs = FlopAnalyzer(model, x).unsupported_ops_warnings(False).by_operator()
    ours = flops(model, x, parts={"all": [""], "norms": _norms(model)})
    assert ours["all"].multiply_adds == theirs["conv"]
    assert ours["norms"] == Flops(0, theirs["batch_norm"])


def _norms(model):
    return [name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)]


def test_parts():
    shared = nn.Conv2d(6, 6, 1, bias=False)
    model = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared), SGE(6, groups=2))
    parts = {"all": [""], "conv": ["0"], "inner": ["1"], "two": ["1.0", "2"], "none": []}
    found = flops(model, X, parts=parts)
    once = 2 * 80 * 36
    assert found["conv"] == Flops(2 * once, 0)  # a module counts each time that it is called
    assert found["inner"] == Flops(once, N)
    assert found["two"].multiply_adds == 0
    assert found["two"].elementwise == found["all"].elementwise
    assert found["all"].total == found["conv"].total + found["two"].total
    assert found["none"] == Flops()


def test_attached_modules_belong_to_the_part_that_they_follow():
    model = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU())
    sge = dict(type=SGE, groups=2)
    mmattn.attach(model, [dict(cfg=sge, after="0"), dict(cfg=sge, before="1", in_channels=6)])
    parts = {"host": ["0"], "sge": ["0.sge"], "relu": ["1"], "before": ["1.sge"]}
    found = flops(model, X, parts=parts)
    assert found["sge"] == found["before"]
    assert found["sge"].elementwise > 4 * N
    assert found["host"] == Flops(2 * 80 * 36, found["sge"].elementwise)
    assert found["relu"] == Flops(0, N + found["sge"].elementwise)


def test_nothing_is_left_behind():
    def fail(x):
        raise RuntimeError("stop")

    model = nn.Sequential(nn.ReLU(), Call(fail))
    fast, backend = torch.backends.mha.get_fastpath_enabled(), mmattn.ops.get_backend()
    for measure in (flops, activation_bytes, lambda m, x, parts: Stopwatch(m, parts).run(x)):
        with pytest.raises(RuntimeError, match="stop"):
            measure(model, X, parts={"a": ["", "0", "1"]})
    for part in model.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
    assert (fast, backend) == (torch.backends.mha.get_fastpath_enabled(), mmattn.ops.get_backend())


# millions of parameters and GFLOPs at 1333x800, https://github.com/implus/PytorchInsight
PUBLISHED = {
    (50, "plain"): (23.51, 88.032),
    (50, "se"): (26.04, 88.152),
    (50, "sk"): (24.11, 89.414),
    (50, "bam"): (23.87, 89.804),
    (50, "cbam"): (26.04, 88.302),
    (50, "sge"): (23.51, 88.149),
    (101, "plain"): (42.50, 167.908),
    (101, "se"): (47.28, 168.3),
    (101, "sge"): (42.50, 168.099),
}


def official(depth, module):
    cfg = dict(type=f"mmattn.{module.upper()}")
    if module == "plain":
        return build("meta", depth=depth)
    if module == "sk":
        return build("meta", depth=depth, type="mmattn.SKResNet")
    if module == "bam":
        return build("meta", depth=depth, attach=[dict(cfg=cfg, after="layer[123]")])
    return build("meta", depth=depth, plugins=[dict(cfg=cfg, position="after_conv3")])


MAPS = [(256, 200, 334), (512, 100, 167), (1024, 50, 84), (2048, 25, 42)]  # of 800x1333
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def what_their_count_adds(depth, module):
    """The poolings that a module does, by the size of their input, and biases."""
    sizes = [n * c * h * w for n, (c, h, w) in zip(BLOCKS[depth], MAPS, strict=True)]
    if module == "bam":
        # three convolutions of C / 16 channels and one of a single channel have a bias
        return sum((3 * c // 16 + 1) * h * w for c, h, w in MAPS[:3])
    # SE and SGE pool the map once, CBAM twice, SK two maps of a quarter of the channels
    return sum(sizes) * {"plain": 0, "se": 1, "sge": 1, "cbam": 2, "sk": 0.5}[module]


@pytest.mark.parametrize(("depth", "module"), PUBLISHED, ids=lambda v: str(v))
def test_published_backbones(depth, module, monkeypatch):
    """Parameters and, by the convention of their count, GFLOPs to the last digit.

    It has the multiply-adds of layers, 2 for an element of a BatchNorm, 1 for that of a ReLU or
    of the input of a pooling, the one before the classifier too. What functions do is free.
    """
    model = official(depth, module)
    millions, gflops = PUBLISHED[depth, module]
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}" == f"{millions:.2f}"

    layers, work = [], cost._work

    def record(function, *rest):
        kind, amount = work(function, *rest)
        name = function.name().split("::")[1].split(".")[0].rstrip("_")
        if kind == "multiply_adds" or "batch_norm" in name or "relu" in name or "pool" in name:
            layers.append(amount)
        return kind, amount

    monkeypatch.setattr(cost, "_work", record)
    found = count(model, torch.empty(1, 3, 800, 1333, device="meta")).total
    assert found / 1e9 == pytest.approx(gflops, rel=0.01)

    channels, height, width = MAPS[-1]
    theirs = sum(layers) + channels * height * width + what_their_count_adds(depth, module)
    if (depth, module) != (101, "se"):  # printed with one digit, and 0.2 above its own convention
        assert f"{theirs / 1e9:.3f}" == f"{gflops:.3f}"


def kept(model, *inputs, **kwargs):
    return activation_bytes(model, *inputs, **kwargs)


def test_activations_by_hand():
    first, second = nn.Linear(10, 7), nn.Linear(7, 3)
    model = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())
    x = torch.randn(5, 10)
    # the input, for the first weight; the ReLU's output once, for itself and the second weight;
    # the sigmoid's output
    assert kept(model, x)[""] == 4 * 5 * (10 + 7 + 3)
    parts = {"all": [""], "first": ["0"], "relu": ["1"], "second": ["2"], "rest": ["1", "2", "3"]}
    found = kept(model, x, parts=parts)
    assert found == {
        "all": 4 * 5 * 20, "first": 4 * 50, "relu": 4 * 35, "second": 0, "rest": 4 * 50
    }  # fmt: skip
    # nothing below the first layer that learns
    first.requires_grad_(False)
    assert kept(model, x)[""] == 4 * 5 * (7 + 3)
    second.requires_grad_(False)
    assert kept(model, x)[""] == 0
    with torch.no_grad():
        assert kept(model.requires_grad_(), x)[""] == 4 * 5 * 20
    assert kept(model.double(), x.double())[""] == 8 * 5 * 20


def test_activations_of_a_view_are_those_of_the_whole():
    weight = nn.Parameter(torch.ones(2))
    model = Call(lambda x: (x[:, :2] * weight, x[:, 2:4] * weight))
    assert kept(model, torch.randn(5, 10))[""] == 4 * 50


def test_activations_of_what_is_discarded():
    """As of an RPN whose losses nobody asks for; its memory may be used again meanwhile."""
    weight = nn.Parameter(torch.ones(()))

    def forward(x):
        for _ in range(9):
            x.clone() * weight
        return x * weight

    assert kept(Call(forward), X)[""] == 10 * 4 * N


def test_activations_are_what_the_backward_pass_reads():
    """The tensors that the graph holds, found from its end."""
    model = nn.Sequential(nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), SE(8, 2))
    y = model(X)
    held, queue, seen = {}, [y.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        queue += [child for child, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_saved_") and isinstance(
                value := getattr(node, name), torch.Tensor
            ):
                held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert kept(model, X)[""] == sum(size for place, size in held.items() if place not in own)


@pytest.mark.parametrize("name", ["SGE", "GC", "CBAM", "GCT"])
def test_activations_without_computing(name):
    module = PLUGINS[name](64)
    x = torch.randn(2, 64, 8, 10, requires_grad=True)
    found = kept(module, x)[""]
    assert found >= 4 * x.numel()
    assert kept(_on_meta(module), x.to("meta"))[""] == found


def test_stopwatch(monkeypatch):
    """On a clock that only the layers move."""
    now = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        def layer(x):
            assert not torch.is_grad_enabled()
            now[0] += next(seconds)
            return x

        return Call(layer)

    # the first pass warms up
    once = wait(iter([10, 1, 5, 3]))
    twice = wait(iter([10, 10, 0.5, 0.25, 1, 1, 2, 2]))
    model = nn.Sequential(once, twice, nn.Sequential(twice))
    watch = Stopwatch(model, {"all": [""], "once": ["0"], "twice": ["1"], "one": ["2"]})
    assert watch.medians() == {"all": None, "once": None, "twice": None, "one": None}
    for warm_up in (True, False, False, False):
        watch.run(X, warm_up=warm_up)
    assert watch.taken["once"] == [1000, 5000, 3000]
    assert watch.medians() == {"all": 7000, "once": 3000, "twice": 2000, "one": 1000}
