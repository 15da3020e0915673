_base_ = '../_base_/faster-rcnn_r101_fpn_1x_coco.py'
# The backbone was trained on ImageNet with the module: README.md says where the file comes from.
model = dict(
    type='mmattn.Attach',
    module=_base_.model.type,
    backbone=dict(init_cfg=dict(checkpoint='checkpoints/bam_resnet101.pth')),
    plugins=[
        dict(
            cfg=dict(type='mmattn.BAM'),
            after=r'backbone\.layer[123]')
    ])
