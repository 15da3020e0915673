"""Pictures of results by object size, for the page and as PNG or SVG.

Every function takes plain data and returns a ``matplotlib.figure.Figure``; pyplot is not used,
so neither a window nor the user's backend and style play a part. A run keeps its colour, marker
and line in all pictures: colours are those of Okabe and Ito, told apart by all kinds of colour
vision. AP is in percent here.

:class:`Run`, :class:`SizeCurve` and :class:`Comparison` say what is read; any object with these
attributes will do. A run is known by its name, so names must differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from mmattn.evaluation.bins import COCO_BINS
from mmattn.evaluation.files import write_bytes

ALL = "all"
FIGURES = ("AP", "AP50", "AP75", "AR")
MINUS = "\N{MINUS SIGN}"
_TYPES, _SUMS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), ("FP", "FN")
ERRORS = {
    "Cls": "class",
    "Loc": "location",
    "Both": "class and\nlocation",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
    "FP": "all false\npositives",
    "FN": "all false\nnegatives",
}

_WIDTH = 9.0  # inches: 864 CSS pixels
_DPI = 200
_INK, _GREY, _LIGHT = "#222222", "#6b6b6b", "#d9d9d9"
# Okabe and Ito's palette without its yellow, which is too faint for lines on white
_COLOURS = ("#333333", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "D", "^", "v", "<", ">")
_LINES = ("-", (0, (6, 1.5)), (0, (3, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (1.2, 1.2)), (0, (9, 3)))
# for names that DejaVu cannot write; those that are installed
_MORE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC", "SimHei")

_STYLE = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.labelsize": 8.5,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": _INK,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "mmattn",
    "savefig.facecolor": "white",
}


class Run(Protocol):
    """Figures of one run, as fractions; nan is n/a. :class:`mmattn.evaluation.run.Run` is one.

    Attributes:
        name: What the run is called.
        figures: ``{'all' or bin: {'AP', 'AP50', 'AP75', 'AR': value}}``, means over seeds.
        num_objects: ``{'all' or bin: number of objects}``.
        seeds: How many results the figures are means of.
        std: Standard deviations over seeds, as ``figures``; None for one seed.
    """

    name: str
    figures: Mapping[str, Mapping[str, float]]
    num_objects: Mapping[str, int]
    seeds: int
    std: Mapping[str, Mapping[str, float]] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeCurve:
    """AP against object size; nan where there is nothing to find.

    Attributes:
        name: The run's name.
        size: (P,) side length in px, or as a share of the image's.
        ap: (P,) AP as a fraction, of the objects about that size.
        low: (P,) lower limits of the intervals, or None.
        high: (P,) upper limits, or None.
        num_objects: (P,) how many objects each point is of, or None.
    """

    name: str
    size: Sequence[float]
    ap: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    num_objects: Sequence[int] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a candidate differs from the baseline.

    Attributes:
        baseline: The baseline's name.
        candidate: The candidate's name.
        differences: ``{'all' or bin: {'AP', 'AP50', 'AP75', 'AR': difference}}``, where a
            difference has ``value``, ``low``, ``high`` (fractions) and ``p``.
        words: Sentences that say which sizes changed and which did not.
        replicates: How many resamples the intervals come from.
        level: The intervals' level.
    """

    baseline: str
    candidate: str
    differences: Mapping[str, Mapping[str, Any]]
    words: Sequence[str] = ()
    replicates: int | None = None
    level: float = 0.95


