"""What collect() returns, against the modules themselves and against what was drawn."""

import copy
import math

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn

import mmattn
from mmattn.inspection import attention_option, config_file
from mmattn.inspection._console import PreflightError
from mmattn.inspection.build import build_model
from mmattn.visualization import Detections, Grid, Placement, collect, neutralized
from mmattn.visualization.collect import _points
from mmattn.visualization.loading import image_files, load_model
from mmattn.visualization.record import attention_modules, chosen, listening

DEMO = "mmattn::demo/{}_r50w16_fpn_600it_shapes.py"


def config(wish=None, detector="faster-rcnn", **options):
    options = {"model.backbone.base_channels": 4, **options}
    options.setdefault("model.neck.in_channels", [16, 32, 64, 128])
    cfg = config_file.load(DEMO.format(detector), options)
    if wish:
        attention_option.apply(cfg, wish)
    return cfg


def detector(wish=None, seed=0, **options):
    cfg = config(wish, **options)
    torch.manual_seed(seed)
    model = build_model(cfg)
    model.cfg = cfg
    model.dataset_meta = dict(classes=("circle", "square", "triangle"))
    model.eval()
    return model


def awake(model):
    """Moves the modules off their initial values."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in attention_modules(model).values():
            for parameter in module.parameters():
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


def picture(height=96, width=140, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def sge():
    return awake(detector("sge:groups=8"))


def averaging(model):
    """Every convolution of the backbone a mean, every norm the identity."""
    for part in model.backbone.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.constant_(part.weight, 1 / part.weight[0].numel())
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
    with torch.no_grad():
        for module in attention_modules(model).values():
            module.weight.fill_(1.0)
    return model


@pytest.mark.parametrize("size", [(200, 300), (400, 240)])
@pytest.mark.parametrize("at", [(0.35, 0.6), (0.7, 0.3)])
def test_a_bright_object_is_where_its_mask_peaks(size, at):
    """In every stage: the image is scaled, padded to 32, and cut into cells of up to 32 pixels."""
    model = averaging(detector("sge:groups=8"))
    height, width = size
    image = np.full((height, width, 3), 60, np.uint8)
    y, x, half = int(at[0] * height), int(at[1] * width), 24
    image[y - half : y + half, x - half : x + half] = 255
    [one] = collect(model, image)
    assert one.placement.input_size[0] % 32 == 0
    assert one.placement.scale[0] != 1
    assert one.placement.input_size != one.placement.content_size
    for layer in one.layers[:13:3]:
        mask = layer["mask"]
        shown = one.on_image(mask.mean, mask.grid)
        assert shown.shape == size
        peak = np.unravel_index(shown.argmax(), size)
        assert np.abs(np.subtract(peak, (y, x))).max() <= half, layer.name
        # the centre of what lies above half of it, too: half a cell of c5 would be 15 px more
        above = np.argwhere(shown > (shown.max() + np.median(shown)) / 2).mean(0)
        assert np.abs(above - (y - 0.5, x - 0.5)).max() < 0.25 * mask.grid.stride[0] + 1, layer.name


def test_maps_are_those_of_the_modules(sge):
    taken = {}

    def keep(name):
        def hook(module, args, output):
            taken[name] = args[0].clone(), output.clone()

        return hook

    handles = [m.register_forward_hook(keep(n)) for n, m in attention_modules(sge).items()]
    [one] = collect(sge, picture(), groups=3)
    for handle in handles:
        handle.remove()
    assert [layer.name for layer in one] == list(taken)
    assert len(taken) == 16
    for layer in one:
        x, y = taken[layer.name]
        [whole] = attention_modules(sge)[layer.name].attention(x)
        mask = layer["mask"]
        spread = whole.values[0].flatten(1).std(1, correction=0)
        assert set(mask.groups) == set(spread.topk(3).indices.tolist())
        assert mask.group_count == 8
        torch.testing.assert_close(mask.values, whole.values[0][list(mask.groups)])
        torch.testing.assert_close(mask.mean, whole.values[0].mean(0))
        torch.testing.assert_close(layer.before, x[0].square().sum(0).sqrt())
        torch.testing.assert_close(layer.after, y[0].square().sum(0).sqrt())
        assert mask.neutral == 1
        assert not mask.values.requires_grad
    assert one["backbone.layer3.5.sge"].title == "SGE, c4, block 6"
    [named] = collect(sge, picture(), groups=[6, 1], layers="layer1.0.sge")
    assert [layer.name for layer in named] == ["backbone.layer1.0.sge"]
    assert named.layers[0]["mask"].groups == (6, 1)


def test_detections_are_those_of_the_model_and_neutral_those_without(sge):
    image = picture()
    [one] = collect(sge, [image], neutral=True)
    plain = detector(seed=0)
    weights = {k: v for k, v in sge.state_dict().items() if ".sge." not in k}
    plain.load_state_dict(weights)
    from mmdet.apis import inference_detector

    for found, model in ((one.detections, sge), (one.neutral, plain)):
        with DefaultScope.overwrite_default_scope("mmdet"):
            # it writes into the config how it reads an array: collect has to stand that
            expected = inference_detector(model, image).pred_instances
        np.testing.assert_allclose(found.scores, expected.scores.numpy(), atol=1e-6)
        np.testing.assert_allclose(found.boxes, expected.bboxes.numpy(), atol=1e-3)
        assert found.labels.tolist() == expected.labels.tolist()
        assert len(found)
        assert found.classes == ("circle", "square", "triangle")
    assert not np.allclose(one.detections.scores[:5], one.neutral.scores[:5])


def test_one_layer_alone_can_be_neutral(sge):
    image = picture()
    [one] = collect(sge, image, layers=[r"backbone\.layer4\..*"], neutral=True)
    partly = copy.deepcopy(sge)
    with torch.no_grad():
        for block in partly.backbone.layer4:
            block.sge.weight.zero_()
            block.sge.bias.zero_()
    [expected] = collect(partly, image)
    np.testing.assert_allclose(one.neutral.scores, expected.detections.scores, atol=1e-6)
    assert not [m for m in sge.modules() if m._forward_hooks]


def test_the_model_is_left_as_it_was(sge):
    before = copy.deepcopy(sge.state_dict())
    sge.train()
    try:
        modes = [m.training for m in sge.modules()]
        with pytest.raises(ValueError, match="cannot be read"):
            collect(sge, [__file__])
        collect(sge, picture())
        assert [m.training for m in sge.modules()] == modes
    finally:
        sge.eval()
    after = sge.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not [m for m in sge.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_files_are_read_as_the_test_pipeline_reads_them(sge, tmp_path):
    image = picture(90, 120)
    for name in ("a.png", "b/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), image)
    first, second, third = collect(sge, [str(tmp_path / "a.png"), tmp_path / "b/a.png", image])
    assert (first.name, second.name, third.name) == ("a", "a (2)", "image 3")
    assert np.array_equal(first.image, image[..., ::-1])
    assert first.path == tmp_path / "a.png"
    for layer, other in zip(first, third, strict=True):
        assert torch.equal(layer["mask"].values, other["mask"].values)


def test_channels_that_are_raised_and_lowered():
    model = awake(detector("se:ratio=4@c3"))
    [one] = collect(model, picture(), channels=3)
    layer = one["backbone.layer2.1.se"]
    gate = layer["channel gate"].values
    order = gate.argsort().tolist()
    assert list(layer.lowered.indices) == order[:3]
    assert list(layer.raised.indices) == order[::-1][:3]
    taken = []
    module = attention_modules(model)[layer.name]
    handle = module.register_forward_hook(lambda m, args, y: taken.append(args[0].clone()))
    collect(model, picture())
    handle.remove()
    torch.testing.assert_close(layer.raised.values, taken[0][0, order[::-1][:3]])


def test_a_non_local_is_asked_at_points_of_the_image():
    model = awake(detector("nonlocal:ratio=4@c4"))
    image = picture(128, 256)  # scaled by 1: 8 x 16 cells of 16 px, the first around pixel 0
    points = [(16.5, 32.5), (255.0, 0.0), (97.0, 111.0)]
    [one] = collect(model, image, queries=points)
    layer = one.layers[0]
    weights = layer["attention"]
    assert weights.queries.tolist() == [list(p) for p in points]
    assert weights.values.shape == (3, 8, 16)
    taken = []
    module = attention_modules(model)[layer.name]
    handle = module.register_forward_hook(lambda m, args, y: taken.append(args[0].clone()))
    [again] = collect(model, image)
    handle.remove()
    cells = torch.tensor([[2, 1], [0, 15], [7, 6]])
    [expected] = module.attention(taken[0], queries=cells)
    torch.testing.assert_close(weights.values, expected.values[0])
    assert set(layer.measures) == {"query distance (cosine)", "query distance (JSD)"}
    assert all(math.isfinite(v) and v > 0 for v in layer.measures.values())
    asked = again.layers[0]["attention"].queries
    assert len(asked) >= 2
    assert ((asked >= 0) & (asked <= torch.tensor([256.0, 128.0]))).all()


def test_a_head_that_runs_once_a_level_is_said_once_a_level():
    cfg = config(detector="retinanet")
    cfg.model = dict(
        type="mmattn.Attach",
        module=cfg.model,
        plugins=[dict(cfg=dict(type="mmattn.ECA"), after=r"bbox_head\.cls_convs\.0")],
    )
    model = build_model(cfg)
    model.cfg = cfg
    model.eval()
    [one] = collect(model, picture(256, 256))
    assert [layer.call for layer in one] == [0, 1, 2, 3, 4]
    assert [layer.label.rpartition(", ")[2] for layer in one] == [
        f"stride {s}" for s in (8, 16, 32, 64, 128)
    ]


def test_regions_of_interest_have_no_place_in_the_image():
    cfg = config()
    cfg.model = dict(
        type="mmattn.Attach",
        module=cfg.model,
        plugins=[
            dict(
                cfg=dict(type="mmattn.CBAM", ratio=2),
                after=r"roi_head\.bbox_roi_extractor",
                in_channels=48,
            )
        ],
    )
    model = build_model(cfg)
    model.cfg = cfg
    model.eval()
    [one] = collect(model, picture(128, 128))
    [layer] = one.layers
    assert layer.grid is None
    assert layer.before is None
    assert layer.raised is None
    assert [m.name for m in layer.maps] == ["channel gate"]
    assert layer["channel gate"].values.shape == (48,)


def test_one_region_of_interest_is_not_taken_for_the_image():
    cfg = config(**{"model.test_cfg.rpn.max_per_img": 1})
    head = dict(cfg=dict(type="mmattn.SE", ratio=2), in_channels=48)
    plugins = [head | dict(after=r"roi_head\.bbox_roi_extractor")]
    cfg.model = dict(type="mmattn.Attach", module=cfg.model, plugins=plugins)
    model = build_model(cfg)
    model.cfg = cfg
    [layer] = collect(model, picture(64, 64))[0].layers
    assert layer.grid is None
    assert layer.before is None


def test_a_plug_in_inside_a_block_that_chooses_is_seen_and_made_neutral():
    cfg = dict(type="mmattn.SGE", groups=4, identity_init=True)
    sge = dict(cfg=cfg, position="after_conv3")
    torch.manual_seed(0)
    model = mmattn.SKResNet(50, plugins=[sge], num_stages=1, strides=(1,), dilations=(1,),
                            out_indices=(0,))  # fmt: skip
    awake(model)
    model.eval()
    batch = torch.randn(1, 3, 32, 32)
    [one] = collect(model, batch)
    assert [(x.type, x.call) for x in one] == [("SGE", 0), ("SKBottleneck", 0)] * 3
    heard = []
    with torch.no_grad():
        with listening(attention_modules(model), lambda call: heard.append(len(call.maps()))):
            [y] = model(batch)  # asking a block for its shares runs what is in it
        with neutralized(model, r".*\.sge"):
            [other] = model(batch)
    assert heard == [1] * 6
    assert not torch.allclose(y, other)
    for block in model.layer1:
        block.sge.weight.data.zero_()
        block.sge.bias.data.zero_()
    with torch.no_grad():
        torch.testing.assert_close(other, model(batch)[0])


def test_calls_of_one_stride_are_numbered():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.se = mmattn.SE(32, ratio=4)

        def forward(self, x):
            return self.se(self.se(x))

    [one] = collect(Twice(), torch.randn(1, 32, 8, 8))
    assert [layer.label.rpartition(", ")[2] for layer in one] == ["call 1", "call 2"]


def test_a_wrapped_model_is_unwrapped(sge):
    image = picture()
    [expected] = collect(sge, image)
    for wrapped in (nn.DataParallel(sge), torch.compile(sge, backend="eager")):
        [one] = collect(wrapped, image)
        assert [x.name for x in one] == [x.name for x in expected]
        assert np.array_equal(one.detections.scores, expected.detections.scores)


def test_a_border_around_the_image_is_undone():
    """CenterNet's pipeline lays the image into the middle of a larger one, in floats."""
    model = detector("sge:groups=8")
    steps = model.cfg.test_dataloader.dataset.pipeline
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "border")
    pad = dict(type="RandomCenterCropPad", ratios=None, border=None, mean=[0, 0, 0],
               std=[1, 1, 1], to_rgb=True, test_mode=True, test_pad_mode=["logical_or", 31],
               test_pad_add_pix=1)  # fmt: skip
    model.cfg.test_dataloader.dataset.pipeline = [
        dict(steps[0], to_float32=True), dict(type="Resize", scale_factor=1.0),
        pad, dict(type="mmdet.PackDetInputs", meta_keys=keys)
    ]  # fmt: skip
    image = picture(90, 120)
    [one] = collect(model, image)
    assert np.array_equal(one.image, image[..., ::-1])
    placement = one.placement
    assert placement.content_size == (90, 120)
    assert placement.input_size == (96, 128)
    taken = []
    handle = model.backbone.register_forward_pre_hook(lambda m, args: taken.append(args[0]))
    collect(model, image)
    handle.remove()
    grid = Grid((1.0, 1.0), (0.0, 0.0))
    back = one.on_image(taken[0][0], grid)
    mean, std = (getattr(model.data_preprocessor, key).view(-1, 1, 1) for key in ("mean", "std"))
    expected = (torch.tensor(one.image.copy()).permute(2, 0, 1) - mean) / std
    np.testing.assert_allclose(back, expected, atol=1e-4)


