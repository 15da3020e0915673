_base_ = '../_base_/cascade-rcnn_r50_fpn_20e_coco.py'
# one block, before the last one of c4
model = dict(
    type='mmattn.Attach',
    module=_base_.model.type,
    plugins=[
        dict(
            cfg=dict(type='mmattn.NonLocal', identity_init=True),
            after=r'backbone\.layer3\.4')
    ])
