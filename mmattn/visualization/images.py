"""Images, made into a model's input as its own test pipeline does, and the way back."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmattn.visualization.collected import Detections
from mmattn.visualization.follow import Following
from mmattn.visualization.geometry import Grid, Placement

WHOLE = Grid((1.0, 1.0), (0.0, 0.0))
# they read annotations, of which an image alone has none
READERS = ("LoadAnnotations", "LoadPanopticAnnotations", "LoadProposals", "LoadEmptyAnnotations")


@dataclass(frozen=True)
class Prepared:
    """An image that a model can run on.

    Args:
        name: For people and file names.
        pixels: (H, W, 3), 8 bits, RGB.
        placement: Of it in the network's input.
        inputs: What the network gets, (1, 3, H, W).
        run: Runs the model on it and returns what it found.
        path: Of the file, if there is one.
        batch: Images a forward pass.
        samples: What mmdet's ``predict`` is told of the image; None of other models.
    """

    name: str
    pixels: np.ndarray
    placement: Placement
    inputs: Tensor
    run: Callable[[], Detections | None]
    path: Path | None = None
    batch: int = 1
    samples: list | None = None

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of what the network gets."""
        return tuple(self.inputs.shape[-2:])

    def detect(self, followed: Following | None = None) -> Detections | None:
        """Runs the model once, and has its maps followed from the input on."""
        if followed is not None:
            followed.place(self.inputs, WHOLE)
        return self.run()


def prepare(model: nn.Module, images: Any) -> Iterator[Prepared]:
    """Each of ``images``, see :func:`mmattn.visualization.collect`, one after the other.

    Raises:
        ValueError: An image cannot be read, or the pipeline crops it.
        TypeError: ``images`` is of another kind.
    """
    cfg = getattr(model, "cfg", None)
    if isinstance(images, Tensor) and cfg is not None and hasattr(model, "data_preprocessor"):
        raise TypeError(
            "collect expects files or arrays for a detector with a config, whose pipeline makes "
            "the batch of them; got a tensor"
        )
    if isinstance(images, Tensor):
        if images.dim() != 4 or not images.is_floating_point():
            raise TypeError(
                "collect expects a batch of images as floats (N, 3, H, W), got "
                f"{images.dtype} {tuple(images.shape)}"
            )
        yield from _of_batch(model, images)
        return
    if cfg is None:
        raise TypeError(
            "collect expects a model with its config (model.cfg, as init_detector gives it) for "
            "files and arrays, or a batch (N, 3, H, W) for any other model; got "
            f"{type(images).__name__} and a {type(model).__name__} without cfg"
        )
    if isinstance(images, (str, os.PathLike, np.ndarray)):
        images = [images]
    pipeline = Pipeline(cfg)
    used: Counter[str] = Counter()
    for number, image in enumerate(images):
        if not isinstance(image, (str, os.PathLike, np.ndarray)):
            raise TypeError(
                "collect expects files or arrays (H, W, 3) in BGR as images, got "
                f"{type(image).__name__}"
            )
        stem = f"image {number + 1}" if isinstance(image, np.ndarray) else Path(image).stem
        used[stem] += 1
        name = stem if used[stem] == 1 else f"{stem} ({used[stem]})"
        yield _of_detector(model, pipeline, image, name)


class Pipeline:
    """The test pipeline of a config, for images that are in no dataset.

    Args:
        cfg: The whole config.

    Raises:
        ValueError: It has no test pipeline.
    """

    def __init__(self, cfg: Mapping):
        import mmdet.datasets.transforms  # noqa: F401  registers them
        from mmengine.registry import TRANSFORMS, DefaultScope

        import mmattn.datasets  # noqa: F401

        dataset = (cfg.get("test_dataloader") or {}).get("dataset") or {}
        while "pipeline" not in dataset and isinstance(dataset.get("dataset"), Mapping):
            dataset = dataset["dataset"]
        steps = cfg.get("test_pipeline") or dataset.get("pipeline")
        steps = dataset.get("pipeline") or steps
        if not steps:
            raise ValueError(
                "the config has no test pipeline: expected test_dataloader.dataset.pipeline, "
                "which says how an image is made into the model's input"
            )
        scope = cfg.get("default_scope") or "mmdet"
        own = [copy.deepcopy(step) for step in steps if _kind(step) not in READERS]
        if own and _kind(own[0]) == "LoadImageFromNDArray":
            # inference_detector has put it into the config for an array
            own[0]["type"] = "LoadImageFromFile"
        with DefaultScope.overwrite_default_scope(scope):
            self._steps = [TRANSFORMS.build(step) for step in own]
        self._loads = bool(own) and _kind(own[0]).startswith("Load")

    def __call__(self, image: str | os.PathLike | np.ndarray) -> tuple[dict, np.ndarray]:
        """What the model's data preprocessor takes, and the image as it was loaded, in BGR."""
        steps = self._steps
        if isinstance(image, np.ndarray):
            pixels = _checked(image)
            data = dict(img=pixels, img_path=None)
            if self._loads:
                if getattr(steps[0], "to_float32", False):
                    data["img"] = pixels.astype(np.float32)
                steps = steps[1:]
        else:
            data = self._load(os.fspath(image))
            steps = steps[1:]
            pixels = data["img"]
        height, width = pixels.shape[:2]
        data |= dict(img_id=0, img_shape=(height, width), ori_shape=(height, width))
        data["img"] = data["img"].copy()
        for step in steps:
            data = step(data)
            if data is None:
                raise ValueError(f"{type(step).__name__} of the test pipeline drops the image")
        if not isinstance(data.get("inputs"), Tensor):
            raise ValueError(
                "the test pipeline does not make one input of an image: expected "
                "test_dataloader.dataset.pipeline to end in PackDetInputs, without TestTimeAug"
            )
        return data, pixels

    def _load(self, path: str) -> dict:
        where = f"image {path}"
        if os.path.isdir(path):
            raise ValueError(f"{where} is a folder: expected a file")
        if not os.path.isfile(path) and "://" not in path:
            raise ValueError(f"{where} does not exist")
        try:
            data = self._steps[0](dict(img_path=path, img_id=0))
            array = None if data is None else data.get("img")
        except Exception as error:  # whatever a reader of a broken file raises
            reason = " ".join(str(error).split())[:150]
            raise ValueError(f"{where} cannot be read as an image ({reason})") from error
        if array is None:
            raise ValueError(f"{where} cannot be read as an image")
        return data


