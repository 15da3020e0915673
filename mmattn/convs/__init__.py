"""The convolution layers, with ``nn.Conv2d``'s signature: one paper a file."""

from mmattn.convs.cond_conv import CondConv2d
from mmattn.convs.drconv import DRConv2d
from mmattn.convs.gct_conv import GCTConv2d
from mmattn.convs.sk_conv import SKConv2d

__all__ = ["CondConv2d", "DRConv2d", "GCTConv2d", "SKConv2d"]