def plot_size_curves(
    curves: Sequence[SizeCurve],
    bins: Sequence[Sequence[Any]] | None = None,
    *,
    size_by: str = "area",
    level: float = 0.95,
    runs: Sequence[str] | None = None,
) -> Figure:
    """AP against object size, a line and an interval band a run, with the number of objects.

    Args:
        curves: One a run. A gap in ``ap`` is a gap in the line.
        bins: ``(name, low, high)``, whose limits are marked; COCO's if None.
        size_by: 'area', 'bbox' or 'sqrt-relative': the unit of sizes and limits.
        level: Level of the intervals, for the legend.
        runs: Names of all runs, in the order that gives them their colours; those of ``curves``
            if None.

    Returns:
        The figure.

    Raises:
        ValueError: There is no curve, or its columns do not have the same length.
    """
    curves = _some(curves, "curves")
    looks = _looks(runs, [curve.name for curve in curves])
    relative = size_by == "sqrt-relative"
    columns = [_curve_columns(curve) for curve in curves]
    with _style():
        handles = [looks[curve.name].line_handle() for curve in curves]
        names = [_text(curve.name) for curve in curves]
        if any(np.isfinite(low).any() for _, _, low, _, _ in columns):
            handles.append(Patch(facecolor="#e2e2e2", edgecolor=_GREY, linewidth=0.6))
            names.append(f"band: {percent(level)} interval of each run")
        figure = _figure(4.4, names)
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
        axes.set(ylabel="AP, %")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        for curve, (size, ap, low, high, _) in zip(curves, columns, strict=True):
            look = looks[curve.name]
            alpha = 0.13 if len(curves) < 4 else 0.06
            axes.fill_between(size, low, high, color=look.colour, alpha=alpha, linewidth=0)
            # where bands overlap, their edges tell them apart
            for edge in (low, high):
                axes.plot(size, edge, color=look.colour, linewidth=0.6, alpha=0.6)
            axes.plot(size, ap, color=look.colour, linestyle=look.line)
            seen = np.isfinite(np.concatenate(([np.nan], ap, [np.nan])))
            alone = seen[1:-1] & ~seen[:-2] & ~seen[2:]  # between gaps: no line to be seen
            axes.plot(size[alone], ap[alone], look.marker, color=look.colour, markersize=4)
            axes.errorbar(
                size[alone],
                ap[alone],
                np.nan_to_num([ap[alone] - low[alone], high[alone] - ap[alone]]).clip(0),
                fmt="none",
                ecolor=look.colour,
                elinewidth=1.2,
            )
        tops = np.concatenate([np.concatenate((ap, high)) for _, ap, _, high, _ in columns])
        top = np.nanmax(tops, initial=0.0)
        axes.set_ylim(0, min(1.06 * top, 103) or 1)
        if not np.isfinite(tops).any():
            _write(axes, "too few objects")
        size, number = columns[0][0], columns[0][4]
        below.fill_between(size, number, step="mid", color="#9a9a9a", linewidth=0)
        most = np.nanmax(number, initial=0.0)
        below.set(ylim=(0, most * 1.05 or 1), ylabel="objects\nin window")
        below.yaxis.set_major_locator(FixedLocator([0, most] if most else [0]))
        below.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        _size_axis(axes, below, np.concatenate([c[0] for c in columns]), bins, relative)
        _finish(figure, handles, names)
    return figure


def plot_differences(
    comparisons: Sequence[Comparison],
    num_objects: Mapping[str, int] | None = None,
    *,
    figures: Sequence[str] = ("AP", "AP50", "AR"),
    runs: Sequence[str] | None = None,
) -> Figure:
    """Difference to the baseline by size, with intervals.

    A point is filled where its interval does not contain 0, and hollow where it does.

    Args:
        comparisons: One a candidate, all with the same baseline.
        num_objects: Number of objects of 'all' and of each bin.
        figures: One panel each.
        runs: Names of all runs, in the order that gives them their colours; the baseline and
            the candidates if None.

    Returns:
        The figure.

    Raises:
        ValueError: There is no comparison, or the baselines differ.
    """
    comparisons = _some(comparisons, "comparisons")
    baselines = list(dict.fromkeys(comparison.baseline for comparison in comparisons))
    if len(baselines) > 1:
        raise ValueError(
            f"the comparisons have different baselines, {baselines[0]!r} and {baselines[1]!r}; "
            "draw those of each baseline in a picture of their own"
        )
    candidates = [comparison.candidate for comparison in comparisons]
    looks = _looks(runs, [*baselines, *candidates])
    rows = list(comparisons[0].differences)
    offsets = _offsets(len(candidates))
    with _style():
        names = [
            f"0: {_text(baselines[0])}",
            *map(_text, candidates),
            f"{percent(comparisons[0].level)} interval excludes 0",
            "interval contains 0: not shown to differ",
        ]
        figure = _figure(0.85 + _rows_height(len(rows), len(candidates)), names)
        panels = figure.subplots(1, len(figures), sharex=True, sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, figures, strict=True):
            _rows(axes, rows, num_objects)
            axes.axvline(0, color=_INK, linewidth=1)
            axes.set(title=name, xlabel=f"difference in {name}, points (%)")
            for comparison, offset in zip(comparisons, offsets, strict=True):
                look = looks[comparison.candidate]
                for y, row in enumerate(rows):
                    difference = comparison.differences.get(row, {}).get(name)
                    _interval(axes, difference, y + offset, look)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=3))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _signed(x)))
        ends = [
            100 * _number(end)
            for comparison in comparisons
            for row in comparison.differences.values()
            for name in figures
            if (x := row.get(name)) is not None
            for end in (x.value, x.low, x.high)
        ]
        _span(panels, ends, 0.5)
        _finish(
            figure,
            [
                Line2D([], [], color=_INK, linewidth=1),
                *(looks[candidate].marker_handle() for candidate in candidates),
                *(
                    Line2D([], [], color=_GREY, marker="o", markersize=5, **_fill(filled, _GREY))
                    for filled in (True, False)
                ),
            ],
            names,
        )
    return figure


