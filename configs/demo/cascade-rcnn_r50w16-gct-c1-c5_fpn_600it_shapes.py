_base_ = './cascade-rcnn_r50w16_fpn_600it_shapes.py'
model = dict(backbone=dict(conv_cfg=dict(type='mmattn.GCTConv2d')))
# the authors' recipe: alpha and gamma are decayed, beta is not
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.beta': dict(decay_mult=0)}))
