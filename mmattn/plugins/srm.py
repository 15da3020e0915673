"""The style-based recalibration module.

Paper: Lee et al., SRM: A Style-based Recalibration Module for Convolutional Neural Networks,
ICCV 2019, https://arxiv.org/abs/1903.10829
Consulted: https://github.com/hyunjaelee410/style-based-recalibration-module (names, initial
values, placement)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmattn.ops import srm
from mmattn.ops._backend import check_map, scaled
from mmattn.plugins._gates import zero_affine
from mmattn.plugins.base import AttentionModule, build_norm, in_dtype_of, normalize
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS

NORM_CFG = dict(type="BN")


@MODELS.register_module()
class SRM(AttentionModule):
    """Style-based recalibration: scales each channel by a gate made from its own mean and spread.

    ::

        t = [mean_hw(x), sqrt(var_hw(x) + eps)]        the variance unbiased
        y = x * sigmoid(BN(cfc_0 t_0 + cfc_1 t_1))

    Paper: https://arxiv.org/abs/1903.10829.
    Reference: the authors' release; parameter names ``cfc``, ``bn.*``.
    Deviations: the variance of a map of one pixel is 0 (the release gives NaN). With one image in
    training, of which the BatchNorm sees one value a channel, it uses its running statistics.
    Identity at init: no; everything starts at a factor of 0.5. With ``identity_init`` yes: the
    factor of ``bn`` starts at zero, ``cfc`` at N(0, 0.01) instead, and the gate is divided by 0.5.
    Cost: 4 C parameters; three passes over the map.

    Args:
        in_channels: C.
        norm_cfg: The norm layer ``bn``.
        eps: Added to the variance.
        identity_init: Start as identity.

    Shape:
        (N, C, H, W) in and out.

    Raises:
        ValueError: ``norm_cfg`` cannot be built, or ``identity_init`` comes with a norm layer that
            has nothing to learn.
        TypeError: ``norm_cfg`` is no dict with a type.
    """

    _abbr_ = "srm"

    def __init__(
        self,
        in_channels: int,
        norm_cfg: dict = NORM_CFG,
        eps: float = 1e-5,
        identity_init: bool = False,
    ):
        super().__init__(in_channels, identity_init, neutral=0.5)
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not eps > 0:
            raise ValueError(f"SRM expects eps to be a number above 0, got {eps!r}")
        self.eps = eps
        self.cfc = nn.Parameter(torch.empty(in_channels, 2))
        self.bn = build_norm("SRM", norm_cfg, in_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """``cfc`` zero; with ``identity_init`` it is drawn, and the affine of ``bn`` is zero."""
        self.bn.reset_parameters()
        if self.identity_init:
            nn.init.normal_(self.cfc, std=0.01)
            zero_affine(self, self.bn)
        else:
            nn.init.zeros_(self.cfc)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x * self._gate(srm(x, self.cfc, self.eps)).to(x.dtype)

    def _gate(self, style: Tensor) -> Tensor:
        """(N, C) -> (N, C, 1, 1): what each channel is multiplied by."""
        return scaled(normalize(self.bn, style[:, :, None, None]).sigmoid(), self.gate_scale)

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The factor of each channel, (N, C); in training that of the batch's own statistics."""
        check_map("SRM", x, self.in_channels)
        gate = self._gate(srm(x, *in_dtype_of(x, self.cfc), self.eps))
        return [self._factor("channel gate", "channel", gate.flatten(1))]
