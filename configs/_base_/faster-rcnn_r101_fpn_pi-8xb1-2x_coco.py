# PytorchInsight's recipe for ResNet-101 with attention: 8 GPUs with one image each.
_base_ = 'faster-rcnn_r101_fpn_pi-2x_coco.py'
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=8)
