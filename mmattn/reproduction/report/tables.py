"""The tables of the report, for the page and for Markdown alike."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mmattn.reproduction.report.rows import LEVEL, Entry, Gathered, pairs
from mmattn.reproduction.report.words import (
    MINUS,
    NOT_AVAILABLE,
    SHORT,
    by_value,
    names_of,
    options_of,
    remarks_of,
)

if TYPE_CHECKING:
    pass


# figures of a publication -> what they are called, and the size they are of
REPORTED = {
    "ap": ("AP", "all"),
    "ap50": ("AP50", ""),
    "ap75": ("AP75", ""),
    "ap_s": ("small", "small"),
    "ap_m": ("medium", "medium"),
    "ap_l": ("large", "large"),
    "mask_ap": ("mask AP", "mask"),
}


class _Cell(NamedTuple):
    """A cell; ``small`` are lines below on the page, and follow ``joint`` in Markdown."""

    text: str = ""
    small: Sequence[str] = ()
    number: bool = True
    strong: bool = False
    link: str = ""
    joint: str = " "


class _Line(NamedTuple):
    """Cells, or the heading of the lines that follow; ``more`` is of the row above."""

    cells: Sequence[_Cell] = ()
    heading: str = ""
    more: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableOfReport:
    """A table, before it becomes Markdown or a part of the page."""

    id: str
    title: str
    columns: Sequence[tuple[str, bool]]  # head, whether numbers
    lines: Sequence[_Line]
    caption: str
    groups: Sequence[tuple[str, int]] = ()


def all_tables(report: Gathered) -> list[TableOfReport]:
    """The tables of the report, in their order."""
    tables = [_main_table(report)]
    if any(x.base for x in report.entries):
        tables.append(_difference_table(report))
    tables.append(_cost_table(report))
    tables.append(_runs_table(report))
    return tables


def _lines(entries: Iterable[Entry], of: Callable[[Entry], list[list[_Cell]]]) -> list[_Line]:
    """Lines of the rows below their headings."""
    lines, before = [], ""
    for entry in entries:
        if entry.row.group and entry.row.group != before:
            lines.append(_Line(heading=entry.row.group))
        before = entry.row.group
        lines += [_Line(cells, more=n > 0) for n, cells in enumerate(of(entry))]
    return lines


def _main_table(report: Gathered) -> TableOfReport:
    ours = ["AP", "AP50", "AP75", "small", "medium", "large"]
    if report.masks:
        ours.append("mask AP")

    def cells(entry: Entry) -> list[list[_Cell]]:
        values = [_value(entry, "bbox", "all", x) for x in ("AP", "AP50", "AP75")]
        values += [_value(entry, "bbox", x, "AP") for x in ("small", "medium", "large")]
        if report.masks:
            sizes = [
                f"{size} {_value(entry, 'segm', size, 'AP').text}"
                for size in ("small", "medium", "large")
                if "segm" in entry.figures
            ]
            values.append(_value(entry, "segm", "all", "AP")._replace(small=sizes))
        seeds = _Cell(str(len(entry.outcomes)) if entry.outcomes else "")
        state = _Cell(entry.state, number=False)
        first = _Cell(entry.row.label, number=False)
        lines = []
        for n, published in enumerate(entry.row.published or (None,)):
            rest = [*values, seeds, state] if n == 0 else [_Cell()] * (len(values) + 2)
            reported = _published(published, entry.base is not None)
            lines.append([first if n == 0 else _Cell(number=False), *reported, *rest])
        return lines

    several = any(len(x.outcomes) > 1 for x in report.entries)
    caption = (
        "In percent. Reported figures are as published, each beside its own source's baseline; "
        "our columns hold only what was measured here, and are empty until a row is run."
    )
    if several:
        caption += " With several seeds, mean ± standard deviation over seeds."
    columns = [("row", False), ("baseline", True), ("this row", True), ("source", False)]
    columns += [(x, True) for x in ours]
    return TableOfReport(
        id="table",
        title="Reported and ours",
        columns=[*columns, ("seeds", True), ("state", False)],
        groups=[("", 1), ("reported", 3), ("ours", len(ours) + 2)],
        lines=_lines(report.entries, cells),
        caption=caption,
    )


def _published(published: Any, based: bool) -> list[_Cell]:
    if published is None:
        return [_Cell(), _Cell(), _Cell(number=False)]

    def figures(x: Any) -> _Cell:
        if x is None:
            return _Cell(NOT_AVAILABLE)
        texts = [
            f"{REPORTED[k][0]} {v:.1f}" if round(v, 1) == v else f"{REPORTED[k][0]} {v:g}"
            for k, v in x.figures.items()
            if k in REPORTED
        ]
        return _Cell(texts[0], texts[1:], joint=", ") if texts else _Cell(NOT_AVAILABLE)

    source = published.source
    link = source.url if re.match(r"https?://[^\s<>\"()]+$", source.url or "") else ""
    return [
        figures(published.baseline) if based or published.baseline else _Cell(),
        figures(published),
        _Cell(source.name, number=False, link=link),
    ]


def gains_of(published: Any) -> Iterator[tuple[str, str, str, float]]:
    """(figure, source, size, published gain in points) where its source has a baseline."""
    for key, (name, size) in REPORTED.items():
        if published.baseline is None or not size:
            continue
        pair = [x.figures.get(key) for x in (published, published.baseline)]
        if None not in pair:
            yield name, published.source.key, size, pair[0] - pair[1]


def _difference_table(report: Gathered) -> TableOfReport:
    entries = [x for x in report.entries if x.base]
    sizes = list(SHORT)
    reported = any(True for x in entries for y in x.row.published for _ in gains_of(y))

    def cells(entry: Entry) -> list[list[_Cell]]:
        row = [_Cell(entry.row.label, number=False), _Cell(entry.base.row.label, number=False)]
        if reported:
            gains = [
                f"{name} {_signed(gain, 1)} ({source})"
                for y in entry.row.published
                for name, source, _, gain in gains_of(y)
            ]
            row.append(_Cell(gains[0], gains[1:], joint=", ") if gains else _Cell())
        row += [_difference(report, entry, "bbox", size) for size in sizes]
        if report.masks:
            row.append(_difference(report, entry, "segm", "all"))
        if entry.comparisons:
            mine, other = pairs(entry)
            covers = "images only" if min(mine, other) == 1 else "images and trainings"
            row.append(_Cell(f"{mine} and {other}", [covers], joint=", "))
            remarks = [entry.why] * bool(entry.why) + list(remarks_of(entry))
            return [[*row, _Cell(", ".join(remarks), number=False)]]
        why = entry.why if entry.outcomes else entry.state
        return [[*row, _Cell(), _Cell(why, number=False)]]

    columns = [("row", False), ("against", False)] + [("reported gain", True)] * reported
    columns += [(SHORT[size], True) for size in sizes] + [("mask AP", True)] * report.masks
    return TableOfReport(
        id="differences",
        title="Difference to the own baseline",
        columns=[*columns, ("seeds", True), ("remarks", False)],
        lines=_lines(entries, cells),
        caption=(
            f"Points (percent), with the {100 * LEVEL:g} % interval, p of this difference alone, "
            "and p corrected for the number of rows compared (Holm, each column for itself). "
            "Bold where the corrected p is below 0.05. Seeds are those of the row and of its "
            "baseline, with what the intervals cover; 'images only': one of the two was trained "
            "once, and the interval does not contain the training's own chance."
        ),
    )


def _cost_table(report: Gathered) -> TableOfReport:
    published = any(y.cost for x in report.entries for y in x.row.published)

    def cells(entry: Entry) -> list[list[_Cell]]:
        row = [_Cell(entry.row.label, number=False)]
        first, base = entry.first, entry.base
        for key in ("params", "flops"):
            mine, other = (x and getattr(x.cost, key) for x in (first, base and base.first))
            row += [_Cell(_size(mine)), _Cell(*_added(mine, other))]
        seconds = entry.mean(lambda x: x.train_seconds)
        attempts = max((x.attempts for x in entry.outcomes.values()), default=1)
        again = [f"in up to {attempts} attempts"] if attempts > 1 else []
        row.append(_Cell(_time(seconds), again))
        row.append(_Cell(_ratio(entry)))
        speed = entry.mean(lambda x: x.images_per_second)
        row.append(_Cell("" if math.isnan(speed) else f"{speed:.3g}"))
        if published:
            texts = [
                f"{', '.join(_reported_cost(y.cost))} ({y.source.key})"
                for y in entry.row.published
                if y.cost
            ]
            row.append(_Cell(texts[0], texts[1:], joint=", ") if texts else _Cell())
        return [row]

    heads = ["parameters", "to baseline", "FLOPs", "to baseline"]
    heads += ["training time", "to baseline", "images/s"] + ["reported"] * published
    shapes = by_value(report.done, lambda x: " x ".join(map(str, x.cost.shape or ())) or None)
    of = "; ".join(
        f"{shape} px" + (f" ({names_of(names)})" if len(shapes) > 1 else "")
        for shape, names in shapes.items()
        if shape
    )
    return TableOfReport(
        id="cost",
        title="Cost",
        columns=[("row", False), *((x, True) for x in heads)],
        lines=_lines(report.entries, cells),
        caption=(
            f"FLOPs are of the whole detector on one image{f' of {of}' if of else ''}. Training "
            "time is the mean over seeds, with what an interrupted run did again; it is compared "
            "on the same hardware only. Images/s are those of the whole training, start and "
            "validation included, of runs that were not interrupted."
        ),
    )


def _runs_table(report: Gathered) -> TableOfReport:
    def cells(entry: Entry) -> list[list[_Cell]]:
        values = (
            _shown_config(entry.first.config if entry.first else entry.row.config),
            ", ".join(map(str, entry.outcomes)),
            options_of(entry.first.options if entry.first else entry.row.options) or "",
            "; ".join(dict.fromkeys(str(x.hardware) for x in entry.outcomes.values())),
        )
        texts = [_Cell(x, number=False) for x in values]
        return [[_Cell(entry.row.label, number=False), *texts]]

    heads = ("row", "config", "seeds done", "options over the config", "hardware")
    return TableOfReport(
        id="runs",
        title="What was run",
        columns=[(x, False) for x in heads],
        lines=_lines(report.entries, cells),
        caption="Options of a row that was not run are those that the table asks for.",
    )


def _shown_config(path: str) -> str:
    """A config's path from configs/ on; where a repository lies says nothing."""
    start = path.find("configs/")
    return path[start:] if start >= 0 else path


