"""ShuffleNetV2 with dynamic region-aware convolution.

Paper: Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design,
ECCV 2018, https://arxiv.org/abs/1807.11164
Paper: Chen et al., Dynamic Region-Aware Convolution, CVPR 2021, https://arxiv.org/abs/2003.12243
Consulted: torchvision (names), the authors' 2024 release of DRConv (placement)
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmattn.convs.drconv import DRConv2d
from mmattn.plugins._statistics import running_statistics_kept
from mmattn.plugins.base import check_choice, check_positive_int
from mmattn.registry import MODELS

# channels of stages 2, 3 and 4, and of conv5
_CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
_BLOCKS = (4, 8, 4)
_STEM_CHANNELS = 24
_DRCONV_ARGUMENTS = [
    name
    for name, parameter in inspect.signature(DRConv2d).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
    and name not in ("shared_guide", "guide_kernel_size")
]


@MODELS.register_module()
class DRShuffleNetV2(BaseModule):
    """ShuffleNetV2, plain or with DRConv in the 1x1 convolutions of every block's right branch.

    A block with DRConv scores its regions once, from the input of the right branch, and both of
    its region-aware convolutions share the scores::

        F = masknet(x)
        h = relu(norm(DRConv(x, F)))
        y = relu(norm(DRConv(norm(depthwise3x3(h)), F)))

    In a block of stride 2 the second of them gets F resized.

    Weights of torchvision's ``shufflenet_v2_*`` load by name, with DRConv too: the network then
    computes what the plain one computes, while its regions are free to part ways in training.
    ``torchvision://shufflenet_v2_x1_0.imagenet1k_v1`` is the checkpoint in mmengine's words, and
    ``x0_5``, ``x1_5`` and ``x2_0`` are there as well.

    Paper: https://arxiv.org/abs/1807.11164 and https://arxiv.org/abs/2003.12243.
    Reference: torchvision (all names), the authors' release of DRConv (placement, ``masknet``).
    Deviations: the release builds on a ShuffleNetV2 whose left branch keeps its channels where
    the stride is 2 (only the first block differs), which shuffles before a block, not after it
    (other channels, the same network), and which has biases in ``conv1`` and ``conv5``. The
    initial scale of DRConv is that of :class:`mmattn.DRConv2d`.
    Cost: as a classifier of 1000 classes at 224 x 224, in M multiply-adds and M parameters::

        width   plain         DRConv, 8 regions, 8 templates
        0.5      40.5   1.37   50.1   2.29
        1.0     144.9   2.28  192.4   7.26
        1.5     295.8   3.50  401.2  14.73
        2.0     583.3   7.39  782.0  28.74

    Most of the difference is the making of the filters, which does not grow with the image.

    Args:
        widen_factor: 0.5, 1.0, 1.5 or 2.0, for (48, 96, 192), (116, 232, 464), (176, 352, 704) or
            (244, 488, 976) channels in stages 2, 3 and 4; the stem has 24.
        out_indices: Which maps to return: 0 is the stem's, after its pooling (stride 4), 1 to 3
            are those of stages 2 to 4 (strides 8, 16 and 32). Stages after the last are not built.
        drconv: Arguments of :class:`mmattn.DRConv2d`, such as ``regions``; ``dict()`` for its
            defaults, None for the plain network.
        num_classes: If given, the network is a classifier: it has ``conv5`` and ``fc``, and returns
            logits; ``out_indices`` is not used.
        frozen_stages: -1: nothing; 0: the stem; i: the stem and the first i stages, where nothing
            learns and no running statistics change.
        norm_eval: Keep the statistics of every BatchNorm in training, as mmdet's ResNet.
        norm_cfg: The normalization layers; None for BatchNorm.
        with_cp: Recompute every block in the backward pass, which saves memory. The running
            statistics are updated once all the same.
        init_cfg: As in mmengine; None for Kaiming's normal convolutions. ``masknet`` and DRConv
            keep their own initial state, whatever it says.

    Shape:
        (N, 3, H, W) -> a tuple of maps, or (N, num_classes).

    Raises:
        ValueError: An argument is out of range, or ``drconv`` has a key that is not one of
            DRConv2d's, or that the backbone sets.
        TypeError: ``drconv`` is not a dict.
    """

    def __init__(
        self,
        widen_factor: float = 1.0,
        out_indices: tuple[int, ...] = (0, 1, 2, 3),
        drconv: dict | None = None,
        num_classes: int | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = True,
        norm_cfg: dict | None = None,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        name = type(self).__name__
        check_choice(name, "widen_factor", widen_factor, tuple(_CHANNELS))
        check_choice(name, "frozen_stages", frozen_stages, (-1, 0, 1, 2, 3))
        if (
            not isinstance(out_indices, (tuple, list))
            or not out_indices
            or list(out_indices) != [i for i in range(4) if i in out_indices]
        ):
            raise ValueError(
                f"{name} expects out_indices to be a tuple of 0 (stem), 1, 2, 3 (stages 2 to 4), "
                f"each once and in this order, got {out_indices!r}"
            )
        if num_classes is not None:
            check_positive_int(name, "num_classes", num_classes)
        super().__init__(
            init_cfg
            or [
                dict(type="Kaiming", layer="Conv2d"),
                dict(type="Constant", val=1, layer=["_BatchNorm", "GroupNorm"]),
            ]
        )
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.num_classes = num_classes
        drconv = _check_drconv(name, drconv)
        norm_cfg = norm_cfg or dict(type="BN", requires_grad=True)

        *channels, head_channels = _CHANNELS[widen_factor]
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, _STEM_CHANNELS, 3, 2, 1, bias=False),
            _norm(norm_cfg, _STEM_CHANNELS),
            nn.ReLU(inplace=True),
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self._stages = ["stage2", "stage3", "stage4"]
        if num_classes is None:
            del self._stages[out_indices[-1] :]
        before = _STEM_CHANNELS
        for stage, width, blocks in zip(self._stages, channels, _BLOCKS, strict=False):
            self.add_module(
                stage,
                # mmengine's, which hands init_weights down to the blocks
                Sequential(
                    _Block(before, width, 2, norm_cfg, drconv, with_cp),
                    *(_Block(width, width, 1, norm_cfg, drconv, with_cp) for _ in range(1, blocks)),
                ),
            )
            before = width
        if num_classes is not None:
            self.conv5 = nn.Sequential(
                nn.Conv2d(before, head_channels, 1, bias=False),
                _norm(norm_cfg, head_channels),
                nn.ReLU(inplace=True),
            )
            self.fc = nn.Linear(head_channels, num_classes)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        """(N, 3, H, W) -> the maps of ``out_indices``, or the logits of a classifier."""
        x = self.maxpool(self.conv1(x))
        maps = [x]
        for stage in self._stages:
            x = getattr(self, stage)(x)
            maps.append(x)
        if self.num_classes is not None:
            return self.fc(self.conv5(x).mean((2, 3)))
        return tuple(maps[i] for i in self.out_indices)

    def train(self, mode: bool = True) -> DRShuffleNetV2:
        """Sets the mode, but for the frozen stages and, with ``norm_eval``, the BatchNorms."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze_stages(self) -> None:
        for name in ["conv1", *self._stages][: self.frozen_stages + 1]:
            getattr(self, name).eval().requires_grad_(False)


