_base_ = './faster-rcnn_r50_fpn_1200it_bccd.py'
model = dict(
    backbone=dict(plugins=[
        dict(
            cfg=dict(type='mmattn.GC', ratio=4),
            stages=(False, True, True, True),
            position='after_conv3')
    ]))
