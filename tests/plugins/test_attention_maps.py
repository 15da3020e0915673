"""What the modules say that they decide, against what they compute; for every registered one."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import mmattn.convs
from mmattn.plugins import AttentionModule, maps
from tests.zoo import (
    CASES,
    CONV_CASES,
    CONV_IDS,
    IDS,
    NEVER_IDENTITY,
    PLUGINS,
    assert_close,
    layer,
    scramble,
)

C = 64
# registered, but with nothing to say of their own
SILENT = {"GCTConv2d"}  # the GCT inside it speaks
# what it does is not x times factors plus terms: its weights are tested by themselves
NO_PRODUCT = {"NonLocal"}
PRODUCTS = [
    (name, arguments, identity)
    for name, arguments in CASES
    if name not in NO_PRODUCT
    for identity in ((False,) if name in NEVER_IDENTITY else (False, True))
]
PRODUCT_IDS = [f"{n}({a}){', identity' * i}" for n, a, i in PRODUCTS]
SPEAKING = [
    (case, name)
    for case, name in zip([*CASES, *CONV_CASES], [*IDS, *CONV_IDS], strict=True)
    if case[0] not in SILENT
]
every_speaking_case = pytest.mark.parametrize(
    ("name", "arguments"), [case for case, _ in SPEAKING], ids=[name for _, name in SPEAKING]
)
IDENTITY = [case for case in CASES if case[0] not in NEVER_IDENTITY]
every_identity_case = pytest.mark.parametrize(
    ("name", "arguments"), IDENTITY, ids=[f"{name}({a})" for name, a in IDENTITY]
)


def build(name, arguments, **more):
    torch.manual_seed(0)
    return layer(name, {**arguments, **more}).double()


def noise(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def on_the_map(found, x):
    """The values for each of x's."""
    values = found.values
    if found.kind == "channel":
        return values[:, :, None, None].expand_as(x)
    assert values.shape[0::2] == x.shape[0::2]
    assert values.shape[3] == x.shape[3]
    return values.repeat_interleave(x.shape[1] // values.shape[1], 1)


def applied(found, x):
    """x times the factors, plus the terms."""
    y = x
    for said in found:
        if said.role == "factor":
            y = y * on_the_map(said, x)
    for said in found:
        if said.role == "term":
            y = y + on_the_map(said, x)
    return y


def test_every_module_speaks():
    """A new one has to say what it decides, or to be named above."""
    for name in (*PLUGINS, *mmattn.convs.__all__):
        cls = PLUGINS.get(name) or getattr(mmattn.convs, name)
        method = vars(cls).get("attention")
        assert (method is None) == (name in SILENT), name
        assert method is None or method.describes, name
        if method is not None:
            assert method.__doc__, name
            assert layer(name, {}).attention(torch.randn(1, C, 3, 4)), name


@pytest.mark.filterwarnings("ignore:(std|var).*degrees of freedom")  # for N = 0
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "arguments", "identity"), PRODUCTS, ids=PRODUCT_IDS)
def test_factors_and_terms_are_what_the_module_computes(name, arguments, identity, training):
    module = scramble(build(name, arguments, identity_init=identity)).train(training)
    for shape in ((2, C, 7, 9), (1, C, 1, 1), (0, C, 2, 3)):
        x = noise(*shape)
        assert_close(applied(module.attention(x), x), module(x), 1e-10, f"{shape}")
    # and behind official weights, which have no gate_scale
    if module.gate_scale is not None:
        module.gate_scale.fill_(1)
        x = noise(2, C, 7, 9)
        assert_close(applied(module.attention(x), x), module(x), 1e-10, "official")


@every_speaking_case
def test_maps_are_complete(name, arguments):
    """A consumer needs no knowledge of the module."""
    module = scramble(build(name, arguments))
    x = noise(2, C, 7, 9)
    found = module.attention(x)
    assert len({said.name for said in found}) == len(found)
    for said in found:
        values = said.values
        assert not values.requires_grad
        assert values.shape[0] == 2
        assert values.dtype == (torch.int64 if said.kind == "regions" else torch.float64)
        if said.kind == "channel":
            assert values.shape == (2, C)
        elif said.kind == "spatial":
            assert values.dim() == 4
            assert C % values.shape[1] == 0
        elif said.kind == "weights":
            queries = 1 if said.queries is None else len(said.queries)
            assert values.shape[:2] == (2, queries)
            assert values.dim() == 4
        elif said.kind == "shares":
            assert values.dim() in (2, 3)
        else:
            assert values.shape[1:] == (said.count,) * 2 or said.kind == "regions"
            assert values.dim() == 3
        if said.role == "factor":
            assert said.neutral is not None


