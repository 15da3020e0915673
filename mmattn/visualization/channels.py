"""Channel gates, added contexts and the shares of branches and experts, as pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from mmattn.visualization.collected import Channels, Collected, Layer, Map
from mmattn.visualization.overlay import MINUS, bar, over_image, rounded, shown
from mmattn.visualization.shares import around, percent
from mmattn.visualization.sheet import heading
from mmattn.visualization.style import AMOUNT, LOWERED, RAISED, Scale, new_figure, styled

LEAST_TERM = 1e-3  # a scale of what is added reaches so far from 0 at least
NEAR = 0.01  # so near to the neutral value, in shares of it, a gate hardly does anything
PANEL = 1.75  # inches, the longer side of a small map
FRAME = "#777777"
BESIDE = dict(location="right", pad=0.02, panchor=False, aspect=25)
END = 1.86  # a strip is 1 wide, and its numbers end here


def channel_maps(collected: Collected) -> list[tuple[str, str]]:
    """What :func:`draw_strips` can draw: types of modules and the names of their channel maps.

    Args:
        collected: One image.

    Returns:
        ``[('CBAM', 'channel gate')]``, in the order in which they ran, each once.
    """
    pairs = [(layer.type, one.name) for layer in collected for one in layer.of_kind("channel")]
    return list(dict.fromkeys(pairs))


def channel_scale(
    images: Iterable[Collected] | Collected, type: str, name: str | None = None
) -> Scale:
    """One scale for the channel gates of all layers of a type of module, on all images.

    Args:
        images: What ``collect`` returned.
        type: Of the modules, ``'SE'``.
        name: Of the map; None: its gate if there is one, else the first channel map.

    Returns:
        A scale around the neutral value, within the bounds of the gate.

    Raises:
        ValueError: No module of that type has such a map.
    """
    images = [images] if isinstance(images, Collected) else list(images)
    found = [one for image in images for _, one in _channel_rows(image, type, name)]
    if not found:
        raise ValueError(f"no {type} has {_quoted(name)} in these images; {_offer(images)}")
    return _scale_of(found, [one.values for one in found])


def draw_strips(
    collected: Collected,
    type: str | None = None,
    scale: Scale | None = None,
    name: str | None = None,
) -> Figure:
    """All channel gates of all layers: a strip a layer, from its lowest to its highest gate.

    Args:
        collected: One image.
        type: Of the modules, ``'SE'``; may be None if only one type has channel gates.
        scale: From :func:`channel_scale`, to compare images; None: one for this image.
        name: Of the map; None: its gate if there is one, else the first channel map.

    Returns:
        The picture; beside each strip the number of channels, their range and which share of them
        is lowered, near the neutral value or raised.

    Raises:
        ValueError: There is nothing to draw, or several types and none was chosen.
    """
    if type is None:
        types = list(dict.fromkeys(kind for kind, _ in channel_maps(collected)))
        if len(types) > 1:
            raise ValueError(
                f"{collected.name} has channel gates of several types of modules, "
                f"{', '.join(types)}: choose one with type."
            )
        type = types[0] if types else None
    rows = _channel_rows(collected, type, name)
    if not rows:
        of = f"no {type} has {_quoted(name)}" if type else "no module has channel gates"
        raise ValueError(f"{of} in {collected.name}; {_offer([collected])}")
    scale = scale or _scale_of([one for _, one in rows], [one.values for _, one in rows])
    strips = [
        _Strip(layer, np.asarray(one.values, np.float64).ravel(), one.neutral)
        for layer, one in rows
    ]
    what = "channel by channel" if rows[0][1].role == "term" else "of each channel"
    return _strips(strips, scale, f"{type}: {rows[0][1].name} {what}, sorted — {collected.name}")


def draw_channels(
    collected: Collected,
    layer: str | Layer,
    scale: Scale | None = None,
    name: str | None = None,
) -> Figure:
    """The channels that a layer raises and lowers most, as maps over the image, and all gates.

    Args:
        collected: One image.
        layer: Its name, or the layer itself.
        scale: Of the gates, from :func:`channel_scale`, to compare layers; None: for this one.
        name: Of the map; None: its gate if there is one, else the first channel map.

    Returns:
        The picture. All maps have one scale; they show what came into the module.

    Raises:
        ValueError: The layer has no channel gates.
        KeyError: There is no layer of that name.
    """
    layer = collected[layer] if isinstance(layer, str) else layer
    one = _channel_map(layer, name)
    if one is None:
        raise ValueError(
            f"{layer.name} ({layer.type}) has no {_quoted(name)}; it has "
            f"{', '.join(m.name for m in layer.maps) or 'no maps'}."
        )
    gates = np.asarray(one.values, np.float64).ravel()
    scale = scale or _scale_of([one], [gates])
    term = one.role == "term"
    groups = [
        ("highest" if term else "most raised", layer.raised, RAISED, "^"),
        ("lowest" if term else "most lowered", layer.lowered, LOWERED, "v"),
    ]
    drawn = [g for g in groups if g[1] is not None and g[1].grid is not None and g[1].indices]
    with styled():
        return _channels_figure(collected, layer, one, gates, scale, groups, drawn)


def draw_shares(collected: Collected, layer: str | Layer) -> Figure:
    """How a layer shares out its branches (SK) or experts (CondConv).

    Args:
        collected: One image.
        layer: Its name, or the layer itself.

    Returns:
        Of two branches, the share of the second for each channel, sorted; of experts, bars.

    Raises:
        ValueError: The layer has no shares.
        KeyError: There is no layer of that name.
    """
    layer = collected[layer] if isinstance(layer, str) else layer
    found = layer.of_kind("shares")
    if not found:
        raise ValueError(
            f"{layer.name} ({layer.type}) has no shares of branches or experts; it has "
            f"{', '.join(m.name for m in layer.maps) or 'no maps'}."
        )
    one = found[0]
    values = np.asarray(one.values, np.float64)
    title = f"{layer.title}: {one.name} — {collected.name}"
    with styled():
        if values.ndim == 1:
            return _bars(values, one, title)
        second, even = values[-1], _even(one)
        scale = _share_scale([one])
        figure = new_figure(6, 3)
        heading(figure, title)
        ax = figure.subplots()
        _curve(ax, second, even, scale, scale.label)
        ax.axhline(second.mean(), color="black", lw=1, ls=(0, (4, 2)))
        _at_right(ax, second.mean(), f"mean {_number(second.mean(), scale)}", even)
        return figure


def draw_share_layers(collected: Collected, type: str | None = None) -> Figure:
    """The shares of branches or experts in all layers of one type.

    Args:
        collected: One image.
        type: ``'SKConv2d'``; may be None if only one type has shares.

    Returns:
        Of branches, a sorted strip a layer; of experts, a table in colours and numbers.

    Raises:
        ValueError: There is nothing to draw, or several types and none was chosen.
    """
    types = list(dict.fromkeys(layer.type for layer in collected if layer.of_kind("shares")))
    if type is None and len(types) > 1:
        raise ValueError(
            f"{collected.name} has shares of several types of modules, {', '.join(types)}: "
            "choose one with type."
        )
    rows = [
        (layer, layer.of_kind("shares")[0])
        for layer in collected
        if layer.of_kind("shares") and type in (None, layer.type)
    ]
    if not rows:
        raise ValueError(
            f"no {type or 'module'} has shares of branches or experts in {collected.name}"
            f"{'; there are shares of ' + ', '.join(types) if types else ''}."
        )
    title = f"{rows[0][0].type}: {rows[0][1].name} — {collected.name}"
    if rows[0][1].values.ndim == 1:
        with styled():
            return _table(rows, title)
    strips = [
        _Strip(layer, np.asarray(one.values[-1], np.float64), _even(one)) for layer, one in rows
    ]
    return _strips(strips, _share_scale([one for _, one in rows]), title)


# ---- which maps ------------------------------------------------------------------------------


def _channel_map(layer: Layer, name: str | None) -> Map | None:
    """The channel map of that name; of None, the gate before what is added."""
    found = [one for one in layer.of_kind("channel") if name in (None, one.name)]
    return min(found, key=lambda one: ("factor", "term", "detail").index(one.role), default=None)


def _channel_rows(
    collected: Collected, type: str | None, name: str | None
) -> list[tuple[Layer, Map]]:
    rows = [(layer, _channel_map(layer, name)) for layer in collected if layer.type == type]
    rows = [(layer, one) for layer, one in rows if one is not None]
    # layers of one type may differ in what they have: only what compares is drawn together
    return [(layer, one) for layer, one in rows if one.name == rows[0][1].name]


def _offer(images: list[Collected]) -> str:
    pairs = dict.fromkeys(pair for image in images for pair in channel_maps(image))
    if not pairs:
        return "channel gates come from SE, ECA, SRM, GCT, CBAM and GC."
    return f"there are {', '.join(f'{name!r} of {type}' for type, name in pairs)}."


def _quoted(name: str | None) -> str:
    return repr(name) if name else "channel gates"


def _scale_of(maps: list[Map], values: list) -> Scale:
    neutrals = {one.neutral for one in maps}
    centre = neutrals.pop() if len(neutrals) == 1 else None
    label = maps[0].name if centre is None else f"{maps[0].name} (neutral: {_number(centre)})"
    # a gate that has not learned yet is drawn in one colour, not as noise
    least = LEAST_TERM if maps[0].role == "term" else NEAR
    scale = Scale.of(values, centre, label, maps[0].bounds, least=least)
    return _to_bounds(scale, maps[0].bounds)


def _to_bounds(scale: Scale, bounds: tuple[float | None, float | None]) -> Scale:
    """Ends that nearly are the bounds become them: 0 and 2, not 0.001 and 1.999."""
    near = 0.05 * (scale.high - scale.low)
    low, high = (
        end if bound is None or abs(end - bound) > near else bound
        for end, bound in zip((scale.low, scale.high), bounds, strict=True)
    )
    return replace(scale, low=low, high=high)


def _share_scale(maps: list[Map]) -> Scale:
    """Around even shares, of the last of the branches."""
    last = len(maps[0].values)
    ordinal = {2: "second", 3: "third"}.get(last, f"{last}th")
    even = _even(maps[0])
    label = f"share of the {ordinal} branch (even: {_number(even)})"
    scale = Scale.of([one.values[-1] for one in maps], even, label, (0.0, 1.0))
    return _to_bounds(scale, (0.0, 1.0))


def _even(one: Map) -> float:
    return 1 / len(one.values) if one.neutral is None else one.neutral


# ---- numbers as text -------------------------------------------------------------------------


def _number(x: float, scale: Scale | None = None) -> str:
    """``0.983``: as many places as the scale needs; without one, three digits."""
    x = 0.0 if abs(x) < 1e-12 else float(x)
    if scale is None:
        text = f"{x:.3g}"
    else:
        middle = (scale.low + scale.high) / 2 if scale.centre is None else scale.centre
        power = math.ceil(math.log10(max(scale.high - middle, middle - scale.low)))
        text = rounded(x, max(3 - power, 0)) if -4 < power < 6 else f"{x:.2e}"
    return text.replace("-", MINUS)


def _tolerance(neutral: float, scale: Scale) -> float:
    """What counts as near: 1 % of the neutral value; where that is 0, of the scale's reach."""
    return NEAR * (abs(neutral) or max(abs(scale.low), abs(scale.high)))


