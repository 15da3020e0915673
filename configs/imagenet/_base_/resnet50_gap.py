# A classifier with the backbone of mmdet's detectors: what it learns loads into them by name.
model = dict(
    type='ImageClassifier',
    # mmdet's ResNet is made for fine-tuning: its default is norm_eval=True
    backbone=dict(
        type='mmdet.ResNet',
        depth=50,
        out_indices=(3, ),
        frozen_stages=-1,
        norm_eval=False,
        zero_init_residual=False),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)))