def _kind(step: Mapping) -> str:
    kind = step.get("type")
    return getattr(kind, "__name__", str(kind)).rpartition(".")[2]


def _checked(image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise TypeError(
            "collect expects an image as an array (H, W, 3) in BGR with 8 bits, got "
            f"{image.dtype} {image.shape}"
        )
    return image


def _of_detector(model: nn.Module, pipeline: Pipeline, image, name: str) -> Prepared:
    data, bgr = pipeline(image)
    sample = data["data_samples"]
    batch = {"inputs": [data["inputs"]], "data_samples": [sample]}
    with torch.no_grad():
        batch = model.data_preprocessor(batch, False)
    inputs = batch["inputs"]
    placement = _placement(sample.metainfo, bgr.shape[:2], tuple(inputs.shape[-2:]))
    classes = tuple((getattr(model, "dataset_meta", None) or {}).get("classes") or ())

    def run() -> Detections | None:
        # what a model writes into the samples is another run's no more
        own = copy.deepcopy(batch["data_samples"])
        [found] = model(inputs, own, mode="predict")
        return _detections(found, classes)

    pixels = np.clip(bgr[..., ::-1], 0, 255).astype(np.uint8)
    path = None if isinstance(image, np.ndarray) else Path(image)
    samples = batch["data_samples"]
    return Prepared(
        name, np.ascontiguousarray(pixels), placement, inputs, run, path, samples=samples
    )


def _detections(sample, classes: tuple[str, ...]) -> Detections | None:
    found = getattr(sample, "pred_instances", None)
    if found is None or "bboxes" not in found or "scores" not in found:
        return None
    boxes = found.bboxes
    boxes = getattr(boxes, "tensor", boxes)
    order = found.scores.argsort(descending=True, stable=True)
    parts = (boxes[order], found.scores[order], found.labels[order])
    boxes, scores, labels = (part.detach().cpu().numpy() for part in parts)
    unnamed = range(len(classes), int(labels.max(initial=-1)) + 1)
    classes = (*classes, *(f"class {label}" for label in unnamed))
    return Detections(boxes.astype(np.float64), scores.astype(np.float64), labels, classes)


def _placement(meta: Mapping, size: tuple[int, int], input_size: tuple[int, int]) -> Placement:
    """From what the pipeline says of itself."""
    height, width = (int(n) for n in meta.get("img_shape", size)[:2])
    top = left = 0.0
    if meta.get("pad_param") is not None:  # of letter boxes: top, bottom, left, right
        top, bottom, left, right = map(float, meta["pad_param"])
        height, width = round(height - top - bottom), round(width - left - right)
    elif meta.get("border") is not None:  # of CornerNet and CenterNet: the edges in the input
        top, bottom, left, right = map(float, meta["border"])
        height, width = round(bottom - top), round(right - left)
    factor = meta.get("scale_factor")
    scale = (float(factor[1]), float(factor[0])) if factor is not None else None
    if scale is None:
        scale = (height / size[0], width / size[1])
    # an image that is scaled keeps its whole; a pixel may be lost in rounding, or padded
    expected = [n * s for n, s in zip(size, scale, strict=True)]
    if height < expected[0] - 1.5 or width < expected[1] - 1.5:
        raise ValueError(
            f"the test pipeline cuts the image ({expected[1]:.0f} x {expected[0]:.0f} px become "
            f"{width} x {height}), so that maps cannot be put back on it: leave the crop out of "
            "test_dataloader.dataset.pipeline"
        )
    direction = meta.get("flip_direction") if meta.get("flip") else None
    mirrored = (direction in ("vertical", "diagonal"), direction in ("horizontal", "diagonal"))
    content = (min(height, round(expected[0])), min(width, round(expected[1])))
    return Placement(tuple(size), scale, content, (top, left), mirrored, input_size)


def _of_batch(model: nn.Module, images: Tensor) -> Iterator[Prepared]:
    for number, one in enumerate(images):
        low, high = one.amin(), one.amax()
        # there is no saying how it was normalised: from darkest to brightest
        grey = ((one - low) / (high - low).clamp(min=1e-12)).mul(255).round().byte()
        pixels = grey[:3].expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
        size = tuple(one.shape[-2:])
        inputs = one[None]

        def run(inputs=inputs) -> None:
            model(inputs)

        placement = Placement(size, input_size=size)
        name = f"image {number + 1}"
        yield Prepared(name, np.ascontiguousarray(pixels), placement, inputs, run)
