# A quarter of the width and drawn images: minutes on two CPU cores, to see the loop work.
_base_ = [
    './_base_/resnet50_gap.py', './_base_/shapes_bs32.py',
    'mmpretrain::_base_/default_runtime.py'
]
model = dict(
    backbone=dict(base_channels=16),
    head=dict(num_classes=3, in_channels=512, topk=(1, )))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05))
param_scheduler = dict(type='CosineAnnealingLR', T_max=10, by_epoch=True)
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=2, save_best='auto'))
randomness = dict(seed=0)
