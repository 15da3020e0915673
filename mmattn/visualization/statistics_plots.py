"""Plots of :class:`mmattn.visualization.statistics.Statistics`.

Layers are in the order of the model from left to right or from top to bottom, their stages are
written once. Things that are compared share one axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import stats

from mmattn.visualization import style
from mmattn.visualization.sheet import heading
from mmattn.visualization.statistics import ALL, Statistics

NAMES = (
    "gct_gamma",
    "sge_parameters",
    "gates",
    "gate_states",
    "activation_variance",
    "class_gates",
    "class_differences",
    "class_spread",
    "regions",
    "weights",
)
INK, GREY, LIGHT = "#222222", "#6b6b6b", "#d9d9d9"
LOWER, HIGHER = style.LOWERED, style.RAISED
PANELS = 12  # of class gates: more would be too small to read


def figures(statistics: Statistics) -> dict[str, Figure]:
    """Every plot that the statistics have numbers for, by its name among ``NAMES``.

    Args:
        statistics: Of :func:`~.statistics.gate_statistics` or
            :func:`~.statistics.parameter_statistics`.
    """
    drawn = {}
    with style.styled():
        for name in NAMES:
            figure = globals()[f"_{name}"](statistics)
            if figure is not None:
                drawn[name] = figure
    return drawn


def _gct_gamma(statistics: Statistics) -> Figure | None:
    """Density of gamma by layer, its mean and variance by depth, and who competes."""
    layers = [one for one in statistics.parameters if one["type"] == "GCT"]
    if not layers:
        return None
    values = [np.array(one["gamma"]["values"]) for one in layers]
    reach = float(np.quantile(np.abs(np.concatenate(values)), 0.999)) or 1.0
    figure = style.new_figure(9, 6.4)
    axes = figure.subplot_mosaic("DM;DV;DS", width_ratios=(1, 1.5))
    ax = axes["D"]
    colours = matplotlib.colormaps[style.AMOUNT](np.linspace(0, 0.95, len(layers)))
    _ridges(ax, values, reach, colours)
    ax.axvline(0, color=INK, lw=0.8, ls="--", zorder=len(layers) + 5)
    _stages_down(ax, layers)
    ax.set_xlabel("gamma\ncooperation $\\leftarrow$ 0 $\\rightarrow$ competition (where alpha > 0)")
    ax.set_title("Density of gamma over the channels of a layer,\neach as high as the others")
    at = np.arange(len(layers))
    mean, variance = (np.array([one["gamma"][k] for one in layers]) for k in ("mean", "variance"))
    ax = axes["M"]
    ax.fill_between(
        at, mean - np.sqrt(variance), mean + np.sqrt(variance), color=LIGHT, lw=0, label="± sd"
    )
    ax.plot(at, mean, "o-", ms=3, color=style.COLOURS[0], label="mean")
    ax.axhline(0, color=INK, lw=0.8, ls="--")
    ax.set_title("Mean of gamma ± standard deviation over the channels")
    ax.legend(loc="best", frameon=False, ncols=2)
    ax = axes["V"]
    ax.plot(at, variance, "o-", ms=3, color=style.COLOURS[0])
    ax.set_ylim(bottom=0)
    ax.set_title("Variance of gamma over the channels")
    ax = axes["S"]
    up = np.array([one["competing"] for one in layers]) * 100
    down = np.array([one["cooperating"] for one in layers]) * 100
    ax.bar(at, up, 1, color=HIGHER, edgecolor="white", lw=0.3)
    ax.bar(at, -down, 1, color=LOWER, edgecolor="white", lw=0.3)
    ax.axhline(0, color=INK, lw=0.8)
    ax.set_ylim(-100, 100)
    ax.set_yticks([-100, -50, 0, 50, 100], ["100", "50", "0", "50", "100"])
    ax.set_ylabel("% of channels")
    ax.set_title("Channels that compete (up, gamma alpha > 0) or cooperate (down)")
    for key in "MVS":
        _stages_along(axes[key], layers, labels=key == "S")
    figure.suptitle("GCT: gamma by layer")
    return figure


def _ridges(ax: Axes, values: Sequence, reach: float, colours) -> None:
    """A density for each layer from top to bottom, each as high as the others."""
    at = np.linspace(-reach, reach, 301)
    rows = len(values)
    most = float(np.clip(0.06 * rows, 0.9, 2.5))  # in rows
    for row, (one, colour) in enumerate(zip(values, colours, strict=True)):
        if np.ptp(one) > 1e-3 * reach and len(one) > 2:
            density = stats.gaussian_kde(one)(at)
        else:  # all alike, before the training say
            density = np.exp(-0.5 * ((at - one.mean()) / (0.01 * reach)) ** 2)
        height = density / density.max() * most
        ax.fill_between(at, row, row - height, color=colour, lw=0, alpha=0.85, zorder=row + 2)
        ax.plot(at, row - height, color="white", lw=0.5, zorder=row + 2)
    ax.set_ylim(rows - 0.5, -0.3 - most)
    ax.set_xlim(-reach, reach)


def _sge_parameters(statistics: Statistics) -> Figure | None:
    """Weight and bias of the groups, and how far their masks can swing."""
    layers = [one for one in statistics.parameters if one["type"] == "SGE"]
    if not layers:
        return None
    swings = all("factor" in one for one in layers)
    figure = style.new_figure(9, 6 if swings else 4.2)
    axes = figure.subplots(3 if swings else 2, 1)
    for ax, key in zip(axes, ("weight", "bias"), strict=False):
        _spread(ax, [one[key]["values"] for one in layers], style.COLOURS[0])
        ax.axhline(0, color=INK, lw=0.8, ls="--")
        ax.set_title(f"{key.capitalize()}: each group, and the mean of the layer")
    if swings:
        ax, at = axes[2], layers[0]["factor"]["at"]
        for column, (t, colour) in enumerate(zip(at, (LOWER, GREY, HIGHER), strict=True)):
            factors = [np.array(one["factor"]["values"])[:, column] for one in layers]
            shift = (column - 1) * 0.25
            _spread(ax, factors, colour, shift, width=0.2, label=f"{t:+.0f} sd" if t else "mean")
        ax.set_title(
            "Factor where the group's map is two standard deviations below its mean, at it, and "
            "two above"
        )
        ax.legend(loc="upper left", frameon=False, ncols=3)
    for ax in axes:
        _stages_along(ax, layers, labels=ax is axes[-1])
    figure.suptitle("SGE: weight, bias and what they allow, by layer")
    return figure


def _spread(ax: Axes, values: Sequence, colour: str, shift=0.0, width=0.6, label=None) -> None:
    """Each value as a point, beside each other by their number, and a line at the mean."""
    for row, one in enumerate(values):
        one = np.asarray(one, np.float64)
        along = row + shift + width * (np.linspace(-0.5, 0.5, len(one)) if len(one) > 1 else 0)
        ax.plot(along, one, ".", ms=4, color=colour, alpha=0.6, mew=0)
        ax.plot(
            [row + shift - width / 2, row + shift + width / 2],
            [one.mean()] * 2,
            color=colour,
            lw=1.8,
            label=label if row == 0 else None,
        )


def _gates(statistics: Statistics) -> Figure | None:
    """How gate values are distributed by layer, and what they differ over."""
    kinds: dict[str, list] = {}
    for layer, one in statistics.maps("channel", "spatial"):
        if one["role"] == "factor":
            kinds.setdefault(f"{layer['type']}: {one['name']}", []).append((layer, one))
    if not kinds:
        return None
    rows = [max(len(found), 4) for found in kinds.values()]
    figure = style.new_figure(9, min(1.3 * len(kinds) + 0.2 * sum(rows) + 0.6, 14))
    grid = figure.subplots(
        len(kinds), 2, squeeze=False, gridspec_kw={"height_ratios": rows, "width_ratios": (3, 2)}
    )
    for (title, found), (left, right) in zip(kinds.items(), grid, strict=True):
        layers = [layer for layer, _ in found]
        edges, shares = _one_histogram([one["histogram"] for _, one in found])
        image = left.pcolormesh(
            edges,
            np.arange(len(found) + 1) - 0.5,
            np.ma.masked_equal(shares * 100, 0),
            cmap=style.AMOUNT,
            norm=matplotlib.colors.LogNorm(0.01, 100),
            rasterized=True,
        )
        left.set_facecolor("white")
        left.plot([one["mean"] for _, one in found], np.arange(len(found)), "D", ms=3.5,
                  color="white", mec=INK, mew=0.7, label="mean")  # fmt: skip
        neutrals = {one["neutral"] for _, one in found}
        if len(neutrals) == 1 and None not in neutrals:
            left.axvline(neutrals.pop(), color=style.COLOURS[5], lw=1, ls="--", label="neutral")
        left.invert_yaxis()
        _stages_down(left, layers)
        left.set_title(f"{title}, values over images, units and positions", loc="left")
        left.set_xlabel("gate; colour: share of the values in a bin")
        bar = figure.colorbar(
            image, ax=left, pad=0.01, aspect=max(20, 2 * len(found)), extend="min"
        )
        bar.ax.yaxis.set_major_formatter("{x:g} %")
        marks = (("sd_units", "o", "sd over channels or groups"),
                 ("sd_images", "s", "sd over images"),
                 ("sd_positions", "^", "sd over positions"))  # fmt: skip
        for number, (key, mark, label) in enumerate(marks):
            sds = [one.get(key) for _, one in found]
            if any(sd is not None for sd in sds):
                sds = [np.nan if sd is None or sd <= 0 else sd for sd in sds]
                right.plot(
                    sds, np.arange(len(found)), f"{mark}-", ms=4, lw=0.8, label=label,
                    color=style.COLOURS[(0, 5, 2)[number]],
                )  # fmt: skip
        right.set_xscale("log")
        right.set_ylim(left.get_ylim())
        right.set_yticks([])
        right.grid(axis="x", color=LIGHT, lw=0.5)
        right.set_title("Standard deviation (sd) of the gate", loc="left")
    handles = {label: handle for ax in grid.ravel()
               for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(f"Gates by layer, {_count(statistics.images, 'image')}")
    return figure


def _one_histogram(histograms: Sequence[dict]) -> tuple[np.ndarray, np.ndarray]:
    """All counts as shares of their layer in common bins, by the bins' middles."""
    filled = [(np.array(h["edges"]), np.array(h["counts"])) for h in histograms if h["edges"]]
    if not filled:  # no gate was a number
        return np.array([0.0, 1.0]), np.zeros((len(histograms), 1))
    low = min(edges[np.flatnonzero(counts)[0]] for edges, counts in filled)
    high = max(edges[np.flatnonzero(counts)[-1] + 1] for edges, counts in filled)
    # no finer than the bins are, so that none stays empty for that
    width = max(np.diff(edges).max() for edges, _ in filled)
    edges = np.arange(low, high + width * 1.5, width)
    shares = []
    for histogram in histograms:
        own, counts = np.array(histogram["edges"]), np.array(histogram["counts"])
        counts = np.histogram((own[1:] + own[:-1]) / 2, edges, weights=counts)[0]
        shares.append(counts / max(counts.sum(), 1))
    return edges, np.array(shares)


