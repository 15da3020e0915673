"""AP and AR by object size on COCO-format data, with pycocotools' semantics.

hotcoco (Rust) matches and accumulates; :mod:`~mmattn.evaluation.data` checks what goes in, and
this module names what comes out. Every figure agrees with pycocotools to 1e-9, except where
pycocotools is plainly wrong or fails:

* It drops every match to an annotation with id 0 and mixes up annotations that share an id.
  Annotation ids say nothing about AP, so they are not read here.
* It raises on an empty list of detections. No detection at all is AP 0 here.
* It raises on annotations without ``iscrowd`` (0 here) or ``area`` (see :func:`evaluate`).
* It takes a mask's size from the box, if the results of a mask model carry one. Here, as in
  mmdet's metric, a mask is measured by its own area.
* It leaves out detections of unknown categories without a word. They are an error here, or with
  ``unknown='drop'`` a note.
* It accepts NaN, negative widths and masks of another size than the image. All are errors here.

As in pycocotools, an annotation's ``ignore`` field is not read (``iscrowd`` alone decides), and
annotations of images or categories that the file does not list are left out.

hotcoco 1.3 needs care in two places: it takes only non-negative integers as ids (so ids are
numbered here, in sorted order, which is what decides between equal scores), and two equal area
ranges in one call give -1 for one of them (so equal ranges are asked for once).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import hotcoco
import numpy as np

from mmattn.evaluation.bins import ALL, MAX_SIZE, SizeBin, SizeBins, parse_bins
from mmattn.evaluation.data import Detections, GroundTruth, load_detections, load_ground_truth
from mmattn.evaluation.progress import Progress
from mmattn.evaluation.result import ClassFigures, Conditions, Figures, Result
from mmattn.evaluation.sources import find_files


def evaluate(
    ground_truth: Any,
    results: Any,
    bins: SizeBins = None,
    iou_type: str = "bbox",
    *,
    size_by: str = "area",
    max_dets: int = 100,
    iou_thrs: float | Sequence[float] | None = None,
    classes: Iterable[Any] | None = None,
    unknown: str = "error",
    model_classes: Iterable[str] | None = None,
    name: str | None = None,
) -> Result:
    """Evaluates detections in COCO's results format against a COCO ground truth.

    Which size decides: an object belongs to a bin by the ``area`` field of its annotation. In
    COCO that is the area of its mask, also where boxes are evaluated. A detection that matches
    an object goes where the object goes; one that matches none counts as a false positive in
    the bin of its own area, w * h of its box for 'bbox', the area of its mask for 'segm'. Where
    an annotation has no ``area``, its own box or mask is measured in the same way, and a note
    in the result says how often.

    Args:
        ground_truth: Path of an annotation file, or its content.
        results: Path of a results file, of mmdet's pickle, an ``outfile_prefix`` of mmdet's or a
            folder with one of these; or its content: a list of dicts with ``image_id``,
            ``category_id``, ``score`` and ``bbox`` or ``segmentation`` (RLE).
        bins: 'coco' (small, medium, large), 'coco-fine', a text such as
            'tiny:0-16^2,small:16^2-32^2', a list of (name, low, high) or a dict of
            name: (low, high); see :func:`~mmattn.evaluation.bins.parse_bins`.
        iou_type: 'bbox' or 'segm'.
        size_by: What is compared with the bins' limits: 'area' (as above, px^2), 'bbox' (w * h of
            the box for objects and detections alike, px^2) or 'sqrt-relative' (square root of the
            area's share of the image's area, 0 to 1).
        max_dets: How many detections of an image and class count, best scores first, for every
            figure.
        iou_thrs: IoU thresholds that AP and AR are averaged over; 0.50:0.05:0.95 if None. AP50
            and AP75 are n/a where their threshold is not among them.
        classes: Ids or names of the classes to evaluate; all of the ground truth if None.
        unknown: What happens to detections of images or categories that the ground truth does
            not have: 'error', or 'drop' them with a note in the result.
        model_classes: For a pickle, whose labels are numbers: names of the classes that the model
            knows, if not all of the file.
        name: Name of the result; the file's name if None.

    Returns:
        The result. Means are over the classes that have objects, as in pycocotools.

    Raises:
        FileNotFoundError: A file does not exist.
        TypeError: An argument is of the wrong type.
        ValueError: An argument, the ground truth or the detections are not valid; the message
            names the first record at fault.
    """
    parsed, max_dets = parse_bins(bins, size_by), parse_max_dets(max_dets)
    iou_thrs = parse_iou_thrs(iou_thrs)
    if name is None:
        name = os.path.basename(results) if isinstance(results, (str, os.PathLike)) else "results"
    with Progress() as progress:
        progress.stage("reading")
        truth = load_ground_truth(ground_truth, iou_type, size_by, classes)
        found = load_detections(_one_file(results, iou_type), truth, unknown, model_classes)
        progress.stage("evaluating")
        result = evaluate_loaded(
            truth, found, parsed, max_dets=max_dets, iou_thrs=iou_thrs, name=name
        )
    result.conditions.notes.extend(doubts(result))
    return result


def _one_file(results: Any, iou_type: str) -> Any:
    """The file behind a prefix or a folder; what is no path is returned as it is."""
    if not isinstance(results, (str, os.PathLike)) or os.path.isfile(results):
        return results
    files = find_files(results, iou_type)
    if len(files) > 1:
        raise ValueError(
            f"{os.fspath(results)} has results of {len(files)} seeds; evaluate() takes one, such "
            f"as {files[0]}"
        )
    return files[0]


def evaluate_loaded(
    ground_truth: GroundTruth,
    detections: Detections,
    bins: Sequence[SizeBin],
    *,
    max_dets: int = 100,
    iou_thrs: Sequence[float] | None = None,
    name: str = "results",
) -> Result:
    """:func:`evaluate` of what is loaded and checked; here bins may overlap."""
    iou_thrs = parse_iou_thrs(iou_thrs)
    # hotcoco returns -1 for one of two equal ranges
    ranges = list(dict.fromkeys((low, high) for _, low, high in (ALL, *bins)))
    precision, recall = _run(ground_truth, detections, ranges, max_dets, iou_thrs)
    at_50, at_75 = (np.isclose(iou_thrs, x, rtol=0, atol=1e-9) for x in (0.5, 0.75))
    # of every class and range; crowds are no objects
    sizes, classes = (x[~ground_truth.crowd] for x in (ground_truth.size, ground_truth.category))
    counts = np.stack(
        [
            np.bincount(
                classes[(sizes >= low) & (sizes <= high)], minlength=len(ground_truth.class_ids)
            )
            for low, high in ranges
        ]
    )

    precision_50, precision_75 = precision[at_50], precision[at_75]

    def figures(size_bin: SizeBin, k: int | slice = slice(None)) -> dict[str, Any]:
        a = ranges.index((size_bin.low, size_bin.high))
        return {
            "ap": _mean(precision[:, :, k, a]),
            "ap50": _mean(precision_50[:, :, k, a]),
            "ap75": _mean(precision_75[:, :, k, a]),
            "ar": _mean(recall[:, k, a]),
            "num_objects": int(counts[a, k].sum()),
        }

    def by_size(k: int | slice = slice(None)) -> dict[str, Figures]:
        return {size_bin.name: Figures(**figures(size_bin, k)) for size_bin in bins}

    def curves(size_bin: SizeBin) -> np.ndarray:
        a = ranges.index((size_bin.low, size_bin.high))
        found = precision[..., a][:, :, counts[a] > 0]
        return found.mean(2) if found.size else np.full(found.shape[:2], np.nan)

    per_class = {}
    for k, (class_id, class_name) in enumerate(
        zip(ground_truth.class_ids, ground_truth.class_names, strict=True)
    ):
        unique = ground_truth.class_names.count(class_name) == 1
        per_class[class_name if unique else f"{class_name} ({class_id})"] = ClassFigures(
            id=class_id, name=class_name, by_size=by_size(k), **figures(ALL, k)
        )
    return Result(
        name=name,
        **figures(ALL),
        by_size=by_size(),
        per_class=per_class,
        covered=np.diff(detections.starts) > 0,
        precision={size_bin.name: curves(size_bin) for size_bin in (ALL, *bins)},
        conditions=Conditions(
            iou_type=ground_truth.iou_type,
            iou_thrs=iou_thrs,
            max_dets=max_dets,
            size_by=ground_truth.size_by,
            size_bins={name: (low, high) for name, low, high in bins},
            num_images=len(ground_truth.image_ids),
            num_crowds=int(ground_truth.crowd.sum()),
            num_detections=len(detections),
            notes=[*ground_truth.notes, *detections.notes],
        ),
    )


def doubts(result: Result) -> list[str]:
    """What is valid in a result and yet most likely a mistake; early in a training it is not."""
    notes, limits = [], result.conditions.size_bins
    if result.conditions.num_detections and result.precision["all"].max(0).mean() < 0.01:
        notes.append(
            "Next to nothing is found: are the boxes [x, y, width, height] in px, do the category "
            "ids fit, and are the results of these images?"
        )
    empty = [name for name, x in result.by_size.items() if not x.num_objects]
    sides = all(high < 1000 for _, high in limits.values() if high < MAX_SIZE)
    if empty and result.num_objects and sides and result.conditions.size_by != "sqrt-relative":
        notes.append(
            f"No object is in {', '.join(empty)}: limits are areas in px^2, such as 32^2, no sides."
        )
    return notes


def parse_max_dets(max_dets: int) -> int:
    """Checks a number of detections an image."""
    if isinstance(max_dets, bool) or not isinstance(max_dets, (int, np.integer)) or max_dets < 1:
        raise ValueError(
            f"max_dets must be the number of detections an image that count, 1 or more, "
            f"got {max_dets!r}"
        )
    return int(max_dets)


def parse_iou_thrs(iou_thrs: float | Sequence[float] | None) -> list[float]:
    """Checks IoU thresholds; one is a list of one, None is COCO's 0.50:0.05:0.95."""
    if iou_thrs is None:
        return np.linspace(0.5, 0.95, 10).tolist()
    thresholds = np.atleast_1d(iou_thrs)
    numeric = thresholds.dtype.kind in "if" and thresholds.ndim == 1 and thresholds.size
    if not numeric or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ValueError(f"iou_thrs must be one or more numbers in (0, 1], got {iou_thrs!r}")
    return thresholds.astype(float).tolist()


