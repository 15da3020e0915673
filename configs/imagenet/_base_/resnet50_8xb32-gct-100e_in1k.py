# The recipe of GCT's authors where it is not the other one: Nesterov's momentum, the first epoch at
# a tenth of the learning rate, no weight decay of beta, and other initial weights.
_base_ = './resnet50_8xb32-100e_in1k.py'
model = dict(
    backbone=dict(init_cfg=[
        dict(
            type='Kaiming',
            layer='Conv2d',
            a=1,
            distribution='uniform',
            mode='fan_in',
            nonlinearity='leaky_relu'),
        dict(type='Constant', val=1, layer='BatchNorm2d')
    ]))
optim_wrapper = dict(
    optimizer=dict(nesterov=True),
    paramwise_cfg=dict(custom_keys={'.beta': dict(decay_mult=0)}))
# mmengine's ConstantLR ends one epoch before its `end`
param_scheduler = [
    dict(type='ConstantLR', factor=0.1, by_epoch=True, begin=0, end=2),
    dict(type='MultiStepLR', by_epoch=True, milestones=[30, 60, 90], gamma=0.1)
]
