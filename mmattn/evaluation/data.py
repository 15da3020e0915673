"""Ground truth and detections as columns, checked; what every part of the evaluation reads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np

from mmattn.evaluation.bins import SIZE_BY
from mmattn.evaluation.mmdet_pickle import SUFFIXES as PICKLES
from mmattn.evaluation.mmdet_pickle import read_mmdet_pickle
from mmattn.evaluation.reading import (
    MaskAnnotation,
    RawGroundTruth,
    check_box,
    read_detections,
    read_ground_truth,
)

IOU_TYPES = ("bbox", "segm")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GroundTruth:
    """Annotations as columns, sorted by image, in the order of the file within an image.

    Attributes:
        name: What errors call it.
        iou_type: 'bbox' or 'segm'.
        size_by: What ``size`` is: 'area', 'bbox' or 'sqrt-relative'.
        image_ids: Ids of the images, sorted; an image's number is its place here.
        image_sizes: (I, 2) height and width in px; nan where the file does not say.
        file_names: File name of each image, or None.
        class_ids: Ids of the classes that are evaluated; a class's number is its place here.
        class_names: Their names.
        categories: Id -> name of all classes of the file, in its order.
        ids: (M,) ids of the annotations, as the file has them (None where it has none).
        image: (M,) image number.
        category: (M,) class number.
        boxes: (M, 4) x, y, width, height in px.
        size: (M,) what places an object in a bin: px^2, or a share for 'sqrt-relative'.
        crowd: (M,) bool.
        masks: M compressed RLEs, for 'segm'; else None.
        starts: (I + 1,) annotations ``starts[i]:starts[i + 1]`` are those of image i.
        notes: What a reader of the figures should know.
    """

    name: str
    iou_type: str
    size_by: str
    image_ids: list[Any]
    image_sizes: np.ndarray
    file_names: list[str | None]
    class_ids: list[Any]
    class_names: list[str]
    categories: dict[Any, str]
    ids: list[Any]
    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    size: np.ndarray
    crowd: np.ndarray
    masks: list[dict] | None
    starts: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """Detections as columns, sorted by image, then by score, highest first (stable).

    Attributes:
        image: (N,) image number in the ground truth.
        category: (N,) class number in the ground truth.
        boxes: (N, 4) x, y, width, height in px (those of the masks for 'segm').
        scores: (N,).
        size: (N,) in the unit of the ground truth's ``size``.
        masks: N compressed RLEs, for 'segm'; else None.
        starts: (I + 1,) detections ``starts[i]:starts[i + 1]`` are those of image i.
        notes: What a reader of the figures should know.
    """

    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    size: np.ndarray
    masks: list[dict] | None
    starts: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image)


def load_ground_truth(
    source: Any,
    iou_type: str = "bbox",
    size_by: str = "area",
    classes: Iterable[Any] | None = None,
) -> GroundTruth:
    """Reads and checks a COCO ground truth.

    Args:
        source: Path of an annotation file, its content, or a :class:`GroundTruth`, which is
            returned as it is.
        iou_type: 'bbox' or 'segm'.
        size_by: What places an object in a size bin: 'area', the annotation's ``area`` field in
            px^2; 'bbox', the area of its box in px^2; or 'sqrt-relative', the square root of its
            area's share of the image's area, in [0, 1].
        classes: Ids or names of the classes to evaluate, all if None.

    Raises:
        FileNotFoundError: The file does not exist.
        TypeError, ValueError: It is not a valid ground truth, or an argument is not valid.
    """
    if isinstance(source, GroundTruth):
        if (source.iou_type, source.size_by, classes) != (iou_type, size_by, None):
            raise ValueError(
                f"the ground truth was loaded for iou_type {source.iou_type!r} and size_by "
                f"{source.size_by!r}, and chooses the classes: load it again for others"
            )
        return source
    if iou_type not in IOU_TYPES:
        raise ValueError(f"iou_type must be one of {', '.join(IOU_TYPES)}, got {iou_type!r}")
    if size_by not in SIZE_BY:
        raise ValueError(f"size_by must be one of {', '.join(SIZE_BY)}, got {size_by!r}")
    raw = read_ground_truth(source, iou_type)
    for key in ("images", "categories"):
        if not getattr(raw, key):
            raise ValueError(f"{raw.name} has no {key!r}; is it a COCO annotation file?")
    notes = []
    images = {x.id: x for x in raw.images}
    if number := len(raw.images) - len(images):
        notes.append(f"{_plural(number, 'image')} repeated the id of another: left out.")
    try:
        image_ids = sorted(images)
    except TypeError:
        raise ValueError(f"{raw.name}: image ids must be all numbers or all texts") from None
    image_sizes = np.array(
        [[images[x].height or np.nan, images[x].width or np.nan] for x in image_ids], dtype=float
    )
    if (bad := (image_sizes <= 0).any(1)).any():
        raise ValueError(
            f"{raw.name}: image {image_ids[int(bad.argmax())]!r} must have a height and width "
            "above 0"
        )
    if size_by == "sqrt-relative" and (unknown := np.isnan(image_sizes).any(1)).any():
        raise ValueError(
            f"{raw.name}: size_by 'sqrt-relative' needs each image's height and width; "
            f"{int(unknown.sum())} of {len(unknown)} images have none, the first is "
            f"{image_ids[int(unknown.argmax())]!r}"
        )
    names = _class_names(raw)
    wanted = _choose_classes(names, classes, raw.name)
    columns, more_notes = _annotation_columns(
        raw, iou_type, size_by, image_ids, image_sizes, wanted, frozenset(names)
    )
    return GroundTruth(
        name=raw.name,
        iou_type=iou_type,
        size_by=size_by,
        image_ids=image_ids,
        image_sizes=image_sizes,
        file_names=[images[x].file_name for x in image_ids],
        class_ids=wanted,
        class_names=[names[x] for x in wanted],
        categories=names,
        notes=(*notes, *more_notes),
        **columns,
    )


def load_detections(
    source: Any,
    ground_truth: GroundTruth,
    unknown: str = "error",
    model_classes: Iterable[str] | None = None,
) -> Detections:
    """Reads and checks detections in COCO's results format.

    Args:
        source: Path of a results file, its content (a list of dicts with ``image_id``,
            ``category_id``, ``score`` and ``bbox`` or ``segmentation``), path of the pickle that
            mmdet's ``tools/test.py --out`` writes (.pkl), columns
            (:class:`~mmattn.evaluation.reading.RawDetections`), or :class:`Detections`, which
            are returned as they are.
        ground_truth: What they belong to.
        unknown: What happens to detections of images or categories that the ground truth does
            not have: 'error', or 'drop' them with a note.
        model_classes: For a pickle, whose labels are numbers: names of the classes that the model
            knows, if not all of the file.

    Raises:
        FileNotFoundError: The file does not exist.
        TypeError, ValueError: They are not valid; the message names the first at fault.
    """
    if isinstance(source, Detections):
        return source
    if unknown not in ("error", "drop"):
        raise ValueError(f"unknown must be 'error' or 'drop', got {unknown!r}")
    if isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() in PICKLES:
        raw = read_mmdet_pickle(
            source, ground_truth.categories, ground_truth.iou_type, model_classes
        )
    else:
        raw = read_detections(source, ground_truth.iou_type)
    where, notes = raw.name, list(raw.notes)
    image = _numbers(raw.image_ids, ground_truth.image_ids)
    category = _numbers(raw.category_ids, ground_truth.class_ids)
    known = np.ones(len(image), dtype=bool)
    for key, numbers, ids, have, thing, hint in (
        (
            "image_id",
            image,
            raw.image_ids,
            ground_truth.image_ids,
            "images",
            "do the results belong to another split?",
        ),
        (
            "category_id",
            category,
            raw.category_ids,
            list(ground_truth.categories),
            "categories",
            "were the labels mapped to the ids of this file?",
        ),
    ):
        missing = numbers < 0
        if key == "category_id" and len(ground_truth.class_ids) < len(ground_truth.categories):
            # of a category that is not evaluated: nothing to say
            known &= ~missing
            missing = _numbers(ids, have) < 0
        if not missing.any():
            continue
        first = int(missing.argmax())
        found = (
            f"{int(missing.sum())} of {len(image)} detections are of {thing} that the "
            "ground truth does not have"
        )
        if unknown == "error":
            raise ValueError(
                f"{where}: {found}; the first is detections[{first}] with {key} "
                f"{_item(ids[first])!r}, and the ground truth has {_examples(have)}; "
                f"{_type_hint(ids[first], have) or hint}"
            )
        notes.append(f"{found}: they are left out (the first has {key} {_item(ids[first])!r}).")
        known &= ~missing
    _check_all(np.isfinite(raw.scores), raw.scores, where, "'score' must be a finite number")
    if raw.boxes is not None:
        _check_boxes(raw.boxes, f"{where}: detections")
    outside = (raw.scores < 0) | (raw.scores > 1)
    if outside.any():
        notes.append(
            f"{int(outside.sum())} of {len(outside)} scores are outside [0, 1] "
            f"({raw.scores.min():g} to {raw.scores.max():g}); only their order counts."
        )
    masks, boxes = raw.masks, raw.boxes
    if ground_truth.iou_type == "segm":
        masks = [
            _rle(masks[i], ground_truth.image_sizes[image[i]], f"{where}: detections[{i}]")
            if known[i]
            else None
            for i in range(len(masks))
        ]
    keep = np.flatnonzero(known)
    order = keep[_order(image[keep], raw.scores[keep])]
    image = image[order]
    if masks is not None:
        masks = [masks[i] for i in order]
        boxes = _mask_boxes(masks)
        areas = hotcoco.mask.area(masks).astype(float) if masks else np.empty(0)
    else:
        boxes = boxes[order]
        areas = boxes[:, 2] * boxes[:, 3]
    notes += _suspicions(boxes, raw.scores[order], image, ground_truth)
    return Detections(
        image=image,
        category=category[order],
        boxes=boxes,
        scores=raw.scores[order],
        size=_sizes(areas, boxes, image, ground_truth.size_by, ground_truth.image_sizes),
        masks=masks,
        starts=np.searchsorted(image, np.arange(len(ground_truth.image_ids) + 1)),
        notes=tuple(notes),
    )


def _order(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """By image, then by score, highest first, then as they are."""
    same, later = image[1:] == image[:-1], image[1:] > image[:-1]
    if (later | same & (scores[1:] <= scores[:-1])).all():
        return np.arange(len(image))
    return np.lexsort((-scores, image))


def _suspicions(
    boxes: np.ndarray, scores: np.ndarray, image: np.ndarray, ground_truth: GroundTruth
) -> list[str]:
    """What is valid and yet most likely a mistake."""
    if not len(boxes):
        return ["There are no detections."]
    notes = []
    if len(scores) > 1 and scores.min() == scores.max():
        notes.append("All scores are equal, so AP depends on the order of the detections.")
    height, width = ground_truth.image_sizes[image].T
    beyond = (boxes[:, 0] + boxes[:, 2] > 1.05 * width) | (
        boxes[:, 1] + boxes[:, 3] > 1.05 * height
    )
    if np.median(boxes.max(1)) <= 1.5:
        notes.append(
            f"Most boxes do not reach beyond {np.median(boxes.max(1)):.3g} px: are these shares of "
            "the image? COCO's boxes are [x, y, width, height] in px."
        )
    elif beyond.mean() > 0.25:
        notes.append(
            f"{100 * beyond.mean():.0f} % of the boxes reach far beyond their image: are they "
            "[x1, y1, x2, y2], or of a resized image? COCO's are [x, y, width, height] in px."
        )
    has_objects = (
        np.bincount(ground_truth.image[~ground_truth.crowd], minlength=image.max() + 1) > 0
    )
    has_objects[image] = False
    total = len(np.unique(ground_truth.image[~ground_truth.crowd]))
    if has_objects.sum() > total / 10:
        notes.append(
            f"{int(has_objects.sum())} of the {total} images with objects have no "
            "detection at all: their objects count as missed."
        )
    return notes


def _annotation_columns(
    raw: RawGroundTruth,
    iou_type: str,
    size_by: str,
    image_ids: list[Any],
    image_sizes: np.ndarray,
    classes: list[Any],
    all_classes: frozenset,
) -> tuple[dict[str, Any], list[str]]:
    records, where, notes = raw.annotations, f"{raw.name}: annotations", []
    image = _numbers([x.image_id for x in records], image_ids)
    category = _numbers([x.category_id for x in records], classes)
    lost = image < 0
    lost |= np.fromiter((x.category_id not in all_classes for x in records), bool, len(records))
    if lost.any():
        notes.append(
            f"{_plural(int(lost.sum()), 'annotation')} of images or categories that the ground "
            "truth does not list: left out."
        )
    used = np.flatnonzero((image >= 0) & (category >= 0))
    order = used[np.argsort(image[used], kind="stable")]
    records, image, category = [records[i] for i in order], image[order], category[order]
    number = len(records)

    if not number:
        notes.append("The ground truth has no objects of these classes: all figures are n/a.")
    ids = [x.id for x in records if x.id is not None]
    if repeated := len(ids) - len(set(ids)):
        notes.append(f"{_plural(repeated, 'annotation')} repeated the id of another: each counts.")
    if iou_type == "segm":
        masks = [
            _annotation_mask(x, image_sizes[n], f"{where}[{i}] (id {x.id!r})")
            for x, n, i in zip(records, image, order, strict=True)
        ]
        boxes = _mask_boxes(masks)
        if size_by == "bbox":
            for i, x in enumerate(records):
                if x.bbox is not None:
                    boxes[i] = check_box(x.bbox, f"{where}[{order[i]}]")
            _check_boxes(boxes, where, order)
    else:
        masks = None
        boxes = np.array([x.bbox for x in records], dtype=float).reshape(number, 4)
        _check_boxes(boxes, where, order)
    areas = np.array([np.nan if x.area is None else x.area for x in records], dtype=float)
    missing = np.fromiter((x.area is None for x in records), bool, number)
    bad = ~missing & ~((areas >= 0) & (areas < np.inf))
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"{where}[{order[first]}] (id {records[first].id!r}): 'area' must be px^2, "
            f"got {areas[first]!r}"
        )
    if missing.any():
        if iou_type == "segm":
            areas[missing] = hotcoco.mask.area([masks[i] for i in np.flatnonzero(missing)])
        else:
            areas[missing] = (boxes[:, 2] * boxes[:, 3])[missing]
        if size_by != "bbox":
            shape = "box" if iou_type == "bbox" else "mask"
            notes.append(
                f"{int(missing.sum())} of {number} annotations have no 'area': "
                f"their size is the area of their {shape}."
            )
    return {
        "ids": [x.id for x in records],
        "image": image,
        "category": category,
        "boxes": boxes,
        "size": _sizes(areas, boxes, image, size_by, image_sizes),
        "crowd": np.fromiter((bool(x.iscrowd) for x in records), bool, number),
        "masks": masks,
        "starts": np.searchsorted(image, np.arange(len(image_ids) + 1)),
    }, notes


def _class_names(raw: RawGroundTruth) -> dict[Any, str]:
    names = {}
    for x in raw.categories:
        name = str(x.id) if x.name is None else x.name
        if names.setdefault(x.id, name) != name:
            raise ValueError(
                f"{raw.name}: category id {x.id!r} comes twice, as {names[x.id]!r} and {name!r}"
            )
    return names


def _choose_classes(names: dict[Any, str], classes: Iterable[Any] | None, where: str) -> list[Any]:
    if classes is None:
        return list(names)
    if isinstance(classes, str):
        raise TypeError(f"classes must be a list of ids or names, got {classes!r}")
    by_name: dict[str, list] = {}
    for class_id, name in names.items():
        by_name.setdefault(name, []).append(class_id)
    wanted = []
    for x in classes:
        if x not in names and x not in by_name:
            raise ValueError(
                f"classes: {where} has no category {x!r}; it has {_examples(list(names.values()))}"
            )
        wanted += [x] if x in names else by_name[x]
    if not wanted:
        raise ValueError("classes is empty; name at least one class, or pass None")
    return list(dict.fromkeys(wanted))


def _numbers(ids: Sequence[Any] | np.ndarray, known: Sequence[Any]) -> np.ndarray:
    """Place of each id among the known ones, -1 where it is not there."""
    array = np.asarray(ids) if len(ids) else np.empty(0, np.int64)
    table = np.asarray(known)
    if array.dtype.kind == "i" and table.dtype.kind == "i" and len(table):
        order = np.argsort(table)
        place = np.searchsorted(table, array, sorter=order).clip(max=len(table) - 1)
        numbers = order[place]
        return np.where(table[numbers] == array, numbers, -1).astype(np.int32)
    places = {x: n for n, x in enumerate(known)}
    return np.fromiter((places.get(_item(x), -1) for x in ids), np.int32, len(ids))


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _type_hint(value: Any, known: Sequence[Any]) -> str:
    """What is wrong where a text meets numbers, or the other way round."""
    is_text, known_are_text = isinstance(value, str), isinstance(known[0], str)
    if is_text == known_are_text:
        return ""
    text, number = "is a text", "are numbers"
    return f"it {text} and they {number}" if is_text else "it is a number and they are texts"


def _examples(values: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, values[:3]))
    return shown if len(values) <= 3 else f"{shown}, ... ({len(values)})"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _check_all(valid: np.ndarray, values: np.ndarray, where: str, expected: str) -> None:
    if not valid.all():
        first = int((~valid).argmax())
        raise ValueError(
            f"{where}: detections[{first}]: {expected}, got {values[first]} "
            f"({int((~valid).sum())} of {len(valid)} are wrong)"
        )


def _check_boxes(boxes: np.ndarray, where: str, places: np.ndarray | None = None) -> None:
    for bad, expected in (
        (~np.isfinite(boxes).all(1), "[x, y, width, height], finite numbers"),
        ((boxes[:, 2:] < 0).any(1), "[x, y, width, height] with width and height not negative"),
    ):
        if bad.any():
            first = int(bad.argmax())
            place = first if places is None else places[first]
            raise ValueError(
                f"{where}[{place}]: 'bbox' must be {expected}, got {boxes[first].tolist()} "
                f"({int(bad.sum())} of {len(bad)} are wrong)"
            )


def _sizes(
    areas: np.ndarray, boxes: np.ndarray, image: np.ndarray, size_by: str, image_sizes: np.ndarray
) -> np.ndarray:
    if size_by == "bbox":
        return boxes[:, 2] * boxes[:, 3]
    if size_by == "sqrt-relative":
        return np.sqrt(areas / image_sizes[image].prod(1))
    return areas


def _mask_boxes(masks: list[dict]) -> np.ndarray:
    return hotcoco.mask.to_bbox(masks).reshape(-1, 4) if masks else np.empty((0, 4))


def _annotation_mask(x: MaskAnnotation, image_size: np.ndarray, where: str) -> dict:
    if isinstance(x.segmentation, dict):
        return _rle(x.segmentation, image_size, where)
    polygons = x.segmentation
    if not polygons or any(len(p) < 6 or len(p) % 2 for p in polygons):
        raise ValueError(
            f"{where}: 'segmentation' must be RLE or polygons of at least three points, "
            f"got {str(polygons)[:60]}"
        )
    if not all(np.isfinite(p).all() for p in polygons):
        raise ValueError(f"{where}: 'segmentation' must be finite numbers")
    if np.isnan(image_size).any():
        raise ValueError(
            f"{where}: image {x.image_id!r} has polygons but no 'height' and 'width', which "
            "iou_type='segm' needs"
        )
    height, width = map(int, image_size)
    return hotcoco.mask.merge(hotcoco.mask.fr_py_objects(polygons, height, width))


def _rle(mask: dict, image_size: np.ndarray, where: str) -> dict:
    if not {"size", "counts"} <= mask.keys():
        raise ValueError(f"{where}: 'segmentation' must be RLE (size and counts)")
    try:
        height, width = (int(value) for value in mask["size"])
    except (TypeError, ValueError):
        raise ValueError(
            f"{where}: the RLE's 'size' must be [height, width], got {mask['size']!r}"
        ) from None
    if not np.isnan(image_size).any() and (height, width) != tuple(image_size):
        raise ValueError(
            f"{where}: the mask is {height} x {width} (height x width), but the image is "
            f"{image_size[0]:.0f} x {image_size[1]:.0f}"
        )
    rle = {"size": [height, width], "counts": mask["counts"]}
    try:
        if isinstance(rle["counts"], (list, tuple)):
            return hotcoco.mask.fr_py_objects(rle, height, width)
        hotcoco.mask.area(rle)
    except Exception as error:  # hotcoco raises several kinds
        raise ValueError(f"{where}: the RLE cannot be read: {error}") from None
    return rle
