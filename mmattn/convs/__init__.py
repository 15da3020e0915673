"""The convolution layers, with ``nn.Conv2d``'s signature: one paper a file."""

from mmattn.convs.drconv import DRConv2d
from mmattn.convs.gct_conv import GCTConv2d

__all__ = ["DRConv2d", "GCTConv2d"]
