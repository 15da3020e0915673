"""Draws a detection dataset of geometric shapes in COCO format.

The objects are small, medium and large in COCO's terms (areas below 32 * 32, up to 96 * 96 and
above), equally many of each, on noisy gradients, and overlap a little. Boxes, areas and
polygons are those of the pixels that were drawn. The same arguments give the same files, byte
by byte.

    OUT/train/*.png  OUT/val/*.png  OUT/annotations/train.json  OUT/annotations/val.json

With --folders it is a dataset for classifiers: one shape an image, one folder a class.

    OUT/train/circle/*.png  OUT/val/circle/*.png  ...

Example: python tools/dataset/draw_shapes.py data/shapes --train 400 --val 100
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

STAMP = "drawn_with.json"  # the arguments behind a finished dataset
VERSION = 1  # raise it when the same arguments draw other pixels

# COCO's bins of area in px^2. Both of COCO's neighbouring bins count an area on their border.
BINS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
DRAWN_AREAS = {"small": (180, 900), "medium": (1300, 8000), "large": (10500, 18000)}
MIN_SIZE = 224  # a smaller image has no room for a large object
LARGEST = 0.25  # of the image, for one object
MIN_VISIBLE = 0.8  # of an object that others overlap
TURN = np.deg2rad(15)  # largest rotation from upright
NOISE = 12  # largest change of a pixel by noise, in grey levels
CONTRAST = 75  # least difference between an object and what is around it, before noise


def _regular(corners: int) -> np.ndarray:
    """A polygon that stands on one of its sides (y points down)."""
    angle = np.pi / 2 + np.pi / corners + 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _star() -> np.ndarray:
    return _regular(10) * np.where(np.arange(10) % 2, 0.5, 1.0)[:, None]


def _cross() -> np.ndarray:
    arm = [(1, -1), (3, -1), (3, 1), (1, 1)]
    quarter = np.array([[0, -1], [1, 0]])
    return np.concatenate([np.array(arm) @ np.linalg.matrix_power(quarter, i) for i in range(4)])


OUTLINES = {
    "circle": _regular(64),
    "square": _regular(4),
    "triangle": _regular(3),
    "hexagon": _regular(6),
    "star": _star(),
    "cross": _cross(),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the dataset")
    parser.add_argument("--train", type=int, default=400, help="training images (default: 400)")
    parser.add_argument("--val", type=int, default=100, help="validation images (default: 100)")
    parser.add_argument("--size", type=int, default=256, help="width and height (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness (default: 0)")
    parser.add_argument(
        "--classes",
        nargs="+",
        default=["circle", "square", "triangle"],
        metavar="SHAPE",
        help=f"from {', '.join(OUTLINES)} (default: circle square triangle)",
    )
    parser.add_argument(
        "--objects",
        nargs=2,
        type=int,
        metavar=("MIN", "MAX"),
        help="objects in an image (default: 1 6)",
    )
    parser.add_argument(
        "--folders", action="store_true", help="one shape an image, in a folder for each class"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a dataset that this tool drew before"
    )
    args = parser.parse_args(argv)
    if args.objects is None:
        args.objects = [1, 1] if args.folders else [1, 6]
    return args


def check(args: argparse.Namespace) -> None:
    """Raises ValueError with one sentence on the first argument that cannot be drawn."""
    for name in ("train", "val"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {args.seed}")
    if args.size < MIN_SIZE:
        raise ValueError(f"--size must be at least {MIN_SIZE} to hold large objects: {args.size}")
    unknown = [name for name in args.classes if name not in OUTLINES]
    if unknown:
        raise ValueError(f"--classes {unknown[0]} is none of {', '.join(OUTLINES)}")
    if len(set(args.classes)) < len(args.classes):
        raise ValueError(f"--classes names a shape twice: {' '.join(args.classes)}")
    low, high = args.objects
    if args.folders and (low, high) != (1, 1):
        raise ValueError(f"--folders draws one object an image: leave out --objects {low} {high}")
    if args.folders and min(args.train, args.val) < len(args.classes):
        raise ValueError(
            f"--folders needs an image of each of {len(args.classes)} classes: raise --train or "
            f"--val, got {args.train} and {args.val}"
        )
    if not 1 <= low <= high:
        raise ValueError(f"--objects needs 1 <= MIN <= MAX, got {low} {high}")
    if low + high > 5 * large_per_image(args.size):
        raise ValueError(
            f"--objects {low} {high} is too many for {args.size} px, as a third of them are large: "
            f"MIN + MAX must be at most {5 * large_per_image(args.size)}, or raise --size"
        )


def large_per_image(size: int) -> int:
    """How many large objects find room in one image without crowding."""
    return round(0.5 * size**2 / 14000)


def deal_sizes(rng: np.random.Generator, counts: np.ndarray, size: int) -> list[list[str]]:
    """Gives each image its objects' sizes; over all images each size is dealt equally often."""
    owner = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    thirds = np.arange(len(owner)) % 3  # shares that differ by one at most
    share = {name: int((thirds == i).sum()) for i, name in enumerate(BINS)}
    dealt: list[list[str]] = [[] for _ in counts]
    rest = []
    for image in owner:
        if share["large"] and dealt[image].count("large") < large_per_image(size):
            dealt[image].append("large")
            share["large"] -= 1
        else:
            rest.append(image)
    if share["large"]:
        raise ValueError("found no room for a third of large objects: lower --objects")
    others = rng.permutation(["small"] * share["small"] + ["medium"] * share["medium"])
    for image, name in zip(rest, others, strict=True):
        dealt[image].append(str(name))
    order = list(BINS)[::-1]
    return [sorted(sizes, key=order.index) for sizes in dealt]  # large ones lie below small ones