# ---- parts of pictures -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Strip:
    layer: Layer
    values: np.ndarray
    neutral: float | None


def _strips(strips: list[_Strip], scale: Scale, title: str) -> Figure:
    """Sorted values as rows of colour, numbers beside them, a colour bar below."""
    rows, gap = len(strips), 0.45
    size = 8 if rows <= 20 else 7
    step = 0.27 if rows <= 8 else 0.21 if rows <= 20 else 0.155  # inches a row
    tops, y = [], 0.0
    for n, strip in enumerate(strips):
        y += gap if n and strip.layer.stage != strips[n - 1].layer.stage else 0
        tops.append(y)
        y += 1
    with styled():
        figure = new_figure(9.2, step * (y + 1) + 1.15)
        heading(figure, title)
        ax = figure.subplots()
        for top, strip in zip(tops, strips, strict=True):
            _strip(ax, np.sort(strip.values), strip.neutral, scale, top + 0.06, top + 0.94)
        for n in range(1, rows):
            if strips[n].layer.stage != strips[n - 1].layer.stage:
                ax.plot([0, END], [tops[n] - gap / 2] * 2, color="#CCCCCC", lw=0.6)
        _numbers(ax, strips, scale, tops, size)
        ax.set(xlim=(0, END), ylim=(y, -1.2), xticks=[], yticks=[top + 0.5 for top in tops])
        ax.set_yticklabels([s.layer.label for s in strips], fontsize=size)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        if scale.centre is not None:
            scale = replace(scale, label=f"{scale.label}; black mark: where a strip passes it")
        beside = dict(location="bottom", pad=0.02, panchor=False, shrink=0.55, aspect=45)
        bar(figure, ax, scale, [s.values for s in strips], beside=beside)
    return figure


