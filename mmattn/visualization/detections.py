"""Detections with and without the modules' effect: which are kept, gained and lost, by size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import hotcoco
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from mmattn.evaluation import drawing, table
from mmattn.evaluation.bins import ALL, MAX_SIZE, SizeBin, SizeBins, parse_bins
from mmattn.evaluation.data import GroundTruth
from mmattn.evaluation.differences import match_greedily, within
from mmattn.visualization.boxes import STYLES, Item, View, legend
from mmattn.visualization.collected import Collected, Detections
from mmattn.visualization.sheet import LINE, TEXT, UNIT, Sheet, fit, text_width
from mmattn.visualization.style import COLOURS, SIZES, styled

DETECTED = ("with", "without", "kept", "gained", "lost")
FOUND = ("both", "only with", "only without", "neither")
FOUND_BY = {  # the same in words
    "both": "found by both",
    "only with": "found only with",
    "only without": "found only without",
    "neither": "found by neither",
}
WITH, WITHOUT = "with attention", "without (gates neutral)"


# --- what differs ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Objects:
    """Annotated objects of an image.

    Args:
        boxes: (M, 4), left, top, right and bottom in px of the image.
        labels: (M), indices into ``classes``.
        classes: Names.
        areas: (M), in px^2, of the masks where there are masks; None: of the boxes.
        crowd: (M), True for a group of objects in one box, which counts as nothing, nor do
            detections of it; None: none is.
    """

    boxes: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    areas: np.ndarray | None = None
    crowd: np.ndarray | None = None

    def __post_init__(self):
        boxes = np.asarray(self.boxes, float).reshape(-1, 4)
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
        defaults = {
            "boxes": boxes,
            "labels": np.asarray(self.labels, int),
            "areas": sides.prod(1) if self.areas is None else np.asarray(self.areas, float),
            "crowd": np.zeros(len(boxes), bool)
            if self.crowd is None
            else np.asarray(self.crowd, bool),
        }
        for name, value in defaults.items():
            object.__setattr__(self, name, value)
            if len(value) != len(boxes):
                raise ValueError(
                    f"Objects expects one of each for {len(boxes)} boxes, got {len(value)} {name}."
                )

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def of(cls, ground_truth: GroundTruth, image: Any, classes: Sequence[str]) -> Objects:
        """The annotations of one image, with the labels of a detector's classes.

        Args:
            ground_truth: From :func:`mmattn.evaluation.data.load_ground_truth`.
            image: Id or file name of the image.
            classes: Of the detector; objects of other classes are left out.

        Raises:
            ValueError: The ground truth has no such image.
        """
        known = [*ground_truth.image_ids]
        if image not in known:
            known = ground_truth.file_names
        if image not in known:
            raise ValueError(
                f"{ground_truth.name} has no image {image!r}: give an id or a file name of it, "
                f"such as {ground_truth.image_ids[:1]} or {ground_truth.file_names[:1]}."
            )
        at = known.index(image)
        rows = np.arange(ground_truth.starts[at], ground_truth.starts[at + 1])
        number = {name: k for k, name in enumerate(classes)}
        names = [ground_truth.class_names[k] for k in ground_truth.category[rows]]
        rows = rows[[name in number for name in names]]
        labels = [number[name] for name in names if name in number]
        boxes = ground_truth.boxes[rows].astype(float)
        boxes[:, 2:] += boxes[:, :2]
        areas, crowd = ground_truth.size[rows], ground_truth.crowd[rows]
        return cls(boxes, np.array(labels, int), tuple(classes), areas, crowd)


@dataclass(frozen=True)
class Difference:
    """What the modules' effect changes in the detections of one image.

    Rows are places in ``with_``, ``without`` and ``truth``.

    Args:
        with_: The detections of at least ``score`` with the effect.
        without: The same with the gates neutral.
        kept: (K, 2), rows of ``with_`` and ``without`` that are the same detection.
        iou: (K), of the two boxes.
        change: (K), score with minus score without.
        gained: Rows of ``with_`` that are in no pair.
        lost: Rows of ``without`` that are in no pair.
        gained_from: For each gained one, its score without, below ``score``; nan where there is
            none at all.
        lost_to: For each lost one, its score with, below ``score``; nan where there is none.
        score: From which on detections count.
        iou_thr: From which on two boxes are the same detection, or a box finds an object.
        bins: Sizes.
        truth: The annotated objects.
        found_with: (M), which of them are found with the effect.
        found_without: (M), which of them are found without.
    """

    with_: Detections
    without: Detections
    kept: np.ndarray
    iou: np.ndarray
    change: np.ndarray
    gained: np.ndarray
    lost: np.ndarray
    gained_from: np.ndarray
    lost_to: np.ndarray
    score: float
    iou_thr: float
    bins: tuple[SizeBin, ...]
    truth: Objects | None = None
    found_with: np.ndarray | None = None
    found_without: np.ndarray | None = None

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """How many of each of ``DETECTED``, by size and of 'all'.

        By the areas of the boxes: kept ones by that of ``with_``. Both borders belong to a bin.
        """
        first, second = self.with_.areas, self.without.areas
        sizes = (first, second, first[self.kept[:, 0]], first[self.gained], second[self.lost])
        return self._count(dict(zip(DETECTED, sizes, strict=True)))

    @cached_property
    def found(self) -> dict[str, dict[str, int]]:
        """How many objects each of ``FOUND``, by the objects' size and of 'all'.

        Empty without annotations.
        """
        if self.truth is None:
            return {}
        a, b, counted = self.found_with, self.found_without, ~self.truth.crowd
        kinds = (a & b, a & ~b, b & ~a, ~a & ~b & counted)
        return self._count(
            {k: self.truth.areas[kind] for k, kind in zip(FOUND, kinds, strict=True)}
        )

    def _count(self, sizes: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
        return {
            name: {what: int(within(x, low, high).sum()) for what, x in sizes.items()}
            for name, low, high in (ALL, *self.bins)
        }


def compare_detections(
    with_: Detections,
    without: Detections,
    score: float = 0.3,
    iou: float = 0.5,
    truth: Objects | Detections | None = None,
    bins: SizeBins = None,
) -> Difference:
    """Which detections are the same with and without the modules' effect, and which are not.

    Two are the same if they are of one class and overlap enough. Each of ``with_``, highest score
    first, takes the one of ``without`` that overlaps it most and is still free. Objects are found
    by the same rule, as in COCO.

    Args:
        with_: The detections with the effect.
        without: Those with the gates neutral.
        score: From which on a detection counts.
        iou: From which on two boxes can be the same.
        truth: The annotated objects; of :class:`~.collected.Detections` the scores do not matter.
        bins: Sizes, as in :func:`mmattn.evaluation.bins.parse_bins`; None: COCO's small, medium
            and large, up to 32^2, up to 96^2 and above.

    Raises:
        ValueError: The classes are not the same, or ``score`` or ``iou`` is not between 0 and 1.
    """
    _check(score, iou)
    for other in (without, *([] if truth is None else [truth])):
        if tuple(other.classes) != tuple(with_.classes):
            raise ValueError(
                "compare_detections expects the same classes on both sides, in the same order; "
                f"got {_some(with_.classes)} and {_some(other.classes)}."
            )
    first, second = _sorted(with_), _sorted(without)
    # those that count lie before those below the score
    n, m = len(first.above(score)), len(second.above(score))
    taken, overlap = _pairs(first.above(score), _objects(second.above(score)), iou)
    kept = np.stack([np.flatnonzero(taken >= 0), taken[taken >= 0]], 1)
    gained = np.flatnonzero(taken < 0)
    lost = np.setdiff1d(np.arange(m), taken)
    found = {}
    if truth is not None:
        objects = _objects(truth)
        found["truth"] = objects
        for name, own in (("found_with", first), ("found_without", second)):
            hits = np.isin(np.arange(len(objects)), _pairs(own.above(score), objects, iou)[0])
            found[name] = hits & ~objects.crowd
    return Difference(
        with_=first.above(score),
        without=second.above(score),
        kept=kept,
        iou=overlap[kept[:, 0]],
        change=first.scores[kept[:, 0]] - second.scores[kept[:, 1]],
        gained=gained,
        lost=lost,
        gained_from=_elsewhere(_rows(first, gained), _rows(second, slice(m, None)), iou),
        lost_to=_elsewhere(_rows(second, lost), _rows(first, slice(n, None)), iou),
        score=score,
        iou_thr=iou,
        bins=parse_bins(bins),
        **found,
    )


def _check(score: float, iou: float) -> None:
    if not 0 <= score <= 1:
        raise ValueError(f"score must be between 0 and 1, got {score!r}.")
    if not 0 < iou <= 1:
        raise ValueError(f"iou must be above 0 and at most 1, got {iou!r}.")


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _rows(detections: Detections, rows: Any) -> Detections:
    boxes, scores, labels = (
        getattr(detections, name)[rows] for name in ("boxes", "scores", "labels")
    )
    return replace(detections, boxes=boxes, scores=scores, labels=labels)


def _sorted(detections: Detections) -> Detections:
    return _rows(detections, np.argsort(-detections.scores, kind="stable"))


def _objects(of: Objects | Detections) -> Objects:
    return of if isinstance(of, Objects) else Objects(of.boxes, of.labels, of.classes, of.areas)


def _pairs(own: Detections, others: Objects, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the row that it takes, or -1, and the IoU with it."""
    if not len(own) or not len(others):
        return np.full(len(own), -1), np.zeros(len(own))
    overlap = np.asarray(
        hotcoco.mask.iou(_corner_and_sides(own), _corner_and_sides(others), others.crowd.tolist())
    ).reshape(len(own), len(others))
    same = own.labels[:, None] == others.labels[None]
    rows, columns = np.nonzero(same & (overlap >= min(iou, 1 - 1e-10)))
    taken = match_greedily(len(own), others, rows, columns, overlap[rows, columns], others.crowd)
    return taken, np.where(taken >= 0, overlap[np.arange(len(own)), taken], 0)


