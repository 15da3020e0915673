"""The report of a reproduction: the paper's table, and beside it what was measured here.

Figures and differences are computed from the prediction files of all runs by the evaluation that
is installed now, so that no two versions of it are mixed. A row's figures are means over its
seeds. A difference is that of :func:`mmattn.evaluation.compare`: a paired bootstrap over the
images with all seeds of the row and of its baseline. Its p-values are corrected (Holm) for the
number of rows of the report, each size for itself, since every row is a chance to be fooled.

Published figures have columns of their own and are never computed with, but for the gain over the
same source's baseline. Rows that were not run stay in the table, empty. Rows of other data than
their baseline are not compared; other code, versions or hardware are said on top.

Written are ``report.md`` with ``pictures/*.svg`` (and ``.png``), ``report.html``, one page that
needs nothing but itself, and ``report.json`` with all figures in full precision.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.resources
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mmattn._version import __version__
from mmattn.evaluation.bins import parse_bins
from mmattn.evaluation.checks import check_resampling
from mmattn.evaluation.comparison import Settings
from mmattn.evaluation.evaluator import parse_iou_thrs
from mmattn.evaluation.files import write_text
from mmattn.evaluation.progress import Progress
from mmattn.evaluation.result import to_json
from mmattn.reproduction.report.gather import compare_rows, evaluate_rows, images_of, read_rows
from mmattn.reproduction.report.outcome import FORMAT
from mmattn.reproduction.report.pictures import Picture, pictures_of
from mmattn.reproduction.report.rows import LEVEL, Entry, Gathered
from mmattn.reproduction.report.tables import TableOfReport, all_tables
from mmattn.reproduction.report.words import EACH_ALONE, conditions_of, notes_of_report

if TYPE_CHECKING:
    from mmattn.reproduction.table import Table


PICTURES = ("differences", "ap", "reported", "cost")


def write_report(
    table: Table,
    results: Mapping[str, Mapping[int, Path]],
    out: Path,
    *,
    states: Mapping[str, Mapping[int, str]] | None = None,
    replicates: int = 1000,
    seed: int = 0,
    images: Path | None = None,
) -> list[Path]:
    """Writes the report of a table; everything is computed before the first file is written.

    Args:
        table: The table.
        results: Row -> seed -> ``result.json`` of the runs that are done.
        out: Folder for the report.
        states: Row -> seed -> state of runs that are not done: 'waiting', 'running 120/250'.
        replicates: Resamples of the images that intervals and p come from.
        seed: Of the resamples.
        images: Folder of the image files: the page then shows the images on which a row and its
            baseline differ most.

    Returns:
        The files that were written, each whole or not at all.

    Raises:
        OSError: A file cannot be written.
        ValueError: A result, a prediction file or a row is not valid; one sentence says why.
    """
    check_resampling(replicates, seed, LEVEL)
    entries = read_rows(table, results, states or {})
    settings = Settings(bins=parse_bins(None), iou_thrs=parse_iou_thrs(None), max_dets=100)
    with Progress() as progress:
        report = Gathered(table, entries, settings, replicates, seed)
        evaluate_rows(report, progress)
        compare_rows(report, progress)
        shown = images_of(report, images, progress) if images is not None else []
        progress.stage("drawing")
        pictures = pictures_of(report)
        tables = all_tables(report)
        texts = {
            "report.json": to_json(_json(report)),
            "report.html": _html(report, tables, pictures, shown),
            "report.md": _markdown(report, tables, pictures),
        }
        return _write(Path(out), texts, pictures)


def _words(entry: Entry) -> list[str]:
    """What a row's comparison says; what holds for all rows is said once, above them."""
    words = []
    for iou_type, comparison in entry.comparisons.items():
        mask = "Masks. " if iou_type == "segm" else ""
        words += [
            mask + x
            for x in comparison.words
            if not x.startswith(("The intervals cover", f"{comparison.replicates} resamples"))
        ]
    return words


