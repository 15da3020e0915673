_base_ = '../_base_/cascade-rcnn_r50_fpn_pi-20e_coco.py'
# The backbone was trained on ImageNet with the module: README.md says where the file comes from.
model = dict(
    backbone=dict(
        plugins=[dict(cfg=dict(type='mmattn.SE'), position='after_conv3')],
        init_cfg=dict(checkpoint='checkpoints/se_resnet50.pth.tar')))
