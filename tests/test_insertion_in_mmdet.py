"""mmdet's own configs with SGE inserted all over compute exactly what they computed before."""

import contextlib

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

import mmattn
from mmattn.inspection import config_file

RESNET = r"backbone\.layer\d\.\d+"
FPN = r"neck\.(lateral|fpn)_convs\.\d+"
RPN = r"rpn_head\.rpn_conv"
ROI = r"roi_head\.bbox_roi_extractor"
MASK = r"roi_head\.mask_head\.convs\.\d+"
TOWERS = r"bbox_head\.(cls|reg)_convs\.\d+"
CSP = r"backbone\.stage\d\.1"
# patterns, one for each insertion; a pair adds the other keys of the insertion
CONFIGS = {
    # one stage
    "retinanet/retinanet_r18_fpn_1x_coco.py": [RESNET, r"backbone\.layer\d\.\d\.bn2", FPN, TOWERS],
    "retinanet/retinanet_r50_fpn_1x_coco.py": [RESNET, TOWERS],
    "retinanet/retinanet_x101-32x4d_fpn_1x_coco.py": [RESNET],
    "regnet/retinanet_regnetx-800MF_fpn_1x_coco.py": [RESNET, FPN],
    "pvt/retinanet_pvt-t_fpn_1x_coco.py": [(r"backbone\.layers\.\d\.1\.\d", dict(layout="NLC"))],
    "pvt/retinanet_pvtv2-b0_fpn_1x_coco.py": [("backbone", dict(index=1)), FPN],
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py": [RESNET, FPN, TOWERS],
    "atss/atss_r50_fpn_1x_coco.py": [RESNET, FPN, TOWERS],
    "gfl/gfl_r50_fpn_1x_coco.py": [FPN, TOWERS],
    "paa/paa_r50_fpn_1x_coco.py": [RESNET, TOWERS],
    "vfnet/vfnet_r50_fpn_1x_coco.py": [FPN, TOWERS],
    "tood/tood_r50_fpn_1x_coco.py": [FPN, r"bbox_head\.inter_convs\.\d"],
    "ddod/ddod_r50_fpn_1x_coco.py": [FPN, TOWERS],
    "autoassign/autoassign_r50-caffe_fpn_1x_coco.py": [FPN, TOWERS],
    "foveabox/fovea_r50_fpn_4xb4-1x_coco.py": [FPN, TOWERS],
    "free_anchor/freeanchor_r50_fpn_1x_coco.py": [RESNET, TOWERS],
    "reppoints/reppoints-moment_r50_fpn_1x_coco.py": [RESNET, TOWERS],
    "yolof/yolof_r50-c5_8xb8-1x_coco.py": [RESNET, r"neck\.dilated_encoder_blocks\.\d"],
    "centernet/centernet-update_r50-caffe_fpn_ms-1x_coco.py": [RESNET, FPN],
    "yolo/yolov3_d53_8xb8-320-273e_coco.py": [r"backbone\..*\.res\d", r"neck\.detect\d"],
    "yolox/yolox_tiny_8xb8-300e_coco.py": [CSP, r"neck\.out_convs\.\d"],
    "yolox/yolox_s_8xb8-300e_coco.py": [r"backbone\.stage4", r"bbox_head\..*_cls_convs\.\d"],
    "rtmdet/rtmdet_tiny_8xb32-300e_coco.py": [CSP, r"neck\.(top_down|bottom_up)_blocks\.\d"],
    "ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py": [r"backbone\.layer\d\.\d"],
    "efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py": [r"backbone\.layers\.[1-5]\.\d"],
    # transformers at the end
    "detr/detr_r18_8xb2-500e_coco.py": [RESNET, r"neck\.convs\.\d"],
    "conditional_detr/conditional-detr_r50_8xb2-50e_coco.py": [RESNET, r"neck\.convs\.\d"],
    "dab_detr/dab-detr_r50_8xb2-50e_coco.py": [RESNET],
    "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py": [r"neck\.(extra_)?convs\.\d"],
    "dino/dino-4scale_r50_8xb2-12e_coco.py": [RESNET, r"neck\.(extra_)?convs\.\d"],
    # two stages
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py": [RESNET, FPN, RPN, ROI],
    "faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py": [RESNET, RPN],
    "faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py": [r"backbone\.layer\d\.\d", RPN],
    "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py": [RESNET, r"roi_head\.bbox_roi_extractor\.\d"],
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py": [RESNET, FPN, RPN, ROI, MASK],
    "pafpn/faster-rcnn_r50_pafpn_1x_coco.py": [r"neck\.(lateral|fpn|downsample|pafpn)_convs\.\d+"],
    "res2net/faster-rcnn_res2net-101_fpn_2x_coco.py": [RESNET],
    "resnest/faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco.py": [RESNET],
    "hrnet/faster-rcnn_hrnetv2p-w18-1x_coco.py": [
        (r"backbone\.stage4\.\d", dict(index=2)), r"backbone\.stage3\.\d\.branches\.0\.\d", RPN,
    ],
    "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py": [
        (r"backbone\.stages\.\d\.blocks\.\d", dict(layout="NLC")),
        (r"backbone\.patch_embed", dict(layout="NLC", index=0)),
        FPN, MASK,
    ],
    "double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py": [r"roi_head\.bbox_head\.conv_branch\.\d"],
    "dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py": [RESNET, ROI],
    "libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py": [RESNET, r"neck\.0\.fpn_convs\.\d"],
    "grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco.py": [RESNET, RPN],
    "gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py": [RESNET, r"roi_head\.bbox_head\.shared_convs\.\d"],
    "groie/faste-rcnn_r50_fpn_groie_1x_coco.py": [FPN, ROI],
    "sabl/sabl-faster-rcnn_r50_fpn_1x_coco.py": [RESNET, RPN],
    "htc/htc-without-semantic_r50_fpn_1x_coco.py": [RESNET, r"roi_head\.mask_head\.\d\.convs\.\d"],
    "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py": [FPN, r"roi_head\.bbox_roi_extractor\.\d"],
    # masks without boxes
    "solov2/solov2-light_r18_fpn_ms-3x_coco.py": [RESNET, r"mask_head\.cls_convs\.\d"],
    "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py": [FPN, TOWERS],
    "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py": [RESNET],
}  # fmt: skip
# where and how it is inserted is as in one of the others
LIKE_OTHERS = (
    "retinanet/retinanet_x101",
    "vfnet/",
    "ddod/",
    "foveabox/",
    "free_anchor/",
    "conditional_detr/",
    "dab_detr/",
    "faster_rcnn/faster-rcnn_r18",
    "dynamic_rcnn/",
    "grid_rcnn/",
    "sabl/",
    "htc/",
    "sparse_rcnn/",
    "condinst/",
    "mask2former/",
)


