_base_ = './faster-rcnn_r50_fpn_1200it_bccd.py'
model = dict(
    backbone=dict(plugins=[
        dict(
            cfg=dict(type='mmattn.SE', ratio=16, identity_init=True),
            position='after_conv3')
    ]))
