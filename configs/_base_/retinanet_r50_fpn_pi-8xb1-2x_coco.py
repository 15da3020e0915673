# PytorchInsight's recipe for RetinaNet with BAM, CBAM and SK: 8 GPUs with one image each.
_base_ = 'retinanet_r50_fpn_pi-2x_coco.py'
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
