"""COCO files into records and columns, checked record by record.

msgspec decodes and checks in one go. Where it refuses something, the slow way through plain
dicts decides whether that is an error, and says which record and why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from numbers import Real
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

Id = int | str
MASKS_WITH_BOXES = (
    "Masks are measured by their own area; pycocotools would take that of the results' boxes."
)


class ImageRecord(msgspec.Struct, gc=False):
    """An entry of a ground truth's ``images``."""

    id: Id
    height: float | None = None
    width: float | None = None
    file_name: str | None = None


class CategoryRecord(msgspec.Struct, gc=False):
    """An entry of ``categories``."""

    id: Id
    name: str | None = None


class BoxAnnotation(msgspec.Struct, gc=False):
    """An entry of ``annotations``, without its mask."""

    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | bool | None = 0
    id: Id | None = None


class MaskAnnotation(msgspec.Struct):
    """An entry of ``annotations``, without its box."""

    image_id: Id
    category_id: Id
    segmentation: list[list[float]] | dict[str, Any]
    area: float | None = None
    iscrowd: int | bool | None = 0
    id: Id | None = None
    bbox: Any = None


class BoxDetection(msgspec.Struct, gc=False):
    """A record of a results file, without its mask."""

    image_id: Id
    category_id: Id
    score: float
    bbox: tuple[float, float, float, float]


class MaskDetection(msgspec.Struct):
    """A record of a results file, without its box."""

    image_id: Id
    category_id: Id
    score: float
    segmentation: dict[str, Any]


class _BoxFile(msgspec.Struct):
    images: list[ImageRecord]
    categories: list[CategoryRecord]
    annotations: list[BoxAnnotation]


class _MaskFile(msgspec.Struct):
    images: list[ImageRecord]
    categories: list[CategoryRecord]
    annotations: list[MaskAnnotation]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RawGroundTruth:
    """The records of an annotation file; ``name`` is what errors call it."""

    name: str
    images: list[ImageRecord]
    categories: list[CategoryRecord]
    annotations: list[BoxAnnotation] | list[MaskAnnotation]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RawDetections:
    """Detections as columns, their ids as the source has them.

    Attributes:
        name: What errors call the source.
        image_ids: (N,) list or array.
        category_ids: (N,) list or array.
        scores: (N,) float64.
        boxes: (N, 4) float64, x, y, width, height in px, or None for 'segm'.
        masks: N RLEs, or None for 'bbox'.
        notes: What a reader of the figures should know.
    """

    name: str
    image_ids: Sequence[Any] | np.ndarray
    category_ids: Sequence[Any] | np.ndarray
    scores: np.ndarray
    boxes: np.ndarray | None
    masks: list[dict] | None
    notes: tuple[str, ...] = ()


def read_ground_truth(source: Any, iou_type: str) -> RawGroundTruth:
    """Reads an annotation file, or its loaded content.

    Raises:
        FileNotFoundError: The file does not exist.
        TypeError, ValueError: It is not a COCO annotation file; the message names the first
            record at fault.
    """
    name, content, is_json = _open(source, "ground truth")
    kind = _BoxFile if iou_type == "bbox" else _MaskFile
    try:
        file = _decode(content, kind, is_json)
        return RawGroundTruth(
            name=name, images=file.images, categories=file.categories, annotations=file.annotations
        )
    except (msgspec.MsgspecError, UnicodeDecodeError):
        content = _plain(content, name, is_json)
    if not isinstance(content, Mapping):
        hint = "; it looks like results, which come after the ground truth"
        raise TypeError(
            f"{name} must be a COCO annotation dict, got {type(content).__name__}"
            f"{hint if isinstance(content, Sequence) and not isinstance(content, str) else ''}"
        )
    for key in ("images", "categories"):
        if not isinstance(content.get(key), Sequence):
            raise ValueError(f"{name} has no {key!r}; is it a COCO annotation file?")
    read_annotation = _box_annotation if iou_type == "bbox" else _mask_annotation
    return RawGroundTruth(
        name=name,
        images=_each(content["images"], _image, name, "images"),
        categories=_each(content["categories"], _category, name, "categories"),
        annotations=_each(content.get("annotations") or [], read_annotation, name, "annotations"),
    )


