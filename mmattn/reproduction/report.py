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
import functools
import hashlib
import importlib.metadata
import importlib.resources
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from mmattn._version import __version__
from mmattn.evaluation.bins import MAX_SIZE, parse_bins
from mmattn.evaluation.bootstrap import draw
from mmattn.evaluation.checks import check_different, check_resampling
from mmattn.evaluation.comparison import (
    VERDICT_IMAGES,
    Comparison,
    Settings,
    compare_runs,
    evaluate_found,
    resample,
)
from mmattn.evaluation.data import IOU_TYPES, Detections, load_detections, load_ground_truth
from mmattn.evaluation.evaluator import doubts, parse_iou_thrs
from mmattn.evaluation.files import write_text
from mmattn.evaluation.progress import Progress
from mmattn.evaluation.result import FIGURES, to_json
from mmattn.evaluation.run import Run
from mmattn.evaluation.statistics import holm
from mmattn.evaluation.table import notes as notes_of

if TYPE_CHECKING:
    from mmattn.reproduction.table import Row, Table

FORMAT = 1
LEVEL = 0.95
NUM_IMAGES = 4
MINUS, NOT_AVAILABLE = "\N{MINUS SIGN}", "n/a"
SHORT = {"all": "AP", "small": "AP small", "medium": "AP medium", "large": "AP large"}
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
EACH_ALONE = "Each row alone: corrected for the number of sizes and not for the number of rows."
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
    entries = _read(table, results, states or {})
    settings = Settings(bins=parse_bins(None), iou_thrs=parse_iou_thrs(None), max_dets=100)
    with Progress() as progress:
        report = _Report(table, entries, settings, replicates, seed)
        _evaluate(report, progress)
        _compare(report, progress)
        shown = _images(report, images, progress) if images is not None else []
        progress.stage("drawing")
        pictures = _pictures(report)
        tables = _tables(report)
        texts = {
            "report.json": to_json(_json(report)),
            "report.html": _html(report, tables, pictures, shown),
            "report.md": _markdown(report, tables, pictures),
        }
        return _write(Path(out), texts, pictures)


class _Data(msgspec.Struct):
    annotations: str
    val_sha256: str
    train_sha256: str | None = None
    images: int | None = None
    train_images: int | None = None


class _Hardware(msgspec.Struct):
    device: str
    processes: int = 1
    images_per_update: int | None = None

    def __str__(self) -> str:
        return self.device if self.processes == 1 else f"{self.processes} x {self.device}"


class _Cost(msgspec.Struct):
    params: int | None = None
    flops: float | None = None
    shape: list[int] | None = None


class Outcome(msgspec.Struct):
    """The content of a ``result.json``; other keys may be there and are not read."""

    format: int
    table: str
    row: str
    seed: int
    config: str
    code: str
    versions: dict[str, str | None]
    data: _Data
    hardware: _Hardware
    predictions: dict[str, str]
    figures: dict[str, dict[str, dict[str, float | None]]]
    options: dict[str, Any] = {}
    git_commit: str | None = None
    git_dirty: bool | None = None
    started: str | None = None
    finished: str | None = None
    train_seconds: float | None = None
    attempts: int = 1
    checkpoint: str | None = None
    cost: _Cost = msgspec.field(default_factory=_Cost)

    @property
    def checksums(self) -> tuple[str | None, str]:
        """What the data are known by."""
        return self.data.train_sha256, self.data.val_sha256

    @property
    def images_per_second(self) -> float:
        """Trained images a second, nan where the result does not say how many there were."""
        last = re.search(r"(iter|epoch)_(\d+)\.pth$", self.checkpoint or "")
        of_each = last and {
            "iter": self.hardware.images_per_update,
            "epoch": self.data.train_images,
        }.get(last[1])
        # what a run that was interrupted did again is in its time
        if not of_each or not self.train_seconds or self.attempts > 1:
            return math.nan
        return int(last[2]) * of_each / self.train_seconds


class _Kind(msgspec.Struct):
    format: Any = None


def read_outcome(path: Path) -> Outcome:
    """Reads a ``result.json``.

    Raises:
        ValueError: It is not there, is cut off, or is of another format.
    """
    again = "remove it and run the table again"
    try:
        content = Path(path).read_bytes()
        kind = msgspec.json.decode(content, type=_Kind)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ValueError(f"{path} is no result of a run, or is cut off: {again}") from None
    if kind.format != FORMAT:
        raise ValueError(
            f"{path} has the format {kind.format!r}, and mmattn {__version__} reads {FORMAT}: "
            f"report with the version that ran it, or {again}"
        )
    try:
        return msgspec.json.decode(content, type=Outcome)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is no whole result of a run ({error}): {again}") from None


