"""Pictures of gates that lie on the image: SGE's masks, the spatial gates of CBAM and others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from mmattn.visualization.collected import Collected, Layer, Map
from mmattn.visualization.overlay import (
    GAP,
    LINE,
    LONGEST,
    TIMES,
    TITLE,
    TITLE_SIZE,
    WIDEST,
    Panel,
    RatioScale,
    bar,
    checked,
    draw_panel,
    draw_panels,
    extent,
    image_panel,
    maps_of,
    over_image,
    panel_size,
    shown,
)
from mmattn.visualization.sheet import UNIT, heading, wrapped
from mmattn.visualization.style import Scale, new_figure, styled

LEAST = 0.01  # a scale reaches so far from its centre at least: noise is not drawn as a map
# modules with a value for each channel; the others' groups are called so
BY_CHANNEL = ("BAM", "CoordAttention", "TripletAttention", "SimAM")


def spatial_scale(
    images: Sequence[Collected], type: str | None = None, map: str | None = None
) -> Scale:
    """One scale for a map of all layers and images, so that their pictures can be compared.

    It is centred at the value that changes nothing and does not pass the bounds of the gate; where
    layers differ in that value, or have none, it goes from the least to the greatest.

    Args:
        images: As :func:`mmattn.visualization.collect` gives them.
        type: Of the modules: ``'SGE'``. May be left out if all have a map of one name.
        map: The map's name: ``'mask'``. May be left out if there is one.

    Raises:
        ValueError: There is no such map, or several that could be meant.
    """
    found = list(maps_of(images, "spatial", type, map))
    kinds = {(layer.type, one.name) for layer, one in found}
    if len(kinds) > 1:
        names = ", ".join(sorted(f"{type}: {name}" for type, name in kinds))
        raise ValueError(
            f"spatial_scale expects maps that mean the same, got {names}: give type and map"
        )
    values = [x for _, one in found for x in (one.values, one.mean) if x is not None]
    neutrals = {one.neutral for _, one in found}
    neutral = neutrals.pop() if len(neutrals) == 1 else None
    lows, highs = zip(*(one.bounds for _, one in found), strict=True)
    low = None if None in lows else min(lows)
    high = None if None in highs else max(highs)
    ((_, name),) = kinds
    if neutral is None:
        return Scale.of(values, None, name)
    word = "changes nothing" if neutral == 1 else "as untrained"
    word = word if found[0][1].role == "factor" else "is neutral"
    label = f"{name} ({neutral:.3g} {word})"
    if neutral in (low, high):  # SimAM's gate only raises: no second side to show
        ends = Scale.of(values)
        if neutral == low:
            return Scale(neutral, max(ends.high, neutral + LEAST), None, label)
        return Scale(min(ends.low, neutral - LEAST), neutral, None, label)
    return Scale.of(values, neutral, label, (low, high), least=LEAST)


def draw_spatial(
    collected: Collected,
    layer: Layer,
    map: Map | str,
    scale: Scale | None = None,
    groups: Sequence[int] | None = None,
) -> Figure:
    """The image, the mean over all groups, and each kept group over the image.

    A map of one group is drawn alone and over the image.

    Args:
        collected: The image.
        layer: One of its layers.
        map: Of the kind 'spatial', or its name.
        scale: See :func:`spatial_scale`; None: that of this layer alone.
        groups: Which to draw, numbered as in the module; None: all that the map holds.

    Raises:
        ValueError: The map has another kind, lies not on the image, or holds no such group.
    """
    one = checked(layer, map, "spatial")
    scale = scale or _own_scale(collected, [layer], one.name)
    held = one.groups or tuple(range(len(one.values)))
    if missing := sorted(set(groups or ()) - set(held)):
        raise ValueError(
            f"{layer.name} was collected with the groups {', '.join(str(g) for g in held)}, "
            f"got {', '.join(str(g) for g in missing)}: collect them with groups={missing}"
        )
    size, small = collected.image.shape[:2], shown(collected)
    with styled():
        panels = [image_panel(small)]
        if one.group_count == 1:
            values = small.on_image(one.values[0], one.grid)
            panels += [
                Panel(f"{one.name}\n{extent(one.values)}", scale.colours(values)),
                Panel("over the image", over_image(small, values, scale)),
            ]
            drawn = [one.values]
        else:
            noun = "channel" if layer.type in BY_CHANNEL else "group"
            parts = [(g, one.values[held.index(g)]) for g in (groups or held)]
            named = [(f"{noun} {g} of {one.group_count}", x) for g, x in parts]
            if one.mean is not None:
                named.insert(0, (f"mean of {one.group_count} {noun}s", one.mean))
            for name, part in named:
                picture = over_image(small, small.on_image(part, one.grid), scale)
                panels.append(Panel(f"{name}\n{extent(part)}", picture))
            drawn = [part for _, part in named]
        return draw_panels(f"{layer.title}: {one.name}", panels, size, scale, drawn)


def draw_norms(collected: Collected, layer: Layer) -> Figure:
    """The norm over the channels before and after a module on one scale, and their ratio.

    The ratio's colours are centred at the module's own neutral factor, where there is one (1/2 of
    a plain sigmoid), else at 1: orange is raised, purple is lowered. The mean ratio that is named
    is the geometric one over the image.

    Args:
        collected: The image.
        layer: One of its layers.

    Raises:
        ValueError: The layer lies not on the image, or was collected without its norms.
    """
    if layer.grid is None:
        raise ValueError(
            f"{layer.name} does not run on the whole image, so its norms cannot be drawn over it"
        )
    if layer.before is None or layer.after is None:
        raise ValueError(f"{layer.name} was collected without the norms before and after it")
    size, small = collected.image.shape[:2], shown(collected)
    before, after = (small.on_image(x.float(), layer.grid) for x in (layer.before, layer.after))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log2(after / before)  # NaN where both are zero
    neutral = math.prod(one.neutral or 1 for one in layer.maps if one.role == "factor")
    centre = math.log2(neutral)
    norms = Scale.of([layer.before, layer.after], None, "norm over the channels")
    norms = replace(norms, low=min(norms.low, 0.0))  # lengths are compared from 0
    scale = RatioScale.of([ratio], centre, "after / before", least=-math.log2(1 - LEAST))
    finite = ratio[np.isfinite(ratio)]
    average = f"mean {2 ** finite.mean():.3g}{TIMES}" if finite.size else "no values"
    panels = [
        image_panel(small),
        Panel(f"norm before\n{extent(layer.before)}", norms.colours(before)),
        Panel(f"norm after\n{extent(layer.after)}", norms.colours(after)),
        Panel(
            f"after / before: {average}\nneutral: {neutral:.3g}{TIMES}",
            over_image(small, ratio, scale),
        ),
    ]
    with styled():
        width, height = panel_size(size, len(panels))
        width, height = (x * min(1.0, WIDEST / (4 * width)) for x in (width, height))
        bar_height = 0.12
        figure = new_figure(
            max(4 * (width + GAP), 7), height + bar_height + 4 * LINE + TITLE + 2 * GAP
        )
        figure.get_layout_engine().set(w_pad=GAP / 2, h_pad=GAP / 2, wspace=0, hspace=0)
        wide = (figure.get_figwidth() / 4 - GAP) * UNIT
        grid = figure.add_gridspec(2, 4, height_ratios=[height, bar_height])
        for n, panel in enumerate(panels):
            panel = replace(panel, title=wrapped(panel.title, TITLE_SIZE, wide))
            draw_panel(figure.add_subplot(grid[0, n]), panel, size)
        for place, its, drawn in (
            (grid[1, 1:3], norms, [before, after]),
            (grid[1, 3], scale, [finite]),
        ):
            bar(figure, figure.add_subplot(place), its, drawn, "horizontal")
        heading(figure, f"{layer.title}: what it does to the norm over the channels")
    return figure


def draw_layers(
    collected: Collected,
    layers: Sequence[Layer],
    map: str,
    scale: Scale | None = None,
) -> Figure:
    """One module over depth: the mean of its map over all groups in each layer, on one scale.

    Args:
        collected: The image.
        layers: Of it, in order.
        map: The name of a 'spatial' map that all of them have.
        scale: See :func:`spatial_scale`; None: that of these layers.

    Raises:
        ValueError: There are no layers, or a map has another kind or lies not on the image.
    """
    small = small_for(collected, layers)
    named = []
    for layer in layers:
        one = checked(layer, map, "spatial")
        mean = one.values.mean(0) if one.mean is None else one.mean
        named.append((layer, small.on_image(mean, one.grid), mean))
    scale = scale or _own_scale(collected, layers, map)
    several = any(layer[map].group_count > 1 for layer in layers)
    what = f"{map}, mean over groups" if several else map
    return over_depth(small, named, scale, what, collected.image.shape[:2])


def _own_scale(collected: Collected, layers: Sequence[Layer], map: str) -> Scale:
    return spatial_scale([replace(collected, layers=tuple(layers))], None, map)


def small_for(collected: Collected, layers: Sequence[Layer]) -> Collected:
    """The image in the size of an overview over so many layers."""
    if not layers:
        raise ValueError("an overview over layers expects at least one layer, got none")
    return shown(collected, LONGEST if len(layers) < 10 else 360)


def over_depth(
    small: Collected,
    named: Sequence[tuple[Layer, np.ndarray, Tensor]],
    scale: Scale,
    what: str,
    size: tuple[int, int],
) -> Figure:
    """The image, then a panel for each layer.

    Args:
        small: The image as it is shown.
        named: Each layer, with its values at the pixels of the image and in its own cells.
        scale: For all.
        what: Is drawn, for the title.
        size: Height and width of the image before it was made small.
    """
    types = dict.fromkeys(layer.type for layer, _, _ in named)
    panels = [image_panel(small)]
    for layer, values, _ in named:
        label = layer.label if len(types) == 1 else layer.title
        panels.append(Panel(label, over_image(small, values, scale)))
    title = f"{', '.join(types)} over depth: {what}"
    with styled():
        return draw_panels(title, panels, size, scale, [cells for _, _, cells in named])
