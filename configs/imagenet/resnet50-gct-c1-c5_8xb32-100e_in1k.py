_base_ = './_base_/resnet50_8xb32-gct-100e_in1k.py'
# the stride is in the first 1x1 convolution of a block, as in the authors' network
model = dict(
    backbone=dict(style='caffe', conv_cfg=dict(type='mmattn.GCTConv2d')))
