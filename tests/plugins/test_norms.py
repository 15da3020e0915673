"""The norm layers inside the modules: what norm_cfg asks for, and what they do in training."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmattn.plugins import BAM, CBAM, CoordAttention, TripletAttention
from mmattn.plugins import base as plugins_base
from mmattn.plugins.base import normalize
from tests.zoo import PLUGINS, assert_close, scramble

C = 32
NORMED = [
    name
    for name, cls in sorted(PLUGINS.items())
    if "norm_cfg" in inspect.signature(cls).parameters
    and inspect.signature(cls).parameters["norm_cfg"].default is not None
]
# those whose last factor is the affine of a norm layer
NORM_ENDS_THE_GATE = ["CBAM", "TripletAttention", "SRM"]
every_normed = pytest.mark.parametrize("name", NORMED)


def norms(module):
    return {k: m for k, m in module.named_modules() if isinstance(m, (_BatchNorm, nn.GroupNorm))}


def seen(module):
    """Which BatchNorms have seen a batch."""
    return {k for k, m in norms(module).items() if m.num_batches_tracked > 0}


def step(module, x, seed=0):
    """Output and all gradients for a random upstream gradient."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = module(x)
    y.backward(torch.randn_like(y))
    return [y, x.grad, *(p.grad for p in module.parameters())]


def test_the_list_is_not_empty():
    assert {"BAM", "CBAM", "CoordAttention", "SRM", "TripletAttention"} <= set(NORMED)


@every_normed
def test_the_default_is_the_authors(name):
    momentum = 0.01 if name in ("CBAM", "TripletAttention") else 0.1
    found = norms(PLUGINS[name](C))
    assert found
    for norm in found.values():
        assert type(norm) is nn.BatchNorm2d
        assert norm.momentum == momentum
        assert norm.eps == 1e-5


@every_normed
def test_sync_batch_norm_computes_the_same_without_peers(name):
    plain = scramble(PLUGINS[name](C))
    synced = PLUGINS[name](C, norm_cfg=dict(type="SyncBN"))
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms(synced).values())
    synced.load_state_dict(plain.state_dict())
    x = torch.randn(2, C, 5, 6)
    for actual, expected in zip(step(synced, x), step(plain, x), strict=True):
        assert torch.equal(actual, expected)


@every_normed
def test_momentum_and_eps_are_followed(name):
    torch.manual_seed(0)
    slow = scramble(PLUGINS[name](C, norm_cfg=dict(type="BN", momentum=0.05)))
    fast = PLUGINS[name](C, norm_cfg=dict(type="BN", momentum=0.1))
    rough = PLUGINS[name](C, norm_cfg=dict(type="BN", eps=1.0))
    fast.load_state_dict(slow.state_dict())
    rough.load_state_dict(slow.state_dict())
    start = copy.deepcopy(slow.state_dict())
    x = torch.randn(2, C, 5, 6)
    y = slow(x)
    assert torch.equal(fast(x), y)
    assert not torch.allclose(rough(x), y, atol=1e-4)
    for key in norms(fast):
        for statistic in (f"{key}.running_mean", f"{key}.running_var"):
            moved = [m.state_dict()[statistic] - start[statistic] for m in (fast, slow)]
            assert_close(moved[0], 2 * moved[1], 1e-5, statistic)


@every_normed
def test_running_statistics_move_in_training_alone(name):
    module = scramble(PLUGINS[name](C))
    before = copy.deepcopy(module.state_dict())
    module.eval()(torch.randn(2, C, 5, 6))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    module.train()(torch.randn(2, C, 5, 6))
    assert seen(module) == set(norms(module))
    for key, norm in norms(module).items():
        assert not torch.equal(norm.running_mean, before[f"{key}.running_mean"]), key


@every_normed
def test_group_norm_keeps_the_names_and_trains(name):
    torch.manual_seed(0)
    plain = PLUGINS[name](C)
    module = PLUGINS[name](C, norm_cfg=dict(type="GN", num_groups=1))
    assert [k for k, _ in module.named_parameters()] == [k for k, _ in plain.named_parameters()]
    assert not list(module.buffers())
    scramble(module)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    start = copy.deepcopy(module.state_dict())
    for seed in range(3):
        gradients = step(module, torch.randn(2, C, 5, 6), seed)
        assert all(g.isfinite().all() for g in gradients)
        optimizer.step()
    assert all((p - start[k]).abs().max() > 1e-4 for k, p in module.named_parameters())


@pytest.mark.parametrize(
    ("name", "groups"), [("CBAM", 1), ("TripletAttention", 1), ("CoordAttention", 8)]
)
def test_group_norm_of_one_image(name, groups):
    """A group a channel: what a BatchNorm computes in training on a single image."""
    torch.manual_seed(0)
    batch = scramble(PLUGINS[name](C).double())
    group = PLUGINS[name](C, norm_cfg=dict(type="GN", num_groups=groups)).double()
    group.load_state_dict(dict(batch.named_parameters()))
    x = torch.randn(1, C, 5, 6, dtype=torch.float64)
    for actual, expected in zip(step(group, x), step(batch, x), strict=True):
        assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_of_a_single_value(affine, training):
    """PyTorch's layer raises, even in eval mode; normalised, the value is 0."""
    norm = scramble(nn.GroupNorm(3, 3, affine=affine)).train(training)
    y = normalize(norm, torch.randn(1, 3, 1, 1))
    expected = norm.bias if affine else torch.zeros(3)
    assert_close(y.flatten(), expected, 1e-4)  # rounding over the root of eps
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(normalize(norm, x), norm(x))


