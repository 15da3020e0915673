_base_ = './_base_/resnet50_8xb32-100e_in1k.py'
# between the stages: after layer1, layer2 and layer3
model = dict(
    type='mmattn.Attach',
    module='ImageClassifier',
    plugins=[dict(cfg=dict(type='mmattn.BAM'), after=r'backbone\.layer[123]')])