def plot_precision_recall(
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    num_objects: Mapping[str, int] | None = None,
    *,
    iou: float = 0.5,
    runs: Sequence[str] | None = None,
) -> Figure:
    """Precision against recall, one panel for 'all' and for each bin, a line a run.

    Args:
        curves: ``{run: {'all' or bin: (R,) precision}}`` at recalls ``linspace(0, 1, R)``.
        num_objects: Number of objects of 'all' and of each bin.
        iou: The IoU threshold, for the axis.
        runs: Names of all runs, in the order that gives them their colours.

    Returns:
        The figure.

    Raises:
        ValueError: There is no curve.
    """
    names = _some(curves, "precision-recall curves")
    looks = _looks(runs, names)
    panels = list(dict.fromkeys(itertools.chain.from_iterable(curves.values())))
    across = min(len(panels), 4) if len(panels) != 5 else 3
    down = math.ceil(len(panels) / across)
    with _style():
        figure = _figure((1.95 if across > 2 else 2.8) * down + 0.35, names)
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for i, axes in enumerate(grid.flat):
            if i >= len(panels):
                axes.remove()
                grid.flat[i - across].tick_params(labelbottom=True)
                continue
            panel = panels[i]
            lines = {name: _numbers(curves[name].get(panel, [])) for name in names}
            count = _count(num_objects, panel)
            axes.set_title(_text(panel, 24) + (f", {count}" if count else ""), loc="left")
            axes.set(xlim=(0, 100), ylim=(0, 102))
            axes.xaxis.set_major_locator(FixedLocator(range(0, 101, 25)))
            axes.yaxis.set_major_locator(FixedLocator(range(0, 101, 25)))
            axes.grid()
            for name, line in lines.items():
                look = looks[name]
                recall = np.linspace(0, 100, len(line))
                axes.plot(recall, 100 * line, color=look.colour, linestyle=look.line, clip_on=False)
            if not any(np.isfinite(line).any() for line in lines.values()):
                _write(axes, "no objects")
        figure.supxlabel(f"recall, % (precision at IoU {iou:.2f}, mean over classes)", fontsize=8.5)
        figure.supylabel("precision, %", fontsize=8.5)
        _finish(figure, [looks[name].line_handle() for name in names], [_text(n) for n in names])
    return figure


