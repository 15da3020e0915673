"""Tables of results, for terminals, log files and Markdown. AP is in percent here.

Plain ASCII, because a log file's encoding is the machine's; the tables are valid Markdown.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mmattn.evaluation.bins import MAX_SIZE
from mmattn.evaluation.result import FIGURES, Conditions, Result

if TYPE_CHECKING:
    from mmattn.evaluation.comparison import Comparison
    from mmattn.evaluation.run import Run
    from mmattn.evaluation.statistics import Difference

NOT_AVAILABLE = "n/a"


def size_table(result: Result) -> RenderableType:
    """AP, AP50, AP75 and AR overall and by size, with the number of objects of each row."""
    table = new_table("size", size_header(result.conditions))
    add_numbers(table, "objects", *FIGURES)
    for name, figures in result.rows():
        values = [percent(figures[x]) for x in FIGURES]
        table.add_row(name, size_range(result.conditions, name), str(figures.num_objects), *values)
    return Group(Text(heading(result.conditions)), table, *map(Text, notes([result])))


def class_table(result: Result | Run) -> RenderableType:
    """AP of each class, overall and by size, each with its number of objects.

    Of a run of several seeds: the mean.
    """
    first = result if isinstance(result, Result) else result.results[0]
    table = new_table("class")
    add_numbers(table, "all", *first.conditions.size_bins)
    for name, row in first.per_class.items():
        sizes = {"all": row, **row.by_size}
        ap = {size: x.ap for size, x in sizes.items()}
        if result is not first:
            ap = result.class_ap[name]
        cells = (f"{percent(ap[size])} ({x.num_objects})" for size, x in sizes.items())
        table.add_row(_name(name), *cells)
    title = Text(f"AP by class and size (number of objects): {first.conditions.iou_type}, %")
    return Group(title, table)


def runs_table(runs: Sequence[Run]) -> RenderableType:
    """The figures of several runs by size; differences to the first stand in brackets.

    Several seeds of a run: mean +- standard deviation.
    """
    conditions = runs[0].conditions
    several = any(run.seeds > 1 for run in runs)
    table = new_table("size")
    add_numbers(table, "objects")
    table.add_column("run", no_wrap=True)
    add_numbers(table, *FIGURES)
    for size, num_objects in runs[0].num_objects.items():
        for n, run in enumerate(runs):
            cells = []
            for figure in FIGURES:
                cell = percent(value := run.figures[size][figure])
                if run.std is not None and not math.isnan(value):
                    cell += f" +- {percent(run.std[size][figure])}"
                if n and not math.isnan(value):
                    cell += f" ({signed(value - runs[0].figures[size][figure])})"
                cells.append(cell)
            what = (size, str(num_objects)) if n == 0 else ("", "")
            table.add_row(*what, _name(run.name), *cells)
    ranges = [f"{x} {size_range(conditions, x)}" for x in conditions.size_bins]
    header = size_header(conditions)
    explanation = [f"{header[0].upper()}{header[1:]}: {', '.join(ranges)}."]
    if len(runs) > 1:
        explanation.append(f"In brackets: difference to {runs[0].name}.")
    if several:
        seeds = ", ".join(f"{run.name} {run.seeds}" for run in runs)
        explanation.append(f"Mean +- standard deviation over seeds ({seeds}).")
    lines = [*explanation, *notes([x for run in runs for x in run.results])]
    return Group(Text(heading(conditions)), table, *map(Text, lines))


def comparison_table(comparison: Comparison) -> RenderableType:
    """Differences to the baseline by size, with intervals and p-values."""
    table = new_table("size")
    add_numbers(table, "objects")
    table.add_column("figure", no_wrap=True)
    add_numbers(table, "difference", "interval", "p")
    for size, row in comparison.differences.items():
        for n, (figure, difference) in enumerate(row.items()):
            what = (size, str(comparison.num_objects[size])) if n == 0 else ("", "")
            table.add_row(*what, figure, *difference_cells(difference))
    return Group(Text(comparison.heading), table)


def class_comparison_table(comparison: Comparison) -> RenderableType:
    """Differences of each class's AP, overall and by size, with intervals."""
    table = new_table("class")
    for size in comparison.differences:
        table.add_column(size, no_wrap=True)
    for name, row in comparison.per_class.items():
        cells = [difference_cells(x)[:2] for x in row.values()]
        have = (NOT_AVAILABLE, "")
        table.add_row(_name(name), *(f"{x} ({y})" if y not in have else x for x, y in cells))
    return Group(Text(f"AP of each class: {comparison.heading}"), table)


