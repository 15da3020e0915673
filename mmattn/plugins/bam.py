"""The bottleneck attention module.

Paper: Park et al., BAM: Bottleneck Attention Module, BMVC 2018, https://arxiv.org/abs/1807.06514
Consulted: https://github.com/Jongchan/attention-module and
https://github.com/implus/PytorchInsight (names, initial values, placement)
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.ops._backend import check_map, scaled, statistics_dtype, without_autocast
from mmattn.plugins._gates import conv, linear
from mmattn.plugins.base import AttentionModule, build_norm, check_positive_int, normalize
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS

NORM_CFG = dict(type="BN")


@MODELS.register_module()
class BAM(AttentionModule):
    """Bottleneck attention: strengthens by up to 2, from what each channel and position say.

    ::

        c(x) = W2 relu(BN(W1 mean_hw(x) + b1)) + b2                        (N, C, 1, 1)
        s(x) = conv1x1(relu(BN(dilated(... relu(BN(conv1x1 x))))))         (N, 1, H, W)
        y = x * (1 + sigmoid(c(x) * s(x)))

    Paper: https://arxiv.org/abs/1807.06514 (which adds the two maps; the release multiplies them).
    Reference: the authors' release and PytorchInsight; parameter names
    ``channel_att.gate_c.gate_c_{fc_0,bn_1,fc_final}.*``,
    ``spatial_att.gate_s.gate_s_{conv_reduce0,bn_reduce0,conv_di_i,bn_di_i,conv_final}.*``.
    Deviations: c(x) pools the whole map, as PytorchInsight does, where the first release pools a
    square window. A BatchNorm that would see one value a channel in training uses its running
    statistics: that of c(x) with a batch of one image.
    Identity at init: no; everything starts near a factor of 1.5. With ``identity_init`` yes:
    ``conv_final`` starts at zero and the factor is divided by 1.5.
    Cost: with P = C // ratio and n = num_dilated_convs, 3 C P + 9 n P^2 + C + (7 + 3 n) P + 1
    parameters; three passes over the map and n + 1 convolutions on P channels.

    Args:
        in_channels: C.
        ratio: Divisor of C that gives the hidden width P of both branches.
        dilation: Of the 3x3 convolutions in s(x).
        num_dilated_convs: How many of them.
        norm_cfg: The norm layers.
        identity_init: Start as identity.

    Shape:
        (N, C, H, W) in and out.

    Raises:
        ValueError: ``ratio`` is no integer in [1, C], ``dilation`` or ``num_dilated_convs`` no
            integer above 0, ``norm_cfg`` cannot be built, or its groups hold a single value.
        TypeError: ``norm_cfg`` is no dict with a type.
    """

    _abbr_ = "bam"

    def __init__(
        self,
        in_channels: int,
        ratio: int = 16,
        dilation: int = 4,
        num_dilated_convs: int = 2,
        norm_cfg: dict = NORM_CFG,
        identity_init: bool = False,
    ):
        super().__init__(in_channels, identity_init, neutral=1.5)
        hidden = self._hidden_channels(ratio)
        check_positive_int("BAM", "dilation", dilation)
        check_positive_int("BAM", "num_dilated_convs", num_dilated_convs)
        channel = {
            "gate_c_fc_0": nn.Linear(in_channels, hidden),
            "gate_c_bn_1": build_norm("BAM", norm_cfg, hidden),
            "gate_c_fc_final": nn.Linear(hidden, in_channels),
        }
        if getattr(channel["gate_c_bn_1"], "num_groups", 0) == hidden:
            raise ValueError(
                f"BAM normalises {hidden} values an image in its channel branch, and groups of a "
                f"single value would leave nothing; give norm_cfg fewer groups than {hidden}"
            )
        spatial = {
            "gate_s_conv_reduce0": nn.Conv2d(in_channels, hidden, 1),
            "gate_s_bn_reduce0": build_norm("BAM", norm_cfg, hidden),
        }
        for i in range(num_dilated_convs):
            spatial[f"gate_s_conv_di_{i}"] = nn.Conv2d(
                hidden, hidden, 3, padding=dilation, dilation=dilation
            )
            spatial[f"gate_s_bn_di_{i}"] = build_norm("BAM", norm_cfg, hidden)
        spatial["gate_s_conv_final"] = nn.Conv2d(hidden, 1, 1)
        self.channel_att = nn.ModuleDict({"gate_c": nn.ModuleDict(channel)})
        self.spatial_att = nn.ModuleDict({"gate_s": nn.ModuleDict(spatial)})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default; with ``identity_init`` ``conv_final`` is zero."""
        spatial = self.spatial_att["gate_s"]
        for layer in (*self.channel_att["gate_c"].values(), *spatial.values()):
            layer.reset_parameters()
        if self.identity_init:
            nn.init.zeros_(spatial["gate_s_conv_final"].weight)
            nn.init.zeros_(spatial["gate_s_conv_final"].bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        check_map("BAM", x, self.in_channels)
        return _forward(x, self)

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The factor of each value, (N, C, H, W), and the two logits that make it.

        c(x) of the channels, (N, C), and s(x) of the positions, (N, 1, H, W), whose product the
        sigmoid takes: where one of them is 0 the factor is neutral.
        """
        check_map("BAM", x, self.in_channels)
        c, s = _branches(x, self)
        detail = dict(role="detail", neutral=0)
        return [
            self._factor("gate", "spatial", _gate(c, s, self), 1, 2),
            AttentionMap("channel branch", "channel", c.flatten(1), **detail),
            AttentionMap("spatial branch", "spatial", s, **detail),
        ]


@without_autocast
def _forward(x: Tensor, module: BAM) -> Tensor:
    gate = _gate(*_branches(x.to(statistics_dtype(x)), module), module)
    return x * gate.to(x.dtype)


def _gate(c: Tensor, s: Tensor, module: BAM) -> Tensor:
    """(N, C, H, W): what each value is multiplied by."""
    return scaled(1 + (c * s).sigmoid(), module.gate_scale)


def _branches(wide: Tensor, module: BAM) -> tuple[Tensor, Tensor]:
    """c(x), (N, C, 1, 1), and s(x), (N, 1, H, W)."""
    first, norm, last = module.channel_att["gate_c"].values()
    # as maps of 1x1: what norm_cfg calls BN takes maps only
    c = linear(first, wide.mean((2, 3)))[:, :, None, None]
    c = linear(last, F.relu(normalize(norm, c)).flatten(1))[:, :, None, None]
    *layers, last = module.spatial_att["gate_s"].values()
    s = wide
    for convolution, norm in zip(layers[::2], layers[1::2], strict=True):
        s = F.relu(normalize(norm, conv(convolution, s)))
    return c, conv(last, s)