def test_classes_without_names_are_numbered(sge):
    model = copy.copy(sge)
    model.dataset_meta = dict(classes=None)
    [one] = collect(model, picture(), neutral=True)
    assert max(one.detections.labels.max(), one.neutral.labels.max()) == 2
    assert one.detections.classes == one.neutral.classes == ("class 0", "class 1", "class 2")


def test_wrong_points_and_groups_are_said(sge):
    model = detector("nonlocal:ratio=4@c5")
    with pytest.raises(ValueError, match=r"1200,8 lies outside .* x from 0 to 140 and y from 0"):
        collect(model, picture(), queries=[(3, 4), (1200, 8)])
    with pytest.raises(ValueError, match="groups 8, 99: a map has 8 groups, numbered from 0 to 7"):
        collect(sge, picture(), groups=[8, 99])
    [one] = collect(sge, picture(), groups=[99, 7])
    assert one.layers[0]["mask"].groups == (7,)


def test_points_that_are_asked_by_themselves_lie_apart():
    boxes = np.array([[0, 0, 100, 100], [2, 0, 102, 100], [60, 40, 100, 100], [0, 0, 200, 100.0]])
    found = Detections(boxes, np.array([0.9, 0.8, 0.7, 0.6]), np.zeros(4, int), ("a",))
    first, second, third, far = _points(Placement((100, 200)), found)
    assert (first, second, third) == ((50, 50), (80, 70), (100, 50))
    assert far[0] > 170  # no place is outside all boxes: the farthest from the other points
    assert len(_points(Placement((100, 200)), None)) == 4
    narrow = Detections(boxes[:1], np.ones(1), np.zeros(1, int), ("a",))
    assert _points(Placement((100, 200)), narrow)[1][0] > 180


