"""The backbones that come with a module built in: one file each."""

from mmattn.backbones.dr_shufflenet_v2 import DRShuffleNetV2
from mmattn.registry import MODELS

__all__ = ["DRShuffleNetV2", "SKResNet"]


def __getattr__(name: str):
    # it inherits mmdet's ResNet, and other frameworks get on without importing mmdet
    if name == "SKResNet":
        from mmattn.backbones.sk_resnet import SKResNet

        return SKResNet
    raise AttributeError(f"module 'mmattn.backbones' has no attribute {name!r}")


@MODELS.register_module(name="SKResNet")
def _sk_resnet(*args, **kwargs):
    """Stands for the class in the registry until its module is imported."""
    return __getattr__("SKResNet")(*args, **kwargs)
