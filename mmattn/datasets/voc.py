"""Pascal VOC annotations as COCO's.

VOC counts pixels from 1, and a box names the first and the last pixel that belong to it. COCO
counts from 0 and gives width and height, so ::

    x = xmin - 1     y = ymin - 1     width = xmax - xmin + 1     height = ymax - ymin + 1

mmdet's own reader of VOC subtracts 1 from all four numbers and takes ``xmax - xmin`` for the width,
one pixel less. Of a set whose pixels are counted from 0 (``origin=0``), nothing is subtracted.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from mmattn.datasets.coco_files import place
from mmattn.evaluation.progress import Progress

SPLITS = ("train", "val", "trainval", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
DIFFICULT = ("crowd", "keep", "drop")
LINKS = ("hard", "symbolic", "copy", "none")
_SHOWN = 5


@dataclass
class Converted:
    """What became of one split.

    Attributes:
        name: The split.
        images: How many images it has.
        objects: How many objects, by class.
        notes: What was put right or left out.
    """

    name: str
    images: int
    objects: dict[str, int]
    notes: list[str] = field(default_factory=list)


class BrokenFileError(ValueError):
    """An XML file or image that cannot be used: one clause that names it."""


def convert(
    root: Path | str,
    out: Path | str,
    *,
    splits: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    difficult: str = "crowd",
    origin: int = 1,
    link: str = "hard",
    skip_broken: bool = False,
) -> list[Converted]:
    """Converts a data set in Pascal VOC's layout.

    Args:
        root: It has ``Annotations/*.xml``, ``JPEGImages/`` and ``ImageSets/Main/SPLIT.txt``.
        out: A folder that does not exist, or is empty. It gets ``annotations/SPLIT.json`` and
            ``images/``, and is there whole or not at all.
        splits: Names of lists in ``ImageSets/Main``; if None those of train, val, trainval and test
            that are there, or without any list all annotations as 'all'.
        classes: Names of the classes, in the order of their ids from 1 on; objects of others are
            left out. If None, all that are found, in alphabetical order.
        difficult: What becomes of objects marked as difficult: 'crowd' sets ``iscrowd``, so that
            mmdet ignores them in training, as it does with VOC's, and the evaluation counts them
            neither as missed nor their detections as false; 'keep' takes them as any other, 'drop'
            leaves them out.
        origin: The number of the first pixel of a row, 1 or 0.
        link: 'hard' links to the images (copies where the file system cannot), 'symbolic' links,
            'copy', or 'none' for annotations alone.
        skip_broken: Leave out images whose files cannot be used, in place of ending.

    Returns:
        What became of each split.

    Raises:
        OSError, ValueError: One sentence on what is not as expected. Nothing is left behind.
    """
    root, out = Path(root), Path(out)
    for key, value, known in (
        ("difficult", difficult, DIFFICULT),
        ("link", link, LINKS),
        ("origin", origin, (0, 1)),
    ):
        if value not in known:
            raise ValueError(f"{key} must be one of {', '.join(map(str, known))}, got {value!r}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} is there already, and nothing is overwritten: name another folder")
    if classes is not None and len(set(classes)) < len(classes):
        raise ValueError(f"a class comes twice in {', '.join(classes)}")
    lists = _lists(root, splits)
    files = _images(root / "JPEGImages")
    parsed, broken = _parse_all(root, lists, files, origin)
    if broken and not skip_broken:
        shown = "; ".join(list(broken.values())[:_SHOWN])
        more = f"; and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise ValueError(f"{shown}{more} (--skip-broken leaves such images out)")
    if not parsed:
        raise ValueError(f"{root} has no image that can be used")
    found = Counter(x["name"] for one in parsed.values() for x in one["objects"])
    names = list(classes) if classes is not None else sorted(found)
    if classes is not None and (missing := [name for name in names if name not in found]):
        raise ValueError(
            f"no object is of class {missing[0]!r}; the set has {', '.join(sorted(found))}"
        )
    if not names:
        raise ValueError(f"the annotations of {root} have no object")
    results = []
    out.parent.mkdir(parents=True, exist_ok=True)
    # made under another name beside it, so that an interruption leaves no half data set
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        new = Path(folder, "new")
        (new / "annotations").mkdir(parents=True)
        for split, ids in lists.items():
            used = [one for one in ids if one in parsed]
            content, result = _split(split, used, parsed, names, difficult)
            if left := [broken[one] for one in ids if one in broken]:
                result.notes.append(f"{len(left)} broken left out: {'; '.join(left[:_SHOWN])}")
            path = new / "annotations" / f"{split}.json"
            path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            results.append(result)
        if link != "none":
            (new / "images").mkdir()
            for one in parsed.values():
                place(one["path"], new / "images" / one["path"].name, link)
        os.rename(new, out)  # over an empty folder at most
    return results


def _lists(root: Path, splits: Sequence[str] | None) -> dict[str, list[str]]:
    """Split -> ids of its images, in the order of its file."""
    if not (root / "Annotations").is_dir():
        inner = sorted(path.parent for path in root.glob("*/Annotations"))
        hint = f"; did you mean {inner[0]}?" if inner else ""
        raise ValueError(
            f"{root} has no folder Annotations; expected Annotations/, JPEGImages/ and "
            f"ImageSets/Main/{hint}"
        )
    folder = root / "ImageSets" / "Main"
    there = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    if splits is None:
        splits = [name for name in SPLITS if name in there]
        if not splits:
            ids = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
            return {"all": ids}
    lists = {}
    for name in splits:
        if name not in there:
            raise ValueError(f"{folder} has no {name}.txt; it has {', '.join(there) or 'no list'}")
        lines = there[name].read_text(encoding="utf-8-sig").split("\n")
        ids = [_id(root, line.strip()) for line in lines if line.strip()]
        lists[name] = list(dict.fromkeys(ids))
    return lists


