# GCNet's other normalisation: the statistics of all GPUs' images, and they go on learning.
_base_ = 'mask-rcnn_r101_fpn_1x_coco.py'
model = dict(
    backbone=dict(norm_cfg=dict(type='SyncBN', requires_grad=True), norm_eval=False))