def _value(entry: Entry, iou_type: str, size: str, figure: str) -> _Cell:
    if iou_type not in entry.figures:
        return _Cell()
    value = entry.figures[iou_type].get(size, {}).get(figure, math.nan)
    if math.isnan(value):
        return _Cell(NOT_AVAILABLE)
    std = entry.stds.get(iou_type, {}).get(size, {}).get(figure, math.nan)
    return _Cell(f"{100 * value:.1f}" + ("" if math.isnan(std) else f" ± {100 * std:.1f}"))


def _difference(report: Gathered, entry: Entry, iou_type: str, size: str) -> _Cell:
    if iou_type not in entry.comparisons:
        return _Cell()
    x = entry.comparisons[iou_type].differences[size]["AP"]
    if math.isnan(x.value):
        return _Cell(NOT_AVAILABLE)
    value = _signed(100 * x.value)
    if math.isnan(x.p):
        return _Cell(value, ["no interval"])
    p = entry.adjusted[iou_type][size]
    tests = sum(iou_type in x.comparisons for x in report.entries)
    corrected = f", Holm {_p(p)}" if tests > 1 else ""
    small = [f"[{_signed(100 * x.low)}, {_signed(100 * x.high)}]", f"p {_p(x.p)}{corrected}"]
    return _Cell(value, small, strong=p <= 1 - LEVEL + 1e-9)