def _json(report: Gathered) -> dict[str, Any]:
    def plain(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {str(key): plain(value) for key, value in x.items()}
        if isinstance(x, (list, tuple)):
            return [plain(value) for value in x]
        return None if isinstance(x, float) and math.isnan(x) else x

    rows = []
    for x in report.entries:
        rows.append(
            {
                "name": x.row.name,
                "label": x.row.label,
                "group": x.row.group,
                "baseline": x.row.baseline,
                "state": x.state,
                "seeds": list(x.outcomes),
                "published": [
                    {
                        "source": y.source.key,
                        "url": y.source.url,
                        "figures": y.figures,
                        "baseline": y.baseline and y.baseline.figures,
                        "cost": y.cost,
                    }
                    for y in x.row.published
                ],
                "figures": {
                    iou_type: {
                        "from": "predictions" if iou_type in x.runs else "result.json",
                        "mean": x.figures[iou_type],
                        "std": x.stds.get(iou_type),
                        "seeds": dict(zip(x.outcomes, x.of_seeds[iou_type], strict=True)),
                    }
                    for iou_type in x.figures
                },
                "differences": {
                    iou_type: {
                        "words": comparison.words,
                        "sizes": {
                            size: {f: dataclasses.asdict(d) for f, d in row.items()}
                            for size, row in comparison.differences.items()
                        },
                        "holm_ap": x.adjusted[iou_type],
                    }
                    for iou_type, comparison in x.comparisons.items()
                },
                "not_compared": x.why,
                "runs": {seed: msgspec.to_builtins(o) for seed, o in x.outcomes.items()},
            }
        )
    return plain(
        {
            "format": FORMAT,
            "mmattn": __version__,
            "table": report.table.name,
            "title": report.table.title,
            "level": LEVEL,
            "replicates": report.replicates,
            "seed": report.seed,
            "answer": report.answer,
            "warnings": report.warnings,
            "notes": list(notes_of_report(report)),
            "rows": rows,
        }
    )


def _html(
    report: Gathered, tables: list[TableOfReport], pictures: list[Picture], images: list[Any]
) -> str:
    import jinja2
    from markupsafe import Markup

    from mmattn.evaluation.plots import to_html

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = importlib.resources.files(__package__).joinpath("page.html.jinja")
    page = environment.from_string(source.read_text(encoding="utf-8")).render(
        table=report.table,
        paper_is_link=bool(re.match(r"https?://\S+$", report.table.paper or "")),
        report=report,
        tables={x.id: x for x in tables},
        pictures=[
            (x, Markup(to_html(x.figure, f"{x.title}. {x.caption}", f"{x.name}-")))
            for x in pictures
        ],
        words=[(x, _words(x)) for x in report.entries if x.comparisons],
        images=images,
        conditions=list(conditions_of(report)),
        each_alone=EACH_ALONE,
        notes=list(notes_of_report(report)),
        version=__version__,
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _markdown(report: Gathered, tables: list[TableOfReport], pictures: list[Picture]) -> str:
    drawn = {x.name: x for x in pictures}
    shown = {x.id: x for x in tables}
    parts = [f"# {_md(report.table.title)}"]
    parts += [_md(x) for x in (report.table.about,) if x]
    if report.table.paper:
        link = re.match(r"https?://[^\s<>]+$", report.table.paper)
        parts.append(f"Paper: {f'<{report.table.paper}>' if link else _md(report.table.paper)}")
    parts.append("\n".join(f"- {_md(x)}" for x in report.answer))
    if report.warnings:
        parts += ["**Beware**", "\n".join(f"- **{_md(x)}**" for x in report.warnings)]

    def add(table: str, *names: str) -> None:
        if table in shown:
            parts.append(f"## {shown[table].title}")
            parts.append(_md_table(shown[table]))
            parts.append(_md(shown[table].caption))
        for x in (drawn[name] for name in names if name in drawn):
            parts.append(f"![{_md(x.title)}](pictures/{x.name}.svg)")
            parts.append(f"*{_md(x.title)}.* {_md(x.caption)}")

    add("table", "ap")
    add("differences", "differences", "reported")
    if words := [(x, _words(x)) for x in report.entries if x.comparisons]:
        parts += ["## In words", EACH_ALONE]
        lines = []
        for x, sentences in words:
            lines.append(f"- {_md(x.name)} against {_md(x.base.name)}. {_md(' '.join(sentences))}")
        parts.append("\n".join(lines))
    add("cost", "cost")
    add("runs")
    for title, sentences in (
        ("Conditions", conditions_of(report)),
        ("Notes", notes_of_report(report)),
    ):
        if lines := [f"- {_md(x)}" for x in sentences]:
            parts += [f"## {title}", "\n".join(lines)]
    text = "\n\n".join(parts) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")


def _md_table(table: TableOfReport) -> str:
    """A table in Markdown; names of groups of columns go before the columns' own."""
    heads = [head for head, _ in table.columns]
    if table.groups:
        of = [name for name, span in table.groups for _ in range(span)]
        heads = [
            f"{name} {head}" if name == "reported" and head != "source" else head
            for name, head in zip(of, heads, strict=True)
        ]
    lines = [heads, ["---:" if number else "---" for _, number in table.columns]]
    for line in table.lines:
        if line.heading:
            lines.append([f"**{_md(line.heading)}**", *[""] * (len(heads) - 1)])
            continue
        cells = []
        for cell in line.cells:
            text = _md(cell.joint.join(filter(None, (cell.text, ", ".join(cell.small)))))
            if cell.link:
                text = f"[{text}]({cell.link})"
            cells.append(f"**{text}**" if cell.strong else text)
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _md(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(str(text).split()))


def _write(out: Path, texts: Mapping[str, str], pictures: list[Picture]) -> list[Path]:
    from mmattn.evaluation import plots

    written = []
    for picture in pictures:
        for suffix in (".svg", ".png"):
            written.append(out / "pictures" / f"{picture.name}{suffix}")
            plots.save(picture.figure, written[-1])
    for name, text in texts.items():
        write_text(out / name, text)
        written.append(out / name)
    # what an earlier report had drawn and this one has not
    for name in PICTURES:
        for suffix in (".svg", ".png"):
            if (old := out / "pictures" / f"{name}{suffix}") not in written:
                old.unlink(missing_ok=True)
    return written