@every_speaking_case
@pytest.mark.parametrize("scale", [0.3, 30])
def test_bounds_hold(name, arguments, scale):
    """Also where every gate is saturated."""
    module = scramble(build(name, arguments)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    found = [*module.attention(scale * noise(2, C, 7, 9))]
    if name in PLUGINS and name not in NEVER_IDENTITY:
        module = scramble(build(name, arguments, identity_init=True), 2).eval()
        found += module.attention(scale * noise(2, C, 7, 9))
    for said in found:
        low, high = said.bounds
        assert low is None or said.values.min() >= low - 1e-12, said.name
        assert high is None or said.values.max() <= high + 1e-12, said.name


def test_bounds_are_reached():
    """They are the gate's ends, not just numbers that are far away."""
    for name, arguments in CASES:
        for said in build(name, arguments).attention(noise(2, C, 3, 4)):
            if said.role != "factor":
                continue
            low, high = said.bounds
            gates = {"SimAM": (0.6224593312018546, 1), "BAM": (1, 2)}
            if name == "GCT":
                gate = arguments.get("gate", "1+tanh")
                assert (low, high) == (0, {"1+tanh": 2, "sigmoid": 1, "1+elu": None}[gate])
            else:
                assert (low, high) == gates.get(name, (0, 1)), name
    for name, arguments in IDENTITY:
        module = build(name, arguments, identity_init=True)
        plain = build(name, arguments).attention(noise(2, C, 3, 4))
        for said, other in zip(module.attention(noise(2, C, 3, 4)), plain, strict=True):
            if said.role == "factor":
                ends = zip(said.bounds, other.bounds, strict=True)
                root = 0.5 if name == "CBAM" and "spatial" not in arguments else 1
                for end, before in ends:
                    scale = 1 if module.gate_scale is None else module.gate_scale.item() ** root
                    assert (end is None) == (before is None)
                    assert end is None or end == pytest.approx(before / scale)


@every_speaking_case
def test_nothing_moves(name, arguments):
    """Neither a buffer nor the random numbers, nor what a hook of training would see."""
    module = scramble(build(name, arguments)).train()
    before = copy.deepcopy(module.state_dict())
    x = noise(2, C, 7, 9).requires_grad_()
    kept, state = x.detach().clone(), torch.get_rng_state()
    found = module.attention(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)
    assert x.grad is None
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert module.training
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key
    again = module.attention(x)
    assert all(torch.equal(a.values, b.values) for a, b in zip(found, again, strict=True))


@every_speaking_case
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_half_precision_and_autocast_give_float32(name, arguments, training):
    half = scramble(build(name, arguments)).half().train(training)
    wide = copy.deepcopy(half).float()
    x = noise(2, C, 7, 9).half()
    expected = wide.attention(x.float())
    before = copy.deepcopy(half.state_dict())
    for what, module, value in (("weights", half, x), ("input", wide, x)):
        for said, other in zip(module.attention(value), expected, strict=True):
            assert said.values.dtype in (torch.float32, torch.int64), what
            assert_close(said.values, other.values, 1e-6, f"{what}: {said.name}")
    assert all(torch.equal(value, before[key]) for key, value in half.state_dict().items())
    with torch.autocast("cpu", torch.bfloat16):
        for said, other in zip(wide.attention(x.float()), expected, strict=True):
            assert torch.equal(said.values, other.values), f"autocast: {said.name}"


@every_speaking_case
def test_bad_input(name, arguments):
    module = layer(name, arguments)
    with pytest.raises(ValueError, match=rf"\(N, {C}, H, W\), got shape \(2, 65, 3, 3\)"):
        module.attention(torch.randn(2, C + 1, 3, 3))
    with pytest.raises(ValueError, match=rf"\(N, {C}, H, W\), got shape \(2, 65, 3, 3\)"):
        module.without_attention(torch.randn(2, C + 1, 3, 3))


@every_identity_case
def test_without_attention_is_the_input_where_the_start_is_the_identity(name, arguments):
    module = build(name, arguments, identity_init=True)
    x = noise(2, C, 7, 9)
    assert torch.equal(module.without_attention(x), x)
    assert torch.equal(scramble(module).without_attention(x), x)
    assert module.neutral_factor == 1
    half = module.half()
    assert torch.equal(half.without_attention(x.half()), x.half())
    x = x.half()
    kept = x.clone()
    half.without_attention(x).zero_()  # as a ReLU in place, where x has other uses
    assert torch.equal(x, kept)


@every_identity_case
def test_without_attention_is_the_module_whose_gates_are_neutral(name, arguments):
    """Every last factor is zero here, and as after official weights nothing divides the gate."""
    module = build(name, arguments, identity_init=True)
    x = noise(2, C, 7, 9)
    if name == "SGE":  # whose start is at a bias of 1 then
        nn.init.ones_(module.bias)
    if module.gate_scale is not None:
        module.gate_scale.fill_(1)
    expected = module(x).detach()
    assert_close(module.without_attention(x), expected, 1e-12)
    if name in NO_PRODUCT:
        return
    for said in module.attention(x):
        # of BAM's two one alone makes the other of no effect
        if said.neutral is not None and said.name != "channel branch":
            neutral = torch.full_like(said.values, said.neutral)
            assert_close(said.values, neutral, 1e-12, said.name)
    # the same module built without identity_init agrees, whatever its weights are
    plain = scramble(build(name, arguments))
    assert_close(plain.without_attention(x), expected, 1e-12)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("SGE", {}),
        ("SGE", dict(groups=8, init_bias=-2.5)),
        ("SRM", {}),
        ("GC", dict(fusion=("add", "mul"))),
        ("GC", {}),
        ("GCT", dict(gate="sigmoid")),
        ("GCT", {}),
        ("SNL", {}),
        ("NonLocal", {}),
    ],
    ids=str,
)
def test_without_attention_is_the_module_at_its_start(name, arguments):
    module = build(name, arguments)
    x = noise(2, C, 7, 9)
    expected = module(x).detach()
    assert_close(module.without_attention(x), expected, 1e-12)
    assert_close(scramble(module).without_attention(x), expected, 1e-12)


