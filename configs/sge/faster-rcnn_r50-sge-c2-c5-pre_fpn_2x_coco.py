_base_ = '../_base_/faster-rcnn_r50_fpn_2x_coco.py'
# The backbone was trained on ImageNet with the module: README.md says where the file comes from.
model = dict(
    backbone=dict(
        plugins=[dict(cfg=dict(type='mmattn.SGE'), position='after_conv3')],
        init_cfg=dict(checkpoint='checkpoints/sge_resnet50.pth.tar')))
# the authors' recipe where it is not mmdet's
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(start_factor=1 / 3)
