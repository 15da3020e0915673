"""A small Faster R-CNN around a backbone, for a step of training."""

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn


def train_a_step(backbone: dict) -> nn.Module:
    """Builds the detector, trains a step on one batch, and checks it; returns the backbone.

    Every parameter of the backbone that learns has a gradient, and the loss falls.
    """
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        config = get_config("mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py").model
        config.backbone.init_cfg = None
        config.backbone.update(norm_eval=False, **backbone)
        width = config.backbone.get("base_channels", 64)
        config.neck.update(in_channels=[4 * width * 2**i for i in range(4)], out_channels=16)
        config.rpn_head.update(in_channels=16, feat_channels=16)
        config.roi_head.bbox_roi_extractor.out_channels = 16
        config.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32)
        detector = MODELS.build(config)
        detector.init_weights()
        detector.train()
        x = torch.randn(2, 3, 96, 64)
        meta = dict(img_shape=(96, 64), pad_shape=(96, 64), batch_input_shape=(96, 64))
        boxes = InstanceData(
            bboxes=torch.tensor([[4.0, 6.0, 40.0, 60.0]]), labels=torch.tensor([3])
        )
        samples = [DetDataSample(metainfo=meta, gt_instances=boxes) for _ in range(2)]
        optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
        losses = []
        for _ in range(2):
            torch.manual_seed(1)  # the samplers'
            loss, _ = detector.parse_losses(detector.loss(x, samples))
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[1] < losses[0]
    for name, p in detector.backbone.named_parameters():
        assert not p.requires_grad or p.grad.any(), name
        assert not p.requires_grad or p.grad.isfinite().all(), name
    return detector.backbone
