"""IoU of every detection with every object of its image."""

from __future__ import annotations

from typing import NamedTuple

import hotcoco
import numpy as np

from mmattn.evaluation.data import Detections, GroundTruth


class Overlaps(NamedTuple):
    """IoUs of all images in one array.

    Attributes:
        iou: (sum over images of D * G,) float64. That of the image's d-th detection and g-th
            annotation (of any class) is ``iou[starts[image] + d * G + g]``. For a crowd, the
            share of the detection that the crowd covers, as in pycocotools.
        starts: (I,) int64, where an image's block begins.
    """

    iou: np.ndarray
    starts: np.ndarray


def overlaps(ground_truth: GroundTruth, detections: Detections) -> Overlaps:
    """IoUs of boxes or masks, as pycocotools computes them.

    Args:
        ground_truth: M annotations of I images.
        detections: N detections on the same images.

    Returns:
        The IoUs of each image's detections with its annotations.
    """
    objects, found = np.diff(ground_truth.starts), np.diff(detections.starts)
    ends = np.cumsum(objects * found)
    starts = ends - objects * found
    iou = np.empty(ends[-1] if len(ends) else 0)
    if ground_truth.iou_type == "segm":
        of_objects, of_found = ground_truth.masks, detections.masks
    else:
        of_objects, of_found = ground_truth.boxes, detections.boxes
    crowd = ground_truth.crowd
    for i in np.flatnonzero(objects * found):
        g = slice(ground_truth.starts[i], ground_truth.starts[i + 1])
        d = slice(detections.starts[i], detections.starts[i + 1])
        block = hotcoco.mask.iou(of_found[d], of_objects[g], crowd[g].tolist())
        iou[starts[i] : ends[i]] = np.asarray(block).reshape(-1)
    return Overlaps(iou, starts)
