# RetinaNet on a ResNet-50 of a quarter of the width, sized for two CPU cores.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    './_base_/shapes_detection.py',
    './_base_/schedule_600it.py'
]
model = dict(
    backbone=dict(
        base_channels=16,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None),
    neck=dict(
        in_channels=[64, 128, 256, 512],
        out_channels=48,
        norm_cfg=dict(type='BN')),
    bbox_head=dict(
        num_classes=3,
        in_channels=48,
        feat_channels=48,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=3)),
    test_cfg=dict(nms_pre=200))
