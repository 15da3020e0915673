"""A small COCO that keeps the share of object sizes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np

from mmattn.datasets import coco_files
from mmattn.datasets.coco_files import Split, place
from mmattn.datasets.stats import size_counts
from mmattn.evaluation.bins import COCO_BINS, SizeBin
from mmattn.evaluation.data import GroundTruth, load_ground_truth
from mmattn.evaluation.progress import Progress

STRATIFY = ("size", "none")
LINKS = ("hard", "symbolic", "copy")
NOTE = "subset.json"
_TRIES, _SWAPS = 20, 2000


@dataclass(frozen=True)
class Part:
    """What was chosen of one split.

    Attributes:
        name: The split.
        images: How many images it has now.
        of_images: How many it had.
        bins: The size bins.
        objects: Objects in each bin now, crowds not counted.
        of_objects: Objects in each bin before.
    """

    name: str
    images: int
    of_images: int
    bins: tuple[SizeBin, ...]
    objects: tuple[int, ...]
    of_objects: tuple[int, ...]


class _ImageRecord(msgspec.Struct):
    id: Any
    file_name: str


class _Owner(msgspec.Struct):
    image_id: Any


def subset(
    splits: Sequence[Split],
    out: Path | str,
    images: Sequence[int],
    *,
    stratify: str = "size",
    seed: int = 0,
    link: str = "hard",
) -> list[Part]:
    """Writes a part of a COCO data set, as a data set of the same layout.

    Args:
        splits: What it is a part of.
        out: A folder that does not exist, or is empty. It is there whole or not at all.
        images: How many images of each split, or one number for all.
        stratify: 'size': the numbers of small, medium and large objects are, as near as can be, in
            the proportion of the images; 'none': images at random.
        seed: The same seed gives the same images.
        link: 'hard' links to the images (copies where the file system cannot), 'symbolic' links or
            'copy'.

    Returns:
        What was chosen of each split.

    Raises:
        OSError, TypeError, ValueError: One sentence on what is not as expected.
    """
    out = Path(out)
    _check_arguments(splits, out, images, stratify, seed, link)
    images = list(images) * (len(splits) if len(images) == 1 else 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    parts, note = [], []
    # made under another name beside it, so that an interruption leaves no half data set
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        new = Path(folder, "new")
        with Progress() as progress:
            for i, (split, number) in enumerate(zip(splits, images, strict=True)):
                progress.stage(f"reading {split.annotations.name}")
                content = coco_files.read(split.annotations)
                truth = load_ground_truth(str(split.annotations))
                counts = size_counts(truth, COCO_BINS)
                if number > len(counts):
                    raise ValueError(
                        f"{split.annotations} has {len(counts):,} images, fewer than {number:,}"
                    )
                rng = np.random.default_rng([seed, i])
                chosen = choose(counts, number, rng, stratify == "size")
                ids = {truth.image_ids[k] for k in chosen}
                target = new / "annotations" / split.annotations.name
                names = _write_annotations(content, ids, truth, target)
                step = progress.stage(f"images of {split.name}", len(names))
                for name in names:
                    _place_image(split.images, new / split.images.name, name, link)
                    step(1)
                parts.append(_part(split.name, truth, counts, chosen))
                note.append(
                    {
                        "split": split.name,
                        "images": number,
                        "of": str(split.annotations),
                        "sha256": hashlib.sha256(content).hexdigest(),
                    }
                )
        settings = {"format": 1, "stratify": stratify, "seed": seed, "parts": note}
        (new / NOTE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        os.rename(new, out)  # over an empty folder at most
    return parts


def _check_arguments(
    splits: Sequence[Split], out: Path, images: Sequence[int], stratify: str, seed: int, link: str
) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} is there already, and nothing is overwritten: name another folder")
    if len(images) not in (1, len(splits)):
        raise ValueError(
            f"expected one number of images for all splits or one for each of the {len(splits)} "
            f"({', '.join(split.name for split in splits)}), got {len(images)}"
        )
    if bad := [n for n in images if isinstance(n, bool) or not isinstance(n, int) or n < 1]:
        raise ValueError(f"the number of images must be a whole number from 1 on, got {bad[0]!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0 on, got {seed!r}")
    for key, value, known in (("stratify", stratify, STRATIFY), ("link", link, LINKS)):
        if value not in known:
            raise ValueError(f"{key} must be one of {', '.join(known)}, got {value!r}")
    for split in splits:
        if not split.images.is_dir():
            raise ValueError(f"{split.images}, the images of {split.name}, does not exist")


def choose(
    counts: np.ndarray, number: int, rng: np.random.Generator, by_size: bool = True
) -> np.ndarray:
    """Chooses images whose objects are distributed over the bins as those of all images.

    Images are drawn at random; then images are swapped for others as long as that brings the sums
    over the bins nearer to their share, ``number / len(counts)`` of all objects of the bin.

    Args:
        counts: (I, B) objects of each image in each bin.
        number: How many images to choose.
        rng: Where chance comes from.
        by_size: Whether to swap; without, this is a random sample.

    Returns:
        (number,) places of the chosen images, in rising order.
    """
    order = rng.permutation(len(counts))
    chosen, rest = order[:number], order[number:]
    if not by_size or not len(rest):
        return np.sort(chosen)
    target = counts.sum(0) * (number / len(counts))
    weight = 1 / np.maximum(target, 1)  # a bin of few objects matters as much as one of many
    off = (counts[chosen].sum(0) - target) * weight
    failed = 0
    for _ in range(_SWAPS):
        # the best of many swaps, all of them where there are few images
        out = rng.choice(len(chosen), min(64, len(chosen)), replace=False)
        into = rng.choice(len(rest), min(4096, len(rest)), replace=False)
        after = off + (counts[rest[into]] - counts[chosen[out]][:, None]) * weight
        costs = (after**2).sum(-1)
        i, j = np.unravel_index(costs.argmin(), costs.shape)
        if costs[i, j] >= (off**2).sum() - 1e-12:
            failed += 1
            if failed == _TRIES:
                break
            continue
        failed, off = 0, after[i, j]
        chosen[out[i]], rest[into[j]] = rest[into[j]], chosen[out[i]]
    return np.sort(chosen)


def _write_annotations(content: bytes, ids: set, truth: GroundTruth, target: Path) -> list[str]:
    """Writes the records of these images as they are; gives the names of the files."""
    top = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    images, annotations, names, seen = [], [], [], set()
    for raw in msgspec.json.decode(top["images"], type=list[msgspec.Raw]):
        try:
            record = msgspec.json.decode(raw, type=_ImageRecord)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{truth.name}: an image has no file_name: {error}") from None
        if record.id in seen:
            raise ValueError(f"{truth.name}: image id {record.id!r} comes twice; see check")
        seen.add(record.id)
        if record.id in ids:
            images.append(raw)
            names.append(record.file_name)
    for raw in msgspec.json.decode(top["annotations"], type=list[msgspec.Raw]):
        if msgspec.json.decode(raw, type=_Owner).image_id in ids:
            annotations.append(raw)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(msgspec.json.encode({**top, "images": images, "annotations": annotations}))
    return names


def _place_image(source: Path, target: Path, name: str, link: str) -> None:
    if ".." in PurePosixPath(name).parts or os.path.isabs(name):
        raise ValueError(f"file_name {name!r} leaves the folder of its images")
    old, new = source / name, target / name
    if not old.is_file():
        raise FileNotFoundError(f"image {old} does not exist; see check")
    place(old, new, link)


def _part(name: str, truth: GroundTruth, counts: np.ndarray, chosen: np.ndarray) -> Part:
    return Part(
        name=name,
        images=len(chosen),
        of_images=len(truth.image_ids),
        bins=COCO_BINS,
        objects=tuple(counts[chosen].sum(0).tolist()),
        of_objects=tuple(counts.sum(0).tolist()),
    )


def render(parts: Sequence[Part]) -> str:
    """The shares before and after, as a table."""
    from mmattn.evaluation import table

    rows = table.Table(box=table.box.MARKDOWN)
    for header in ("split", "objects"):
        rows.add_column(header, no_wrap=True)
    for header in ("all", "share %", "subset", "share %"):
        rows.add_column(header, justify="right", no_wrap=True)
    for part in parts:
        rows.add_row(part.name, "images", f"{part.of_images:,}", "", f"{part.images:,}", "")
        before, after = max(sum(part.of_objects), 1), max(sum(part.objects), 1)
        for one, old, new in zip(part.bins, part.of_objects, part.objects, strict=True):
            old_share, new_share = f"{100 * old / before:.1f}", f"{100 * new / after:.1f}"
            rows.add_row("", one.name, f"{old:,}", old_share, f"{new:,}", new_share)
    return table.render(rows)
