"""Pictures of the images on which two runs differ: their boxes or masks, side by side.

What only one run did stands out, with a label; what both did is thin and pale. Small objects that
differ are enlarged below. Colours are Okabe and Ito's, and every meaning has a line style too.
"""

from __future__ import annotations

import dataclasses
import io
import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import hotcoco
import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

from mmattn.evaluation.data import Detections, GroundTruth
from mmattn.evaluation.differences import DifferingImage, RunOnImage

PANEL = 690  # px, greatest width and height of one run's image
GAP = 20
MARGIN = 4
SHAPE = 5  # greatest ratio of a panel's sides
MAX_LABELS = 40  # in one view
STRIP = (300, 250)  # height of the enlargements: one a run, or two
TEXT = 16
TAG = 20
LETTERS = "AB"

GREY = (190, 190, 190)
INK = (20, 20, 20)
FAINT = (110, 110, 110)
PAPER = (255, 255, 255)
PALE = (255, 255, 255, 190)


class _Style(NamedTuple):
    """How one kind of box is drawn."""

    colour: tuple[int, int, int]
    dash: tuple[int, int] | None  # px drawn, px left out
    legend: str


STYLES = {
    "found": _Style((86, 180, 233), None, "found, by this run only"),
    "missed": _Style((213, 94, 0), (12, 7), "missed, found by the other run"),
    "false": _Style((240, 228, 66), (3, 4), "false alarm, of this run only"),
}


class Picture(NamedTuple):
    """A drawing and what it shows.

    Attributes:
        image: The file's bytes.
        caption: Plain text.
        panels: Where the image stands in the picture, for baseline and candidate: left, top,
            width and height in px.
    """

    image: bytes
    caption: str
    panels: tuple[tuple[int, int, int, int], ...]


class _Item(NamedTuple):
    """One object or false alarm as one run's panel shows it."""

    kind: str  # a key of STYLES
    differs: bool
    box: tuple[float, float, float, float]  # left, top, right, bottom in px of the image
    mask: dict | None
    label: str


def draw_all(
    images: Sequence[DifferingImage],
    ground_truth: GroundTruth,
    baseline: Detections,
    candidate: Detections,
    images_dir: str | os.PathLike | None = None,
    **options: Any,
) -> list[DifferingImage]:
    """Images with their ``picture`` and ``caption``.

    Args:
        images: What :func:`~mmattn.evaluation.differences.differing_images` chose.
        ground_truth: What it chose them from.
        baseline: The baseline's detections.
        candidate: The candidate's detections.
        images_dir: Folder of the image files; None for boxes on grey.
        options: Of :func:`draw`.

    Raises:
        ValueError: None of the ground truth's files is in the folder.
    """
    if images_dir is not None and images:
        check_images_dir(ground_truth, images_dir)
    drawn = []
    for image in images:
        picture = draw(image, ground_truth, baseline, candidate, images_dir, **options)
        kind = f"image/{options.get('format', 'jpeg').lower()}"
        drawn.append(
            dataclasses.replace(
                image, picture=picture.image, picture_type=kind, caption=picture.caption
            )
        )
    return drawn


def draw(
    image: DifferingImage,
    ground_truth: GroundTruth,
    baseline: Detections,
    candidate: Detections,
    images_dir: str | os.PathLike | None = None,
    *,
    format: str = "jpeg",
    max_bytes: int = 150_000,
    small: float = 32,
) -> Picture:
    """Baseline and candidate side by side on one image, small objects that differ enlarged.

    Boxes refer to the pixels of the ground truth's width and height. Where a file's EXIF
    orientation decides which way round that is, the one that fits this size is taken, and the
    upright one if both do, as OpenCV and so mmdet load it.

    Args:
        image: The image and what both runs did there.
        ground_truth: What it was chosen from.
        baseline: The baseline's detections.
        candidate: The candidate's detections.
        images_dir: Folder of the image files; None for boxes on grey. A file that is missing or
            cannot be read is replaced by grey too, and the caption says so.
        format: 'jpeg' or 'png'.
        max_bytes: A JPEG's quality is lowered until it is no larger than this, but not below 38.
        small: Boxes that differ are enlarged where their side (the root of their area) is below
            this, in px of the image or, in a large image, of the panel.

    Raises:
        ValueError: ``format`` is neither.
    """
    format = format.lower()
    if format not in ("jpeg", "png"):
        raise ValueError(f"format must be 'jpeg' or 'png'; got {format!r}.")
    notes: list[str] = []
    photo, size = None, _annotated_size(image, ground_truth)
    if images_dir is None:
        notes.append("Drawn without the image: no folder of images was given.")
    else:
        photo = _load(os.fspath(images_dir), image.file_name, size, notes)
    if size is None:
        size = (
            photo.size if photo is not None else _extent(image, ground_truth, (baseline, candidate))
        )
    names = _Names(ground_truth)
    pairs = ((image.baseline, baseline), (image.candidate, candidate))
    items = [
        _items(run, other, detections, ground_truth, names)
        for (run, detections), (other, _) in zip(pairs, pairs[::-1], strict=True)
    ]
    canvas, panels = _compose(image, photo, size, items, small, notes)
    caption = _caption(image, ground_truth, items, [*notes, *names.notes()])
    return Picture(_encode(canvas, format, max_bytes), caption, panels)


