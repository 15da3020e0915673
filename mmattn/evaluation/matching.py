"""Which detection finds which object, for many size bins and IoU thresholds at once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from mmattn.evaluation.data import Detections, GroundTruth
from mmattn.evaluation.overlaps import Overlaps

GROUPS_PER_TASK = 2048


def jit(function):
    """Compiles with numba; the machine code is kept on disk where a folder can be written."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither beside the code nor in the home folder
        return numba.njit(**options)(function)


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """Detections in the order in which AP reads them, and what they find.

    The N detections that count (the best ``max_dets`` of an image and class) lie by class, then
    by score, highest first; equal scores in order of image. An event is a detection that at one
    IoU threshold and in one bin is not simply counted by its own size: it finds an object of the
    bin (a hit), or, being of the bin's size, it finds what is ignored (a crowd, or an object of
    another size) and is ignored with it. Events lie by bin, then by detection, then by threshold.

    Attributes:
        num_images: Number of images, I.
        bins: (A, 2) lowest and highest size of each bin, both in it.
        iou_thrs: (T,).
        starts: (K + 1,) detections ``starts[k]:starts[k + 1]`` are those of class k.
        image: (N,) image number.
        score: (N,).
        size: (N,).
        object_starts: (K + 1,) objects of each class.
        object_image: (M,) image numbers of the objects that are no crowds.
        object_size: (M,) their sizes.
        event_starts: (A * K + 1,) events of bin a and class k begin at ``[a * K + k]``.
        event_detection: (E,) place among the detections.
        event_iou: (E,) place among the IoU thresholds.
        event_hit: (E,) bool; False where the detection is ignored.
    """

    num_images: int
    bins: np.ndarray
    iou_thrs: np.ndarray
    starts: np.ndarray
    image: np.ndarray
    score: np.ndarray
    size: np.ndarray
    object_starts: np.ndarray
    object_image: np.ndarray
    object_size: np.ndarray
    event_starts: np.ndarray
    event_detection: np.ndarray
    event_iou: np.ndarray
    event_hit: np.ndarray

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.starts) - 1


def match(
    ground_truth: GroundTruth,
    detections: Detections,
    overlaps: Overlaps,
    bins: Sequence[tuple[float, float]],
    iou_thrs: Sequence[float],
    max_dets: int,
    workers: int | None = None,
) -> Matches:
    """Matches detections with objects as pycocotools does, for every bin and IoU threshold.

    Args:
        ground_truth: The objects.
        detections: The detections.
        overlaps: Their IoUs.
        bins: (lowest, highest) size of each bin; they may overlap.
        iou_thrs: IoU thresholds.
        max_dets: Number of detections of an image and class that count.
        workers: Threads, all cores if None. They do not change the result.

    Raises:
        ValueError: A bin, a threshold or ``max_dets`` is not valid.
    """
    bins, iou_thrs = _checked(bins, iou_thrs, max_dets)
    num_images, num_classes = len(ground_truth.image_ids), len(ground_truth.class_ids)

    # by class, then image, then score: a group is what is matched together
    grouped = np.argsort(detections.category, kind="stable")
    group = _group(detections, grouped, num_images)
    place = np.arange(len(grouped))
    first = np.ones(len(grouped), bool)
    first[1:] = group[1:] != group[:-1]
    kept = place - np.maximum.accumulate(np.where(first, place, 0)) < max_dets
    grouped, group = grouped[kept], group[kept]

    # by class, then score: what precision is read along
    category, score = detections.category[grouped], detections.scores[grouped]
    order = np.lexsort((-score, category))
    ranked = grouped[order]
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    starts = np.searchsorted(category[order], np.arange(num_classes + 1))

    objects = np.argsort(ground_truth.category, kind="stable")
    groups = _groups(group, _group(ground_truth, objects, num_images))
    image, of_object = detections.image[grouped], ground_truth.image[objects]
    per_image = np.diff(ground_truth.starts)
    keys = _run(
        workers,
        groups,
        # IoU of detection d and object g: iou[row[d] + column[g]]
        overlaps.starts[image] + (grouped - detections.starts[image]) * per_image[image],
        objects - ground_truth.starts[of_object],
        rank,
        detections.size[grouped],
        ground_truth.size[objects],
        ground_truth.crowd[objects],
        overlaps.iou,
        bins,
        np.minimum(iou_thrs, 1 - 1e-10),
    )
    keys.sort()
    keys, hit = np.divmod(keys, 2)
    keys, iou = np.divmod(keys, len(iou_thrs))
    number = max(len(order), 1)
    wanted = np.arange(len(bins))[:, None] * number + starts[None, :-1]
    event_starts = np.append(np.searchsorted(keys, wanted.ravel()), len(keys))

    counted = objects[~ground_truth.crowd[objects]]
    return Matches(
        num_images=num_images,
        bins=bins,
        iou_thrs=iou_thrs,
        starts=starts,
        image=detections.image[ranked].astype(np.int32),
        score=detections.scores[ranked],
        size=detections.size[ranked],
        object_starts=np.searchsorted(ground_truth.category[counted], np.arange(num_classes + 1)),
        object_image=ground_truth.image[counted].astype(np.int32),
        object_size=ground_truth.size[counted],
        event_starts=event_starts,
        event_detection=(keys % number).astype(np.int32),
        event_iou=iou.astype(np.int16),
        event_hit=hit.astype(bool),
    )


