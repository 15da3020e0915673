"""``type='mmattn.X'`` resolves in a process that never imported mmattn."""

import subprocess
import sys

from tests.zoo import PLUGINS

PLAIN = """
from mmengine.model import BaseModel
from mmengine.registry import MODELS
import torch

@MODELS.register_module()
class Net(BaseModel):
    def __init__(self, plugin):
        super().__init__()
        self.plugin = MODELS.build(plugin)
    def forward(self, x):
        return self.plugin(x)

for name in {names}:
    net = MODELS.build(dict(type='Net', plugin=dict(type='mmattn.' + name, in_channels=64)))
    assert net(torch.randn(1, 64, 2, 2)).shape == (1, 64, 2, 2)
    print(type(net.plugin).__name__)
"""
# a compiled mmcv, as far as importing mmdet can tell: nothing but the scope brings mmattn in
DETECTION = """
import sys, types

class Compiled(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return print

sys.modules['mmcv._ext'] = Compiled('mmcv._ext')
import mmdet.models
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

init_default_scope('mmdet')
assert 'mmattn' not in sys.modules
import torch
for config in {configs}:
    net = MODELS.build(dict(type='ResNet', depth=50, base_channels=16, **config))
    net(torch.randn(1, 3, 64, 64))
    ours = (type(m).__name__ for m in net.modules() if type(m).__module__.startswith('mmattn'))
    ours = (name for name in ours if not name.startswith('_'))
    print(*sorted(set(ours)))
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_in_a_plain_mmengine_model():
    names = sorted(PLUGINS)
    assert run(PLAIN.format(names=names)) == names


def test_in_mmdet():
    names = sorted(PLUGINS)
    configs = [
        dict(plugins=[dict(cfg=dict(type=f"mmattn.{name}"),
                           position="after_conv3")])
        for name in names
    ]  # fmt: skip
    configs.append(dict(conv_cfg=dict(type="mmattn.GCTConv2d")))
    assert run(DETECTION.format(configs=configs)) == [*names, "GCT GCTConv2d"]
