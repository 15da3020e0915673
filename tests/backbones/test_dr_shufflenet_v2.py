"""DRShuffleNetV2 against torchvision's network, and its blocks against plain float64 loops."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import get_torchvision_models
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mmattn.backbones import DRShuffleNetV2
from mmattn.convs import DRConv2d
from mmattn.registry import MODELS
from tests.zoo import assert_close, scramble

CONFIGS = Path(__file__).parents[2] / "configs"
TORCHVISION = {0.5: "x0_5", 1.0: "x1_0", 1.5: "x1_5", 2.0: "x2_0"}
PUBLISHED = {0.5: 41, 1.0: 146, 1.5: 299, 2.0: 591}  # M multiply-adds at 224
every_width = pytest.mark.parametrize("width", TORCHVISION)
both_modes = pytest.mark.parametrize("training", [False, True])


def torchvisions(width):
    """torchvision's network with random weights, its BatchNorms off their initial state."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, f"shufflenet_v2_{TORCHVISION[width]}")()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


def stages(net, x):
    """torchvision's feature maps."""
    maps = [net.maxpool(net.conv1(x))]
    for stage in (net.stage2, net.stage3, net.stage4):
        maps.append(stage(maps[-1]))
    return maps


def backward(outputs):
    """With a random upstream gradient."""
    generator = torch.Generator().manual_seed(1)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    sum(
        (y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in outputs
    ).backward()


def dr_convs(net):
    return [m for m in net.modules() if isinstance(m, DRConv2d)]


def masknets(net):
    return {n: m for n, m in net.named_modules() if n.endswith(".masknet")}


def images(*shape, dtype=torch.float32, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# the plain network


@every_width
@both_modes
def test_the_plain_network_is_torchvisions(width, training):
    theirs = torchvisions(width)
    ours = DRShuffleNetV2(width, num_classes=1000, norm_eval=False)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    features = DRShuffleNetV2(width, norm_eval=False)
    result = features.load_state_dict(theirs.state_dict(), strict=False)
    assert not result.missing_keys
    assert {key.partition(".")[0] for key in result.unexpected_keys} == {"conv5", "fc"}
    for net in (theirs, ours, features):
        net.train(training)

    x = images(2, 3, 96, 64)
    with torch.no_grad():
        for actual, expected in zip(features(x), stages(theirs, x), strict=True):
            assert_close(actual, expected, 1e-6)
    theirs.load_state_dict(ours.state_dict())  # the statistics have moved
    logits, expected = ours(x), theirs(x)
    assert_close(logits, expected, 1e-6)
    backward(logits)
    backward(expected)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(p.grad, q.grad, 1e-6, name)
    for (name, ours_b), theirs_b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert_close(ours_b, theirs_b, 1e-6, name)


def test_maps_have_the_strides_and_the_channels_of_the_docstring():
    for width, channels in {0.5: (24, 48, 96, 192), 2.0: (24, 244, 488, 976)}.items():
        maps = DRShuffleNetV2(width).eval()(images(1, 3, 64, 96))
        assert [m.shape[1] for m in maps] == list(channels)
        assert [m.shape[2:] for m in maps] == [(64 // s, 96 // s) for s in (4, 8, 16, 32)]


@pytest.mark.parametrize("out_indices", [(0,), (2,), [1, 2], (0, 3), (0, 1, 2, 3)])
def test_out_indices_choose_among_the_maps(out_indices):
    full = DRShuffleNetV2(0.5).eval()
    some = DRShuffleNetV2(0.5, out_indices).eval()
    result = some.load_state_dict(full.state_dict(), strict=False)
    assert not result.missing_keys
    x = images(1, 3, 64, 64)
    expected = [full(x)[i] for i in out_indices]
    outputs = some(x)
    for actual, e in zip(outputs, expected, strict=True):
        assert torch.equal(actual, e)
    # every parameter takes part: a distributed run would stop at one that does not
    backward(outputs)
    assert all(p.grad is not None for p in some.parameters())


# DRConv in it


WITH_HEAD = dict(drconv=dict(), num_classes=1000, norm_eval=False)


@pytest.mark.once
@every_width
@both_modes
def test_with_drconv_plain_weights_compute_the_plain_network(width, training):
    theirs = torchvisions(width).double()
    net = DRShuffleNetV2(width, **WITH_HEAD).double()
    net.load_state_dict(theirs.state_dict())  # strict
    assert_computes_the_plain_network([net], theirs, training)


@both_modes
def test_with_drconv_plain_weights_are_loaded_by_mmengine(training, tmp_path):
    theirs = torchvisions(0.5).double()
    path = str(tmp_path / "plain.pth")
    torch.save(theirs.state_dict(), path)
    pretrained = dict(type="Pretrained", checkpoint=path)
    loaded = DRShuffleNetV2(0.5, **WITH_HEAD).double()
    load_checkpoint(loaded, path, strict=True)
    initialised = DRShuffleNetV2(0.5, **WITH_HEAD, init_cfg=pretrained).double()
    initialised.init_weights()
    assert_computes_the_plain_network([loaded, initialised], theirs, training)


def assert_computes_the_plain_network(nets, theirs, training):
    x = images(2, 3, 96, 64, dtype=torch.float64)
    expected = theirs.train(training)(x)
    for net in nets:
        assert len(dr_convs(net)) == 32
        assert_close(net.train(training)(x), expected, 1e-10)
        theirs_buffers = dict(theirs.named_buffers())
        for name, buffer in net.named_buffers():
            assert_close(buffer, theirs_buffers[name], 1e-10, name)


@both_modes
def test_with_drconv_plain_weights_compute_the_plain_maps_in_float32(training):
    """As near to float64 as the plain network comes in float32; in eval mode that is 1e-6."""
    theirs = torchvisions(1.0).train(training)
    net = DRShuffleNetV2(1.0, drconv=dict(), norm_eval=False).train(training)
    net.load_state_dict(theirs.state_dict(), strict=False)
    x = images(2, 3, 160, 128)
    with torch.no_grad():
        actual, plain = net(x), stages(theirs, x)
        exact = stages(theirs.double(), x.double())
    for ours, p, e in zip(actual, plain, exact, strict=True):
        limit = 2 * (p - e).abs().max().item() / max(1.0, e.abs().max().item())
        assert_close(ours, e, max(limit, 1e-6))
        assert training or limit < 1e-6


def test_names_with_drconv_are_the_plain_ones_and_masknet():
    plain = DRShuffleNetV2(0.5).state_dict()
    ours = DRShuffleNetV2(0.5, drconv=dict(regions=4, templates=3)).state_dict()
    assert set(plain) <= set(ours)
    new = {key.split(".", 2)[2] for key in set(ours) - set(plain)}
    fc = {f"branch2.{i}.routing_fc.{name}" for i in (0, 5) for name in ("weight", "bias")}
    assert new == {"masknet.weight"} | fc
    # m filters from K templates, a guide a block, from the right branch's input
    assert ours["stage3.0.branch2.0.weight"].shape == (48 * 48, 3)
    assert ours["stage3.0.branch2.5.routing_fc.weight"].shape == (4 * 3, 48)
    assert ours["stage3.0.masknet.weight"].shape == (4, 48, 1, 1)
    assert ours["stage3.1.masknet.weight"].shape == (4, 48, 1, 1)
    assert ours["stage2.0.masknet.weight"].shape == (4, 24, 1, 1)


def test_every_parameter_learns_from_plain_weights():
    net = DRShuffleNetV2(0.5, drconv=dict(regions=4), norm_eval=False)
    net.load_state_dict(torchvisions(0.5).state_dict(), strict=False)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for seed in range(3):
        optimizer.zero_grad()
        backward(net.train()(images(2, 3, 96, 64, seed=seed)))
        optimizer.step()
    for name, p in net.named_parameters():
        assert p.isfinite().all()
        assert not torch.equal(p, before[name]), name


def right_branch_by_loops(block, x):
    """The definition, a pixel at a time, with the softmax in the place of the one-hot's gradient.

    BatchNorm is in eval mode.
    """

    def dr_conv(layer, x, guide):
        n, c, height, width = x.shape
        routing = x.mean((2, 3)) @ layer.routing_fc.weight.t() + layer.routing_fc.bias
        routing = (2 * routing.sigmoid() / layer.templates).view(n, -1, layer.templates)
        out = []
        for i in range(n):
            filters = [
                sum(r * t for r, t in zip(row, layer.weight.t(), strict=True)).view(-1, c)
                for row in routing[i]
            ]
            for p in range(height):
                for q in range(width):
                    # nearest: the guide's pixel that the map's pixel falls on
                    a, b = p * guide.shape[2] // height, q * guide.shape[3] // width
                    soft = guide[i, :, a, b].softmax(0)
                    hard = F.one_hot(guide[i, :, a, b].argmax(), len(filters)).to(x.dtype)
                    share = hard + soft - soft.detach()
                    out.append(
                        sum(s * (f @ x[i, :, p, q]) for s, f in zip(share, filters, strict=True))
                    )
        return torch.stack(out).view(n, height, width, -1).permute(0, 3, 1, 2)

    guide = torch.einsum("oc,nchw->nohw", block.masknet.weight[:, :, 0, 0], x)
    first, norm1, relu, depthwise, norm2, second, norm3, _ = block.branch2
    return norm3(
        dr_conv(second, norm2(depthwise(relu(norm1(dr_conv(first, x, guide))))), guide)
    ).relu()


@pytest.mark.parametrize(("index", "size"), [(0, (5, 6)), (0, (4, 7)), (1, (4, 3))])
def test_a_block_against_loops(index, size):
    """Index 0 has stride 2: the second DRConv gets the guide resized; 1 has stride 1."""
    block = DRShuffleNetV2(0.5, drconv=dict(regions=3, templates=2)).stage2[index].double().eval()
    scramble(block)
    channels = 24 if index == 0 else 48
    x = images(2, channels, *size, dtype=torch.float64).requires_grad_()
    actual = block(x)
    right = x if index == 0 else x[:, channels // 2 :]
    left = block.branch1(x) if index == 0 else x[:, : channels // 2]
    expected = torch.cat((left, right_branch_by_loops(block, right)), 1)
    half = expected.shape[1] // 2
    expected = expected[:, [k for i in range(half) for k in (i, half + i)]]
    assert_close(actual, expected, 1e-10)

    inputs = [x, *block.parameters()]
    upstream = torch.randn_like(actual)
    gradients = torch.autograd.grad(actual, inputs, upstream)
    names = ["x", *(name for name, _ in block.named_parameters())]
    by_loops = torch.autograd.grad(expected, inputs, upstream)
    for name, g, e in zip(names, gradients, by_loops, strict=True):
        assert e.abs().max() > 0, name
        assert_close(g, e, 1e-9, name)


def test_a_block_has_one_guide():
    """masknet runs once a block, and both convolutions get its very output."""
    net = DRShuffleNetV2(0.5, drconv=dict()).eval()
    made, used = [], []
    for module in masknets(net).values():
        module.register_forward_hook(lambda m, args, y: made.append(y))
    for layer in dr_convs(net):
        layer.register_forward_hook(lambda m, args, y: used.append(args[1]))
    net(images(1, 3, 64, 64))
    assert len(made) == 16
    assert len(used) == 32
    assert [id(guide) for guide in used] == [id(guide) for guide in made for _ in range(2)]


def multiply_adds(net, size=224):
    """{kind: M multiply-adds} of one image, counted as the layers run."""
    total = dict.fromkeys(("convolutions", "guide", "routing", "filters"), 0)

    def count(kind):
        def hook(module, args, y):
            if isinstance(module, nn.Linear):
                total[kind] += y.numel() * module.in_features
            elif isinstance(module, DRConv2d):
                total["filters"] += module.regions * module.weight.numel()
                total[kind] += y.numel() * module.in_channels
            else:
                total[kind] += y.numel() * module.weight[0].numel()

        return hook

    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | DRConv2d):
            kind = {"masknet": "guide", "routing_fc": "routing"}.get(name.rpartition(".")[2])
            module.register_forward_hook(count(kind or "convolutions"))
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size))
    return {kind: number / 1e6 for kind, number in total.items()}


@every_width
def test_multiply_adds(width):
    plain = DRShuffleNetV2(width, num_classes=1000)
    ours = DRShuffleNetV2(width, num_classes=1000, drconv=dict())
    parameters = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (plain, ours)]
    of_plain, of_ours = multiply_adds(plain), multiply_adds(ours)
    assert sum(of_plain.values()) == pytest.approx(PUBLISHED[width], rel=0.02)
    # one convolution a layer, whatever the number of regions
    assert of_ours["convolutions"] == pytest.approx(of_plain["convolutions"])
    row = [sum(of_plain.values()), parameters[0], sum(of_ours.values()), parameters[1]]
    (documented,) = re.findall(rf"^ +{width} +(.*)$", DRShuffleNetV2.__doc__, re.MULTILINE)
    assert documented.split() == [f"{n:.{d}f}" for n, d in zip(row, (1, 2, 1, 2), strict=True)]
    parts = ", ".join(f"{kind} {number:.2f}" for kind, number in of_ours.items())
    print(
        f"\n{width}x: {sum(of_plain.values()):.1f} M multiply-adds, {parameters[0]:.2f} M "
        f"parameters; with DRConv {sum(of_ours.values()):.1f} M ({parts}), {parameters[1]:.2f} M"
    )


# training it


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("drconv", [None, dict()])
def test_frozen_stages_neither_learn_nor_update_statistics(frozen_stages, drconv):
    net = DRShuffleNetV2(0.5, drconv=drconv, frozen_stages=frozen_stages, norm_eval=False)
    net.init_weights()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert net.train() is net
    outputs = net(images(2, 3, 64, 64))
    if frozen_stages < 3:
        backward(outputs)
    assert any(y.requires_grad for y in outputs) == (frozen_stages < 3)
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    frozen = ("conv1", "stage2", "stage3", "stage4")[: frozen_stages + 1]
    for name, value in net.state_dict().items():
        if name.startswith(frozen):
            assert torch.equal(value, before[name]), name
        elif "running_mean" in name:
            assert not torch.equal(value, before[name]), name
    for name, p in net.named_parameters():
        assert p.requires_grad != name.startswith(frozen), name
        assert (p.grad is None) == name.startswith(frozen), name
    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm):
            assert module.training != name.startswith(frozen), name


def test_norm_eval_keeps_the_statistics_and_lets_the_affine_learn():
    net = DRShuffleNetV2(0.5, drconv=dict()).train()
    assert net.training
    assert net.stage4.training
    before = {name: value.clone() for name, value in net.named_buffers()}
    backward(net(images(2, 3, 64, 64)))
    for name, value in net.named_buffers():
        assert torch.equal(value, before[name])
    assert all(p.grad is not None for p in net.parameters())
    assert net.eval() is net
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("norm_eval", [False, True])
@pytest.mark.parametrize("drconv", [None, dict(regions=4)])
def test_recomputed_blocks_give_the_same(norm_eval, drconv):
    """Gradients, and running statistics, which a recomputation must not update twice."""
    theirs = torchvisions(0.5)
    results = []
    for with_cp in (False, True):
        torch.manual_seed(5)
        net = DRShuffleNetV2(0.5, drconv=drconv, with_cp=with_cp, norm_eval=norm_eval)
        net.load_state_dict(theirs.state_dict(), strict=False)
        scramble(net)
        runs = []
        net.stage2[1].branch2[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        outputs = net.train()(images(2, 3, 64, 64))
        assert len(runs) == 1
        backward(outputs)
        assert len(runs) == (2 if with_cp else 1)
        results.append((outputs, [p.grad for p in net.parameters()], list(net.buffers())))
    for plain, recomputed in zip(*results, strict=True):
        for expected, actual in zip(plain, recomputed, strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    "init_cfg",
    [
        None,
        [dict(type="Kaiming", layer="Conv2d"), dict(type="Normal", std=9, layer="Linear")],
        dict(type="Constant", val=7, layer=["Conv2d", "Linear"]),
    ],
)
def test_init_weights_leaves_drconv_its_own_initial_state(init_cfg):
    net = DRShuffleNetV2(1.0, drconv=dict(), init_cfg=init_cfg)
    scramble(net)
    torch.manual_seed(0)
    net.init_weights()
    for layer in dr_convs(net):
        alone = DRConv2d(layer.in_channels, layer.out_channels, 1, bias=False)
        spread = alone.weight.std().item()
        assert layer.weight.std().item() == pytest.approx(spread, rel=0.05)
        assert layer.weight.abs().max().item() <= spread * 3**0.5 * 1.1
        assert layer.routing_fc.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert layer.routing_fc.bias.eq(0).all()
    assert len(masknets(net)) == 16
    for guide in masknets(net).values():
        bound = guide.in_channels**-0.5  # nn.Conv2d's own, as DRConv2d's guide
        assert 0.9 * bound < guide.weight.abs().max().item() <= bound
    if init_cfg is None:
        for name, module in net.named_modules():
            if isinstance(module, nn.Conv2d) and "masknet" not in name:
                fan_out = module.weight[:, 0].numel()
                std = (2 / fan_out) ** 0.5
                assert module.weight.std().item() == pytest.approx(std, rel=0.15), name
            elif isinstance(module, _BatchNorm):
                assert module.weight.eq(1).all()
                assert module.bias.eq(0).all()


def test_a_checkpoint_with_drconv_comes_back(tmp_path):
    """Its own weights win over every initialisation, through mmengine's loader."""
    net = scramble(DRShuffleNetV2(0.5, drconv=dict(regions=4))).eval()
    path = str(tmp_path / "drconv.pth")
    torch.save(dict(state_dict=net.state_dict()), path)
    again = DRShuffleNetV2(
        0.5, drconv=dict(regions=4), init_cfg=dict(type="Pretrained", checkpoint=path)
    )
    again.init_weights()
    x = images(1, 3, 64, 64)
    for actual, expected in zip(again.eval()(x), net(x), strict=True):
        assert torch.equal(actual, expected)
    # a guide that is missing from weights of DRConv is missing
    del (incomplete := net.state_dict())["stage2.0.masknet.weight"]
    with pytest.raises(RuntimeError, match=r"stage2\.0\.masknet\.weight"):
        again.load_state_dict(incomplete)


@every_width
def test_torchvision_has_a_checkpoint_of_every_width_for_mmengine(width):
    address = get_torchvision_models()[f"shufflenet_v2_{TORCHVISION[width]}.imagenet1k_v1"]
    assert address.startswith("https://download.pytorch.org/models/shufflenetv2_x")


@pytest.mark.parametrize("drconv", [None, dict(), dict(generator="paper", regions=4)])
def test_channels_last_in_and_out(drconv):
    net = DRShuffleNetV2(0.5, drconv=drconv).eval()
    x = images(2, 3, 64, 96)
    expected = net(x)
    assert all(y.is_contiguous() for y in expected)
    net.to(memory_format=torch.channels_last)
    for actual, e in zip(net(x.to(memory_format=torch.channels_last)), expected, strict=True):
        assert actual.is_contiguous(memory_format=torch.channels_last)
        assert_close(actual, e, 1e-5)


def test_normalisation_and_arguments_of_drconv_get_through():
    arguments = dict(regions=3, templates=2, guide_candidates=2)
    net = DRShuffleNetV2(0.5, drconv=arguments, norm_cfg=dict(type="GN", num_groups=2))
    assert arguments == dict(regions=3, templates=2, guide_candidates=2)
    assert not any(isinstance(m, _BatchNorm) for m in net.modules())
    for layer in dr_convs(net):
        assert (layer.regions, layer.templates, layer.guide_candidates) == (3, 2, 2)
        assert layer.kernel_size == layer.stride == (1, 1)
        assert layer.bias is None
    backward(net.train()(images(1, 3, 32, 32)))
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(widen_factor=0.75), ValueError, "widen_factor to be one of 0.5, 1.0, 1.5, 2.0"),
        (dict(out_indices=(0, 4)), ValueError, r"out_indices to be a tuple .* got \(0, 4\)"),
        (dict(out_indices=()), ValueError, "out_indices to be a tuple"),
        (dict(out_indices=3), ValueError, "out_indices to be a tuple .* got 3"),
        (dict(out_indices=(2, 1)), ValueError, "in this order"),
        (dict(frozen_stages=4), ValueError, "frozen_stages to be one of -1, 0, 1, 2, 3, got 4"),
        (dict(num_classes=0), ValueError, "num_classes to be an integer above 0"),
        (dict(drconv=True), TypeError, r"drconv to be a dict .* \(dict\(\) for its defaults\)"),
        (dict(drconv=dict(region=8)), ValueError, "regions, .* 'region', which DRConv2d does not"),
        (
            dict(drconv=dict(stride=2)),
            ValueError,
            "'stride', which the backbone sets; leave it out",
        ),
        (dict(drconv=dict(shared_guide=True)), ValueError, "which the backbone sets"),
        (dict(drconv=dict(type="mmattn.DRConv2d")), ValueError, "which the backbone sets"),
        (dict(drconv=dict(regions=1)), ValueError, "DRConv2d expects regions"),
    ],
)
def test_errors_say_what_to_do(arguments, error, message):
    with pytest.raises(error, match=message):
        DRShuffleNetV2(**arguments)


