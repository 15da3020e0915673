"""Pictures of attention that gathers: GC's and SNL's context masks, NonLocal's queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from mmattn.visualization.collected import Collected, Layer, Map
from mmattn.visualization.distance import COSINE, JSD, is_distribution
from mmattn.visualization.overlay import (
    TIMES,
    Panel,
    RatioScale,
    checked,
    draw_panels,
    extent,
    image_panel,
    maps_of,
    over_image,
    shown,
    times,
)
from mmattn.visualization.spatial import over_depth, small_for
from mmattn.visualization.style import Scale, styled


def weights_scale(
    images: Sequence[Collected], type: str | None = None, map: str | None = None
) -> Scale:
    """One scale for the weights of all layers and images, so that they can be compared.

    Weights that sum to 1 are shown as times an even share, in log2, as far below 1 as above: from
    1/8x to 8x, say. The ends are powers of two. Others (NonLocal's 'dot_product' and
    'concatenation') as the affinity f(x_i, x_j) before the division by the number of positions.

    Args:
        images: As :func:`mmattn.visualization.collect` gives them.
        type: Of the modules: ``'GC'``; None: all.
        map: The map's name; None: all.

    Raises:
        ValueError: There is no such map, or some sum to 1 and others do not.
    """
    return _scale([one for _, one in maps_of(images, "weights", type, map)])


def _scale(found: Sequence[Map]) -> Scale:
    kinds = {is_distribution(one.values) for one in found}
    if len(kinds) > 1:
        raise ValueError(
            "weights_scale expects weights that all sum to 1, or none that do, got both: give "
            "type and map, or layers of one kind"
        )
    shown_as = [_cells(one) for one in found]
    if kinds == {True}:
        finite = [x[x.isfinite()].numpy() for x in shown_as]  # a weight may be 0
        highest = [np.quantile(x, 0.999, method="higher") for x in finite if x.size]
        reach = max(1, math.ceil(max(highest, default=0.0) - 1e-3))
        return RatioScale(-reach, reach, 0.0, "weight, times an even share")
    label = "affinity (weight times positions)"
    signed = any(bool((x < 0).any()) for x in shown_as)
    return Scale.of(shown_as, 0.0 if signed else None, label)


def draw_mask(
    collected: Collected,
    layer: Layer,
    scale: Scale | None = None,
    map: Map | str | None = None,
) -> Figure:
    """A context mask, which all positions share: alone and over the image.

    Args:
        collected: The image.
        layer: One of its layers.
        scale: See :func:`weights_scale`; None: that of what is drawn alone.
        map: Of the kind 'weights', or its name; None: the layer's first.

    Raises:
        ValueError: The layer has no such map, it has several queries, or lies not on the image.
    """
    one = _checked(layer, map)
    if len(one.values) != 1:
        raise ValueError(
            f"draw_mask expects weights that all positions share, got {len(one.values)} queries "
            f"of {layer.name}: use draw_queries"
        )
    scale = _fitting(scale, [one])
    size, small = collected.image.shape[:2], shown(collected)
    cells, values = _cells(one), _on_image(small, one)[0]
    with styled():
        panels = [
            image_panel(small),
            Panel(f"{one.name}\n{_extent(cells, scale)}", scale.colours(values)),
            Panel("over the image", over_image(small, values, scale)),
        ]
        return draw_panels(f"{layer.title}: {one.name}", panels, size, scale, [cells])


def draw_masks(
    collected: Collected,
    layers: Sequence[Layer],
    scale: Scale | None = None,
    map: str | None = None,
) -> Figure:
    """The context mask of each layer over the image, on one scale.

    Of a map with several queries: the mean over them.

    Args:
        collected: The image.
        layers: Of it, in order.
        scale: See :func:`weights_scale`; None: that of what is drawn alone.
        map: The name of a map of the kind 'weights'; None: each layer's first.

    Raises:
        ValueError: There are no layers, or one has no such map, or it lies not on the image.
    """
    small = small_for(collected, layers)
    maps = [_checked(layer, map) for layer in layers]
    several = any(len(one.values) > 1 for one in maps)
    # of several queries the mean: still a distribution where they are
    maps = [replace(one, values=one.values.mean(0, keepdim=True)) for one in maps]
    scale = _fitting(scale, maps)
    named = [
        (layer, _on_image(small, one)[0], _cells(one))
        for layer, one in zip(layers, maps, strict=True)
    ]
    what = ", ".join(dict.fromkeys(one.name for one in maps))
    what += ", mean over the queries shown" if several else ""
    return over_depth(small, named, scale, what, collected.image.shape[:2])


def draw_queries(
    collected: Collected,
    layer: Layer,
    scale: Scale | None = None,
    map: Map | str | None = None,
) -> Figure:
    """What each query point gathers, beside each other; the query is marked with a star.

    Args:
        collected: The image.
        layer: One of its layers.
        scale: See :func:`weights_scale`; None: that of what is drawn alone.
        map: Of the kind 'weights', with queries, or its name; None: the layer's first.

    Raises:
        ValueError: The layer has no such map, it has no queries, or lies not on the image.
    """
    one = _checked(layer, map)
    if one.queries is None:
        raise ValueError(
            f"draw_queries expects weights of query points, but all positions share those of "
            f"{layer.name}: use draw_mask"
        )
    scale = _fitting(scale, [one])
    size, small = collected.image.shape[:2], shown(collected)
    points = [(float(x), float(y), n) for n, (x, y) in enumerate(one.queries, 1)]
    cells = _cells(one)
    with styled():
        panels = [image_panel(small, points)]
        for point, its, values in zip(points, cells, _on_image(small, one), strict=True):
            picture = over_image(small, values, scale)
            title = f"query {point[2]}\n{_extent(its, scale)}"
            panels.append(Panel(title, picture, [point]))
        measured = [
            f"{name} {layer.measures[key]:.2g}{unit}"
            for name, key, unit in (("cosine", COSINE, ""), ("JSD", JSD, " nats"))
            if not math.isnan(layer.measures.get(key, math.nan))
        ]
        title = (
            f"{layer.title}: {one.name} of {len(points)} quer{'y' if len(points) == 1 else 'ies'}"
        )
        if measured:
            title += f"\nmean distance between queries all over the image: {', '.join(measured)}"
        return draw_panels(title, panels, size, scale, [cells])


def _checked(layer: Layer, map: Map | str | None) -> Map:
    if map is None:
        found = layer.of_kind("weights")
        if not found:
            raise ValueError(
                f"{layer.name} is a {layer.type}, which has no map of the kind 'weights'"
            )
        map = found[0]
    return checked(layer, map, "weights")


def _fitting(scale: Scale | None, maps: Sequence[Map]) -> Scale:
    """The scale, or that of the maps; raises ValueError if it is not for such weights."""
    if scale is None:
        return _scale(maps)
    if any(is_distribution(one.values) != isinstance(scale, RatioScale) for one in maps):
        raise ValueError(
            f"{maps[0].name} expects a scale that weights_scale gave for modules of its own type"
        )
    return scale


def _cells(one: Map) -> Tensor:
    """The values as they are drawn: log2 of times an even share, or affinities."""
    share = one.values.double() * one.values[0].numel()
    return share.log2() if is_distribution(one.values) else share


def _on_image(small: Collected, one: Map) -> np.ndarray:
    """The same at the pixels of the image; between cells the weights are averaged, not their log2.

    A weight may be 0.
    """
    values = small.on_image(one.values.double() * one.values[0].numel(), one.grid)
    if not is_distribution(one.values):
        return values
    with np.errstate(divide="ignore"):
        return np.log2(values)


def _extent(cells: Tensor, scale: Scale) -> str:
    if not isinstance(scale, RatioScale):
        return extent(cells)
    cells = cells[~cells.isnan()]
    if not cells.numel():
        return "no values"
    low, high = (float(x) for x in cells.aminmax())
    return f"{_times(low)} to {_times(high)}" if high - low > 1e-3 else _times(low)


def _times(log2: float) -> str:
    # a smaller one says no more, and is harder to read
    return f"<0.001{TIMES}" if 0 < 2**log2 < 0.001 else times(log2)