def _strip(
    ax: Axes, sorted_: np.ndarray, neutral: float | None, scale: Scale, top: float, bottom: float
) -> None:
    """One row of colours between x = 0 and 1, with a mark where the values pass the neutral."""
    colours = scale.colours(sorted_)[None]
    ax.imshow(colours, extent=(0, 1, bottom, top), aspect="auto", interpolation="nearest", zorder=1)
    ax.plot([0, 1, 1, 0, 0], [top, top, bottom, bottom, top], color=FRAME, lw=0.5, zorder=2)
    if neutral is not None:
        below = float((sorted_ < neutral).mean())
        if 0 < below < 1:
            ax.plot([below, below], [top, bottom], color="black", lw=0.8, zorder=3)


def _numbers(ax: Axes, strips: list[_Strip], scale: Scale, tops: list[float], size: int) -> None:
    neutrals = {s.neutral for s in strips}
    heads = ["channels", "lowest", "mean", "highest"]
    if len(neutrals) == 1 and None not in neutrals:
        neutral = strips[0].neutral
        near = _tolerance(neutral, scale)
        low, high = _number(neutral - near, scale), _number(neutral + near, scale)
        heads += [f"< {low}", "between", f"> {high}"]
    elif None not in neutrals:
        heads += ["below", "neutral\n± 1 %", "above"]
    at = [1.1, 1.21, 1.325, 1.44, 1.585, 1.72, END]
    for x, head in zip(at, heads, strict=False):
        ax.text(x, -0.15, head, ha="right", va="bottom", fontsize=size, color="#444444")
    for top, strip in zip(tops, strips, strict=True):
        v = strip.values
        cells = [str(v.size), *(_number(x, scale) for x in (v.min(), v.mean(), v.max()))]
        if strip.neutral is not None and len(heads) > 4:
            near = _tolerance(strip.neutral, scale)
            cells += [percent(share) for share in around(v, strip.neutral, near)]
        for x, cell in zip(at, cells, strict=False):
            ax.text(x, top + 0.5, cell, ha="right", va="center", fontsize=size)


