# Cascade R-CNN on a ResNet-50 of a quarter of the width, sized for two CPU cores.
_base_ = [
    'mmdet::_base_/models/cascade-rcnn_r50_fpn.py',
    './_base_/shapes_detection.py',
    './_base_/schedule_600it.py'
]
head = dict(
    type='Shared2FCBBoxHead',
    in_channels=48,
    fc_out_channels=256,
    roi_feat_size=7,
    num_classes=3,
    bbox_coder=dict(
        type='DeltaXYWHBBoxCoder',
        target_means=[0., 0., 0., 0.],
        target_stds=[0.1, 0.1, 0.2, 0.2]),
    reg_class_agnostic=True,
    loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0))
coder2 = dict(
    type='DeltaXYWHBBoxCoder',
    target_means=[0., 0., 0., 0.],
    target_stds=[0.05, 0.05, 0.1, 0.1])
coder3 = dict(
    type='DeltaXYWHBBoxCoder',
    target_means=[0., 0., 0., 0.],
    target_stds=[0.033, 0.033, 0.067, 0.067])
sampler = dict(
    type='RandomSampler',
    num=64,
    pos_fraction=0.5,
    neg_pos_ub=-1,
    add_gt_as_proposals=True)
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
    rpn_head=dict(
        in_channels=48,
        feat_channels=48,
        anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=2), out_channels=48),
        bbox_head=[
            head,
            dict(head, bbox_coder=coder2),
            dict(head, bbox_coder=coder3)
        ]),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=iou,
                    neg_iou_thr=iou,
                    min_pos_iou=iou,
                    match_low_quality=False,
                    ignore_iof_thr=-1),
                sampler=sampler,
                pos_weight=-1,
                debug=False) for iou in (0.5, 0.6, 0.7)
        ]),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)))
del head, coder2, coder3, sampler
