"""AP against object size as a curve: windows that slide over the sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from mmattn.evaluation.bootstrap import bootstrap, figures
from mmattn.evaluation.data import Detections, GroundTruth
from mmattn.evaluation.matching import match
from mmattn.evaluation.overlaps import overlaps
from mmattn.evaluation.plots import SizeCurve

WIDTH = 2.0  # largest over smallest side in a window
MIN_OBJECTS, MIN_IMAGES = 10, 5


def windows(ground_truth: GroundTruth, number: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Windows over the sizes of the objects, evenly spaced by ratio.

    Args:
        ground_truth: The objects; crowds are left out.
        number: Number of windows.

    Returns:
        (P,) middle of each window as a side length (root of an area in px, or a share), and
        (P, 2) lowest and highest size. Empty where there are fewer than ten objects.
    """
    sizes = ground_truth.size[~ground_truth.crowd & (ground_truth.size > 0)]
    if len(sizes) < MIN_OBJECTS:
        return np.empty(0), np.empty((0, 2))
    power = 1 if ground_truth.size_by == "sqrt-relative" else 2
    low, high = np.quantile(sizes ** (1 / power), [0.01, 0.99])
    # all of one size: one window around it
    middles = np.geomspace(low, high, number) if high > 1.01 * low else np.array([low])
    half = math.sqrt(WIDTH)
    return middles, np.stack([middles / half, middles * half], 1) ** power


def size_curve(
    name: str,
    ground_truth: GroundTruth,
    seeds: Sequence[Detections],
    weights: np.ndarray | None,
    *,
    iou_thrs: Sequence[float],
    max_dets: int,
    level: float = 0.95,
    advance: Callable[[int], object] | None = None,
) -> SizeCurve:
    """AP in sliding windows of size, with an interval from resamples of the images and the seeds.

    Args:
        name: The run's name.
        ground_truth: The objects.
        seeds: Detections of each seed; the curve is their mean.
        weights: (R, I) resamples, from :func:`~mmattn.evaluation.bootstrap.draw`; None for a
            curve without interval.
        iou_thrs: IoU thresholds.
        max_dets: Detections of an image and class that count.
        level: Of the interval.
        advance: Takes the number of replicates just done.

    Returns:
        The curve; nan where a window has fewer than ten objects, without an interval where they
        are on fewer than five images.
    """
    middles, ranges = windows(ground_truth)
    sizes = ground_truth.size[~ground_truth.crowd]
    num_objects = [int(((sizes >= low) & (sizes <= high)).sum()) for low, high in ranges]
    if not len(middles):
        return SizeCurve(name=name, size=[], ap=[], low=[], high=[], num_objects=[])
    ap, samples = [], []
    for found in seeds:
        matches = match(
            ground_truth, found, overlaps(ground_truth, found), ranges, iou_thrs, max_dets
        )
        ap.append(figures(matches).ap)
        if weights is not None:
            samples.append(bootstrap(matches, weights, advance).ap)
    rest = (1 - level) / 2
    few = np.array(num_objects) < MIN_OBJECTS
    mean = np.where(few, np.nan, np.mean(ap, axis=0))
    if weights is None:
        return SizeCurve(name=name, size=middles, ap=mean, num_objects=num_objects)
    resampled = np.mean(samples, axis=0)
    low, high = np.full((2, len(mean)), np.nan)
    have = ~np.isnan(mean)
    objects = ground_truth.image[~ground_truth.crowd]
    for p in np.flatnonzero(have):
        inside = (sizes >= ranges[p, 0]) & (sizes <= ranges[p, 1])
        if len(np.unique(objects[inside])) < MIN_IMAGES:
            continue
        values = resampled[~np.isnan(resampled[:, p]), p]
        # AP of a resample is too high, as copies of an image agree; differences do not show it
        below, above = np.quantile(values - values.mean(), [rest, 1 - rest])
        of_seeds = _half_width([x[p] for x in ap], level)
        low[p], high[p] = mean[p] - np.hypot(below, of_seeds), mean[p] + np.hypot(above, of_seeds)
    return SizeCurve(name=name, size=middles, ap=mean, low=low, high=high, num_objects=num_objects)


def _half_width(values: Sequence[float], level: float) -> float:
    """Half the interval of a mean over seeds, by Student's t; 0 for one seed."""
    if len(values) < 2:
        return 0.0
    from scipy.special import stdtrit

    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return float(stdtrit(len(values) - 1, (1 + level) / 2) * error)
