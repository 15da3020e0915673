"""Every picture of some images, as files and as one page."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from rich.text import Text

from mmattn.evaluation.data import load_ground_truth
from mmattn.evaluation.table import render
from mmattn.visualization import page, style
from mmattn.visualization.channels import (
    channel_maps,
    channel_scale,
    draw_channels,
    draw_share_layers,
    draw_shares,
    draw_strips,
)
from mmattn.visualization.collected import Collected, Layer, Map
from mmattn.visualization.contact_sheets import contact_sheet
from mmattn.visualization.detections import (
    Objects,
    compare_detections,
    draw_detections,
    summarize,
    summary_table,
)
from mmattn.visualization.distance import distance_markdown, distance_table
from mmattn.visualization.record import chosen
from mmattn.visualization.regions import draw_region_layers, draw_regions
from mmattn.visualization.shares import entropy, region_shares
from mmattn.visualization.spatial import draw_layers, draw_norms, draw_spatial, spatial_scale
from mmattn.visualization.weights import draw_mask, draw_masks, draw_queries, weights_scale

FORMATS = ("png", "svg")
SUMMARY = "summary.json"
THUMBNAIL = 160  # px
QUALITY = 82  # of the pictures in the page
LONGEST = 80  # characters of a file's name; four bytes each at most
DETAIL = 8  # images that are drawn layer by layer


@dataclass(frozen=True)
class Picture:
    """A figure that can be drawn.

    Args:
        file: Its file's name, without an ending.
        tab: What it is, for a page: ``'mask'``.
        draw: Makes it.
    """

    file: str
    tab: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Gallery:
    """Images that are drawn and compared with each other.

    Args:
        images: What :func:`mmattn.visualization.collect` returned.
        score: Detections below it are not shown.
        truth: Annotated objects, by the name of an image.
        extra: Further pictures of an image, by its name: class activation maps.
    """

    images: Sequence[Collected]
    score: float = 0.3
    truth: Mapping[str, Objects] = field(default_factory=dict)
    extra: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    _scales: dict = field(default_factory=dict, init=False, repr=False)

    def of_image(self, image: Collected) -> Iterator[Picture]:
        """What shows all layers of an image together."""
        if image.detections is not None:
            truth = self.truth.get(image.name)
            yield Picture(
                "detections", "detections", lambda: draw_detections(image, self.score, truth)
            )
        yield from self.extra.get(image.name, ())
        for kind, name in channel_maps(image):
            scale = self._scale(channel_scale, kind, name)
            yield Picture(
                _file("strips", kind, name),
                f"{kind}: {name}",
                lambda kind=kind, name=name, scale=scale: draw_strips(image, kind, scale, name),
            )
        for draw, kind in ((draw_layers, "spatial"), (draw_masks, "weights")):
            make = spatial_scale if kind == "spatial" else weights_scale
            for (type_, name), layers in _by_map(image, kind).items():
                if len(layers) < 2:
                    continue
                scale = self._scale(make, type_, name)
                arguments = (layers, name, scale) if kind == "spatial" else (layers, scale, name)
                yield Picture(
                    _file("layers", type_, name),
                    f"{type_}: {name}",
                    lambda draw=draw, arguments=arguments: draw(image, *arguments),
                )
        if len([x for x in image if x.of_kind("regions")]) > 1:
            yield Picture("layers-regions", "regions", lambda: draw_region_layers(image))
        for kind in dict.fromkeys(x.type for x in image if x.of_kind("shares")):
            yield Picture(
                _file("layers", kind, "shares"),
                f"{kind}: shares",
                lambda kind=kind: draw_share_layers(image, kind),
            )

    def of_layer(self, image: Collected, layer: Layer) -> Iterator[Picture]:
        """What shows one layer of an image."""
        for one in layer.maps:
            drawn = self._of_map(image, layer, one)
            if drawn is not None:
                yield Picture(_file(one.name), one.name, drawn)
        if layer.before is not None and layer.after is not None and layer.grid is not None:
            yield Picture("norm", "feature norm", lambda: draw_norms(image, layer))

    def _of_map(self, image: Collected, layer: Layer, one: Map) -> Callable[[], Figure] | None:
        if one.kind == "spatial" and one.grid is not None:
            scale = self._scale(spatial_scale, layer.type, one.name)
            return lambda: draw_spatial(image, layer, one, scale)
        if one.kind == "weights" and one.grid is not None:
            if one.queries is not None:
                scale = self._scale_of_layer(layer, one)
                return lambda: draw_queries(image, layer, scale, one)
            scale = self._scale(weights_scale, layer.type, one.name)
            return lambda: draw_mask(image, layer, scale, one)
        if one.kind == "channel" and layer.raised is not None and one.role == "factor":
            scale = self._scale(channel_scale, layer.type, one.name)
            return lambda: draw_channels(image, layer, scale, one.name)
        if one.kind == "regions" and one.grid is not None:
            return lambda: draw_regions(image, layer, self.score)
        if one.kind == "shares":
            return lambda: draw_shares(image, layer)
        return None

    def _scale(self, make: Callable, *of: str):
        """One for all images."""
        key = (make, *of)
        if key not in self._scales:
            self._scales[key] = make(self.images, *of)
        return self._scales[key]

    def _scale_of_layer(self, layer: Layer, one: Map):
        """One for this layer in all images: a sharp attention would leave others without colour."""
        key = (layer.name, layer.call, one.name)
        if key not in self._scales:
            alone = [
                replace(image, layers=tuple(x for x in image if (x.name, x.call) == key[:2]))
                for image in self.images
            ]
            self._scales[key] = weights_scale(alone, layer.type, one.name)
        return self._scales[key]

    def sheets(self, layers: Sequence[str] | None = None) -> Iterator[Picture]:
        """Contact sheets: each layer of ``layers``, or the last of each stage."""
        if layers is None:
            last = {(x.type, x.stage): x.name for x in self.images[0] if _drawable(x)}
            layers = list(last.values())
        else:
            layers = list(chosen({x.name: x for x in self.images[0]}, layers))
        for name in layers:
            figures = contact_sheet(self.images, name, score=self.score)
            title = self.images[0][name].title
            for number, figure in enumerate(figures, 1):
                suffix = f"-{number}" if len(figures) > 1 else ""
                of = f" ({number} of {len(figures)})" if len(figures) > 1 else ""
                yield Picture(f"{_file(name)}{suffix}", title + of, lambda figure=figure: figure)

    def differences(self) -> list:
        """What the modules' effect changes in the detections of each image."""
        return [
            compare_detections(
                image.detections, image.neutral, self.score, truth=self.truth.get(image.name)
            )
            for image in self.images
            if image.detections is not None and image.neutral is not None
        ]

    def numbers(self) -> dict[str, Any]:
        """What the pictures show in numbers, to be written as JSON."""
        found: dict[str, Any] = {"images": [_described(image) for image in self.images]}
        if differences := self.differences():
            found["detections by size"] = summarize(differences)
            found["score"] = self.score
        if distances := distance_table(self.images):
            found["query distances"] = [_finite(row) for row in distances]
        return found


