"""Pickles of mmdet's ``tools/test.py --out``, read without mmdet, torch, or running their code.

A pickle names functions that its reader calls. Here each of the few names that mmdet's files hold
stands for a small function below, on numpy arrays; any other is refused, also inside the bytes
of a tensor, which are pickles themselves.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmattn.evaluation.reading import RawDetections, reading_file

SUFFIXES = (".pkl", ".pickle")
_JSON_INSTEAD = "write COCO JSON instead: test_evaluator's outfile_prefix"
_MMDET_2 = (
    "is in the format of MMDetection 2, which does not say which image a detection is of: write "
    "COCO JSON instead, there with tools/test.py --format-only --eval-options jsonfile_prefix=..."
)
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


def read_mmdet_pickle(
    path: str | os.PathLike,
    categories: Mapping[Any, str],
    iou_type: str = "bbox",
    classes: Iterable[str] | None = None,
) -> RawDetections:
    """Reads what mmdet 3's ``tools/test.py --out`` (``DumpDetResults``) wrote.

    The columns are those of the JSON that mmdet's ``CocoMetric`` writes of the same predictions:
    box widths are differences in float64, and masks have ``mask_scores`` where the model does.

    Args:
        path: The ``.pkl`` file.
        categories: Id to name of all categories of the annotation file, in the file's order.
            mmdet numbers labels in that order: label i is the i-th category.
        iou_type: 'bbox' or 'segm'.
        classes: Names of the classes that the model knows, where these are not all categories:
            label i is then the i-th category of those. They are given in the file's order too,
            as mmdet goes by that and not by the order in a config.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not such a pickle, or holds anything that could run code, or its labels
            do not fit the categories.
    """
    name = f"results {os.fspath(path)!r}"
    samples = _load(path, name)
    if not isinstance(samples, list):
        raise ValueError(
            f"{name} must hold a list of predictions, one an image, as mmdet's tools/test.py --out "
            f"writes, but holds {type(samples).__name__}"
        )
    if samples and isinstance(samples[0], (list, tuple, _Array)):
        raise ValueError(f"{name} {_MMDET_2}")
    category_ids = _category_ids(categories, classes)
    image_ids, columns, masks = [], ([], [], []), []
    for i, sample in enumerate(samples):
        where = f"{name}: image {i}"
        prediction = _get(sample, "pred_instances", where)
        image_ids.append(_image_id(sample, where))
        columns_of_image = _columns(prediction, iou_type, where)
        for column, values in zip(columns, columns_of_image, strict=True):
            column.append(values)
        if iou_type == "segm":
            masks += _masks(prediction, len(columns_of_image[1]), where)
    numbers = [len(x) for x in columns[1]]
    boxes, scores, labels = (
        np.concatenate(x) if x else np.empty(shape)
        for x, shape in zip(columns, ((0, 4), 0, 0), strict=True)
    )
    labels = labels.astype(np.int64)
    notes = _check_labels(labels, len(category_ids), name, classes)
    boxes[:, 2:] -= boxes[:, :2]
    return RawDetections(
        name=name,
        image_ids=_repeat(image_ids, numbers),
        category_ids=_take(category_ids, labels),
        scores=scores,
        boxes=boxes if iou_type == "bbox" else None,
        masks=masks if iou_type == "segm" else None,
        notes=notes,
    )


def _category_ids(categories: Mapping[Any, str], classes: Iterable[str] | None) -> list[Any]:
    """The category that each label stands for."""
    if classes is None:
        return list(categories)
    if isinstance(classes, str):
        raise TypeError(f"classes must be a list of names, got {classes!r}")
    classes, names = list(classes), list(categories.values())
    if unknown := [x for x in classes if x not in names]:
        raise ValueError(
            f"classes: the ground truth has no category {unknown[0]!r}; it has {_some(names)}"
        )
    chosen = {key: x for key, x in categories.items() if x in classes}
    if list(chosen.values()) != classes:
        raise ValueError(
            "classes must be in the order of the ground truth's categories, which is how mmdet "
            f"numbers labels, and each once: {', '.join(chosen.values())}"
        )
    return list(chosen)


def _check_labels(
    labels: np.ndarray, number: int, name: str, classes: Iterable[str] | None
) -> tuple[str, ...]:
    """Raises where labels do not fit; says where they may not."""
    if not len(labels):
        return ()
    thing = "categories of the ground truth" if classes is None else "classes"
    highest, lowest = int(labels.max()), int(labels.min())
    if lowest < 0 or highest >= number:
        wrong = int(np.count_nonzero((labels < 0) | (labels >= number)))
        raise ValueError(
            f"{name}: {wrong} of {len(labels)} labels are outside 0 to {number - 1}, the labels of "
            f"the {number} {thing} (the {'lowest' if lowest < 0 else 'highest'} is "
            f"{lowest if lowest < 0 else highest}); was the model trained on other classes?"
        )
    if classes is None and highest + 1 < number:
        # a model of fewer classes would be evaluated under wrong names without a sign of it
        return (
            f"The highest label is {highest}, but the ground truth has {number} categories; label "
            "i is taken for the i-th of them, which is wrong if the model knows fewer classes.",
        )
    return ()


def _columns(
    prediction: Any, iou_type: str, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (x1, y1, x2, y2), scores and labels of an image."""
    boxes, labels = (_array(prediction, key, where) for key in ("bboxes", "labels"))
    scores = _array(prediction, "scores", where)
    if iou_type == "segm" and "mask_scores" in prediction:
        scores = _array(prediction, "mask_scores", where)
    number = len(labels) if labels.ndim == 1 else -1
    if boxes.shape != (number, 4) or scores.shape != (number,):
        raise ValueError(
            f"{where}: 'bboxes' (n, 4), 'scores' (n,) and 'labels' (n,) must have as many entries, "
            f"got {boxes.shape}, {scores.shape} and {labels.shape}"
        )
    if labels.dtype.kind not in "iu" and number:
        raise ValueError(f"{where}: 'labels' must be whole numbers, got {labels.dtype}")
    return boxes.astype(np.float64), scores.astype(np.float64), labels