def _gate_states(statistics: Statistics) -> Figure | None:
    """Shares of units that do nothing."""
    kinds: dict[str, list] = {}
    for layer, one in statistics.maps("channel", "spatial"):
        if one.get("states"):
            kinds.setdefault(f"{layer['type']}: {one['name']}", []).append((layer, one))
    if not kinds:
        return None
    parts = (
        ("neutral", "dead: neutral for all", "#999999"),
        ("constant", "dead: another constant", "#56B4E9"),
        ("low", "saturated at the lower bound", LOWER),
        ("high", "saturated at the upper bound", HIGHER),
    )
    figure = style.new_figure(9, 0.8 + 1.9 * len(kinds))
    axes = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
    for ax, (title, found) in zip(axes, kinds.items(), strict=True):
        at, base = np.arange(len(found)), np.zeros(len(found))
        for key, label, colour in parts:
            share = [100 * len(one["states"][key]) / one["units"] for _, one in found]
            ax.bar(at, share, 0.8, bottom=base, color=colour, label=label)
            base += share
        ax.set_ylim(0, 100)
        ax.set_ylabel("% of units")
        ax.set_title(title, loc="left")
        if not base.any():
            ax.text(0.5, 0.5, "none", transform=ax.transAxes, ha="center", color=GREY)
        _stages_along(ax, [layer for layer, _ in found])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    heading(
        figure,
        "Dead and saturated gates: channels or groups within 1 % of the gate's range of one value, "
        + _count(statistics.images, "image"),
    )
    return figure