@every_normed
def test_frozen_norms(name):
    config = dict(type="BN", requires_grad=False)
    module = PLUGINS[name](C, norm_cfg=config)
    frozen = {k for k, p in module.named_parameters() if not p.requires_grad}
    assert frozen == {f"{k}.{p}" for k in norms(module) for p in ("weight", "bias")}
    if name not in NORM_ENDS_THE_GATE:
        assert PLUGINS[name](C, norm_cfg=config, identity_init=True).identity_at_init
        return
    # at zero, and never to learn
    for bad in (config, dict(type="BN", affine=False)):
        PLUGINS[name](C, norm_cfg=bad)(torch.randn(2, C, 5, 6))
        with pytest.raises(ValueError, match=f"{name} with .*norm_cfg with affine=True"):
            PLUGINS[name](C, norm_cfg=bad, identity_init=True)


@every_normed
@pytest.mark.parametrize(
    ("norm_cfg", "error", "message"),
    [
        (None, TypeError, r"norm_cfg as dict\(type='BN', ...\), got None"),
        ("BN", TypeError, r"norm_cfg as dict\(type='BN', ...\), got 'BN'"),
        (dict(momentum=0.1), TypeError, "norm_cfg as dict"),
        (dict(type="BatchNorm"), ValueError, "registered norm layer.*got 'BatchNorm'"),
        (dict(type="BN", momentun=0.1), ValueError, "cannot build norm_cfg=.*momentun"),
        (dict(type="GN", num_groups=37), ValueError, "cannot build norm_cfg=.*divisible"),
    ],
)
def test_a_wrong_norm_cfg_is_named(name, norm_cfg, error, message):
    with pytest.raises(error, match=f"{name} .*{message}"):
        PLUGINS[name](C, norm_cfg=norm_cfg)


@every_normed
def test_an_empty_batch_leaves_the_statistics(name):
    module = scramble(PLUGINS[name](C))
    before = copy.deepcopy(module.state_dict())
    results = step(module, torch.empty(0, C, 5, 6))
    assert results[0].shape == (0, C, 5, 6)
    assert all(g.eq(0).all() for g in results[2:])
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize(
    ("build", "shape", "alone"),
    [
        # one image: the channel branch of BAM sees its P values, the spatial branch a map
        (BAM, (1, C, 5, 6), {"channel_att.gate_c.gate_c_bn_1"}),
        (CBAM, (1, C, 1, 1), {"SpatialGate.spatial.bn"}),
        (TripletAttention, (1, C, 1, 1), {"hw.conv.bn"}),
        # always a row and a column
        (CoordAttention, (1, C, 1, 1), set()),
    ],
)
def test_one_value_a_channel_takes_the_running_statistics(build, shape, alone):
    torch.manual_seed(0)
    module = scramble(build(C).double())
    for norm in norms(module).values():
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    expected = copy.deepcopy(module)
    for key in alone:
        expected.get_submodule(key).eval()
    x = torch.randn(shape, dtype=torch.float64)
    for ours, theirs in zip(step(module, x), step(expected, x), strict=True):
        assert_close(ours, theirs, 1e-12)
        assert ours.isfinite().all()
    assert seen(module) == set(norms(module)) - alone
    assert all(m.training for m in module.modules())


def test_a_sync_batch_norm_with_peers_takes_part(monkeypatch):
    """The other processes wait for it, whatever it holds."""

    class Spy(nn.SyncBatchNorm):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x

    norm, one = Spy(3), torch.randn(1, 3, 1, 1)
    normalize(norm, one)
    assert norm.calls == 0
    monkeypatch.setattr(plugins_base, "get_world_size", lambda: 2)
    normalize(norm, one)
    assert norm.calls == 1
    normalize(nn.BatchNorm2d(3), one)  # has none to wait for it


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_norms_of_a_half_precision_module_compute_in_full(dtype, training, affine):
    torch.manual_seed(0)
    half = scramble(nn.BatchNorm2d(3, affine=affine)).to(dtype).train(training)
    full = copy.deepcopy(half).float()
    x = 1 + torch.randn(2, 3, 4, 5) / 100
    y = normalize(half, x)
    assert y.dtype == torch.float32
    assert_close(y, full(x), 1e-6)
    assert half.running_mean.dtype == dtype
    assert torch.equal(half.running_mean, full.running_mean.to(dtype))
    assert torch.equal(half.running_var, full.running_var.to(dtype))
    assert half.num_batches_tracked == int(training)


@every_normed
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
def test_a_map_far_from_zero(name, dtype, tolerance):
    """There half precision rounds to multiples of 0.06, which a norm layer would enlarge."""
    torch.manual_seed(0)
    module = scramble(PLUGINS[name](C))
    x = (100 + torch.randn(2, C, 20, 30)).to(dtype)
    expected = copy.deepcopy(module).double()(x.double())
    assert_close(module(x), expected, tolerance)


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_deterministic_mode(name):
    """The backward of PyTorch's adaptive and bilinear operators raises there, on CUDA."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = PLUGINS[name](64).to(device)
    x = torch.randn(2, 64, 5, 6, device=device, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        y = module(x)
        y.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    nodes, seen = [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            assert not any(word in node.name() for word in ("Adaptive", "Upsample")), node
            nodes += [following for following, _ in node.next_functions]
    assert len(seen) > 1
