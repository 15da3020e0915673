# 8 GPUs with 32 images each, 100 epochs on ImageNet; README.md names each number's source.
_base_ = [
    './resnet50_gap.py', 'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py'
]
# what mmpretrain's own train.py adds to a config: workers stack the batches
loader = dict(
    pin_memory=True,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'))
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader

default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='auto'))
auto_scale_lr = dict(enable=False, base_batch_size=256)
