_base_ = '../sge/faster-rcnn_r50-sge-c2-c5_fpn_2x_coco.py'
# parameters, gradients and optimizer state are spread over the GPUs
runner_type = 'FlexibleRunner'
# whole checkpoints, as of any other run, from the first process
strategy = dict(type='FSDPStrategy', state_dict_cfg='full')
