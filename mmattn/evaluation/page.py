"""One self-contained HTML page of results by object size.

The page needs nothing but itself: pictures, style and script are inside, and its content
security policy forbids all else. It can be read without the script, which sorts the tables and
opens the pictures of images in a window of their own.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import importlib.resources
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from mmattn.evaluation import plots
from mmattn.evaluation.bins import MAX_SIZE
from mmattn.evaluation.plots import ALL, FIGURES, MINUS, Comparison, Run, SizeCurve

NOT_AVAILABLE = "n/a"
FEW_OBJECTS = 10  # resamples of fewer say little about how they vary
MEANS = (
    "Means over the classes with objects of that size; a class of few objects counts as much as "
    "any other"
)
CORRECTED = (
    "The words of the answer also correct for the number of sizes (Holm), so they may call a "
    "difference uncertain whose own interval excludes 0."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassRow:
    """AP of one class.

    Attributes:
        name: The class's name.
        num_objects: ``{'all' or bin: number of objects}``.
        ap: ``{run: {'all' or bin: AP}}`` as fractions; nan is n/a.
        differences: ``{candidate: {'all' or bin: difference}}`` with ``value``, ``low`` and
            ``high``; without them, differences to the first run are shown as they are.
    """

    name: str
    num_objects: Mapping[str, int]
    ap: Mapping[str, Mapping[str, float]]
    differences: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageGroup:
    """Images where the two runs of a comparison differ.

    Attributes:
        heading: Which runs: 'sge against plain'.
        text: A sentence about the images: how they were chosen.
        images: With ``picture`` (bytes), ``picture_type`` ('image/png' or the like), ``caption``
            and perhaps ``file_name``. Under the small picture stands the caption's first
            sentence, all of it under the large one.
    """

    heading: str
    text: str = ""
    images: Sequence[Any] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a page shows; every part may be left out.

    Attributes:
        title: Heading of the page.
        runs: The runs, the baseline first; their order gives them their colours.
        bins: ``(name, low, high)`` of each bin, in the unit of ``size_by``.
        size_by: 'area', 'bbox' or 'sqrt-relative'.
        comparisons: One a candidate.
        curves: AP against object size, one a run.
        pr: ``{run: {'all' or bin: precision at recalls from 0 to 1}}`` at IoU 0.50.
        errors: ``{run: error types by size}``, see :func:`mmattn.evaluation.plots.plot_errors`.
        per_class: AP of each class.
        images: Images where runs differ, one group a comparison.
        conditions: What was measured and how, a sentence each.
        notes: What a reader of the figures should know, a sentence each.
        versions: Name -> version.
        level: Level of the curves' intervals; that of the comparisons if None.
    """

    title: str = "AP by object size"
    runs: Sequence[Run] = ()
    bins: Sequence[Sequence[Any]] = ()
    size_by: str = "area"
    comparisons: Sequence[Comparison] = ()
    curves: Sequence[SizeCurve] = ()
    pr: Mapping[str, Mapping[str, Sequence[float]]] = dataclasses.field(default_factory=dict)
    errors: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    per_class: Sequence[ClassRow] = ()
    images: Sequence[ImageGroup] = ()
    conditions: Sequence[str] = ()
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    level: float | None = None


def render_page(report: Report) -> str:
    """The page, as HTML.

    Args:
        report: What it shows.

    Returns:
        The document. All text of the report is escaped.
    """
    page = _template().render(
        report=report,
        figures_table=_figures_table(report),
        difference_tables=[_difference_table(report, x) for x in report.comparisons],
        pictures=_pictures(report),
        class_tables=_class_tables(report),
        class_caption=_class_caption(report),
        image_groups=_image_groups(report),
        intervals=functools.partial(_intervals, report),
    )
    # a file's name may hold bytes that are no text
    return page.lstrip().encode("utf-8", "replace").decode("utf-8")


class _Cell(NamedTuple):
    """A cell of a table; ``key`` sorts, None is n/a and comes last; ``small`` are lines below."""

    text: str
    key: float | str | None
    small: tuple[str, ...] = ()
    numeric: bool = True
    colour: str = ""
    strong: bool = False