def difference_cells(difference: Difference) -> tuple[str, str, str]:
    """A difference, its interval, and its p-value."""
    if math.isnan(difference.value):
        return NOT_AVAILABLE, NOT_AVAILABLE, NOT_AVAILABLE
    if math.isnan(difference.low):
        return signed(difference.value), NOT_AVAILABLE, NOT_AVAILABLE
    return signed(difference.value), limits(difference), p_value(difference.p)


def render(*renderables: RenderableType, width: int = 80) -> str:
    """Text of tables, without colours; wider than ``width`` rather than truncated."""
    console = Console(file=io.StringIO(), width=10_000, color_system=None, force_terminal=False)
    needed = max((console.measure(x).maximum for x in renderables), default=0)
    console.width = max(width, needed)
    console.print(*renderables, sep="\n", highlight=False)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def percent(value: float | None) -> str:
    """A fraction in percent, or n/a."""
    return NOT_AVAILABLE if value is None or math.isnan(value) else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """A difference of fractions in percent points, with its sign."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def limits(difference: Difference) -> str:
    """An interval in percent points; one that ends just beside 0 is seen to leave it out."""
    ends = (difference.low, difference.high)
    fine = [f"{100 * x:+.2f}" if 0.00005 <= abs(x) < 0.0005 else signed(x) for x in ends]
    return " to ".join(fine)


def p_value(p: float) -> str:
    """A p-value with as many digits as it bears."""
    if math.isnan(p):
        return NOT_AVAILABLE
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def heading(conditions: Conditions) -> str:
    """One line that says what a table's figures are."""
    text = (
        f"AP by size: {conditions.iou_type}, %, {conditions.max_dets} detections of an image and "
        f"class, {conditions.num_images} image{'' if conditions.num_images == 1 else 's'}"
    )
    thresholds = [round(x, 4) for x in conditions.iou_thrs]
    if thresholds != [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]:
        text += f", IoU {', '.join(f'{x:g}' for x in thresholds)}"
    return text


def notes(results: Sequence[Result]) -> list[str]:
    """What a reader should know, each note once; a note of some results names them."""
    conditions = results[0].conditions
    shape = {"bbox": "box", "segm": "mask"}[conditions.iou_type]
    lines = [
        {
            "area": f"Size: objects by their annotation's area, unmatched detections by their "
            f"{shape}'s.",
            "bbox": "Size: the area of the box.",
            "sqrt-relative": "Size: square root of the share of the image's area; objects by "
            f"their annotation's area, unmatched detections by their {shape}'s.",
        }[conditions.size_by]
    ]
    for note in dict.fromkeys(note for x in results for note in x.conditions.notes):
        having = [x.name for x in results if note in x.conditions.notes]
        lines.append(note if len(having) == len(results) else f"{', '.join(having)}: {note}")
    return lines


def size_header(conditions: Conditions) -> str:
    """What the column of limits is called."""
    return "share of side" if conditions.size_by == "sqrt-relative" else "area (px^2)"


def size_range(conditions: Conditions, name: str) -> str:
    """A bin's limits in words; 'any' for 'all'."""
    if name == "all":
        return "any"
    low, high = conditions.size_bins[name]
    return f"{low:.10g} or more" if high >= MAX_SIZE else f"{low:.10g} to {high:.10g}"


def _name(text: str) -> Text:
    """A name that cannot break its row."""
    return Text(" ".join(text.replace("|", "\\|").split()))


def new_table(*headers: str) -> Table:
    """An empty Markdown table, whose first columns hold text."""
    table = Table(box=box.MARKDOWN, show_edge=True)
    for header in headers:
        table.add_column(header, no_wrap=True)
    return table


def add_numbers(table: Table, *headers: str) -> None:
    """Adds columns of numbers."""
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
