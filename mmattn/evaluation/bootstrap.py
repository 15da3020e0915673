"""AP of many resamples of the images at once, exact: an image drawn twice counts twice.

A resample is a weight per image, the number of times it was drawn. With detections in order of
score, precision and recall at a detection are ratios of cumulated weights, and only hits matter:
between two hits precision falls, and it is read as the best of what follows. A hit of weight w
is w hits in a row, whose precisions rise, so the last one stands for all of them.

Replicates lie side by side (``LANES`` at a time), so that the processor's vector unit works on
several of them at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

import numpy as np

from mmattn.evaluation.matching import Matches, cores, jit

LANES = 64
RECALL_LEVELS = 101


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Figures of R replicates in A bins; fractions, nan where there is nothing to find.

    Attributes:
        ap: (R, A) mean over the classes that have objects of the bin in the replicate.
        ap50: (R, A) the same at IoU 0.50; nan if it is not among the thresholds.
        ap75: (R, A) the same at IoU 0.75.
        ar: (R, A) recall, mean over the thresholds and classes.
        class_ap: (R, K, A) AP of every class, or None.
    """

    ap: np.ndarray
    ap50: np.ndarray
    ap75: np.ndarray
    ar: np.ndarray
    class_ap: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Figures in A bins: those of :class:`Samples` without the first axis."""

    ap: np.ndarray
    ap50: np.ndarray
    ap75: np.ndarray
    ar: np.ndarray
    class_ap: np.ndarray


def draw(num_images: int, replicates: int, seed: int) -> np.ndarray:
    """How often each image is in each replicate, images drawn with replacement.

    Args:
        num_images: Number of images, I; as many are drawn.
        replicates: Number of replicates, R. The first ones do not depend on it.
        seed: Of the random numbers.

    Returns:
        (R, I) uint16.
    """
    if num_images < 1 or replicates < 1:
        raise ValueError(
            f"num_images and replicates must be at least 1, got {num_images} and {replicates}"
        )
    rng = np.random.default_rng(seed)
    weights = np.empty((replicates, num_images), np.uint16)
    for row in weights:
        row[:] = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
    return weights


def figures(matches: Matches, weights: np.ndarray | None = None) -> Sample:
    """Figures of one evaluation, each image counted as often as its weight says.

    Args:
        matches: What :func:`~mmattn.evaluation.matching.match` gives.
        weights: (I,) whole numbers, every image once if None.
    """
    if weights is None:
        weights = np.ones(matches.num_images, np.uint16)
    samples = bootstrap(matches, np.asarray(weights)[None], per_class=True, workers=1)
    return Sample(**{x.name: getattr(samples, x.name)[0] for x in dataclasses.fields(Sample)})


def bootstrap(
    matches: Matches,
    weights: np.ndarray,
    progress: Callable[[int], object] | None = None,
    per_class: bool = False,
    workers: int | None = None,
) -> Samples:
    """Figures of every replicate, equal to those of a dataset whose images are really repeated.

    Copies of an image follow each other, as if their ids did: it matters where scores are equal.

    Args:
        matches: What :func:`~mmattn.evaluation.matching.match` gives.
        weights: (R, I) how often each image counts in each replicate: what :func:`draw` gives.
            Compare runs on the same ones.
        progress: Called with the number of replicates just done.
        per_class: Keep the AP of every class too, R * K * A numbers.
        workers: Threads, all cores if None. They do not change the result.

    Raises:
        ValueError: The weights do not fit the images.
    """
    weights = _checked(weights, matches.num_images)
    stream, copy_of, copy = _stream(matches, weights)
    replicates, num_bins = len(weights), len(matches.bins)
    at50, at75 = (_place(matches.iou_thrs, x) for x in (0.50, 0.75))
    out = np.empty((4, replicates, num_bins))
    shape = (replicates, matches.num_classes, num_bins) if per_class else (0, 0, 0)
    class_ap = np.empty(shape)

    def work(begin: int) -> int:
        block = slice(begin, begin + LANES)
        number = len(weights[block])
        lanes = np.zeros((matches.num_images + len(copy), LANES), np.uint16)
        lanes[: matches.num_images, :number] = weights[block].T
        lanes[matches.num_images :] = lanes[copy_of] > copy[:, None]
        total, classes = np.zeros((4, num_bins, LANES)), np.zeros((num_bins, LANES))
        _replicate(
            lanes, stream, len(matches.iou_thrs), at50, at75, total, classes, class_ap[block]
        )
        with np.errstate(invalid="ignore"):
            out[:, block] = (total / classes).transpose(0, 2, 1)[:, :number]
        return number

    begins = range(0, replicates, LANES)
    with ThreadPoolExecutor(min(workers or cores(), len(begins))) as pool:
        try:
            for done in as_completed([pool.submit(work, begin) for begin in begins]):
                number = done.result()
                if progress is not None:
                    progress(number)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for figure, at in ((1, at50), (2, at75)):
        if at < 0:
            out[figure] = np.nan
    return Samples(
        ap=out[0],
        ap50=out[1],
        ap75=out[2],
        ar=out[3],
        class_ap=class_ap if per_class else None,
    )


def _checked(weights: np.ndarray, num_images: int) -> np.ndarray:
    weights = np.asarray(weights)
    if weights.ndim != 2 or weights.shape[1] != num_images or not len(weights):
        raise ValueError(
            f"weights must have a row for each replicate and a column for each of the {num_images} "
            f"images, got shape {weights.shape}"
        )
    if weights.dtype.kind not in "uib" or weights.min() < 0 or weights.max() > 65535:
        raise ValueError("weights must be whole numbers from 0 to 65535")
    return weights


def _place(iou_thrs: np.ndarray, value: float) -> int:
    found = np.flatnonzero(np.isclose(iou_thrs, value, rtol=0, atol=1e-9))
    return int(found[0]) if len(found) else -1


class _Stream(NamedTuple):
    """What is walked along, for every bin a and class k from ``starts[a * K + k]`` on.

    ``row`` is where the weight is found: of an image, or of one copy of it. ``event_at`` is the
    number of steps up to and with the event; kinds: 0 a step that is ignored, 1 a step that is a
    hit, 2 a hit that is no step, as the detection's own size is not in the bin.
    """

    step_row: np.ndarray
    step_starts: np.ndarray
    object_row: np.ndarray
    object_starts: np.ndarray
    event_at: np.ndarray
    event_row: np.ndarray
    event_iou: np.ndarray
    event_kind: np.ndarray
    event_starts: np.ndarray


def _stream(matches: Matches, weights: np.ndarray) -> tuple[_Stream, np.ndarray, np.ndarray]:
    """The stream, and image and number of the copies that have rows of their own."""
    matches, copy_of, copy = _unfold_ties(matches, weights)
    row, detection = matches.image, matches.event_detection
    steps, step_starts, objects, object_starts = [], [], [], []
    at, kind = np.empty(len(detection), np.int64), np.empty(len(detection), np.int8)
    num_steps = num_objects = 0
    bounds = matches.event_starts[:: matches.num_classes]
    for a, (low, high) in enumerate(matches.bins):
        inside = (matches.size >= low) & (matches.size <= high)
        before = np.append(0, np.cumsum(inside)) + num_steps
        steps.append(row[inside])
        step_starts.append(before[matches.starts[:-1]])
        mine = slice(bounds[a], bounds[a + 1])
        at[mine] = before[detection[mine] + 1]
        kind[mine] = matches.event_hit[mine] * np.where(inside[detection[mine]], 1, 2)
        num_steps = before[-1]
        inside = (matches.object_size >= low) & (matches.object_size <= high)
        before = np.append(0, np.cumsum(inside)) + num_objects
        objects.append(matches.object_image[inside])
        object_starts.append(before[matches.object_starts[:-1]])
        num_objects = before[-1]
    stream = _Stream(
        step_row=np.concatenate(steps),
        step_starts=np.append(np.concatenate(step_starts), num_steps),
        object_row=np.concatenate(objects),
        object_starts=np.append(np.concatenate(object_starts), num_objects),
        event_at=at,
        event_row=row[detection],
        event_iou=matches.event_iou,
        event_kind=kind,
        event_starts=matches.event_starts,
    )
    return stream, copy_of, copy


def _unfold_ties(matches: Matches, weights: np.ndarray) -> tuple[Matches, np.ndarray, np.ndarray]:
    """Repeats runs of equal scores within an image and class that hold a hit or ignored one.

    Drawn twice, the run (hit, false) is hit, false, hit, false and not hit, hit, false, false. So
    it is written once per copy; copy c has the weight 1 where the image is drawn more than c
    times. Other detections need no copies.

    Returns:
        Matches whose ``image`` counts on beyond the images for the copies, and the image and the
        number of each copy.
    """
    image, score, starts = matches.image, matches.score, matches.starts
    begins = np.ones(len(image), bool)
    begins[1:] = (image[1:] != image[:-1]) | (score[1:] != score[:-1])
    begins[starts[:-1][starts[:-1] < len(image)]] = True
    run = np.cumsum(begins) - 1
    begin = np.flatnonzero(begins)
    length = np.diff(np.append(begin, len(image)))
    tied = np.zeros(len(begin), bool)
    tied[run[matches.event_detection]] = True
    tied &= length > 1
    most = np.ones(matches.num_images, np.int64)
    images = np.unique(image[begin[tied]])
    most[images] = weights[:, images].max(axis=0)
    tied &= most[image[begin]] > 1
    if not tied.any():
        return matches, np.empty(0, np.int64), np.empty(0, np.int64)

    images = np.unique(image[begin[tied]])
    copy_of = np.repeat(images, most[images])
    first = np.cumsum(most[images]) - most[images]
    copy = np.arange(len(copy_of)) - np.repeat(first, most[images])
    first_row = np.zeros(matches.num_images, np.int64)
    first_row[images] = matches.num_images + first

    copies = np.where(tied, most[image[begin]], 1)
    new_begin = np.append(0, np.cumsum(length * copies))
    of = np.repeat(np.arange(len(begin)), length * copies)
    number, offset = np.divmod(np.arange(len(of)) - new_begin[of], length[of])
    old = begin[of] + offset
    row = np.where(tied[of], first_row[image[old]] + number, image[old]).astype(np.int32)
    new_starts = np.append(new_begin, len(of))[np.append(run, len(begin))[starts]]

    detection = matches.event_detection
    of = run[detection]
    again = np.repeat(np.arange(len(detection)), copies[of])
    ends = np.cumsum(copies[of])
    number = np.arange(len(again)) - np.repeat(ends - copies[of], copies[of])
    of = of[again]
    moved = new_begin[of] + number * length[of] + detection[again] - begin[of]
    pairs = len(matches.event_starts) - 1
    pair = np.repeat(np.arange(pairs), np.diff(matches.event_starts))[again]
    order = np.lexsort((moved, pair))
    again = again[order]
    unfolded = dataclasses.replace(
        matches,
        image=row,
        score=score[old],
        size=matches.size[old],
        starts=new_starts,
        event_starts=np.searchsorted(pair[order], np.arange(pairs + 1)),
        event_detection=moved[order],
        event_iou=matches.event_iou[again],
        event_hit=matches.event_hit[again],
    )
    return unfolded, copy_of, copy


@jit
def _replicate(weights, stream, num_thrs, at50, at75, total, classes, class_ap):
    """Adds the figures of every class to ``total`` (4, A, LANES), and 1 to ``classes``."""
    num_bins = total.shape[1]
    num_classes = (len(stream.step_starts) - 1) // num_bins
    counted = np.empty(LANES, np.int32)
    objects = np.empty(LANES, np.float64)
    recall = np.empty(LANES, np.float64)
    # for each threshold: hits, correction of counted, best precision, sum, levels reached
    state = np.empty((num_thrs, 5 * LANES), np.float64)
    for pair in range(num_bins * num_classes):
        a, k = pair // num_classes, pair % num_classes
        if len(class_ap):
            for lane in range(len(class_ap)):
                class_ap[lane, k, a] = np.nan
        if stream.object_starts[pair] == stream.object_starts[pair + 1]:
            continue
        objects[:] = 0
        for n in range(stream.object_starts[pair], stream.object_starts[pair + 1]):
            for lane in range(LANES):
                objects[lane] += weights[stream.object_row[n], lane]

        first, last = stream.event_starts[pair], stream.event_starts[pair + 1]
        step = stream.step_starts[pair + 1]
        counted[:] = 0
        state[:] = 0
        if first < last:
            for n in range(stream.step_starts[pair], step):
                for lane in range(LANES):
                    counted[lane] += weights[stream.step_row[n], lane]
        for n in range(first, last):
            of, row, kind = state[stream.event_iou[n]], stream.event_row[n], stream.event_kind[n]
            if kind > 0:
                for lane in range(LANES):
                    of[lane] += weights[row, lane]
            if kind != 1:
                sign = kind - 1.0
                for lane in range(LANES):
                    of[LANES + lane] += sign * weights[row, lane]
        recall[:] = 0
        for t in range(num_thrs):
            for lane in range(LANES):
                share = state[t, lane] / objects[lane]
                recall[lane] += share
                level = np.floor(100 * share + 0.5)
                state[t, 4 * LANES + lane] = level + (level * 0.01 <= share)

        # from the last event to the first: the best precision of what follows is at hand
        for n in range(last - 1, first - 1, -1):
            while step > stream.event_at[n]:
                step -= 1
                row = stream.step_row[step]
                for lane in range(LANES):
                    counted[lane] -= weights[row, lane]
            of, row, kind = state[stream.event_iou[n]], stream.event_row[n], stream.event_kind[n]
            if kind > 0:
                for lane in range(LANES):
                    precision = of[lane] / (counted[lane] + of[LANES + lane])
                    best = of[2 * LANES + lane]
                    best = precision if precision > best else best
                    hits = of[lane] - weights[row, lane]
                    share = hits / objects[lane]
                    # as searchsorted in np.linspace(0, 1, 101) does, to the last bit
                    level = np.floor(100 * share + 0.5)
                    level += level * 0.01 <= share
                    of[3 * LANES + lane] += (of[4 * LANES + lane] - level) * best
                    of[4 * LANES + lane] = level
                    of[2 * LANES + lane] = best
                    of[lane] = hits
            if kind != 1:
                sign = kind - 1.0
                for lane in range(LANES):
                    of[LANES + lane] -= sign * weights[row, lane]

        for lane in range(LANES):
            if objects[lane] == 0:
                continue
            ap = 0.0
            for t in range(num_thrs):
                # recall 0 is read at the first detection, where the best precision of all is
                state[t, 3 * LANES + lane] += state[t, 2 * LANES + lane]
                ap += state[t, 3 * LANES + lane]
            ap /= num_thrs * RECALL_LEVELS
            total[0, a, lane] += ap
            if at50 >= 0:
                total[1, a, lane] += state[at50, 3 * LANES + lane] / RECALL_LEVELS
            if at75 >= 0:
                total[2, a, lane] += state[at75, 3 * LANES + lane] / RECALL_LEVELS
            total[3, a, lane] += recall[lane] / num_thrs
            classes[a, lane] += 1
            if lane < len(class_ap):
                class_ap[lane, k, a] = ap