def with_unique_names(images: Sequence[Collected]) -> list[Collected]:
    """The same images; those whose names make the same file name are numbered."""
    used: set[str] = set()
    found = []
    for image in images:
        numbered = (f"{image.name} ({number})" for number in itertools.count(2))
        name = next(
            name
            for name in itertools.chain([image.name], numbered)
            if _file(name).casefold() not in used  # some systems take a and A for one
        )
        used.add(_file(name).casefold())
        found.append(replace(image, name=name))
    return found


def objects_of(images: Sequence[Collected], annotations: str) -> dict[str, Objects]:
    """The annotated objects of images, by their names.

    Args:
        images: With paths, of a model with class names.
        annotations: A COCO annotation file.

    Raises:
        ValueError: It is none, or lacks all images or all of the model's classes.
    """
    truth = load_ground_truth(annotations)
    by_file: dict[str, list[str]] = {}
    for name in filter(None, truth.file_names):
        by_file.setdefault(Path(name).name, []).append(name)
    found = {}
    for image in images:
        if image.detections is None:
            raise ValueError("annotations are compared with detections, and the model gives none")
        classes = image.detections.classes
        if not set(classes) & set(truth.class_names):
            raise ValueError(
                f"{annotations} has the classes {_some(truth.class_names)}, the model "
                f"{_some(classes)}: expected annotations of the model's classes"
            )
        names = by_file.get(image.path.name, [])
        if len(names) > 1:  # in several folders
            inside = image.path.absolute().parts
            names = [name for name in names if inside[-len(Path(name).parts) :] == Path(name).parts]
        if len(names) > 1:
            raise ValueError(f"{annotations} has several images that can be {image.path}")
        if not names:
            continue
        found[image.name] = Objects.of(truth, names[0], classes)
    if not found:
        raise ValueError(f"{annotations} has no image named {images[0].path.name}, nor the others")
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def cam_pictures(found: Sequence) -> list[Picture]:
    """A picture for each box of :func:`~.class_activation.grad_cam`."""
    from mmattn.visualization.class_activation import draw_grad_cam

    return [
        Picture(
            _file("class-activation", str(one.index), one.class_name),
            f"{one.method}: {one.title}",
            lambda one=one: draw_grad_cam(one),
        )
        for one in found
    ]


