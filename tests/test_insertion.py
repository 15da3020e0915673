"""Modules into models without a slot: what is computed, what stays as it was, what is refused."""

import copy
import pickle
from collections import OrderedDict, namedtuple

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

import mmattn
from mmattn.insertion import insertions, matching
from mmattn.plugins import AttentionModule
from tests.zoo import assert_close, scramble

SGE = dict(type="mmattn.SGE", groups=2)


class Net(nn.Module):
    """Parts of every kind of forward."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)])
        self.tokens = Tokens()
        self.split = Split()

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        height, width = x.shape[2:]
        x = self.tokens(x.flatten(2).transpose(1, 2), hw_shape=(height, width))
        x = x.transpose(1, 2).reshape(len(x), -1, height, width)
        return self.split(x=x)[1]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x, hw_shape):
        return self.fc(x)


class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return [x, self.conv(x)]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def image(*shape):
    return torch.randn(shape or (2, 3, 6, 5), generator=torch.Generator().manual_seed(1))


def attached(net, cfg=SGE, **where):
    """The net with modules off their initial values, and the modules."""
    mmattn.attach(net, [dict(cfg=cfg, **where)])
    return net, [scramble(one.module) for one in insertions(net)]


def test_after_and_before_compute_the_composition(net):
    x = image()
    conv = copy.deepcopy(net.blocks[0])
    _, (after,) = attached(net, after=r"blocks\.0")
    _, (_, before) = attached(net, before=r"blocks\.0", name="first")
    maps = torch.randn(2, 8, 6, 5, requires_grad=True)
    dy = torch.randn(2, 8, 6, 5)
    y = net.blocks[0](maps)
    y.backward(dy)
    got = [y, maps.grad.clone(), after.weight.grad.clone(), before.weight.grad.clone()]
    maps.grad = after.weight.grad = before.weight.grad = None
    y = after(conv(before(maps)))
    y.backward(dy)
    for ours, expected in zip(
        got, [y, maps.grad, after.weight.grad, before.weight.grad], strict=True
    ):
        assert torch.equal(ours, expected)
    assert net(x).shape == (2, 4, 6, 5)


def test_names_and_places(net):
    mmattn.attach(
        net,
        [
            dict(cfg=SGE, after="stem"),
            dict(cfg=SGE, before="stem", in_channels=3, name="early")
            | dict(cfg=dict(SGE, groups=3)),
            dict(cfg=SGE, before=["blocks.1"]),
            dict(cfg=SGE, after="tokens", layout="NLC"),
            dict(cfg=SGE, after="split", index=1),
        ],
    )
    assert [(one.target, one.position, one.name, one.called) for one in insertions(net)] == [
        ("stem.0", "before", "stem.0.early", True),
        ("stem.2", "after", "stem.2.sge", True),
        ("blocks.1", "before", "blocks.1.sge", True),
        ("tokens", "after", "tokens.sge", True),
        ("split", "after", "split.sge_1", True),
    ]
    assert len(net.stem) == 3
    channels = [one.module.in_channels for one in insertions(net)]
    assert channels == [3, 8, 8, 8, 4]
    assert net(image()).shape == (2, 4, 6, 5)


def test_tokens_are_the_maps_they_stand_for(net):
    maps = image(2, 8, 6, 5)
    tokens = maps.flatten(2).transpose(1, 2)
    plain = copy.deepcopy(net.tokens)
    _, (module,) = attached(net, before="tokens", layout="NLC", in_channels=8)
    y = net.tokens(tokens, (6, 5))
    expected = plain(module(maps).flatten(2).transpose(1, 2), (6, 5))
    assert_close(y, expected, 1e-6)
    with pytest.raises(ValueError, match=r"'sge' gets 30 tokens.*no pair \(H, W\).*hw=\(H, W\)"):
        net.tokens(tokens, hw_shape=(5, 5))
    other = attached(Net(), after="tokens", layout="NLC", hw=[6, 5])[0]
    assert other.tokens(tokens, None).shape == tokens.shape
    with pytest.raises(ValueError, match=r"gets 29 tokens, which is not hw=\(6, 5\)"):
        other.tokens(tokens[:, :29], None)
    square = attached(Net(), after="tokens", layout="NLC", in_channels=8, hw="square")[0]
    assert square.tokens(tokens[:, :25], None).shape == (2, 25, 8)
    with pytest.raises(ValueError, match=r"expects tokens \(N, L, C\), got shape \(2, 6, 5, 8\)"):
        square.tokens(maps.permute(0, 2, 3, 1), None)


def test_nhwc(net):
    class Last(nn.Module):
        def forward(self, x):
            return x

    model = nn.ModuleDict({"last": Last()})
    _, (module,) = attached(model, after="last", layout="NHWC", in_channels=8)
    maps = image(2, 8, 6, 5)
    assert torch.equal(model["last"](maps.permute(0, 2, 3, 1)), module(maps).permute(0, 2, 3, 1))


Pair = namedtuple("Pair", "low high")


@pytest.mark.parametrize(
    ("value", "index"),
    [
        (lambda a, b: (a, b), 1),
        (lambda a, b: [a, b], 1),
        (lambda a, b: Pair(a, b), 1),
        (lambda a, b: dict(low=a, high=b), "high"),
        (lambda a, b: OrderedDict(low=a, high=b), "high"),
    ],
)
def test_one_of_several_outputs(value, index):
    class Part(nn.Module):
        def forward(self, a, b):
            return value(a, b)

    model = nn.ModuleDict({"part": Part()})
    _, (module,) = attached(model, after="part", index=index, in_channels=8)
    a, b = image(2, 8, 6, 5), image(2, 8, 3, 2)
    got = model["part"](a, b)
    assert type(got) is type(value(a, b))
    low, high = got.values() if hasattr(got, "values") else got
    assert torch.equal(low, a)
    assert torch.equal(high, module(b))
    with pytest.raises(ValueError, match=r"index=.* is no tensor in a \w+ (of 2|with the keys)"):
        model["part"](a, None)


@pytest.mark.parametrize("where", [dict(before="split"), dict(before="split", index="x")])
def test_an_input_given_by_name(net, where):
    x = image()
    expected = net(x)
    mmattn.attach(net, [dict(cfg=dict(SGE, identity_init=True), **where)])
    assert torch.equal(net(x), expected)
    scramble(insertions(net)[0].module)
    assert not torch.equal(net(x), expected)


def test_the_model_stays_what_it_was(net):
    """The traced forward, too, leaves no trace: statistics, modes and random state."""
    plain = copy.deepcopy(net)
    net.train()
    net.stem[1].eval()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    modes = [module.training for module in net.modules()]
    # constant initial values: only a trace could draw
    returned = mmattn.attach(
        net, [dict(cfg=SGE, after="stem"), dict(cfg=SGE, after="split", index=0)]
    )
    assert returned is net
    assert type(net) is Net
    assert torch.equal(torch.rand(1), expected)
    assert [m.training for m in net.modules() if not isinstance(m, AttentionModule)] == modes
    state = net.state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(state[key], value)
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing == [
        f"{n}.{k}" for n in ("stem.2.sge", "split.sge_0") for k in ("weight", "bias")
    ]


@torch.no_grad()
def test_copies_pickles_and_averages_are_whole_and_their_own(net):
    x = image()
    attached(net, after=r"stem|blocks\.\d")
    expected = net(x)
    average = ExponentialMovingAverage(net)
    twins = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), average.module]
    for twin in twins:
        assert_close(twin(x), expected, 1e-6)
        for one in insertions(twin):
            assert one.called
            nn.init.zeros_(one.module.weight)
        assert (twin(x) - expected).abs().max() > 1e-3
    assert_close(net(x), expected, 1e-6)
    # a part copied alone, as mmdet copies stages
    block = copy.deepcopy(net.blocks[0])
    assert torch.equal(block(torch.ones(1, 8, 3, 3)), net.blocks[0](torch.ones(1, 8, 3, 3)))


def test_dtype_and_device_follow_the_target(net):
    net.double()
    attached(net, after="stem")
    assert net(image().double()).dtype == torch.float64
    meta = attached(Net().to("meta"), after="stem")[1][0]
    assert meta.weight.device.type == "meta"


def resnet(**kwargs):
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(dict(type="ResNet", depth=50, base_channels=8, **kwargs))


def test_compile_and_activation_checkpointing_of_a_backbone():
    torch.manual_seed(0)
    net = resnet(frozen_stages=0, norm_eval=True)
    mmattn.attach(
        net, [dict(cfg=SGE, after=r"layer\d\.\d"), dict(cfg=SGE, after=r"layer3\.\d\.conv2")]
    )
    for one in insertions(net):
        scramble(one.module)
    x = image(2, 3, 64, 64)

    def run(model, call):
        model.zero_grad()
        levels = call(x)
        sum((level * level.detach().cos()).sum() for level in levels).backward()
        grads = {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}
        return [level.detach() for level in levels], grads

    expected, grads = run(net, net)
    assert sum(".sge" in key for key in grads) == 2 * (16 + 6)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for block in net.modules():
        block.with_cp = getattr(block, "with_cp", None)
    for actual, wanted in zip(run(net, compiled)[0], expected, strict=True):
        assert_close(actual, wanted, 1e-5)
    for block in net.modules():
        if block.with_cp is not None:
            block.with_cp = True
    again, grads_cp = run(net, net)
    for actual, wanted in zip(again, expected, strict=True):
        assert torch.equal(actual, wanted)
    assert grads_cp.keys() == grads.keys()
    for key, grad in grads.items():
        assert_close(grads_cp[key], grad, 1e-5, key)


def test_a_parents_initialisation_leaves_the_modules_alone():
    """FPN initialises every Conv2d below it, and calls no init_weights inside a ConvModule."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        neck = MODELS.build(dict(type="FPN", in_channels=[8, 8], out_channels=16, num_outs=2))
    mmattn.attach(neck, [dict(cfg=dict(type="mmattn.GC", ratio=4), after=r"lateral_convs\.\d")])
    before = {k: v.clone() for k, v in neck.state_dict().items()}
    neck.init_weights()
    x = torch.randn(2, 16, 4, 4)
    for one in insertions(neck):
        assert torch.equal(one.module(x), x)
    changed = [k for k, v in neck.state_dict().items() if not torch.equal(v, before[k])]
    assert changed
    assert not any("context_block" in key for key in changed)


