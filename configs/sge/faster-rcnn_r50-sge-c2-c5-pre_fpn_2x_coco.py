_base_ = '../_base_/faster-rcnn_r50_fpn_pi-2x_coco.py'
# The backbone was trained on ImageNet with the module: README.md says where the file comes from.
model = dict(
    backbone=dict(
        plugins=[dict(cfg=dict(type='mmattn.SGE'), position='after_conv3')],
        init_cfg=dict(checkpoint='checkpoints/sge_resnet50.pth.tar')))