def _corner_and_sides(of: Objects | Detections) -> np.ndarray:
    boxes = np.asarray(of.boxes, float)
    return np.concatenate([boxes[:, :2], np.maximum(boxes[:, 2:] - boxes[:, :2], 0)], 1)


def _elsewhere(detections: Detections, below: Detections, iou: float) -> np.ndarray:
    """The scores that detections have on the other side, below the limit; nan: they have none."""
    taken, _ = _pairs(detections, _objects(below), iou)
    return np.array([below.scores[k] if k >= 0 else np.nan for k in taken], float)


# --- many images -----------------------------------------------------------------------------


def summarize(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    """Sums over images, by size.

    Args:
        differences: Of the images, with the same bins.

    Returns:
        A row for 'all' and for each size, to be written as JSON: ``'size'``, its borders
        ``'low'`` and ``'high'`` in px^2 (None: no limit), ``'images'``, the numbers of
        ``DETECTED``, ``'score change'`` (the mean over the kept ones whose box with the effect
        has this size; None: there are none). Of images with annotations: how many there are,
        ``'annotated'``, the number of their ``'objects'``, and the numbers of ``FOUND``. Both
        borders belong to a bin.

    Raises:
        ValueError: There are none, or they do not go together.
    """
    if not differences:
        raise ValueError("summarize expects at least one Difference, got none.")
    first = differences[0]
    if any(
        (x.bins, x.score, x.iou_thr) != (first.bins, first.score, first.iou_thr)
        for x in differences
    ):
        raise ValueError(
            "summarize expects differences of the same score, IoU and bins; compare all with "
            "the same."
        )
    annotated = [x for x in differences if x.truth is not None]
    changes = np.concatenate([x.change for x in differences])
    areas = np.concatenate([x.with_.areas[x.kept[:, 0]] for x in differences])
    rows = []
    for name, low, high in (ALL, *first.bins):
        row = {"size": name, "low": low, "high": None if high >= MAX_SIZE else high}
        row["images"] = len(differences)
        row |= {k: sum(x.counts[name][k] for x in differences) for k in DETECTED}
        inside = changes[within(areas, low, high)]
        row["score change"] = float(inside.mean()) if len(inside) else None
        if annotated:
            found = {k: sum(x.found[name][k] for x in annotated) for k in FOUND}
            row |= {"annotated": len(annotated), "objects": sum(found.values()), **found}
        rows.append(row)
    return rows


def summary_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of :func:`summarize` as a table.

    ``mmattn.evaluation.table.render`` makes Markdown of it.
    """
    objects = ("objects", *FOUND) if "objects" in rows[0] else ()
    shown = table.new_table("size", "area (px^2)")
    table.add_numbers(shown, *DETECTED, "score change")
    table.add_numbers(shown, *(FOUND_BY.get(x, x) for x in objects))
    for row in rows:
        change = row["score change"]
        cells = [str(row[k]) for k in DETECTED]
        cells.append(table.NOT_AVAILABLE if change is None else f"{change:+.3f}")
        area = "any" if row["size"] == "all" else limits(row["low"], row["high"], "^2")
        shown.add_row(row["size"], area, *cells, *(str(row[k]) for k in objects))
    return shown


def limits(low: float, high: float | None, squared: str = "²") -> str:
    """A bin's limits in words, as squares where they are."""
    ends = []
    for value in (low, high or 0):
        side = math.sqrt(value)
        ends.append(f"{side:g}{squared}" if side > 1 and side == round(side) else f"{value:.10g}")
    if high is None or high >= MAX_SIZE:
        return f"from {ends[0]}"
    return f"{ends[0]} to {ends[1]}" if low else f"up to {ends[1]}"


# --- pictures --------------------------------------------------------------------------------

NARROW = 8  # pt, of the names of sizes
MARGIN = 14  # lengths are in 1/150 inch, see :mod:`.sheet`
GAP = 20


def draw_detections(
    collected: Collected,
    score: float = 0.3,
    truth: Objects | Detections | None = None,
    *,
    iou: float = 0.5,
    bins: SizeBins = None,
) -> Figure:
    """The detections with the modules' effect and without it, side by side.

    What only one side has is strong, in its own colour and line, with class and score (and its
    score on the other side, or that there is none); what both have is thin and pale. Small
    boxes that differ are enlarged below, and bars count all by size. Without neutral detections
    there is one panel; the figure says so where there are no detections.

    Args:
        collected: Of one image.
        score: From which on detections are shown.
        truth: The annotated objects; those that a side does not find are shown in it.
        iou: From which on two boxes are the same, see :func:`compare_detections`.
        bins: Sizes to count by, see :func:`compare_detections`.

    Raises:
        ValueError: ``score``, ``iou`` or ``bins`` cannot be used, or the annotations are of other
            classes.
    """
    _check(score, iou)
    own = collected.detections
    both = own is not None and collected.neutral is not None
    difference = None
    if own is not None:
        # one side alone: everything is found in itself
        other = collected.neutral if both else own
        difference = compare_detections(own, other, score, iou, truth, bins)
    panels = _panels(difference, both, score)
    with styled():
        return _compose(collected, panels, difference, both)


class _Panel(NamedTuple):
    title: str
    details: str
    note: str  # over the image
    items: list[Item]


def _panels(difference: Difference | None, both: bool, score: float) -> list[_Panel]:
    if difference is None:
        return [_Panel("detections", "", "this model gives no detections", [])]
    sides = [(difference.with_, "detections", [], [], "found")]
    if both:
        sides = [
            (difference.with_, WITH, difference.gained, difference.gained_from, "gained"),
            (difference.without, WITHOUT, difference.lost, difference.lost_to, "lost"),
        ]
    panels = []
    for side, (own, name, only, elsewhere, kind) in enumerate(sides):
        labels = [f"{_name(own, k)} {s:.2f}" for k, s in zip(own.labels, own.scores, strict=True)]
        for k, value in zip(only, elsewhere, strict=True):
            there = "none"
            if not math.isnan(value):
                # never rounded up to what would count
                digits = next((n for n in range(2, 6) if round(value, n) < score), 6)
                there = f"{value:.{digits}f}"
            labels[k] += f" ({there} {'without' if kind == 'gained' else 'with'})"
        kinds = np.full(len(own), "kept" if both else "found", object)
        kinds[only] = kind
        items = [
            Item(k, k != "kept", tuple(map(float, box)), label)
            for k, box, label in zip(kinds, own.boxes, labels, strict=True)
        ]
        details = f"{len(own)} detection{'' if len(own) == 1 else 's'}"
        details += f", {len(only)} only here" if len(only) else ""
        truth = difference.truth
        if truth is not None:
            found = (difference.found_with, difference.found_without)
            details += f"; finds {found[side].sum()} of {(~truth.crowd).sum()} objects"
            for k in np.flatnonzero(~found[side] & ~truth.crowd):
                only_here = both and found[1 - side][k]
                label = f"missed: {_name(truth, truth.labels[k])}"
                items.append(Item("missed", only_here, tuple(map(float, truth.boxes[k])), label))
        items.sort(key=lambda x: (x.differs, -drawing.box_area(x.box)))
        note = "" if len(own) else f"no detection with a score of {score:g} or more"
        panels.append(_Panel(name, details, note, items))
    return panels


def _name(of: Detections | Objects, label: int) -> str:
    """The class, in one line that has room."""
    return drawing.shorten(drawing.one_line(of.classes[label]), 24)


def _compose(
    collected: Collected, panels: list[_Panel], difference: Difference | None, both: bool
) -> Figure:
    height, width = collected.image.shape[:2]
    scale = drawing.PANEL / max(height, width)
    panel = round(width * scale), round(height * scale)
    column = max(panel[0], 600)  # room for the details
    regions = []
    if both:
        layout = [[x._replace(kind="false") for x in p.items] for p in panels]
        regions = drawing.crowded_regions(layout, (width, height), scale, column, 32)
    strip = drawing.STRIP[len(regions) - 1] if regions else 0
    top = MARGIN + 3 * LINE + 8
    strip_top = top + panel[1] + 14
    foot = strip_top + (strip + 14 if regions else 0)
    charts = 0 if difference is None else 250
    total = len(panels) * column + (len(panels) - 1) * GAP + 2 * MARGIN
    sheet = Sheet(total, foot + LINE + charts + MARGIN)

    what = ""
    if difference is not None:
        what = f": detections with a score of {difference.score:g} or more"
        if both:
            what += f"; the same where class agrees and IoU is {difference.iou_thr:g} or more"
    room = total - 2 * MARGIN
    name = fit(drawing.one_line(collected.name), 9, max(room - text_width(what, 9), 120))
    sheet.text(MARGIN, MARGIN, name + what, room, size=9)
    for k, part in enumerate(panels):
        left = MARGIN + k * (column + GAP)
        sheet.text(left, MARGIN + LINE + 4, part.title, column, weight="bold")
        sheet.text(left, MARGIN + 2 * LINE + 3, part.details, column, size=TEXT)
        place = left + (column - panel[0]) // 2
        view = View(sheet, collected.image, (0, 0, width, height), (place, top, *panel))
        view.axes.set_label(("with", "without")[k])
        view.draw(part.items)
        frames = view.frame(regions)
        outside = [x for x in part.items if not any(drawing.is_inside(x.box, r) for r in regions)]
        unlabelled = view.label(outside, frames)
        if part.note:
            view.note(part.note)
        cell = (column - (len(regions) - 1) * 8) // max(len(regions), 1)
        for n, region in enumerate(regions):
            at = (left + n * (cell + 8), strip_top, cell, strip)
            view = View(sheet, collected.image, region, at)
            view.axes.set_label(f"enlarged {drawing.LETTERS[n]}")
            view.border()
            view.draw(part.items)
            tag = view.letter((0, 0), drawing.LETTERS[n])
            inside = [x for x in part.items if drawing.is_inside(x.box, region)]
            unlabelled += view.label(inside, [tag])
        if unlabelled:
            which = "kept boxes" if all(x.kind == "kept" for x in unlabelled) else "boxes"
            start = left + text_width(part.title, 8.5, "bold") + 12
            text = f"not all {which} have room for a label"
            options = {"size": TEXT - 0.5, "color": "#555555"}
            sheet.text(start, MARGIN + LINE + 5, text, left + column - start, **options)
    if difference is not None:
        kinds = ("gained", "lost", "kept") if both else ("found",)
        kinds += ("missed",) if difference.truth is not None else ()
        legend(sheet, MARGIN, foot, kinds)
        _charts(sheet, foot + LINE + 6, charts - 10, difference, both)
    return sheet.figure


def _charts(sheet: Sheet, top: float, height: float, difference: Difference, both: bool) -> None:
    """Bars by size: of detections, of objects where they are annotated; and all scores."""
    dark, pale = {"fc": "#444444"}, {"fc": "#BBBBBB"}
    gained = {"fc": STYLES["gained"].colour}
    lost = {"fc": STYLES["lost"].colour, "hatch": "////"}
    missed = {"fc": STYLES["missed"].colour, "hatch": "...."}
    bars = {"with": dark, "without": pale, "gained": gained, "lost": lost}
    charts = [("detections", {k: (difference.counts, k, v) for k, v in bars.items()})]
    if difference.found:
        bars = dict(zip(FOUND, (dark, gained, lost, missed), strict=True))
        charts.append(("objects found by", {k: (difference.found, k, v) for k, v in bars.items()}))
    if not both:
        [(_, bars), *rest] = charts
        charts = [("detections", {"detections": bars["with"]})]
        charts += [("objects", {"found": x["both"], "missed": x["neither"]}) for _, x in rest]
    side = height - 78
    beside = side + 150 + _widest([x.name for x in difference.bins]) if both else 0
    room = (sheet.width - 2 * MARGIN + GAP - beside) / len(charts)
    room = min(room, 740)
    for n, (name, parts) in enumerate(charts):
        axes = sheet.axes(MARGIN + n * room + 60, top + 24, room - GAP - 60, side)
        axes.set_label(f"{name.split()[0]} by size")
        _bars(axes, name, parts, difference.bins)
    if both:
        axes = sheet.axes(MARGIN + len(charts) * room + 70, top + 24, side, side)
        axes.set_label("scores")
        _scores(axes, difference)


def _bars(axes: Axes, name: str, parts: dict, bins: Sequence[SizeBin]) -> None:
    step = 0.8 / max(len(parts), 2)
    most = max(counts[x.name][key] for counts, key, _ in parts.values() for x in bins)
    for k, (label, (counts, key, fill)) in enumerate(parts.items()):
        values = [counts[x.name][key] for x in bins]
        at = np.arange(len(bins)) + (k - (len(parts) - 1) / 2) * step
        bars = axes.bar(at, values, 0.92 * step, ec="black", lw=0.5, label=label, **fill)
        axes.bar_label(bars, padding=1, size=TEXT)
    names = [f"{x.name}\n{limits(x.low, x.high)} px²" for x in bins]
    room = axes.get_position().width * axes.figure.get_figwidth() * UNIT / len(bins)
    rotated = {}
    if _widest(names) > room:
        names = [x.replace(" to ", " to\n").replace("from ", "from\n") for x in names]
    if _widest(names) > room:
        names = [x.name for x in bins]
        rotated = {"rotation": 25, "ha": "right"}
    axes.set_xticks(np.arange(len(bins)), names, parse_math=False, size=NARROW, **rotated)
    axes.tick_params(axis="x", length=0, pad=2)
    axes.set_ylim(0, max(most, 1) * 1.15)
    axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
    axes.set_ylabel(name)
    if len(parts) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            frameon=False,
            borderaxespad=0,
            ncols=len(parts),
            handlelength=1.2,
            columnspacing=1,
            handletextpad=0.4,
            fontsize=TEXT,
        )