def plot_errors(
    errors: Mapping[str, Any],
    num_objects: Mapping[str, int] | None = None,
    *,
    runs: Sequence[str] | None = None,
) -> Figure:
    """What each type of error costs in AP50, by size, as TIDE defines them.

    Upper row: how much AP50 would rise if the errors were mended. Lower row, with several runs:
    the difference to the first run; less than 0 is fewer errors. These are point estimates.

    Args:
        errors: ``{run: x}`` with ``x.by_size['all' or bin].delta_ap[type]`` as fractions.
        num_objects: Number of objects of 'all' and of each bin.
        runs: Names of all runs, in the order that gives them their colours.

    Returns:
        The figure.

    Raises:
        ValueError: There is no run.
    """
    names = _some(errors, "error types")
    looks = _looks(runs, names)
    rows = list(errors[names[0]].by_size)
    found = {kind for x in errors.values() for row in x.by_size.values() for kind in row.delta_ap}
    kinds = [kind for kind in ERRORS if kind in found]

    def value(name: str, row: str, kind: str) -> float:
        by_size = errors[name].by_size
        return 100 * _number(by_size[row].delta_ap.get(kind)) if row in by_size else math.nan

    with _style():
        several = len(names) > 1
        height = 1.0 + _rows_height(len(rows), len(names))
        figure = _figure(height * (2 if several else 1), names)
        parts = figure.subfigures(1 + several, 1, squeeze=False)[:, 0]
        for part, differing in zip(parts, (False, True), strict=False):
            shown = names[1:] if differing else names
            panels = _error_panels(part, kinds)
            seen: dict[str, list[float]] = {kind: [] for kind in kinds}
            for kind, axes in panels.items():
                _rows(axes, rows, num_objects)
                axes.set_title(ERRORS[kind], fontsize=8.5)
                axes.axvline(0, color=_INK, linewidth=1)
                axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
                if differing:
                    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _signed(x)))
                for name, offset in zip(shown, _offsets(len(shown)), strict=True):
                    look = looks[name]
                    x = np.array([value(name, row, kind) for row in rows])
                    if differing:
                        x -= [value(names[0], row, kind) for row in rows]
                    y = np.arange(len(rows)) + offset
                    axes.hlines(y, 0, x, color=look.colour, linewidth=1.2)
                    axes.plot(x, y, look.marker, color=look.colour, markersize=4.5)
                    for place in y[np.isnan(x)]:
                        _missing(axes, place, look)
                    seen[kind] += x.tolist()
            # one scale, so that the types can be compared; all false ones are sums of several
            for group in ((*_TYPES, *_SUMS),) if differing else (_TYPES, _SUMS):
                inside = [kind for kind in kinds if kind in group]
                ends = [x for kind in inside for x in seen[kind]]
                _span([panels[kind] for kind in inside], ends, 0.2 if differing else 1, differing)
            part.supxlabel(
                f"difference to {_text(names[0], 40)}, points of AP50 (%): "
                f"{MINUS} fewer errors, + more errors"
                if differing
                else "AP50 that mending these errors would add, points (%)",
                fontsize=8.5,
            )
        handles = [looks[name].marker_handle() for name in names]
        _finish(figure, handles, [_text(name) for name in names])
    return figure


def plot_result(run: Run, *, figures: Sequence[str] = FIGURES) -> Figure:
    """AP, AP50, AP75 and AR of one run, overall and by size.

    Args:
        run: The run. With several seeds, bars are a standard deviation to each side.
        figures: What to show.

    Returns:
        The figure.

    Raises:
        ValueError: The run has no figures.
    """
    rows = _some(run.figures, "figures")
    looks = _looks(None, figures)
    offsets = _offsets(len(figures))
    with _style():
        names = list(figures)
        if run.seeds > 1:
            names.append(f"mean and standard deviation of {run.seeds} seeds")
        figure = _figure(0.75 + 0.62 * len(rows), names)
        axes = figure.subplots()
        _rows(axes, rows, run.num_objects)
        for name, offset in zip(figures, offsets, strict=True):
            look = looks[name]
            for y, row in enumerate(rows):
                x = 100 * _number(run.figures[row].get(name))
                std = 100 * _number(run.std[row].get(name)) if run.std else math.nan
                bar = std if math.isfinite(std) else None
                axes.errorbar(
                    x, y + offset, xerr=bar, fmt=look.marker, color=look.colour, markersize=5,
                    elinewidth=1.4, capsize=4,
                )  # fmt: skip
            missing = [math.isnan(_number(run.figures[row].get(name))) for row in rows]
            for y in np.flatnonzero(missing):
                axes.text(0.8, y + offset, f"{name}: n/a", color=_GREY, fontsize=7, va="center")
        axes.set(xlim=(0, 100), xlabel="%")
        axes.set_title(_text(run.name), loc="left")
        axes.grid(axis="x")
        handles = [looks[name].marker_handle() for name in figures]
        if run.seeds > 1:
            handles.append(Line2D([], [], color=_GREY, linewidth=1.4, marker="|"))
        _finish(figure, handles, names)
    return figure


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as PNG (200 dpi) or SVG; a reader finds the whole file or none.

    The same figure gives the same bytes: there is no date in the file.

    Args:
        figure: The figure.
        path: Where to; ``.png`` or ``.svg`` decides. Missing folders are made.

    Raises:
        ValueError: The path has another suffix.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".png", ".svg"):
        raise ValueError(
            f"a picture is written as .png or .svg, got {path.name!r}; choose one of the two"
        )
    kind = suffix[1:]
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    file = io.BytesIO()
    with _style():
        figure.savefig(file, format=kind, dpi=_DPI, metadata=metadata)
    write_bytes(path, file.getvalue())


