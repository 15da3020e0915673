_base_ = './resnet50w16_1xb32-10e_shapes.py'
# 16 groups as in the detectors of configs/demo: the narrow stages have 64 to 512 channels
model = dict(
    backbone=dict(plugins=[
        dict(
            cfg=dict(type='mmattn.SGE', groups=16), position='after_conv3')
    ]))
