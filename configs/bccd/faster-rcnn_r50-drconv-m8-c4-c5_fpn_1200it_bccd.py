_base_ = './faster-rcnn_r50_fpn_1200it_bccd.py'
model = dict(
    backbone=dict(
        dcn=dict(type='mmattn.DRConv2d', regions=8),
        stage_with_dcn=(False, False, True, True)))