def to_html(figure: Figure, label: str, prefix: str) -> str:
    """A figure as an ``<svg>`` element for an HTML page, with its text as text.

    Args:
        figure: The figure.
        label: What it shows, for those who do not see it.
        prefix: Stands before every id, so that the pictures of a page do not share one.

    Returns:
        The element. Its lines join as the page's style says; see page.html.jinja.
    """
    file = io.BytesIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with _style({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata=metadata)
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # the style would hold for the whole page
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    ids = {x.get("id"): None for x in root.iter()}
    for i, name in enumerate(ids):
        ids[name] = f"{prefix}{i}"
    used = set()
    for x in root.iter():
        # HTML's parser knows SVG's elements without namespaces
        x.tag = x.tag.rpartition("}")[2]
        x.text, x.tail = (x.text if x.tag == "text" else None), None
        for key in list(x.attrib):
            value = x.attrib.pop(key)
            if target := re.fullmatch(r"(url\()?#([^)]*)(\))?", value):
                used.add(ids[target[2]])
                value = f"{target[1] or ''}#{ids[target[2]]}{target[3] or ''}"
            elif key == "d":
                value = " ".join(re.sub(r"\d+\.\d+", _two_digits, value).split())
            elif key == "style" and x.tag == "text":
                value = re.sub(r"font-family:[^;]*;? ?", "", value)
            elif value.startswith("rotate(-0 "):
                continue
            x.set(key.rpartition("}")[2], value)
    for x in root.iter():
        if name := x.attrib.pop("id", None):
            name = ids[name]
            if name in used:
                x.set("id", name)
    root.attrib = {
        "viewBox": root.get("viewBox"),
        "width": f"{figure.get_figwidth() * 96:.0f}",
        "height": f"{figure.get_figheight() * 96:.0f}",
        "role": "img",
        "aria-label": label,
    }
    return ElementTree.tostring(root, encoding="unicode")


def _two_digits(match: re.Match) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


@dataclasses.dataclass(frozen=True)
class _Look:
    """How a run is drawn."""

    colour: str
    marker: str
    line: Any

    def line_handle(self) -> Line2D:
        return Line2D([], [], color=self.colour, linestyle=self.line)

    def marker_handle(self) -> Line2D:
        return Line2D([], [], color=self.colour, marker=self.marker, markersize=5, linewidth=1.4)


def colours(names: Iterable[str]) -> dict[str, str]:
    """Colour of each run in the pictures, by its place."""
    return {name: look.colour for name, look in _looks(None, names).items()}


def _looks(runs: Sequence[str] | None, names: Iterable[str]) -> dict[str, _Look]:
    """Look of each run, by its place among all runs."""
    order = list(dict.fromkeys([*(runs or ()), *names]))
    return {
        name: _Look(
            _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], _LINES[i % len(_LINES)]
        )
        for i, name in enumerate(order)
    }


@contextlib.contextmanager
def _style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Our style, whatever the user's is; a letter that no font has is drawn as a box."""
    installed = set(font_manager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in _MORE_FONTS if name in installed)]
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        default = {k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k}
        matplotlib.rcParams.update({**default, **_STYLE, "font.family": fonts, **(more or {})})
        yield


def _figure(height: float, legend: Sequence[str]) -> Figure:
    """A figure as high as its panels and its legend."""
    height += 0.2 * math.ceil(len(legend) / _legend_columns(legend))
    figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    return figure


def _legend_columns(names: Sequence[str]) -> int:
    """As many columns as fit, each as wide as its longest name."""
    lengths = [_length(_text(name)) for name in names]
    for columns in range(len(names), 1, -1):
        parts = np.array_split(lengths, columns)
        if sum(5.3 * max(part) + 46 for part in parts) < _WIDTH * 72:
            return columns
    return 1


