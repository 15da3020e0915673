"""The convolutional block attention module.

Paper: Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018,
https://arxiv.org/abs/1807.06521
Consulted: https://github.com/Jongchan/attention-module and
https://github.com/implus/PytorchInsight (names, initial values, placement)
"""

from __future__ import annotations

from torch import Tensor, nn

from mmattn.ops import cbam
from mmattn.ops._backend import check_map
from mmattn.ops.cbam import reference
from mmattn.plugins._gates import check_bool, conv, max_mean_conv, zero_affine
from mmattn.plugins.base import AttentionModule, in_dtype_of, normalize
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS

NORM_CFG = dict(type="BN", momentum=0.01)


@MODELS.register_module()
class CBAM(AttentionModule):
    """Convolutional block attention: a gate for each channel, then one for each position.

    ::

        x' = x * sigmoid(mlp(mean_hw x) + mlp(max_hw x))      mlp(z) = W2 relu(W1 z + b1) + b2
        y = x' * sigmoid(BN(conv([max_c x'; mean_c x'])))

    Paper: https://arxiv.org/abs/1807.06521.
    Reference: the authors' release and PytorchInsight; parameter names ``ChannelGate.mlp.{1,3}.*``,
    ``SpatialGate.spatial.{conv,bn}.*``.
    Deviations: where values tie for a maximum they share its gradient (the release gives it to
    one). A BatchNorm that would see one value in training (N = H = W = 1) or none uses its running
    statistics.
    Identity at init: no; everything starts near a factor of 0.25. With ``identity_init`` yes:
    ``mlp.3`` and the factor and shift of ``bn`` start at zero, each gate is divided by 0.5.
    Cost: 2 C^2 / ratio + C + C / ratio + 2 kernel_size^2 + 2 parameters; three passes over the map.

    Args:
        in_channels: C.
        ratio: Divisor of C that gives the hidden width P = C // ratio.
        kernel_size: Of the spatial gate's convolution, odd.
        spatial: The second gate; False is the paper's ablation.
        norm_cfg: The norm layer of the spatial gate.
        identity_init: Start as identity.

    Shape:
        (N, C, H, W) in and out.

    Raises:
        ValueError: ``ratio`` is no integer in [1, C], ``kernel_size`` is not odd, ``norm_cfg``
            cannot be built, or ``identity_init`` comes with a norm layer that has nothing to learn.
        TypeError: ``spatial`` is not a bool, or ``norm_cfg`` no dict with a type.
    """

    _abbr_ = "cbam"

    def __init__(
        self,
        in_channels: int,
        ratio: int = 16,
        kernel_size: int = 7,
        spatial: bool = True,
        norm_cfg: dict = NORM_CFG,
        identity_init: bool = False,
    ):
        check_bool("CBAM", "spatial", spatial)
        super().__init__(in_channels, identity_init, neutral=0.25 if spatial else 0.5)
        hidden = self._hidden_channels(ratio)
        mlp = [nn.Flatten(), nn.Linear(in_channels, hidden), nn.ReLU()]
        self.ChannelGate = nn.ModuleDict(
            {"mlp": nn.Sequential(*mlp, nn.Linear(hidden, in_channels))}
        )
        gate = _SpatialLayers(max_mean_conv("CBAM", kernel_size, norm_cfg))
        self.SpatialGate = nn.ModuleDict({"spatial": gate}) if spatial else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default; with ``identity_init`` the last layer of each gate is zero."""
        _, first, _, last = self.ChannelGate["mlp"]
        first.reset_parameters()
        last.reset_parameters()
        if self.identity_init:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        if self.SpatialGate is not None:
            gate = self.SpatialGate["spatial"]
            gate["conv"].reset_parameters()
            gate["bn"].reset_parameters()
            if self.identity_init:
                zero_affine(self, gate["bn"])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        check_map("CBAM", x, self.in_channels)
        mlp, layers = self._operands()
        return cbam(x, *mlp, layers, self.gate_scale)

    def _operands(self):
        """The parameters of the channel gate, and the layers of the spatial one or None."""
        _, first, _, last = self.ChannelGate["mlp"]
        layers = None if self.SpatialGate is None else self.SpatialGate["spatial"]
        return (first.weight, first.bias, last.weight, last.bias), layers

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The factor of each channel, (N, C), and then of each position, (N, 1, H, W).

        With ``identity_init`` each is over its own neutral value, 0.5.
        """
        check_map("CBAM", x, self.in_channels)
        mlp, layers = self._operands()
        operands = in_dtype_of(x, *mlp, self.gate_scale)
        if layers is None:
            gate = reference.first_gate(x, *operands).flatten(1)
            return [self._factor("channel gate", "channel", gate)]
        first, second = reference.gates(x, *operands, layers)
        same = dict(neutral=self.neutral_factor**0.5, bounds=(0, self._divisor**-0.5))
        return [
            AttentionMap("channel gate", "channel", first.flatten(1), **same),
            AttentionMap("spatial gate", "spatial", second, **same),
        ]


class _SpatialLayers(nn.ModuleDict):
    """``bn(conv(maps))``: (N, 2, H, W) -> (N, 1, H, W)."""

    def forward(self, maps: Tensor) -> Tensor:
        return normalize(self["bn"], conv(self["conv"], maps))
