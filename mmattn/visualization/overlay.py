"""Panels of maps over one image: colours that can be read back from the colour bar."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import matplotlib.patheffects
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from PIL import Image, ImageFilter
from torch import Tensor

from mmattn.visualization.collected import Collected, Layer, Map
from mmattn.visualization.sheet import UNIT, heading, wrapped
from mmattn.visualization.style import Scale, new_figure

TIMES, MINUS = "\u00d7", "\u2212"
LONGEST = 512  # px, the longer side of a panel
RELIEF = 0.3  # by how much edges and texture of the image lighten or darken a colour at most
TINT = 0.6  # the share of a region's colour in a pixel
DARKEST = 0.35  # the grey that black becomes under a region; white stays white
AREA = {10: 4.2, 20: 2.6}  # square inches of a panel, up to so many panels
TITLE_SIZE = 9  # pt, of a panel
WIDEST = 10.5  # inches, of the panels beside each other
# inches: the figure's title, a line of text, a colour bar with its numbers, between panels
TITLE, LINE, BAR, GAP = 0.35, 0.15, 0.75, 0.08
# steps of a ratio up and down
ROUND = [(1.01, 0.99), (1.02, 0.98), (1.05, 0.95), (1.1, 0.9), (1.25, 0.8), (1.5, 0.67)]


@dataclass(frozen=True)
class RatioScale(Scale):
    """A scale in log2 of a ratio; the bar shows the ratio: 1/2x, 1x, 2x."""

    def ticks(self) -> tuple[list[float], list[str]]:
        """Positions on the bar, and what stands there."""
        reach = max(self.high - self.centre, self.centre - self.low)
        steps = ROUND if reach < 1 else [(2**n, 2**-n) for n in range(1, math.ceil(reach) + 1)]
        fitting = [step for step in steps if math.log2(step[0]) <= reach + 1e-9] or ROUND[:1]
        most = math.log2(fitting[-1][0])
        inner = min(fitting, key=lambda step: abs(math.log2(step[0]) - most / 2))
        ticks = [self.centre + math.log2(x) for x in (1, *inner, *fitting[-1])]
        ticks = sorted({tick for tick in ticks if self.low - 1e-9 <= tick <= self.high + 1e-9})
        return ticks, [times(tick) for tick in ticks]


def times(log2: float) -> str:
    """``'8×'`` for 3, ``'1/8×'`` for -3, ``'1.3×'`` for what is no power of two."""
    if -math.inf < log2 < -0.5 and abs(log2 - round(log2)) < 1e-6:
        return f"1/{2 ** round(-log2)}{TIMES}"
    return f"{2**log2:.{3 if log2 < 9 else 6}g}{TIMES}"


@dataclass(frozen=True)
class Panel:
    """One picture of several.

    Args:
        title: Above it; lines wider than the picture are broken, or cut off.
        picture: (H, W, 3), RGB between 0 and 1.
        marks: Points x, y in px of the image, each with a number or None.
    """

    title: str
    picture: np.ndarray
    marks: Sequence[tuple[float, float, int | None]] = ()


def reduced(picture: np.ndarray, longest: int = LONGEST) -> np.ndarray:
    """A picture of at most ``longest`` px, each pixel the mean of what it covers.

    Args:
        picture: (H, W, 3), 8 bits; never a map's values.
        longest: The greater of height and width.

    Returns:
        (h, w, 3), 8 bits; ``picture`` itself if it is no larger.
    """
    height, width = picture.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return picture
    size = tuple(max(1, round(side * factor)) for side in (width, height))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def shown(collected: Collected, longest: int = LONGEST) -> Collected:
    """The same with an image of at most ``longest`` px: maps are resampled to its pixels."""
    image = reduced(collected.image, longest)
    if image is collected.image:
        return collected
    (height, width), size = collected.image.shape[:2], image.shape[:2]
    before = collected.placement
    scale = tuple(
        per_px * old / new
        for per_px, old, new in zip(before.scale, (height, width), size, strict=True)
    )
    placement = replace(before, image_size=size, scale=scale)
    return replace(collected, image=image, placement=placement)


def relief(image: np.ndarray) -> np.ndarray:
    """Edges and texture of an image: its lightness less that of the surroundings.

    Args:
        image: (H, W, 3), 8 bits.

    Returns:
        (H, W) between -RELIEF and RELIEF; 0 inside even areas.
    """
    grey = Image.fromarray(image).convert("L")
    around = grey.filter(ImageFilter.GaussianBlur(max(image.shape[:2]) / 40))
    difference = np.asarray(grey, np.float64) - np.asarray(around, np.float64)
    return RELIEF * np.tanh(difference / 255 / 0.4)


def over_image(collected: Collected, values: np.ndarray, scale: Scale) -> np.ndarray:
    """A map over the image: the scale's colours, in which the image's edges are seen.

    Where the image is even the colour is exactly the scale's; at edges and in texture up to RELIEF
    of it gives way to white or black. The image's own colours and its large areas of light and
    dark leave no trace, so they cannot be taken for the map.

    Args:
        collected: With the image.
        values: (H, W) at the pixels of the image; NaN is drawn grey.
        scale: For the colours.

    Returns:
        RGB between 0 and 1, (H, W, 3).
    """
    share = relief(collected.image)[..., None]
    colours = scale.colours(values)
    return (1 - abs(share)) * colours + share.clip(0)


def tinted(image: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Flat areas of a few colours over an image: TINT of the colour, the rest lightened grey.

    For regions, whose colours are names and no amounts: :func:`over_image` would leave no trace of
    the image inside them. :func:`tint_of` gives what a legend shows beside it.

    Args:
        image: (H, W, 3), 8 bits.
        colours: (H, W, 3), between 0 and 1.

    Returns:
        RGB between 0 and 1, (H, W, 3).
    """
    luminance = image @ np.array([0.299, 0.587, 0.114]) / 255
    return TINT * colours + (1 - TINT) * (DARKEST + (1 - DARKEST) * luminance)[..., None]