# --- files ---------------------------------------------------------------------------------


def check_images_dir(ground_truth: GroundTruth, images_dir: str | os.PathLike) -> None:
    """Checks that a folder has at least one of the ground truth's images.

    Raises:
        ValueError: It has none, or the ground truth does not name them.
    """
    folder = os.fspath(images_dir)
    names = [x for x in ground_truth.file_names if x]
    if not names:
        raise ValueError(
            f"The ground truth names no image files ('file_name'), so none can be shown from "
            f"{folder}: leave the folder out, or add the names."
        )
    if not any(os.path.isfile(os.path.join(folder, name)) for name in names):
        raise ValueError(
            f"No image file was found in {folder}: looked for {names[0]}"
            + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            + ". Give the folder to which the ground truth's 'file_name' is relative."
        )


def _load(
    folder: str, name: str | None, size: tuple[float, float] | None, notes: list[str]
) -> Image.Image | None:
    """The image, the way round that fits the size, or None with a note."""
    if not name:
        notes.append("Drawn without the image: the ground truth does not name its file.")
        return None
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        notes.append(f"Drawn without the image: {one_line(path)} does not exist.")
        return None
    try:
        with warnings.catch_warnings(), Image.open(path) as file:
            warnings.simplefilter("ignore")  # of large images and odd metadata
            stored = _plain(file)
            turned = file.getexif().get(ExifTags.Base.Orientation, 1) != 1
            photo = ImageOps.exif_transpose(stored) if turned else stored
    except Exception as error:  # Pillow's readers raise many kinds
        notes.append(
            f"Drawn without the image: {one_line(path)} cannot be read ({one_line(error)})."
        )
        return None
    if size is None or photo.size == size:
        return photo
    if stored.size == size:
        notes.append("The EXIF orientation is ignored: the annotated size is the stored one.")
        return stored
    notes.append(
        f"The file is {photo.width} x {photo.height} px, the ground truth says {size[0]:.0f} x "
        f"{size[1]:.0f}: it was scaled to fit."
    )
    return photo


def _plain(file: Image.Image) -> Image.Image:
    """The file's pixels in 8 bits, grey or RGB."""
    file.load()
    if file.mode in ("L", "RGB"):
        return file
    if not file.mode.startswith(("I", "F")):
        return file.convert("RGB")
    # more than 8 bits: from darkest to brightest
    values = np.nan_to_num(np.asarray(file, np.float64))
    values -= values.min()
    values *= 255 / max(values.max(), 1e-9)
    photo = Image.fromarray(values.astype(np.uint8))
    photo.info["exif"] = file.getexif().tobytes()
    return photo


def _annotated_size(image: DifferingImage, ground_truth: GroundTruth) -> tuple[float, float] | None:
    height, width = map(float, ground_truth.image_sizes[image.image])
    return (width, height) if width > 0 and height > 0 else None


def _extent(
    image: DifferingImage, ground_truth: GroundTruth, detections: Sequence[Detections]
) -> tuple[float, float]:
    """Width and height that hold every box, for an image of unknown size."""
    columns = (ground_truth, *detections)
    boxes = [x.boxes[x.starts[image.image] : x.starts[image.image + 1]] for x in columns]
    ends = np.concatenate([np.ones((1, 2)), *(x[:, :2] + x[:, 2:] for x in boxes)])
    return tuple(map(float, ends.max(0)))


def _encode(canvas: Image.Image, format: str, max_bytes: int) -> bytes:
    if format == "png":
        return _save(canvas, format="PNG")
    for quality in (85, 75, 68, 60, 52, 45, 38):
        data = _save(canvas, format="JPEG", quality=quality, optimize=True)
        if len(data) <= max_bytes:
            break
    return data


