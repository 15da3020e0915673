_base_ = './_base_/resnet50_8xb32-100e_in1k.py'
# between the 3x3 convolution and its norm
model = dict(
    type='mmattn.Attach',
    module='ImageClassifier',
    plugins=[
        dict(
            cfg=dict(type='mmattn.SimAM', e_lambda=0.1),
            after=r'backbone\.layer[1-4]\.\d+\.conv2')
    ])
