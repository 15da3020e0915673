"""What is wrong with a COCO data set, found before a training finds it."""

from __future__ import annotations

import hashlib
import itertools
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mmattn.datasets import coco_files
from mmattn.datasets.coco_files import Split
from mmattn.datasets.images import Inspected, inspect
from mmattn.evaluation.progress import Progress

# what can be wrong -> what follows from it
KINDS = {
    "file": "an annotation file or a folder is not there or cannot be read",
    "count": "COCO 2017 has other numbers of images or categories",
    "missing image": "the file is not there",
    "truncated image": "the file is cut off",
    "unreadable image": "the file is no image that can be decoded",
    "image size": "the image is not as large as its annotation says",
    "duplicate id": "two images, objects or categories have one id, or two images one file",
    "unknown reference": "an object of an image or category that is not listed",
    "bad record": "a field is not there, or is not what it must be",
    "empty box": "a box without width or height: mmdet leaves the object out of the training",
    "box outside": "a box reaches out of its image",
    "area": "an area is not above 0, or larger than the box",
}
COCO_2017 = {"train2017": 118_287, "val2017": 5_000}
CATEGORIES = 80
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
_WORTH_PROCESSES = 500  # images; starting a process takes as long as decoding a hundred


class Problem(NamedTuple):
    """One thing that is wrong; ``kind`` is of :data:`KINDS`."""

    kind: str
    split: str
    where: str
    what: str


