"""The non-local block against mmcv's, and what it holds in memory."""

import copy

import pytest
import torch
from mmcv.cnn.bricks import NonLocal2d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmattn.ops import use_backend
from mmattn.ops.non_local import MODES
from mmattn.plugins import NonLocal
from tests.zoo import assert_close, scramble

C = 16
every_mode = pytest.mark.parametrize("mode", MODES)


def pair(mode, reduction=2, use_scale=True, sub_sample=False, norm_cfg=None):
    """Ours with random parameters, and mmcv's with the same."""
    common = dict(mode=mode, use_scale=use_scale, sub_sample=sub_sample, norm_cfg=norm_cfg)
    ours = scramble(NonLocal(C, ratio=reduction, **common).double())
    theirs = NonLocal2d(C, reduction=reduction, **common).double()
    theirs.load_state_dict(ours.state_dict())
    if mode == "concatenation":
        # mmcv divides in place what its ReLU keeps for the backward pass, which then raises
        theirs.concat_project.register_forward_hook(lambda _, __, out: out.clone())
    return ours, theirs


def run(module, x, dy):
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(dy)
    return dict(y=y, dx=x.grad, **{k: p.grad for k, p in module.named_parameters()})


def assert_same(actual, expected, tolerance=1e-11):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(actual[key], value, tolerance, key)


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(use_scale=False, reduction=4),
        dict(sub_sample=True),
        dict(norm_cfg=dict(type="BN"), sub_sample=True),
        dict(norm_cfg=dict(type="GN", num_groups=4)),
    ],
    ids=str,
)
@every_mode
def test_values_gradients_and_state_equal_mmcv(mode, options, backend):
    torch.manual_seed(0)
    ours, theirs = pair(mode, **options)
    x = torch.randn(2, C, 5, 7, dtype=torch.float64)
    dy = torch.randn_like(x)
    with use_backend(backend):
        for training in (True, False):
            ours.train(training)
            theirs.train(training)
            ours.zero_grad()
            theirs.zero_grad()
            assert_same(run(ours, x, dy), run(theirs, x, dy))
    assert_same(ours.state_dict(), theirs.state_dict())  # the running statistics, too
    NonLocal(C, options.get("reduction", 2), mode, **{
        k: v for k, v in options.items() if k != "reduction"
    }).load_state_dict(theirs.state_dict())  # fmt: skip


@every_mode
@pytest.mark.parametrize("norm_cfg", [None, dict(type="BN")], ids=str)
def test_initial_values_are_mmcvs(mode, norm_cfg):
    torch.manual_seed(0)
    ours = NonLocal(512, mode=mode, norm_cfg=norm_cfg)
    torch.manual_seed(0)
    theirs = NonLocal2d(512, mode=mode, norm_cfg=norm_cfg).state_dict()
    for key, value in ours.state_dict().items():
        expected = theirs[key]
        if expected.unique().numel() == 1:
            assert torch.equal(value, expected), key
        else:
            error = 5 / value.numel() ** 0.5
            assert value.mean().item() == pytest.approx(0, abs=error * expected.std().item()), key
            assert value.std().item() == pytest.approx(expected.std().item(), rel=error), key


class Largest(TorchDispatchMode):
    """The most values that one operation gave out."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.values = max(
            self.values, *(t.untyped_storage().size() // t.itemsize for t in tensors), 0
        )
        return out


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_no_operation_holds_a_value_for_every_pair_of_positions(mode, dtype, channels_last):
    """Of a stride-4 map of 800 x 1344 pixels they would be 18 GB an image."""
    module = scramble(NonLocal(C, mode=mode).to(dtype))
    x = torch.randn(1, C, 28, 32, dtype=dtype, requires_grad=True)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    with Largest() as largest:
        module(x).sum().backward()
    assert 0 < largest.values < 10 * x.numel() < (28 * 32) ** 2
    with Largest() as largest, use_backend("reference"):
        module(x).sum().backward()
    assert largest.values >= (28 * 32) ** 2


def test_concatenation_computes_the_same_with_deterministic_algorithms():
    """CUDA has no deterministic running sum, so the pairs are made one by one."""
    torch.manual_seed(0)
    ours, theirs = pair("concatenation")
    x = torch.randn(2, C, 5, 7, dtype=torch.float64)
    dy = torch.randn_like(x)
    torch.use_deterministic_algorithms(True)
    try:
        actual = run(ours, x, dy)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(actual, run(theirs, x, dy))


def test_concatenation_over_a_large_map():
    """Long running sums lose no more than the sums themselves."""
    torch.manual_seed(0)
    module = scramble(NonLocal(C, mode="concatenation"))
    x = torch.randn(1, C, 32, 32)
    dy = torch.randn_like(x)
    actual = run(module, x, dy)
    module.zero_grad()
    with use_backend("reference"):
        expected = run(module.double(), x.double(), dy.double())
    assert_same(actual, expected, 2e-6)


def test_a_frozen_norm_layer_cannot_start_as_identity_and_learn():
    frozen = dict(type="BN", requires_grad=False)
    with pytest.raises(ValueError, match=r"NonLocal with identity_init=True .*requires_grad=False"):
        NonLocal(C, norm_cfg=frozen, identity_init=True)
    x = torch.randn(2, C, 3, 4)
    assert torch.equal(NonLocal(C, norm_cfg=frozen)(x), x)
    plain = NonLocal(C, norm_cfg=dict(type="BN", affine=False))
    assert not plain.identity_at_init
    assert not torch.equal(plain(x), x)


@pytest.mark.parametrize(("mode", "size"), [("dot_product", 60), ("concatenation", 1000)])
def test_sums_beyond_float16(mode, size):
    """What is finite at the end does not overflow on its way."""
    torch.manual_seed(0)
    module = scramble(NonLocal(C, mode=mode))
    with torch.no_grad():
        module.conv_out.conv.weight.mul_(1e-3)
    module.half()
    x = (size * torch.randn(1, C, 6, 7)).half()
    with use_backend("reference"):
        assert not module(x).isfinite().all()
        expected = copy.deepcopy(module).double()(x.double())
    assert_close(module(x), expected, 3e-3)
