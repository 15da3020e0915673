_base_ = '../_base_/mask-rcnn_r101_fpn_1x_coco.py'
model = dict(
    backbone=dict(plugins=[
        dict(
            cfg=dict(type='mmattn.GC', ratio=16, identity_init=True),
            stages=(False, True, True, True),
            position='after_conv3')
    ]))
