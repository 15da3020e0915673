"""The global context block.

Paper: Cao et al., GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, 2019,
https://arxiv.org/abs/1904.11492
Consulted: https://github.com/xvjiarui/GCNet (names, initial values, placement)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mmattn.ops import GCTransform, gc
from mmattn.ops._backend import check_map
from mmattn.ops.gc.reference import context_mask, fused, pool
from mmattn.plugins.base import AttentionModule, check_choice, in_dtype_of
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS

FUSIONS = ("add", "mul")


@MODELS.register_module()
class GC(AttentionModule):
    """Global context block: adds to, or scales, every position by one context of the map.

    ::

        ctx = sum_i softmax_i(Wk x_i + bk) x_i        over the positions i
        f(ctx) = W2 relu(LayerNorm(W1 ctx + b1)) + b2     each fusion has its own f
        y = x + f(ctx)                                    fusion=('add',)
        y = x * sigmoid(f(ctx))                           fusion=('mul',)
        y = x * sigmoid(f_mul(ctx)) + f_add(ctx)          fusion=('add', 'mul')

    Paper: https://arxiv.org/abs/1904.11492.
    Reference: GCNet's release and mmcv's ContextBlock; parameter names ``conv_mask.*``,
    ``channel_add_conv.*``, ``channel_mul_conv.*``.
    Deviations: none.
    Identity at init: yes with ('add',), where W2 and b2 are zero. With 'mul' the map starts at a
    factor of 0.5; with ``identity_init`` the gate is divided by it.
    Cost: 2 C^2 / ratio parameters and about C a fusion; two passes over the map.

    Args:
        in_channels: C.
        ratio: Divisor of C that gives the hidden width P = C // ratio.
        pooling: ``'att'``: the softmax above; ``'avg'``: ctx = mean_hw(x), no ``conv_mask``.
        fusion: Any of ``'add'`` and ``'mul'``; 'mul' is applied first.
        identity_init: Start as identity with 'mul', too.

    Shape:
        (N, C, H, W) in and out.

    Raises:
        ValueError: ``ratio`` is no integer in [1, C], or ``pooling`` or ``fusion`` is unknown.
    """

    _abbr_ = "context_block"

    def __init__(
        self,
        in_channels: int,
        ratio: int = 16,
        pooling: str = "att",
        fusion: Sequence[str] = ("add",),
        identity_init: bool = False,
    ):
        check_choice("GC", "pooling", pooling, ("att", "avg"))
        # a bare 'add' would iterate over its letters
        fusion = (fusion,) if isinstance(fusion, str) else tuple(fusion)
        if not fusion or len(set(fusion)) != len(fusion) or not set(fusion) <= set(FUSIONS):
            raise ValueError(
                f"GC expects fusion to hold 'add', 'mul', or both once each, got {fusion}"
            )
        super().__init__(in_channels, identity_init, neutral=0.5 if "mul" in fusion else 1.0)
        hidden = self._hidden_channels(ratio)
        self.fusion = fusion
        self.conv_mask = nn.Conv2d(in_channels, 1, 1) if pooling == "att" else None
        for name in FUSIONS:
            block = None
            if name in fusion:
                block = nn.Sequential(
                    nn.Conv2d(in_channels, hidden, 1),
                    nn.LayerNorm([hidden, 1, 1]),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(hidden, in_channels, 1),
                )
            setattr(self, f"channel_{name}_conv", block)
        self.reset_parameters()

    @property
    def identity_at_init(self) -> bool:
        """True with ``fusion=('add',)`` or ``identity_init``."""
        return self.identity_init or "mul" not in self.fusion

    def reset_parameters(self) -> None:
        """Wk Kaiming-normal (fan in) with bias 0; W2 and b2 zero; the rest PyTorch's default."""
        if self.conv_mask is not None:
            nn.init.kaiming_normal_(self.conv_mask.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(self.conv_mask.bias)
        for name in self.fusion:
            first, norm, _, last = getattr(self, f"channel_{name}_conv")
            first.reset_parameters()
            norm.reset_parameters()
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def _transform(self, block: nn.Sequential | None) -> GCTransform | None:
        if block is None:
            return None
        return GCTransform(*(p for i in (0, 1, 3) for p in (block[i].weight, block[i].bias)))

    def _operands(self):
        """Weight and bias of the mask, the parameters for 'add' and for 'mul'; or None each."""
        mask = (None, None)
        if self.conv_mask is not None:
            mask = (self.conv_mask.weight, self.conv_mask.bias)
        return mask, self._transform(self.channel_add_conv), self._transform(self.channel_mul_conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        mask, add, mul = self._operands()
        return gc(x, *mask, add, mul, self.gate_scale)

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The context's mask, a softmax over the positions, and what the channels get from it.

        (N, 1, H, W) with ``pooling='att'``; a factor (N, C) with 'mul', a term (N, C) with 'add'.
        """
        check_map("GC", x, self.in_channels)
        mask, *fusions = self._operands()
        mask = in_dtype_of(x, *mask)
        add, mul = (None if p is None else p.to(x.dtype) for p in fusions)
        gate, term = fused(pool(x, *mask), add, mul, *in_dtype_of(x, self.gate_scale))
        maps = []
        if self.conv_mask is not None:
            shares = context_mask(x, *mask).view(len(x), 1, *x.shape[2:])
            maps.append(AttentionMap("context mask", "weights", shares, "detail", bounds=(0, 1)))
        if gate is not None:
            maps.append(self._factor("channel gate", "channel", gate))
        if term is not None:
            maps.append(AttentionMap("added context", "channel", term, "term", neutral=0))
        return maps
