_base_ = '../sge/faster-rcnn_r50-sge-c2-c5_fpn_2x_coco.py'
# trains the backbone's BatchNorm, on the images of all GPUs
model = dict(
    backbone=dict(norm_cfg=dict(type='SyncBN', requires_grad=True), norm_eval=False))
