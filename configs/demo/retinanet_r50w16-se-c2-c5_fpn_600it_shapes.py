_base_ = './retinanet_r50w16_fpn_600it_shapes.py'
model = dict(
    backbone=dict(plugins=[
        dict(
            cfg=dict(type='mmattn.SE', ratio=16, identity_init=True),
            position='after_conv3')
    ]))
