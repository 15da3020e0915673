"""Grad-CAM of a detector's boxes, against finite differences of the detector's own scores."""

import copy
import functools
import logging
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

pytest.importorskip("pytorch_grad_cam", reason="needs the extra cam: pip install 'mmattn[cam]'")

from mmattn.visualization import class_activation as module
from mmattn.visualization.class_activation import (
    METHODS,
    CamMap,
    LogOdds,
    Scorer,
    draw_grad_cam,
    grad_cam,
)
from mmattn.visualization.geometry import Grid, Placement
from mmattn.visualization.images import prepare

CLASSES = ("circle", "square", "triangle")
IMAGE = np.random.default_rng(0).integers(0, 255, (48, 60, 3), dtype=np.uint8)
PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(80, 64), keep_ratio=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
CONFIGS = {
    "faster": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco",
    "cascade": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco",
    "mask": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco",
    "retina": "retinanet/retinanet_r50_fpn_1x_coco",
    "fcos": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco",
    "atss": "atss/atss_r50_fpn_1x_coco",
    "yolox": "yolox/yolox_s_8xb8-300e_coco",
    "detr": "detr/detr_r50_8xb2-150e_coco",
}


def small(kind: str, cfg) -> None:
    """Makes a model's config small: 8 channels, 3 classes."""
    cfg.data_preprocessor.pop("batch_augments", None)
    cfg.data_preprocessor.pad_size_divisor = 32
    if kind == "yolox":
        cfg.backbone.update(deepen_factor=0.33, widen_factor=0.125)
        cfg.neck.update(in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1)
        cfg.bbox_head.update(num_classes=3, in_channels=32, feat_channels=32)
        cfg.test_cfg.score_thr = 0.0
        return
    stages = (3,) if kind == "detr" else (0, 1, 2, 3)
    cfg.backbone = dict(
        type="ResNet", depth=18, base_channels=8, out_indices=stages, norm_cfg=dict(type="BN")
    )
    if kind == "detr":
        cfg.neck.update(in_channels=[64], out_channels=16)
        cfg.update(num_queries=10)
        for part in (cfg.encoder, cfg.decoder):
            part.num_layers = 1
            for key in {"self_attn_cfg", "cross_attn_cfg"} & set(part.layer_cfg):
                part.layer_cfg[key].update(embed_dims=16, num_heads=2)
            part.layer_cfg.ffn_cfg.update(embed_dims=16, feedforward_channels=16)
        cfg.positional_encoding.num_feats = 8
        cfg.bbox_head.update(num_classes=3, embed_dims=16)
        cfg.test_cfg.max_per_img = 5
        return
    cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    if "roi_head" not in cfg:
        norm = dict(type="GN", num_groups=4)
        cfg.bbox_head.update(in_channels=8, feat_channels=8, num_classes=3, stacked_convs=1)
        cfg.bbox_head.update(dict(norm_cfg=norm) if kind != "retina" else {})
        cfg.test_cfg.update(score_thr=0.0, nms_pre=50, max_per_img=5)
        return
    head = cfg.roi_head
    cfg.rpn_head.update(in_channels=8, feat_channels=8)
    head.bbox_roi_extractor.out_channels = 8
    for one in head.bbox_head if isinstance(head.bbox_head, list) else [head.bbox_head]:
        one.update(in_channels=8, fc_out_channels=16, num_classes=3)
    if kind == "mask":
        head.mask_roi_extractor.out_channels = 8
        head.mask_head.update(in_channels=8, conv_out_channels=8, num_classes=3, num_convs=1)
    cfg.test_cfg.rpn.update(nms_pre=20, max_per_img=20)
    cfg.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)