def _activation_variance(statistics: Statistics) -> Figure | None:
    """Variance over positions, into and out of each module, and the spread of norms."""
    layers = [one for one in statistics.layers if "variance_ratio" in one.get("activation", {})]
    if not layers:
        return None
    of = [one["activation"] for one in layers]
    at = np.arange(len(layers))
    figure = style.new_figure(9, 6.2)
    axes = figure.subplots(3, 1)
    ax = axes[0]
    for key, colour, label in (("variance_in", LOWER, "in"), ("variance_out", HIGHER, "out")):
        ax.plot(at, [one[key]["mean"] for one in of], "o-", ms=4, color=colour, label=label)
    ax.set_yscale("log")
    ax.set_title("Variance of the activations over positions (mean over channels and images)")
    ax.legend(frameon=False, ncols=2)
    ax = axes[1]
    ax.plot(at, [one["variance_ratio"] for one in of], "o-", ms=4, color=style.COLOURS[0],
            label="out / in")  # fmt: skip
    even = [one.get("variance_ratio_at_mean_factor", np.nan) for one in of]
    if not np.isnan(even).all():
        ax.plot(
            at, even, "s--", ms=3.5, color=GREY, label="the same if each mask were its own mean"
        )
    ax.axhline(1, color=INK, lw=0.8, ls="--")
    ax.set_title("Ratio of the variances")
    ax.legend(frameon=False, ncols=2)
    ax = axes[2]
    for key, colour, label in (("norm_spread_in", LOWER, "in"), ("norm_spread_out", HIGHER, "out")):
        ax.plot(at, [one.get(key, {}).get("mean", np.nan) for one in of], "o-", ms=4, color=colour,
                label=label)  # fmt: skip
    ax.set_title("How unequal the channels' norms are (sd over mean of the channels)")
    ax.legend(frameon=False, ncols=2)
    for ax in axes:
        _stages_along(ax, layers, labels=ax is axes[-1])
    figure.suptitle(
        f"Activations into and out of {', '.join(dict.fromkeys(one['type'] for one in layers))}, "
        f"{_count(statistics.images, 'image')}"
    )
    return figure


