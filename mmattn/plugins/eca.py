"""Efficient channel attention.

Paper: Wang et al., ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks,
CVPR 2020, https://arxiv.org/abs/1910.03151
Consulted: https://github.com/BangguWu/ECANet (names, placement)
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from mmattn.ops import eca
from mmattn.ops._backend import check_map
from mmattn.ops.eca.reference import gate as channel_gate
from mmattn.plugins.base import AttentionModule, check_positive_int, in_dtype_of
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS


def adaptive_kernel_size(channels: int) -> int:
    """The odd number nearest to log2(C) / 2 + 1/2; the larger of two that are as near."""
    size = int(math.log2(channels) / 2 + 0.5)
    return size + (size % 2 == 0)


@MODELS.register_module()
class ECA(AttentionModule):
    """Efficient channel attention: scales each channel by a gate made from its neighbours' means.

    ``y = x * sigmoid(conv1d(mean_hw(x)))``, one filter of k weights over the channels.

    Paper: https://arxiv.org/abs/1910.03151.
    Reference: the authors' release; parameter name ``conv.weight``.
    Deviations: none.
    Identity at init: no; every channel starts near a factor of 0.5. With ``identity_init`` yes:
    ``conv`` starts at zero and the gate is divided by 0.5.
    Cost: k parameters; two passes over the map.

    Args:
        in_channels: C.
        kernel_size: k, odd; None: the odd number nearest to log2(C) / 2 + 1/2, as in the paper.
            The released detectors have a k for each stage instead, such as 3, 3, 5, 7.
        identity_init: Start as identity.

    Shape:
        (N, C, H, W) in and out.

    Raises:
        ValueError: ``kernel_size`` is no odd integer above 0.
    """

    _abbr_ = "eca"

    def __init__(
        self, in_channels: int, kernel_size: int | None = None, identity_init: bool = False
    ):
        super().__init__(in_channels, identity_init, neutral=0.5)
        if kernel_size is None:
            kernel_size = adaptive_kernel_size(in_channels)
        if check_positive_int("ECA", "kernel_size", kernel_size) % 2 == 0:
            raise ValueError(
                f"ECA expects kernel_size to be odd, got {kernel_size}; take {kernel_size - 1} or "
                f"{kernel_size + 1}, or None for the paper's choice"
            )
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default; zero with ``identity_init``."""
        self.conv.reset_parameters()
        if self.identity_init:
            nn.init.zeros_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        check_map("ECA", x, self.in_channels)  # the operator takes any number of channels
        return eca(x, self.conv.weight, self.gate_scale)

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The factor of each channel, (N, C)."""
        check_map("ECA", x, self.in_channels)
        gate = channel_gate(x, *in_dtype_of(x, self.conv.weight, self.gate_scale))
        return [self._factor("channel gate", "channel", gate)]
