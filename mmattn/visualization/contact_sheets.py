"""One layer on many images: a cell for each, on one scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mmattn.visualization.boxes import Item, View
from mmattn.visualization.channels import channel_scale
from mmattn.visualization.collected import Collected, Layer, Map
from mmattn.visualization.overlay import RatioScale, bar, over_image, shown, tint_of, tinted
from mmattn.visualization.sheet import LINE, Sheet
from mmattn.visualization.spatial import BY_CHANNEL, spatial_scale
from mmattn.visualization.style import Scale, palette, styled
from mmattn.visualization.weights import weights_scale

MOST = 40  # images on one sheet
WIDTH = 1500  # lengths are in 1/150 inch, see :mod:`.sheet`
SIDE = 420  # greatest width and height of an image
PIXELS = 480  # greatest width and height of a picture in the file
MARGIN = 14
GAP = 12
STRIP = 26  # height of a strip of values below an image
BAR = 150  # width of the colour bar with its numbers
DRAWN = ("spatial", "weights", "regions", "channel", "shares")


def contact_sheet(
    images: Sequence[Collected],
    layer: str,
    map: str | None = None,
    *,
    columns: int | None = None,
    score: float | None = 0.3,
    most: int = MOST,
) -> list[Figure]:
    """What one layer does to many images, a cell for each, all on one scale.

    Spatial gates are drawn over the image, the mean over all groups; weights as times an even
    share, the mean over the queries; regions in the palette of :func:`.style.palette`. Channel
    gates are a strip below the image, all strips in one order of the channels, by the mean over
    the images: what changes along a column depends on the image. Shares of branches or experts
    are a bar below the image.

    Args:
        images: What ``collect`` returned.
        layer: Name of the layer, ``'backbone.layer1.0.sge'``.
        map: Name of its map; None: the first that can be drawn.
        columns: Cells beside each other; None: as fits the number of images.
        score: Detections of at least this score are thin boxes over the image; None: no boxes.
        most: Images on one sheet.

    Returns:
        The sheets, as many as the images need; one scale and one order for all of them.

    Raises:
        KeyError: An image has no such layer or map.
        ValueError: There are no images, the map cannot be drawn, or ``columns`` or ``most`` is
            below 1.
    """
    images = list(images)
    if not images:
        raise ValueError("contact_sheet expects at least one image, got none.")
    for name, value in (("most", most), ("columns", 1 if columns is None else columns)):
        if value < 1:
            raise ValueError(f"contact_sheet expects {name} of at least 1, got {value}.")
    cells = [_Cell(image, image[layer], _map(image[layer], map)) for image in images]
    if len({(x.map.name, x.map.kind, *_count(x.map)) for x in cells}) > 1:
        raise ValueError(
            f"contact_sheet expects images of one model, but {layer} has other maps on some of "
            "them."
        )
    with styled():
        kind = _KINDS[cells[0].map.kind](cells)
        sheets = [cells[k : k + most] for k in range(0, len(cells), most)]
        if columns is None:
            columns = min(math.ceil(math.sqrt(1.4 * min(len(cells), most))), 6)
        return [
            _sheet(part, kind, columns, score, f"sheet {n} of {len(sheets)}")
            for n, part in enumerate(sheets, 1)
        ]


@dataclass(frozen=True)
class _Cell:
    image: Collected
    layer: Layer
    map: Map

    @property
    def alone(self) -> Collected:
        """The image with this map alone: what a scale is made for."""
        return replace(self.image, layers=(replace(self.layer, maps=(self.map,)),))

    @property
    def values(self) -> np.ndarray:
        return np.asarray(self.map.values, np.float64)


@dataclass(frozen=True)
class _Kind:
    """How the cells of one kind of map look.

    Args:
        what: In the title.
        picture: Of a cell, RGB (H, W, 3); None: the image.
        strip: Draws the strip of a cell below the image; None: there is none.
        scale: Of the colour bar; None: there is none.
        values: That the bar shows.
        patches: Of a legend.
    """

    what: str
    picture: Callable[[_Cell], np.ndarray] | None = None
    strip: Callable[[Axes, _Cell], None] | None = None
    scale: Scale | None = None
    values: Sequence = ()
    patches: Sequence[Patch] = ()


def _map(layer: Layer, name: str | None) -> Map:
    if name is not None:
        found = [layer[name]]
    else:
        # what multiplies or adds, before the parts of how it came about
        found = sorted(layer.maps, key=lambda x: x.role == "detail")
    flat = ("channel", "shares")
    found = [x for x in found if x.kind in DRAWN and (x.kind in flat or x.grid is not None)]
    if name is None and any(x.kind not in flat for x in found):
        found = [x for x in found if x.kind not in flat]
    if not found:
        what = f"the map {name!r} of {layer.name}" if name else f"{layer.name} ({layer.type})"
        kinds = ", ".join(f"{x.name} ({x.kind})" for x in layer.maps) or "no maps"
        raise ValueError(
            f"{what} cannot be drawn on a contact sheet, which shows maps that lie on the image, "
            f"channel gates and shares; it has {kinds}."
        )
    return found[0]


def _count(map: Map) -> tuple[int, ...]:
    """What has to be the same on all images: the number of channels or experts."""
    return tuple(map.values.shape) if map.kind in ("channel", "shares") else ()


# --- kinds of maps ---------------------------------------------------------------------------


def _spatial(cells: list[_Cell]) -> _Kind:
    def values(cell):
        return cell.map.values.mean(0) if cell.map.mean is None else cell.map.mean

    # the scale of what is drawn: a mean varies less than its groups
    means = [replace(x, map=replace(x.map, values=values(x)[None], mean=None)) for x in cells]
    scale = spatial_scale([x.alone for x in means])
    one = cells[0].map
    noun = "channels" if cells[0].layer.type in BY_CHANNEL else "groups"
    what = f", mean over {one.group_count} {noun}" if one.group_count > 1 else ""
    return _overlaid(cells, scale, one.name + what, values)


def _weights(cells: list[_Cell]) -> _Kind:
    one = cells[0].map
    means = [
        replace(x, map=replace(x.map, values=x.map.values.mean(0, keepdim=True))) for x in cells
    ]
    scale = weights_scale([x.alone for x in means])

    def values(cell):
        return cell.map.values.mean(0).double() * cell.map.values[0].numel()

    counts = {len(x.map.values) for x in cells}  # their number depends on the detections
    count = f"{len(one.values)}" if len(counts) == 1 else "each image's"
    several = f", mean over {count} queries" if max(counts) > 1 else ""
    log2 = isinstance(scale, RatioScale)  # of times an even share
    return _overlaid(cells, scale, one.name + several, values, log2)


def _overlaid(
    cells: list[_Cell], scale: Scale, what: str, values: Callable, log2: bool = False
) -> _Kind:
    def shown_as(values):
        with np.errstate(divide="ignore"):
            return np.log2(values) if log2 else np.asarray(values)

    def picture(cell):
        small = shown(cell.image, PIXELS)
        # between cells the values are averaged, not their log2
        return over_image(small, shown_as(small.on_image(values(cell), cell.map.grid)), scale)

    return _Kind(what, picture, scale=scale, values=[shown_as(values(x)) for x in cells])


def _regions(cells: list[_Cell]) -> _Kind:
    count = max(x.map.count or int(x.map.values.max()) + 1 for x in cells)
    colours = palette(count)(np.arange(count))[:, :3]

    def picture(cell):
        small = shown(cell.image, PIXELS)
        index = small.on_image(cell.map.values.long(), cell.map.grid, nearest=True)
        return tinted(small.image, colours[index])

    return _Kind(cells[0].map.name, picture, patches=_patches("region", tint_of(colours)))


def _channel(cells: list[_Cell]) -> _Kind:
    one = cells[0].map
    scale = channel_scale([x.alone for x in cells], cells[0].layer.type, one.name)
    order = np.argsort(np.mean([x.values for x in cells], 0), kind="stable")
    alike = " by their mean over the images" if len(cells) > 1 else ""

    def strip(axes, cell):
        colours = scale.colours(cell.values[order])[None]
        axes.imshow(colours, extent=(0, 1, 1, 0), aspect="auto", interpolation="nearest")

    what = f"{one.name} of {len(order)} channels, from low to high{alike}"
    return _Kind(what, strip=strip, scale=scale, values=[x.values for x in cells])


def _shares(cells: list[_Cell]) -> _Kind:
    one = cells[0].map
    colours = palette(len(one.values))(np.arange(len(one.values)))[:, :3]
    several = one.values.ndim > 1

    def of(cell):
        return cell.values.mean(1) if several else cell.values

    # shares of experts need not sum to 1
    end = max(1, *(float(of(cell).sum()) for cell in cells))

    def strip(axes, cell):
        shares = of(cell)
        left = np.cumsum(shares) - shares
        axes.barh(0.5, shares, 1, left, color=colours, ec="black", lw=0.4)
        axes.set(xlim=(0, end), ylim=(0, 1))

    what = one.name + (", mean over the channels" if several else "")
    return _Kind(what, strip=strip, patches=_patches(one.name.split()[0], colours))


def _patches(noun: str, colours: np.ndarray) -> list[Patch]:
    names = [f"{noun} 0", *map(str, range(1, len(colours)))]
    return [
        Patch(fc=fill, ec="black", lw=0.4, label=name)
        for name, fill in zip(names, colours, strict=True)
    ]


_KINDS = {
    "spatial": _spatial,
    "weights": _weights,
    "regions": _regions,
    "channel": _channel,
    "shares": _shares,
}


# --- layout ----------------------------------------------------------------------------------


def _sheet(cells: list[_Cell], kind: _Kind, columns: int, score: float | None, part: str) -> Figure:
    columns = min(columns, len(cells))
    side = min((WIDTH - (columns - 1) * GAP) // columns, SIDE)
    rows = [cells[k : k + columns] for k in range(0, len(cells), columns)]
    below = LINE + (STRIP + 5 if kind.strip else 0)
    heights = [max(_size(cell, side)[1] for cell in row) + below + GAP for row in rows]
    width = max(columns * side + (columns - 1) * GAP, 460)
    top = MARGIN + 2 * LINE + 8
    legend = BAR if kind.scale is not None else 0
    foot = top + sum(heights)
    lines = math.ceil(len(kind.patches) * 70 / width)
    extra = (lines + 1) * LINE if kind.patches else 0
    total = foot + extra + MARGIN - GAP
    # room for the colour bar's numbers
    total = max(total, top + 260 + MARGIN) if legend else total
    sheet = Sheet(2 * MARGIN + width + legend, total)
    room = sheet.width - 2 * MARGIN
    sheet.text(MARGIN, MARGIN, f"{cells[0].layer.title}: {kind.what}", room, weight="bold")
    boxes = score is not None and any(x.image.detections is not None for x in cells)
    words = [f"{len(cells)} image{'' if len(cells) == 1 else 's'}"]
    words += [] if part == "sheet 1 of 1" else [part]
    words += [f"boxes: detections with a score of {score:g} or more"] if boxes else []
    sheet.text(MARGIN, MARGIN + LINE + 2, "; ".join(words), room)
    y = top
    for row, height in zip(rows, heights, strict=True):
        tallest = height - below - GAP
        for k, cell in enumerate(row):
            x = MARGIN + k * (side + GAP)
            _draw_cell(sheet, cell, kind, (x, y, side, tallest), score)
        y += height
    if kind.scale is not None:
        tall = min(foot - top - GAP, 500)
        tall = max(tall, 200)
        cax = sheet.axes(MARGIN + width + 24, top + 14, 18, tall - 28)
        cax.set_label("scale")
        bar(sheet.figure, cax, kind.scale, kind.values)
    if kind.patches:
        axes = sheet.axes(MARGIN, foot, width, extra - 4)
        axes.set_axis_off()
        axes.legend(
            handles=kind.patches,
            loc="upper left",
            borderaxespad=0,
            frameon=False,
            ncols=min(len(kind.patches), width // 70),
            handlelength=1.2,
            columnspacing=1,
        )
    return sheet.figure


def _size(cell: _Cell, side: float) -> tuple[int, int]:
    """Width and height of a cell's image on the sheet."""
    height, width = cell.image.image.shape[:2]
    scale = side / max(height, width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _draw_cell(
    sheet: Sheet,
    cell: _Cell,
    kind: _Kind,
    place: tuple[float, float, float, float],
    score: float | None,
) -> None:
    left, top, side, tallest = place
    width, height = _size(cell, side)
    image = cell.image
    size = image.image.shape[1], image.image.shape[0]
    picture = image.image if kind.picture is None else kind.picture(cell)
    x, y = left + (side - width) // 2, top + tallest - height
    view = View(sheet, picture, (0, 0, *size), (x, y, width, height), size)
    view.axes.set_label(image.name)
    if score is not None and image.detections is not None:
        boxes = image.detections.above(score).boxes
        view.draw([Item("kept", False, tuple(map(float, box)), "") for box in boxes])
    y = top + tallest + 4
    if kind.strip is not None:
        axes = sheet.axes(left, y, side, STRIP)
        axes.set_label(f"{image.name}, {kind.what}")
        axes.set_xticks([])
        axes.set_yticks([])
        kind.strip(axes, cell)
        axes.spines[:].set(visible=True, linewidth=0.5)
        y += STRIP + 4
    sheet.text(left, y, image.name, side, size=7.5)
