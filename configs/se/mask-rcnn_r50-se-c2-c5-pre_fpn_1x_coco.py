_base_ = '../_base_/mask-rcnn_r50_fpn_1x_coco.py'
# The backbone was trained on ImageNet with the module: README.md says where the file comes from.
model = dict(
    backbone=dict(
        plugins=[dict(cfg=dict(type='mmattn.SE'), position='after_conv3')],
        init_cfg=dict(checkpoint='checkpoints/se_resnet50.pth.tar')))
