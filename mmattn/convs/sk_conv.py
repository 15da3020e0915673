"""Selective kernel convolution.

Paper: Li et al., Selective Kernel Networks, CVPR 2019, https://arxiv.org/abs/1903.06586
Consulted: https://github.com/implus/PytorchInsight (names, its modified form)
"""

from __future__ import annotations

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.convs.base import ConvLayer, run_in_dtype_of
from mmattn.ops._backend import check_map, statistics_dtype, without_autocast
from mmattn.plugins.base import build_norm, check_positive_int, normalize
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS

NORM_CFG = dict(type="BN")


@MODELS.register_module()
class SKConv2d(ConvLayer):
    """Two convolutions, a plain and a grouped one, and a choice between them for each channel.

    ::

        d1 = relu(bn(conv x))
        d2 = relu(bng(convg x))                                  ``branch_groups`` groups
        z = relu(bn_fc1(conv_fc1(mean_hw d1 + mean_hw d2)))      (N, O / ratio)
        a1, a2 = softmax over the two branches of conv_fc2 z     (N, O) each
        y = a1 d1 + a2 d2  (+ bias)

    As conv2 of a ResNet's stages: ``dcn=dict(type='mmattn.SKConv2d'), stage_with_dcn=(False,
    False, True, True)``. The ResNet's own norm and ReLU follow there; in the paper's network they
    do not, which is :class:`mmattn.SKResNet`.

    Paper: https://arxiv.org/abs/1903.06586.
    Reference: the authors' PytorchInsight, whose names these are but for the 2 of ``conv2``,
    ``bn2``, ``conv2g`` and ``bn2g``. It is their modified form: both kernels have the same size,
    and one of them groups.
    Deviations: a BatchNorm that would see one value a channel in training uses its running
    statistics. ``bias`` is added to the output, since the norms would take it out of the
    branches; it is not in the paper.
    Identity at init: none. Every layer starts as PyTorch's default, ``bias`` at zero. The weight
    of a plain convolution loads into ``conv``, the first branch, with a line in the log: the
    layer does not compute what that convolution computed.
    Cost: 1 + groups / branch_groups convolutions, (1 + groups / branch_groups) times the
    parameters and 3 O^2 / ratio more; d1 and d2 are kept for the backward pass.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: As in ``nn.Conv2d``, like the next seven: of both branches.
        stride: As in ``nn.Conv2d``.
        padding: As in ``nn.Conv2d``, but no strings.
        dilation: As in ``nn.Conv2d``.
        groups: As in ``nn.Conv2d``: of the first branch.
        bias: As in ``nn.Conv2d``: added to the output.
        padding_mode: As in ``nn.Conv2d``.
        branch_groups: Groups of the second branch.
        ratio: Integer divisor of O: z has O / ratio channels.
        norm_cfg: The norm layers.

    Shape:
        (N, C, H, W) -> (N, O, H', W').

    Raises:
        ValueError: An argument that is out of range, ``branch_groups`` that do not divide the
            channels, or a ``norm_cfg`` that does not fit them.
        TypeError: ``norm_cfg`` is not a dict with a type.
    """

    identity_at_init = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        branch_groups: int = 32,
        ratio: int = 16,
        norm_cfg: dict = NORM_CFG,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        self.branch_groups = self._check_groups("branch_groups", branch_groups)

        def branch(groups):
            return nn.Conv2d(
                in_channels, out_channels, self.kernel_size, self.stride, self.padding,
                self.dilation, groups, bias=False, padding_mode=padding_mode,
            )  # fmt: skip

        self.conv = branch(groups)
        self.bn = build_norm("SKConv2d", norm_cfg, out_channels)
        self.convg = branch(branch_groups)
        self.bng = build_norm("SKConv2d", norm_cfg, out_channels)
        for key, layer in choice_layers("SKConv2d", out_channels, ratio, norm_cfg).items():
            self.add_module(key, layer)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)

    def reset_parameters(self) -> None:
        """Every layer as PyTorch's default, the bias zero."""
        for layer in self.children():
            layer.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{super().extra_repr()}, branch_groups={self.branch_groups}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W')."""
        return self._biased(select_kernel(*self._branches(x), self))

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The shares a1 and a2 of the two branches in each channel, (N, 2, O)."""
        return run_in_dtype_of(x, self, lambda layer: branch_shares(*layer._branches(x), layer))

    def without_attention(self, x: Tensor) -> Tensor:
        """What the layer would give without a choice: all shares 1/2.

        Args:
            x: Feature map (N, C, H, W).

        Returns:
            (N, O, H', W').
        """
        return self._biased(mean_of_branches(*self._branches(x)))

    def _branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """d1 and d2."""
        check_map("SKConv2d", x, self.in_channels)
        return F.relu(_normed(self.bn, self.conv(x))), F.relu(_normed(self.bng, self.convg(x)))

    def _biased(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    _last_load = None  # the list of missing keys of the load that was logged last

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, *args, **kwargs
    ):
        if prefix + "weight" in state_dict:
            state_dict[prefix + "conv.weight"] = state_dict.pop(prefix + "weight")
            # all modules of one load get the same list: one line a load, not one a layer
            if SKConv2d._last_load is not missing_keys:
                SKConv2d._last_load = missing_keys
                print_log(
                    f"mmattn: {prefix.rstrip('.') or 'SKConv2d'} (and others, if any) takes the "
                    "weight of a plain convolution into its first branch; it does NOT compute "
                    "what that convolution computed, and has to be trained",
                    logger="current",
                )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *args, **kwargs
        )


def choice_layers(owner: str, channels: int, ratio: int, norm_cfg: dict) -> dict[str, nn.Module]:
    """The layers that choose between two branches of so many channels, by the authors' names."""
    if isinstance(ratio, float) and 0 < ratio < 1:
        raise ValueError(
            f"{owner} expects ratio as an integer divisor of the channels, got the fraction "
            f"{ratio}; for that share give ratio={round(1 / ratio)}"
        )
    check_positive_int(owner, "ratio", ratio)
    if ratio > channels:
        raise ValueError(
            f"{owner} expects ratio to be at most the number of channels, "
            f"got ratio={ratio} for {channels} channels"
        )
    hidden = channels // ratio
    norm = build_norm(owner, norm_cfg, hidden)
    if getattr(norm, "num_groups", 0) == hidden or isinstance(norm, nn.InstanceNorm2d):
        raise ValueError(
            f"{owner} normalises {hidden} values an image (channels / ratio), and each of them "
            f"alone would be nothing; give norm_cfg another type, or fewer groups than {hidden}"
        )
    return {
        "conv_fc1": nn.Conv2d(channels, hidden, 1, bias=False),
        "bn_fc1": norm,
        "conv_fc2": nn.Conv2d(hidden, 2 * channels, 1, bias=False),
    }


