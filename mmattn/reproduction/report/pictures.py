"""Pictures of the reproduction's report, in the style of :mod:`mmattn.evaluation.plots`.

A method (a row's label) has the same colour and marker under every heading and in every picture.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmattn.reproduction.report.rows import LEVEL, Entry, Gathered, pairs
from mmattn.reproduction.report.tables import gains_of, time_ratio

if TYPE_CHECKING:
    pass


from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mmattn.evaluation import plots
from mmattn.evaluation.plots import _GREY, _INK

SIZES = {"all": "all sizes", "small": "small", "medium": "medium", "large": "large"}
_LINE = 0.235  # inches of a line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """What the pictures show of a row; figures are fractions, by 'all' or bin.

    Attributes:
        group: The heading it stands under, or ''.
        label: The method.
        baseline: Label of its baseline, or ''.
        ap: Mean over seeds.
        of_seeds: AP of each seed.
        baseline_ap: The baseline's mean, where it may be compared.
        differences: With ``value``, ``low``, ``high``; None where there is no comparison.
        reported: (figure, source, size or 'mask', published gain in points).
        mask_difference: Of the mask AP, or None.
        added: 'parameters', 'FLOPs' or 'training time' -> share added to the baseline's.
    """

    group: str
    label: str
    baseline: str
    ap: Mapping[str, float]
    of_seeds: Mapping[str, Sequence[float]]
    baseline_ap: Mapping[str, float] | None = None
    differences: Mapping[str, Any] | None = None
    reported: Sequence[tuple[str, str, str, float]] = ()
    mask_difference: Any = None
    added: Mapping[str, float] = dataclasses.field(default_factory=dict)


def plot_gains(lines: Sequence[Line], labels: Sequence[str], level: float) -> Figure:
    """Difference of AP to the row's own baseline, a panel a size, all on one scale.

    Args:
        lines: Those with ``differences``.
        labels: All methods, in the order that gives them their colours.
        level: Of the intervals.
    """
    looks, sizes = plots._looks(labels, labels), _sizes([x.differences for x in lines])
    with plots._style():
        names = [
            f"{plots.percent(level)} interval excludes 0",
            "interval contains 0: not shown to differ",
            "0: the row's own baseline",
        ]
        figure, panels, places = _panels(lines, len(sizes), names, against=True)
        ends = []
        for axes, size in zip(panels, sizes, strict=True):
            axes.axvline(0, color=_INK, linewidth=1)
            axes.set(title=SIZES.get(size, size), xlabel="difference in AP,\npoints (%)")
            for y, line in zip(places, lines, strict=True):
                x = line.differences.get(size)
                plots._interval(axes, x, y, looks[line.label])
                ends += [100 * plots._number(end) for end in (x.value, x.low, x.high)]
            _signed_axis(axes)
        plots._span(panels, ends, 0.5)
        plots._finish(
            figure,
            [
                *(
                    Line2D([], [], color=_GREY, marker="o", markersize=5, **plots._fill(x, _GREY))
                    for x in (True, False)
                ),
                Line2D([], [], color=_INK, linewidth=1),
            ],
            names,
        )
    return figure


def plot_ap(lines: Sequence[Line], labels: Sequence[str]) -> Figure:
    """AP of every row, a panel a size; a point of AP is equally long in all panels."""
    looks, sizes = plots._looks(labels, labels), _sizes([x.ap for x in lines])
    with plots._style():
        several = any(len(x) > 1 for line in lines for x in line.of_seeds.values())
        names = ["AP of the row" + (" (mean over seeds)" if several else "")]
        names += ["one seed"] * several
        handles = [Line2D([], [], color=_GREY, marker="o", markersize=5.5, linewidth=0)]
        if several:
            handles.append(Line2D([], [], color=_GREY, marker="|", markersize=7, linewidth=0))
        based = any(line.baseline_ap for line in lines)
        if based:
            names.append("the row's own baseline")
            handles.append(Line2D([], [], color=_GREY, linewidth=1, linestyle=(0, (2, 1.5))))
        figure, panels, places = _panels(lines, len(sizes), names)
        limits = []
        for axes, size in zip(panels, sizes, strict=True):
            values = []
            for y, line in zip(places, lines, strict=True):
                look = looks[line.label]
                value = 100 * plots._number(line.ap.get(size))
                seeds = [100 * plots._number(x) for x in line.of_seeds.get(size, ())]
                base = 100 * plots._number((line.baseline_ap or {}).get(size))
                if math.isnan(value):
                    axes.text(
                        0.5, y, "n/a", transform=axes.get_yaxis_transform(), ha="center",
                        va="center", fontsize=7, color=_GREY,
                    )  # fmt: skip
                    continue
                if math.isfinite(base):
                    axes.plot(
                        [base] * 2, [y - 0.5, y + 0.5], color=_GREY, linewidth=1,
                        linestyle=(0, (2, 1.5)),
                    )  # fmt: skip
                    axes.plot([base, value], [y, y], color=look.colour, linewidth=1.2)
                if len(seeds) > 1:
                    axes.plot(seeds, [y] * len(seeds), "|", color=look.colour, markersize=7)
                axes.plot(value, y, look.marker, color=look.colour, markersize=5.5)
                values += [value, base, *seeds]
            axes.set(title=SIZES.get(size, size), xlabel="AP, %")
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            low, high = (np.nanmin(values), np.nanmax(values)) if values else (0.0, 1.0)
            limits.append((low, high))
        span = max(1.0, *(high - low for low, high in limits)) * 1.12
        for axes, (low, high) in zip(panels, limits, strict=True):
            # 0 to the left where it is near; no axis shows less than nothing
            start = max((low + high - span) / 2, -0.05 * span)
            axes.set_xlim(start, start + span)
        plots._finish(figure, handles, names)
    return figure


def plot_reported(lines: Sequence[Line], labels: Sequence[str], level: float) -> Figure:
    """The published gain over the published baseline beside ours over ours.

    Args:
        lines: Those with ``reported`` and ``differences``.
        labels: All methods.
        level: Of our intervals.
    """
    looks = plots._looks(labels, labels)
    shown = []
    for line in lines:
        for figure, source, size, gain in line.reported:
            ours = line.mask_difference if size == "mask" else (line.differences or {}).get(size)
            if ours is None or math.isnan(plots._number(ours.value)):
                continue
            named = dataclasses.replace(line, label=f"{line.label}: {figure} ({source})")
            shown.append((named, looks[line.label], gain, ours))
    with plots._style():
        names = ["reported", f"ours, with {plots.percent(level)} interval"]
        figure, (axes,), places = _panels([x[0] for x in shown], 1, names, against=True)
        axes.axvline(0, color=_INK, linewidth=1)
        ends = []
        for y, (_, look, gain, ours) in zip(places, shown, strict=True):
            plots._interval(axes, ours, y + 0.14, look)
            axes.plot(gain, y - 0.2, "D", markersize=5, color=_INK, markerfacecolor="#c8c8c8")
            ends += [gain, *(100 * plots._number(x) for x in (ours.value, ours.low, ours.high))]
        axes.set_xlabel("gain over the own baseline, points (%)")
        _signed_axis(axes, 10)
        plots._span([axes], ends, 0.5)
        grey = dict(color=_INK, markersize=5, linewidth=0)
        plots._finish(
            figure,
            [
                Line2D([], [], marker="D", markerfacecolor="#c8c8c8", **grey),
                Line2D([], [], color=_GREY, marker="o", markersize=5, linewidth=1.4),
            ],
            names,
        )
    return figure


def plot_cost(lines: Sequence[Line], labels: Sequence[str], level: float) -> Figure:
    """What a row gains in AP against what it adds in cost, both over its baseline.

    Args:
        lines: Those with ``differences`` and ``added``.
        labels: All methods.
        level: Of the intervals.
    """
    used = [x for x in dict.fromkeys(labels) if x in {line.label for line in lines}]
    looks = plots._looks(labels, labels)
    kinds = [
        kind
        for kind in ("parameters", "FLOPs", "training time")
        if any(kind in line.added for line in lines)
    ]
    groups = list(dict.fromkeys(line.group for line in lines))
    numbered = len(groups) > 1
    with plots._style():
        names = [plots._text(x) for x in used]
        handles = [
            Line2D([], [], color=looks[x].colour, marker=looks[x].marker, markersize=5, linewidth=0)
            for x in used
        ]
        if numbered:
            names += [f"{n}  {plots._text(x) or 'others'}" for n, x in enumerate(groups, 1)]
            handles += [Line2D([], [], linewidth=0)] * len(groups)
        figure = plots._figure(3.3, names)
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            axes.axhline(0, color=_INK, linewidth=1)
            axes.grid()
            axes.set_axisbelow(True)
            for line in lines:
                if kind not in line.added:
                    continue
                look, gain = looks[line.label], line.differences["all"]
                x, y = 100 * line.added[kind], 100 * plots._number(gain.value)
                low, high = (100 * plots._number(end) for end in (gain.low, gain.high))
                axes.plot([x, x], [low, high], color=look.colour, linewidth=1, alpha=0.4)
                filled = not plots.contains_zero(gain)
                axes.plot(x, y, look.marker, markersize=6, **plots._fill(filled, look.colour))
                if numbered:
                    axes.annotate(
                        str(groups.index(line.group) + 1), (x, y), (5, 3),
                        textcoords="offset points", fontsize=7.5, color=_INK,
                    )  # fmt: skip
            axes.set_xlabel(f"{kind} added, %")
            axes.margins(x=0.12)
            low, high = axes.get_xlim()
            if high - low < 1:  # less than a percent is no distance
                axes.set_xlim((low + high - 1) / 2, (low + high + 1) / 2)
            _signed_axis(axes)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: plots._signed(x)))
        panels[0].set_ylabel("difference in AP, points (%)")
        plots._finish(figure, handles, names)
    return figure


def _panels(
    lines: Sequence[Line], panels: int, legend: Sequence[str], against: bool = False
) -> tuple[Figure, list[Axes], list[int]]:
    """Panels that share a line for every row, below the rows' headings; and the lines' places."""
    labels: list[tuple[str, bool]] = []
    places, before = [], None
    for line in lines:
        if line.group and line.group != before:
            labels.append((plots._text(line.group, 52), True))
        before = line.group
        places.append(len(labels))
        name = line.label
        if against and len({x.baseline for x in lines}) > 1:
            name += f" against {line.baseline}"
        labels.append((plots._text(name, 44), False))
    figure = plots._figure(0.95 + _LINE * len(labels), legend)
    axes = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    for each in axes:
        each.set_ylim(len(labels) - 0.5, -0.5)
        each.grid(axis="x")
        each.set_axisbelow(True)
        each.spines["left"].set_visible(False)
        each.tick_params(axis="y", length=0)
        for y, (_, heading) in enumerate(labels):
            if heading:
                each.axhspan(y - 0.5, y + 0.5, color="#f1f1f1", linewidth=0, zorder=0.2)
    axes[0].set_yticks(range(len(labels)), [text for text, _ in labels])
    for tick, (_, heading) in zip(axes[0].get_yticklabels(), labels, strict=True):
        tick.set_fontweight("bold" if heading else "normal")
    return figure, axes, places


def _sizes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(size for row in rows for size in row))


def _signed_axis(axes: Axes, ticks: int = 4) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10], min_n_ticks=3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: plots._signed(x)))


class Picture(NamedTuple):
    """A drawn figure, with what stands above and below it."""

    name: str
    title: str
    caption: str
    figure: Any


def pictures_of(report: Gathered) -> list[Picture]:
    """The pictures for which there are figures."""
    lines = [_picture_line(x) for x in report.entries if "bbox" in x.figures]
    gained = [x for x in lines if x.differences]
    pictures = []
    level = f"{100 * LEVEL:g} %"
    hollow = (
        f"Bars are {level} intervals of each difference alone; where a point is hollow, its "
        "interval contains 0: a difference is not shown there, nor is it ruled out. The table's "
        "p is corrected for the number of rows."
    )
    if gained:
        single = any(min(pairs(x)) == 1 for x in report.compared)
        pictures.append(
            Picture(
                "differences",
                "Difference to the own baseline, by size",
                f"All panels have one scale. {hollow}"
                + (
                    " Of rows with one seed, they do not contain the training's own chance."
                    if single
                    else ""
                ),
                plot_gains(gained, report.labels, LEVEL),
            )
        )
    if lines:
        pictures.append(
            Picture(
                "ap",
                "AP by size",
                "A point of AP is equally long in all panels; they begin at different AP. The "
                "line leads from the row's own baseline to the row.",
                plot_ap(lines, report.labels),
            )
        )
    reported = [x for x in gained if _drawn_reports(x)]
    if reported:
        pictures.append(
            Picture(
                "reported",
                "Reported gain and ours",
                "Each over its own baseline: the source's row over the source's baseline, ours "
                "over ours. The trainings need not be the same; see the conditions.",
                plot_reported(reported, report.labels, LEVEL),
            )
        )
    costly = [x for x in gained if x.added and math.isfinite(x.differences["all"].value)]
    if costly:
        pictures.append(
            Picture(
                "cost",
                "Gain against cost",
                f"What a row adds to its baseline's cost, and to its AP. {hollow}",
                plot_cost(costly, report.labels, LEVEL),
            )
        )
    return pictures


def _picture_line(entry: Entry) -> Any:
    base, comparisons = entry.base, entry.comparisons
    figures, seeds = entry.figures["bbox"], entry.of_seeds["bbox"]
    added = {}
    if comparisons:
        for key, kind in (("params", "parameters"), ("flops", "FLOPs")):
            mine, other = (getattr(x.first.cost, key) for x in (entry, base))
            if mine is not None and other:
                added[kind] = mine / other - 1
        if not math.isnan(ratio := time_ratio(entry)):
            added["training time"] = ratio - 1
    return Line(
        group=entry.row.group,
        label=entry.row.label,
        baseline=base.row.label if base else "",
        ap={size: row["AP"] for size, row in figures.items()},
        of_seeds={size: [x[size]["AP"] for x in seeds] for size in figures},
        baseline_ap=(
            {size: row["AP"] for size, row in base.figures["bbox"].items()}
            if "bbox" in comparisons
            else None
        ),
        differences=(
            {size: row["AP"] for size, row in comparisons["bbox"].differences.items()}
            if "bbox" in comparisons
            else None
        ),
        mask_difference=comparisons["segm"].ap if "segm" in comparisons else None,
        reported=[gain for y in entry.row.published for gain in gains_of(y)],
        added=added,
    )


def _drawn_reports(line: Any) -> bool:
    for _, _, size, _ in line.reported:
        ours = line.mask_difference if size == "mask" else line.differences.get(size)
        if ours is not None and math.isfinite(ours.value):
            return True
    return False