def tint_of(colours: np.ndarray) -> np.ndarray:
    """What :func:`tinted` makes of colours (..., 3) on a middle grey, for legends."""
    return TINT * np.asarray(colours) + (1 - TINT) * (1 + DARKEST) / 2


def image_panel(collected: Collected, marks=()) -> Panel:
    """The image itself, under its name."""
    return Panel(collected.name, collected.image / 255, marks)


def maps_of(
    images: Sequence[Collected], kind: str, type: str | None, name: str | None
) -> Iterator[tuple[Layer, Map]]:
    """The maps of a kind that lie on the images.

    Raises:
        ValueError: There are none of that type and name.
    """
    there = [
        (layer, one)
        for collected in images
        for layer in collected
        for one in layer.of_kind(kind)
        if one.grid is not None
    ]
    found = [
        (layer, one)
        for layer, one in there
        if type in (None, layer.type) and name in (None, one.name)
    ]
    if not found:
        names = ", ".join(sorted({f"{layer.type}: {one.name}" for layer, one in there}))
        wish = (f"kind {kind!r}", name and f"name {name!r}", type and f"type {type!r}")
        raise ValueError(
            f"expected a map of {', '.join(filter(None, wish))} on the image, got {names or 'none'}"
        )
    yield from found


def checked(layer: Layer, map: Map | str, kind: str) -> Map:
    """The map of that name, or the map itself, if it can be drawn over the image.

    Raises:
        ValueError: It has another kind, or no place on the image.
    """
    one = layer[map] if isinstance(map, str) else map
    if one.kind != kind:
        raise ValueError(
            f"{layer.name} expects a map of the kind {kind!r} here, got {one.name!r} of the kind "
            f"{one.kind!r}"
        )
    if one.grid is None:
        raise ValueError(
            f"{layer.name} does not run on the whole image, so its {one.name} cannot be drawn "
            f"over it"
        )
    return one


def extent(values: Tensor) -> str:
    """``'0.71 to 1.32'``: the least and the greatest of the values."""
    values = values[torch.isfinite(values)]
    if not values.numel():
        return "no values"
    low, high = (f"{float(x):#.3g}".rstrip(".").replace("-", MINUS) for x in values.aminmax())
    return low if low == high else f"{low} to {high}"


def draw_panels(
    title: str,
    panels: Sequence[Panel],
    size: tuple[int, int],
    scale: Scale,
    values: Sequence,
) -> Figure:
    """Panels in rows, as many beside each other as fit, and one colour bar for all.

    Args:
        title: Of the figure.
        panels: At least one.
        size: Height and width of the image in px, in which marks are given.
        scale: Of the colours.
        values: All that is drawn on the scale: the bar ends in arrows where some lie beyond it.
    """
    width, height = panel_size(size, len(panels))
    rows, columns = arranged(len(panels), int(WIDEST / width))
    width, height = (x * min(1.0, WIDEST / (columns * width)) for x in (width, height))
    titles = [wrapped(panel.title, TITLE_SIZE, width * UNIT) for panel in panels]
    panels = [replace(panel, title=title) for panel, title in zip(panels, titles, strict=True)]
    lines = 1 + max(panel.title.count("\n") for panel in panels)
    bar_width = 0.13
    room = max(min(rows, 2) * height, 1.2)
    figure = new_figure(
        max(columns * (width + GAP) + BAR + LINE * int(len(scale.label) * 0.08 / room), 4),
        rows * (height + LINE * lines + GAP) + TITLE + LINE * title.count("\n"),
    )
    figure.get_layout_engine().set(w_pad=GAP / 2, h_pad=GAP / 2, wspace=0, hspace=0)
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[*[width] * columns, bar_width])
    for n, panel in enumerate(panels):
        draw_panel(figure.add_subplot(grid[divmod(n, columns)]), panel, size)
    bar(figure, figure.add_subplot(grid[:2, -1]), scale, values, room=room)
    heading(figure, title)
    return figure