@contextlib.contextmanager
def without_initial_values():
    """Leaves out the draws of initial values, which take most of the time of building."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    before = [layer.reset_parameters for layer in layers]
    try:
        for layer in layers:
            layer.reset_parameters = lambda self: None
        yield
    finally:
        for layer, original in zip(layers, before, strict=True):
            layer.reset_parameters = original


def build(config):
    init_default_scope("mmdet")
    cfg = config_file.load(f"mmdet::{config}", {}).model
    # a thousand boxes would take most of the time, and a small image has no 900 candidates
    if (cfg.get("test_cfg") or {}).get("rpn"):
        cfg.test_cfg.rpn.max_per_img = 5
    if "num_queries" in cfg:
        cfg.num_queries = 20
    with without_initial_values():
        model = MODELS.build(cfg)
    torch.manual_seed(0)
    values = torch.empty(1 << 20).uniform_(-1, 1)  # once more in larger parameters: soon drawn
    for parameter in model.parameters():
        if parameter.dim() > 1:
            times = -(-parameter.numel() // len(values))
            few = values.repeat(times)[: parameter.numel()].view_as(parameter)
            parameter.data = few / parameter[0].numel() ** 0.5
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and module.bias is not None:
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return model.eval()


def outputs(model):
    size = (64, 64)
    sizes = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
    sample = DetDataSample(metainfo=dict(sizes, scale_factor=(1.0, 1.0)))
    sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    with torch.no_grad():
        return list(tensors(model(image, [sample], mode="tensor")))


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif hasattr(value, "keys"):
        for key in value.keys():  # noqa: SIM118  (InstanceData is no dict)
            yield from tensors(value[key])
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def marks(i, config):
    if config.startswith(LIKE_OTHERS):
        yield pytest.mark.slow
    elif i % 3:  # every third on both stacks
        yield pytest.mark.once


@pytest.mark.parametrize(
    "config", [pytest.param(c, marks=[*marks(i, c)]) for i, c in enumerate(CONFIGS)]
)
def test_identity(config):
    model = build(config)
    before, keys = outputs(model), list(model.state_dict())
    assert before
    assert any(t.isfinite().all() and t.abs().sum() > 0 for t in before)
    plugins = [
        dict(cfg=dict(type="mmattn.SGE", groups=1, identity_init=True), after=p[0], **p[1])
        if isinstance(p, tuple)
        else dict(cfg=dict(type="mmattn.SGE", groups=1, identity_init=True), after=p)
        for p in CONFIGS[config]
    ]
    assert mmattn.attach(model, plugins) is model
    inserted = mmattn.insertions(model)
    assert len(inserted) >= len(plugins)
    new = {f"{i.name}.{key}" for i in inserted for key in i.module.state_dict()}
    assert [key for key in model.state_dict() if key not in new] == keys

    calls = []
    for one in inserted:
        one.module.register_forward_hook(lambda *_, name=one.name: calls.append(name))
    after = outputs(model)
    assert len(after) == len(before)
    for actual, expected in zip(after, before, strict=True):
        assert torch.equal(actual, expected)
    # and they are in the path of the computation
    assert set(calls) == {one.name for one in inserted}
