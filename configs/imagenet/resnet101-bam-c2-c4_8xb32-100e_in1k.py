_base_ = './resnet50-bam-c2-c4_8xb32-100e_in1k.py'
model = dict(backbone=dict(depth=101))
