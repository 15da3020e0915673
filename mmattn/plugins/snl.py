"""The simplified non-local block.

Paper: Cao et al., GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, 2019,
https://arxiv.org/abs/1904.11492
Consulted: the paper alone; no release has the block.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmattn.ops import snl
from mmattn.ops._backend import check_map
from mmattn.ops.gc.reference import context_mask
from mmattn.ops.snl.reference import term
from mmattn.plugins.base import AttentionModule, in_dtype_of
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS


@MODELS.register_module()
class SNL(AttentionModule):
    """Simplified non-local block: adds one transformed context of the map to every position.

    ::

        ctx = sum_i softmax_i(Wk x_i + bk) x_i        over the positions i
        y = x + Wv ctx

    Paper: https://arxiv.org/abs/1904.11492, where it is the step from the non-local block to GC.
    Reference: none was released; parameter names ``conv_mask.*``, as in :class:`mmattn.GC`, and
    ``conv_value.weight``.
    Deviations: none.
    Identity at init: yes; Wv is zero.
    Cost: C^2 + C + 1 parameters; two passes over the map.

    Args:
        in_channels: C.
        identity_init: Accepted; the block starts as identity either way.

    Shape:
        (N, C, H, W) in and out.

    Raises:
        ValueError: ``in_channels`` is no integer above 0.
    """

    _abbr_ = "snl"

    def __init__(self, in_channels: int, identity_init: bool = False):
        super().__init__(in_channels, identity_init, neutral=1.0)
        self.conv_mask = nn.Conv2d(in_channels, 1, 1)
        self.conv_value = nn.Conv2d(in_channels, in_channels, 1, bias=False)
        self.reset_parameters()

    @property
    def identity_at_init(self) -> bool:
        """Always."""
        return True

    def reset_parameters(self) -> None:
        """Wk Kaiming-normal (fan in) with bias 0, as in GC; Wv zero."""
        nn.init.kaiming_normal_(self.conv_mask.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.conv_mask.bias)
        nn.init.zeros_(self.conv_value.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return snl(x, *self._operands())

    def _operands(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.conv_mask.weight, self.conv_mask.bias, self.conv_value.weight

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The context's mask, a softmax over the positions, (N, 1, H, W), and the term (N, C)."""
        check_map("SNL", x, self.in_channels)
        *mask, value = in_dtype_of(x, *self._operands())
        shares = context_mask(x, *mask).view(len(x), 1, *x.shape[2:])
        return [
            AttentionMap("context mask", "weights", shares, "detail", bounds=(0, 1)),
            AttentionMap("added context", "channel", term(x, *mask, value), "term", neutral=0),
        ]
