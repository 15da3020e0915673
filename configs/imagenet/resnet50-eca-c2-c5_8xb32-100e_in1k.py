_base_ = './_base_/resnet50_8xb32-100e_in1k.py'
# a kernel size for each stage, as in the authors' released networks
model = dict(
    backbone=dict(plugins=[
        dict(
            cfg=dict(type='mmattn.ECA', kernel_size=size),
            stages=tuple(i == stage for i in range(4)),
            position='after_conv3')
        for stage, size in enumerate((3, 5, 5, 7))
    ]))