def _p(p: float) -> str:
    return "< 0.001" if p < 0.0005 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def _signed(value: float, digits: int = 2) -> str:
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def _size(number: float | None) -> str:
    if number is None:
        return ""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            scaled = number / {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}[letter]
            return f"{scaled:#.4g} {letter}"
    return f"{number:,.0f}"


def _added(mine: float | None, other: float | None) -> tuple[str, Sequence[str]]:
    if mine is None or other is None:
        return "", ()
    more = mine - other
    if not more:
        return "0", ()
    sign = "+" if more > 0 else MINUS
    share = f"{100 * abs(more) / other:.2g}" if other else NOT_AVAILABLE
    if other and abs(more) / other >= 0.1:
        share = f"{100 * abs(more) / other:.0f}"
    return f"{sign}{_size(abs(more))}", (f"({sign}{share} %)",)


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def time_ratio(entry: Entry) -> float:
    """Training time over the baseline's, nan where it says nothing."""
    if not (entry.outcomes and entry.base and entry.base.outcomes):
        return math.nan
    both = [*entry.outcomes.values(), *entry.base.outcomes.values()]
    if len({str(x.hardware) for x in both}) > 1:
        return math.nan
    times = [x.mean(lambda y: y.train_seconds) for x in (entry, entry.base)]
    return times[0] / times[1] if times[1] else math.nan


def _ratio(entry: Entry) -> str:
    ratio = time_ratio(entry)
    if not math.isnan(ratio):
        return f"{ratio:.2f} times"
    both = entry.outcomes and entry.base and entry.base.outcomes
    return "other hardware" if both and "other hardware" in remarks_of(entry) else ""


def _reported_cost(cost: Mapping[str, float]) -> list[str]:
    known = {"params_m": "{:g} M parameters", "gflops": "{:g} GFLOPs"}
    return [text.format(cost[key]) for key, text in known.items() if key in cost]
