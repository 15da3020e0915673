_base_ = './_base_/resnet50_8xb32-100e_in1k.py'
model = dict(
    backbone=dict(
        plugins=[dict(cfg=dict(type='mmattn.SE'), position='after_conv3')]))
