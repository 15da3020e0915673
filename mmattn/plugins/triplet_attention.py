"""Triplet attention.

Paper: Misra et al., Rotate to Attend: Convolutional Triplet Attention Module, WACV 2021,
https://arxiv.org/abs/2010.03045
Consulted: https://github.com/landskape-ai/triplet-attention (names, initial values, placement)
"""

from __future__ import annotations

from torch import Tensor, nn

from mmattn.ops._backend import check_map, scaled, without_autocast
from mmattn.plugins._gates import check_bool, max_mean_conv, max_mean_gate, zero_affine
from mmattn.plugins.base import AttentionModule
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS

NORM_CFG = dict(type="BN", momentum=0.01)
# each gate spans two dimensions and pools the third, here its index
POOLED = {"cw": 2, "hc": 3, "hw": 1}


@MODELS.register_module()
class TripletAttention(AttentionModule):
    """Triplet attention: the mean of three gates, each over two of the dimensions C, H and W.

    ::

        a_cw = sigmoid(BN(conv([max_h x; mean_h x])))     (N, C, 1, W)
        a_hc = sigmoid(BN(conv([max_w x; mean_w x])))     (N, C, H, 1), the plane being H x C
        a_hw = sigmoid(BN(conv([max_c x; mean_c x])))     (N, 1, H, W)
        y = x * (a_cw + a_hc + a_hw) / 3                  each gate has its own conv and BN

    Paper: https://arxiv.org/abs/2010.03045.
    Reference: the authors' release; parameter names ``{cw,hc,hw}.conv.{conv,bn}.*``.
    Deviations: where values tie for a maximum they share its gradient (the release gives it to
    one). A BatchNorm that would see one value in training or none uses its running statistics.
    Identity at init: no; everything starts near a factor of 0.5. With ``identity_init`` yes: the
    factor and shift of each ``bn`` start at zero and the mean gate is divided by 0.5.
    Cost: 3 (2 kernel_size^2 + 2) parameters, whatever C; seven passes over the map.

    Args:
        in_channels: C; no parameter depends on it.
        kernel_size: Of each gate's convolution, odd.
        spatial: The gate a_hw; False (the authors' ``no_spatial``) leaves the mean of two.
        norm_cfg: The norm layer of each gate.
        identity_init: Start as identity.

    Shape:
        (N, C, H, W) in and out.

    Raises:
        ValueError: ``kernel_size`` is not odd, ``norm_cfg`` cannot be built, or
            ``identity_init`` comes with a norm layer that has nothing to learn.
        TypeError: ``spatial`` is not a bool, or ``norm_cfg`` no dict with a type.
    """

    _abbr_ = "triplet_attention"

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 7,
        spatial: bool = True,
        norm_cfg: dict = NORM_CFG,
        identity_init: bool = False,
    ):
        check_bool("TripletAttention", "spatial", spatial)
        super().__init__(in_channels, identity_init, neutral=0.5)
        for name in POOLED:
            gate = nn.ModuleDict({"conv": max_mean_conv("TripletAttention", kernel_size, norm_cfg)})
            setattr(self, name, gate if spatial or name != "hw" else None)
        self.reset_parameters()

    @property
    def _gates(self) -> dict[str, nn.ModuleDict]:
        gates = {name: getattr(self, name) for name in POOLED}
        return {name: gate["conv"] for name, gate in gates.items() if gate is not None}

    def reset_parameters(self) -> None:
        """PyTorch's default; with ``identity_init`` each norm layer's affine is zero."""
        for gate in self._gates.values():
            gate["conv"].reset_parameters()
            gate["bn"].reset_parameters()
            if self.identity_init:
                zero_affine(self, gate["bn"])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        check_map("TripletAttention", x, self.in_channels)
        return _forward(x, self)

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The factor of each value, (N, C, H, W), and a_hw, (N, 1, H, W), a third of it.

        With ``spatial=False`` the factor alone.
        """
        check_map("TripletAttention", x, self.in_channels)
        gates = _gates(x, self)
        maps = [self._factor("gate", "spatial", _mean(gates, self))]
        if "hw" in gates:
            spatial = scaled(gates["hw"], self.gate_scale)
            same = dict(neutral=self.neutral_factor, bounds=(0, 1 / self._divisor))
            maps.append(AttentionMap("spatial gate", "spatial", spatial, "detail", **same))
        return maps


@without_autocast
def _forward(x: Tensor, module: TripletAttention) -> Tensor:
    return x * _mean(_gates(x, module), module).to(x.dtype)


def _gates(x: Tensor, module: TripletAttention) -> dict[str, Tensor]:
    """a_cw, a_hc and a_hw, by these names."""
    return {
        name: max_mean_gate(layers, x.transpose(1, POOLED[name])).transpose(1, POOLED[name])
        for name, layers in module._gates.items()
    }


def _mean(gates: dict[str, Tensor], module: TripletAttention) -> Tensor:
    """(N, C, H, W): what each value is multiplied by."""
    # the gates' mean, not that of three products: neutral gates then give x to the last bit
    return scaled(sum(gates.values()) / len(gates), module.gate_scale)