def _widest(names: Sequence[str]) -> float:
    return max(text_width(line, NARROW) for name in names for line in name.split("\n"))


def _scores(axes: Axes, difference: Difference) -> None:
    """The score of each detection on both sides, those too low on one of them included."""
    first, second = difference.with_, difference.without
    rows, columns = difference.kept.T
    y = np.r_[first.scores[rows], first.scores[difference.gained], difference.lost_to]
    x = np.r_[second.scores[columns], difference.gained_from, second.scores[difference.lost]]
    areas = np.r_[first.areas[rows], first.areas[difference.gained], second.areas[difference.lost]]
    axes.plot([0, 1], [0, 1], color="#999999", lw=0.8, zorder=0)
    for at in (axes.axvline, axes.axhline):
        at(difference.score, color="#999999", lw=0.8, ls=(0, (4, 3)), zorder=0)
    usual = all(x.name in SIZES for x in difference.bins)
    free = np.ones(len(areas), bool)
    for k, (name, low, high) in enumerate(difference.bins):
        own = free & within(areas, low, high)
        free &= ~own
        colour = SIZES[name] if usual else COLOURS[k % len(COLOURS)]
        options = {"marker": "os^DvP"[k % 6], "s": 22, "lw": 0.5, "ec": "black", "label": name}
        axes.scatter(x[own], y[own], fc=colour, clip_on=False, **options)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score without", ylabel="score with")
    axes.set_xticks([0, 0.5, 1])
    axes.set_yticks([0, 0.5, 1])
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.03, 1), frameon=False, borderaxespad=0, handlelength=1
    )
