_base_ = '../_base_/cascade-rcnn_r50_fpn_20e_coco.py'
# norm_eval would hold a BatchNorm of the module at its first statistics: GN has none to hold
model = dict(
    backbone=dict(
        frozen_stages=0,
        plugins=[
            dict(
                cfg=dict(
                    type='mmattn.CBAM', identity_init=True,
                    norm_cfg=dict(type='GN', num_groups=1)),
                position='after_conv3')
        ]))
