_base_ = '../_base_/cascade-rcnn_r50_fpn_20e_coco.py'
model = dict(
    backbone=dict(
        frozen_stages=0,
        conv_cfg=dict(type='mmattn.GCTConv2d', identity_init=True)))
# the authors' recipe: alpha and gamma are decayed, beta is not
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.beta': dict(decay_mult=0)}))