def outline_mask(rng: np.random.Generator, shape: str, area: float, size: int):
    """A mask of the shape at a random place and slightly turned, or None if it does not fit."""
    points = OUTLINES[shape]
    x, y = points.T
    own_area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    angle = rng.uniform(-TURN, TURN)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = points @ turn.T * np.sqrt(area / own_area)
    free = size - 3 - np.ptp(points, axis=0)
    if (free < 0).any():
        return None
    points += 1 - points.min(0) + rng.uniform(0, 1, 2) * free
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 1, shift=4)
    return mask


def contours(mask: np.ndarray) -> list[np.ndarray]:
    return cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]


def in_bin(mask: np.ndarray, size: str) -> bool:
    low, high = BINS[size]
    return low < int(mask.sum()) < high and len(contours(mask)) == 1  # one piece, no hole


def place(rng: np.random.Generator, sizes: list[str], args: argparse.Namespace):
    """Classes and visible masks of an image's objects; None if they do not fit this time."""
    placed: list[tuple[str, str, int, np.ndarray]] = []
    for size in sizes:
        for _ in range(40):
            shape = args.classes[rng.integers(len(args.classes))]
            low, high = DRAWN_AREAS[size]
            area = np.exp(rng.uniform(np.log(low), np.log(min(high, LARGEST * args.size**2))))
            mask = outline_mask(rng, shape, area, args.size)
            if mask is None or not in_bin(mask, size):
                continue
            below = [(c, s, full, m * (1 - mask)) for c, s, full, m in placed]
            if all(m.sum() >= MIN_VISIBLE * full and in_bin(m, s) for _, s, full, m in below):
                placed = [*below, (shape, size, int(mask.sum()), mask)]
                break
        else:
            return None
    return [(shape, mask) for shape, _, _, mask in placed]


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A linear gradient between two colours with slow clouds on it, float32."""
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-0.5, 0.5, size)
    along = np.clip(0.5 + ramp * np.cos(angle) + (ramp * np.sin(angle))[:, None], 0, 1)[..., None]
    first, second = rng.uniform(70, 185, (2, 3))
    clouds = rng.uniform(-10, 10, (rng.integers(3, 9), rng.integers(3, 9), 3)).astype(np.float32)
    clouds = cv2.resize(clouds, (size, size), interpolation=cv2.INTER_CUBIC)
    return (first * along + second * (1 - along) + clouds).clip(NOISE, 255 - NOISE)


def draw_image(rng: np.random.Generator, sizes: list[str], args: argparse.Namespace):
    """An image (BGR, uint8) and its objects as (class, mask of the visible pixels)."""
    for _ in range(200):
        objects = place(rng, sizes, args)
        if objects is not None:
            break
    else:
        raise ValueError(
            f"found no room for {len(sizes)} objects in {args.size} px: lower --objects"
        )
    image = background(rng, args.size)
    for _, mask in objects:
        rim = cv2.dilate(mask, np.ones((5, 5), np.uint8)) - mask == 1
        best = (-1.0, None)
        for _ in range(200):
            colour = rng.uniform(NOISE, 255 - NOISE, 3)
            contrast = float(np.abs(image[rim] - colour).max(1).min())
            best = max(best, (contrast, tuple(colour)))
            if contrast >= CONTRAST:
                break
        image[mask == 1] = best[1]
    noise = rng.normal(0, NOISE / 2.5, image.shape).clip(-NOISE, NOISE)
    return np.round(image + noise).clip(0, 255).astype(np.uint8), objects


def polygons(mask: np.ndarray) -> list[list[int]]:
    """The outline of a mask along the borders of its pixels, as COCO polygons."""
    # in a mask enlarged 3 times, contours run over the first or the last third of a pixel
    enlarged = np.repeat(np.repeat(mask, 3, 0), 3, 1)
    result = []
    for contour in contours(enlarged):
        corners = (contour[:, 0] + (contour[:, 0] % 3 == 2)) // 3
        corners = corners[(corners != np.roll(corners, 1, axis=0)).any(1)]
        result.append(corners.ravel().tolist())
    return result


def annotation(shape: str, mask: np.ndarray, classes: list[str]) -> dict:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return dict(
        category_id=classes.index(shape) + 1,
        bbox=[x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=polygons(mask),
    )


def draw_split(folder: Path, split: str, args: argparse.Namespace) -> None:
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    part, total = ("train", "val").index(split), getattr(args, split)
    rng = np.random.default_rng([args.seed, part])
    low, high = args.objects
    dealt = deal_sizes(rng, rng.integers(low, high + 1, total), args.size)
    images, annotations = [], []
    progress = track(dealt, f"drawing {split}", console=Console(stderr=True))
    for index, sizes in enumerate(progress):
        # a stream for each image: its pixels depend on nothing that was drawn before
        image, objects = draw_image(np.random.default_rng([args.seed, part, index]), sizes, args)
        name = f"{index:06d}.png"
        if not cv2.imwrite(str(folder / split / name), image, [cv2.IMWRITE_PNG_COMPRESSION, 3]):
            raise OSError(f"could not write {folder / split / name}")
        images.append(dict(id=index + 1, file_name=name, width=args.size, height=args.size))
        for shape, mask in objects:
            entry = annotation(shape, mask, args.classes)
            annotations.append(dict(id=len(annotations) + 1, image_id=index + 1, **entry))
    categories = [
        dict(id=i, name=name, supercategory="shape") for i, name in enumerate(args.classes, 1)
    ]
    content = dict(
        info=dict(description="geometric shapes, drawn", version=str(VERSION)),
        licenses=[],
        images=images,
        categories=categories,
        annotations=annotations,
    )
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def draw_folders(folder: Path, split: str, args: argparse.Namespace) -> None:
    """One object an image; classes take turns, sizes are dealt as in detection."""
    part, total = ("train", "val").index(split), getattr(args, split)
    rng = np.random.default_rng([args.seed, part])
    dealt = deal_sizes(rng, np.ones(total, int), args.size)
    for name in args.classes:
        (folder / split / name).mkdir(parents=True)
    for index, sizes in enumerate(track(dealt, f"drawing {split}", console=Console(stderr=True))):
        name = args.classes[index % len(args.classes)]
        one = argparse.Namespace(**{**vars(args), "classes": [name]})
        image, _ = draw_image(np.random.default_rng([args.seed, part, index]), sizes, one)
        file = folder / split / name / f"{index:06d}.png"
        if not cv2.imwrite(str(file), image, [cv2.IMWRITE_PNG_COMPRESSION, 3]):
            raise OSError(f"could not write {file}")


def drawn_with(folder: Path) -> dict | None:
    """The arguments behind the dataset in a folder, or None if this tool drew none there."""
    try:
        return json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return None


def draw(args: argparse.Namespace) -> str:
    """Draws the dataset unless it is there already; returns a sentence on what was done."""
    check(args)
    names = ("train", "val", "size", "seed", "classes", "objects")
    stamp = dict(version=VERSION, **{name: getattr(args, name) for name in names})
    if args.folders:  # a detection dataset's stamp stays what it was
        stamp["folders"] = True
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        found = drawn_with(args.out)
        if found is None:
            raise ValueError(f"{args.out} exists and was not drawn by this tool: name another one")
        if found == stamp and not args.overwrite:
            return f"{args.out} is there already, drawn with the same arguments"
        if not args.overwrite:
            other = [
                f"{k} {found.get(k)} (now {stamp.get(k)})"
                for k in {**found, **stamp}
                if found.get(k) != stamp.get(k)
            ]
            raise ValueError(
                f"{args.out} was drawn with other arguments, {', '.join(other)}: "
                "give --overwrite to replace it, or name another folder"
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    # drawn under another name beside it, so that an interruption leaves no half dataset
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=f".{args.out.name}-") as folder:
        new = Path(folder, "new")
        for split in ("train", "val"):
            (draw_folders if args.folders else draw_split)(new, split, args)
        (new / STAMP).write_text(json.dumps(stamp))
        if args.out.exists():
            os.rename(args.out, Path(folder, "old"))
        os.rename(new, args.out)
    return f"drew {args.train} training and {args.val} validation images into {args.out}"


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # lets the temporary folder go
    try:
        print(draw(args))
    except (ValueError, OSError) as error:
        print(f"draw_shapes: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("draw_shapes: interrupted, nothing was left behind", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
