# The recipe of ECA and of SimAM: batches of 8 images, here on 4 GPUs, and lr 0.01.
_base_ = 'mask-rcnn_r50_fpn_1x_coco.py'
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=8)
