"""ResNet with selective kernels.

Paper: Li et al., Selective Kernel Networks, CVPR 2019, https://arxiv.org/abs/1903.06586
Consulted: https://github.com/implus/PytorchInsight (names, placement)
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from mmcv.cnn import build_conv_layer
from mmdet.models.backbones import ResNet
from mmdet.models.backbones.resnet import Bottleneck
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmattn.convs.base import run_in_dtype_of
from mmattn.convs.sk_conv import branch_shares, choice_layers, mean_of_branches, select_kernel
from mmattn.plugins._statistics import running_statistics_kept
from mmattn.plugins.base import build_norm, check_positive_int
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS


class SKBottleneck(Bottleneck):
    """mmdet's Bottleneck with a grouped twin of conv2, and a choice between the two.

    Args:
        inplanes: Channels of the input.
        planes: Channels of conv2; the output has four times as many.
        branch_groups: Groups of conv2g.
        ratio: conv_fc1 has ``planes // ratio`` channels.
        **kwargs: As in mmdet's Bottleneck.
    """

    def __init__(self, inplanes: int, planes: int, *, branch_groups=32, ratio=16, **kwargs):
        super().__init__(inplanes, planes, **kwargs)
        check_positive_int("SKResNet", "branch_groups", branch_groups)
        if planes % branch_groups:
            raise ValueError(
                f"SKResNet expects branch_groups to divide the channels of conv2, "
                f"got {branch_groups} for {planes} channels"
            )
        self.conv2g = build_conv_layer(
            self.conv_cfg,
            planes,
            planes,
            kernel_size=3,
            stride=self.conv2_stride,
            padding=self.dilation,
            dilation=self.dilation,
            groups=branch_groups,
            bias=False,
        )
        self.bn2g = build_norm("SKResNet", self.norm_cfg, planes)
        for name, layer in choice_layers("SKResNet", planes, ratio, self.norm_cfg).items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 4 planes, H', W')."""
        if not (self.with_cp and torch.is_grad_enabled()):
            return self._forward(x)
        return checkpoint(
            self._forward,
            x,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), running_statistics_kept(self)),
        )

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The shares of the two branches in each channel of conv2, (N, 2, planes)."""
        return run_in_dtype_of(x, self, lambda block: branch_shares(*block._branches(x), block))

    def without_attention(self, x: Tensor) -> Tensor:
        """What the block would give without a choice: all shares 1/2.

        Args:
            x: Feature map (N, C, H, W).

        Returns:
            (N, 4 planes, H', W').
        """
        return self._forward(x, mean_of_branches)

    def _branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.relu(self.norm1(self.conv1(x)))
        if self.with_plugins:
            y = self.forward_plugin(y, self.after_conv1_plugin_names)
        return self.relu(self.norm2(self.conv2(y))), self.relu(self.bn2g(self.conv2g(y)))

    def _forward(self, x: Tensor, select=select_kernel) -> Tensor:
        y = select(*self._branches(x), self)
        if self.with_plugins:
            y = self.forward_plugin(y, self.after_conv2_plugin_names)
        y = self.norm3(self.conv3(y))
        if self.with_plugins:
            y = self.forward_plugin(y, self.after_conv3_plugin_names)
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


@MODELS.register_module(force=True)  # in the place of the stand-in, see __init__.py
class SKResNet(ResNet):
    """mmdet's ResNet with selective kernels in place of every block's conv2, norm2 and ReLU.

    ::

        d1 = relu(norm2(conv2 y))
        d2 = relu(bn2g(conv2g y))                                ``branch_groups`` groups
        z = relu(bn_fc1(conv_fc1(mean_hw d1 + mean_hw d2)))
        a1, a2 = softmax over the two branches of conv_fc2 z
        out = a1 d1 + a2 d2

    The official ImageNet weights load by name. So do those of a plain ResNet, which lack the new
    parts: these keep their initial values, and the network does not compute what the plain one
    computed.

    Paper: https://arxiv.org/abs/1903.06586.
    Reference: the authors' PytorchInsight (all names, placement: every block, the stride in
    conv2 and conv2g, which is ``style='pytorch'``). It is their modified form of the paper's
    network: both kernels are 3x3, and one of them groups.
    Deviations: ``bn_fc1`` uses its running statistics in training where it would see one value a
    channel. With ``with_cp`` the running statistics are updated once, where mmdet's ResNet updates
    them twice. ``style='caffe'`` and ``dilations`` reach conv2g; in the authors' detector they do
    not.
    Identity at init: none. The new layers start as the others do: by mmdet's default
    convolutions Kaiming-normal (fan out) and norms at weight 1 and bias 0, else by ``init_cfg``;
    as PyTorch's default where a checkpoint lacks them.
    Cost: 24,105,496 parameters with depth 50, where the plain ResNet has 23,508,032.

    Args:
        depth: 50, 101 or 152: the blocks of 18 and 34 have no place for it.
        branch_groups: Groups of conv2g; they must divide ``base_channels``.
        ratio: Integer divisor: conv_fc1 has planes / ratio channels, planes those of conv2.
        **kwargs: As in mmdet's ResNet, by name. ``frozen_stages``, ``norm_eval``, ``norm_cfg``,
            ``style`` and ``dilations`` hold for the new parts as well, ``conv_cfg`` for conv2g,
            ``dcn`` for conv2 alone; plug-ins ``after_conv2`` get out.

    Shape:
        (N, 3, H, W) -> a tuple of maps, as mmdet's ResNet.

    Raises:
        ValueError: ``depth`` is another, or the new arguments do not fit the channels.
        TypeError: An argument that mmdet's ResNet does not have.
    """

    arch_settings = {  # noqa: RUF012  (mmdet's name)
        depth: (SKBottleneck, blocks)
        for depth, (_, blocks) in ResNet.arch_settings.items()
        if depth >= 50
    }

    def __init__(self, depth: int, *, branch_groups: int = 32, ratio: int = 16, **kwargs):
        if depth not in self.arch_settings:
            raise ValueError(
                f"SKResNet expects depth to be one of {', '.join(map(str, self.arch_settings))}, "
                f"got {depth!r}; the blocks of 18 and 34 have no place for selective kernels"
            )
        self.branch_groups = branch_groups
        self.ratio = ratio
        # mmdet's ResNet sees to zero_init_residual only where the block is its own Bottleneck
        own_init = kwargs.get("init_cfg") or kwargs.get("pretrained")
        zero = kwargs.get("zero_init_residual", True) and not own_init
        self._block_init_cfg = (
            dict(type="Constant", val=0, override=dict(name="norm3")) if zero else None
        )
        super().__init__(depth, **kwargs)

    def make_res_layer(self, **kwargs):
        """A stage of :class:`SKBottleneck`."""
        kwargs.update(
            branch_groups=self.branch_groups, ratio=self.ratio, init_cfg=self._block_init_cfg
        )
        return super().make_res_layer(**kwargs)