def _save(canvas: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    canvas.save(file, **options)
    return file.getvalue()


# --- what is drawn -------------------------------------------------------------------------


class _Names:
    """Class names that the font can write."""

    def __init__(self, ground_truth: GroundTruth) -> None:
        self.ground_truth = ground_truth
        self.replaced: dict[str, str] = {}

    def __getitem__(self, category: int) -> str:
        name = one_line(self.ground_truth.class_names[category])
        if name and _writable(name):
            return shorten(name, 24)
        stand_in = f"class {self.ground_truth.class_ids[category]}"
        self.replaced[stand_in] = name or "(no name)"
        return stand_in

    def notes(self) -> list[str]:
        if not self.replaced:
            return []
        pairs = ", ".join(f"{a} is {b}" for a, b in sorted(self.replaced.items()))
        return [f"Names that the picture's font lacks: {pairs}."]


def one_line(text: Any) -> str:
    """Text without line breaks and runs of spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def shorten(text: str, length: int) -> str:
    """The start of a text that is longer than so many letters."""
    return text if len(text) <= length else text[: length - 3].rstrip() + "..."


def _items(
    run: RunOnImage,
    other: RunOnImage,
    detections: Detections,
    ground_truth: GroundTruth,
    names: _Names,
) -> list[_Item]:
    """A run's boxes, those that differ last, the largest first."""
    items = []

    def add(kind: str, differs: bool, columns: Any, k: int, text: str) -> None:
        x, y, width, height = columns.boxes[k].tolist()
        label = text.format(names[columns.category[k]]) if differs else ""
        mask = columns.masks[k] if columns.masks is not None else None
        items.append(_Item(kind, bool(differs), (x, y, x + width, y + height), mask, label))

    only = ~np.isin(run.found, other.found)
    for g, d, differs in zip(run.found, run.found_by, only, strict=True):
        add("found", differs, ground_truth, g, f"{{}} {detections.scores[d]:.2f}")
    for g, differs in zip(run.missed, np.isin(run.missed, other.found), strict=True):
        add("missed", differs, ground_truth, g, "missed: {}")
    for d, differs in zip(run.false_alarms, ~run.shared, strict=True):
        add("false", differs, detections, d, f"false: {{}} {detections.scores[d]:.2f}")
    return sorted(items, key=lambda x: (x.differs, -box_area(x.box)))


def box_area(box: tuple[float, float, float, float]) -> float:
    """Of left, top, right, bottom."""
    return (box[2] - box[0]) * (box[3] - box[1])


# --- layout --------------------------------------------------------------------------------


def _compose(
    image: DifferingImage,
    photo: Image.Image | None,
    size: tuple[float, float],
    items: list[list[_Item]],
    small: float,
    notes: list[str],
) -> tuple[Image.Image, tuple[tuple[int, int, int, int], ...]]:
    # the panel's region: the image, and room beside it if it is very long or tall
    shown = max(size[0], size[1] / SHAPE), max(size[1], size[0] / SHAPE)
    corner = (size[0] - shown[0]) / 2, (size[1] - shown[1]) / 2
    whole = (*corner, corner[0] + shown[0], corner[1] + shown[1])
    scale = PANEL / max(shown)
    panel = round(shown[0] * scale), round(shown[1] * scale)
    width = max(panel[0], 560)  # room for the headings
    regions = crowded_regions(items, size, scale, width, small)
    strip = STRIP[len(regions) - 1] if regions else 0
    head, row = 30, 56
    top = head + row
    strip_top = top + panel[1] + (12 if regions else 0)
    height = strip_top + strip + 44
    canvas = Image.new("RGB", (2 * MARGIN + 2 * width + GAP, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    _title(pen, image, canvas.width)
    panels, unlabelled = [], 0
    for k, (run, own) in enumerate(zip((image.baseline, image.candidate), items, strict=True)):
        left = MARGIN + k * (width + GAP)
        _heading(pen, run, own, "baseline" if k == 0 else "candidate", (left, head), width)
        place = left + (width - panel[0]) // 2
        view = _View(photo, size, whole, panel)
        view.draw(own)
        tags = view.frame(regions)
        outside = [x for x in own if not any(is_inside(x.box, region) for region in regions)]
        unlabelled += view.label(outside, tags, [view.place(region) for region in regions])
        canvas.paste(view.image, (place, top))
        x0, y0, x1, y1 = view.place((0, 0, *size))
        panels.append((place + x0, top + y0, x1 - x0, y1 - y0))
        cell = (width - (len(regions) - 1) * 8) // max(len(regions), 1), strip
        for n, region in enumerate(regions):
            view = _View(photo, size, region, cell)
            view.draw(own)
            view.pen.rectangle((0, 0, cell[0] - 1, cell[1] - 1), outline=INK, width=2)
            tag = view.letter((0, 0), LETTERS[n])
            unlabelled += view.label([x for x in own if is_inside(x.box, region)], [tag])
            canvas.paste(view.image, (left + n * (cell[0] + 8), strip_top))
    if unlabelled:
        notes.append(f"{unlabelled} labels had no room.")
    _legend(pen, canvas.size)
    return canvas, tuple(panels)


def _title(pen: ImageDraw.ImageDraw, image: DifferingImage, width: int) -> None:
    verdict = "candidate better" if image.difference > 0 else "candidate worse"
    name = one_line(image.file_name or "")
    name = name if name and _writable(name) else f"image {one_line(image.image_id)}"
    text = f"{shorten(name, 60)}: {verdict} by {abs(image.difference)} (found minus false alarms)"
    pen.text((MARGIN, 5), _fit(text, 19, width), INK, font=_font(19))


def _heading(
    pen: ImageDraw.ImageDraw,
    run: RunOnImage,
    items: list[_Item],
    role: str,
    place: tuple[int, int],
    width: int,
) -> None:
    name = one_line(run.name)
    text = f"{role}: {name}" if name and _writable(name) else role
    pen.text(place, _fit(text, 22, width), INK, font=_font(22))
    parts = []
    for kind, word in (("found", "found"), ("missed", "missed"), ("false", "false alarms")):
        number = sum(x.kind == kind for x in items)
        only = sum(x.kind == kind and x.differs for x in items)
        parts.append(f"{word} {number}" + (f" ({only} only here)" if only else ""))
    text = _fit("   ".join(parts), TEXT, width)
    pen.text((place[0], place[1] + 28), text, FAINT, font=_font(TEXT))


def _legend(pen: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    x, y = MARGIN + 2, size[1] - 22
    for style in STYLES.values():
        _rectangle(pen, (x, y - 12, x + 40, y + 12), style)
        width = round(_font(TEXT).getlength(style.legend)) + 8
        pen.rectangle((x + 48, y - 10, x + 48 + width, y + 11), style.colour, (0, 0, 0))
        pen.text((x + 52, y), style.legend, INK, font=_font(TEXT), anchor="lm")
        x += 48 + width + 18
    pen.rectangle((x, y - 9, x + 52, y + 9), FAINT)
    _outline(pen, (x + 5, y - 5, x + 22, y + 5), 1, PALE, None)
    _outline(pen, (x + 30, y - 5, x + 47, y + 5), 1, PALE, STYLES["missed"].dash)
    pen.text((x + 60, y), "thin: the same in both", INK, font=_font(TEXT), anchor="lm")


def crowded_regions(
    items: list[list[_Item]], size: tuple[float, float], scale: float, width: int, small: float
) -> list[tuple[float, float, float, float]]:
    """At most two regions with the most small boxes that differ, in px of the image."""
    weights = {
        x.box: 1 if x.kind == "false" else 2  # an object says more than a false alarm
        for own in items
        for x in own
        if x.differs and _is_small(x.box, scale, small)
    }
    # all pairs are looked at: of very many, the smallest
    weights = {x: weights[x] for x in sorted(weights, key=box_area)[:1000]}
    left = np.array(list(weights)).reshape(-1, 4)
    weight = np.array(list(weights.values()))
    cell = (width - 8) / 2, STRIP[1]
    regions = []
    while len(left) and len(regions) < 2:
        # one that shows things at least three times as large as the panel
        reach = np.array([min(cell[0] / (3 * scale), size[0]), min(cell[1] / (3 * scale), size[1])])
        corner = np.concatenate([left[:, :2], left[:, 2:] - reach])
        corner -= 0.1 * reach * np.repeat([[1], [-1]], len(left), 0)
        held = (left[None, :, :2] >= corner[:, None]).all(2) & (
            left[None, :, 2:] <= corner[:, None] + reach
        ).all(2)
        chosen = held[(held @ weight).argmax()]
        if not chosen.any():
            chosen = np.arange(len(left)) == 0
        regions.append(_around(left[chosen], size, cell))
        rest = [not is_inside(x, regions[-1]) for x in left]
        left, weight = left[rest], weight[rest]
    if len(regions) == 1:
        boxes = np.array([x for x in weights if is_inside(x, regions[0])])
        regions = [_around(boxes, size, (width, STRIP[0]))]
    return sorted(regions)


def _is_small(box: tuple[float, float, float, float], scale: float, small: float) -> bool:
    side = max(box_area(box), 0) ** 0.5
    return side * scale < small or (side < small and side * scale < 2 * small)


def _around(
    boxes: np.ndarray, size: tuple[float, float], cell: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Boxes with their surroundings, in the shape of the cell, within the image if it can be."""
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    typical = np.sqrt(np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1)).mean()
    wanted = high - low + 2 * max(0.8 * typical, 6)
    zoom = (np.array(cell) / wanted).min()
    extent = np.array(cell) / zoom
    corner = (low + high - extent) / 2
    corner = np.clip(corner, 0, np.maximum(np.array(size) - extent, 0))
    corner = np.where(extent > size, (np.array(size) - extent) / 2, corner)
    return (*map(float, corner), *map(float, corner + extent))


def is_inside(box: Sequence[float], region: Sequence[float]) -> bool:
    """Whether all of a box lies in a region."""
    return (
        box[0] >= region[0] and box[1] >= region[1] and box[2] <= region[2] and box[3] <= region[3]
    )


# --- boxes, masks and labels on one view -----------------------------------------------------


class _View:
    """A region of the image at some size, and what is drawn on it."""

    def __init__(
        self,
        photo: Image.Image | None,
        image_size: tuple[float, float],
        region: tuple[float, float, float, float],
        size: tuple[int, int],
    ) -> None:
        self.region, self.size, self.image_size = region, size, image_size
        self.scale = size[0] / (region[2] - region[0]), size[1] / (region[3] - region[1])
        self.image = Image.new("RGB", size, PAPER)
        self._paste(photo)
        self.pen = ImageDraw.Draw(self.image, "RGBA")

    def _paste(self, photo: Image.Image | None) -> None:
        # a region may be larger than the image
        x0, y0 = max(self.region[0], 0), max(self.region[1], 0)
        x1, y1 = min(self.region[2], self.image_size[0]), min(self.region[3], self.image_size[1])
        place = self.place((x0, y0, x1, y1))
        if photo is None:
            self.image.paste(GREY, place)
            return
        fx, fy = photo.size[0] / self.image_size[0], photo.size[1] / self.image_size[1]
        size = max(place[2] - place[0], 1), max(place[3] - place[1], 1)
        # rounding must not reach over the file's edge
        source = (x0 * fx, y0 * fy, min(x1 * fx, photo.width), min(y1 * fy, photo.height))
        part = photo.resize(size, Image.Resampling.BICUBIC, source, reducing_gap=3)
        self.image.paste(part, place[:2])

    def place(self, box: Sequence[float]) -> tuple[int, int, int, int]:
        """A box of the image in px of the view; what lies far outside is cut off."""
        edges = []
        for k, value in enumerate(box):
            value = (value - self.region[k % 2]) * self.scale[k % 2]
            edges.append(round(min(max(value, -20), self.size[k % 2] + 20)))
        return tuple(edges)

    def visible(self, item: _Item) -> bool:
        x0, y0, x1, y1 = self.place(item.box)
        return x1 >= 0 and y1 >= 0 and x0 <= self.size[0] and y0 <= self.size[1]

    def rectangle(self, item: _Item) -> tuple[int, int, int, int]:
        """Where the box is drawn: around what it holds, and never too small to see."""
        box = [min(max(v, 0), self.image_size[k % 2]) for k, v in enumerate(item.box)]
        edges = list(self.place(box))
        for k in (0, 1):
            if edges[k + 2] - edges[k] < 7:
                edges[k] = (edges[k] + edges[k + 2]) // 2 - 3
                edges[k + 2] = edges[k] + 7
            # a line on the edge of the image is drawn inside the view
            if box[k] == 0 and -4 <= edges[k] < 2:
                edges[k] = 2
            if box[k + 2] == self.image_size[k] and 0 <= self.size[k] + 4 - edges[k + 2] < 7:
                edges[k + 2] = self.size[k] - 3
        return tuple(edges)

    def draw(self, items: Sequence[_Item]) -> None:
        for item in items:
            if not self.visible(item):
                continue
            if item.mask is not None and self._mask(item):
                continue
            _rectangle(self.pen, self.rectangle(item), STYLES[item.kind], pale=not item.differs)

    def _mask(self, item: _Item) -> bool:
        """Draws a mask: its outline in the line style, and a translucent fill if it differs."""
        height, width = item.mask["size"]
        if height * width > 200_000_000:
            return False
        x0, y0 = (int(max(v, 0)) for v in item.box[:2])
        x1, y1 = (
            int(np.ceil(min(v, s))) for v, s in zip(item.box[2:], (width, height), strict=True)
        )
        if x1 <= x0 or y1 <= y0:
            return False
        mask = hotcoco.mask.decode(item.mask)[y0:y1, x0:x1]
        # the part of it in this view
        u0, v0 = max(x0, int(self.region[0]) - 2), max(y0, int(self.region[1]) - 2)
        u1, v1 = min(x1, int(self.region[2]) + 3), min(y1, int(self.region[3]) + 3)
        if u1 <= u0 or v1 <= v0:
            return True
        part = Image.fromarray(
            np.ascontiguousarray(mask[v0 - y0 : v1 - y0, u0 - x0 : u1 - x0]) * 255
        )
        left, top, right, bottom = (
            round((v - self.region[k % 2]) * self.scale[k % 2])
            for k, v in enumerate((u0, v0, u1, v1))
        )
        size = max(right - left, 3), max(bottom - top, 3)
        shape = part.resize(size, Image.Resampling.BILINEAR).point(lambda v: 255 * (v > 100))
        shape = ImageOps.expand(shape, 6, 0)
        style, at = STYLES[item.kind], (left - 6, top - 6)
        outer = shape.filter(ImageFilter.MaxFilter(3))
        if not item.differs:
            line = ImageChops.subtract(outer, shape)
            self._stroke(line, at, PAPER, style, 170)
            return True
        self._stroke(shape, at, style.colour, None, 60)
        wide = outer.filter(ImageFilter.MaxFilter(5))
        self._stroke(ImageChops.subtract(wide, shape), at, (0, 0, 0), None, 120)
        line = ImageChops.subtract(outer.filter(ImageFilter.MaxFilter(3)), shape)
        self._stroke(line, at, style.colour, style, 255)
        return True

    def _stroke(
        self,
        shape: Image.Image,
        at: tuple[int, int],
        colour: tuple[int, int, int],
        style: _Style | None,
        strength: int,
    ) -> None:
        if style is not None and style.dash:
            shape = ImageChops.multiply(shape, _checks(shape.size, style.dash))
        self.image.paste(colour, at, shape.point(lambda v: v * strength // 255))

    def frame(self, regions: Sequence[tuple]) -> list[tuple]:
        """Shows regions, with letters beside them; gives the places of the letters."""
        frames = []
        for region in regions:
            x0, y0, x1, y1 = self.place(region)
            x0, y0 = max(x0, 0), max(y0, 0)
            x1, y1 = min(x1, self.size[0]) - 1, min(y1, self.size[1]) - 1
            self.pen.rectangle((x0, y0, x1, y1), outline=(0, 0, 0), width=4)
            inner = (min(x0 + 1, x1), min(y0 + 1, y1), max(x1 - 1, x0), max(y1 - 1, y0))
            self.pen.rectangle(inner, outline=PAPER, width=2)
            frames.append((x0, y0, x1, y1))
        tags: list[tuple] = []
        for n, (x0, y0, x1, y1) in enumerate(frames):
            spots = [(x, y) for x in (x0, x1 - TAG) for y in (y0 - TAG, y1)]
            spots += [(x, y) for x in (x0 - TAG, x1) for y in (y0, y1 - TAG)]
            tag = self._free((*spots, (x0, y0)), [*frames[:n], *frames[n + 1 :], *tags])
            self.letter(tag[:2], LETTERS[n])
            tags.append(tag)
        return tags

    def _free(self, spots: Sequence[tuple], taken: Sequence[tuple]) -> tuple:
        """The first free spot in the view, else the last."""
        for x, y in spots:
            tag = (x, y, x + TAG, y + TAG)
            inside = x >= 0 and y >= 0 and tag[2] < self.size[0] and tag[3] < self.size[1]
            if inside and not intersections(np.array([tag]), np.array(taken).reshape(-1, 4)).any():
                break
        return tag

    def letter(self, at: tuple[int, int], letter: str) -> tuple[int, int, int, int]:
        """The letter of a region."""
        tag = (*at, at[0] + TAG, at[1] + TAG)
        self.pen.rectangle(tag, fill=PAPER, outline=(0, 0, 0))
        centre = at[0] + TAG // 2, at[1] + TAG // 2
        self.pen.text(centre, letter, INK, font=_font(TEXT), anchor="mm")
        return tag

    def label(
        self, items: Sequence[_Item], taken: Sequence[tuple], spared: Sequence[tuple] = ()
    ) -> int:
        """Labels what differs, with no label on another or on a small box.

        Args:
            items: What may be labelled.
            taken: Where no label can be.
            spared: Where a label is better not.

        Returns:
            How many found no place.
        """
        differing = [x for x in items if x.differs and self.visible(x)]
        boxes = np.array([self.rectangle(x) for x in differing], float).reshape(-1, 4)
        is_small = np.sqrt(box_areas(boxes)) < 64
        hard = [*boxes[is_small].tolist(), *map(list, taken)]
        soft = np.concatenate([boxes, np.repeat(np.array(spared).reshape(-1, 4), 3, 0)])
        without, placed = max(len(differing) - MAX_LABELS, 0), []
        # objects before false alarms; the smallest first: they have the fewest places
        order = np.lexsort((box_areas(boxes), [x.kind == "false" for x in differing]))
        for k in order[:MAX_LABELS]:
            font, text = _font(TEXT), differing[k].label
            size = round(font.getlength(text)) + 8, TEXT + 5
            place = free_place(boxes[k], size, self.size, hard, soft)
            if place is None:
                without += 1
                continue
            hard.append(list(place))
            placed.append((place, text, boxes[k], STYLES[differing[k].kind].colour))
        for place, _, box, colour in placed:
            self._lead(place, box, colour)
        for place, text, _, colour in placed:
            self.pen.rectangle(place, fill=colour, outline=(0, 0, 0))
            at = place[0] + 4, (place[1] + place[3]) / 2
            self.pen.text(at, text, (0, 0, 0), font=_font(TEXT), anchor="lm")
        return without

    def _lead(self, place: tuple[int, int, int, int], box: np.ndarray, colour: tuple) -> None:
        """A line from a label to its box, where they are apart."""
        centre = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
        end = [min(max(centre[k], box[k]), box[k + 2]) for k in (0, 1)]
        start = [min(max(end[k], place[k]), place[k + 2]) for k in (0, 1)]
        if max(abs(start[0] - end[0]), abs(start[1] - end[1])) > 4:
            self.pen.line((*start, *end), fill=(0, 0, 0), width=4)
            self.pen.line((*start, *end), fill=colour, width=2)


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """The same of many, (N, 4)."""
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1)


def free_place(
    box: np.ndarray,
    size: tuple[int, int],
    view: tuple[int, int],
    hard: list,
    soft: np.ndarray,
) -> tuple[int, int, int, int] | None:
    """The best place of a label that covers nothing it must not; None if there is none."""
    width, height = size
    x0, y0, x1, y1 = box
    spots = [(x0, y0 - height - 2), (x0, y1 + 3), (x1 - width, y0 - height - 2)]
    spots += [(x1 - width, y1 + 3), (x1 + 3, y0), (x0 - width - 3, y0)]
    if x1 - x0 > width + 8 and y1 - y0 > 2 * height:
        spots += [(x0 + 3, y0 + 3), (x0 + 3, y1 - height - 3), (x1 - width - 3, y0 + 3)]
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for reach in (16, 32, 52, 80, 110):
        dx, dy = np.cos(angles), np.sin(angles)
        centre_x = (x0 + x1) / 2 + dx * ((x1 - x0 + width) / 2 + reach)
        centre_y = (y0 + y1) / 2 + dy * ((y1 - y0 + height) / 2 + reach)
        spots += list(zip(centre_x - width / 2, centre_y - height / 2, strict=True))
    corner = np.round(np.array(spots))
    places = np.concatenate([corner, corner + size], 1)
    fits = (corner >= 0).all(1) & (places[:, 2:] < view).all(1)
    cover = intersections(places, np.array(hard, float).reshape(-1, 4)).sum(1)
    cost = np.arange(len(places)) * 0.02 * width * height
    cost += 0.5 * intersections(places, soft).sum(1)
    cost[~fits | (cover > 0)] = np.inf
    best = int(cost.argmin())
    return tuple(int(v) for v in places[best]) if np.isfinite(cost[best]) else None


def intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas that each of a shares with each of b."""
    a, b = a[:, None], b[None]
    shared = [
        np.minimum(a[..., k + 2], b[..., k + 2]) - np.maximum(a[..., k], b[..., k]) for k in (0, 1)
    ]
    return np.maximum(shared[0], 0) * np.maximum(shared[1], 0)


def _rectangle(
    pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], style: _Style, pale: bool = False
) -> None:
    if pale:
        _outline(pen, box, 1, PALE, style.dash)
        return
    # a dark edge, so that the line shows on every ground; finer lines around what is tiny
    line = 2 if min(box[2] - box[0], box[3] - box[1]) < 20 else 3
    _outline(pen, box, line + 2, (0, 0, 0, 150), None)
    _outline(pen, box, line, style.colour, style.dash)


def _outline(
    pen: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    width: int,
    colour: tuple[int, ...],
    dash: tuple[int, int] | None,
) -> None:
    """A rectangle's outline, its line centred on the edge."""
    x0, y0 = box[0] - width // 2, box[1] - width // 2
    x1, y1 = box[2] + (width - 1) // 2, box[3] + (width - 1) // 2
    if dash is None:
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=width)
        return
    drawn, step, inner = dash[0], sum(dash), width - 1
    for x in range(x0, x1 + 1, step):
        end = min(x + drawn - 1, x1)
        pen.rectangle((x, y0, end, y0 + inner), fill=colour)
        pen.rectangle((x, y1 - inner, end, y1), fill=colour)
    for y in range(y0 + width, y1 - inner, step):
        end = min(y + drawn - 1, y1 - width)
        pen.rectangle((x0, y, x0 + inner, end), fill=colour)
        pen.rectangle((x1 - inner, y, x1, end), fill=colour)


def _checks(size: tuple[int, int], dash: tuple[int, int]) -> Image.Image:
    """A chequerboard, which cuts an outline of any direction into dashes."""
    side = round(sum(dash) / 2)
    x, y = np.arange(size[0]) // side, np.arange(size[1])[:, None] // side
    return Image.fromarray(((x + y) % 2 == 0).astype(np.uint8) * 255)


# --- text ----------------------------------------------------------------------------------


@lru_cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _writable(text: str) -> bool:
    """Whether the font has every character."""
    return all(map(_has_glyph, text))


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    if character == " ":
        return True
    font = _font(TEXT)
    shape, missing = font.getmask(character), font.getmask("\U0010fffd")
    return shape.size != missing.size or bytes(shape) != bytes(missing)


def _fit(text: str, size: int, width: int) -> str:
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _caption(
    image: DifferingImage, ground_truth: GroundTruth, items: list[list[_Item]], notes: list[str]
) -> str:
    """What the picture shows, for those who do not see it too."""
    name = (
        f"{image.file_name} (image {image.image_id})"
        if image.file_name
        else f"Image {image.image_id}"
    )
    verdict = "better" if image.difference > 0 else "worse"
    lines = [
        f"{one_line(name)}: the candidate is {verdict} by {abs(image.difference)} "
        "(objects found minus false alarms)."
    ]
    for run in (image.baseline, image.candidate):
        found, missed, false_alarms = run.counts["all"]
        lines.append(
            f"{one_line(run.name)}: found {found}, missed {missed}, false alarms {false_alarms} "
            + (
                f"(scores from {run.score_thr:.2f})."
                if np.isfinite(run.score_thr)
                else "(it finds no object of any image: its detections are left out)."
            )
        )
    for (kind, text), run, own in (
        (("found", "found by {} only"), image.candidate, items[1]),
        (("found", "found by {} only"), image.baseline, items[0]),
        (("false", "false alarms of {} only"), image.candidate, items[1]),
        (("false", "false alarms of {} only"), image.baseline, items[0]),
    ):
        labels = [x.label.removeprefix("false: ") for x in own if x.kind == kind and x.differs]
        if labels:
            more = f" and {len(labels) - 8} more" if len(labels) > 8 else ""
            text = text.format(one_line(run.name))
            lines.append(f"{text[0].upper()}{text[1:]}: {', '.join(labels[:8])}{more}.")
    for bin_name in list(image.baseline.counts)[1:]:
        a, b = image.baseline.counts[bin_name], image.candidate.counts[bin_name]
        if a[:2] != b[:2]:
            total = a.found + a.missed
            lines.append(
                f"Of {total} {bin_name} objects, the baseline found {a.found}, the candidate "
                f"{b.found}."
            )
    return " ".join([*lines, *notes])
