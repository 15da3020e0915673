_base_ = '../sge/faster-rcnn_r50-sge-c2-c5_fpn_2x_coco.py'
# float16 with a loss scale that adapts itself; what tools/train.py --amp does
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
