# PytorchInsight's recipe where it is not mmdet's: clipped gradients, and a warm-up from 1/3.
_base_ = 'faster-rcnn_r50_fpn_2x_coco.py'
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(start_factor=1 / 3)