def test_frozen_stages_freeze_at_once():
    """Not only at the first train(), when the optimizer and DDP have counted the parameters."""
    net = resnet(frozen_stages=1)
    mmattn.attach(net, [dict(cfg=SGE, after=r"layer[12]\.\d")])
    for one in insertions(net):
        trained = not one.target.startswith("layer1")
        assert all(p.requires_grad == trained for p in one.module.parameters())


DETECTOR = dict(
    type="RetinaNet",
    data_preprocessor=dict(type="DetDataPreprocessor", mean=[0, 0, 0], std=[255, 255, 255]),
    backbone=dict(type="ResNet", depth=18, base_channels=8, init_cfg=None),
    neck=dict(
        type="FPN", in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5,
    ),
    bbox_head=dict(
        type="RetinaHead", num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1,
        anchor_generator=dict(
            type="AnchorGenerator", octave_base_scale=4, scales_per_octave=1, ratios=[1.0],
            strides=[4, 8, 16, 32, 64],
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True),
        loss_bbox=dict(type="L1Loss"),
    ),
    test_cfg=dict(
        nms_pre=10, score_thr=0.0, nms=dict(type="nms", iou_threshold=0.5), max_per_img=5
    ),
)  # fmt: skip
PLUGINS = [dict(cfg=dict(SGE, identity_init=True), after=r"neck\.lateral_convs\.\d")]