def _finish(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Adds the legend, and fixes the style of ticks, which are made when they are drawn."""
    for axes in figure.axes:
        axes.tick_params(labelsize=_STYLE["font.size"], color=_GREY, labelcolor=_INK)
    figure.legend(
        handles,
        names,
        loc="outside upper left",
        ncols=_legend_columns(names),
        handlelength=3.2,
        columnspacing=1.6,
        borderpad=0.2,
    )


def _text(text: str, limit: int = 64) -> str:
    """A name for a picture: one line, not too long, and a dollar is a dollar."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = " ".join(text.split())
    if len(text) > limit:
        text = f"{text[: limit // 2]}\N{HORIZONTAL ELLIPSIS}{text[1 - limit // 2 :]}"
    return text.replace("$", r"\$")


def _length(text: str) -> int:
    """About how many Latin letters wide a text is."""
    return sum(2 if ord(letter) >= 0x2E80 else 1 for letter in text)


def _some(values: Iterable[Any], what: str) -> list[Any]:
    values = list(values)
    if not values:
        raise ValueError(f"there is nothing to draw: expected one or more {what}, got none")
    return values


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _numbers(values: Sequence[float] | None) -> np.ndarray:
    if values is None:
        return np.empty(0)
    return np.array([_number(value) for value in values], float)


def _curve_columns(curve: SizeCurve) -> tuple[np.ndarray, ...]:
    """Size, AP, low, high (in percent) and number of objects."""
    size, ap = _numbers(curve.size), _numbers(curve.ap)
    rest = [
        np.full(len(size), np.nan) if values is None else _numbers(values)
        for values in (curve.low, curve.high, curve.num_objects)
    ]
    lengths = [len(values) for values in (size, ap, *rest)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"the curve of {curve.name!r} has columns of {', '.join(map(str, lengths))} values "
            "(size, ap, low, high, num_objects); give one value a point in each"
        )
    if (size <= 0).any() or not np.isfinite(size).all():
        raise ValueError(
            f"the curve of {curve.name!r} has the size {size[~(size > 0)][:1].tolist()}; sizes "
            "are on a logarithmic axis and must be above 0"
        )
    return size, 100 * ap, 100 * rest[0], 100 * rest[1], rest[2]


def _size_axis(
    axes: Axes, below: Axes, sizes: np.ndarray, bins: Sequence[Any] | None, relative: bool
) -> None:
    """Logarithmic axis of sizes with the bins' limits marked and their names above."""
    if bins is None:
        bins = () if relative else COCO_BINS
    low, high = (sizes.min(), sizes.max()) if len(sizes) else (1, 2)
    if low == high:
        low, high = low / 2, high * 2
    below.set_xscale("log")
    below.set_xlim(low, high)
    width = math.log(high / low)

    def side(limit: float) -> float:
        return limit if relative else math.sqrt(limit)

    sides = [(name, side(start), side(end)) for name, start, end in bins]
    limits = sorted({x for _, *ends in sides for x in ends if low < x < high})
    for limit in limits:
        for each in (axes, below):
            each.axvline(limit, color="#8a8a8a", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.5)
    for name, start, end in sides:
        start, end = max(start, low), min(end, high)
        room = math.log(end / start) / width * 560 if end > start else 0  # in points
        if room > 5.2 * _length(_text(name, 24)):
            place = math.log(math.sqrt(start * end) / low) / width
            axes.text(
                place, 1.015, _text(name, 24), transform=axes.transAxes, ha="center",
                color=_GREY, fontsize=8,
            )  # fmt: skip
    if relative:
        round_numbers = [m * 10.0**e for e in range(-4, 2) for m in (1, 2, 5)]
    else:
        round_numbers = [2.0**e for e in range(-2, 16)]
    ticks: list[float] = []
    for tick in [*limits, *round_numbers]:
        near = any(abs(math.log(tick / x)) / width < 0.045 for x in ticks)
        if low * 0.999 <= tick <= high * 1.001 and not near:
            ticks.append(tick)
    below.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    below.xaxis.set_minor_locator(NullLocator())
    below.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))
    below.set_xlabel(
        "object size as a share of the image: \N{SQUARE ROOT}(area / image area), log scale"
        if relative
        else "object size: \N{SQUARE ROOT}area, px (log scale)"
    )