def _checked(bins, iou_thrs, max_dets) -> tuple[np.ndarray, np.ndarray]:
    bins, iou_thrs = np.asarray(bins, dtype=float), np.asarray(iou_thrs, dtype=float)
    if bins.ndim != 2 or bins.shape[1] != 2 or not len(bins):
        raise ValueError(f"bins must be pairs (lowest, highest), at least one, got {bins.tolist()}")
    if not (bins[:, 0] <= bins[:, 1]).all():
        raise ValueError(f"a bin's lowest size must not be above its highest, got {bins.tolist()}")
    if iou_thrs.ndim != 1 or not len(iou_thrs) or not ((iou_thrs > 0) & (iou_thrs <= 1)).all():
        raise ValueError(f"iou_thrs must be numbers in (0, 1], got {iou_thrs.tolist()}")
    if max_dets < 1:
        raise ValueError(f"max_dets must be at least 1, got {max_dets}")
    return bins, iou_thrs


def _group(rows: Detections | GroundTruth, order: np.ndarray, num_images: int) -> np.ndarray:
    return rows.category[order].astype(np.int64) * num_images + rows.image[order]


def _groups(of_detections: np.ndarray, of_objects: np.ndarray) -> np.ndarray:
    """(n, 4) first and last + 1 detection, first and last + 1 object, where there are both."""
    both = np.intersect1d(of_detections, of_objects)
    return np.stack(
        [
            np.searchsorted(rows, both, side=side)
            for rows in (of_detections, of_objects)
            for side in ("left", "right")
        ],
        axis=1,
    ).astype(np.int64)


def _run(workers, groups, *columns) -> np.ndarray:
    tasks = [groups[i : i + GROUPS_PER_TASK] for i in range(0, len(groups), GROUPS_PER_TASK)]
    workers = min(workers or cores(), max(len(tasks), 1))
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda task: _match_groups(task, *columns), tasks))
    return np.concatenate([np.empty(0, np.int64), *found])


@jit
def _match_groups(groups, row, column, rank, size, object_size, crowd, iou, bins, thrs):
    """Events as numbers that sort: ((bin, rank, threshold), hit) in a mixed radix."""
    lowest = thrs.min()
    most, widest, longest, fullest = 0, 0, 0, 0
    for n in range(len(groups)):
        found, there = groups[n, 1] - groups[n, 0], groups[n, 3] - groups[n, 2]
        widest, longest = max(widest, found * there), max(longest, found)
        fullest = max(fullest, there)
        if not crowd[groups[n, 2] : groups[n, 3]].any():  # a crowd can be found any number of times
            found = min(found, there)
        most += found
    events = np.empty(most * len(bins) * len(thrs), np.int64)
    number = 0
    who = np.empty(widest, np.int64)
    overlap = np.empty(widest, np.float64)
    ends = np.zeros(longest + 1, np.int64)
    ignored = np.empty(fullest, np.bool_)
    taken = np.empty(fullest, np.bool_)
    for n in range(len(groups)):
        d0, d1, g0, g1 = groups[n]
        pairs = 0
        for d in range(d0, d1):
            for g in range(g0, g1):
                value = iou[row[d] + column[g]]
                if value >= lowest:
                    who[pairs], overlap[pairs] = g - g0, value
                    pairs += 1
            ends[d - d0 + 1] = pairs
        if pairs == 0:
            continue
        for a in range(len(bins)):
            low, high = bins[a]
            needed = False
            for g in range(g0, g1):
                ignored[g - g0] = crowd[g] or object_size[g] < low or object_size[g] > high
                needed |= not ignored[g - g0]
            for d in range(d0, d1):
                needed |= ends[d - d0] < ends[d - d0 + 1] and low <= size[d] <= high
            if not needed:
                continue
            for t in range(len(thrs)):
                taken[: g1 - g0] = False
                for d in range(d0, d1):
                    best, least = -1, thrs[t]
                    # what is ignored is looked at only if nothing else is found
                    for second in range(2):
                        for pair in range(ends[d - d0], ends[d - d0 + 1]):
                            g = who[pair]
                            if ignored[g] != (second == 1) or overlap[pair] < least:
                                continue
                            if taken[g] and not crowd[g0 + g]:
                                continue
                            best, least = g, overlap[pair]
                        if best >= 0:
                            break
                    if best < 0:
                        continue
                    taken[best] = True
                    hit = not ignored[best]
                    if hit or low <= size[d] <= high:
                        event = (a * len(rank) + rank[d]) * len(thrs) + t
                        events[number] = 2 * event + hit
                        number += 1
    return events[:number].copy()
