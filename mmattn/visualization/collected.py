"""What :func:`mmattn.visualization.collect` returns, and all that the plots take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from mmattn.visualization.geometry import Grid, Placement, to_image


@dataclass(frozen=True)
class Map:
    """One map of one module for one image.

    The fields are those of :class:`mmattn.plugins.maps.AttentionMap`, for one image, on the CPU.

    Args:
        name: ``'channel gate'``.
        kind: ``'channel'``, ``'spatial'``, ``'weights'``, ``'regions'``, ``'shares'`` or
            ``'distances'``.
        values: Without the dimension of the batch: (C), (G, H, W), (Q, H, W), (H, W), (B) or
            (B, O), (m, m).
        role: ``'factor'``, ``'term'`` or ``'detail'``.
        neutral: The value that changes nothing, if there is one.
        bounds: Between which values they can lie.
        count: How many regions there can be.
        groups: Which groups of channels a 'spatial' map holds, in the order of ``values``.
        group_count: How many there are in the module.
        mean: Of a 'spatial' map, the mean over all groups (H, W).
        queries: Of 'weights', the points (Q, 2) of the image that ask, x and y in px; None where
            all points gather the same.
        grid: Of the cells of a map with H and W; None where it does not lie on the image.
    """

    name: str
    kind: str
    values: Tensor
    role: str = "factor"
    neutral: float | None = None
    bounds: tuple[float | None, float | None] = (None, None)
    count: int | None = None
    groups: tuple[int, ...] = ()
    group_count: int = 1
    mean: Tensor | None = None
    queries: Tensor | None = None
    grid: Grid | None = None


@dataclass(frozen=True)
class Channels:
    """Some channels of what came into a module.

    Args:
        indices: Which.
        values: (K, H, W).
        grid: Of the cells.
    """

    indices: tuple[int, ...]
    values: Tensor
    grid: Grid | None


@dataclass(frozen=True)
class Layer:
    """One module, as it worked on one image.

    Args:
        name: In the model: ``'backbone.layer1.0.sge'``.
        type: ``'SGE'``.
        stage: Of the backbone, ``'c2'``, or the part of the model, ``'neck'``.
        label: For people: ``'c2, block 1'``.
        maps: What it decided.
        grid: Of the map that came in; None where it does not lie on the image (regions of
            interest).
        before: The norm over the channels of what came in, (H, W).
        after: The same of what came out; None of a convolution, whose output is another.
        raised: The channels whose gate is highest, most raised first; only where there is a gate
            for each channel.
        lowered: Those whose gate is lowest, most lowered first.
        call: Which call of the module in one forward pass, from 0; heads run once a level.
        measures: Numbers by name: ``'query distance (cosine)'``.
    """

    name: str
    type: str
    stage: str
    label: str
    maps: tuple[Map, ...]
    grid: Grid | None = None
    before: Tensor | None = None
    after: Tensor | None = None
    raised: Channels | None = None
    lowered: Channels | None = None
    call: int = 0
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """``'SGE, c2, block 1'``."""
        return f"{self.type}, {self.label}"

    def __getitem__(self, name: str) -> Map:
        """The map of that name.

        Raises:
            KeyError: There is none.
        """
        for one in self.maps:
            if one.name == name:
                return one
        names = ", ".join(repr(one.name) for one in self.maps) or "no maps"
        raise KeyError(f"{self.name} has {names}, not {name!r}")

    def of_kind(self, kind: str) -> list[Map]:
        """Its maps of that kind."""
        return [one for one in self.maps if one.kind == kind]


@dataclass(frozen=True)
class Detections:
    """What a detector found in an image.

    Args:
        boxes: (D, 4), left, top, right and bottom in px of the image.
        scores: (D), between 0 and 1, highest first.
        labels: (D), indices into ``classes``.
        classes: Names.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Those of at least that score."""
        keep = self.scores >= score
        return replace(
            self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep]
        )

    @cached_property
    def areas(self) -> np.ndarray:
        """Of the boxes, in px^2."""
        sides = np.maximum(self.boxes[:, 2:] - self.boxes[:, :2], 0)
        return sides[:, 0] * sides[:, 1]


@dataclass(frozen=True)
class Collected:
    """What every inserted module did to one image.

    Args:
        name: Of the image, unique among those of one call: the file's name without its ending.
        image: (H, W, 3), 8 bits, RGB, as the model's own pipeline loads it.
        placement: How the network's input was made from it.
        layers: In the order in which they ran.
        detections: What the model found, if it is a detector of mmdet.
        neutral: What it finds with the gates neutral, if that was asked for.
        path: Of the file.
    """

    name: str
    image: np.ndarray
    placement: Placement
    layers: tuple[Layer, ...]
    detections: Detections | None = None
    neutral: Detections | None = None
    path: Path | None = None

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __getitem__(self, name: str) -> Layer:
        """The first layer of that name.

        Raises:
            KeyError: There is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r}; there are {', '.join(x.name for x in self.layers)}")

    def on_image(self, values: Tensor, grid: Grid, nearest: bool | None = None) -> np.ndarray:
        """A map (..., H, W) at the pixels of the image, see :func:`~.geometry.to_image`."""
        return to_image(values, grid, self.placement, nearest).numpy()
