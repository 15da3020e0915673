_base_ = '../_base_/cascade-rcnn_r101_fpn_20e_coco.py'
model = dict(
    backbone=dict(
        frozen_stages=0,
        plugins=[
            dict(cfg=dict(type='mmattn.SGE', identity_init=True), position='after_conv3')
        ]))