def _curve(
    ax: Axes, values: np.ndarray, neutral: float | None, scale: Scale, label: str
) -> np.ndarray:
    """Sorted values as a curve, coloured like the strips; returns the rank of each channel."""
    order = np.argsort(values, kind="stable")
    rank = np.empty(len(values), int)
    rank[order] = np.arange(len(values))
    ax.scatter(
        rank + 1, values, c=values, cmap=scale.cmap, norm=scale.norm, s=12, zorder=3,
        edgecolors=FRAME, linewidths=0.3, rasterized=len(values) > 256,
    )  # fmt: skip
    if neutral is not None:
        ax.axhline(neutral, color=FRAME, lw=0.8, zorder=1)
    finite = values[np.isfinite(values)]
    low = min(scale.low, finite.min(initial=scale.low))
    high = max(scale.high, finite.max(initial=scale.high))
    pad = 0.06 * (high - low)
    room = 0.02 * len(values) + 0.5
    ax.set(
        xlabel=f"{len(values)} channels, sorted", ylabel=label,
        xlim=(1 - room, len(values) + room), ylim=(low - pad, high + pad),
    )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return rank


def _at_right(ax: Axes, y: float, text: str, avoid: float | None) -> None:
    below = avoid is not None and y < avoid
    ax.annotate(
        text, (0, y), (4, -3 if below else 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", va="top" if below else "bottom", fontsize=8,
    )  # fmt: skip


def _channels_figure(
    collected: Collected,
    layer: Layer,
    one: Map,
    gates: np.ndarray,
    scale: Scale,
    groups: list,
    drawn: list,
) -> Figure:
    height, width = collected.image.shape[:2]
    upright = width <= 2 * height  # else the maps stand below each other, one column a group
    count = max((len(channels.indices) for _, channels, _, _ in drawn), default=0)
    panel = PANEL / max(height, width) * np.array([width, height])
    across, down = (count, len(drawn)) if upright else (len(drawn), count)
    maps_width = across * (max(panel[0], 0.8) + 0.12) + 0.9 if drawn else 0.0
    narrow = panel[0] < 1.35  # the gate stands below the number of the channel
    tall = max(down * (panel[1] + (0.42 if narrow else 0.28)) + 0.2, 2.8)
    figure = new_figure(max(maps_width + 3.4, 5.0), tall + 0.45)
    heading(figure, f"{layer.title}: {one.name} — {collected.name}")
    if not drawn:
        _marked_curve(figure.subplots(), one, gates, scale, groups)
        return figure
    small = shown(collected, 400)
    left, right = figure.subfigures(1, 2, width_ratios=[maps_width, 3.4], wspace=0.02)
    axes = left.subplots(down, across, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
        ax.set_anchor("W")
    activation = _activation_scale([channels for _, channels, _, _ in drawn])
    for g, (words, channels, colour, _) in enumerate(drawn):
        found = small.on_image(channels.values.float(), channels.grid)
        for k, index in enumerate(channels.indices):
            ax = axes[g, k] if upright else axes[k, g]
            picture = over_image(small, found[k], activation)
            ax.imshow(picture, extent=(0, width, height, 0), interpolation="auto")
            gap = "\n" if narrow else " "
            title = f"channel {index}:{gap}{_number(gates[index], scale)}"
            ax.set_title(("\n" if k == 0 else "") + title, fontsize=8, loc="left", pad=3)
            frame = Rectangle((0, 0), width, height, fill=False, ec=FRAME, lw=0.6, clip_on=False)
            ax.add_patch(frame)
            if k == 0:
                word = ax.annotate(
                    words, (0, 1), (0, 25 if narrow else 14), xycoords="axes fraction",
                    textcoords="offset points", fontsize=9, fontweight="bold", color=colour,
                )  # fmt: skip
                word.set_in_layout(False)  # it may be wider than the map; the title has a line
    values = [channels.values for _, channels, _, _ in drawn]
    bar(left, axes, activation, values, beside=BESIDE)
    _marked_curve(right.subplots(), one, gates, scale, groups)
    return figure


class _ActivationScale(Scale):
    """Other colours than those of the gates in the same figure."""

    @property
    def cmap(self) -> Colormap:
        return matplotlib.colormaps[AMOUNT if self.centre is None else "RdBu_r"]


def _activation_scale(found: list[Channels]) -> Scale:
    """One for all maps: around 0 if there are values of both signs."""
    values = [channels.values for channels in found]
    signed = all(any(bool((sign * v > 0).any()) for v in values) for sign in (1, -1))
    return _ActivationScale.of(
        values, 0.0 if signed else None, "what came into the module\n(one scale for all maps)"
    )


def _marked_curve(ax: Axes, one: Map, gates: np.ndarray, scale: Scale, groups: list) -> None:
    rank = _curve(ax, gates, one.neutral, scale, scale.label)
    for words, channels, colour, marker in groups:
        if channels is None or not channels.indices:
            continue
        at = list(channels.indices)
        ax.plot(
            rank[at] + 1, gates[at], ls="none", marker=marker, ms=6.5, mfc=colour, mec="white",
            mew=0.5, label=words, zorder=4,
        )  # fmt: skip
    if any(channels is not None and channels.indices for _, channels, _, _ in groups):
        ax.legend(loc="best", frameon=False)
    if one.neutral is not None:
        near = _tolerance(one.neutral, scale)
        below, within, above = (percent(s) for s in around(gates, one.neutral, near))
        low, high = (_number(one.neutral + x, scale) for x in (-near, near))
        ax.set_title(f"{below} < {low},  {above} > {high},\n{within} between", loc="left")


def _bars(values: np.ndarray, one: Map, title: str) -> Figure:
    """The shares of experts."""
    figure = new_figure(max(3.6, 0.5 * len(values) + 1.2), 3)
    heading(figure, title)
    ax = figure.subplots()
    at = np.arange(len(values))
    bars = ax.bar(at, values, color="#0072B2", width=0.7)
    ax.bar_label(
        bars, [f"{v:.2f}" for v in values], fontsize=8, padding=2,
        bbox=dict(facecolor="white", edgecolor="none", pad=0.5),
    )  # fmt: skip
    ax.axhline(values.mean(), color="black", lw=1, ls=(0, (4, 2)), zorder=0)
    low, high = one.bounds
    top = values.max() * 1.15 if high is None else high
    ax.set(
        xlabel=f"expert; broken line: the mean, {_number(values.mean())}", ylabel=one.name,
        xticks=at, ylim=(0 if low is None else low, max(top, values.max() * 1.12, 1e-6)),
    )  # fmt: skip
    return figure


def _table(rows: list[tuple[Layer, Map]], title: str) -> Figure:
    """Layers down, experts across; one scale from 0, numbers in the cells."""
    most = max(len(one.values) for _, one in rows)
    table = np.full((len(rows), most), np.nan)
    for n, (_, one) in enumerate(rows):
        table[n, : len(one.values)] = np.asarray(one.values, np.float64)
    highs = [one.bounds[1] for _, one in rows if one.bounds[1] is not None]
    scale = Scale(0.0, highs[0] if highs else max(float(np.nanmax(table)), 1e-6), None,
                  rows[0][1].name)  # fmt: skip
    figure = new_figure(max(4.0, 0.5 * most + 2.2), 0.24 * len(rows) + 1.2)
    heading(figure, title)
    ax = figure.subplots()
    ax.imshow(np.ma.masked_invalid(table), cmap=scale.cmap, norm=scale.norm, aspect="auto")
    for n, k in np.argwhere(np.isfinite(table)):
        dark = scale.norm(table[n, k]) < 0.55
        ax.text(k, n, f"{table[n, k]:.2f}", ha="center", va="center", fontsize=7,
                color="white" if dark else "black")  # fmt: skip
    ax.set(xticks=np.arange(most), yticks=np.arange(len(rows)), xlabel="expert")
    ax.set_yticklabels([layer.label for layer, _ in rows])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar(figure, ax, scale, [table], beside=BESIDE)
    return figure