def _class_gates(statistics: Statistics) -> Figure | None:
    """Mean gate of each channel for each class, channels sorted by the mean over all images."""
    return _by_channel(statistics, difference=False)


def _class_differences(statistics: Statistics) -> Figure | None:
    """The same less the mean over all images."""
    return _by_channel(statistics, difference=True)


def _by_channel(statistics: Statistics, difference: bool) -> Figure | None:
    found = [(layer, one) for layer, one in statistics.maps("channel") if "classes" in one]
    if not found:
        return None
    which = np.linspace(0, len(found) - 1, min(len(found), PANELS)).round().astype(int)
    shown = [found[i] for i in which]
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = style.new_figure(max(2.5 * columns, 7), 1.9 * rows + 1)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    names = [name for name in statistics.classes if name != ALL]
    colours = dict(zip(names, style.palette(len(names)).colors, strict=True))
    # one on the other where they coincide, and all still to be seen
    widths = dict(zip(names, np.linspace(2.2, 0.6, len(names)), strict=True))
    kinds = {layer["type"] for layer, _ in found}
    for ax, (layer, one) in zip(axes, shown, strict=False):
        whole = np.array(one["classes"][ALL]["mean"])
        order = np.argsort(whole)
        base = whole * difference
        for name, of in one["classes"].items():
            mean = (np.array(of["mean"]) - base)[order]
            if name == ALL:
                ax.plot(mean, color="black", lw=1 if difference else 3)
            else:
                ax.plot(mean, color=colours[name], lw=0.8 if difference else widths[name])
        if one["neutral"] is not None and not difference:
            ax.axhline(one["neutral"], color=GREY, lw=0.7, ls=":")
        ax.set_title(f"{layer['type']}, {layer['label']}" if len(kinds) > 1 else layer["label"])
        ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    for ax in axes[: len(shown)][-columns:]:  # the lowest of each column
        ax.set_xlabel("channels, sorted")
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    handles = [Line2D([], [], color="black", lw=2, label=f"all ({statistics.classes[ALL]})")]
    handles += [
        Line2D([], [], color=colours[name], label=f"{name} ({statistics.classes[name]})")
        for name in names
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6),
                  frameon=False, title="class (images that show it)")  # fmt: skip
    figure.supylabel("mean gate, less that over all images" if difference else "mean gate",
                     fontsize=9)  # fmt: skip
    part = ""
    if len(shown) < len(found):
        # all would be too small to read
        part = f"\n{len(shown)} of {len(found)} layers, evenly spaced from the first to the last"
    what = "Difference of the mean gates of a class to all images" if difference else (
        "Mean gates over the images that show a class")  # fmt: skip
    heading(figure, f"{what}, by channel\nchannels sorted by their mean over all images{part}")
    return figure