def _id(root: Path, line: str) -> str:
    """An image's id: it may have spaces, and a list of a class a second column: -1, 0 or 1."""
    first, *rest = line.split()
    return line if rest and (root / "Annotations" / f"{line}.xml").is_file() else first


def _images(folder: Path) -> dict[str, Path]:
    """Id -> image; of several files with one id, JPEG comes first."""
    if not folder.is_dir():
        raise ValueError(f"the folder of images {folder} does not exist")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            old = found.get(path.stem)
            if old is None or SUFFIXES.index(suffix) < SUFFIXES.index(old.suffix.lower()):
                found[path.stem] = path
    return found


def _parse_all(
    root: Path, lists: dict[str, list[str]], files: dict[str, Path], origin: int
) -> tuple[dict[str, dict], dict[str, str]]:
    ids = list(dict.fromkeys(one for ids in lists.values() for one in ids))
    parsed, broken = {}, {}
    with Progress() as progress:
        step = progress.stage("reading annotations", len(ids))
        for one in ids:
            try:
                parsed[one] = _parse(root / "Annotations" / f"{one}.xml", one, files, origin)
            except BrokenFileError as error:
                broken[one] = str(error)
            step(1)
    return parsed, broken


def _parse(path: Path, one: str, files: dict[str, Path], origin: int) -> dict[str, Any]:
    """An image's file, size in px and objects."""
    try:
        tree = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise BrokenFileError(f"{path} does not exist") from None
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError) as error:
        raise BrokenFileError(f"{path} is no XML: {error}") from None
    except OSError as error:
        raise BrokenFileError(f"{path} cannot be read: {error.strerror}") from None
    named = Path(tree.findtext("filename", "").strip().replace("\\", "/"))
    image = files.get(one) or files.get(named.stem)
    if image is None:
        raise BrokenFileError(f"{path} has no image: there is no JPEGImages/{one}.jpg")
    try:
        with Image.open(image) as content:
            width, height = content.size
    except (OSError, SyntaxError, ValueError):
        raise BrokenFileError(f"{image} is no image that can be read") from None
    stated = [_number(tree.findtext(f"size/{side}")) for side in ("width", "height")]
    boxes, notes = [], Counter()
    if stated != [width, height]:
        notes["size"] += 1
    for number, item in enumerate(tree.iter("object")):
        where = f"object {number + 1} of {path}"
        name = (item.findtext("name") or "").strip()
        if not name:
            raise BrokenFileError(f"{where} has no name")
        corners = [_number(item.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
        if None in corners:
            raise BrokenFileError(f"{where} ({name}) has no bndbox of four numbers")
        box, note = _box(corners, width, height, origin)
        notes.update(note)
        if box is not None:
            hard = _number(item.findtext("difficult")) == 1
            boxes.append({"name": name, "bbox": box, "difficult": hard})
    return {"path": image, "size": (width, height), "objects": boxes, "notes": notes}


def _number(text: str | None) -> int | float | None:
    """A finite number, whole where it is."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def _box(
    corners: list[float], width: int, height: int, origin: int
) -> tuple[list[float] | None, list[str]]:
    """COCO's box within the image, or None, and what was done to it."""
    xmin, ymin, xmax, ymax = corners
    if xmax <= xmin or ymax <= ymin:
        return None, ["empty"]
    left, top = xmin - origin, ymin - origin
    right, bottom = xmax - origin + 1, ymax - origin + 1
    inside = [max(left, 0), max(top, 0), min(right, width), min(bottom, height)]
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return None, ["outside"]
    cut = ["cut"] if inside != [left, top, right, bottom] else []
    return [inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1]], cut


def _split(
    split: str, ids: list[str], parsed: dict[str, dict], names: list[str], difficult: str
) -> tuple[dict[str, Any], Converted]:
    numbers = {name: i for i, name in enumerate(names, 1)}
    images, annotations = [], []
    notes: Counter[str] = Counter()
    for image_id, one in enumerate(ids, 1):
        record = parsed[one]
        width, height = record["size"]
        file_name = record["path"].name
        images.append(dict(id=image_id, file_name=file_name, width=width, height=height))
        notes.update(record["notes"])
        for x in record["objects"]:
            if x["name"] not in numbers:
                notes["class"] += 1
                continue
            if x["difficult"]:
                notes[difficult] += 1
                if difficult == "drop":
                    continue
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=numbers[x["name"]],
                    bbox=x["bbox"],
                    area=x["bbox"][2] * x["bbox"][3],
                    iscrowd=int(x["difficult"] and difficult == "crowd"),
                )
            )
    counts = Counter(x["category_id"] for x in annotations)
    objects = {name: counts[number] for name, number in numbers.items()}
    sentences = {
        "size": "images with a wrong size, or none, in their XML: taken from the image",
        "empty": "boxes without width or height (xmax <= xmin or ymax <= ymin): left out",
        "outside": "boxes outside of their image: left out",
        "cut": "boxes that reached out of their image: cut at its edge",
        "class": "objects of other classes: left out",
        "crowd": "difficult objects: iscrowd=1",
        "keep": "difficult objects: kept as any other",
        "drop": "difficult objects: left out",
    }
    said = [f"{notes[key]:,} {sentence}" for key, sentence in sentences.items() if notes[key]]
    content = dict(
        images=images,
        annotations=annotations,
        categories=[dict(id=number, name=name) for name, number in numbers.items()],
    )
    return content, Converted(split, len(images), objects, said)


def render(results: Sequence[Converted]) -> str:
    """What became of the splits, as text."""
    lines = []
    for one in results:
        objects = ", ".join(f"{number:,} {name}" for name, number in one.objects.items())
        lines.append(f"{one.name}: {one.images:,} images, {sum(one.objects.values()):,} objects")
        lines.append(f"  {objects}")
        lines += [f"  {note}" for note in one.notes]
    return "\n".join(lines)
