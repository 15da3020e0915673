"""Images, maps and drawn figures for the tests of pictures."""

import dataclasses

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mmattn.visualization.collected import Collected, Layer, Map
from mmattn.visualization.geometry import Grid, Placement

# rows and columns of the image, and of the cells of a map of stride 4
OBJECT, CELLS = (slice(12, 36), slice(20, 48)), (slice(3, 9), slice(5, 12))
INSIDE, OUTSIDE = (34.5, 24.5), (5.5, 43.5)  # x, y in px
GRID = Grid((4.0, 4.0), (1.5, 1.5))


def collected(*layers, size=(48, 64)) -> Collected:
    """A white object on dark grey."""
    image = np.full((*size, 3), 60, np.uint8)
    image[OBJECT] = 255
    return Collected("street", image, Placement(tuple(size)), layers)


def two_values(inside: float, outside: float) -> torch.Tensor:
    """A map (12, 16) with one value on the object."""
    values = torch.full((12, 16), outside)
    values[CELLS] = inside
    return values


def layer(one: Map | tuple[Map, ...], label="c2, block 1", type="SGE", **more) -> Layer:
    """A layer with a map or several."""
    maps = one if isinstance(one, tuple) else (one,)
    name = f"backbone.{label.replace(', block ', '.')}.{type.lower()}"
    fields = dict(name=name, type=type, stage=label[:2], label=label, maps=maps, grid=GRID)
    return Layer(**fields | more)


def mask(values: torch.Tensor, count=None, groups=(), neutral=1.0, bounds=(0, 2), **more) -> Map:
    """A spatial gate (G, H, W)."""
    groups = groups or tuple(range(len(values)))
    fields = dict(name="mask", kind="spatial", values=values, neutral=neutral, bounds=bounds)
    fields |= dict(groups=groups, group_count=count or len(values), mean=values.mean(0), grid=GRID)
    return Map(**fields | more)


def nowhere(one: Map) -> Map:
    """The map of a module that runs on regions of interest."""
    return dataclasses.replace(one, grid=None)


def colour(scale, value: float) -> np.ndarray:
    """RGB of a value."""
    return scale.colours(np.array([value]))[0]


class Drawn:
    """A figure as it is seen."""

    def __init__(self, figure):
        self.figure = figure
        self.canvas = FigureCanvasAgg(figure)
        self.canvas.draw()
        self.pixels = np.asarray(self.canvas.buffer_rgba())[..., :3] / 255
        self.panels = {ax.get_title().split("\n")[0]: ax for ax in figure.axes if ax.get_title()}
        self.bars = [ax for ax in figure.axes if not ax.get_title()]

    @property
    def title(self) -> str:
        return self.figure.get_suptitle()

    def colour(self, ax, x: float, y: float) -> np.ndarray:
        """RGB at a point in the panel's own coordinates."""
        ax = self.panels[ax] if isinstance(ax, str) else ax
        column, row = ax.transData.transform((x, y))
        return self.pixels[len(self.pixels) - 1 - int(row), int(column)]

    def numbers(self, n: int = 0) -> list[str]:
        """What stands at a colour bar."""
        bar = self.bars[n]
        axis = bar.yaxis if bar.get_yticks().size else bar.xaxis
        return [text.get_text() for text in axis.get_ticklabels()]

    def assert_readable(self):
        """No text is cut off or lies over another, or over a panel."""
        renderer = self.canvas.get_renderer()
        texts = [ax.title for ax in self.panels.values()] + [self.figure._suptitle]
        for bar in self.bars:
            texts += [*bar.get_xticklabels(), *bar.get_yticklabels()]
            texts += [bar.xaxis.label, bar.yaxis.label]
        texts = [text for text in texts if text.get_text() and text.get_visible()]
        boxes = [text.get_window_extent(renderer) for text in texts]
        height, width = self.pixels.shape[:2]
        panels = [ax.get_window_extent(renderer) for ax in self.panels.values()]
        for n, (text, box) in enumerate(zip(texts, boxes, strict=True)):
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            assert inside, f"{text.get_text()!r} is cut off: {box}"
            others = [repr(other.get_text()) for other in texts[:n]] + ["a panel"] * len(panels)
            for other, its in zip(others, boxes[:n] + panels, strict=True):
                x = min(box.x1, its.x1) - max(box.x0, its.x0)
                y = min(box.y1, its.y1) - max(box.y0, its.y0)
                assert min(x, y) <= 1, f"{text.get_text()!r} lies over {other}"