class TestAttach:
    @pytest.fixture(autouse=True)
    def mmdet_scope(self):
        init_default_scope("mmdet")

    def test_it_returns_the_detector_itself(self):
        flat = MODELS.build(
            {**DETECTOR, "type": "mmattn.Attach", "module": "RetinaNet", "plugins": PLUGINS}
        )
        nested = MODELS.build(dict(type="mmattn.Attach", module=DETECTOR, plugins=PLUGINS))
        for model in (flat, nested):
            assert type(model).__name__ == "RetinaNet"
            assert [one.name for one in insertions(model)] == [
                f"neck.lateral_convs.{i}.sge" for i in range(4)
            ]
        # and of the plain one no name is different
        plain = MODELS.build(DETECTOR)
        assert not flat.load_state_dict(plain.state_dict(), strict=False).unexpected_keys

    def test_without_a_default_scope(self, monkeypatch):
        monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())
        model = mmattn.Attach(module=DETECTOR, plugins=PLUGINS)
        assert len(insertions(model)) == 4

    def test_a_whole_model_dict_takes_no_other_keys(self):
        with pytest.raises(TypeError, match="expects no keys but plugins, got backbone"):
            mmattn.Attach(module=DETECTOR, plugins=PLUGINS, backbone=dict(depth=50))
        with pytest.raises(TypeError, match="module as a type name or a model dict, got None"):
            mmattn.Attach(module=None, plugins=PLUGINS)

    def test_a_child_of_an_attached_config(self):
        with pytest.raises(ValueError, match="attached already.*leave type and module out"):
            mmattn.Attach(module="mmattn.Attach", plugins=PLUGINS)

    def test_a_runners_data_preprocessor_reaches_the_model(self):
        preprocessor = dict(type="DetDataPreprocessor", mean=[1, 2, 3], std=[1, 1, 1])
        detector = {k: v for k, v in DETECTOR.items() if k != "data_preprocessor"}
        model = mmattn.Attach(module=detector, plugins=PLUGINS, data_preprocessor=preprocessor)
        assert model.data_preprocessor.mean.flatten().tolist() == [1, 2, 3]

    def test_init_detector_and_the_inferencer(self, tmp_path):
        """The model's keys stay where mmdet's own code looks for them."""
        import numpy as np
        from mmdet.apis import DetInferencer, inference_detector, init_detector
        from mmengine import Config

        pipeline = [
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=(64, 64)),
            dict(
                type="PackDetInputs", meta_keys=("img_id", "ori_shape", "img_shape", "scale_factor")
            ),
        ]
        cfg = dict(
            model={**DETECTOR, "type": "mmattn.Attach", "module": "RetinaNet", "plugins": PLUGINS},
            test_dataloader=dict(dataset=dict(type="CocoDataset", pipeline=pipeline)),
            visualizer=dict(type="DetLocalVisualizer"),
            default_scope="mmdet",
        )
        path = str(tmp_path / "config.py")
        Config(cfg).dump(path)
        torch.manual_seed(0)
        model = init_detector(path, device="cpu", cfg_options={"model.backbone.depth": 34})
        assert len(model.backbone.layer3) == 6
        assert len(insertions(model)) == 4
        result = inference_detector(model, np.zeros((40, 50, 3), np.uint8))
        assert len(result.pred_instances) <= 5

        weights = str(tmp_path / "weights.pth")
        plain = MODELS.build(DETECTOR)
        torch.save(dict(state_dict=plain.state_dict(), meta=dict(classes=("a", "b", "c"))), weights)
        inferencer = DetInferencer(path, weights, device="cpu", show_progress=False)
        assert len(insertions(inferencer.model)) == 4
        found = inferencer(np.zeros((40, 50, 3), np.uint8))["predictions"][0]
        expected = DetInferencer(
            plain_config(cfg, tmp_path), weights, device="cpu", show_progress=False
        )
        assert found == expected(np.zeros((40, 50, 3), np.uint8))["predictions"][0]


