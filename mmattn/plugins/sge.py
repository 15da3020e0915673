"""Spatial group-wise enhance.

Paper: Li et al., Spatial Group-wise Enhance: Improving Semantic Feature Learning in
Convolutional Networks, 2019, https://arxiv.org/abs/1905.09646
Consulted: https://github.com/implus/PytorchInsight (names, initial values, placement)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmattn.ops import sge
from mmattn.ops._backend import check_map
from mmattn.ops.sge.reference import mask
from mmattn.plugins.base import AttentionModule, check_positive_int, in_dtype_of
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS


@MODELS.register_module()
class SGE(AttentionModule):
    """Spatial group-wise enhance: scales each position of a group by its likeness to the group.

    Per group g of C/G channels::

        q = mean_hw(x_g);  t = sum_c q_c x_c;  t = (t - mean_hw t) / (std_hw t + eps)
        y = x_g * sigmoid(w_g t + b_g)

    Paper: https://arxiv.org/abs/1905.09646.
    Reference: PytorchInsight; parameter names ``weight``, ``bias``.
    Deviations: the spread of a map of one pixel is 0 (the release gives NaN).
    Identity at init: no; everything starts at a factor of sigmoid(1) = 0.731. With
    ``identity_init`` yes: ``bias`` starts at 0 too and the gate is divided by 0.5.
    Cost: 2 G parameters; three passes over the map.

    Args:
        in_channels: C.
        groups: G, a divisor of C.
        eps: Added to the standard deviation, outside the root.
        normalize: Normalise t over the positions; False is the paper's ablation.
        init_weight: Initial value of ``weight``.
        init_bias: Initial value of ``bias``; None: 1, or 0 with ``identity_init``.
        identity_init: Start as identity.

    Shape:
        (N, C, H, W) in and out.

    Raises:
        ValueError: ``groups`` does not divide ``in_channels``, or ``identity_init`` comes with
            an initial weight or bias other than 0.
    """

    _abbr_ = "sge"

    def __init__(
        self,
        in_channels: int,
        groups: int = 64,
        eps: float = 1e-5,
        normalize: bool = True,
        init_weight: float = 0.0,
        init_bias: float | None = None,
        identity_init: bool = False,
    ):
        if init_bias is None:
            init_bias = 0.0 if identity_init is True else 1.0
        super().__init__(in_channels, identity_init, neutral=_sigmoid(init_bias))
        check_positive_int("SGE", "groups", groups)
        if in_channels % groups:
            divisors = [g for g in range(1, in_channels + 1) if in_channels % g == 0]
            raise ValueError(
                f"SGE expects groups that divide in_channels={in_channels}, got groups={groups}; "
                f"nearest: {min(divisors, key=lambda g: abs(g - groups))}"
            )
        if identity_init and (init_weight or init_bias):
            raise ValueError(
                "SGE with identity_init=True starts with weight 0 and bias 0, got "
                f"init_weight={init_weight}, init_bias={init_bias}; leave out one or the other"
            )
        self.groups = groups
        self.eps = eps
        self.normalize = normalize
        self.init_weight = init_weight
        self.init_bias = init_bias
        self.weight = nn.Parameter(torch.empty(1, groups, 1, 1))
        self.bias = nn.Parameter(torch.empty(1, groups, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 0 and bias 1 (bias 0 with ``identity_init``), or the values that were given."""
        nn.init.constant_(self.weight, self.init_weight)
        nn.init.constant_(self.bias, self.init_bias)

    @property
    def neutral_factor(self) -> float:
        """sigmoid(init_bias); with ``identity_init`` 1, or sigmoid(1) after official weights."""
        official = self.gate_scale is not None and self._divisor == 1
        return _sigmoid(1) if official else super().neutral_factor

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{self.in_channels}, groups={self.groups}, identity_init={self.identity_init}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        check_map("SGE", x, self.in_channels)  # the operator knows the groups only
        return sge(
            x, self.weight, self.bias, self.groups, self.eps, self.normalize, self.gate_scale
        )

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The mask of each group: the factor of its positions, (N, G, H, W)."""
        check_map("SGE", x, self.in_channels)
        operands = in_dtype_of(x, self.weight, self.bias, self.gate_scale)
        values = mask(x, *operands, self.groups, self.eps, self.normalize)
        return [self._factor("mask", "spatial", values)]


def _sigmoid(x: float) -> float:
    return (1 + math.tanh(x / 2)) / 2