def arranged(count: int, fitting: int) -> tuple[int, int]:
    """Rows and columns: as many columns as fit, or one more if fewer places then stay empty."""
    fitting = max(fitting, 1)
    choices = [(-(-count // n), n) for n in (fitting, fitting + 1)]
    rows, _ = min(choices, key=lambda choice: choice[0] * choice[1])
    return rows, -(-count // rows) if rows > 1 else count


def panel_size(size: tuple[int, int], count: int) -> tuple[float, float]:
    """Width and height of each of ``count`` panels in inches, for an image's height and width."""
    aspect = min(max(size[1] / size[0], 0.3), 4)
    area = next((area for most, area in AREA.items() if count <= most), 1.7)
    width = max(math.sqrt(area * aspect), 1.2)
    return width, width * size[0] / size[1]


def draw_panel(ax: Axes, panel: Panel, size: tuple[int, int]) -> None:
    """One panel, in the coordinates of the image's pixels."""
    # 'auto': smooth where it is shrunk, pixels as they are where it is much enlarged
    ax.imshow(panel.picture, extent=(0, size[1], size[0], 0), interpolation="auto")
    ax.set_title(panel.title, pad=3, parse_math=False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    for x, y, number in panel.marks:
        ax.plot(x, y, "*", ms=11, mfc="white", mec="black", mew=0.9, clip_on=False)
        if number is not None:
            side = -1 if x > size[1] * 0.85 else 1
            ax.annotate(
                str(number),
                (x, y),
                (7 * side, 0),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                va="center",
                fontweight="bold",
                color="white",
                path_effects=[matplotlib.patheffects.withStroke(linewidth=2, foreground="black")],
            )


def bar(
    figure: Figure,
    ax: Axes | np.ndarray,
    scale: Scale,
    values: Sequence,
    orientation: str = "vertical",
    room: float | None = None,
    beside: dict | None = None,
) -> Colorbar:
    """The colour bar of a scale; it ends in an arrow where some of ``values`` lie beyond.

    Args:
        figure: What it is on.
        ax: It fills these axes; with ``beside`` it takes its room from them.
        scale: Of the colours.
        values: All that is drawn on the scale.
        orientation: Of a bar that fills its axes.
        room: Its length in inches, for a label in several lines.
        beside: Matplotlib's options of where it stands: ``location``, ``shrink``, ``aspect``.
    """
    drawn = np.concatenate([np.asarray(x, np.float64).ravel() for x in values])
    drawn = drawn[~np.isnan(drawn)]
    least, most = (drawn.min(), drawn.max()) if drawn.size else (scale.low, scale.high)
    slack = 1e-6 * (scale.high - scale.low)
    beyond = (least < scale.low - slack, most > scale.high + slack)
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[beyond]
    found = figure.colorbar(
        ScalarMappable(scale.norm, scale.cmap),
        extend=extend,
        extendfrac=0.04,
        **({"cax": ax, "orientation": orientation} if beside is None else {"ax": ax, **beside}),
    )
    ticks, labels = scale.ticks() if isinstance(scale, RatioScale) else ticks_of(scale)
    if orientation == "horizontal" and len(ticks) > 3 and scale.centre is not None:
        few = {0, int(np.abs(np.subtract(ticks, scale.centre)).argmin()), len(ticks) - 1}
        # numbers beside each other need room
        ticks, labels = ([x[n] for n in sorted(few)] for x in (ticks, labels))
    # one that lies beyond the end by a rounding error has no place on the bar
    found.set_ticks(np.clip(ticks, scale.low, scale.high), labels=labels)
    found.ax.minorticks_off()
    found.set_label(scale.label if room is None else textwrap.fill(scale.label, int(room / 0.08)))
    found.outline.set_linewidth(0.5)
    return found


def rounded(value: float, digits: int) -> str:
    """``'−0.12'``: with so many digits behind the point; zero has no sign."""
    text = f"{value:.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", MINUS)


def ticks_of(scale: Scale) -> tuple[list[float], list[str]]:
    """Round steps to both sides of the centre, or between the ends."""
    reach = (
        scale.high - scale.low
        if scale.centre is None
        else max(scale.high - scale.centre, scale.centre - scale.low)
    )
    parts = 3 if scale.centre is None else 2
    unit = 10 ** math.floor(math.log10(reach / parts))
    step = max(x * unit for x in (1, 2, 5) if x * unit * parts <= reach * (1 + 1e-6))
    start = scale.centre
    if start is None:
        start = math.ceil(scale.low / step - 1e-9) * step
    first = math.ceil((scale.low - start) / step - 1e-6)
    last = math.floor((scale.high - start) / step + 1e-6)
    ticks = [start + n * step for n in range(first, last + 1)]
    digits = max(0, -math.floor(math.log10(step)))
    if scale.centre is not None:
        digits = max(
            digits,
            next(
                n
                for n in range(5)
                if n == 4 or abs(round(scale.centre, n) - scale.centre) < 1e-9 or n == 3
            ),
        )
    return ticks, [rounded(tick, digits) for tick in ticks]