def plain_config(cfg, folder):
    from mmengine import Config

    path = str(folder / "plain.py")
    Config({**cfg, "model": DETECTOR}).dump(path)
    return path


def test_torchvisions_faster_rcnn():
    """Any PyTorch model, in training and in evaluation."""
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=64, max_size=64
    ).eval()
    plain = copy.deepcopy(model)
    mmattn.attach(
        model,
        [
            dict(
                cfg=dict(type="mmattn.SGE", identity_init=True),
                after=r"backbone\.body\.layer[1-4]\.\d",
            ),
            dict(cfg=dict(type="mmattn.SE", identity_init=True), after=["rpn.head.conv.0"]),
            dict(cfg=dict(type="mmattn.ECA", identity_init=True), after="backbone", index="pool"),
        ],
    )
    assert len(insertions(model)) == 16 + 1 + 1
    images = [torch.rand(3, 60, 50), torch.rand(3, 40, 64)]
    with torch.no_grad():
        for ours, theirs in zip(model(images), plain(images), strict=True):
            for key in theirs:
                assert torch.equal(ours[key], theirs[key])
    model.train()
    targets = [dict(boxes=torch.tensor([[5.0, 5, 30, 30]]), labels=torch.tensor([1]))] * 2
    sum(model(images, targets).values()).backward()
    for one in insertions(model):
        assert any(
            p.grad is not None and p.grad.abs().sum() > 0 for p in one.module.parameters()
        ), one