class _Column(NamedTuple):
    """Head of a column."""

    text: str
    numeric: bool = True
    colour: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Table:
    columns: list[_Column]
    rows: list[list[_Cell]]
    groups: Sequence[tuple[str, int]] = ()
    heading: str = ""
    caption: str = ""
    is_open: bool = True

    @property
    def keys(self) -> list[str]:
        """What each column is sorted as."""
        columns = zip(*self.rows, strict=True)
        text = [any(isinstance(cell.key, str) for cell in column) for column in columns]
        return ["text" if x else "numbers" for x in text or [False] * len(self.columns)]


class _Picture(NamedTuple):
    title: str
    svg: Markup
    caption: str


class _Image(NamedTuple):
    number: int
    source: str
    caption: str
    short: str


class _ImageGroup(NamedTuple):
    heading: str
    text: str
    images: list[_Image]


def _image_groups(report: Report) -> list[_ImageGroup]:
    number = itertools.count(1)
    groups = []
    for group in report.images:
        images = []
        for image in group.images:
            data = base64.b64encode(image.picture).decode()
            source = f"data:{image.picture_type};base64,{data}"
            images.append(_Image(next(number), source, image.caption, _first_sentence(image)))
        groups.append(_ImageGroup(group.heading, group.text, images))
    return groups


def _first_sentence(image: Any) -> str:
    name = getattr(image, "file_name", None) or ""
    # a full stop in a file's name ends no sentence
    start = len(name) if image.caption.startswith(name) else 0
    end = re.compile(r"[.!?](?=\s)").search(image.caption, start)
    return image.caption[: end.end()] if end else image.caption


def _figures_table(report: Report) -> _Table | None:
    if not report.runs:
        return None
    colours = plots.colours([run.name for run in report.runs])
    limits = _limits(report)
    rows = []
    sizes = list(dict.fromkeys(size for run in report.runs for size in run.figures))
    for place, size in enumerate(sizes):
        for run in report.runs:
            if size not in run.figures:
                continue
            count = run.num_objects.get(size)
            values = [run.figures[size].get(figure) for figure in FIGURES]
            stds = [run.std[size].get(figure) if run.std else None for figure in FIGURES]
            rows.append(
                [
                    _Cell(size, place, limits.get(size, ()), numeric=False),
                    _Cell(run.name, run.name, numeric=False, colour=colours[run.name]),
                    _Cell(NOT_AVAILABLE if count is None else f"{count:,}", count),
                    *map(_value_cell, values, stds),
                ]
            )
    columns = [_Column("size", False), _Column("run", False), _Column("objects")]
    seeds = max(run.seeds for run in report.runs)
    caption = f"In percent. {MEANS}."
    if seeds > 1:
        caption += " With several seeds, mean ± standard deviation over seeds."
    return _Table(caption=caption, columns=[*columns, *map(_Column, FIGURES)], rows=rows)


def _difference_table(report: Report, comparison: Comparison) -> _Table:
    limits = _limits(report)
    objects = report.runs[0].num_objects if report.runs else {}
    rows = []
    for place, (size, figures) in enumerate(comparison.differences.items()):
        count = objects.get(size)
        row = [
            _Cell(size, place, limits.get(size, ()), numeric=False),
            _Cell(NOT_AVAILABLE if count is None else f"{count:,}", count),
        ]
        row += [_difference_cell(figures.get(figure), with_p=True) for figure in FIGURES]
        rows.append(row)
    level = plots.percent(comparison.level)
    caption = (
        f"Difference in points (percent), with its {level} interval and p below; bold where the "
        "interval does not contain 0. Intervals and p are those of each figure alone: among many "
        "figures, a few exclude 0 by chance."
    )
    if comparison.words:
        caption += f" {CORRECTED}"
    return _Table(
        heading=f"{comparison.candidate} {MINUS} {comparison.baseline}",
        caption=caption,
        columns=[_Column("size", False), _Column("objects"), *map(_Column, FIGURES)],
        rows=rows,
    )


