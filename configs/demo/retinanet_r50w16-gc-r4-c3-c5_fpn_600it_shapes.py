_base_ = './retinanet_r50w16_fpn_600it_shapes.py'
model = dict(
    backbone=dict(plugins=[
        dict(
            cfg=dict(type='mmattn.GC', ratio=4),
            stages=(False, True, True, True),
            position='after_conv3')
    ]))
