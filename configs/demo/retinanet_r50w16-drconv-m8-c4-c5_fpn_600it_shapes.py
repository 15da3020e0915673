_base_ = './retinanet_r50w16_fpn_600it_shapes.py'
model = dict(
    backbone=dict(
        dcn=dict(type='mmattn.DRConv2d', regions=8),
        stage_with_dcn=(False, False, True, True)))
