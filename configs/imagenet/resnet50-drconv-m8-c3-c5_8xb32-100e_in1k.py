_base_ = './_base_/resnet50_8xb32-100e_in1k.py'
# No recipe of the authors for a ResNet could be read: the other modules' is taken.
model = dict(
    backbone=dict(
        dcn=dict(type='mmattn.DRConv2d', regions=8),
        stage_with_dcn=(False, True, True, True)))
