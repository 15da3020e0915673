"""Conditionally parameterized convolution.

Paper: Yang et al., CondConv: Conditionally Parameterized Convolutions for Efficient Inference,
NeurIPS 2019, https://arxiv.org/abs/1904.04971
"""

from __future__ import annotations

import zlib

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmattn.convs.base import ConvLayer, run_in_dtype_of
from mmattn.ops import cond_conv2d
from mmattn.ops._backend import check_map, statistics_dtype, without_autocast
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS


@MODELS.register_module()
class CondConv2d(ConvLayer):
    """A convolution whose kernel is mixed for each sample from those of E experts.

    ::

        r = sigmoid(fc(mean_hw x))          (N, E)
        y_n = (sum_e r_ne W_e) * x_n  (+ bias)

    As conv2 of a ResNet's stages: ``dcn=dict(type='mmattn.CondConv2d'), stage_with_dcn=(False,
    False, True, True)``. Weights of a plain convolution load by themselves: the layer then
    computes what that convolution computed, to the rounding of its dtype, while its experts are
    free to part ways in training.

    Paper: https://arxiv.org/abs/1904.04971.
    Reference: none with weights for detectors. ``weight`` (E, O C kh kw / groups),
    ``routing_fc`` (E, C), ``bias`` (O).
    Deviations: ``bias`` is one for all experts; the paper's layers have none.
    Identity at init: with weights of a plain convolution, see above: the routing starts at zero,
    all r at 1/2, and the experts around 2 / E times the plain kernel, each as far from it as it
    is wide. Without them each expert is Kaiming-normal (fan in, for ReLU), as if it stood alone,
    so that y varies E / 4 times as that of one such convolution; ``routing_fc`` is PyTorch's
    default, ``bias`` zero.
    Cost: the multiply-adds of one convolution, and E O C kh kw / groups a sample for its kernel;
    E times the parameters, and the E (C + 1) of ``routing_fc``. The kernel of each sample is kept
    for the backward pass.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: As in ``nn.Conv2d``, like the next seven.
        stride: As in ``nn.Conv2d``.
        padding: As in ``nn.Conv2d``, but no strings.
        dilation: As in ``nn.Conv2d``.
        groups: As in ``nn.Conv2d``.
        bias: As in ``nn.Conv2d``: one for all samples.
        padding_mode: As in ``nn.Conv2d``.
        experts: E, at least 2.

    Shape:
        (N, C, H, W) -> (N, O, H', W').

    Raises:
        ValueError: An argument that is out of range.
        RuntimeError: On loading a plain convolution's weight of another shape.
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
        experts: int = 8,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        if not isinstance(experts, int) or experts < 2:
            raise ValueError(
                f"CondConv2d expects experts to be an integer from 2 on, got {experts!r}"
            )
        self.experts = experts
        self._kernel_shape = torch.Size((out_channels, in_channels // groups, *self.kernel_size))
        # a matrix: model.to(memory_format=torch.channels_last) raises at five dimensions
        self.weight = nn.Parameter(torch.empty(experts, self._kernel_shape.numel()))
        self.routing_fc = nn.Linear(in_channels, experts)
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each expert Kaiming-normal (fan in), the routing PyTorch's default, the bias zero."""
        fan_in = self.weight.shape[1] // self.out_channels
        nn.init.normal_(self.weight, std=(2 / fan_in) ** 0.5)
        self.routing_fc.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{super().extra_repr()}, experts={self.experts}"

    def routing(self, x: Tensor) -> Tensor:
        """The shares r (N, E) of the experts, from the means of ``x`` in float32 or better."""

        @without_autocast
        def route(x):
            mean = x.mean((2, 3), dtype=statistics_dtype(x)).to(self.routing_fc.weight.dtype)
            return self.routing_fc(mean).sigmoid()

        return route(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W')."""
        check_map("CondConv2d", x, self.in_channels)
        return self._convolved(x, self.routing(x))

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """The shares r of the experts in each sample's kernel, (N, E); they do not sum to 1."""
        check_map("CondConv2d", x, self.in_channels)
        shares = run_in_dtype_of(x, self, lambda layer: layer.routing(x))
        return [AttentionMap("expert shares", "shares", shares, "detail", bounds=(0, 1))]

    def without_attention(self, x: Tensor) -> Tensor:
        """What the layer would give without a choice: all shares of a sample at their mean.

        Args:
            x: Feature map (N, C, H, W).

        Returns:
            (N, O, H', W').
        """
        check_map("CondConv2d", x, self.in_channels)
        routing = self.routing(x)
        return self._convolved(x, routing.mean(1, keepdim=True).expand_as(routing))

    def _convolved(self, x: Tensor, routing: Tensor) -> Tensor:
        x, padding = self._padded(x)
        experts = self.weight.unflatten(1, self._kernel_shape)
        y = cond_conv2d(x, experts, routing, self.stride, padding, self.dilation, self.groups)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    _last_load = None  # the list of missing keys of the load that was logged last

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, *args, **kwargs
    ):
        plain = state_dict.get(prefix + "weight")
        if plain is not None and plain.dim() == 4:
            self._start_from(plain, state_dict, prefix)
            # all modules of one load get the same list: one line a load, not one a layer
            if CondConv2d._last_load is not missing_keys:
                CondConv2d._last_load = missing_keys
                print_log(
                    f"mmattn: {prefix.rstrip('.') or 'CondConv2d'} (and others, if any) starts "
                    "from the weight of a plain convolution, which its experts mix to",
                    logger="current",
                )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *args, **kwargs
        )

    def _start_from(self, plain: Tensor, state_dict, prefix: str) -> None:
        """Puts into ``state_dict`` what makes every sample's kernel the plain one."""
        if plain.shape != self._kernel_shape:
            raise RuntimeError(
                f"{prefix}weight: CondConv2d expects the weight of a plain convolution "
                f"{tuple(self._kernel_shape)}, got {tuple(plain.shape)}"
            )
        state_dict[prefix + "weight"] = self._experts_around(plain, prefix)
        for name, value in self.routing_fc.state_dict(prefix=prefix + "routing_fc.").items():
            state_dict[name] = torch.zeros_like(value)
        if self.bias is not None:
            state_dict.setdefault(prefix + "bias", torch.zeros_like(self.bias))

    def _experts_around(self, plain: Tensor, prefix: str) -> Tensor:
        """Kernels (E, ...) whose sum is twice ``plain``, as shares of 1/2 need; all differ.

        Equal experts would get equal gradients for ever.
        """
        # the layer's name is the seed: every process of a distributed run draws the same
        seed = torch.Generator().manual_seed(zlib.crc32(prefix.encode()))
        noise = torch.randn(self.weight.shape, generator=seed, dtype=torch.float64)
        noise -= noise.mean(0)
        centre = plain.detach().to("cpu", torch.float64).flatten()
        experts = 2 / self.experts * (centre + centre.std(correction=0) * noise)
        return experts.to(self.weight.dtype)
