"""A convolution with gated channel transformation in front of it.

Paper: Yang et al., Gated Channel Transformation for Visual Recognition, CVPR 2020,
https://arxiv.org/abs/1909.11519
Consulted: https://github.com/z-x-yang/GCT (placement)
"""

from __future__ import annotations

from torch import nn

from mmattn.plugins.gct import GCT
from mmattn.registry import MODELS


@MODELS.register_module()
class GCTConv2d(nn.Sequential):
    """GCT, then a convolution: ``conv_cfg=dict(type='mmattn.GCTConv2d')`` is the paper's placement.

    As ``conv_cfg`` of a ResNet it stands before every convolution: the stem, conv1 to conv3 of
    each block and the downsample branch.

    Paper: https://arxiv.org/abs/1909.11519.
    Reference: the authors' release, where the pair is ``conv1.0.{alpha,gamma,beta}`` and
    ``conv1.1.weight``, as here.
    Deviations: none.
    Identity at init: as :class:`mmattn.GCT`. Weights of the plain convolution load by
    themselves: their ``conv1.weight`` becomes ``conv1.1.weight``.
    Cost: 3 ``in_channels`` parameters over the plain convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: As in ``nn.Conv2d``, like the next six.
        stride: As in ``nn.Conv2d``.
        padding: As in ``nn.Conv2d``.
        dilation: As in ``nn.Conv2d``.
        groups: As in ``nn.Conv2d``.
        bias: As in ``nn.Conv2d``.
        padding_mode: As in ``nn.Conv2d``.
        norm: As in :class:`mmattn.GCT`, like the rest.
        after_relu: As in :class:`mmattn.GCT`.
        eps: As in :class:`mmattn.GCT`.
        gate: As in :class:`mmattn.GCT`.
        identity_init: As in :class:`mmattn.GCT`.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, H', W').

    Raises:
        ValueError: As :class:`mmattn.GCT` and ``nn.Conv2d``.
    """

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
        norm: str = "l2",
        after_relu: bool = False,
        eps: float = 1e-5,
        gate: str = "1+tanh",
        identity_init: bool = False,
    ):
        super().__init__(
            GCT(in_channels, norm, after_relu, eps, gate, identity_init),
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                dilation,
                groups,
                bias,
                padding_mode,
            ),
        )

    def __getattr__(self, name: str):
        """``weight``, ``stride`` and the other attributes of a convolution, which mmcv reads."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if name.startswith("_") or "1" not in modules:
                raise
            return getattr(modules["1"], name)

    @property
    def identity_at_init(self) -> bool:
        """Whether the layer computes the plain convolution after ``init_weights``."""
        return self[0].identity_at_init

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        for name in ("weight", "bias"):
            if prefix + name in state_dict:
                state_dict[f"{prefix}1.{name}"] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
