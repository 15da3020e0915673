_base_ = './resnet50-triplet-c2-c5_8xb32-100e_in1k.py'
model = dict(backbone=dict(depth=101))