class _Block(BaseModule):
    """Left branch (the input, or with stride 2 a convolution), right branch, and the shuffle."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        norm_cfg: dict,
        drconv: dict | None,
        with_cp: bool,
    ):
        super().__init__()
        half = out_channels // 2
        right = in_channels if stride == 2 else half
        self.with_cp = with_cp

        def depthwise(channels):
            return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)

        def pointwise(channels):
            if drconv is None:
                return nn.Conv2d(channels, half, 1, bias=False)
            return DRConv2d(channels, half, 1, bias=False, shared_guide=True, **drconv)

        self.branch1 = self.masknet = None
        if stride == 2:
            self.branch1 = nn.Sequential(
                depthwise(in_channels),
                _norm(norm_cfg, in_channels),
                nn.Conv2d(in_channels, half, 1, bias=False),
                _norm(norm_cfg, half),
                nn.ReLU(inplace=True),
            )
        self.branch2 = Sequential(
            pointwise(right),
            _norm(norm_cfg, half),
            nn.ReLU(inplace=True),
            depthwise(half),
            _norm(norm_cfg, half),
            pointwise(half),
            _norm(norm_cfg, half),
            nn.ReLU(inplace=True),
        )
        if drconv is not None:
            self.masknet = nn.Conv2d(right, self.branch2[0].regions, 1, bias=False)

    def init_weights(self) -> None:
        """As BaseModule's, but ``masknet`` starts as DRConv2d's own guide does."""
        super().init_weights()
        if self.masknet is not None:
            self.masknet.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H, W), with stride 2 half the size."""
        if not (self.with_cp and torch.is_grad_enabled()):
            return self._forward(x)
        return checkpoint(
            self._forward,
            x,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), running_statistics_kept(self)),
        )

    def _forward(self, x: Tensor) -> Tensor:
        if self.branch1 is None:
            left, right = x.chunk(2, 1)
        else:
            left, right = self.branch1(x), x
        return _interleave(left, self._right(right), like=x)

    def _right(self, x: Tensor) -> Tensor:
        if self.masknet is None:
            return self.branch2(x)
        guide = self.masknet(x)
        for layer in self.branch2:
            x = layer(x, guide) if isinstance(layer, DRConv2d) else layer(x)
        return x

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # as a DRConv2d's own guide, masknet is not missing from the weights of a plain network
        plain = state_dict.get(prefix + "branch2.0.weight")
        if self.masknet is not None and plain is not None and plain.dim() == 4:
            state_dict.setdefault(prefix + "masknet.weight", self.masknet.weight.detach())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _check_drconv(owner: str, drconv) -> dict | None:
    """Returns ``drconv``, or raises unless it holds arguments of DRConv2d that are free here."""
    if drconv is None:
        return None
    if not isinstance(drconv, dict):
        raise TypeError(
            f"{owner} expects drconv to be a dict of arguments of DRConv2d (dict() for its "
            f"defaults), or None for plain convolutions, got {drconv!r}"
        )
    for key in drconv:
        if key not in _DRCONV_ARGUMENTS:
            taken = key == "type" or key in inspect.signature(DRConv2d).parameters
            why = "which the backbone sets" if taken else "which DRConv2d does not take"
            raise ValueError(
                f"{owner} expects drconv to hold {', '.join(_DRCONV_ARGUMENTS)}, or some of them, "
                f"got {key!r}, {why}; leave it out"
            )
    return dict(drconv)


def _norm(norm_cfg: dict, channels: int) -> nn.Module:
    return build_norm_layer(norm_cfg, channels)[1]


def _interleave(left: Tensor, right: Tensor, like: Tensor) -> Tensor:
    """The channels of both by turns, which is their shuffle, in the memory format of ``like``."""
    if like.is_contiguous() or not like.is_contiguous(memory_format=torch.channels_last):
        return torch.stack((left, right), 2).flatten(1, 2)
    last = [t.permute(0, 2, 3, 1) for t in (left, right)]
    return torch.stack(last, 4).flatten(3).permute(0, 3, 1, 2)