def _rows(axes: Axes, rows: Sequence[str], num_objects: Mapping[str, int] | None) -> None:
    """One row for 'all' and for each bin, from top to bottom."""
    axes.set_ylim(len(rows) - 0.5, -0.5)
    labels = []
    for row in rows:
        count = _count(num_objects, row)
        labels.append(_text(row, 24) + (f"\n{count}" if count else ""))
    axes.set_yticks(range(len(rows)), labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    for y in range(1, len(rows), 2):
        axes.axhspan(y - 0.5, y + 0.5, color="#f5f5f5", linewidth=0, zorder=0)
    if len(rows) > 1 and rows[0] == ALL:
        axes.axhline(0.5, color=_GREY, linewidth=0.8)
    axes.set_axisbelow(True)


def _rows_height(rows: int, points: int) -> float:
    """Inches for rows of several points each."""
    return rows * max(0.34, (0.15 if rows * points <= 24 else 0.115) * points + 0.1)


def _span(panels: Sequence[Axes], values: Sequence[float], least: float, both: bool = True) -> None:
    """One scale for several panels, with 0 and all values inside."""
    low, high = np.nanmin([0, *values]), np.nanmax([0, *values])
    high = max(high, least)
    low = min(low, -least) if both else low
    room = 0.07 * (high - low)
    for axes in panels:
        axes.set_xlim(low - (room if low < 0 else room / 4), high + room)


def _error_panels(part: FigureBase, kinds: Sequence[str]) -> dict[str, Axes]:
    """One panel a type of error, those that are sums set apart."""
    apart = any(kind in _SUMS for kind in kinds) and any(kind in _TYPES for kind in kinds)
    columns: list[str | None] = [kind for kind in kinds if kind in _TYPES]
    columns += [None] * apart + [kind for kind in kinds if kind in _SUMS]
    ratios = [1 if kind else 0.08 for kind in columns]
    grid = part.subplots(1, len(columns), sharey=True, squeeze=False, width_ratios=ratios)[0]
    for kind, axes in zip(columns, grid, strict=True):
        if kind is None:
            axes.remove()
    return {kind: axes for kind, axes in zip(columns, grid, strict=True) if kind}


def _count(num_objects: Mapping[str, int] | None, row: str) -> str:
    number = (num_objects or {}).get(row)
    return "" if number is None else f"n = {number:,}"


def _offsets(number: int) -> np.ndarray:
    """Places of several points in a row of height 1."""
    return (np.arange(number) - (number - 1) / 2) * min(0.25, 0.8 / max(number, 1))


def contains_zero(difference: Any) -> bool:
    """Whether a difference's interval contains 0, or says nothing.

    That is where there is none, or where it has no width: all objects are on one image.
    """
    low, high = _number(difference.low), _number(difference.high)
    return not (low > 0 or high < 0) or low == high


def _interval(axes: Axes, difference: Any, y: float, look: _Look) -> None:
    value = 100 * _number(getattr(difference, "value", None))
    if math.isnan(value):
        _missing(axes, y, look)
        return
    low, high = 100 * _number(difference.low), 100 * _number(difference.high)
    axes.plot([low, high], [y, y], "|-", color=look.colour, linewidth=1.4, markersize=5)
    filled = not contains_zero(difference)
    style = _fill(filled, look.colour)
    axes.plot(value, y, look.marker, markersize=5, **style)


def _missing(axes: Axes, y: float, look: _Look) -> None:
    axes.text(
        0, y, "n/a", ha="center", va="center", fontsize=7, color=look.colour,
        bbox=dict(facecolor="white", edgecolor="none", pad=0.6),
    )  # fmt: skip


def _fill(filled: bool, colour: str) -> dict[str, Any]:
    return dict(
        markerfacecolor=colour if filled else "white", markeredgecolor=colour, markeredgewidth=1.3
    )


def _write(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_GREY)


def _signed(x: float) -> str:
    text = f"{abs(x):.6g}"
    return text if x == 0 else f"{'+' if x > 0 else MINUS}{text}"


def percent(level: float) -> str:
    """A level in percent, as '95 %'."""
    return f"{100 * level:.4g} %"
