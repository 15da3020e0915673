"""The images on which two runs differ most: what each run found, missed and imagined there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import hotcoco
import numpy as np

from mmattn.evaluation.bins import ALL, SizeBin, SizeBins, parse_bins
from mmattn.evaluation.data import Detections, GroundTruth
from mmattn.evaluation.overlaps import Overlaps


class Counts(NamedTuple):
    """Objects found and missed, and detections of nothing."""

    found: int
    missed: int
    false_alarms: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunOnImage:
    """What one run did on one image.

    Objects and detections are numbers: places in the columns of the ground truth and of the
    run's detections.

    Attributes:
        name: The run's name.
        score_thr: Detections of at least this score count; inf where the run hits nothing.
        found: Objects that were found, ascending.
        found_by: The detection that found each of them.
        missed: Objects that were not found, ascending.
        false_alarms: Detections of nothing (a second detection of one object is one), highest
            score first.
        shared: For each false alarm, whether the other run has the same one: of the same class,
            overlapping as a match does, one to one.
        counts: Number of each, in total ('all') and by bin: objects by their size, false alarms
            by their own.
    """

    name: str
    score_thr: float
    found: np.ndarray
    found_by: np.ndarray
    missed: np.ndarray
    false_alarms: np.ndarray
    shared: np.ndarray
    counts: dict[str, Counts]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DifferingImage:
    """An image on which two runs differ.

    Attributes:
        image: Its number in the ground truth.
        image_id: Its id.
        file_name: Its file, or None.
        difference: Objects found minus false alarms, candidate minus baseline; never 0.
        baseline: What the baseline did.
        candidate: What the candidate did.
        picture: The drawing, from ``mmattn.evaluation.drawing``; None until it is drawn.
        picture_type: Its media type, as 'image/jpeg'.
        caption: What the drawing shows, in plain text.
    """

    image: int
    image_id: Any
    file_name: str | None
    difference: int
    baseline: RunOnImage
    candidate: RunOnImage
    picture: bytes | None = None
    picture_type: str = ""
    caption: str = ""

    @property
    def gained(self) -> np.ndarray:
        """Objects that only the candidate found."""
        return np.intersect1d(self.candidate.found, self.baseline.missed)

    @property
    def lost(self) -> np.ndarray:
        """Objects that only the baseline found."""
        return np.intersect1d(self.baseline.found, self.candidate.missed)


def differing_images(
    ground_truth: GroundTruth,
    baseline: tuple[str, Detections, Overlaps],
    candidate: tuple[str, Detections, Overlaps],
    *,
    number: int = 12,
    iou_thr: float = 0.5,
    size: tuple[float, float] | None = None,
    bins: SizeBins = None,
    max_dets: int = 100,
) -> list[DifferingImage]:
    """The images on which two runs differ most, in objects found minus false alarms.

    Detections are matched as in COCO, at one IoU threshold, and count from a score on that is
    the run's own: the one of the best F1 over all images, classes and sizes. Crowds, and
    detections matched to them, count as nothing.

    Args:
        ground_truth: The annotations.
        baseline: Name, detections, and their IoUs with the annotations.
        candidate: The same of the other run.
        number: How many images at most: half of them where the candidate is better, half where
            it is worse; where there are too few of one kind, more of the other.
        iou_thr: IoU from which an object is found.
        size: Lowest and highest size (both inside, in the unit of the ground truth's ``size``)
            of the objects and false alarms that count; None for all.
        bins: Sizes to count by, as in :func:`~mmattn.evaluation.bins.parse_bins`.
        max_dets: Detections of an image and class that are considered, highest scores first.

    Returns:
        Those where the candidate is better, the largest difference first, then those where it
        is worse, likewise. Equal ones are in the order of the images; where the difference is 0
        an image is not listed.

    Raises:
        ValueError: An argument is out of range, or overlaps belong to other detections.
    """
    _check(number, iou_thr, size)
    runs = [
        _judge(ground_truth, *run, iou_thr=iou_thr, size=size, max_dets=max_dets)
        for run in (baseline, candidate)
    ]
    difference = runs[1].score_of_image - runs[0].score_of_image
    rows = (ALL, *parse_bins(bins, ground_truth.size_by))
    return [
        _describe(ground_truth, runs, int(i), int(difference[i]), iou_thr, rows)
        for i in _choose(difference, number)
    ]


def _check(number: int, iou_thr: float, size: tuple[float, float] | None) -> None:
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
        raise ValueError(f"number must be a count of images, 0 or more; got {number!r}.")
    if not 0 < iou_thr <= 1:
        raise ValueError(f"iou_thr must be above 0 and at most 1; got {iou_thr!r}.")
    if size is not None and not size[0] <= size[1]:
        raise ValueError(f"size must be (lowest, highest); got {size!r}.")


@dataclasses.dataclass(frozen=True, eq=False)
class _Judged:
    """One run, matched: what counts in every image."""

    name: str
    detections: Detections
    score_thr: float
    counted: np.ndarray  # (M,) objects that count
    found_by: np.ndarray  # (M,) detection that found the object, or -1
    false_alarm: np.ndarray  # (N,) bool
    score_of_image: np.ndarray  # (I,) found minus false alarms


def _judge(
    ground_truth: GroundTruth,
    name: str,
    detections: Detections,
    overlaps: Overlaps,
    *,
    iou_thr: float,
    size: tuple[float, float] | None,
    max_dets: int,
) -> _Judged:
    considered = _rank(detections) < max_dets
    pairs = _pairs(ground_truth, detections, overlaps, iou_thr, considered)
    ignored = ground_truth.crowd
    match = match_greedily(len(detections), ground_truth, *pairs, ignored)
    thr = _best_score(detections.scores, match, ignored, considered)
    inside = np.ones(len(detections), bool)
    if size is not None:
        # an ignored object is the last choice of a detection: the matches change with the size
        ignored = ignored | ~within(ground_truth.size, *size)
        inside = within(detections.size, *size)
        match = match_greedily(len(detections), ground_truth, *pairs, ignored)
    above = considered & (detections.scores >= thr)
    hits = np.flatnonzero(above & (match >= 0))
    hits = hits[~ignored[match[hits]]]
    found_by = np.full(len(ground_truth), -1)
    found_by[match[hits]] = hits
    false_alarm = above & (match < 0) & inside
    images = len(ground_truth.image_ids)
    score = np.bincount(detections.image[hits], minlength=images)
    score -= np.bincount(detections.image[false_alarm], minlength=images)
    return _Judged(name, detections, thr, ~ignored, found_by, false_alarm, score)


def within(sizes: np.ndarray, low: float, high: float) -> np.ndarray:
    """Which sizes belong to a bin: both borders do."""
    return (sizes >= low) & (sizes <= high)


def _rank(detections: Detections) -> np.ndarray:
    """Place of each detection among those of its image and class, by score, from 0."""
    order = np.lexsort((detections.category, detections.image))
    image, category = detections.image[order], detections.category[order]
    first = np.ones(len(order), bool)
    first[1:] = (image[1:] != image[:-1]) | (category[1:] != category[:-1])
    places = np.arange(len(order))
    rank = np.empty(len(order), np.int64)
    rank[order] = places - np.maximum.accumulate(np.where(first, places, 0))
    return rank


def _pairs(
    ground_truth: GroundTruth,
    detections: Detections,
    overlaps: Overlaps,
    iou_thr: float,
    considered: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detections and objects of one class that overlap enough: their numbers and IoU."""
    objects = np.diff(ground_truth.starts)
    expected = int((objects * np.diff(detections.starts)).sum())
    if len(overlaps.iou) != expected:
        raise ValueError(
            f"Expected the {expected} IoUs of these detections with this ground truth, got "
            f"{len(overlaps.iou)}: compute them with overlaps(ground_truth, detections)."
        )
    at = np.flatnonzero(overlaps.iou >= min(iou_thr, 1 - 1e-10))
    image = np.searchsorted(overlaps.starts, at, side="right") - 1
    d, g = np.divmod(at - overlaps.starts[image], objects[image])
    d, g = d + detections.starts[image], g + ground_truth.starts[image]
    keep = (detections.category[d] == ground_truth.category[g]) & considered[d]
    return d[keep], g[keep], overlaps.iou[at[keep]]


def match_greedily(
    num_detections: int,
    ground_truth: GroundTruth,
    d: np.ndarray,
    g: np.ndarray,
    iou: np.ndarray,
    ignored: np.ndarray,
) -> np.ndarray:
    """Object that each detection takes, or -1, as COCO matches them."""
    # a detection's best choice first: objects that count, then the highest IoU, then the last
    order = np.lexsort((-g, -iou, ignored[g], d))
    match = [-1] * num_detections
    free = [True] * len(ground_truth)
    crowd = ground_truth.crowd.tolist()
    for detection, candidate in zip(d[order].tolist(), g[order].tolist(), strict=True):
        if match[detection] < 0 and free[candidate]:
            match[detection] = candidate
            free[candidate] = crowd[candidate]
    return np.array(match, np.int64)


def _best_score(
    scores: np.ndarray, match: np.ndarray, ignored: np.ndarray, considered: np.ndarray
) -> float:
    """Score from which on detections have the best F1; the highest, if several; inf if it is 0."""
    hit = match >= 0
    hit[hit] = ~ignored[match[hit]]
    counted = considered & (hit | (match < 0))
    order = np.argsort(-scores[counted], kind="stable")
    by_score, hits = scores[counted][order], np.cumsum(hit[counted][order])
    if not len(hits) or not hits[-1]:
        return np.inf
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + np.count_nonzero(~ignored))
    # a threshold takes all detections of equal score
    f1[:-1][by_score[1:] == by_score[:-1]] = -1
    return float(by_score[np.argmax(f1)])


