_base_ = './cascade-rcnn_r50w16_fpn_600it_shapes.py'
# 16 groups as the narrow stages have 64 to 512 channels; the paper's 64 groups are for 256 to 2048
model = dict(
    backbone=dict(plugins=[
        dict(
            cfg=dict(type='mmattn.SGE', groups=16, identity_init=True),
            position='after_conv3')
    ]))
