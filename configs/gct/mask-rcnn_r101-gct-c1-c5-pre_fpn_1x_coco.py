_base_ = '../_base_/mask-rcnn_r101_fpn_1x_coco.py'
# The backbone was trained on ImageNet with the module: README.md says where the file comes from.
# Its blocks have their stride in the first 1x1 convolution, mmdet's style 'caffe'.
model = dict(
    backbone=dict(
        style='caffe',
        conv_cfg=dict(type='mmattn.GCTConv2d'),
        init_cfg=dict(checkpoint='checkpoints/gct_resnet101.pth')))
# the authors' recipe: alpha and gamma are decayed, beta is not
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.beta': dict(decay_mult=0)}))
