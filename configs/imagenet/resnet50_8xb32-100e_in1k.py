_base_ = './_base_/resnet50_8xb32-100e_in1k.py'