def test_official_weights_of_sge_start_where_sge_starts():
    """The same file in a module with identity_init and in one without: one neutral factor."""
    plain, target = build("SGE", {}), build("SGE", {}, identity_init=True)
    target.load_state_dict(plain.state_dict())
    assert target.neutral_factor == plain.neutral_factor == pytest.approx(1 / (1 + math.exp(-1)))
    assert build("SGE", {}, identity_init=True).gate_scale == 0.5


def test_simam_is_neutral_on_a_constant_map():
    module = build("SimAM", {})
    x = noise(2, C, 1, 1).expand(2, C, 4, 5)
    assert_close(module.without_attention(x), module(x), 1e-12)


def test_gradients_pass_through_without_attention():
    """A detector can be trained, or explained, with a module out of action."""
    for name, arguments in CASES:
        module = build(name, arguments)
        x, dy = noise(2, C, 3, 4).requires_grad_(), noise(2, C, 3, 4, seed=2)
        module.without_attention(x).backward(dy)
        assert_close(x.grad, dy * module.neutral_factor, 1e-12, name)


@pytest.mark.parametrize("identity", [False, True])
def test_cbam_first_gate_is_that_of_the_module_without_the_second(identity):
    module = scramble(build("CBAM", {}, identity_init=identity))
    first = build("CBAM", dict(spatial=False), identity_init=identity)
    first.ChannelGate.load_state_dict(module.ChannelGate.state_dict())
    x = noise(2, C, 7, 9)
    one, two = module.attention(x)
    (alone,) = first.attention(x)
    assert (one.name, two.name, alone.name) == ("channel gate", "spatial gate", "channel gate")
    assert_close(one.values, alone.values, 1e-12)
    assert one.neutral == alone.neutral
    assert one.neutral * two.neutral == pytest.approx(module.neutral_factor)
    assert two.values.shape == (2, 1, 7, 9)


