"""Gated channel transformation.

Paper: Yang et al., Gated Channel Transformation for Visual Recognition, CVPR 2020,
https://arxiv.org/abs/1909.11519
Consulted: https://github.com/z-x-yang/GCT (names, initial values, placement)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmattn.ops import gct
from mmattn.ops._backend import check_map
from mmattn.ops.gct import GATES, NORMS
from mmattn.ops.gct.reference import channel_gate
from mmattn.plugins.base import AttentionModule, check_choice, in_dtype_of
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS

HIGHEST = {"1+tanh": 2.0, "sigmoid": 1.0}


@MODELS.register_module()
class GCT(AttentionModule):
    """Gated channel transformation: scales channels by their norm against the others' norms.

    ::

        norm='l2':  e = alpha sqrt(sum_hw x^2 + eps)    n = gamma / sqrt(mean_c e^2 + eps)
        norm='l1':  e = alpha sum_hw |x|                n = gamma / (mean_c |e| + eps)
        y = x * (1 + tanh(e n + beta))

    Paper: https://arxiv.org/abs/1909.11519. The paper puts it before every convolution, which is
    :class:`mmattn.GCTConv2d`; as a plug-in (one a block) it gains 0.1 to 0.2 top-1 less there.
    Reference: the authors' release; parameter names ``alpha``, ``gamma``, ``beta``.
    Deviations: none. ``beta`` should have no weight decay, see ``docs/modules/gct.md``.
    Identity at init: yes with the gates '1+tanh' and '1+elu'. 'sigmoid' starts at a factor of
    0.5; with ``identity_init`` the gate is divided by it.
    Cost: 3 C parameters; two passes over the map.

    Args:
        in_channels: C.
        norm: ``'l2'`` or ``'l1'``.
        after_relu: With ``'l1'``, the input is known to be >= 0 and is summed as it is.
        eps: As in the formulas.
        gate: ``'1+tanh'``, or the paper's ablations ``'sigmoid'`` and ``'1+elu'``.
        identity_init: Start as identity with every gate.

    Shape:
        (N, C, H, W) in and out.

    Raises:
        ValueError: ``norm`` or ``gate`` is unknown, or ``after_relu`` comes with 'l2'.
    """

    _abbr_ = "gct"

    def __init__(
        self,
        in_channels: int,
        norm: str = "l2",
        after_relu: bool = False,
        eps: float = 1e-5,
        gate: str = "1+tanh",
        identity_init: bool = False,
    ):
        check_choice("GCT", "norm", norm, NORMS)
        check_choice("GCT", "gate", gate, GATES)
        if after_relu and norm != "l1":
            raise ValueError("GCT uses after_relu with norm='l1' only; leave it out with 'l2'")
        super().__init__(in_channels, identity_init, neutral=0.5 if gate == "sigmoid" else 1.0)
        self.norm = norm
        self.after_relu = after_relu
        self.eps = eps
        self.gate = gate
        for name in ("alpha", "gamma", "beta"):
            self.register_parameter(name, nn.Parameter(torch.empty(1, in_channels, 1, 1)))
        self.reset_parameters()

    @property
    def identity_at_init(self) -> bool:
        """True with a gate that is 1 at zero, or ``identity_init``."""
        return self.identity_init or self._neutral == 1

    def reset_parameters(self) -> None:
        """Alpha 1, gamma 0, beta 0."""
        nn.init.ones_(self.alpha)
        nn.init.zeros_(self.gamma)
        nn.init.zeros_(self.beta)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{self.in_channels}, norm={self.norm}, gate={self.gate}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return gct(
            x,
            self.alpha,
            self.gamma,
            self.beta,
            self.eps,
            self.norm,
            self.after_relu,
            self.gate,
            self.gate_scale,
        )

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The factor of each channel, (N, C)."""
        check_map("GCT", x, self.in_channels)
        operands = in_dtype_of(x, self.alpha, self.gamma, self.beta, self.gate_scale)
        gate = channel_gate(x, *operands, self.eps, self.norm, self.after_relu, self.gate)
        highest = HIGHEST.get(self.gate)
        return [self._factor("channel gate", "channel", gate.flatten(1), highest=highest)]
