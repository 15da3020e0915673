"""AP and AR by object size on COCO-format data, with pycocotools' semantics.

hotcoco (Rust) matches and accumulates; this module checks and cleans what goes in, and names
what comes out. Every figure agrees with pycocotools to 1e-9, except where pycocotools is
plainly wrong or fails:

* It drops every match to an annotation with id 0 and mixes up annotations that share an id.
  Annotation ids say nothing about AP, so they are not read here.
* It raises on an empty list of detections. No detection at all is AP 0 here.
* It raises on annotations without ``iscrowd`` (0 here) or ``area`` (see :func:`evaluate_coco`).
* It takes a mask's size from the box, if the results of a mask model carry one. Here, as in
  mmdet's metric, a mask is measured by its own area.
* It accepts NaN scores and masks of another size than the image. Both are errors here.

As in pycocotools, an annotation's ``ignore`` field is not read (``iscrowd`` alone decides), and
annotations of images or categories that the file does not list are left out.

hotcoco 1.3 needs care in two places: it takes only non-negative integers as ids (so ids are
numbered here, in sorted order, which is what decides between equal scores), and two equal area
ranges in one call give -1 for one of them (so equal ranges are asked for once).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import hotcoco
import numpy as np

IOU_TYPES = ("bbox", "segm")
MAX_AREA = 1e10  # (1e5)^2, pycocotools' upper limit for "all" and "large"


class SizeBin(NamedTuple):
    """A named range of object areas in px^2; both limits belong to the bin."""

    name: str
    low: float
    high: float


COCO_BINS = (
    SizeBin("small", 0.0, 32.0**2),
    SizeBin("medium", 32.0**2, 96.0**2),
    SizeBin("large", 96.0**2, MAX_AREA),
)
_ALL = SizeBin("all", 0.0, MAX_AREA)

SizeBins = str | Mapping[str, Sequence[Any]] | Sequence[Sequence[Any]] | None


def parse_size_bins(size_bins: SizeBins = None) -> tuple[SizeBin, ...]:
    """Checks size bins and brings them into one form.

    Args:
        size_bins: ``None`` or ``'coco'`` for COCO's small, medium and large; else a list of
            ``(name, low, high)`` or a dict of ``name: (low, high)``, limits in px^2. ``high``
            may be ``None`` for no limit (COCO's 1e10). Both limits belong to the bin, as in
            COCO, where an area of 1024 is small and medium. Bins may overlap, and may leave
            gaps; an object in a gap counts in the overall figures alone.

    Returns:
        The bins, in the order given.

    Raises:
        TypeError: A bin is not a name and two numbers.
        ValueError: No bins, a name that cannot be a metric's name or comes twice, or limits
            that are negative, not finite, or not in order.
    """
    if size_bins is None or (isinstance(size_bins, str) and size_bins == "coco"):
        return COCO_BINS
    expected = "expected 'coco', a list of (name, low, high) or a dict of name: (low, high)"
    if isinstance(size_bins, Mapping):
        entries = [(name, *_as_sequence(limits, name)) for name, limits in size_bins.items()]
    elif isinstance(size_bins, Sequence) and not isinstance(size_bins, str):
        entries = [_as_sequence(entry, f"size_bins[{i}]") for i, entry in enumerate(size_bins)]
    else:
        raise TypeError(f"size_bins: {expected}, got {size_bins!r}")
    if not entries:
        raise ValueError(f"size_bins is empty: {expected}")
    bins = [_parse_size_bin(entry) for entry in entries]
    names = [size_bin.name for size_bin in bins]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"size_bins: the name {twice[0]!r} comes twice; give each bin its own name"
        )
    return tuple(bins)


def _as_sequence(value: Any, where: str) -> Sequence[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    raise TypeError(f"size_bins: expected a name and two limits at {where}, got {value!r}")


def _parse_size_bin(entry: Sequence[Any]) -> SizeBin:
    if len(entry) != 3:
        raise TypeError(f"size_bins: expected (name, low, high), got {list(entry)!r}")
    name, low, high = entry
    # a letter first, or mAP_50 could be a bin; no spaces or slashes, for TensorBoard's tags
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", name):
        raise ValueError(
            f"size_bins: {name!r} cannot name a bin; use letters, digits, '_', '-' and '.', "
            "beginning with a letter"
        )
    if name == "all":
        raise ValueError("size_bins: 'all' is the name of the overall figures; choose another")
    high = MAX_AREA if high is None else high
    for limit in (low, high):
        if isinstance(limit, bool) or not isinstance(limit, Real):
            raise TypeError(f"size_bins: the limits of {name!r} must be numbers, got {limit!r}")
    if high == math.inf:
        high = MAX_AREA
    if not 0 <= low < high < math.inf:
        raise ValueError(
            f"size_bins: the limits of {name!r} must be areas in px^2 with 0 <= low < high, "
            f"got low={low!r}, high={high!r}"
        )
    return SizeBin(name, float(low), float(high))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """AP and AR of a set of objects, as fractions; ``None`` is n/a (no such object)."""

    AP: float | None
    AP50: float | None
    AP75: float | None
    AR: float | None
    num_objects: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassFigures(Figures):
    """The figures of one class, overall and by size."""

    id: int | str
    name: str
    by_size: dict[str, Figures]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a result was measured on, and how."""

    iou_type: str
    iou_thrs: list[float]
    max_dets: int
    size_bins: dict[str, tuple[float, float]]
    object_area: str
    detection_area: str
    num_images: int
    num_crowds: int
    num_detections: int
    notes: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CocoResult(Figures):
    """AP and AR overall, by size, by class, and by class and size.

    ``result.AP``, ``result.by_size['small'].AP50``, ``result.classes[0].by_size['small'].AR``.
    ``str(result)`` is the table.
    """

    conditions: Conditions
    by_size: dict[str, Figures]
    classes: list[ClassFigures]

    def to_dict(self) -> dict[str, Any]:
        """Everything, in full precision, as JSON knows it; ``None`` is n/a."""
        data = dataclasses.asdict(self)
        conditions, classes = data.pop("conditions"), data.pop("classes")
        classes = [{"id": x.pop("id"), "name": x.pop("name"), **x} for x in classes]
        return {"conditions": conditions, **data, "classes": classes}

    def __str__(self) -> str:
        from mmattn.evaluation.table import render, size_table

        return render(size_table(self))


def evaluate_coco(
    ground_truth: str | os.PathLike | Mapping[str, Any],
    detections: str | os.PathLike | Sequence[Mapping[str, Any]],
    iou_type: str = "bbox",
    *,
    size_bins: SizeBins = None,
    max_dets: int = 100,
    iou_thrs: float | Sequence[float] | None = None,
    cat_ids: Iterable[Any] | None = None,
) -> CocoResult:
    """Evaluates detections in COCO's results format against a COCO ground truth.

    Which area decides: an object belongs to a bin by the ``area`` field of its annotation. In
    COCO that is the area of its mask, also where boxes are evaluated. A detection that matches
    an object goes where the object goes; one that matches none counts as a false positive in
    the bin of its own area, w * h of its box for 'bbox', the area of its mask for 'segm'. Where
    an annotation has no ``area``, its own box or mask is measured in the same way, and a note
    in the result says how often.

    Args:
        ground_truth: Path of an annotation file, or its content.
        detections: Path of a results file, or its content: a list of dicts with ``image_id``,
            ``category_id``, ``score`` and ``bbox`` or ``segmentation`` (RLE).
        iou_type: 'bbox' or 'segm'.
        size_bins: See :func:`parse_size_bins`.
        max_dets: How many detections of an image and class count, best scores first, for every
            figure.
        iou_thrs: IoU thresholds that AP and AR are averaged over; 0.50:0.05:0.95 if None. AP50
            and AP75 are n/a where their threshold is not among them.
        cat_ids: Ids of the categories to evaluate; all of the ground truth if None.

    Returns:
        The result. Means are over the classes that have objects, as in pycocotools.

    Raises:
        FileNotFoundError: A file does not exist.
        TypeError: An argument is of the wrong type.
        ValueError: An argument, the ground truth or the detections are not valid; the message
            names the first record at fault.
    """
    if iou_type not in IOU_TYPES:
        raise ValueError(f"iou_type must be one of {IOU_TYPES}, got {iou_type!r}")
    bins = parse_size_bins(size_bins)
    max_dets = parse_max_dets(max_dets)
    iou_thrs = parse_iou_thrs(iou_thrs)
    data = _Dataset(_load(ground_truth, Mapping, "ground truth"), iou_type, cat_ids)
    records = data.clean_detections(_load(detections, Sequence, "detections"))

    # hotcoco returns -1 for one of two equal ranges
    ranges = list(dict.fromkeys((low, high) for _, low, high in (_ALL, *bins)))
    evaluator = hotcoco.COCOeval(data.coco, data.coco.load_res(records), iou_type)
    params = evaluator.params
    params.max_dets = [max_dets]
    params.iou_thrs = iou_thrs
    params.area_rng = [list(limits) for limits in ranges]
    params.area_rng_lbl = [f"{low}-{high}" for low, high in ranges]
    evaluator.evaluate()
    evaluator.accumulate()
    precision = evaluator.eval["precision"][..., 0]  # (iou, recall, class, range)
    recall = evaluator.eval["recall"][..., 0]  # (iou, class, range)
    at_50, at_75 = (np.isclose(iou_thrs, threshold, atol=1e-9) for threshold in (0.5, 0.75))

    def figures(size_bin: SizeBin, k: int | slice = slice(None)) -> dict[str, Any]:
        a = ranges.index((size_bin.low, size_bin.high))
        return {
            "AP": _mean(precision[:, :, k, a]),
            "AP50": _mean(precision[at_50][:, :, k, a]),
            "AP75": _mean(precision[at_75][:, :, k, a]),
            "AR": _mean(recall[:, k, a]),
            "num_objects": data.count_objects(size_bin, k),
        }

    def by_size(k: int | slice = slice(None)) -> dict[str, Figures]:
        return {size_bin.name: Figures(**figures(size_bin, k)) for size_bin in bins}

    shape = {"bbox": "box", "segm": "mask"}[iou_type]
    return CocoResult(
        **figures(_ALL),
        by_size=by_size(),
        classes=[
            ClassFigures(id=cat_id, name=name, by_size=by_size(k), **figures(_ALL, k))
            for k, (cat_id, name) in enumerate(data.class_names.items())
        ],
        conditions=Conditions(
            iou_type=iou_type,
            iou_thrs=iou_thrs,
            max_dets=max_dets,
            size_bins={name: (low, high) for name, low, high in bins},
            object_area="area field of the annotation",
            detection_area=f"area of the {shape}",
            num_images=len(data.image_numbers),
            num_crowds=data.num_crowds,
            num_detections=len(records),
            notes=data.notes,
        ),
    )


def check_ground_truth(
    ground_truth: Mapping[str, Any], iou_type: str = "bbox", cat_ids: Iterable[Any] | None = None
) -> None:
    """Raises what :func:`evaluate_coco` would raise about the ground truth."""
    _Dataset(ground_truth, iou_type, cat_ids)


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


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Writes strict JSON so that a reader finds the whole file or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _load(source: Any, kind: type, what: str) -> Any:
    """Content of a JSON file, or the content itself; ``kind`` is what it must be."""
    name = what
    if isinstance(source, (str, os.PathLike)):
        name = f"{what} {os.fspath(source)!r}"
        try:
            source = json.loads(Path(source).read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError(f"{name} does not exist") from None
        except ValueError as error:
            raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(source, kind) or isinstance(source, str):
        wanted = "a COCO annotation dict" if kind is Mapping else "a list of COCO results"
        raise TypeError(f"{name} must be {wanted}, got {type(source).__name__}")
    return source


def _mean(values: np.ndarray) -> float | None:
    """Mean of what was evaluated; -1 marks classes and ranges without objects."""
    values = values[values > -1]
    return float(values.mean()) if values.size else None


class _Dataset:
    """A checked ground truth, its ids numbered from 1, as hotcoco takes it.

    Attributes:
        coco: The ground truth.
        image_numbers: Image id -> number.
        class_names: Category id -> name; their order is that of the figures.
        num_crowds: Number of crowd annotations.
        notes: What a reader of the figures should know.
    """

    def __init__(self, ground_truth: Mapping[str, Any], iou_type: str, cat_ids: Any) -> None:
        self.iou_type = iou_type
        self.notes: list[str] = []
        for key in ("images", "categories"):
            if not ground_truth.get(key):
                raise ValueError(f"the ground truth has no {key!r}; is it a COCO annotation file?")
        images = {_get(x, "id", "images", i): x for i, x in enumerate(ground_truth["images"])}
        try:
            self.image_numbers = {image_id: n for n, image_id in enumerate(sorted(images), 1)}
        except TypeError:
            raise ValueError("image ids must be all numbers or all strings") from None
        self._sizes = {key: (x.get("height"), x.get("width")) for key, x in images.items()}

        names = {
            _get(x, "id", "categories", i): str(x.get("name", x["id"]))
            for i, x in enumerate(ground_truth["categories"])
        }
        self._known_categories = frozenset(names)
        if cat_ids is not None:
            wanted = list(cat_ids)
            if unknown := [cat_id for cat_id in wanted if cat_id not in names]:
                raise ValueError(f"cat_ids: the ground truth has no category {unknown[0]!r}")
            if not wanted:
                raise ValueError("cat_ids is empty; name at least one category, or pass None")
            names = {cat_id: names[cat_id] for cat_id in wanted}
        self.class_names = names
        self._class_numbers = {cat_id: n for n, cat_id in enumerate(names, 1)}

        annotations = self._clean_annotations(ground_truth.get("annotations") or [])
        crowd = np.array([x["iscrowd"] for x in annotations], dtype=bool)
        self.num_crowds = int(crowd.sum())
        self._areas = np.array([x["area"] for x in annotations], dtype=float)[~crowd]
        self._classes = np.array([x["category_id"] - 1 for x in annotations], dtype=int)[~crowd]
        self.coco = hotcoco.COCO(
            {
                "images": [
                    {"id": number, **_size(self._sizes[image_id])}
                    for image_id, number in self.image_numbers.items()
                ],
                "categories": [
                    {"id": n, "name": names[key]} for key, n in self._class_numbers.items()
                ],
                "annotations": annotations,
            }
        )

    def count_objects(self, size_bin: SizeBin, k: int | slice) -> int:
        """Number of objects in a bin, crowds left out, of class number k or of all."""
        inside = (self._areas >= size_bin.low) & (self._areas <= size_bin.high)
        return int((inside if isinstance(k, slice) else inside & (self._classes == k)).sum())

    def _clean_annotations(self, annotations: Sequence[Mapping[str, Any]]) -> list[dict]:
        clean, num_missing = [], 0
        for i, x in enumerate(annotations):
            image_id = _get(x, "image_id", "annotations", i)
            cat_id = _get(x, "category_id", "annotations", i)
            if image_id not in self.image_numbers or cat_id not in self._class_numbers:
                continue
            record = self._clean_geometry(x, "annotations", i)
            area = x.get("area")
            if area is None:
                num_missing += 1
                area = self._measure(record, image_id)
            elif isinstance(area, bool) or not isinstance(area, Real) or not 0 <= area < math.inf:
                raise ValueError(
                    f"annotations[{i}] (id {x.get('id')!r}): 'area' must be px^2, got {area!r}"
                )
            clean.append(
                {
                    **record,
                    "id": len(clean) + 1,
                    "image_id": self.image_numbers[image_id],
                    "category_id": self._class_numbers[cat_id],
                    "area": float(area),
                    "iscrowd": int(bool(x.get("iscrowd", 0))),
                }
            )
        if num_missing:
            shape = "box" if self.iou_type == "bbox" else "mask"
            self.notes.append(
                f"{num_missing} of {len(clean)} annotations have no 'area': "
                f"their size is the area of their {shape}."
            )
        return clean

    def clean_detections(self, detections: Sequence[Mapping[str, Any]]) -> list[dict]:
        """Checks detections and numbers their ids."""
        clean, num_unknown = [], 0
        for i, x in enumerate(detections):
            image_id = _get(x, "image_id", "detections", i)
            cat_id = _get(x, "category_id", "detections", i)
            if image_id not in self.image_numbers:
                example = next(iter(self.image_numbers))
                raise ValueError(
                    f"detections[{i}]: image_id {image_id!r} is not among the "
                    f"{len(self.image_numbers)} images of the ground truth (which has, for "
                    f"example, {example!r}); do the results belong to another split?"
                )
            score = _get(x, "score", "detections", i)
            if isinstance(score, bool) or not isinstance(score, Real) or math.isnan(score):
                raise ValueError(f"detections[{i}]: 'score' must be a number, got {score!r}")
            if cat_id not in self._class_numbers:
                num_unknown += cat_id not in self._known_categories
                continue
            clean.append(
                {
                    **self._clean_geometry(x, "detections", i),
                    "image_id": self.image_numbers[image_id],
                    "category_id": self._class_numbers[cat_id],
                    "score": float(score),
                }
            )
        if num_unknown:
            self.notes.append(
                f"{num_unknown} of {len(detections)} detections are of categories that the "
                "ground truth does not list: they are left out."
            )
        return clean

    def _clean_geometry(self, x: Mapping[str, Any], what: str, i: int) -> dict[str, Any]:
        """The box, or the mask without the box, which would be measured in its place."""
        if self.iou_type == "bbox":
            box = _get(x, "bbox", what, i)
            try:
                valid = len(box) == 4 and all(math.isfinite(value) for value in box)
            except TypeError:
                valid = False
            if not valid:
                raise ValueError(
                    f"{what}[{i}]: 'bbox' must be [x, y, width, height], finite numbers, "
                    f"got {box!r}"
                )
            return {"bbox": [float(value) for value in box]}
        mask = _get(x, "segmentation", what, i)
        size = self._sizes[x["image_id"]]
        if isinstance(mask, Mapping) and {"size", "counts"} <= mask.keys():
            try:
                mask_size = tuple(int(value) for value in mask["size"])
            except (TypeError, ValueError):
                raise ValueError(
                    f"{what}[{i}]: the RLE's 'size' must be [height, width], got {mask['size']!r}"
                ) from None
            if None not in size and mask_size != tuple(size):
                raise ValueError(
                    f"{what}[{i}]: the mask is {mask_size[0]} x {mask_size[1]} (height x width), "
                    f"but image {x['image_id']!r} is {size[0]} x {size[1]}"
                )
            return {"segmentation": {"size": list(mask_size), "counts": mask["counts"]}}
        if what == "detections":
            raise ValueError(f"detections[{i}]: 'segmentation' must be RLE (size and counts)")
        polygons = mask if isinstance(mask, Sequence) and not isinstance(mask, str) else []
        if not polygons or not all(isinstance(p, Sequence) and len(p) >= 6 for p in polygons):
            raise ValueError(
                f"{what}[{i}] (id {x.get('id')!r}): 'segmentation' must be RLE or polygons of at "
                f"least three points, got {str(mask)[:60]}"
            )
        if None in size:
            raise ValueError(
                f"image {x['image_id']!r} has polygons but no 'height' and 'width', which "
                "iou_type='segm' needs"
            )
        return {"segmentation": [list(polygon) for polygon in polygons]}

    def _measure(self, record: Mapping[str, Any], image_id: Any) -> float:
        """Area of the box or the mask itself, for an annotation without ``area``."""
        if self.iou_type == "bbox":
            return record["bbox"][2] * record["bbox"][3]
        mask = record["segmentation"]
        height, width = mask["size"] if isinstance(mask, dict) else self._sizes[image_id]
        rle = hotcoco.mask.fr_py_objects(mask, height, width)
        return float(hotcoco.mask.area(hotcoco.mask.merge(rle) if isinstance(rle, list) else rle))


def _get(record: Any, key: str, what: str, i: int) -> Any:
    try:
        return record[key]
    except (KeyError, TypeError, IndexError):
        raise ValueError(f"{what}[{i}] has no {key!r}: {str(record)[:80]}") from None


def _size(size: tuple[Any, Any]) -> dict[str, int]:
    """An image's height and width as hotcoco takes them, where they are known."""
    return {} if None in size else {"height": int(size[0]), "width": int(size[1])}
