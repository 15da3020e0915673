"""Coordinate attention.

Paper: Hou et al., Coordinate Attention for Efficient Mobile Network Design, CVPR 2021,
https://arxiv.org/abs/2103.02907
Consulted: https://github.com/houqb/CoordAttention (names, initial values, placement)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.ops._backend import check_map, scaled, statistics_dtype, without_autocast
from mmattn.plugins._gates import conv
from mmattn.plugins.base import AttentionModule, build_norm, normalize
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS

NORM_CFG = dict(type="BN")


@MODELS.register_module()
class CoordAttention(AttentionModule):
    """Coordinate attention: scales each channel by a gate for its row and one for its column.

    ::

        z = [mean_w x; mean_h x]                     (N, C, H + W)
        t = hswish(BN(W1 z + b1))                    P = max(8, C // ratio) channels
        y = x * sigmoid(Wh t_h + bh) * sigmoid(Ww t_w + bw)      t_h: the first H values, t_w: W

    Paper: https://arxiv.org/abs/2103.02907.
    Reference: the authors' release; parameter names ``conv1.*``, ``bn1.*``, ``conv_h.*``,
    ``conv_w.*``.
    Deviations: none; a map has at least one row and one column, so the BatchNorm sees two values.
    With N = 0 it uses its running statistics.
    Identity at init: no; everything starts near a factor of 0.25. With ``identity_init`` yes:
    ``conv_h`` and ``conv_w`` start at zero and the product of the gates is divided by 0.25.
    Cost: 3 C P + 2 C + 3 P parameters; three passes over the map.

    Args:
        in_channels: C.
        ratio: Divisor of C that gives the hidden width P, which is 8 at least.
        norm_cfg: The norm layer ``bn1``.
        identity_init: Start as identity.

    Shape:
        (N, C, H, W) in and out.

    Raises:
        ValueError: ``ratio`` is no integer in [1, C], or ``norm_cfg`` cannot be built.
        TypeError: ``norm_cfg`` is no dict with a type.
    """

    _abbr_ = "coord_att"

    def __init__(
        self,
        in_channels: int,
        ratio: int = 32,
        norm_cfg: dict = NORM_CFG,
        identity_init: bool = False,
    ):
        super().__init__(in_channels, identity_init, neutral=0.25)
        hidden = max(8, self._hidden_channels(ratio))
        self.conv1 = nn.Conv2d(in_channels, hidden, 1)
        self.bn1 = build_norm("CoordAttention", norm_cfg, hidden)
        self.conv_h = nn.Conv2d(hidden, in_channels, 1)
        self.conv_w = nn.Conv2d(hidden, in_channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default; with ``identity_init`` ``conv_h`` and ``conv_w`` are zero."""
        for layer in (self.conv1, self.bn1, self.conv_h, self.conv_w):
            layer.reset_parameters()
        if self.identity_init:
            for layer in (self.conv_h, self.conv_w):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        check_map("CoordAttention", x, self.in_channels)
        return _forward(x, self)

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The factor of each value, (N, C, H, W), and the two gates whose product it is.

        That of the rows, (N, C, H, 1), and that of the columns, (N, C, 1, W); with
        ``identity_init`` each is over its own neutral value, 0.5.
        """
        check_map("CoordAttention", x, self.in_channels)
        rows, columns = _gates(x, self)
        root = self._divisor**0.5
        detail = dict(role="detail", neutral=self.neutral_factor**0.5, bounds=(0, 1 / root))
        return [
            self._factor("gate", "spatial", scaled(rows * columns, self.gate_scale)),
            AttentionMap("rows", "spatial", rows / root, **detail),
            AttentionMap("columns", "spatial", columns / root, **detail),
        ]


@without_autocast
def _forward(x: Tensor, module: CoordAttention) -> Tensor:
    a_h, a_w = _gates(x, module)
    return x * scaled(a_h * a_w, module.gate_scale).to(x.dtype)


def _gates(x: Tensor, module: CoordAttention) -> tuple[Tensor, Tensor]:
    """For the rows, (N, C, H, 1), and for the columns, (N, C, 1, W)."""
    dtype = statistics_dtype(x)
    rows = x.mean(3, keepdim=True, dtype=dtype)  # (N, C, H, 1)
    columns = x.mean(2, keepdim=True, dtype=dtype).transpose(2, 3)  # (N, C, W, 1)
    z = conv(module.conv1, torch.cat([rows, columns], 2))
    t_h, t_w = F.hardswish(normalize(module.bn1, z)).split(x.shape[2:], 2)
    a_h = conv(module.conv_h, t_h).sigmoid()
    return a_h, conv(module.conv_w, t_w.transpose(2, 3)).sigmoid()