def test_a_replaced_part_is_reported(net):
    attached(net, after=r"stem\.1")
    assert all(one.called for one in insertions(net))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert [one.called for one in insertions(converted)] == [False]


def test_shared_parts_get_one_module():
    shared = nn.Conv2d(3, 4, 1)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Conv2d(3, 4, 1)})
    mmattn.attach(model, [dict(cfg=SGE, after="[ab]")])
    assert [one.name for one in insertions(model)] == ["a.sge"]
    assert list(matching(model, "b")) == ["b"]


WRONG = {
    "no list": (dict(cfg=SGE, after="stem"), TypeError, "plugins as a list of dict"),
    "empty": ([], TypeError, "plugins as a list .* got an empty list"),
    "wrong channels": (
        [dict(cfg=SGE, after="stem", in_channels=4)], ValueError,
        r"expected 4 channels in a map NCHW at stem.2, got shape \(1, 8,",
    ),
    "wrong layout": (
        [dict(cfg=SGE, after="blocks.0", layout="NHWC")], ValueError,
        r"expected 8 channels in a map NHWC at blocks.0, got shape \(1, 8, 128, 128\).*layout",
    ),
    "tokens of a map": (
        [dict(cfg=SGE, after="blocks.0", layout="NLC")], ValueError, "a map NLC at blocks.0",
    ),
    "index of one tensor": (
        [dict(cfg=SGE, after="stem", index=0)], ValueError, "one tensor, leave out index=0",
    ),
    "no such index": ([dict(cfg=SGE, after="split", index=2)], ValueError, "index=2 is no tensor"),
    "no index": ([dict(cfg=SGE, after="split")], ValueError, "expected one tensor.*index="),
    "a convolution": (
        [dict(cfg=dict(type="mmattn.DRConv2d"), after="stem")], TypeError,
        r"at stem.2: mmattn.DRConv2d is a convolution.*dcn=",
    ),
    "no cfg": ([dict(after="stem")], TypeError, r"each plug-in as dict\(cfg=\.\.\., after="),
    "typo in a key": ([dict(cfg=SGE, afer="stem")], TypeError, "got 'afer'; did you mean after?"),
    "mmdet's key": (
        [dict(cfg=SGE, position="after_conv3")], TypeError, "mmdet's own slot",
    ),
    "no place": ([dict(cfg=SGE)], TypeError, "after= or before=, one of them"),
    "both": ([dict(cfg=SGE, after="a", before="b")], TypeError, "after= or before=, one of them"),
    "no regex": ([dict(cfg=SGE, after="blocks.(")], ValueError, "is no regular expression"),
    "wrong pattern": ([dict(cfg=SGE, after=3)], TypeError, "regular expression or a list"),
    "no match": (
        [dict(cfg=SGE, after=r"block\.\d+")], ValueError, r"matches no part .* near ones: blocks",
    ),
    "part of a name": ([dict(cfg=SGE, after="blocks.")], ValueError, "matches no part"),
    "no suffix": (
        [dict(cfg=SGE, after=["conv", "conv9"])], ValueError, r"ends in 'conv9'; near ones: .*conv",
    ),
    "list of modules": (
        [dict(cfg=SGE, after="blocks")], ValueError, r"ModuleList, which is never called.*'blocks",
    ),
    "twice": ([dict(cfg=SGE, after=r"stem\.0"), dict(cfg=SGE, before=["stem.0"])], ValueError,
              r"two insertions at stem.0 .* 'sge' \(after and before\).*name="),
    "taken": ([dict(cfg=SGE, after="split", index=0, name="conv")], ValueError,
              "split has a 'conv' already"),
    "unknown module": ([dict(cfg=dict(type="mmattn.SEG"), after="stem")], ValueError,
                       "'mmattn.SEG', which is not registered; did you mean mmattn.SE"),
    "groups": ([dict(cfg=dict(type="mmattn.SGE", groups=3), after="stem")], ValueError,
               r"at stem.2: SGE expects groups that divide in_channels=8, got groups=3"),
    "argument": ([dict(cfg=dict(SGE, groop=3), after="stem")], TypeError, "at stem.2: .*groop"),
    "layout": ([dict(cfg=SGE, after="stem", layout="BLC")], ValueError, "be one of NCHW"),
    "hw": ([dict(cfg=SGE, after="tokens", layout="NLC", hw=3)], ValueError, "hw to be None"),
    "hw of a map": ([dict(cfg=SGE, after="stem", hw="square")], ValueError, "layout='NLC' only"),
    "tokens": ([dict(cfg=SGE, after="tokens")], ValueError,
               r"expected a map NCHW at tokens, got shape \(1, \d+, 8\).*layout='NLC'"),
    "channels": ([dict(cfg=SGE, after="stem", in_channels=0)], ValueError, "as an integer above 0"),
    "channels inside": (
        [dict(cfg=dict(SGE, in_channels=8), after="stem")], ValueError, "beside cfg",
    ),
    "name": ([dict(cfg=SGE, after="stem", name="a.b")], ValueError, "name to be an identifier"),
    "index": ([dict(cfg=SGE, after="split", index=-1)], TypeError, "index as a position from 0"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_refused_and_nothing_inserted(what, net):
    plugins, kind, message = WRONG[what]
    if isinstance(plugins, list) and plugins:
        plugins = [dict(cfg=SGE, after=r"blocks\.1"), *plugins]  # would fit
    keys = list(net.state_dict())
    with pytest.raises(kind, match=message):
        mmattn.attach(net, plugins)
    assert list(net.state_dict()) == keys
    assert not insertions(net)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_channels_that_no_forward_shows(net):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, image, text):
            return self.net(image)

    odd = Odd().eval()
    with pytest.raises(
        ValueError, match=r"at net\.split could not be found.*TypeError.*in_channels"
    ):
        mmattn.attach(odd, [dict(cfg=SGE, after=r"net\.split", index=0)])
    mmattn.attach(odd, [dict(cfg=SGE, after=r"net\.split", index=0)], example=(image(), "a cat"))
    assert insertions(odd)[0].module.in_channels == 8


def test_a_sequence_that_runs_its_children_itself():
    from torchvision.models._utils import IntermediateLayerGetter

    model = nn.ModuleDict({"body": IntermediateLayerGetter(Net().stem, {"0": "a"})})
    with pytest.raises(
        ValueError, match=r"body is a IntermediateLayerGetter.*insert at one of body.0"
    ):
        mmattn.attach(model, [dict(cfg=SGE, after="body")])
    with pytest.raises(ValueError, match="empty Sequential"):
        mmattn.attach(nn.ModuleDict({"a": nn.Sequential()}), [dict(cfg=SGE, after="a")])
