"""Tables of a result, for terminals and log files. AP is in percent here.

Plain ASCII, because a log file's encoding is the machine's; the tables are valid Markdown.
"""

from __future__ import annotations

import io

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mmattn.evaluation.coco import MAX_AREA, CocoResult, Figures

NOT_AVAILABLE = "n/a"


def size_table(result: CocoResult) -> RenderableType:
    """AP, AP50, AP75 and AR overall and by size, with the number of objects of each row."""
    table = _table("size", "area (px^2)")
    for header in ("objects", "AP", "AP50", "AP75", "AR"):
        table.add_column(header, justify="right", no_wrap=True)

    def add_row(name: str, area: str, figures: Figures) -> None:
        values = (figures.AP, figures.AP50, figures.AP75, figures.AR)
        table.add_row(name, area, str(figures.num_objects), *map(percent, values))

    add_row("all", "any", result)
    for name, limits in result.conditions.size_bins.items():
        add_row(name, _area(*limits), result.by_size[name])
    return Group(_heading(result), table, *_notes(result))


def class_table(result: CocoResult) -> RenderableType:
    """AP of each class, overall and by size, each with its number of objects."""
    table = _table("class")
    for header in ("all", *result.conditions.size_bins):
        table.add_column(header, justify="right", no_wrap=True)
    for row in result.classes:
        cells = (f"{percent(x.AP)} ({x.num_objects})" for x in (row, *row.by_size.values()))
        table.add_row(Text(row.name), *cells)
    heading = Text(f"AP by class and size (number of objects): {result.conditions.iou_type}, %")
    return Group(heading, table)


def render(*renderables: RenderableType, width: int = 80) -> str:
    """Text of tables, without colours; wider than ``width`` rather than truncated."""
    console = Console(file=io.StringIO(), width=10_000, color_system=None, force_terminal=False)
    needed = max((console.measure(x).maximum for x in renderables), default=0)
    console.width = max(width, needed)
    console.print(*renderables, sep="\n", highlight=False)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def percent(value: float | None) -> str:
    """A fraction in percent, or n/a."""
    return NOT_AVAILABLE if value is None else f"{100 * value:.1f}"


def _table(*headers: str) -> Table:
    table = Table(box=box.MARKDOWN, show_edge=True)
    for header in headers:
        table.add_column(header, no_wrap=True)
    return table


def _heading(result: CocoResult) -> Text:
    conditions = result.conditions
    return Text(
        f"AP by size: {conditions.iou_type}, %, {conditions.max_dets} detections an image, "
        f"{conditions.num_images} images"
    )


def _notes(result: CocoResult) -> list[Text]:
    conditions = result.conditions
    shape = conditions.detection_area.rpartition(" ")[2]
    sizes = f"Size: objects by their annotation's area, unmatched detections by their {shape}'s."
    return [Text(note) for note in (sizes, *conditions.notes)]


def _area(low: float, high: float) -> str:
    return f"{low:.10g} or more" if high >= MAX_AREA else f"{low:.10g} to {high:.10g}"
