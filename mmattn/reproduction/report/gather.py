"""The rows of a table with what became of them: figures, and differences to their baselines."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmattn.evaluation.bootstrap import draw
from mmattn.evaluation.checks import check_different
from mmattn.evaluation.comparison import (
    compare_runs,
    evaluate_found,
    resample,
)
from mmattn.evaluation.data import IOU_TYPES, load_detections, load_ground_truth
from mmattn.evaluation.evaluator import doubts
from mmattn.evaluation.progress import Progress
from mmattn.evaluation.result import FIGURES
from mmattn.evaluation.run import Run
from mmattn.evaluation.statistics import holm
from mmattn.reproduction.report.outcome import read_outcome
from mmattn.reproduction.report.rows import LEVEL, Entry, Gathered

if TYPE_CHECKING:
    from mmattn.reproduction.table import Row, Table


NUM_IMAGES = 4


def read_rows(
    table: Table,
    results: Mapping[str, Mapping[int, Path]],
    states: Mapping[str, Mapping[int, str]],
) -> list[Entry]:
    """The rows of a table with the results that they have."""
    rows = {row.name: row for row in table.rows}
    if unknown := [x for x in results if x not in rows]:
        raise ValueError(
            f"there are results of {', '.join(unknown)}, which table {table.name} does not have; "
            f"its rows: {', '.join(rows)}"
        )
    labels = [row.label for row in table.rows]
    headed = [_headed(row) for row in table.rows]
    entries = {}
    for row in table.rows:
        if row.baseline is not None and (row.baseline == row.name or row.baseline not in rows):
            raise ValueError(
                f"table {table.name}: the baseline {row.baseline!r} of row {row.name} is no other "
                f"row; rows: {', '.join(rows)}"
            )
        name = row.name
        if labels.count(row.label) == 1:
            name = row.label
        elif headed.count(_headed(row)) == 1:
            name = _headed(row)
        elif [(x.group, x.label) for x in table.rows].count((row.group, row.label)) == 1:
            name = f"{row.label} ({row.group})" if row.group else row.label
        paths = results.get(row.name, {})
        outcomes, folders = {}, {}
        for seed in row.seeds:
            if seed not in paths:
                continue
            outcome = outcomes[seed] = read_outcome(paths[seed])
            wanted = (table.name, row.name, seed)
            if (outcome.table, outcome.row, outcome.seed) != wanted:
                raise ValueError(
                    f"{paths[seed]} is the result of table {outcome.table}, row {outcome.row}, "
                    f"seed {outcome.seed}, and was given for table {table.name}, row {row.name}, "
                    f"seed {seed}"
                )
            folders[seed] = Path(paths[seed]).parent
        state = _state(row.seeds, outcomes, states.get(row.name, {}))
        entries[row.name] = Entry(row, name, state, outcomes, folders)
    for x in entries.values():
        x.base = entries.get(x.row.baseline)
        x.mixed = len({outcome.checksums for outcome in x.outcomes.values()}) > 1
    return list(entries.values())


def _headed(row: Row) -> str:
    """A row's label with the first words of its heading: 'SGE (RetinaNet)'."""
    return f"{row.label} ({row.group.partition(',')[0].strip()})" if row.group else row.label


def _state(seeds: Sequence[int], done: Mapping[int, Any], states: Mapping[int, str]) -> str:
    left = [states.get(x, "not run") for x in seeds if x not in done]
    if not left:
        return "done"
    if len(set(left)) == 1 and not done:
        return left[0]
    texts = [f"seed {x}: {states.get(x, 'not run')}" for x in seeds if x not in done]
    return "; ".join([f"{len(done)} of {len(seeds)} seeds done"] * bool(done) + texts)


def evaluate_rows(report: Gathered, progress: Progress) -> None:
    """Figures of every row; samples of those that may be compared."""
    annotations = _annotations(report)
    bases = {id(x.base) for x in report.done if x.base}
    for entry in report.done:
        if entry.mixed:
            entry.why = "its seeds were run on different data"
            report.notes.append(
                f"{entry.name}: its seeds were run on different data, so there is no mean of them: "
                "run it again."
            )
            continue
        types = [x for x in IOU_TYPES if any(x in o.figures for o in entry.outcomes.values())]
        for iou_type in types:
            path, missing = annotations[entry.first.data.val_sha256]
            files = {s: o.predictions.get(iou_type) for s, o in entry.outcomes.items()}
            files = {s: x and entry.folders[s] / x for s, x in files.items()}
            lost = [str(x or f"of seed {s}") for s, x in files.items() if not x or not x.is_file()]
            if lost:
                missing = f"the prediction file {lost[0]} is gone"
            if missing:
                _recorded(report, entry, iou_type, missing)
                continue
            paired = id(entry) in bases or (entry.base is not None and bool(entry.base.outcomes))
            _evaluate_files(report, entry, iou_type, path, files, paired, progress)


def _annotations(report: Gathered) -> dict[str, tuple[Path | None, str]]:
    """Checksum -> the annotation file, or None and a sentence."""
    found: dict[str, tuple[Path | None, str]] = {}
    for entry in report.done:
        for outcome in entry.outcomes.values():
            path, checksum = Path(outcome.data.annotations), outcome.data.val_sha256
            if found.get(checksum, (None,))[0]:
                continue
            if not path.is_file():
                found.setdefault(checksum, (None, f"the annotation file {path} is gone"))
                continue
            with open(path, "rb") as file:
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
            same = digest.hexdigest() == checksum
            why = f"the annotation file {path} has changed since"
            found[checksum] = (path, "") if same else (None, why)
    return found