def test_any_model_takes_a_batch():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
    )
    mmattn.attach(model, [dict(cfg=dict(type="mmattn.SGE", groups=4), after="2")])
    batch = torch.randn(2, 3, 40, 56)
    first, second = collect(model, batch)
    assert first.detections is None
    assert second.name == "image 2"
    [layer] = second.layers
    assert layer["mask"].grid.stride == (4.0, 4.0)
    assert layer["mask"].grid.exact
    with torch.no_grad():
        x = model[2][0](model[1](model[0](batch[1:]))).relu()
        expected = layer["mask"].values
        module = next(iter(attention_modules(model).values()))
        [whole] = module.attention(x)
    torch.testing.assert_close(expected, whole.values[0][list(layer["mask"].groups)])


def test_what_is_wrong_is_one_sentence(sge, tmp_path):
    plain = detector()
    with pytest.raises(ValueError, match=r"no inserted module .* it was trained with"):
        collect(plain, picture())
    with pytest.raises(ValueError, match=r"no inserted module"), neutralized(plain):
        pass
    with pytest.raises(
        ValueError, match=r"'layer1.0.sg' is none of the 16 .*backbone.layer1.0.sge"
    ):
        collect(sge, picture(), layers=["layer1.0.sg"])
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture")
    for path, text in (
        (broken, "cannot be read as an image"),
        (tmp_path / "no.jpg", "not exist"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(ValueError, match=rf"{path}.*{text}"):
            collect(sge, [path])
    with pytest.raises(TypeError, match=r"one in torch.bfloat16: give model.float\(\)"):
        collect(copy.deepcopy(sge).bfloat16(), picture())
    augmented = copy.copy(sge)
    augmented.cfg = copy.deepcopy(sge.cfg)
    dataset = augmented.cfg.test_dataloader.dataset
    load, *others = dataset.pipeline
    ways = [[step] for step in others if "Annotations" not in step["type"]]
    dataset.pipeline = [load, dict(type="TestTimeAug", transforms=ways)]
    with pytest.raises(ValueError, match="without TestTimeAug"):
        collect(augmented, picture())
    with pytest.raises(TypeError, match="8 bits, got float32"):
        collect(sge, picture().astype(np.float32))
    with pytest.raises(TypeError, match="files or arrays"):
        collect(sge, [3])
    with pytest.raises(TypeError, match="without cfg"):
        collect(nn.Sequential(mmattn.SE(32)), ["a.png"])
    with pytest.raises(TypeError, match="files or arrays for a detector"):
        collect(sge, torch.zeros(1, 3, 8, 8))
    with pytest.raises(TypeError, match=r"\(N, 3, H, W\), got"):
        collect(nn.Sequential(mmattn.SE(32)), torch.zeros(3, 8, 8))
    with pytest.raises(PreflightError, match="has no images"):
        image_files([str(_empty(tmp_path))])
    with pytest.raises(PreflightError, match="does not exist"):
        image_files([str(tmp_path / "no.jpg")])


def _empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def test_a_pipeline_that_cuts_the_image_is_refused(sge):
    model = copy.copy(sge)
    model.cfg = copy.deepcopy(sge.cfg)
    steps = model.cfg.test_dataloader.dataset.pipeline
    steps.insert(2, dict(type="CenterCrop", crop_size=(64, 64)))
    with pytest.raises(ValueError, match="the test pipeline cuts the image"):
        collect(model, picture(128, 128))


def test_chosen_layers():
    modules = {"backbone.layer1.0.sge": 1, "backbone.layer1.1.sge": 2, "neck.sge": 3}
    assert list(chosen(modules, None)) == list(modules)
    assert list(chosen(modules, r".*layer1.*")) == list(modules)[:2]
    assert list(chosen(modules, ["neck.sge", "layer1.0.sge"])) == [*modules][::2]
    with pytest.raises(ValueError, match="there are backbone"):
        chosen(modules, "[")
    assert list(chosen(modules, "layer1")) == list(modules)[:2]
    assert list(chosen(modules, "backbone.layer1.1")) == [*modules][1:2]
    many = {f"backbone.layer1.{i}.sge": i for i in range(9)}
    with pytest.raises(ValueError, match=r"there are \S+\.0\.sge, \.\.\., \S+\.8\.sge$"):
        chosen(many, "xyz")


def test_a_model_is_loaded_with_its_weights_and_classes(sge, tmp_path):
    sge_cfg = tmp_path / "sge.py"
    sge.cfg.dump(sge_cfg)
    path = tmp_path / "iter_1.pth"
    torch.save(
        dict(meta=dict(dataset_meta=dict(CLASSES=("a", "b", "c"))), state_dict=sge.state_dict()),
        path,
    )
    model = load_model(sge_cfg, path)
    assert not model.training
    assert model.dataset_meta["classes"] == ("a", "b", "c")
    image = picture()
    [one], [other] = collect(model, image), collect(sge, image)
    assert np.array_equal(one.detections.scores, other.detections.scores)
    torch.save(sge.state_dict(), path)  # without meta: from the config
    assert load_model(sge_cfg, path).dataset_meta["classes"] == ("circle", "square", "triangle")
    plain = detector()
    torch.save(dict(state_dict=plain.state_dict()), path)
    with pytest.raises(PreflightError, match="does not fit the model: it lacks"):
        load_model(sge_cfg, path)
    if not torch.cuda.is_available():
        with pytest.raises(PreflightError, match="finds no CUDA device"):
            load_model(sge_cfg, path, device="cuda")
    with pytest.raises(PreflightError, match="has no whole checkpoint"):
        load_model(sge_cfg, tmp_path / "..")