def _class_spread(statistics: Statistics) -> Figure | None:
    """How far the mean gates of classes lie apart by depth, against chance."""
    kinds: dict[str, list] = {}
    for layer, one in statistics.maps("channel"):
        if "class_spread" in one:
            kinds.setdefault(f"{layer['type']}: {one['name']}", []).append((layer, one))
    if not kinds:
        return None
    figure = style.new_figure(9, 0.6 + 2.2 * len(kinds))
    axes = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
    for ax, (title, found) in zip(axes, kinds.items(), strict=True):
        at = np.arange(len(found))
        for key, marks, label in (
            ("class_spread", "o-", "between the classes"),
            (
                "class_spread_by_chance",
                "s--",
                "to expect if the gates had nothing to do with the classes",
            ),
        ):
            values = [one.get(key, np.nan) for _, one in found]
            colour = style.COLOURS[0] if key == "class_spread" else GREY
            ax.plot(at, values, marks, ms=4, color=colour, label=label)
        ax.set_ylim(bottom=0)
        ax.set_title(title, loc="left")
        ax.legend(loc="best", frameon=False)
        _stages_along(ax, [layer for layer, _ in found])
    names = [f"{name} ({n})" for name, n in statistics.classes.items() if name != ALL]
    heading(
        figure,
        "Standard deviation of the mean gate over classes, root mean square over channels\n"
        + ", ".join(names),
    )
    return figure