def read_detections(source: Any, iou_type: str) -> RawDetections:
    """Reads a results file, or its loaded content.

    Raises:
        FileNotFoundError: The file does not exist.
        TypeError, ValueError: It is not a COCO results file; the message names the first record
            at fault.
    """
    if isinstance(source, RawDetections):
        return source
    name, content, is_json = _open(source, "results")
    kind = BoxDetection if iou_type == "bbox" else MaskDetection
    try:
        records = _decode(content, list[kind], is_json)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        content = _plain(content, name, is_json)
        if not isinstance(content, Sequence) or isinstance(content, str):
            hint = ""
            if isinstance(content, Mapping) and "annotations" in content:
                hint = "; it looks like a ground truth"
            raise TypeError(
                f"{name} must be a list of COCO results, got {type(content).__name__}{hint}"
            ) from None
        read = _box_detection if iou_type == "bbox" else _mask_detection
        records = _each(content, read, name, "detections")
    notes = ()
    if iou_type == "segm" and _has_boxes(content, is_json):
        notes = (MASKS_WITH_BOXES,)
    del content
    number = len(records)
    columns = {
        "image_ids": _ids(records, "image_id"),
        "category_ids": _ids(records, "category_id"),
        "scores": np.fromiter((x.score for x in records), float, number),
    }
    if iou_type == "segm":
        masks = [x.segmentation for x in records]
        return RawDetections(name=name, boxes=None, masks=masks, notes=notes, **columns)
    values = chain.from_iterable(x.bbox for x in records)
    boxes = np.fromiter(values, float, 4 * number).reshape(number, 4)
    return RawDetections(name=name, boxes=boxes, masks=None, **columns)


def _has_boxes(content: Any, is_json: bool) -> bool:
    """Whether the first record has a box, too."""
    if is_json:
        return b'"bbox"' in content[: content.find(b"}", content.find(b'"counts"')) + 200]
    return bool(content) and "bbox" in content[0]


def _ids(records: Sequence[Any], key: str) -> list[Any] | np.ndarray:
    """Ids as an array where they are numbers of 64 bits."""
    values = list(map(attrgetter(key), records))
    try:
        array = np.array(values)
    except (ValueError, OverflowError):
        return values
    return array if array.dtype == np.int64 or not values else values


def _open(source: Any, what: str) -> tuple[str, Any, bool]:
    """Name for errors, content, and whether the content is JSON text."""
    if isinstance(getattr(source, "dataset", None), dict):  # a COCO object of pycocotools
        source = source.dataset if what == "ground truth" else source.dataset.get("annotations")
    if not isinstance(source, (str, os.PathLike)):
        return f"the {what}", source, False
    name = f"{what} {os.fspath(source)!r}"
    with reading_file(name):
        content = Path(source).read_bytes()
    if not content.strip():
        raise ValueError(f"{name} is empty; it must be JSON")
    return name, content, True