@without_autocast
def select_kernel(d1: Tensor, d2: Tensor, layers: nn.Module) -> Tensor:
    """``a1 d1 + a2 d2`` for two maps (N, O, H, W), see :class:`SKConv2d`.

    The shares are made in float32 or better, by the :func:`choice_layers` of ``layers``.
    """
    a1, a2 = _shares(d1, d2, layers).to(d1.dtype).unbind(1)
    return a1 * d1 + a2 * d2


def mean_of_branches(d1: Tensor, d2: Tensor, layers: nn.Module | None = None) -> Tensor:
    """As :func:`select_kernel` with equal shares."""
    return 0.5 * d1 + 0.5 * d2


def branch_shares(d1: Tensor, d2: Tensor, layers: nn.Module) -> list[AttentionMap]:
    """What :func:`select_kernel` takes of the two maps, for ``attention``."""
    shares = _shares(d1, d2, layers).flatten(2)
    return [AttentionMap("branch shares", "shares", shares, "detail", 0.5, (0, 1))]


def _shares(d1: Tensor, d2: Tensor, layers: nn.Module) -> Tensor:
    """a1 and a2, (N, 2, O, 1, 1)."""
    dtype = statistics_dtype(d1)
    s = d1.mean((2, 3), keepdim=True, dtype=dtype) + d2.mean((2, 3), keepdim=True, dtype=dtype)
    z = F.relu(normalize(layers.bn_fc1, F.conv2d(s, layers.conv_fc1.weight.to(dtype))))
    logits = F.conv2d(z, layers.conv_fc2.weight.to(dtype))
    return logits.unflatten(1, (2, -1)).softmax(1)


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)``, but by its running statistics where it would see one value a channel."""
    return normalize(norm, x) if norm.training and x.numel() <= x.shape[1] else norm(x)
