_base_ = '../_base_/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        frozen_stages=0,
        plugins=[
            dict(cfg=dict(type='mmattn.ECA', identity_init=True), position='after_conv3')
        ]))