def _choose(difference: np.ndarray, number: int) -> np.ndarray:
    better = np.flatnonzero(difference > 0)
    worse = np.flatnonzero(difference < 0)
    better = better[np.argsort(-difference[better], kind="stable")]
    worse = worse[np.argsort(difference[worse], kind="stable")]
    of_worse = min(number // 2, len(worse))
    of_better = min(number - of_worse, len(better))
    return np.r_[better[:of_better], worse[: number - of_better]]


def _describe(
    ground_truth: GroundTruth,
    runs: list[_Judged],
    i: int,
    difference: int,
    iou_thr: float,
    rows: Sequence[SizeBin],
) -> DifferingImage:
    alarms = [_of_image(run.detections.starts, i) for run in runs]
    alarms = [d[run.false_alarm[d]] for d, run in zip(alarms, runs, strict=True)]
    shared = _same(ground_truth.iou_type, runs, alarms, iou_thr)
    objects = _of_image(ground_truth.starts, i)
    both = []
    for run, false_alarms, are_shared in zip(runs, alarms, shared, strict=True):
        counted = objects[run.counted[objects]]
        found = counted[run.found_by[counted] >= 0]
        missed = counted[run.found_by[counted] < 0]
        sizes = [
            ground_truth.size[found],
            ground_truth.size[missed],
            run.detections.size[false_alarms],
        ]
        counts = {
            name: Counts(*(int(np.count_nonzero(within(x, low, high))) for x in sizes))
            for name, low, high in rows
        }
        both.append(
            RunOnImage(
                name=run.name,
                score_thr=run.score_thr,
                found=found,
                found_by=run.found_by[found],
                missed=missed,
                false_alarms=false_alarms,
                shared=are_shared,
                counts=counts,
            )
        )
    return DifferingImage(
        image=i,
        image_id=ground_truth.image_ids[i],
        file_name=ground_truth.file_names[i],
        difference=difference,
        baseline=both[0],
        candidate=both[1],
    )


def _of_image(starts: np.ndarray, i: int) -> np.ndarray:
    return np.arange(starts[i], starts[i + 1])


def _same(
    iou_type: str, runs: list[_Judged], alarms: list[np.ndarray], iou_thr: float
) -> list[np.ndarray]:
    """Which false alarms both runs have: the closest pairs first, each in one pair at most."""
    shared = [np.zeros(len(x), bool) for x in alarms]
    classes = [run.detections.category[x] for run, x in zip(runs, alarms, strict=True)]
    for category in np.intersect1d(*classes):
        places = [np.flatnonzero(x == category) for x in classes]
        iou = _iou(
            iou_type, *(r.detections for r in runs), alarms[0][places[0]], alarms[1][places[1]]
        )
        a, b = np.nonzero(iou >= iou_thr)
        for k in np.argsort(-iou[a, b], kind="stable"):
            pair = places[0][a[k]], places[1][b[k]]
            if not shared[0][pair[0]] and not shared[1][pair[1]]:
                shared[0][pair[0]] = shared[1][pair[1]] = True
    return shared


def _iou(
    iou_type: str, first: Detections, second: Detections, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    if iou_type == "segm":
        shapes = [first.masks[k] for k in a], [second.masks[k] for k in b]
    else:
        shapes = first.boxes[a], second.boxes[b]
    return np.asarray(hotcoco.mask.iou(*shapes, [False] * len(b))).reshape(len(a), len(b))