def _regions(statistics: Statistics) -> Figure | None:
    """Shares of the regions by layer, and the entropy of their use."""
    found = list(statistics.maps("regions"))
    if not found:
        return None
    layers, at = [layer for layer, _ in found], np.arange(len(found))
    figure = style.new_figure(9, 5.4)
    top, bottom = figure.subplots(2, 1)
    most = max(one["count"] for _, one in found)
    base = np.zeros(len(found))
    for region, colour in enumerate(style.palette(most).colors):
        share = [
            100 * one["share"]["mean"][region] if region < one["count"] else 0 for _, one in found
        ]
        top.bar(at, share, 0.8, bottom=base, color=colour, label=str(region))
        base += share
    top.set_ylim(0, 100)
    top.set_ylabel("% of pixels")
    top.set_title("Share of the regions (mean over images)")
    top.legend(title="region", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for key, mark, label in (("entropy_bits", "o-", "in one image (mean ± sd over images)"),
                             ("entropy_bits_of_mean", "s-", "over all images")):  # fmt: skip
        values = [one[key] for _, one in found]
        if key == "entropy_bits":
            sds = [v["sd"] if np.isfinite(v["sd"]) else 0 for v in values]
            bottom.errorbar(at, [v["mean"] for v in values], sds, fmt=mark, ms=4, lw=1, capsize=2,
                            color=style.COLOURS[0], label=label)  # fmt: skip
        else:
            bottom.plot(at, values, mark, ms=4, lw=1, color=style.COLOURS[5], label=label)
    bottom.plot(at, [one["uniform_bits"] for _, one in found], "--", color=INK, lw=0.8,
                label="all regions alike (log2 m)")  # fmt: skip
    bottom.set_ylim(bottom=0)
    bottom.set_ylabel("bits")
    bottom.set_title("Entropy of the use of regions")
    figure.legend(*bottom.get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  frameon=False)  # fmt: skip
    _stages_along(top, layers, labels=False)
    _stages_along(bottom, layers)
    figure.suptitle(
        f"{', '.join(dict.fromkeys(x['type'] for x in layers))}: regions, "
        f"{_count(statistics.images, 'image')}"
    )
    return figure


def _weights(statistics: Statistics) -> Figure | None:
    """How evenly queries look, by layer."""
    found = [(layer, one) for layer, one in statistics.maps("weights") if one["entropy_bits"]]
    if not found:
        return None
    layers, at = [layer for layer, _ in found], np.arange(len(found))
    figure = style.new_figure(9, 3.2)
    ax = figure.subplots()
    bits = [one["entropy_bits"] for _, one in found]
    sds = [v["sd"] if np.isfinite(v["sd"]) else 0 for v in bits]
    ax.errorbar(at, [v["mean"] for v in bits], sds, fmt="o", ms=4, capsize=2,
                color=style.COLOURS[0], label="weights (mean ± sd over images)")  # fmt: skip
    ax.plot(at, [one["uniform_bits"] for _, one in found], "_", ms=16, mew=1.5, color=INK,
            label="all positions alike")  # fmt: skip
    ax.set_ylim(bottom=0)
    ax.set_ylabel("bits")
    ax.legend(loc="best", frameon=False)
    _stages_along(ax, layers)
    figure.suptitle(
        f"{', '.join(dict.fromkeys(x['type'] for x in layers))}: entropy of the weights over "
        f"positions, {_count(statistics.images, 'image')}"
    )
    return figure


def _stages(layers: Sequence[dict]) -> list[tuple[str, int, int]]:
    """Runs of layers in one stage: its name, the first and the last."""
    runs: list[list] = []
    for number, layer in enumerate(layers):
        if runs and runs[-1][0] == layer["stage"]:
            runs[-1][2] = number
        else:
            runs.append([layer["stage"], number, number])
    return [tuple(run) for run in runs]


def _stages_along(ax: Axes, layers: Sequence[dict], labels: bool = True) -> None:
    """The stages below the x axis, with a line between them."""
    runs = _stages(layers)
    for _, first, _ in runs[1:]:
        ax.axvline(first - 0.5, color=LIGHT, lw=0.8, zorder=0)
    middles = [(first + last) / 2 for _, first, last in runs]
    ax.set_xticks(middles, [name for name, _, _ in runs] if labels else [""] * len(runs))
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.6, len(layers) - 0.4)
    if labels:
        ax.set_xlabel(f"layers in the order of the model ({len(layers)})")


def _stages_down(ax: Axes, layers: Sequence[dict]) -> None:
    """The stages beside the y axis."""
    runs = _stages(layers)
    for _, first, _ in runs[1:]:
        ax.axhline(first - 0.5, color=LIGHT, lw=0.8, zorder=0)
    ax.set_yticks([(first + last) / 2 for _, first, last in runs], [name for name, _, _ in runs])
    ax.tick_params(axis="y", length=0)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
