_base_ = '../_base_/retinanet_r101_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        dcn=dict(type='mmattn.DRConv2d', regions=8),
        stage_with_dcn=(False, False, True, True)))
