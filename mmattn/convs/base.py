"""What the convolution layers that hold more than one filter have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from itertools import chain
from typing import TypeVar

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mmattn.ops.region_conv import pair
from mmattn.plugins.base import check_choice, check_positive_int

T = TypeVar("T")


class _Wrapped(nn.Module):
    """A function of a module, in the form that ``functional_call`` takes."""

    def __init__(self, module: nn.Module, function: Callable):
        super().__init__()
        self.module = module
        self.function = function

    def forward(self):
        return self.function(self.module)


def run_in_dtype_of(x: Tensor, module: nn.Module, function: Callable[[nn.Module], T]) -> T:
    """``function(module)`` with the module's parameters and buffers in the dtype of ``x``."""
    wrapped = _Wrapped(module, function)
    state = chain(wrapped.named_parameters(), wrapped.named_buffers())
    wide = {k: v.to(x.dtype) if v.is_floating_point() else v for k, v in state}
    return functional_call(wrapped, wide, ())


class ConvLayer(BaseModule):
    """The first nine arguments of ``nn.Conv2d``, checked, and an initial state of its own.

    A subclass restores its documented initial state in :meth:`reset_parameters`.

    Raises:
        ValueError: An argument that ``nn.Conv2d`` would not take, or padding in words.
    """

    transposed = False
    output_padding = (0, 0)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride,
        padding,
        dilation,
        groups: int,
        padding_mode: str,
    ):
        super().__init__()
        name = type(self).__name__
        self.in_channels = check_positive_int(name, "in_channels", in_channels)
        self.out_channels = check_positive_int(name, "out_channels", out_channels)
        self.groups = self._check_groups("groups", groups)
        self.kernel_size = pair(name, "kernel_size", kernel_size, 1)
        self.stride = pair(name, "stride", stride, 1)
        self.padding = pair(name, "padding", padding, 0)
        self.dilation = pair(name, "dilation", dilation, 1)
        check_choice(
            name, "padding_mode", padding_mode, ("zeros", "reflect", "replicate", "circular")
        )
        self.padding_mode = padding_mode

    def _check_groups(self, argument: str, groups: int) -> int:
        name = type(self).__name__
        check_positive_int(name, argument, groups)
        if self.in_channels % groups or self.out_channels % groups:
            raise ValueError(
                f"{name} expects {argument} to divide in_channels={self.in_channels} and "
                f"out_channels={self.out_channels}, got {groups}"
            )
        return groups

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The map, padded where ``padding_mode`` is not zeros, and the padding that is left."""
        padding = self.padding
        if self.padding_mode == "zeros" or not any(padding):
            return x, padding
        return F.pad(x, [padding[1]] * 2 + [padding[0]] * 2, self.padding_mode), (0, 0)

    @abstractmethod
    def reset_parameters(self) -> None:
        """Restores the documented initial values."""

    def init_weights(self) -> None:
        """Restores the documented initial state, whatever a parent's ``init_cfg`` did to it."""
        self.reset_parameters()
        self._is_init = True

    def apply(self, fn):
        """As ``nn.Module.apply``, but a parent's ``init_cfg`` does not reach in."""
        if getattr(fn, "__module__", None) == "mmengine.model.weight_init":
            return self
        return super().apply(fn)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, bias={self.bias is not None}"
        )