@dataclasses.dataclass(eq=False)
class _Entry:
    """A row of the table and what became of it.

    ``figures``, ``stds`` and ``of_seeds`` are by IoU type, then by 'all' or bin; those of a row
    without prediction files are what its results say, and ``why`` says why it is not compared.
    """

    row: Row
    name: str
    state: str
    outcomes: dict[int, Outcome]
    folders: dict[int, Path]
    base: _Entry | None = None
    figures: dict[str, dict] = dataclasses.field(default_factory=dict)
    stds: dict[str, dict] = dataclasses.field(default_factory=dict)
    of_seeds: dict[str, list[dict]] = dataclasses.field(default_factory=dict)
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    samples: dict[str, list] = dataclasses.field(default_factory=dict)
    found: dict[str, Detections] = dataclasses.field(default_factory=dict)
    comparisons: dict[str, Comparison] = dataclasses.field(default_factory=dict)
    adjusted: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    gone: dict[str, str] = dataclasses.field(default_factory=dict)
    why: str = ""
    mixed: bool = False

    @property
    def first(self) -> Outcome | None:
        return next(iter(self.outcomes.values()), None)

    @property
    def checksums(self) -> tuple[str | None, str] | None:
        return self.first.checksums if self.outcomes and not self.mixed else None

    def mean(self, of: Callable[[Outcome], float | None]) -> float:
        """Mean over the seeds, nan where one does not say."""
        values = [of(x) for x in self.outcomes.values()]
        return float(np.mean(values)) if values and None not in values else math.nan


@dataclasses.dataclass(eq=False)
class _Report:
    table: Table
    entries: list[_Entry]
    settings: Settings
    replicates: int
    seed: int
    notes: list[str] = dataclasses.field(default_factory=list)
    truths: dict[tuple[str, str], Any] = dataclasses.field(default_factory=dict)

    @property
    def done(self) -> list[_Entry]:
        return [x for x in self.entries if x.outcomes]

    @property
    def compared(self) -> list[_Entry]:
        return [x for x in self.entries if "bbox" in x.comparisons]

    @property
    def masks(self) -> bool:
        """Whether there are masks, or will be: a source has published them."""
        published = (y.figures for x in self.entries for y in x.row.published)
        return any("segm" in x.figures for x in self.entries) or any(
            "mask_ap" in figures for figures in published
        )

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(x.row.label for x in self.entries))

    @functools.cached_property
    def warnings(self) -> list[str]:
        return list(_warnings(self))

    @functools.cached_property
    def answer(self) -> list[str]:
        return list(_answer(self))


def _read(
    table: Table,
    results: Mapping[str, Mapping[int, Path]],
    states: Mapping[str, Mapping[int, str]],
) -> list[_Entry]:
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
        entries[row.name] = _Entry(row, name, state, outcomes, folders)
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


def _evaluate(report: _Report, progress: Progress) -> None:
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


def _annotations(report: _Report) -> dict[str, tuple[Path | None, str]]:
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


def _recorded(report: _Report, entry: _Entry, iou_type: str, missing: str) -> None:
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


def _take(entry: _Entry, iou_type: str, rows: list[dict]) -> None:
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
    report: _Report,
    entry: _Entry,
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


def _compare(report: _Report, progress: Progress) -> None:
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


def _why_not(entry: _Entry) -> str:
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


def _images(report: _Report, folder: Path, progress: Progress) -> list[Any]:
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


# ---- what is said


def _pairs(entry: _Entry) -> tuple[int, int]:
    """Seeds of the row and of its baseline."""
    return len(entry.outcomes), len(entry.base.outcomes)