# in a detector


def test_it_is_found_by_its_name():
    """By its scoped one in a new process: tests/backbones/test_sk_resnet.py."""
    assert MODELS.get("DRShuffleNetV2") is DRShuffleNetV2


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("drconv/*_shufflenet-v2-*.py")), ids=lambda p: p.stem
)
def test_a_detector_starts_from_plain_weights_and_trains(path, tmp_path):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    init_default_scope("mmdet")
    weights = str(tmp_path / "plain.pth")
    torch.save(torchvisions(1.0).state_dict(), weights)
    plain, model = (
        Config.fromfile(p).model
        for p in (CONFIGS / "_base_" / path.name.replace("-drconv-m8-c3-c5", ""), path)
    )
    assert plain.backbone.init_cfg.checkpoint.removeprefix("torchvision://") in (
        get_torchvision_models()
    )
    assert model.backbone.pop("drconv") == dict(regions=8)
    assert model == plain  # the baseline differs in nothing else
    model.backbone.update(drconv=dict(regions=8))

    for config in (plain, model):
        config.backbone.init_cfg.checkpoint = weights
    torch.manual_seed(0)
    detectors = [MMDET_MODELS.build(config) for config in (plain, model)]
    for detector in detectors:
        detector.init_weights()
    x = images(2, 3, 96, 64)
    for expected, actual in zip(*(d.eval().backbone(x) for d in detectors), strict=True):
        assert_close(actual, expected, 1e-5)

    detector = detectors[1].train()
    samples = []
    for _ in range(2):
        boxes = InstanceData(
            bboxes=torch.tensor([[4.0, 6.0, 40.0, 60.0]]), labels=torch.tensor([3])
        )
        sizes = dict(img_shape=(96, 64), pad_shape=(96, 64), batch_input_shape=(96, 64))
        samples.append(DetDataSample(metainfo=sizes, gt_instances=boxes))
    torch.manual_seed(1)  # the samplers'
    loss, _ = detector.parse_losses(detector.loss(x, samples))
    assert loss.isfinite()
    loss.backward()
    for name, p in detector.backbone.named_parameters():
        assert p.requires_grad != name.startswith("conv1."), name
        if p.requires_grad:
            assert p.grad.isfinite().all(), name
            # regions that start equal give the guide no gradient yet
            assert p.grad.any() or "masknet" in name, name
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    optimizer.step()
    torch.manual_seed(1)
    again, _ = detector.parse_losses(detector.loss(x, samples))
    assert again < loss
