"""Squeeze-and-excitation.

Paper: Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, https://arxiv.org/abs/1709.01507
Consulted: https://github.com/implus/PytorchInsight (names, placement in detectors)
"""

from __future__ import annotations

from torch import Tensor, nn

from mmattn.ops import se
from mmattn.ops._backend import check_map
from mmattn.ops.se.reference import gate as channel_gate
from mmattn.plugins.base import AttentionModule, in_dtype_of
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS


@MODELS.register_module()
class SE(AttentionModule):
    """Squeeze-and-excitation: scales each channel by a gate made from all channels' means.

    ``y = x * sigmoid(W2 relu(W1 mean_hw(x) + b1) + b2)``

    Paper: https://arxiv.org/abs/1709.01507.
    Reference: the detection release of PytorchInsight; parameter names ``fc.0.*``, ``fc.2.*``.
    Deviations: none.
    Identity at init: no; every channel starts near a factor of 0.5. With ``identity_init`` yes:
    ``fc.2`` starts at zero and the gate is divided by 0.5.
    Cost: 2 C^2 / ratio parameters (and C + C / ratio biases); two passes over the map.

    Args:
        in_channels: C.
        ratio: Divisor of C that gives the hidden width P = C // ratio.
        bias: Biases in both layers: on in the detection release, off in other releases.
        identity_init: Start as identity.

    Shape:
        (N, C, H, W) in and out.

    Raises:
        ValueError: ``ratio`` is no integer in [1, C], or ``in_channels`` no integer above 0.
    """

    _abbr_ = "se"

    def __init__(
        self, in_channels: int, ratio: int = 16, bias: bool = True, identity_init: bool = False
    ):
        super().__init__(in_channels, identity_init, neutral=0.5)
        hidden = self._hidden_channels(ratio)
        self.fc = nn.Sequential(
            nn.Linear(in_channels, hidden, bias=bias),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, in_channels, bias=bias),
            nn.Sigmoid(),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default for both layers; with ``identity_init`` the second is zero."""
        self.fc[0].reset_parameters()
        self.fc[2].reset_parameters()
        if self.identity_init:
            for parameter in self.fc[2].parameters():
                nn.init.zeros_(parameter)

    def _operands(self) -> tuple[Tensor | None, ...]:
        first, _, second, _ = self.fc
        return first.weight, first.bias, second.weight, second.bias, self.gate_scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return se(x, *self._operands())

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The factor of each channel, (N, C)."""
        check_map("SE", x, self.in_channels)
        gate = channel_gate(x, *in_dtype_of(x, *self._operands()))
        return [self._factor("channel gate", "channel", gate)]