def _answer(report: _Report) -> Iterator[str]:
    total, done = len(report.entries), sum(x.state == "done" for x in report.entries)
    begun = len(report.done) - done
    if not report.done:
        yield f"Nothing of this table was run yet: its {total} rows are empty."
        return
    part = f", {begun} in part" if begun else ""
    yield f"{done} of {_count(total, 'row')} {'is' if done == 1 else 'are'} done{part}."
    compared = report.compared
    if not compared:
        yield "No row can be compared with its baseline yet."
        return
    kinds: dict[str, list[str]] = {"higher": [], "lower": [], "": [], "few": [], "none": []}
    for x in compared:
        comparison, p = x.comparisons["bbox"], x.adjusted["bbox"]["all"]
        if math.isnan(p):
            kinds["none"].append(x.name)
        elif comparison.num_images["all"] < VERDICT_IMAGES:
            kinds["few"].append(x.name)
        elif p > 1 - LEVEL + 1e-9:
            kinds[""].append(x.name)
        else:
            kinds["higher" if comparison.ap.value > 0 else "lower"].append(x.name)
    said = {
        "higher": "AP is higher",
        "lower": "lower",
        "": "no difference is shown",
        "few": f"no verdict, as fewer than {VERDICT_IMAGES} images have objects",
        "none": "there is no interval, as too little varies",
    }
    number = len(compared)
    parts = [
        f"{text} in {len(kinds[kind])}" + (f" ({_names(kinds[kind])})" if kinds[kind] else "")
        for kind, text in said.items()
        if kinds[kind] or kind in ("higher", "lower", "")
    ]
    corrected = f", at p below {1 - LEVEL:.2f} corrected for {number} rows (Holm)"
    yield (
        f"Of {_count(number, 'row')} compared, each with its own baseline: {'; '.join(parts)}"
        f"{corrected if number > 1 else ''}."
        f"{' Not shown is not the same as absent.' if kinds[''] else ''}"
    )
    single = [x for x in compared if min(_pairs(x)) == 1]
    if single:
        which = "every comparison" if len(single) == number else f"{len(single)} of {number}"
        yield (
            f"In {which} the row or its baseline was trained with one seed only. Such an interval "
            "covers the choice of test images, and does not contain the training's own chance: "
            "another seed of the same config may differ as much."
        )
    two = [x for x in compared if min(_pairs(x)) == 2]
    if two:
        which = "every comparison" if len(two) == number else f"{len(two)} of {number}"
        yield f"In {which} the fewest seeds are two, which say little about how seeds vary."
    # one after the other, or no p could ever be small enough
    least = 2 * len(single) / (report.replicates + 1)
    if least > 1 - LEVEL:
        yield (
            f"{report.replicates} resamples are too few for {len(single)} rows of one seed: no "
            f"corrected p can fall below {least:.2f}."
        )


def _warnings(report: _Report) -> Iterator[str]:
    """What keeps the rows from being alike."""
    of = functools.partial(_by_value, report.done)
    for what, key in (
        ("code", lambda x: x.code[:12]),
        ("hardware", lambda x: str(x.hardware)),
        ("training data", lambda x: _checksum(x.data.train_sha256)),
        ("test data", lambda x: _checksum(x.data.val_sha256)),
    ):
        if len(values := of(key)) > 1:
            told = "; ".join(f"{value} in {_names(names)}" for value, names in values.items())
            yield f"These results are not of one {what}: {told}."
    names = dict.fromkeys(n for x in report.done for o in x.outcomes.values() for n in o.versions)
    for name in names:
        values = of(lambda x, name=name: x.versions.get(name) or "no version")
        if len(values) > 1:
            told = "; ".join(f"{value} in {_names(rows)}" for value, rows in values.items())
            yield f"These results are not of one version of {name}: {told}."


def _remarks(entry: _Entry) -> Iterator[str]:
    """In what else a row differs from its baseline."""
    pair = [list(x.outcomes.values()) for x in (entry, entry.base)]

    def differ(key: Callable[[Outcome], Any]) -> bool:
        mine, other = ({repr(key(x)) for x in outcomes} for outcomes in pair)
        return mine != other or len(mine) > 1

    for what, key in (
        ("other code", lambda x: x.code),
        ("other versions", lambda x: sorted(x.versions.items())),
        ("other hardware", lambda x: str(x.hardware)),
        ("other number of images an update", lambda x: x.hardware.images_per_update),
        ("other options", lambda x: sorted(x.options.items())),
    ):
        if differ(key):
            yield what