def _class_tables(report: Report) -> list[_Table]:
    """One table a size."""
    if not report.per_class:
        return []
    names = list(dict.fromkeys(name for row in report.per_class for name in row.ap))
    colours = plots.colours([*(run.name for run in report.runs), *names])
    sizes = list(dict.fromkeys(size for row in report.per_class for size in row.num_objects))
    limits = _limits(report)
    base, candidates = names[0], names[1:]
    tables = []
    for size in sizes:
        rows = []
        for row in report.per_class:
            count = row.num_objects.get(size)
            values = {name: row.ap.get(name, {}).get(size) for name in names}
            cells = [
                _Cell(row.name, row.name, numeric=False),
                _Cell(NOT_AVAILABLE if count is None else f"{count:,}", count),
                *(_value_cell(values[name]) for name in names),
            ]
            for name in candidates:
                difference = row.differences.get(name, {}).get(size)
                if difference is None:
                    difference = _Plain(_nan(values[name]) - _nan(values[base]))
                cell = _difference_cell(difference)
                cells.append(cell._replace(strong=cell.strong and (count or 0) >= FEW_OBJECTS))
            rows.append(cells)
        columns = [_Column("class", False), _Column("objects")]
        columns += [_Column(name, colour=colours[name]) for name in names]
        columns += [_Column(name, colour=colours[name]) for name in candidates]
        groups = [("", 2), ("AP, %", len(names))]
        if candidates:
            groups.append((f"difference to {base}, points", len(candidates)))
        tables.append(
            _Table(
                heading=f"{size} ({limits[size][0]})" if limits.get(size) else size,
                columns=columns,
                rows=rows,
                groups=groups,
                is_open=size == sizes[0],
            )
        )
    return tables


def _class_caption(report: Report) -> str:
    several = any(len(row.ap) > 1 for row in report.per_class)
    caption = "AP in percent; n/a is a class without objects."
    if any(row.differences for row in report.per_class):
        caption += (
            f" Bold where the interval of the difference does not contain 0 and there are "
            f"{FEW_OBJECTS} objects or more; each interval is of its class alone, and among many "
            "classes a few exclude 0 by chance."
        )
    elif several:
        caption += " Differences are without intervals: those of few objects say little."
    return caption


def _intervals(report: Report, comparison: Comparison) -> str:
    """Where the intervals of a comparison come from, in words."""
    if not comparison.replicates:
        return ""
    seeds = [
        run.seeds for run in report.runs if run.name in (comparison.baseline, comparison.candidate)
    ]
    text = (
        f"{plots.percent(comparison.level)} intervals from {comparison.replicates:,} resamples of "
        "the images, the same for both runs"
    )
    return f"{text}, and from the spread over seeds." if max(seeds, default=1) > 1 else f"{text}."


class _Plain(NamedTuple):
    """A difference without an interval."""

    value: float
    low: float = math.nan
    high: float = math.nan


