_base_ = '../_base_/mask-rcnn_r50_fpn_1x_coco.py'
# norm_eval would hold a BatchNorm of the module at its first statistics: GN has none to hold
model = dict(
    type='mmattn.Attach',
    module=_base_.model.type,
    backbone=dict(frozen_stages=0),
    plugins=[
        dict(
            cfg=dict(type='mmattn.BAM', identity_init=True, norm_cfg=dict(type='GN', num_groups=1)),
            after=r'backbone\.layer[123]')
    ])
