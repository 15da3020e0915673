_base_ = '../_base_/cascade-rcnn_r50_fpn_20e_coco.py'
model = dict(
    backbone=dict(plugins=[
        dict(
            cfg=dict(type='mmattn.GC', ratio=16, identity_init=True),
            stages=(False, True, True, True),
            position='after_conv3')
    ]))
