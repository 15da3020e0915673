_base_ = '../_base_/mask-rcnn_r101_fpn_4xb2-1x_coco.py'
# The backbone was trained on ImageNet with the module: README.md says where the file comes from.
# That file has a kernel size for each stage.
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=dict(type='mmattn.ECA', kernel_size=size),
                stages=tuple(i == stage for i in range(4)),
                position='after_conv3')
            for stage, size in enumerate((3, 3, 5, 7))
        ],
        init_cfg=dict(checkpoint='checkpoints/eca_resnet101_k3357.pth.tar')))
