_base_ = '../_base_/mask-rcnn_r101_fpn_pi-8xb1-2x_coco.py'
# The backbone was trained on ImageNet with the module: README.md says where the file comes from.
model = dict(
    backbone=dict(
        plugins=[dict(cfg=dict(type='mmattn.SGE'), position='after_conv3')],
        init_cfg=dict(checkpoint='checkpoints/sge_resnet101.pth.tar')))
