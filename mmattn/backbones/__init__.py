"""The backbones that come with a module built in: one file each."""

from mmattn.backbones.dr_shufflenet_v2 import DRShuffleNetV2

__all__ = ["DRShuffleNetV2"]