@functools.cache
def _built(kind: str) -> nn.Module:
    cfg = get_config(f"mmdet::{CONFIGS[kind]}.py").model
    small(kind, cfg)
    torch.manual_seed(0)
    logging.disable(logging.INFO)  # init_weights lists every parameter
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg)
        model.init_weights()
    logging.disable(logging.NOTSET)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p) * (p.abs().mean() + 0.1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return finish(model)


def finish(model: nn.Module) -> nn.Module:
    model.cfg = Config(dict(default_scope="mmdet", test_pipeline=PIPELINE))
    model.dataset_meta = dict(classes=CLASSES)
    return model.eval()


@pytest.fixture
def detector():
    """A model of a kind in float64, which a test leaves as it was."""
    return lambda kind: _built(kind).double()


def score_with(model, layer, cell, factor, index, regions) -> float:
    """The log-odds of a detection where a cell of a layer's map is ``factor`` times itself.

    The regions of interest stay those of ``regions``: their places have no gradient.
    """
    name, _, number = layer.partition("[")
    number = int(number[:-1]) if number else None

    def change(module, args, output):
        maps = [output] if number is None else list(output)
        maps[number or 0] = maps[number or 0].clone()
        maps[number or 0][:, :, cell[0], cell[1]] *= factor
        return maps[0] if number is None else tuple(maps)

    left = iter(regions)
    handles = [model.get_submodule(name).register_forward_hook(change)]
    for extractor in extractors(model):
        handles.append(extractor.register_forward_pre_hook(lambda m, args: (args[0], next(left))))
    [image] = prepare(model, IMAGE)
    with torch.no_grad():
        scores = Scorer(model, image.samples)(image.inputs.double())[0]
    for handle in handles:
        handle.remove()
    return LogOdds(index)(scores).item()


def extractors(model) -> list[nn.Module]:
    return [m for m in model.modules() if type(m).__name__ == "SingleRoIExtractor"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_cell_has_what_the_score_gains_when_the_cell_grows(detector, kind):
    model = detector(kind)
    regions = []
    handles = [
        extractor.register_forward_pre_hook(lambda m, args: regions.append(args[1].detach()))
        for extractor in extractors(model)
    ]
    stage = "backbone.stage3" if kind == "yolox" else "backbone.layer3"
    found = grad_cam(model, IMAGE, [stage, "neck"], score=0.0, limit=2)
    for handle in handles:
        handle.remove()
    assert [one.index for one in found] == [0, 1]
    for one in (found[0].maps[0], found[-1].maps[-1]):
        box = found[0] if one is found[0].maps[0] else found[-1]
        assert one.depends
        assert one.maximum > 0
        raw = one.values.double() * one.maximum
        most, least = int(raw.argmax()), int(raw.argmin())
        second = int(raw.flatten().argsort()[-2:][0])
        for cell in {most, second, least}:
            place = divmod(cell, raw.shape[1])
            up, down = (
                score_with(model, one.title.split(",")[0], place, 1 + t, box.index, regions)
                for t in (1e-5, -1e-5)
            )
            gain = (up - down) / 2e-5
            assert raw[place] == pytest.approx(
                max(gain, 0), rel=1e-4, abs=2e-6 * one.maximum + 1e-9
            )


def test_grad_cam_is_that_of_the_papers_equation(detector):
    model = detector("retina")
    [found] = grad_cam(model, IMAGE, "backbone.layer3", boxes=1, method="gradcam")
    kept = []

    def keep(layer, args, output):
        output.retain_grad()
        kept.append(output)

    handle = model.backbone.layer3.register_forward_hook(keep)
    [image] = prepare(model, IMAGE)
    scores = Scorer(model, image.samples)(image.inputs.double())[0]
    handle.remove()
    with torch.enable_grad():
        torch.log(scores[1] / (1 - scores[1])).backward()
    model.zero_grad()
    a, g = kept[0].detach()[0], kept[0].grad[0]
    wanted = torch.zeros(a.shape[1:], dtype=torch.float64)
    for channel in range(len(a)):
        wanted += g[channel].mean() * a[channel]
    wanted = wanted.clamp(min=0)
    one = found["backbone.layer3"]
    assert 0 < (wanted > 0).sum() < wanted.numel()
    assert one.maximum == pytest.approx(wanted.max().item(), rel=1e-9)
    assert torch.allclose(one.values.double(), wanted / wanted.max(), atol=1e-6)
    assert found.score == pytest.approx(scores[1].item())


@pytest.mark.parametrize("method", METHODS)
def test_the_library_run_by_itself_shows_the_same(detector, method):
    import cv2
    import pytorch_grad_cam

    model = detector("atss")
    [found] = grad_cam(model, IMAGE, "backbone.layer3", boxes=0, method=method)
    [image] = prepare(model, IMAGE)
    scorer = Scorer(model, image.samples)
    cls = getattr(pytorch_grad_cam, METHODS[method][1])
    with cls(model=scorer, target_layers=[model.backbone.layer3]) as cam:
        [theirs] = cam(image.inputs.double(), targets=[LogOdds(0)])
    model.zero_grad()
    [one] = found.maps
    ours = one.values.numpy()
    assert ours.max() == 1
    ours = (ours - ours.min()) / (ours.max() - ours.min())
    ours = cv2.resize(ours, theirs.shape[::-1])
    ours = (ours - ours.min()) / (ours.max() - ours.min())
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


class Bright(nn.Module):
    """A detector whose evidence is known: a box's score is the brightness of cells inside it.

    ``features`` has stride 8; the box is where the first bright square was drawn.
    """

    box = (24.0, 40.0, 48.0, 64.0)  # of the input: columns 24 to 48, rows 40 to 64

    def __init__(self):
        super().__init__()
        with DefaultScope.overwrite_default_scope("mmdet"):
            self.data_preprocessor = MODELS.build(
                dict(type="DetDataPreprocessor", mean=[0] * 3, std=[255] * 3, pad_size_divisor=64)
            )
        self.features = nn.Conv2d(3, 2, 8, 8, bias=False)
        nn.init.constant_(self.features.weight, 1 / 192)
        self.bias = nn.Parameter(torch.tensor(-2.5))
        self.spare = nn.Conv2d(2, 2, 1)
        self.flat = nn.Flatten()
        finish(self)

    def forward(self, inputs, samples=None, mode="predict"):
        return self.predict(inputs, samples)

    def predict(self, inputs, samples, rescale=True):
        features = self.features(inputs)
        self.flat(features)
        left, top, right, bottom = (int(v) // 8 for v in self.box)
        inside = features[0, :, top:bottom, left:right].clone()
        features.relu_()  # in place, after the layer
        scores = torch.stack([self.bias.sigmoid(), (0.5 * inside.sum() + self.bias).sigmoid()])
        boxes = inputs.new_tensor([(0, 0, 9, 9), self.box])  # in no order
        found = InstanceData(bboxes=boxes, scores=scores, labels=torch.tensor([7, 1]))
        return [DetDataSample(pred_instances=found)]


def drawn() -> np.ndarray:
    """Two bright squares on black, (64, 80): one in the box of Bright, one elsewhere."""
    image = np.zeros((64, 80, 3), np.uint8)
    image[44:60, 28:44] = 200
    image[4:20, 56:72] = 255
    return image


def test_the_map_lies_on_what_the_score_comes_from():
    model = Bright()
    image = drawn()
    [found] = grad_cam(model, image, "features")
    [one] = found.maps
    assert found.box == pytest.approx(Bright.box)
    assert (found.label, found.class_name, found.index) == (1, "square", 0)
    assert one.grid == Grid((8.0, 8.0), (3.5, 3.5))
    assert found.placement == Placement(
        (64, 80), (1.0, 1.0), (64, 80), (0.0, 0.0), input_size=(64, 128)
    )
    shown = found.on_image(one)
    row, column = divmod(int(shown.argmax()), shown.shape[1])
    assert 44 <= row < 60
    assert 28 <= column < 44
    # the other square is brighter, and has nothing to do with the box
    assert shown[:30, 50:].max() == 0
    # the mean of Grad-CAM's weights knows no place: the caveat in the documentation
    [mean] = grad_cam(model, image, "features", method="gradcam")
    assert np.unravel_index(mean.on_image(mean.maps[0]).argmax(), (64, 80))[0] < 20


def test_a_box_of_a_scaled_and_mirrored_image_lies_on_it():
    placement = Placement((100, 200), (0.5, 0.25), (50, 50), (3.0, 4.0), (False, True))
    # columns 10 to 20 of the content, counted from the right
    box = torch.tensor([4.0 + 30, 3.0 + 5, 4.0 + 40, 3.0 + 15])
    assert module._to_image(box, placement) == pytest.approx((40, 10, 80, 30))


@pytest.mark.parametrize("logit", [12.5, 17.9])
def test_a_score_that_float32_cannot_tell_from_1(detector, logit):
    model = detector("retina")
    layers = ["neck", "bbox_head.cls_convs.0"]
    head = model.bbox_head.retina_cls
    before = {key: value.clone() for key, value in head.state_dict().items()}
    try:
        with torch.no_grad():
            head.weight.mul_(800)
            [found] = grad_cam(model, IMAGE, layers, boxes=0)
            head.bias.add_(logit - np.log(found.score / (1 - found.score)))
        [wanted] = grad_cam(model, IMAGE, layers, boxes=0)
        model.float()
        tensors = {id(t) for t in (*model.parameters(), *model.buffers())}
        data = [p.data_ptr() for p in model.parameters()]
        [found] = grad_cam(model, IMAGE, layers, boxes=0)
        assert {id(t) for t in (*model.parameters(), *model.buffers())} == tensors
        assert [p.data_ptr() for p in model.parameters()] == data
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert np.log(found.score / (1 - found.score)) == pytest.approx(logit, rel=1e-3)
        assert found.box == pytest.approx(wanted.box, rel=1e-3)
        for one, other in zip(found.maps, wanted.maps, strict=True):
            assert one.maximum == pytest.approx(other.maximum, rel=1e-4)
            assert torch.allclose(one.values, other.values, atol=1e-4)
    finally:
        model.double()
        head.load_state_dict(before)


def test_a_model_in_half_precision(detector):
    model = copy.deepcopy(detector("retina")).half()
    weights = [p.clone() for p in model.parameters()]
    [found] = grad_cam(model, IMAGE, "neck", boxes=0)
    assert all(map(torch.equal, model.parameters(), weights))
    [wanted] = grad_cam(model.double(), IMAGE, "neck", boxes=0)
    assert found.score == pytest.approx(wanted.score, rel=1e-6)
    assert torch.allclose(found.maps[0].values, wanted.maps[0].values, atol=1e-5)


def test_soft_nms_has_no_gradient(detector, monkeypatch):
    model = detector("faster")
    config = dict(type="soft_nms", iou_threshold=0.5)
    monkeypatch.setitem(model.roi_head.test_cfg, "nms", config)
    with pytest.raises(ValueError, match=r"of detection 0 has no gradient.* use type='nms'"):
        grad_cam(model.float(), IMAGE, "neck", boxes=0)


def test_a_detection_is_found_again_by_its_class_and_box():
    def run(boxes, labels):
        boxes, labels = torch.tensor(boxes), torch.tensor(labels)
        return SimpleNamespace(boxes=boxes, labels=labels, scores=torch.ones(len(labels)))

    old = run([[0.0, 0, 10, 10], [20.0, 20, 40, 40]], [1, 1])
    new = run([[20.0, 20, 41, 40], [0.0, 0, 10, 10], [0.0, 0, 10, 9]], [1, 2, 1])
    assert [module._same(new, old, index) for index in (0, 1)] == [2, 0]
    with pytest.raises(ValueError, match=r"detection 1 has a score of 1.0000000, whose gradient"):
        module._same(run([[20.0, 20, 41, 40]], [2]), old, 1)


def test_a_score_of_one_has_no_map():
    model = Bright()
    nn.init.constant_(model.bias, 60.0)
    with pytest.raises(ValueError, match=r"the score of detection 0 is 1 to twelve digits"):
        grad_cam(model, drawn(), "features")


def test_the_model_is_as_it_was(detector):
    model = detector("mask")
    model.train()
    model.backbone.layer2.eval()
    model.backbone.layer2.requires_grad_(False)  # frozen layers have maps too
    model.backbone.layer3[0].with_cp = True
    p = model.backbone.layer3[0].conv1.weight
    p.grad = torch.full_like(p, 3.0)
    state = [
        [(n, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), set(vars(m)))
         for n, m in model.named_modules()],
        [(n, q.requires_grad, q.data_ptr()) for n, q in model.named_parameters()],
    ]  # fmt: skip
    values = [t.clone() for t in model.state_dict().values()]
    names = ["backbone.layer2", "backbone.layer3.0", "backbone.layer3.0.conv1"]

    def now():
        return [
            [(n, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), set(vars(m)))
             for n, m in model.named_modules()],
            [(n, q.requires_grad, q.data_ptr()) for n, q in model.named_parameters()],
        ]  # fmt: skip

    from mmdet.models.dense_heads import base_dense_head
    from mmdet.models.utils import misc

    try:
        found = grad_cam(model, IMAGE, names, boxes=[1, 0])
        assert [one.index for one in found] == [1, 0]
        assert all(one.depends and one.maximum > 0 for box in found for one in box.maps)
        with pytest.raises(ValueError, match="no detection 9"):
            grad_cam(model, IMAGE, names, boxes=9)
        assert now() == state
        assert all(map(torch.equal, model.state_dict().values(), values))
        assert torch.equal(p.grad, torch.full_like(p, 3.0))
        assert [n for n, q in model.named_parameters() if q.grad is not None] == [
            "backbone.layer3.0.conv1.weight"
        ]
        assert model.backbone.layer3[0].with_cp is True
        assert "predict_mask" not in vars(model.roi_head)
        assert base_dense_head.select_single_mlvl is misc.select_single_mlvl
        assert misc.select_single_mlvl.__name__ == "select_single_mlvl"
        one = torch.ones(1, requires_grad=True)
        assert not misc.select_single_mlvl([one[None]], 0)[0].requires_grad
    finally:
        p.grad = None
        model.backbone.layer3[0].with_cp = False
        model.requires_grad_(True).eval()


def test_of_a_shared_head_the_calls_that_matter(detector):
    model = detector("retina")
    found = grad_cam(model, IMAGE, "bbox_head.cls_convs.0", score=0.0, limit=5)
    for box in found:
        [one] = box.maps
        assert one.calls == 5
        assert one.title == f"bbox_head.cls_convs.0, call {one.call + 1}"
        # the level the box is from, by the size of its map
        assert one.values.shape == (-(-64 // 2 ** (3 + one.call)), -(-96 // 2 ** (3 + one.call)))
        assert box[one.title] is one
        with pytest.raises(KeyError, match=r"no map of 'neck'; there are bbox_head"):
            box["neck"]


def test_names_of_layers(detector):
    model = detector("retina")
    found = grad_cam(model, IMAGE, ["layer3.1.conv2", r"backbone\.layer[12]"], boxes=0)
    assert [one.layer for one in found[0].maps] == [
        "backbone.layer3.1.conv2",
        "backbone.layer1",
        "backbone.layer2",
    ]
    [box] = grad_cam(model, IMAGE, "neck", boxes=0)
    [one] = box.maps
    [again] = grad_cam(model, IMAGE, one.layer, boxes=0)
    assert torch.equal(again.maps[0].values, one.values)


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ("backbone.layer4.1.conv9", r"no layer 'backbone.layer4.1.conv9'; did you mean backbone"),
        ("backbone.layr4", r"no layer 'backbone.layr4'; did you mean backbone.layer4"),
        ("qqq", r"no layer 'qqq'; its parts are data_preprocessor, backbone, neck, bbox_head"),
        ([], r"no layer was named"),
        ("neck[9]", r"'neck' gives no map of number 9; it has neck\[0\], neck\[1\]"),
        ("backbone.layer4[1]", r"'backbone.layer4' gives no map of number 1; it gives one map"),
        ("bbox_head.loss_cls", r"'bbox_head.loss_cls' did not run in the prediction"),
        ("bbox_head.retina_reg", r"score of detection 0 and 1 does not depend on layer bbox_head"),
    ],
)
def test_layers_that_give_no_map(detector, layers, sentence):
    with pytest.raises(ValueError, match=sentence):
        grad_cam(detector("retina"), IMAGE, layers, boxes=[0, 1])


def test_outputs_that_are_no_map(detector):
    with pytest.raises(ValueError, match=r"no map of the image: expected .* got \(1, 256\)\."):
        grad_cam(Bright(), drawn(), "flat")
    with pytest.raises(ValueError, match=r"got \(20, 8, 7, 7\): one for each region"):
        grad_cam(detector("faster"), IMAGE, "bbox_roi_extractor", boxes=0)
    with pytest.raises(ValueError, match=r"'spare' did not run"):
        grad_cam(Bright(), drawn(), "spare")


def test_a_layer_that_only_some_boxes_depend_on():
    found = grad_cam(Bright(), drawn(), "features", boxes=[0, 1])
    assert [box.maps[0].depends for box in found] == [True, False]
    assert found[1].maps[0].maximum == 0
    assert not found[1].maps[0].values.any()
    assert found[1].class_name == "class 7"
    texts = [t.get_text() for t in draw_grad_cam(found[1]).axes[1].texts]
    assert texts == ["no influence\non the score"]
    with pytest.raises(ValueError, match=r"the score of detection 1 does not depend on layer feat"):
        grad_cam(Bright(), drawn(), "features", boxes=1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            dict(score=0.999),
            r"nothing with a score of at least 0.999; the highest score is 0\.\d{3}\.$",
        ),
        (dict(boxes=2), r"no detection 2 in this image: they are 0 to 1; the highest score is"),
        (dict(boxes=-1), r"no detection -1 "),
        (dict(boxes=[]), r"boxes names no detection"),
        (dict(method="eigencam"), r"method must be one of 'hirescam', .* got 'eigencam'"),
    ],
)
def test_detections_that_do_not_exist(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        grad_cam(Bright(), drawn(), "features", **options)


@pytest.mark.parametrize(
    ("best", "limit", "words"),
    [
        (0.99997, 0.99999, "at least 0.99999; the highest score is 0.99997."),
        (0.25, 0.3, "at least 0.3; the highest score is 0.250."),
        (0.9999, 1, "at least 1; the highest score is 0.9999."),
    ],
)
def test_the_highest_score_is_below_the_limit(best, limit, words):
    run = SimpleNamespace(scores=torch.tensor([best], dtype=torch.float64))
    with pytest.raises(ValueError, match=re.escape(words)):
        module._chosen(run, None, limit, 5)


def test_nothing_found(detector):
    model = detector("retina")
    threshold = model.bbox_head.test_cfg.score_thr
    model.bbox_head.test_cfg.score_thr = 0.99
    try:
        with pytest.raises(ValueError, match="at least 0.3, nor anything else in this image"):
            grad_cam(model, IMAGE, "neck")
        with pytest.raises(ValueError, match="no detection 0 in this image: there are none"):
            grad_cam(model, IMAGE, "neck", boxes=0)
    finally:
        model.bbox_head.test_cfg.score_thr = threshold


def test_what_is_no_detector_or_image(monkeypatch):
    with pytest.raises(TypeError, match=r"needs a detector of mmdet.* got Conv2d"):
        grad_cam(nn.Conv2d(3, 2, 1), IMAGE, "x")
    with pytest.raises(TypeError, match=r"expects one image.* got list"):
        grad_cam(Bright(), [IMAGE], "features")
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ImportError, match=r"pip install 'mmattn\[cam\]'"):
        grad_cam(Bright(), IMAGE, "features")


