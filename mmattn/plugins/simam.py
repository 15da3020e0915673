"""SimAM, attention without parameters.

Paper: Yang et al., SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural
Networks, ICML 2021, https://proceedings.mlr.press/v139/yang21o.html
Consulted: https://github.com/ZjjConan/SimAM (placement)
"""

from __future__ import annotations

import math

from torch import Tensor

from mmattn.ops import simam
from mmattn.ops._backend import check_map
from mmattn.ops.simam.reference import gate as gate_of
from mmattn.plugins.base import AttentionModule
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS

LOWEST = 1 / (1 + math.exp(-0.5))  # of a value at the mean


@MODELS.register_module()
class SimAM(AttentionModule):
    """SimAM: scales each value by how far it stands out from the mean of its channel.

    ::

        d = (x - mean_hw(x))^2
        y = x * sigmoid(d / (4 (sum_hw(d) / (HW - 1) + e_lambda)) + 1/2)

    Paper: https://proceedings.mlr.press/v139/yang21o.html.
    Reference: the authors' release; there are no parameters.
    Deviations: the variance of a map of one pixel is 0 (the release gives NaN).
    Identity at init: never; it has nothing to learn, and every factor is sigmoid(1/2) = 0.622 or
    more. The network around it has to be trained with it.
    Cost: no parameters; three passes over the map.

    Args:
        in_channels: C.
        e_lambda: Added to the variance. 1e-4 in the authors' code, 0.1 in their detectors.
        identity_init: False alone.

    Shape:
        (N, C, H, W) in and out.

    Raises:
        ValueError: ``e_lambda`` is no number above 0, or ``identity_init`` is True.
    """

    _abbr_ = "simam"

    def __init__(self, in_channels: int, e_lambda: float = 1e-4, identity_init: bool = False):
        super().__init__(in_channels, identity_init, neutral=LOWEST)
        if identity_init:
            raise ValueError(
                "SimAM has no parameters and cannot start as identity, got identity_init=True; "
                "leave it out and start from a backbone that was trained with SimAM, or take "
                "another module"
            )
        # a constant map would be 0/0
        if isinstance(e_lambda, bool) or not isinstance(e_lambda, (int, float)) or not e_lambda > 0:
            raise ValueError(f"SimAM expects e_lambda to be a number above 0, got {e_lambda!r}")
        self.e_lambda = e_lambda

    def reset_parameters(self) -> None:
        """There are none."""

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{self.in_channels}, e_lambda={self.e_lambda}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        check_map("SimAM", x, self.in_channels)  # the operator takes any number of channels
        return simam(x, self.e_lambda)

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The factor of each value, (N, C, H, W)."""
        check_map("SimAM", x, self.in_channels)
        return [self._factor("gate", "spatial", gate_of(x, self.e_lambda), LOWEST)]
