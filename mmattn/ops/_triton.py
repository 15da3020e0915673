"""What every Triton kernel here needs: launching, layouts, and which tensors it can take."""

# no postponed annotations here: Triton 3.0's interpreter does not know tl.constexpr as a string

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def has_memory(x: Tensor) -> bool:
    """Whether there are values behind a tensor: not on the meta device, not to a compiler."""
    return not (x.is_meta or isinstance(x, FakeTensor))


def launch(kernel, grid: tuple[int, ...], *args, **constants) -> None:
    """Runs a kernel on the device of its first tensor; nothing on tensors without memory."""
    first = next(a for a in args if isinstance(a, Tensor))
    if not has_memory(first) or 0 in grid:
        return
    # a number of no dimensions may live on the CPU, as it may for PyTorch's operators
    args = [a.to(first.device) if isinstance(a, Tensor) and not a.dim() else a for a in args]
    with torch.cuda.device_of(first) if first.is_cuda else contextlib.nullcontext():
        kernel[grid](*args, **constants)


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side; False where both layouts are the same."""
    return x.stride(1) == 1 and not x.is_contiguous()


def dense(x: Tensor) -> Tensor:
    """``x`` (N, C, H, W) itself if contiguous or channels_last, else a contiguous copy."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def dense_like(dy: Tensor, x: Tensor) -> Tensor:
    """``dy`` in the strides of the dense ``x``: without a copy if they are the same."""
    if dy.stride() == x.stride():
        return dy
    # where there is one channel, row or sample, its stride leads nowhere
    pairs = zip(x.shape, dy.stride(), x.stride(), strict=True)
    if all(a == b for size, a, b in pairs if size != 1):
        return dy.as_strided(x.shape, x.stride())
    return torch.empty_like(x, dtype=dy.dtype).copy_(dy)


def bucket(size: int, smallest: int = 16, largest: int = 1 << 20) -> int:
    """The next power of two: what a choice of blocks may depend on without a kernel per size."""
    return min(max(triton.next_power_of_2(size), smallest), largest)


def strides(x: Tensor) -> tuple[int, int, int]:
    """(elements from a sample to the next, from a channel, from a pixel) of a dense map."""
    channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
    if is_channels_last(x):
        return channels * pixels, 1, channels
    return channels * pixels, pixels, 1


@triton.jit
def _increment(x):
    tl.store(x, tl.load(x) + 1)


# with TRITON_INTERPRET=1 kernels run in Python, on the CPU; Triton reads it when it is imported
INTERPRETED = not isinstance(_increment, triton.runtime.JITFunction)


def try_out(device: torch.device) -> None:
    """Compiles and runs a kernel of one addition; raises whatever stands in the way."""
    x = torch.ones(1, device=device)
    launch(_increment, (1,), x)
    if x.item() != 2:
        raise RuntimeError(f"a kernel that adds 1 to 1 gave {x.item()}")
