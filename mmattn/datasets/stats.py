"""How large are the objects of a COCO data set?

Sizes and bins are those of the evaluation: an object's size is its annotation's ``area``, both
limits of a bin belong to it, and crowds are no objects.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmattn.datasets.coco_files import Split
from mmattn.evaluation.bins import COCO_BINS, MAX_SIZE, SizeBin, SizeBins, parse_bins
from mmattn.evaluation.data import GroundTruth, load_ground_truth
from mmattn.evaluation.files import write_text

SUFFIXES = (".json", ".csv", ".png", ".svg")
_CLASSES = 20  # in the picture


@dataclass(frozen=True)
class BinStats:
    """Objects of one size bin.

    Attributes:
        name: The bin.
        low: Its lower limit, px^2.
        high: Its upper limit, px^2; None for no limit.
        objects: How many objects are in it.
        share: Of all objects; None if there are none.
        images: How many images have one.
    """

    name: str
    low: float
    high: float | None
    objects: int
    share: float | None
    images: int


@dataclass(frozen=True)
class ClassStats:
    """Objects of one class.

    Attributes:
        name: The class.
        objects: How many.
        images: How many images have one.
        by_size: Objects in each of COCO's bins, by name.
    """

    name: str
    objects: int
    images: int
    by_size: dict[str, int]


@dataclass(frozen=True)
class SplitStats:
    """Numbers of one split.

    Attributes:
        name: The split.
        annotations: Its file.
        images: How many images.
        empty_images: Images without an object.
        objects: How many objects, crowds not counted.
        crowds: How many crowds.
        per_image: Objects of an image: mean, median and max.
        bins: Objects in COCO's bins.
        fine_bins: Objects in finer bins.
        classes: Objects of each class, the most frequent first.
        notes: What a reader of the numbers should know.
        sides: (M,) root of each object's area, px.
    """

    name: str
    annotations: str
    images: int
    empty_images: int
    objects: int
    crowds: int
    per_image: dict[str, float]
    bins: tuple[BinStats, ...]
    fine_bins: tuple[BinStats, ...]
    classes: tuple[ClassStats, ...]
    notes: tuple[str, ...]
    sides: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the single objects."""
        return {key: value for key, value in asdict(self).items() if key != "sides"}


def size_counts(truth: GroundTruth, bins: Sequence[SizeBin]) -> np.ndarray:
    """(I, B) objects of each image in each bin."""
    counts = np.zeros((len(truth.image_ids), len(bins)), np.int64)
    for column, (_, low, high) in enumerate(bins):
        inside = ~truth.crowd & (truth.size >= low) & (truth.size <= high)
        counts[:, column] = np.bincount(truth.image[inside], minlength=len(counts))
    return counts


def stats(source: Split | Path | str, bins: SizeBins = "coco-fine") -> SplitStats:
    """Counts the objects of an annotation file by size, class and image.

    Args:
        source: A split, or the path of an annotation file.
        bins: The finer bins, in any form that :func:`mmattn.evaluation.parse_bins` takes.

    Raises:
        FileNotFoundError, TypeError, ValueError: It is no COCO annotation file, or the bins are
            none; one sentence.
    """
    if not isinstance(source, Split):
        path = Path(source)
        source = Split(path.stem.removeprefix("instances_"), path, path.parent)
    fine = parse_bins(bins)
    truth = load_ground_truth(str(source.annotations))
    real = ~truth.crowd
    per_image = np.bincount(truth.image[real], minlength=len(truth.image_ids))
    classes = []
    for number, name in enumerate(truth.class_names):
        own = real & (truth.category == number)
        by_size = {
            one: int((own & (truth.size >= low) & (truth.size <= high)).sum())
            for one, low, high in COCO_BINS
        }
        found = int(own.sum())
        classes.append(ClassStats(name, found, len(np.unique(truth.image[own])), by_size))
    return SplitStats(
        name=source.name,
        annotations=str(source.annotations),
        images=len(per_image),
        empty_images=int((per_image == 0).sum()),
        objects=int(real.sum()),
        crowds=int(truth.crowd.sum()),
        per_image={
            "mean": float(per_image.mean()),
            "median": float(np.median(per_image)),
            "max": int(per_image.max()),
        },
        bins=_bins(truth, COCO_BINS),
        fine_bins=_bins(truth, fine),
        classes=tuple(sorted(classes, key=lambda x: -x.objects)),
        notes=truth.notes,
        sides=np.sqrt(truth.size[real]),
    )


def _bins(truth: GroundTruth, bins: Sequence[SizeBin]) -> tuple[BinStats, ...]:
    counts, total = size_counts(truth, bins), int((~truth.crowd).sum())
    return tuple(
        BinStats(
            name=name,
            low=low,
            high=None if high >= MAX_SIZE else high,
            objects=int(own.sum()),
            share=int(own.sum()) / total if total else None,
            images=int((own > 0).sum()),
        )
        for (name, low, high), own in zip(bins, counts.T, strict=True)
    )