@contextlib.contextmanager
def reading_file(name: str) -> Iterator[None]:
    """Says in one sentence why a file cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{name} is a folder; name the file in it") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None


def _decode(content: Any, kind: Any, is_json: bool) -> Any:
    enabled = gc.isenabled()
    # millions of small objects: the collector would walk them again and again
    gc.disable()
    try:
        if is_json:
            return msgspec.json.decode(content, type=kind)
        return msgspec.convert(content, kind)
    finally:
        if enabled:
            gc.enable()


def _plain(content: Any, name: str, is_json: bool) -> Any:
    if not is_json:
        return content
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON: {error}") from None


def _each(
    records: Sequence[Any], read: Callable[[Any, str], Any], name: str, key: str
) -> list[Any]:
    if not isinstance(records, Sequence) or isinstance(records, str):
        raise ValueError(f"{name}: {key!r} must be a list, got {type(records).__name__}")
    return [read(x, f"{name}: {key}[{i}]") for i, x in enumerate(records)]


def _image(x: Any, where: str) -> ImageRecord:
    size = {key: _get(x, key, where, None) for key in ("height", "width")}
    for key, value in size.items():
        if value is not None and not (_is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{where}: {key!r} must be px, got {value!r}")
    file_name = _get(x, "file_name", where, None)
    return ImageRecord(
        id=_id(x, "id", where),
        file_name=None if file_name is None else str(file_name),
        **{key: None if value is None else float(value) for key, value in size.items()},
    )


def _category(x: Any, where: str) -> CategoryRecord:
    name = _get(x, "name", where, None)
    return CategoryRecord(id=_id(x, "id", where), name=None if name is None else str(name))


def _ids_of(x: Any, where: str) -> dict[str, Any]:
    return {key: _id(x, key, where) for key in ("image_id", "category_id")}


def _annotation(x: Any, where: str) -> dict[str, Any]:
    area, crowd = _get(x, "area", where, None), _get(x, "iscrowd", where, None)
    if area is not None and not _is_number(area):
        raise ValueError(f"{where} (id {x.get('id')!r}): 'area' must be px^2, got {area!r}")
    if crowd is not None and not isinstance(crowd, Real):
        raise ValueError(f"{where} (id {x.get('id')!r}): 'iscrowd' must be 0 or 1, got {crowd!r}")
    return {
        **_ids_of(x, where),
        "area": None if area is None else float(area),
        "iscrowd": int(bool(crowd)),
        "id": _get(x, "id", where, None),
    }


def _box_annotation(x: Any, where: str) -> BoxAnnotation:
    return BoxAnnotation(bbox=_box(x, where), **_annotation(x, where))


def _mask_annotation(x: Any, where: str) -> MaskAnnotation:
    mask = _get(x, "segmentation", where)
    polygons = isinstance(mask, Sequence) and not isinstance(mask, str)
    polygons = polygons and all(
        isinstance(p, Sequence) and not isinstance(p, str) and all(map(_is_number, p)) for p in mask
    )
    if not isinstance(mask, Mapping) and not polygons:
        raise ValueError(
            f"{where} (id {x.get('id')!r}): 'segmentation' must be RLE or polygons of at least "
            f"three points, got {str(mask)[:60]}"
        )
    mask = [list(map(float, p)) for p in mask] if polygons else dict(mask)
    bbox = _get(x, "bbox", where, None)
    return MaskAnnotation(segmentation=mask, bbox=bbox, **_annotation(x, where))


def _detection(x: Any, where: str) -> dict[str, Any]:
    score = _get(x, "score", where)
    if not _is_number(score):
        raise ValueError(f"{where}: 'score' must be a number, got {score!r}")
    return {**_ids_of(x, where), "score": float(score)}


def _box_detection(x: Any, where: str) -> BoxDetection:
    return BoxDetection(bbox=_box(x, where), **_detection(x, where))


def _mask_detection(x: Any, where: str) -> MaskDetection:
    mask = _get(x, "segmentation", where)
    if not isinstance(mask, Mapping):
        raise ValueError(f"{where}: 'segmentation' must be RLE (size and counts)")
    return MaskDetection(segmentation=dict(mask), **_detection(x, where))


def _box(x: Any, where: str) -> tuple[float, float, float, float]:
    if isinstance(x, Mapping) and "bbox" not in x and "segmentation" in x:
        raise ValueError(f"{where} has no 'bbox', but a mask: evaluate with iou_type 'segm'")
    return check_box(_get(x, "bbox", where), where)


def check_box(box: Any, where: str) -> tuple[float, float, float, float]:
    """Four numbers, or one sentence."""
    try:
        valid = len(box) == 4 and all(map(_is_number, box)) and not isinstance(box, str)
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(f"{where}: 'bbox' must be [x, y, width, height], numbers, got {box!r}")
    return tuple(map(float, box))


def _id(x: Any, key: str, where: str) -> Any:
    value = _get(x, key, where)
    if isinstance(value, Real) and not isinstance(value, bool) and value == value // 1:
        return int(value)  # 1.0, as tables write it, and numpy's integers
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} must be a whole number or a text, got {value!r}")
    return value


_NEEDED = object()


def _get(x: Any, key: str, where: str, default: Any = _NEEDED) -> Any:
    if not isinstance(x, Mapping):
        raise ValueError(f"{where} must be a dict, got {str(x)[:80]}")
    value = x.get(key, default)
    if value is _NEEDED:
        raise ValueError(f"{where} has no {key!r}: {str(x)[:80]}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