def _masks(prediction: Mapping[str, Any], number: int, where: str) -> list[dict]:
    if "masks" not in prediction:
        raise ValueError(f"{where} has no 'masks', which 'segm' needs: its model predicts boxes")
    masks = prediction["masks"]
    if not isinstance(masks, (list, tuple)):
        raise ValueError(
            f"{where}: 'masks' must be RLE, as mmdet's DumpDetResults writes them, got pixels; "
            f"{_JSON_INSTEAD}"
        )
    if len(masks) != number:
        raise ValueError(f"{where} has {number} labels but {len(masks)} masks")
    for mask in masks:
        counts = mask.get("counts") if isinstance(mask, dict) else None
        if not isinstance(counts, (bytes, str)):
            raise ValueError(
                f"{where}: 'masks' must be RLE (size and counts), got {str(mask)[:60]}"
            )
        if isinstance(counts, bytes):
            mask["counts"] = counts.decode("latin1")
    return list(masks)


def _image_id(sample: Mapping[str, Any], where: str) -> Any:
    value = _get(sample, "img_id", where)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"{where}: 'img_id' must be a whole number or a text, got {value!r}")
    return value


def _repeat(ids: list[Any], numbers: list[int]) -> list[Any] | np.ndarray:
    return _take(ids, np.repeat(np.arange(len(ids)), numbers))


def _take(ids: list[Any], places: np.ndarray) -> list[Any] | np.ndarray:
    """Ids at places, as an array if they are numbers."""
    array = np.array(ids) if all(isinstance(x, int) for x in ids) else None
    if array is not None and (array.dtype == np.int64 or not len(ids)):
        return array.astype(np.int64)[places]
    return [ids[i] for i in places.tolist()]


def _get(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} must be a dict, got {type(record).__name__}")
    if key not in record:
        raise ValueError(f"{where} has no {key!r}, only {_some(sorted(map(str, record)))}")
    return record[key]


def _array(record: Any, key: str, where: str) -> np.ndarray:
    value = _get(record, key, where)
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    raise ValueError(f"{where}: {key!r} must be a tensor or an array, got {type(value).__name__}")


def _some(items: Sequence[Any], shown: int = 5) -> str:
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(map(str, items[:shown])) + more