@pytest.mark.parametrize("identity", [False, True])
def test_parts_make_the_gate(identity):
    x = noise(2, C, 7, 9)
    gate, rows, columns = scramble(build("CoordAttention", {}, identity_init=identity)).attention(x)
    assert rows.values.shape == (2, C, 7, 1)
    assert columns.values.shape == (2, C, 1, 9)
    assert_close(rows.values * columns.values, gate.values, 1e-12)
    assert rows.neutral * columns.neutral == gate.neutral

    module = scramble(build("BAM", {}, identity_init=identity))
    gate, channel, spatial = module.attention(x)
    logits = channel.values[:, :, None, None] * spatial.values
    assert spatial.values.shape == (2, 1, 7, 9)
    assert_close((1 + logits.sigmoid()) / (1.5 if identity else 1), gate.values, 1e-12)
    spatial = module.spatial_att["gate_s"]
    nn.init.zeros_(spatial["gate_s_conv_final"].weight)
    nn.init.constant_(spatial["gate_s_conv_final"].bias, 2.0)
    assert torch.equal(
        module.attention(x)[2].values, torch.full((2, 1, 7, 9), 2.0, dtype=torch.float64)
    )

    module = scramble(build("TripletAttention", {}, identity_init=identity)).eval()
    gate, spatial = module.attention(x)
    pooled = torch.stack([x.amax(1), x.mean(1)], 1)
    conv, bn = module.hw["conv"]["conv"], module.hw["conv"]["bn"]
    alone = bn(F.conv2d(pooled, conv.weight, padding=3)).sigmoid() / (0.5 if identity else 1)
    assert_close(spatial.values, alone, 1e-12)


@pytest.mark.parametrize(("name", "arguments"), [("GC", {}), ("SNL", {})], ids=str)
def test_context_masks(name, arguments):
    """A softmax over the positions; the context is the sum of x that it weighs."""
    module = scramble(build(name, arguments))
    x = noise(2, C, 7, 9)
    mask, term = module.attention(x)
    assert (mask.name, mask.kind, mask.role) == ("context mask", "weights", "detail")
    assert mask.values.shape == (2, 1, 7, 9)
    assert_close(mask.values.sum((2, 3)), torch.ones(2, 1), 1e-12)
    logits = F.conv2d(x, module.conv_mask.weight, module.conv_mask.bias)
    ratio = mask.values / mask.values[:, :, :1, :1]
    assert_close(ratio, (logits - logits[:, :, :1, :1]).exp(), 1e-10)
    context = (x * mask.values).sum((2, 3))
    transform = module.channel_add_conv if name == "GC" else module.conv_value
    assert_close(term.values, transform(context[:, :, None, None]).flatten(1), 1e-12)


def test_no_mask_where_the_context_is_the_mean():
    found = build("GC", dict(pooling="avg", fusion=("add", "mul"))).attention(noise(2, C, 3, 4))
    assert [said.name for said in found] == ["channel gate", "added context"]


NON_LOCAL = [arguments for name, arguments in CASES if name == "NonLocal"]


@pytest.mark.parametrize("size", [(7, 9), (6, 5), (1, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("arguments", [*NON_LOCAL, dict(use_scale=False)], ids=str)
def test_non_local_weights_are_what_it_sums_by(arguments, size):
    """All cells asked, the weights give what the module computes."""
    module = scramble(build("NonLocal", arguments)).eval()
    x = noise(2, C, *size)
    cells = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1]))
    (said,) = module.attention(x, cells)
    assert torch.equal(said.queries, cells)

    projected = module._conv("g")(x)
    if module.sub_sample:
        projected = F.max_pool2d(projected, [min(2, side) for side in size])
    assert said.values.shape == (2, len(cells), *projected.shape[2:])
    gathered = said.values.flatten(2) @ projected.flatten(2).transpose(1, 2)
    gathered = gathered.transpose(1, 2).unflatten(2, size)
    expected = x + module.conv_out(gathered)
    assert_close(expected, module(x), 1e-10)
    if module.mode.endswith("gaussian"):
        assert_close(said.values.sum((2, 3)), torch.ones(2, len(cells)), 1e-12)

    some = torch.tensor([[size[0] - 1, 0], [0, size[1] - 1]])
    (few,) = module.attention(x, some)
    assert_close(few.values[:, 0], said.values[:, (size[0] - 1) * size[1]], 1e-12)
    assert_close(few.values[:, 1], said.values[:, size[1] - 1], 1e-12)