@dataclass
class SplitReport:
    """What a split has.

    Attributes:
        name: The split.
        annotations: The file.
        images_in: The folder.
        sha256: Of the annotation file.
        images: How many it lists.
        objects: How many annotations it lists, crowds among them.
        crowds: How many of these are crowds.
        categories: How many it lists.
        decoded: How many images were decoded.
        notes: What is no mistake, and good to know.
    """

    name: str
    annotations: str
    images_in: str
    sha256: str | None = None
    images: int = 0
    objects: int = 0
    crowds: int = 0
    categories: int = 0
    decoded: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What :func:`check` found."""

    splits: list[SplitReport]
    problems: list[Problem]

    def counts(self) -> dict[str, int]:
        """How often each kind was found, in the order of :data:`KINDS`."""
        counter = Counter(problem.kind for problem in self.problems)
        return {kind: counter[kind] for kind in KINDS if counter[kind]}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": 1,
            "ok": not self.problems,
            "counts": self.counts(),
            "splits": [vars(split) for split in self.splits],
            "problems": [problem._asdict() for problem in self.problems],
        }


class _Image(msgspec.Struct, gc=False):
    id: Any = None
    file_name: Any = None
    width: Any = None
    height: Any = None


class _Annotation(msgspec.Struct):
    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    area: Any = None
    iscrowd: Any = None


class _Category(msgspec.Struct, gc=False):
    id: Any = None
    name: Any = None


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def check(
    splits: Sequence[Split],
    *,
    complete: bool = False,
    decode: bool = True,
    tolerance: float = 1.0,
    ignore: Iterable[str] = (),
    jobs: int | None = None,
) -> Report:
    """Checks annotation files, and decodes every image in full.

    Args:
        splits: What to check.
        complete: Whether the splits must be the whole of COCO 2017, and not a part of it.
        decode: Whether images are decoded; without, only their presence is checked.
        tolerance: px that a box may reach out of its image.
        ignore: Kinds of problems that are none here.
        jobs: Processes; if None one for each core, eight at most.

    Raises:
        ValueError: ``ignore`` names a kind that there is not, or a number makes no sense.
    """
    ignore = set(ignore)
    if unknown := ignore - KINDS.keys():
        raise ValueError(f"{sorted(unknown)[0]!r} is no kind of problem; expected {_list(KINDS)}")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be px from 0 on, got {tolerance}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    reports, problems, listed = [], [], {}
    with Progress() as progress:
        for split in splits:
            progress.stage(f"reading {split.annotations.name}")
            report, file, found = _read(split)
            reports.append(report)
            problems += found
            if file is None:
                continue
            problems += _check_counts(split, report, complete)
            problems += _check_images(split.name, file.images)
            problems += _check_categories(split.name, file.categories)
            problems += _check_annotations(split.name, file, tolerance)
            problems += _check_files(split, report, file.images, decode, jobs, progress)
            names = {x.file_name for x in file.images if isinstance(x.file_name, str)}
            listed.setdefault(split.images.resolve(), []).append((report, names))
    for folder, owners in listed.items():
        _note_others(folder, owners)
    return Report(reports, [problem for problem in problems if problem.kind not in ignore])


def _read(split: Split) -> tuple[SplitReport, _File | None, list[Problem]]:
    report = SplitReport(split.name, str(split.annotations), str(split.images))
    problems = []
    if not split.images.is_dir():
        where, what = str(split.images), "this folder of images does not exist"
        problems.append(Problem("file", split.name, where, what))
    try:
        content = coco_files.read(split.annotations)
    except (OSError, ValueError) as error:
        what = str(error).removeprefix(f"annotation file {split.annotations} ")
        return report, None, [*problems, Problem("file", split.name, str(split.annotations), what)]
    report.sha256 = hashlib.sha256(content).hexdigest()
    try:
        file = msgspec.json.decode(content, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        what = f"is no COCO annotation file ({len(content):,} bytes): {error}"
        return report, None, [*problems, Problem("file", split.name, str(split.annotations), what)]
    report.images, report.objects = len(file.images), len(file.annotations)
    report.categories = len(file.categories)
    report.crowds = sum(bool(x.iscrowd) for x in file.annotations)
    return report, file, problems


def _check_counts(split: Split, report: SplitReport, complete: bool) -> Iterator[Problem]:
    expected = COCO_2017.get(split.name) if coco_files.is_complete_coco(split) else None
    if expected is None:
        if complete:
            what = f"is none of {_list(COCO_2017)}"
            yield Problem("count", split.name, str(split.annotations), what)
        return
    numbers = f"{report.images:,} images and {report.categories} categories"
    if (report.images, report.categories) == (expected, CATEGORIES):
        report.notes.append(f"{numbers}, as COCO 2017 has")
    elif complete:
        what = f"{numbers}, expected {expected:,} and {CATEGORIES}"
        yield Problem("count", split.name, str(split.annotations), what)
    else:
        report.notes.append(f"{numbers}: not the whole of COCO 2017 ({expected:,}, {CATEGORIES})")


def _check_images(split: str, images: list[_Image]) -> Iterator[Problem]:
    for i, x in enumerate(images):
        if not _is_id(x.id) or not isinstance(x.file_name, str) or not x.file_name:
            what = f"expected an id and a file_name, got {x.id!r} and {x.file_name!r}"
            yield Problem("bad record", split, f"images[{i}]", what)
        elif not all(_is_number(side) and side > 0 for side in (x.width, x.height)):
            what = f"expected width and height in px, got {x.width!r} and {x.height!r}"
            yield Problem("bad record", split, f"image {x.file_name}", what)
    yield from _duplicates(split, "image", images)
    names = Counter(x.file_name for x in images if isinstance(x.file_name, str))
    for name in (name for name, number in names.items() if number > 1):
        what = f"the file is listed {names[name]} times"
        yield Problem("duplicate id", split, f"image {name}", what)


def _check_categories(split: str, categories: list[_Category]) -> Iterator[Problem]:
    for i, x in enumerate(categories):
        if not _is_id(x.id) or not isinstance(x.name, str):
            what = f"expected an id and a name, got {x.id!r} and {x.name!r}"
            yield Problem("bad record", split, f"categories[{i}]", what)
    yield from _duplicates(split, "category", categories)


def _duplicates(split: str, what: str, records: list[Any]) -> Iterator[Problem]:
    ids = Counter(x.id for x in records if _is_id(x.id))
    for one in (one for one, number in ids.items() if number > 1):
        yield Problem("duplicate id", split, f"{what} {one!r}", f"the id comes {ids[one]} times")


def _check_annotations(split: str, file: _File, tolerance: float) -> Iterator[Problem]:
    images = {x.id: x for x in file.images if _is_id(x.id)}
    categories = {x.id for x in file.categories if _is_id(x.id)}
    for i, x in enumerate(file.annotations):
        where = f"annotation {x.id!r}" if _is_id(x.id) else f"annotations[{i}]"
        if not _is_id(x.id):
            yield Problem("bad record", split, where, f"expected an id, got {x.id!r}")
        if x.iscrowd not in (0, 1):
            what = f"iscrowd must be 0 or 1, got {x.iscrowd!r}"
            yield Problem("bad record", split, where, what)
        for key, one, known in (
            ("image_id", x.image_id, images),
            ("category_id", x.category_id, categories),
        ):
            if not _is_id(one) or one not in known:
                yield Problem("unknown reference", split, where, f"{key} {one!r} is not listed")
        image = images.get(x.image_id) if _is_id(x.image_id) else None
        if image is not None and isinstance(image.file_name, str):
            where += f" ({image.file_name})"
        kind, what = _box_problem(x.bbox, image, tolerance)
        if kind:
            yield Problem(kind, split, where, what)
        if not _is_number(x.area):
            what = f"area must be a number of px^2, got {x.area!r}"
            yield Problem("bad record", split, where, what)
        elif x.area <= 0:
            yield Problem("area", split, where, f"area must be above 0, got {x.area:g}")
        elif kind in (None, "box outside") and x.area > (x.bbox[2] + 1) * (x.bbox[3] + 1):
            what = f"area {x.area:g} in a box of {x.bbox[2]:g} x {x.bbox[3]:g}"
            yield Problem("area", split, where, what)
    yield from _duplicates(split, "annotation", file.annotations)


def _box_problem(
    box: Any, image: _Image | None, tolerance: float
) -> tuple[str, str] | tuple[None, None]:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return "bad record", f"bbox must be [x, y, width, height], numbers, got {box!r}"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "empty box", f"width and height are {width:g} and {height:g}"
    if image is None or not (_is_number(image.width) and _is_number(image.height)):
        return None, None
    over = max(-x, -y, x + width - image.width, y + height - image.height)
    if over <= tolerance:
        return None, None
    text = ", ".join(f"{value:g}" for value in box)
    return "box outside", (
        f"[{text}] reaches {over:g} px out of {image.width:g} x {image.height:g}"
    )


def _check_files(
    split: Split,
    report: SplitReport,
    images: list[_Image],
    decode: bool,
    jobs: int | None,
    progress: Progress,
) -> Iterator[Problem]:
    if not split.images.is_dir():
        return
    images = [x for x in images if isinstance(x.file_name, str) and x.file_name]
    paths = [os.path.join(split.images, x.file_name) for x in images]
    step = progress.stage(f"{'decoding' if decode else 'looking for'} {split.name}", len(paths))
    for x, found in zip(images, _inspect_all(paths, decode, jobs), strict=True):
        step(1)
        where = f"image {x.file_name}"
        if found.kind:
            kind = found.kind + " image"
            yield Problem(kind, split.name, where, found.why)
        elif decode:
            report.decoded += 1
            if _is_number(x.width) and _is_number(x.height) and found.size != (x.width, x.height):
                turn = ", turned by its EXIF orientation" if found.turned else ""
                what = (
                    f"is {found.size[0]} x {found.size[1]} px{turn}; its annotation says "
                    f"{x.width:g} x {x.height:g}"
                )
                yield Problem("image size", split.name, where, what)


def _inspect_all(paths: list[str], decode: bool, jobs: int | None) -> Iterator[Inspected]:
    if not decode:
        for path in paths:
            there = os.path.isfile(path)
            yield Inspected(None) if there else Inspected("missing", "does not exist")
        return
    if jobs is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jobs = min(8, cores or 1) if len(paths) >= _WORTH_PROCESSES else 1
    if jobs == 1:
        yield from map(inspect, paths)
        return
    # no fork: the progress bar has a thread
    executor = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from executor.map(inspect, paths, chunksize=16)
    except BrokenProcessPool:
        raise ValueError(
            "a process that decodes images was killed, by the system for its memory, perhaps; "
            "go on with fewer: --jobs 1"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _note_others(folder: Path, owners: list[tuple[SplitReport, set[str]]]) -> None:
    for (first, a), (second, b) in itertools.combinations(owners, 2):
        if both := a & b:
            second.notes.append(
                f"{len(both)} of its images are in {first.name}, too, such as {min(both)}"
            )
    if not folder.is_dir():
        return
    known = set().union(*(names for _, names in owners))
    with os.scandir(folder) as entries:
        others = [
            e.name
            for e in entries
            if e.name not in known and Path(e.name).suffix.lower() in SUFFIXES
        ]
    if others:
        owners[0][0].notes.append(
            f"{len(others):,} more image{'s' * (len(others) > 1)} in {folder.name}/ that no "
            f"annotation file lists, such as {min(others)}"
        )


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _list(values: Iterable[str]) -> str:
    return ", ".join(map(str, values))


def render(report: Report, show: int = 10) -> str:
    """The report as text.

    Args:
        report: What was found.
        show: How many problems of a kind are named at most.
    """
    lines = []
    for split in report.splits:
        lines.append(
            f"{split.name}: {split.images:,} images ({split.decoded:,} decoded), "
            f"{split.objects:,} objects ({split.crowds:,} crowds), {split.categories} categories"
        )
        lines.append(f"  {split.annotations}")
        if split.sha256:
            lines.append(f"  sha256 {split.sha256}")
        lines += [f"  {note}" for note in split.notes]
    for kind, number in report.counts().items():
        lines += ["", f"{kind}: {number:,} ({KINDS[kind]})"]
        found = [problem for problem in report.problems if problem.kind == kind]
        lines += [f"  {x.split}: {x.where}: {x.what}" for x in found[:show]]
        if number > show:
            lines.append(f"  ... and {number - show:,} more")
    total = len(report.problems)
    lines += ["", f"{total:,} problem{'s' * (total > 1)} found" if total else "nothing is wrong"]
    return "\n".join(lines)
