"""The regions of dynamic region-aware convolutions, as pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import PercentFormatter

from mmattn.visualization.collected import Collected, Detections, Layer, Map
from mmattn.visualization.overlay import shown, tinted
from mmattn.visualization.shares import entropy, percent, region_shares
from mmattn.visualization.sheet import heading
from mmattn.visualization.style import AMOUNT, new_figure, palette, styled

PANEL = 3.1  # inches, the longer side of an image
SCORE = 0.3  # detections from here on are drawn
BORDER = "#333333"  # of the lines between regions
MOST_CELLS = 120  # along the image: with more of them, lines would cover the cells


def draw_regions(collected: Collected, layer: str | Layer, score: float = SCORE) -> Figure:
    """The regions that one layer finds in an image, and how their filters differ.

    Each cell of the region map is drawn as it is, in the colour of its region, with lines where
    regions meet.

    Args:
        collected: One image.
        layer: Its name, or the layer itself.
        score: Detections of at least this score are drawn.

    Returns:
        The image with the detections, the regions alone and over the image; which share of the
        image's area each region has; the distances between the regions' filters.

    Raises:
        ValueError: The layer has no region map that lies on the image.
        KeyError: There is no layer of that name.
    """
    layer = collected[layer] if isinstance(layer, str) else layer
    one = _region_map(layer)
    if one is None:
        raise ValueError(
            f"{layer.name} ({layer.type}) has no map of regions on the image; it has "
            f"{', '.join(m.name for m in layer.maps) or 'no maps'}."
        )
    found = None if collected.detections is None else collected.detections.above(score)
    shares = region_shares(one, collected.placement)
    distances = layer.of_kind("distances")
    height, width = collected.image.shape[:2]
    below = width > 2 * height  # wide images below each other
    wide = 6.5 if below else min(PANEL, 1.45 * PANEL * width / height)
    down, across = (3, 1) if below else (1, 3)
    panels = across * (wide + 0.1), down * (wide * height / width + (0.3 if below else 0.45))
    small = shown(collected)
    index = small.on_image(one.values.long(), one.grid, nearest=True)
    colours = _rgb(one)[index]
    with styled():
        figure = new_figure(max(panels[0], 8.5), panels[1] + 3.5)
        heading(figure, f"{layer.title}: {one.name} — {collected.name}")
        top, bottom = figure.subfigures(2, 1, height_ratios=[panels[1], 3.2], hspace=0.02)
        axes = top.subplots(down, across, squeeze=False).ravel()
        cells = " x ".join(map(str, one.values.shape))
        pictures = [
            (small.image, "image" if found is None else _found_text(found, score)),
            (colours, f"{one.name}, {cells} cells"),
            (tinted(small.image, colours), "over the image"),
        ]
        for ax, (picture, title) in zip(axes, pictures, strict=True):
            ax.imshow(picture, extent=(0, width, height, 0))
            ax.set_title(title, loc="left")
            ax.set_axis_off()
        for ax in axes[1:]:
            _borders(ax, collected, one, index)
        if found is not None:
            _boxes(axes[0], found, (height, width), wide, names=True)
            _boxes(axes[2], found, (height, width), wide, names=False)
        if distances:
            left, right = bottom.subplots(1, 2, width_ratios=[1.5, 1])
            _distances(bottom, right, distances[0], shares)
        else:
            left = bottom.subplots()
        _bars(left, shares)
    return figure


def draw_region_layers(collected: Collected) -> Figure:
    """The region maps of all layers of one image, each over the shares of its regions.

    Args:
        collected: One image.

    Returns:
        The picture. Region 3 of one layer has nothing to do with region 3 of another.

    Raises:
        ValueError: No layer has a region map that lies on the image.
    """
    rows = [(layer, _region_map(layer)) for layer in collected]
    rows = [(layer, one) for layer, one in rows if one is not None]
    if not rows:
        types = ", ".join(dict.fromkeys(layer.type for layer in collected)) or "no modules"
        raise ValueError(
            f"no layer of {collected.name} has a map of regions, which come from DRConv2d; it has "
            f"{types}."
        )
    height, width = collected.image.shape[:2]
    small = shown(collected, 400)
    wide = max(min(2.0, 2.6 * width / height), 1.4)
    tall = wide * height / width
    between = ", " if wide > 1.9 else "\n"
    most = max(int(9.6 / (wide + 0.1)), 1)
    across = min(most, len(rows) + 1)
    down = math.ceil((len(rows) + 1) / across)
    with styled():
        figure = new_figure(max(across * (wide + 0.1), 5.6), down * (tall + 0.7) + 0.95)
        heading(figure, f"{rows[0][0].type}: {rows[0][1].name} of all layers — {collected.name}")
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for ax in axes:
            ax.set_axis_off()
        axes[0].imshow(small.image, extent=(0, width, height, 0))
        axes[0].set_title("image", loc="left", fontsize=8)
        for ax, (layer, one) in zip(axes[1:], rows, strict=False):
            index = small.on_image(one.values.long(), one.grid, nearest=True)
            ax.imshow(_rgb(one)[index], extent=(0, width, height, 0))
            _borders(ax, collected, one, index)
            shares = region_shares(one, collected.placement)
            bits, even = entropy(shares), math.log2(len(shares))
            used = int((shares > 0).sum())
            ax.set_title(
                f"{layer.label}\n{used} of {len(shares)} used{between}"
                f"{bits:.2f} of {even:.3g} bits",
                loc="left",
                fontsize=8,
            )
            _share_bar(ax.inset_axes((0, -0.17 / tall, 1, 0.11 / tall)), shares)
        count = max(one.count or 0 for _, one in rows)
        colours = palette(count).colors
        figure.legend(
            handles=[
                Patch(fc=colours[k], ec="#777777", lw=0.5, label=str(k)) for k in range(count)
            ],
            loc="outside lower center",
            ncols=min(count, 16),
            frameon=False,
            handlelength=1.2,
            columnspacing=1.0,
            title="region; its number and colour mean something within one layer only. "
            "Bars: shares of the area",
            title_fontsize=8,
        )
    return figure


def _region_map(layer: Layer) -> Map | None:
    return next((one for one in layer.of_kind("regions") if one.grid is not None), None)


# ---- pictures --------------------------------------------------------------------------------


def _rgb(one: Map) -> np.ndarray:
    count = one.count or int(one.values.max()) + 1
    return palette(count)(np.arange(count))[:, :3]


def _borders(ax: Axes, collected: Collected, one: Map, index: np.ndarray) -> None:
    """Lines where regions meet, on the edges of cells; none where cells are too small for them.

    ``index`` is the region of each pixel of the picture.
    """
    size = collected.image.shape[:2]
    pixel = [whole / drawn for whole, drawn in zip(size, index.shape, strict=True)]
    cell = min(
        stride / scale
        for stride, scale in zip(one.grid.stride, collected.placement.scale, strict=True)
    )
    if cell < max(size) / MOST_CELLS:
        return
    across = [((x0, y), (x1, y)) for y, x0, x1 in _runs(index, *pixel)]
    down = [((x, y0), (x, y1)) for x, y0, y1 in _runs(index.T, *pixel[::-1])]
    lines = LineCollection(across + down, colors=BORDER, linewidths=0.6, capstyle="projecting")
    ax.add_collection(lines, autolim=False)


def _runs(index: np.ndarray, step: float, along: float) -> Iterator[tuple[float, float, float]]:
    """Between which rows, from where to where, one region lies above another."""
    differ = np.pad(index[1:] != index[:-1], ((0, 0), (1, 1))).astype(np.int8)
    turns = np.diff(differ, axis=1)
    starts, ends = np.argwhere(turns > 0), np.argwhere(turns < 0)
    for (row, start), (_, end) in zip(starts, ends, strict=True):
        yield (row + 1) * step, start * along, end * along


def _boxes(ax: Axes, found: Detections, size: tuple[int, int], wide: float, names: bool) -> None:
    """White in black, so that they show on every ground and are no region's colour.

    ``wide`` is the width of the axes in inches. A name that would lie on another's, of a better
    detection, is left out.
    """
    point = size[1] / (72 * wide)  # px of the image
    taken: list[tuple[float, float, float, float]] = []
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        left, top, right, bottom = map(float, box)
        patch = Rectangle((left, top), right - left, bottom - top, fill=False, ec="white", lw=0.9)
        patch.set_path_effects([Stroke(linewidth=2.1, foreground="black"), Normal()])
        ax.add_patch(patch)
        if not names:
            continue
        text = f"{found.classes[int(label)]} {score:.2f}"
        long, high = 3.9 * len(text) * point, 7.5 * point
        x = min(max(left, 0) + point, max(size[1] - long, 0))
        for y in (top - 1.5 * point, top + high, bottom - 2 * point, bottom + high):
            place = (x, y - high, x + long, y)
            if high <= y <= size[0] and not any(_overlap(place, other) for other in taken):
                taken.append(place)
                drawn = ax.text(x, y, text, fontsize=6.5, color="white", clip_on=True)
                drawn.set_path_effects([Stroke(linewidth=1.8, foreground="black"), Normal()])
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _found_text(found: Detections, score: float) -> str:
    things = f"{len(found) or 'no'} detection{'' if len(found) == 1 else 's'}"
    return f"image, {things}\nof a score from {score:g}"


def _bars(ax: Axes, shares: np.ndarray) -> None:
    """A bar a region, which is the legend as well."""
    count = len(shares)
    colours = palette(count).colors
    at = np.arange(count)
    bars = ax.bar(at, shares, color=colours, edgecolor="#444444", linewidth=0.6, width=0.75)
    many = count > 10
    ax.bar_label(
        bars, [percent(s) for s in shares], padding=2, fontsize=7 if many else 8,
        rotation=90 if many else 0,
    )  # fmt: skip
    top = shares.max() * (1.3 if many else 1.13)
    # every region has its colour, the unused too: a square below its bar
    for k in at:
        ax.add_patch(
            Rectangle(
                (k - 0.375, -0.075),
                0.75,
                0.045,
                fc=colours[k],
                ec="#444444",
                lw=0.6,
                clip_on=False,
                transform=ax.get_xaxis_transform(),
            )
        )
    unused = [str(k) for k in at if shares[k] == 0]
    if len(unused) > 12:
        note = f"{len(unused)} of {count} regions are unused"
    else:
        note = f"unused: {', '.join(unused)}" if unused else "all regions are used"
    bits = f"{entropy(shares):.2f} of {math.log2(count):.2f} bits"
    ax.set_title(f"shares of the image's area, entropy {bits}\n{note}", loc="left")
    ax.set(xlabel="region", xticks=at, ylim=(0, top), xlim=(-0.6, count - 0.4))
    ax.tick_params(axis="x", length=0, pad=14, labelsize=7 if many else 8)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _share_bar(ax: Axes, shares: np.ndarray) -> None:
    """The shares side by side, in one bar as long as the image is wide."""
    left = 0.0
    colours = palette(len(shares)).colors
    for k, share in enumerate(shares):
        if share:
            ax.barh(0, share, left=left, color=colours[k], edgecolor="white", linewidth=0.4)
        left += share
    ax.set(xlim=(0, 1), ylim=(-0.5, 0.5))
    ax.set_axis_off()


def _distances(figure, ax: Axes, one: Map, shares: np.ndarray) -> None:
    values = np.asarray(one.values, np.float64)
    count = len(values)
    top = max(float(values.max()), 1e-6)
    picture = ax.imshow(values, cmap=AMOUNT, vmin=0, vmax=top)
    if count <= 8:
        for i, k in np.ndindex(values.shape):
            ax.text(k, i, f"{values[i, k]:.2f}", ha="center", va="center", fontsize=6.5,
                    color="white" if values[i, k] < 0.55 * top else "black")  # fmt: skip
    at = np.arange(0, count, 1 if count <= 16 else 4)
    ax.set(xticks=at, yticks=at)
    ax.tick_params(length=0, labelsize=8 if count <= 10 else 6.5)
    for axis in (ax.xaxis, ax.yaxis):
        for k, text in zip(at, axis.get_ticklabels(), strict=True):
            text.set_color("black" if shares[k] else "#999999")
    ax.set_title(one.name, loc="left")
    ax.set_xlabel("region" + (" (grey: unused)" if not shares.all() else ""))
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=ax, pad=0.02, aspect=25)
    bar.set_label("difference of two filters\n/ mean norm of a filter", fontsize=8)
    bar.outline.set_linewidth(0.5)
