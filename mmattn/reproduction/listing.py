"""What the console shows of tables and runs."""

from __future__ import annotations

from collections.abc import Container, Mapping

from rich import box
from rich.table import Table as Grid

from mmattn.evaluation.table import render
from mmattn.reproduction import status
from mmattn.reproduction import table as tables
from mmattn.reproduction.plan import Plan


def shipped() -> str:
    """The tables that come with mmattn."""
    grid = _grid("table", "rows", "runs", "title")
    for path in tables.shipped():
        table = tables.load(path)
        runs = sum(len(row.seeds) for row in table.rows)
        grid.add_row(path.stem, str(len(table.rows)), str(runs), table.title)
    return render(grid)


def rows(name: str) -> str:
    """The rows of a table."""
    table = tables.load(tables.find(name))
    grid = _grid("row", "baseline", "seeds", "published AP", "source")
    for row in table.rows:
        grid.add_row(
            row.name,
            row.baseline or "",
            ", ".join(map(str, row.seeds)),
            ", ".join(_figures(p.figures) for p in row.published),
            ", ".join(p.source.key for p in row.published),
        )
    return f"{table.title}\n{table.about}\n{render(grid)}"


def _figures(figures: Mapping[str, float]) -> str:
    if "ap" in figures:
        return f"{figures['ap']:.1f}"
    return " ".join(f"{k[3:].upper()} {v:.1f}" for k, v in figures.items() if k.startswith("ap_"))


def states(plan: Plan, chosen: Container[tuple[str, int]]) -> str:
    """How far each run of a plan is that is asked for, as rows with seeds."""
    grid = _grid("row", "seed", "state", "folder")
    done, runs = 0, [run for run in plan.runs if (run.row, run.seed) in chosen]
    for run in runs:
        state = status.of(run)
        done += state.kind == "done"
        # the folder's two last parts do not say what the columns do not
        grid.add_row(run.row, str(run.seed), state.text, run.folder.name)
    return f"{done} of {len(runs)} runs done in {plan.folder}\n{render(grid)}"


def _grid(*columns: str) -> Grid:
    grid = Grid(box=box.MARKDOWN)
    for name in columns:
        grid.add_column(name, no_wrap=True)
    return grid
