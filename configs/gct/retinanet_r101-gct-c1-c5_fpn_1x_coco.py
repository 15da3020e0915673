_base_ = '../_base_/retinanet_r101_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        frozen_stages=0,
        conv_cfg=dict(type='mmattn.GCTConv2d', identity_init=True)))
# the authors' recipe: alpha and gamma are decayed, beta is not
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.beta': dict(decay_mult=0)}))
