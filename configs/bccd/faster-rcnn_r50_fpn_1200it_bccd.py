# Faster R-CNN on a ResNet-50 from scratch: no weights to download, every norm is trained.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    './_base_/bccd_detection.py',
    './_base_/schedule_1200it.py'
]
model = dict(
    backbone=dict(frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(norm_cfg=dict(type='BN')),
    rpn_head=dict(anchor_generator=dict(scales=[4])),
    roi_head=dict(bbox_head=dict(num_classes=3)),
    train_cfg=dict(rcnn=dict(sampler=dict(num=128))))
