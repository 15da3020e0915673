"""What the report says: the answer, warnings, conditions and notes."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.resources
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmattn._version import __version__
from mmattn.evaluation.bins import MAX_SIZE
from mmattn.evaluation.comparison import VERDICT_IMAGES
from mmattn.evaluation.data import IOU_TYPES
from mmattn.evaluation.table import notes as notes_of
from mmattn.reproduction.report.outcome import Outcome
from mmattn.reproduction.report.rows import LEVEL, Entry, Gathered, pairs

if TYPE_CHECKING:
    pass


MINUS, NOT_AVAILABLE = "\N{MINUS SIGN}", "n/a"
SHORT = {"all": "AP", "small": "AP small", "medium": "AP medium", "large": "AP large"}
EACH_ALONE = "Each row alone: corrected for the number of sizes and not for the number of rows."


def answer_of(report: Gathered) -> Iterator[str]:
    """What was found, first."""
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
        f"{text} in {len(kinds[kind])}" + (f" ({names_of(kinds[kind])})" if kinds[kind] else "")
        for kind, text in said.items()
        if kinds[kind] or kind in ("higher", "lower", "")
    ]
    corrected = f", at p below {1 - LEVEL:.2f} corrected for {number} rows (Holm)"
    yield (
        f"Of {_count(number, 'row')} compared, each with its own baseline: {'; '.join(parts)}"
        f"{corrected if number > 1 else ''}."
        f"{' Not shown is not the same as absent.' if kinds[''] else ''}"
    )
    single = [x for x in compared if min(pairs(x)) == 1]
    if single:
        which = "every comparison" if len(single) == number else f"{len(single)} of {number}"
        yield (
            f"In {which} the row or its baseline was trained with one seed only. Such an interval "
            "covers the choice of test images, and does not contain the training's own chance: "
            "another seed of the same config may differ as much."
        )
    two = [x for x in compared if min(pairs(x)) == 2]
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


def warnings_of(report: Gathered) -> Iterator[str]:
    """What keeps the rows from being alike."""
    of = functools.partial(by_value, report.done)
    for what, key in (
        ("code", lambda x: x.code[:12]),
        ("hardware", lambda x: str(x.hardware)),
        ("training data", lambda x: _checksum(x.data.train_sha256)),
        ("test data", lambda x: _checksum(x.data.val_sha256)),
    ):
        if len(values := of(key)) > 1:
            told = "; ".join(f"{value} in {names_of(names)}" for value, names in values.items())
            yield f"These results are not of one {what}: {told}."
    names = dict.fromkeys(n for x in report.done for o in x.outcomes.values() for n in o.versions)
    for name in names:
        values = of(lambda x, name=name: x.versions.get(name) or "no version")
        if len(values) > 1:
            told = "; ".join(f"{value} in {names_of(rows)}" for value, rows in values.items())
            yield f"These results are not of one version of {name}: {told}."


def remarks_of(entry: Entry) -> Iterator[str]:
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


def conditions_of(report: Gathered) -> Iterator[str]:
    """What was run: data, seeds, hardware, versions, code."""
    of = functools.partial(by_value, report.done)

    def told(what: str, key: Callable[[Outcome], str | None]) -> Iterator[str]:
        values = of(key)
        if len(values) == 1 and None not in values:
            yield f"{what}: {next(iter(values))}."
        elif len(values) > 1:
            parts = [f"{value or 'none'} ({names_of(names)})" for value, names in values.items()]
            yield f"{what}: {'; '.join(parts)}."

    yield from told("Data to train on", _training_data)
    yield from told("Data to test on", _test_data)
    yield from told("Hardware", lambda x: str(x.hardware))
    yield from told("Images an update", lambda x: _text(x.hardware.images_per_update))
    yield from told("Code", lambda x: f"{x.code[:12]} (checksum of mmattn's training code)")
    yield from told("git commit", _commit)
    yield from told("Versions of the runs", _versions)
    yield from told("Options over the configs", lambda x: options_of(x.options))
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


def notes_of_report(report: Gathered) -> Iterator[str]:
    """What else a reader has to know, below everything."""
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


def by_value(entries: Iterable[Entry], key: Callable[[Outcome], Any]) -> dict[Any, list[str]]:
    """Value -> names of the rows that have it."""
    values: dict[Any, list[str]] = {}
    for entry in entries:
        for outcome in entry.outcomes.values():
            names = values.setdefault(key(outcome), [])
            if entry.name not in names:
                names.append(entry.name)
    return values


def names_of(names: Sequence[str], most: int = 6) -> str:
    """Names in a sentence; of many, the first and how many more."""
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


def options_of(options: Mapping[str, Any]) -> str | None:
    """Options as on a command line, None if there are none."""
    return ", ".join(f"{key}={value}" for key, value in options.items()) or None
