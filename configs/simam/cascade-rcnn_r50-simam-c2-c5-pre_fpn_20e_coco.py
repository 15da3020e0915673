_base_ = '../_base_/cascade-rcnn_r50_fpn_20e_coco.py'
# The backbone was trained on ImageNet with the module: README.md says where the file comes from.
model = dict(
    type='mmattn.Attach',
    module=_base_.model.type,
    backbone=dict(init_cfg=dict(checkpoint='checkpoints/simam_resnet50.pth')),
    plugins=[
        dict(
            cfg=dict(type='mmattn.SimAM', e_lambda=0.1),
            after=r'backbone\.layer\d\.\d+\.conv2')
    ])
