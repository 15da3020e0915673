# The plain detector on ShuffleNetV2: the baseline to compare the one with DRConv with.
_base_ = 'retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmattn.DRShuffleNetV2',
        widen_factor=1.0,
        frozen_stages=0,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='torchvision://shufflenet_v2_x1_0.imagenet1k_v1')),
    neck=dict(in_channels=[24, 116, 232, 464]))