def _conditions(report: _Report) -> Iterator[str]:
    of = functools.partial(_by_value, report.done)

    def told(what: str, key: Callable[[Outcome], str | None]) -> Iterator[str]:
        values = of(key)
        if len(values) == 1 and None not in values:
            yield f"{what}: {next(iter(values))}."
        elif len(values) > 1:
            parts = [f"{value or 'none'} ({_names(names)})" for value, names in values.items()]
            yield f"{what}: {'; '.join(parts)}."

    yield from told("Data to train on", _training_data)
    yield from told("Data to test on", _test_data)
    yield from told("Hardware", lambda x: str(x.hardware))
    yield from told("Images an update", lambda x: _text(x.hardware.images_per_update))
    yield from told("Code", lambda x: f"{x.code[:12]} (checksum of mmattn's training code)")
    yield from told("git commit", _commit)
    yield from told("Versions of the runs", _versions)
    yield from told("Options over the configs", lambda x: _options(x.options))
    times = [x for e in report.done for o in e.outcomes.values() for x in (o.started, o.finished)]
    if times and None not in times:
        yield f"Run from {min(times)} to {max(times)}."
    bins = ", ".join(
        f"{x.name} from {x.low:g}" + (f" to {x.high:g}" if x.high < MAX_SIZE else " on")
        for x in report.settings.bins
    )
    if report.done:
        yield (
            f"Evaluation: mmattn {__version__}, hotcoco {importlib.metadata.version('hotcoco')}; "
            f"sizes by the annotation's area in px²: {bins}."
        )
    if report.compared:
        yield (
            f"Intervals: {100 * LEVEL:g} %, paired bootstrap over images, "
            f"{report.replicates:,} resamples, seed {report.seed}; where a run has several seeds, "
            "also their spread."
        )


def _notes(report: _Report) -> Iterator[str]:
    yield from report.notes
    results = [x for e in report.entries for run in e.runs.values() for x in run.results]
    for iou_type in IOU_TYPES:
        if of_type := [x for x in results if x.conditions.iou_type == iou_type]:
            yield from notes_of(of_type)[1:]
    for x in report.entries:
        if x.row.note:
            yield f"{x.name}: {x.row.note}"
    published = [y for x in report.entries for y in x.row.published]
    for y in dict.fromkeys((x.source.name, x.note) for x in published if x.note):
        yield f"{y[0]}: {y[1]}"


def _by_value(entries: Iterable[_Entry], key: Callable[[Outcome], Any]) -> dict[Any, list[str]]:
    """Value -> names of the rows that have it."""
    values: dict[Any, list[str]] = {}
    for entry in entries:
        for outcome in entry.outcomes.values():
            names = values.setdefault(key(outcome), [])
            if entry.name not in names:
                names.append(entry.name)
    return values


def _names(names: Sequence[str], most: int = 6) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _checksum(value: str | None) -> str:
    return "unknown" if value is None else value[:12]


def _training_data(x: Outcome) -> str:
    images = "" if x.data.train_images is None else f"{_count(x.data.train_images, 'image')}, "
    return f"{images}SHA-256 of the annotations {_checksum(x.data.train_sha256)}"


def _test_data(x: Outcome) -> str:
    images = "" if x.data.images is None else f"{_count(x.data.images, 'image')}, "
    name = Path(x.data.annotations).name
    return f"{name}, {images}SHA-256 {_checksum(x.data.val_sha256)}"


def _commit(x: Outcome) -> str | None:
    if x.git_commit is None:
        return None
    return x.git_commit[:12] + (" with uncommitted changes" if x.git_dirty else "")


def _versions(x: Outcome) -> str:
    return ", ".join(f"{name} {version or 'none'}" for name, version in x.versions.items())


def _options(options: Mapping[str, Any]) -> str | None:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or None


# ---- tables


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
class _Table:
    id: str
    title: str
    columns: Sequence[tuple[str, bool]]  # head, whether numbers
    lines: Sequence[_Line]
    caption: str
    groups: Sequence[tuple[str, int]] = ()


def _tables(report: _Report) -> list[_Table]:
    tables = [_main_table(report)]
    if any(x.base for x in report.entries):
        tables.append(_difference_table(report))
    tables.append(_cost_table(report))
    tables.append(_runs_table(report))
    return tables


def _lines(entries: Iterable[_Entry], of: Callable[[_Entry], list[list[_Cell]]]) -> list[_Line]:
    """Lines of the rows below their headings."""
    lines, before = [], ""
    for entry in entries:
        if entry.row.group and entry.row.group != before:
            lines.append(_Line(heading=entry.row.group))
        before = entry.row.group
        lines += [_Line(cells, more=n > 0) for n, cells in enumerate(of(entry))]
    return lines


