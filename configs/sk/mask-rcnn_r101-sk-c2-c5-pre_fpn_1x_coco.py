_base_ = '../_base_/mask-rcnn_r101_fpn_1x_coco.py'
# The backbone was trained on ImageNet with the module: README.md says where the file comes from.
model = dict(
    backbone=dict(
        type='mmattn.SKResNet',
        init_cfg=dict(checkpoint='checkpoints/sk_resnet101.pth.tar')))