def test_non_local_asks_a_grid_by_default():
    module = build("NonLocal", {})
    (said,) = module.attention(noise(1, C, 16, 24))
    rows, columns = said.queries.T.reshape(2, 8, 8)
    assert rows[:, 0].tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert columns[0].tolist() == [1, 4, 7, 10, 13, 16, 19, 22]
    assert (rows == rows[:, :1]).all()
    assert (columns == columns[:1]).all()
    assert said.values.shape == (1, 64, 16, 24)
    for size in ((3, 20), (1, 1), (9, 8)):
        (said,) = module.attention(noise(1, C, *size))
        assert len(said.queries) == min(8, size[0]) * min(8, size[1])
        assert len(said.queries.unique(dim=0)) == len(said.queries)
        assert (said.queries < torch.tensor(size)).all()


@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize("size", [(7, 9), (8, 6), (1, 9)], ids=str)
def test_non_local_says_where_its_weights_lie(size, sub_sample):
    """One bright cell; the middle of the cell of the map that holds it is half a cell away."""
    module = build("NonLocal", dict(mode="dot_product", sub_sample=sub_sample))
    for name in ("theta", "phi"):
        nn.init.ones_(module._conv(name).weight)
    bright = (size[0] // 2, 4)
    x = torch.full((1, C, *size), 0.1, dtype=torch.float64)
    x[:, :, bright[0], bright[1]] = 1
    (said,) = module.attention(x)
    peak = divmod(said.values[0, 0].argmax().item(), said.values.shape[3])
    for i in range(2):
        middle = said.offset[i] + said.stride[i] * peak[i]
        pooled = sub_sample and size[i] > 1
        assert abs(middle - bright[i]) == (0.5 if pooled else 0)
        assert said.stride[i] == (2 if pooled else 1)


class Largest(TorchDispatchMode):
    """Notes the values of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return made


@pytest.mark.parametrize("arguments", NON_LOCAL, ids=str)
def test_non_local_makes_the_rows_that_are_asked_for(arguments):
    x = noise(1, C, 40, 40)
    with Largest() as largest:
        build("NonLocal", arguments).attention(x, [[3, 4], [20, 39]])
    assert largest.numel <= x.numel()


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([[0.5, 1.0]], r"integers \(Q, 2\), row and column of a cell, got torch.float32"),
        ([1, 2], r"integers \(Q, 2\).*shape \(2,\)"),
        ([[1, 2, 3]], r"integers \(Q, 2\).*shape \(1, 3\)"),
        ([[0, 0], [3, 1]], r"inside the map of 3 x 4 cells, got \[3, 1\]"),
        ([[0, 4]], r"inside the map of 3 x 4 cells, got \[0, 4\]"),
        ([[-1, 0]], r"inside the map of 3 x 4 cells, got \[-1, 0\]"),
    ],
)
def test_non_local_names_wrong_queries(queries, message):
    with pytest.raises(ValueError, match=f"NonLocal expects queries.*{message}"):
        layer("NonLocal", {}).attention(torch.randn(1, C, 3, 4), queries)


class Silent(AttentionModule):
    """A module of a user that says nothing."""

    def __init__(self):
        super().__init__(4, False, neutral=0.25)

    def reset_parameters(self):
        pass

    def forward(self, x):
        return x * 0.25


class Speaking(Silent):
    """And one that does."""

    @maps.describes
    def attention(self, x):
        gate = torch.full(x.shape[:2], 0.25, dtype=x.dtype)
        return [maps.AttentionMap("gate", "channel", gate, neutral=self.neutral_factor)]


def test_a_module_of_ones_own():
    x = torch.randn(2, 4, 3, 3)
    assert Silent().attention(x) == []
    assert torch.equal(Silent().without_attention(x), Silent()(x))
    (said,) = Speaking().attention(x.half())
    assert said.neutral == 0.25
    assert said.values.dtype == torch.float32
