_base_ = '../sge/faster-rcnn_r50-sge-c2-c5_fpn_2x_coco.py'
# one GPU: an update for every 8 batches of 2, as on 8 GPUs with 2 images each
optim_wrapper = dict(accumulative_counts=8)
# the warm-up counts batches, not updates: 8 times the 500 iterations of 8 GPUs
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=4000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=24, milestones=[16, 22], gamma=0.1)
]