class _RefusedError(Exception):
    """A name that a pickle asks for and does not get."""


def _load(path: str | os.PathLike, name: str) -> Any:
    start = b""
    with reading_file(name):
        stream = open(path, "rb")  # noqa: SIM115  closed below
    try:
        with stream:
            start = stream.read(8)
            stream.seek(0)
            return _Unpickler(stream).load()
    except _RefusedError as error:
        raise ValueError(
            f"{name} holds {error}, which mmdet 3's tools/test.py --out does not write for a "
            f"detector and which could run code, so it is not read; {_JSON_INSTEAD}"
        ) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        if not start.startswith(b"\x80"):
            what = f"it starts with {start!r}" if start else "it is empty"
            raise ValueError(f"{name} is not a pickle: {what}") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{name} is damaged or incomplete ({reason[:100]}): write it again"
        ) from None


# The functions below get a file's arguments. They have no defaults, which a file could set.


class _Array:
    """A tensor or array of the file; ``value`` is None until its content came."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran_order, raw = state
        order = "F" if fortran_order else "C"
        self.value = np.ndarray(shape, dtype.value, buffer=raw, order=order)


class _Dtype:
    """A numpy dtype of numbers."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple) -> None:
        self.value = self.value.newbyteorder(state[1])


def _array_of(value: np.ndarray | None) -> _Array:
    array = _Array()
    array.value = value
    return array


def _dtype(code: str, *_: Any) -> _Dtype:
    if not isinstance(code, str) or not re.fullmatch(r"[fiu][1248]|b1", code):
        raise _RefusedError(f"a numpy array of {code!r}")
    dtype = _Dtype()
    dtype.value = np.dtype(code)
    return dtype


def _numpy_array(*_: Any) -> _Array:
    return _array_of(None)


def _numpy_array_of_buffer(raw: bytes, dtype: _Dtype, shape: tuple, order: str) -> _Array:
    return _array_of(np.ndarray(shape, dtype.value, buffer=raw, order=order))


def _numpy_scalar(dtype: _Dtype, raw: bytes) -> int | float | bool:
    return np.frombuffer(raw, dtype.value, count=1)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _RefusedError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _empty_bytes(*args: Any) -> bytes:
    if args:
        raise _RefusedError("a call of bytes")
    return b""


def _nothing() -> None:
    raise _RefusedError("a call of numpy.ndarray")


def _storage(raw: bytes) -> _Array:
    """The numbers of a tensor's storage, as torch.save's older format has them."""
    stream = io.BytesIO(raw)
    # a magic number, a version, the machine; the storage; its key
    *_, code, _ = (_StorageUnpickler(stream).load() for _ in range(5))
    (number,) = struct.unpack("<q", stream.read(8))
    if code not in _STORAGES.values() or number < 0:
        raise ValueError("a tensor's storage is damaged")
    return _array_of(np.frombuffer(raw, code, count=number, offset=stream.tell()))


def _tensor(storage: _Array, offset: int, size: tuple, stride: tuple, *_: Any) -> _Array:
    values = storage.value
    itemsize = values.itemsize
    if 0 in size:  # numpy takes no place in an empty buffer
        return _array_of(np.empty(size, values.dtype))
    # numpy checks that the view lies within the storage
    return _array_of(
        np.ndarray(
            size,
            values.dtype,
            buffer=values,
            offset=itemsize * offset,
            strides=tuple(itemsize * x for x in stride),
        )
    )


_ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
    ("numpy", "ndarray"): _nothing,
    ("numpy", "dtype"): _dtype,
    # numpy 2 moved these
    ("numpy.core.numeric", "_frombuffer"): _numpy_array_of_buffer,
    ("numpy._core.numeric", "_frombuffer"): _numpy_array_of_buffer,
    ("numpy.core.multiarray", "_reconstruct"): _numpy_array,
    ("numpy._core.multiarray", "_reconstruct"): _numpy_array,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None


class _StorageUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module != "torch" or name not in _STORAGES:
            raise _RefusedError(f"{module}.{name}")
        return _STORAGES[name]

    def persistent_load(self, saved_id: tuple) -> str:
        _, code, _, _, _, view = saved_id
        if view is not None:
            raise ValueError("a storage that is part of another")
        return code