def test_the_picture():
    [found] = grad_cam(Bright(), drawn(), "features")
    figure = draw_grad_cam(found)
    figure.canvas.draw()
    picture, panel, bar = figure.axes
    assert figure.get_suptitle() == f"HiResCAM of square, score {found.score:.2f}"
    assert picture.get_title() == found.name
    assert panel.get_title() == "features\n8 \u00d7 16 cells"
    assert " ".join(bar.get_ylabel().split()) == "relative to each map's maximum"
    assert bar.get_ylim() == (0, 1)
    # the image as it is, on the same pixels as the map and the box
    np.testing.assert_allclose(picture.images[0].get_array(), drawn()[..., ::-1] / 255)
    for axis in (picture, panel):
        assert axis.images[0].get_extent() == [0, 80, 64, 0]
        corners = {tuple(patch.get_bbox().extents.tolist()) for patch in axis.patches}
        assert corners == {found.box}
    shown = np.asarray(panel.images[0].get_array())
    assert shown[52, 36, 0] > 0.8 > 0.4 > shown[52, 36, 2]  # cividis: from blue to yellow
    assert shown[12, 64, 0] < shown[12, 64, 2]
    assert not panel.texts


def test_what_stands_over_the_panels():
    assert module._score(0.97) == "0.97"
    assert module._score(0.99999) == "0.999"
    names = {"a" * 3: 1, "neck[1]": 1, "bbox_head.cls_convs.0": 5}
    made = [CamMap(name, torch.zeros(4, 5), 0, True, None, 2, n) for name, n in names.items()]
    assert [one.title for one in made] == ["aaa", "neck[1]", "bbox_head.cls_convs.0, call 3"]
