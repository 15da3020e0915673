"""Where do the cells of a feature map lie in the image?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Grid:
    """Where the cells of a map lie in the network's input.

    Args:
        stride: Input pixels from one cell to the next, down and across.
        offset: The input pixel in the middle of what the first cell sees, down and across; pixels
            are counted from 0 at their centres.
        exact: Followed through every layer up to the map; else the mean of branches that were
            added and whose cells lie apart (FPN, HRNet), or taken from the sizes alone, as if
            the map covered the input evenly.
    """

    stride: tuple[float, float]
    offset: tuple[float, float]
    exact: bool = True

    def inner(self, stride: tuple[float, float], offset: tuple[float, float]) -> Grid:
        """The grid of a map whose cells lie so on the cells of this one."""
        pairs = list(zip(self.stride, self.offset, stride, offset, strict=True))
        return Grid(
            tuple(own * step for own, _, step, _ in pairs),
            tuple(start + own * shift for own, start, _, shift in pairs),
            self.exact,
        )

    @staticmethod
    def even(size: tuple[int, int], of: tuple[int, int]) -> Grid:
        """A map of that size (H, W) over an input of the size ``of``, as if evenly cut."""
        stride = tuple(whole / cells for whole, cells in zip(of, size, strict=True))
        return Grid(stride, tuple((step - 1) / 2 for step in stride), exact=False)


@dataclass(frozen=True)
class Placement:
    """How the network's input was made from the image: scaled, mirrored, padded.

    Args:
        image_size: Height and width of the image, in px.
        scale: Input pixels an image pixel, down and across.
        content_size: Height and width of the scaled image, without the padding, in input px.
        start: Where the scaled image begins in the input, down and across.
        mirrored: Turned over before the padding, up-down and left-right.
        input_size: Height and width of the input, padding included.
    """

    image_size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    content_size: tuple[int, int] | None = None
    start: tuple[float, float] = (0.0, 0.0)
    mirrored: tuple[bool, bool] = (False, False)
    input_size: tuple[int, int] | None = None

    def pixels(self, axis: int) -> Tensor:
        """For each image row (axis 0) or column (1) the input pixel that it became."""
        n, scale = self.image_size[axis], self.scale[axis]
        at = (torch.arange(n, dtype=torch.float64) + 0.5) * scale - 0.5
        if self.mirrored[axis]:
            content = self.content_size[axis] if self.content_size else round(n * scale)
            at = content - 1 - at
        return at + self.start[axis]

    def to_input(self, x: float, y: float) -> tuple[float, float]:
        """The input position (row, column) of a point (x, y) of the image, both at pixel centres.

        A pixel's left edge is at its number, so the first pixel's centre is at 0.5.
        """
        found = []
        for axis, value in enumerate((y, x)):
            at = value * self.scale[axis] - 0.5
            if self.mirrored[axis]:
                n = self.image_size[axis]
                content = self.content_size[axis] if self.content_size else n * self.scale[axis]
                at = content - 1 - at
            found.append(at + self.start[axis])
        return found[0], found[1]


def to_image(
    values: Tensor, grid: Grid, placement: Placement, nearest: bool | None = None
) -> Tensor:
    """A map, resampled to the pixels of the image: padding, scaling and strides undone.

    Args:
        values: (..., H, W).
        grid: Of its cells.
        placement: Of the image.
        nearest: Take the nearest cell; else interpolate between four. None: nearest for integers.

    Returns:
        (..., image height, image width), in the dtype of ``values``. Beyond the outermost cells'
        centres their values go on.
    """
    if nearest is None:
        nearest = not values.is_floating_point()
    *lead, height, width = values.shape
    flat = values.reshape(1, -1, height, width)
    cells = [(placement.pixels(axis) - grid.offset[axis]) / grid.stride[axis] for axis in (0, 1)]
    if nearest:
        row, column = (
            at.round().clamp(0, n - 1).long().to(values.device)
            for at, n in zip(cells, (height, width), strict=True)
        )
        return flat[..., row, :][..., column].reshape(*lead, len(row), len(column))
    dtype = torch.promote_types(values.dtype, torch.float32)
    row, column = (
        at.to(values.device, dtype) * (2 / (n - 1)) - 1
        if n > 1
        else torch.zeros_like(at, dtype=dtype)
        for at, n in zip(cells, (height, width), strict=True)
    )
    at = torch.stack(torch.meshgrid(column, row, indexing="xy"), -1)
    found = F.grid_sample(
        flat.to(dtype), at[None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return found.reshape(*lead, *at.shape[:2]).to(values.dtype)
