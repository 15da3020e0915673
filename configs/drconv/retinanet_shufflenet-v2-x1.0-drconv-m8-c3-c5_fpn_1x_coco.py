_base_ = '../_base_/retinanet_shufflenet-v2-x1.0_fpn_1x_coco.py'
model = dict(backbone=dict(drconv=dict(regions=8)))
