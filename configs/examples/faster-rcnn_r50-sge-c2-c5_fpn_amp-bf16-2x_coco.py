_base_ = '../sge/faster-rcnn_r50-sge-c2-c5_fpn_2x_coco.py'
# bfloat16 has the range of float32 and needs no loss scale: a fixed one of 1
optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.)