def _run(
    ground_truth: GroundTruth,
    detections: Detections,
    ranges: Sequence[tuple[float, float]],
    max_dets: int,
    iou_thrs: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (iou, recall, class, range) and recall (iou, class, range); -1 is n/a."""
    height, width = np.nan_to_num(ground_truth.image_sizes).astype(int).T.tolist()
    truth = hotcoco.COCO.from_arrays(
        [
            {"id": n, "height": h, "width": w}
            for n, (h, w) in enumerate(zip(height, width, strict=True), 1)
        ],
        [{"id": n, "name": name} for n, name in enumerate(ground_truth.class_names, 1)],
        ground_truth.image + 1,
        ground_truth.category + 1,
        ground_truth.boxes,
        area=ground_truth.size,
        iscrowd=ground_truth.crowd,
        segmentation=ground_truth.masks,
    )
    columns = (detections.image + 1, detections.boxes, detections.scores, detections.category + 1)
    found = truth.load_res(np.column_stack(columns), segmentation=detections.masks)
    if ground_truth.iou_type == "segm" or ground_truth.size_by == "sqrt-relative":
        found.update_anns(ids=np.arange(1, len(detections) + 1), area=detections.size)
    evaluator = hotcoco.COCOeval(truth, found, ground_truth.iou_type)
    params = evaluator.params
    params.max_dets = [max_dets]
    params.iou_thrs = iou_thrs
    params.area_rng = [list(limits) for limits in ranges]
    params.area_rng_lbl = [f"{low}-{high}" for low, high in ranges]
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["precision"][..., 0], evaluator.eval["recall"][..., 0]


def _mean(values: np.ndarray) -> float:
    """Mean of what was evaluated; -1 marks classes and ranges without objects."""
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")