def _recorded(report: Gathered, entry: Entry, iou_type: str, missing: str) -> None:
    """Takes the figures from the results, and says so."""
    entry.gone[iou_type] = missing
    version = entry.first.versions.get("mmattn")
    report.notes.append(
        f"{entry.name}: {missing}, so its {iou_type} figures are those that its "
        f"{'runs' if len(entry.outcomes) > 1 else 'run'} recorded"
        f"{f' (mmattn {version})' if version else ''}, and it is not compared."
    )
    rows = [
        {
            size: {key: math.nan if x is None else x for key, x in row.items()}
            for size, row in outcome.figures[iou_type].items()
        }
        for outcome in entry.outcomes.values()
        if iou_type in outcome.figures
    ]
    if len(rows) < len(entry.outcomes):
        return
    _take(entry, iou_type, rows)


def _take(entry: Entry, iou_type: str, rows: list[dict]) -> None:
    """Mean and standard deviation over seeds."""

    def each(of: Callable) -> dict[str, dict[str, float]]:
        return {
            size: {
                figure: float(of([row.get(size, {}).get(figure, math.nan) for row in rows]))
                for figure in FIGURES
            }
            for size in rows[0]
        }

    entry.of_seeds[iou_type] = rows
    entry.figures[iou_type] = each(np.mean)
    if len(rows) > 1:
        entry.stds[iou_type] = each(functools.partial(np.std, ddof=1))


def _evaluate_files(
    report: Gathered,
    entry: Entry,
    iou_type: str,
    annotations: Path,
    files: Mapping[int, Path],
    paired: bool,
    progress: Progress,
) -> None:
    key = (entry.first.data.val_sha256, iou_type)
    if key not in report.truths:
        progress.stage(f"reading {annotations}")
        truth = load_ground_truth(annotations, iou_type)
        weights = draw(len(truth.image_ids), report.replicates, report.seed)
        report.truths[key] = (truth, weights)
    truth, weights = report.truths[key]
    results, of_seeds, seen = [], [], {}
    for number, path in files.items():
        name = entry.name if len(files) == 1 else f"{entry.name}, seed {number}"
        progress.stage(f"evaluating {name}")
        found = load_detections(path, truth)
        check_different(found, seen, name)
        results.append(evaluate_found(truth, found, report.settings, name))
        results[-1].conditions.notes.extend(doubts(results[-1]))
        if paired:
            advance = progress.stage(f"resampling {name}", report.replicates)
            of_seeds.append(resample(truth, found, report.settings, weights, advance=advance))
        if iou_type == "bbox":
            entry.found.setdefault(iou_type, found)
    run = entry.runs[iou_type] = Run(name=entry.name, results=tuple(results))
    entry.samples[iou_type] = of_seeds
    rows = [{size: {f: x[f] for f in FIGURES} for size, x in r.rows()} for r in run.results]
    _take(entry, iou_type, rows)


def compare_rows(report: Gathered, progress: Progress) -> None:
    """Compares each row with its baseline, and corrects the p-values over the rows (Holm)."""
    for entry in report.done:
        base = entry.base
        entry.why = entry.why or _why_not(entry)
        if base is None or entry.why:
            continue
        for iou_type, run in entry.runs.items():
            if iou_type not in base.runs:
                continue
            progress.stage(f"comparing {entry.name}")
            truth, _ = report.truths[entry.first.data.val_sha256, iou_type]
            entry.comparisons[iou_type] = compare_runs(
                truth,
                report.settings,
                base.runs[iou_type],
                run,
                base.samples[iou_type],
                entry.samples[iou_type],
                replicates=report.replicates,
                seed=report.seed,
                level=LEVEL,
            )
        if "bbox" not in entry.comparisons:
            gone = entry.gone.get("bbox") or base.gone.get("bbox") or "no box figures of both"
            entry.why = (
                f"boxes not compared: {gone}" if entry.comparisons else f"not compared: {gone}"
            )
    for iou_type in IOU_TYPES:
        having = [x for x in report.entries if iou_type in x.comparisons]
        for size in having[0].comparisons[iou_type].differences if having else ():
            p = holm([x.comparisons[iou_type].differences[size]["AP"].p for x in having])
            for x, value in zip(having, p, strict=True):
                x.adjusted.setdefault(iou_type, {})[size] = float(value)


def _why_not(entry: Entry) -> str:
    base = entry.base
    if base is None:
        return ""
    if not base.outcomes:
        return f"its baseline is not there yet ({base.state})"
    if base.mixed:
        return "not compared: the seeds of its baseline were run on different data"
    if entry.checksums != base.checksums:
        what = [
            name
            for name, mine, other in zip(
                ("training", "test"), entry.checksums, base.checksums, strict=True
            )
            if mine != other
        ]
        return (
            f"not compared: its {' and '.join(what)} data are not those of its baseline "
            "(other checksums)"
        )
    return ""


def images_of(report: Gathered, folder: Path, progress: Progress) -> list[Any]:
    """Where rows differ most from their baselines, of the first seeds."""
    from mmattn.evaluation.differences import differing_images
    from mmattn.evaluation.drawing import draw_all
    from mmattn.evaluation.overlaps import overlaps
    from mmattn.evaluation.page import ImageGroup, _image_groups
    from mmattn.evaluation.page import Report as Page

    groups = []
    for entry in report.compared:
        progress.stage(f"images of {entry.name}")
        truth, _ = report.truths[entry.first.data.val_sha256, "bbox"]
        pair = [(x.name, x.found["bbox"]) for x in (entry.base, entry)]
        chosen = differing_images(
            truth, *((name, x, overlaps(truth, x)) for name, x in pair), number=NUM_IMAGES
        )
        drawn = draw_all(chosen, truth, *(x for _, x in pair), folder)
        groups.append(ImageGroup(heading=f"{entry.name} against {entry.base.name}", images=drawn))
    return _image_groups(Page(images=groups))