def _pictures(report: Report) -> list[_Picture]:
    names = [run.name for run in report.runs]
    objects = report.runs[0].num_objects if report.runs else None
    several = len(names) > 1
    pictures = []

    def add(title: str, figure: Any, caption: str) -> None:
        svg = plots.to_html(figure, f"{title}. {caption}", f"p{len(pictures)}-")
        pictures.append(_Picture(title, Markup(svg), caption))

    if report.comparisons:
        level = plots.percent(report.comparisons[0].level)
        by_baseline: dict[str, list[Comparison]] = {}
        for comparison in report.comparisons:
            by_baseline.setdefault(comparison.baseline, []).append(comparison)
        for baseline, comparisons in by_baseline.items():
            caption = (
                f"Bars are {level} intervals of the difference. A hollow point's interval "
                "contains 0: a difference is not shown there, nor is it ruled out."
            )
            if any(comparison.words for comparison in comparisons):
                caption += f" {CORRECTED}"
            figure = plots.plot_differences(comparisons, objects, runs=names)
            add(f"Difference to {baseline} by size", figure, caption)
    if report.curves:
        levels = [report.level, *(x.level for x in report.comparisons), 0.95]
        level = next(x for x in levels if x is not None)
        caption = (
            "AP of the objects about a size (a window that slides along the axis); dotted lines "
            "are the limits of the bins. "
        )
        if any(curve.low is not None and len(curve.low) for curve in report.curves):
            caption += f"Bands are {plots.percent(level)} intervals of each run alone. "
            if several:
                caption += (
                    "As all runs are measured on the same images, bands that overlap do not "
                    "mean that runs are equal: the differences say that. "
                )
        caption += (
            f"Gaps are sizes of too few objects. {MEANS}, so a curve can jump where a class begins."
        )
        figure = plots.plot_size_curves(
            report.curves,
            report.bins or None,
            size_by=report.size_by,
            level=level,
            runs=names,
        )
        add("AP against object size", figure, caption)
    if len(report.runs) == 1:
        figure = plots.plot_result(report.runs[0])
        add("AP and AR by size", figure, "The figures of the table.")
    if report.pr:
        add(
            "Precision and recall by size",
            plots.plot_precision_recall(report.pr, objects, runs=names),
            "Precision is the best at this recall or a higher one, as in COCO, and 0 beyond the "
            "last recall reached; the area under a line is AP50.",
        )
    if report.errors:
        caption = (
            "Types as TIDE defines them: wrong class; right class, poorly placed; both; a second "
            "detection of one object; a detection of nothing; an object not found. What each "
            "costs depends on the others, so they do not add up. Points, without intervals."
        )
        if any(run.seeds > 1 and run.name in report.errors for run in report.runs):
            caption += " With several seeds, means over them."
        figure = plots.plot_errors(report.errors, objects, runs=names)
        add("Where the errors come from, by size", figure, caption)
    return pictures


def _value_cell(value: float | None, std: float | None = None) -> _Cell:
    if math.isnan(_nan(value)):
        return _Cell(NOT_AVAILABLE, None)
    spread = "" if math.isnan(_nan(std)) else f" ± {100 * std:.1f}"
    return _Cell(f"{100 * value:.1f}{spread}", value)


def _difference_cell(difference: Any, with_p: bool = False) -> _Cell:
    value = _nan(getattr(difference, "value", None))
    if math.isnan(value):
        return _Cell(NOT_AVAILABLE, None)
    low, high = _nan(difference.low), _nan(difference.high)
    small = () if math.isnan(low + high) else (f"[{_points(low)}, {_points(high)}]",)
    if with_p:
        small += (_p(difference.p),)
    return _Cell(_points(value), value, small, strong=not plots.contains_zero(difference))


def _p(p: float | None) -> str:
    if math.isnan(_nan(p)):
        return f"p {NOT_AVAILABLE}"
    return "p < 0.001" if p < 0.0005 else f"p = {p:.3f}"


def _points(value: float) -> str:
    """A difference in points, with its sign."""
    text = f"{100 * value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _limits(report: Report) -> dict[str, tuple[str, ...]]:
    """Bin -> its limits in words, or nothing."""
    relative = report.size_by == "sqrt-relative"

    def limit(value: float) -> str:
        root = math.sqrt(value)
        square = not relative and root == int(root) and root > 1
        return f"{root:.0f}²" if square else f"{value:.6g}"

    unit = "of the image's side" if relative else "px²"
    limits = {}
    for name, low, high in report.bins:
        if high >= MAX_SIZE:
            limits[name] = (f"{limit(low)} {unit} or more",)
        elif low <= 0:
            limits[name] = (f"up to {limit(high)} {unit}",)
        else:
            limits[name] = (f"{limit(low)} to {limit(high)} {unit}",)
    return {ALL: (), **limits}


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["hash"] = _hash
    source = importlib.resources.files(__package__).joinpath("page.html.jinja")
    return environment.from_string(source.read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    """What a content security policy knows an inline script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