def _main_table(report: _Report) -> _Table:
    ours = ["AP", "AP50", "AP75", "small", "medium", "large"]
    if report.masks:
        ours.append("mask AP")

    def cells(entry: _Entry) -> list[list[_Cell]]:
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
    return _Table(
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


def _gains(published: Any) -> Iterator[tuple[str, str, str, float]]:
    """(figure, source, size, published gain in points) where its source has a baseline."""
    for key, (name, size) in REPORTED.items():
        if published.baseline is None or not size:
            continue
        pair = [x.figures.get(key) for x in (published, published.baseline)]
        if None not in pair:
            yield name, published.source.key, size, pair[0] - pair[1]


def _difference_table(report: _Report) -> _Table:
    entries = [x for x in report.entries if x.base]
    sizes = list(SHORT)
    reported = any(True for x in entries for y in x.row.published for _ in _gains(y))

    def cells(entry: _Entry) -> list[list[_Cell]]:
        row = [_Cell(entry.row.label, number=False), _Cell(entry.base.row.label, number=False)]
        if reported:
            gains = [
                f"{name} {_signed(gain, 1)} ({source})"
                for y in entry.row.published
                for name, source, _, gain in _gains(y)
            ]
            row.append(_Cell(gains[0], gains[1:], joint=", ") if gains else _Cell())
        row += [_difference(report, entry, "bbox", size) for size in sizes]
        if report.masks:
            row.append(_difference(report, entry, "segm", "all"))
        if entry.comparisons:
            mine, other = _pairs(entry)
            covers = "images only" if min(mine, other) == 1 else "images and trainings"
            row.append(_Cell(f"{mine} and {other}", [covers], joint=", "))
            remarks = [entry.why] * bool(entry.why) + list(_remarks(entry))
            return [[*row, _Cell(", ".join(remarks), number=False)]]
        why = entry.why if entry.outcomes else entry.state
        return [[*row, _Cell(), _Cell(why, number=False)]]

    columns = [("row", False), ("against", False)] + [("reported gain", True)] * reported
    columns += [(SHORT[size], True) for size in sizes] + [("mask AP", True)] * report.masks
    return _Table(
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


def _cost_table(report: _Report) -> _Table:
    published = any(y.cost for x in report.entries for y in x.row.published)

    def cells(entry: _Entry) -> list[list[_Cell]]:
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
    shapes = _by_value(report.done, lambda x: " x ".join(map(str, x.cost.shape or ())) or None)
    of = "; ".join(
        f"{shape} px" + (f" ({_names(names)})" if len(shapes) > 1 else "")
        for shape, names in shapes.items()
        if shape
    )
    return _Table(
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


def _runs_table(report: _Report) -> _Table:
    def cells(entry: _Entry) -> list[list[_Cell]]:
        values = (
            _shown_config(entry.first.config if entry.first else entry.row.config),
            ", ".join(map(str, entry.outcomes)),
            _options(entry.first.options if entry.first else entry.row.options) or "",
            "; ".join(dict.fromkeys(str(x.hardware) for x in entry.outcomes.values())),
        )
        texts = [_Cell(x, number=False) for x in values]
        return [[_Cell(entry.row.label, number=False), *texts]]

    heads = ("row", "config", "seeds done", "options over the config", "hardware")
    return _Table(
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


def _value(entry: _Entry, iou_type: str, size: str, figure: str) -> _Cell:
    if iou_type not in entry.figures:
        return _Cell()
    value = entry.figures[iou_type].get(size, {}).get(figure, math.nan)
    if math.isnan(value):
        return _Cell(NOT_AVAILABLE)
    std = entry.stds.get(iou_type, {}).get(size, {}).get(figure, math.nan)
    return _Cell(f"{100 * value:.1f}" + ("" if math.isnan(std) else f" ± {100 * std:.1f}"))


def _difference(report: _Report, entry: _Entry, iou_type: str, size: str) -> _Cell:
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


def _time_ratio(entry: _Entry) -> float:
    """Training time over the baseline's, nan where it says nothing."""
    if not (entry.outcomes and entry.base and entry.base.outcomes):
        return math.nan
    both = [*entry.outcomes.values(), *entry.base.outcomes.values()]
    if len({str(x.hardware) for x in both}) > 1:
        return math.nan
    times = [x.mean(lambda y: y.train_seconds) for x in (entry, entry.base)]
    return times[0] / times[1] if times[1] else math.nan


def _ratio(entry: _Entry) -> str:
    ratio = _time_ratio(entry)
    if not math.isnan(ratio):
        return f"{ratio:.2f} times"
    both = entry.outcomes and entry.base and entry.base.outcomes
    return "other hardware" if both and "other hardware" in _remarks(entry) else ""


def _reported_cost(cost: Mapping[str, float]) -> list[str]:
    known = {"params_m": "{:g} M parameters", "gflops": "{:g} GFLOPs"}
    return [text.format(cost[key]) for key, text in known.items() if key in cost]


# ---- pictures


class _Picture(NamedTuple):
    name: str
    title: str
    caption: str
    figure: Any


def _pictures(report: _Report) -> list[_Picture]:
    from mmattn.reproduction import report_pictures as draw_

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
        single = any(min(_pairs(x)) == 1 for x in report.compared)
        pictures.append(
            _Picture(
                "differences",
                "Difference to the own baseline, by size",
                f"All panels have one scale. {hollow}"
                + (
                    " Of rows with one seed, they do not contain the training's own chance."
                    if single
                    else ""
                ),
                draw_.plot_gains(gained, report.labels, LEVEL),
            )
        )
    if lines:
        pictures.append(
            _Picture(
                "ap",
                "AP by size",
                "A point of AP is equally long in all panels; they begin at different AP. The "
                "line leads from the row's own baseline to the row.",
                draw_.plot_ap(lines, report.labels),
            )
        )
    reported = [x for x in gained if _drawn_reports(x)]
    if reported:
        pictures.append(
            _Picture(
                "reported",
                "Reported gain and ours",
                "Each over its own baseline: the source's row over the source's baseline, ours "
                "over ours. The trainings need not be the same; see the conditions.",
                draw_.plot_reported(reported, report.labels, LEVEL),
            )
        )
    costly = [x for x in gained if x.added and math.isfinite(x.differences["all"].value)]
    if costly:
        pictures.append(
            _Picture(
                "cost",
                "Gain against cost",
                f"What a row adds to its baseline's cost, and to its AP. {hollow}",
                draw_.plot_cost(costly, report.labels, LEVEL),
            )
        )
    return pictures


def _picture_line(entry: _Entry) -> Any:
    from mmattn.reproduction.report_pictures import Line

    base, comparisons = entry.base, entry.comparisons
    figures, seeds = entry.figures["bbox"], entry.of_seeds["bbox"]
    added = {}
    if comparisons:
        for key, kind in (("params", "parameters"), ("flops", "FLOPs")):
            mine, other = (getattr(x.first.cost, key) for x in (entry, base))
            if mine is not None and other:
                added[kind] = mine / other - 1
        if not math.isnan(ratio := _time_ratio(entry)):
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
        reported=[gain for y in entry.row.published for gain in _gains(y)],
        added=added,
    )


def _drawn_reports(line: Any) -> bool:
    for _, _, size, _ in line.reported:
        ours = line.mask_difference if size == "mask" else line.differences.get(size)
        if ours is not None and math.isfinite(ours.value):
            return True
    return False


# ---- files


def _words(entry: _Entry) -> list[str]:
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


def _json(report: _Report) -> dict[str, Any]:
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
            "notes": list(_notes(report)),
            "rows": rows,
        }
    )


def _html(
    report: _Report, tables: list[_Table], pictures: list[_Picture], images: list[Any]
) -> str:
    import jinja2
    from markupsafe import Markup

    from mmattn.evaluation.plots import to_html

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = importlib.resources.files(__package__).joinpath("report.html.jinja")
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
        conditions=list(_conditions(report)),
        each_alone=EACH_ALONE,
        notes=list(_notes(report)),
        version=__version__,
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _markdown(report: _Report, tables: list[_Table], pictures: list[_Picture]) -> str:
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
        ("Conditions", _conditions(report)),
        ("Notes", _notes(report)),
    ):
        if lines := [f"- {_md(x)}" for x in sentences]:
            parts += [f"## {title}", "\n".join(lines)]
    text = "\n\n".join(parts) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")


def _md_table(table: _Table) -> str:
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


def _write(out: Path, texts: Mapping[str, str], pictures: list[_Picture]) -> list[Path]:
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
