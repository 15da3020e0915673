_base_ = '../_base_/retinanet_r50_fpn_2x_coco.py'
model = dict(
    backbone=dict(
        frozen_stages=0,
        plugins=[
            dict(cfg=dict(type='mmattn.SE', identity_init=True), position='after_conv3')
        ]))