def conditions(config: str, checkpoint: str, model, layers: Sequence[str] | None) -> dict[str, str]:
    """What a reader of the pictures has to know of how they were made."""
    import torch

    from mmattn import __version__

    found = {"config": str(config), "checkpoint": str(checkpoint)}
    if layers:
        found["layers"] = ", ".join(layers)
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    found["versions"] = f"mmattn {__version__}, torch {torch.__version__}, {name}"
    return found


def report(gallery: Gallery) -> str:
    """The numbers for a terminal, as Markdown tables."""
    parts = []
    if differences := gallery.differences():
        text = (
            f"Detections of a score of {gallery.score:g} or more, with the modules' effect and "
            f"with their gates neutral, {len(differences)} images."
        )
        if len(differences) == 1:
            text = text.replace("1 images", "1 image")
        parts.append(render(summary_table(summarize(differences)), Text(text)))
    if rows := distance_table(gallery.images):
        parts.append("Distance between the attention of queries")
        parts.append(distance_markdown(rows))
    return "\n\n".join(part.strip() for part in parts)


def write(
    gallery: Gallery,
    out: Path,
    *,
    title: str,
    conditions: Mapping[str, str],
    formats: Sequence[str] = FORMATS,
    sheets: Sequence[str] | None = None,
    detail: int = DETAIL,
    progress: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Writes every picture, ``index.html`` and ``summary.json`` into a folder.

    It is written whole or not at all: into a folder beside it, which then takes its place.

    Args:
        gallery: What to draw.
        out: The folder. It may exist if it is empty or was written by this function.
        title: Of the page.
        conditions: What a reader has to know of the run, by its name.
        formats: ``'png'``, ``'svg'`` or both, of the single pictures.
        sheets: Layers with a contact sheet, where there is more than one image; None: the last of
            each stage.
        detail: So many images are drawn layer by layer; all are in the contact sheets and numbers.
        progress: Called after each layer of each image, and once more after each image.

    Returns:
        The files.

    Raises:
        ValueError: ``out`` has other files.
    """
    check_out(out)
    images = with_unique_names(gallery.images)
    if [image.name for image in images] != [image.name for image in gallery.images]:
        raise ValueError("write expects images of different names: see with_unique_names")
    whole = out.resolve()  # of a link, the folder that it leads to
    partial, old = (whole.with_name(f".{whole.name[:200]}.{what}") for what in ("partial", "old"))
    for path in (partial, old):
        shutil.rmtree(path, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(gallery, partial, title, conditions, formats, sheets, detail, progress)
        if whole.exists():
            whole.rename(old)
        partial.rename(whole)
    except BaseException:
        if old.exists() and not whole.exists():
            old.rename(whole)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return sorted(path for path in out.rglob("*") if path.is_file())


def check_out(out: Path) -> None:
    """Raises ValueError for a folder that :func:`write` could not or must not take the place of."""
    above = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ValueError(f"{above} is a file: expected a folder, or the name of a new one")
    if not os.access(out.resolve().parent if above == out.absolute() else above, os.W_OK):
        raise ValueError(f"folder {out} cannot be written: there is no permission in {above}")
    if not out.exists():
        return
    ours = False
    with contextlib.suppress(OSError, ValueError, AttributeError):
        ours = json.loads((out / SUMMARY).read_text("utf-8")).get("format") == "mmattn pictures 1"
    if not ours and any(out.iterdir()):
        raise ValueError(
            f"folder {out} has files that are not pictures of an earlier run, and would be lost: "
            "name another folder"
        )


def _write(gallery, folder, title, conditions, formats, sheets, detail, progress) -> None:
    images = []
    for image in gallery.images[:detail]:
        inside = folder / "images" / _file(image.name)
        whole = [_shown(p, inside, formats) for p in gallery.of_image(image)]
        layers = []
        for layer in image:
            name = _file(layer.name) + (f"-call{layer.call + 1}" if layer.call else "")
            shown = [_shown(p, inside / name, formats) for p in gallery.of_layer(image, layer)]
            progress()
            if shown:
                layers.append(page.Layer(layer.title, layer.name, layer.stage, shown))
        progress()
        images.append(page.Image(image.name, _thumbnail(image), whole, layers))
    together = []
    if len(gallery.images) > 1:
        for picture in gallery.sheets(sheets):
            together.append(_shown(picture, folder / "contact-sheets", formats))
    numbers = gallery.numbers()
    content = {"format": "mmattn pictures 1", "title": title, **conditions, **numbers}
    more = len(gallery.images) - len(images)
    html = page.render(page.Page(title, dict(conditions), images, more, together, numbers))
    (folder / "index.html").write_text(html, "utf-8")
    (folder / SUMMARY).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")


def _shown(picture: Picture, folder: Path, formats: Sequence[str]) -> page.Shown:
    """Draws a picture into its files, and returns it for the page."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = picture.draw()
    data = style.png(figure)
    if "png" in formats:
        (folder / f"{picture.file}.png").write_bytes(data)
    if "svg" in formats:
        style.save_svg(figure, folder / f"{picture.file}.svg")
    with Image.open(io.BytesIO(data)) as image, io.BytesIO() as file:
        image.convert("RGB").save(file, "WEBP", quality=QUALITY, method=4)
        return page.Shown(picture.tab, file.getvalue(), *image.size)


def _thumbnail(image: Collected) -> bytes:
    small = Image.fromarray(image.image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    with io.BytesIO() as file:
        small.save(file, "WEBP", quality=QUALITY)
        return file.getvalue()


def _by_map(image: Collected, kind: str) -> dict[tuple[str, str], list[Layer]]:
    """The layers of a kind of map, by type and the map's name; context masks alone of weights."""
    found: dict[tuple[str, str], list[Layer]] = {}
    for layer in image:
        for one in layer.of_kind(kind):
            if one.grid is not None and one.queries is None:
                found.setdefault((layer.type, one.name), []).append(layer)
    return found


def _drawable(layer: Layer) -> bool:
    kinds = ("spatial", "weights", "regions")
    return any(
        (one.kind in kinds and one.grid is not None) or one.kind in ("channel", "shares")
        for one in layer.maps
    )


def _file(*words: str) -> str:
    """Words as a file name that every system takes."""
    return re.sub(r"[^\w.-]+", "-", "-".join(words)).strip("-.")[-LONGEST:].strip("-.") or "image"


def _described(image: Collected) -> dict[str, Any]:
    height, width = image.image.shape[:2]
    found: dict[str, Any] = {"name": image.name, "height": height, "width": width}
    if image.path is not None:
        found["file"] = str(image.path)
    for name in ("detections", "neutral"):
        boxes = getattr(image, name)
        if boxes is not None:
            found[name] = [
                {
                    "box": [_number(round(float(v), 2)) for v in box],
                    "score": _number(round(float(score), 4)),
                    "class": boxes.classes[label],
                }
                for box, score, label in zip(boxes.boxes, boxes.scores, boxes.labels, strict=True)
            ]
    found["layers"] = [_layer(image, layer) for layer in image]
    return found


def _layer(image: Collected, layer: Layer) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": layer.name,
        "type": layer.type,
        "label": layer.label,
        "call": layer.call,
        "maps": [_map(image, one) for one in layer.maps],
    }
    if layer.grid is not None:
        found["stride"] = layer.grid.stride
        found["first cell at"] = layer.grid.offset
        found["exact"] = layer.grid.exact
    for name in ("raised", "lowered"):
        if (channels := getattr(layer, name)) is not None:
            found[f"channels most {name}"] = list(channels.indices)
    return found | _finite(layer.measures)


def _map(image: Collected, one: Map) -> dict[str, Any]:
    values = one.values.double()
    found: dict[str, Any] = {"name": one.name, "kind": one.kind, "shape": list(values.shape)}
    if one.kind == "regions":
        shares = region_shares(one, image.placement)
        found["shares"] = [round(float(v), 5) for v in shares]
        found["entropy (bits)"] = entropy(shares)
    else:
        spread = float(values.std(correction=0))
        found |= dict(mean=float(values.mean()), min=float(values.min()), max=float(values.max()))
        found["standard deviation"] = spread
    if one.groups:
        found["groups"] = list(one.groups)
    if one.queries is not None:
        found["queries"] = one.queries.tolist()
    if one.neutral is not None:
        found["neutral"] = one.neutral
    return _finite(found)


def _finite(found: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what is not a number is None."""
    return {key: _number(value) for key, value in found.items()}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