def render(splits: Sequence[SplitStats], classes: int = 10) -> str:
    """Tables of the splits as text.

    Args:
        splits: What to show.
        classes: How many classes are listed at most, the most frequent first.
    """
    from mmattn.evaluation import table

    parts = []
    for split in splits:
        mean, median, most = (split.per_image[key] for key in ("mean", "median", "max"))
        parts.append(
            f"{split.name}: {split.images:,} images ({split.empty_images:,} without objects), "
            f"{split.objects:,} objects and {split.crowds:,} crowds; objects of an image: mean "
            f"{mean:.1f}, median {median:g}, at most {most}"
        )
        parts += split.notes
        for bins in (split.bins, split.fine_bins):
            rows = _table("size", "area (px^2)", "objects", "share %", "images")
            for one in bins:
                reach = f"{one.low:g} to {one.high:g}" if one.high else f"{one.low:g} or more"
                rows.add_row(one.name, reach, *_count(one.objects, split), f"{one.images:,}")
            parts.append(rows)
        shown = split.classes[:classes]
        if shown:
            rows = _table("class", "objects", "share %", *shown[0].by_size, "images")
            for x in shown:
                sizes = (f"{number:,}" for number in x.by_size.values())
                rows.add_row(x.name, *_count(x.objects, split), *sizes, f"{x.images:,}")
            parts.append(rows)
        if len(split.classes) > len(shown):
            parts.append(f"{len(split.classes) - len(shown)} more classes are in --out")
        parts.append("")
    return table.render(*parts[:-1])


def _count(number: int, split: SplitStats) -> tuple[str, str]:
    return f"{number:,}", f"{100 * number / split.objects:.1f}" if split.objects else "n/a"


def _table(*headers: str):
    from mmattn.evaluation import table

    rows = table.Table(box=table.box.MARKDOWN)
    for i, header in enumerate(headers):
        rows.add_column(header, justify="left" if i < 1 else "right", no_wrap=True)
    return rows


def write(splits: Sequence[SplitStats], path: Path | str) -> None:
    """Writes the numbers (.json, .csv) or a picture (.png, .svg).

    Raises:
        ValueError: The path ends in something else.
    """
    path = Path(path)
    check_suffix(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        content = {"format": 1, "splits": [split.to_dict() for split in splits]}
        write_text(path, json.dumps(content, indent=1) + "\n")
    elif suffix == ".csv":
        write_text(path, _csv(splits))
    else:
        from mmattn.evaluation import plots

        plots.save(plot(splits), path)


def check_suffix(path: Path | str) -> None:
    """Raises ValueError for a file that :func:`write` cannot write."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"expected a file that ends in {', '.join(SUFFIXES)}, got {path}")


def _csv(splits: Sequence[SplitStats]) -> str:
    """A line for each split, class ('' for all) and bin."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("split", "class", "bin", "low", "high", "objects", "images"))
    for split in splits:
        for one in (*split.bins, *split.fine_bins):
            high = "" if one.high is None else f"{one.high:g}"
            row = (split.name, "", one.name, f"{one.low:g}", high, one.objects, one.images)
            writer.writerow(row)
        for x in split.classes:
            writer.writerow((split.name, x.name, "all", "0", "", x.objects, x.images))
            for name, low, high in COCO_BINS:
                limit = "" if high >= MAX_SIZE else f"{high:g}"
                writer.writerow((split.name, x.name, name, f"{low:g}", limit, x.by_size[name], ""))
    return file.getvalue()


def plot(splits: Sequence[SplitStats]):
    """Sizes of the objects of each split, and the sizes in the most frequent classes.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: There are no objects.
    """
    from matplotlib.patches import Patch

    from mmattn.evaluation import plots

    sides = np.concatenate([split.sides for split in splits])
    sides = sides[sides > 0]
    if not len(sides):
        raise ValueError("there are no objects to draw")
    totals: dict[str, np.ndarray] = {}
    for split in splits:
        for x in split.classes:
            own = np.array(list(x.by_size.values()))
            totals[x.name] = totals.get(x.name, np.zeros(len(COCO_BINS), int)) + own
    classes = sorted(totals, key=lambda name: -totals[name].sum())[:_CLASSES]
    # two steps to a doubling, less in a small set
    low, high = np.floor(np.log2(sides.min())), np.ceil(np.log2(sides.max()) + 1e-9)
    edges = 2.0 ** np.arange(low, max(high, low + 1) + 0.25, 0.25 if len(sides) > 300 else 0.5)
    looks = plots._looks(None, [split.name for split in splits])
    shades = dict(
        zip((one.name for one in COCO_BINS), ("#9ecae1", "#4292c6", "#084594"), strict=True)
    )
    names = [f"{split.name} ({split.objects:,} objects)" for split in splits]
    with plots._style():
        legend = [*names, *(f"{name} objects" for name in shades)]
        figure = plots._figure(3.1 + 0.2 * len(classes), legend)
        top, bars = figure.subplots(2, 1, height_ratios=(2.4, 0.2 * len(classes) + 0.4))
        for split in splits:
            look, own = looks[split.name], split.sides[split.sides > 0]
            share = 100 * np.histogram(own, edges)[0] / max(len(own), 1)
            top.stairs(share, edges, color=look.colour, linestyle=look.line, linewidth=1.6)
        top.set(ylabel="% of the objects in a step", ylim=(0, None))
        top.grid(axis="y")
        top.set_axisbelow(True)
        plots._size_axis(top, top, edges, None, False)
        top.xaxis.set_major_formatter("{x:g}")
        places, left = np.arange(len(classes)), np.zeros(len(classes))
        for i, shade in enumerate(shades.values()):
            width = np.array([totals[one][i] / max(totals[one].sum(), 1) for one in classes]) * 100
            bars.barh(places, width, left=left, color=shade, height=0.74)
            left += width
        bars.set_yticks(places, [f"{plots._text(x, 20)}  {totals[x].sum():,}" for x in classes])
        bars.set(xlim=(0, 100), ylim=(len(classes) - 0.4, -0.6), xlabel="% of a class's objects")
        bars.tick_params(axis="y", length=0)
        handles = [looks[split.name].line_handle() for split in splits]
        handles += [Patch(facecolor=shade) for shade in shades.values()]
        plots._finish(figure, handles, legend)
    return figure
