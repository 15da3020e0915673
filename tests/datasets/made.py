"""Small data sets, made for the tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]


def picture(path, size=(40, 30), seed=0, **options):
    """An image of noise, which no encoder makes small."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def annotation(number, image, box, category=1, **more):
    x, y, width, height = box
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [x, y, width, height],
        "area": width * height,
        "iscrowd": 0,
        **more,
    }


def split(root, name, images, annotations, categories=CATEGORIES, pictures=True, **more):
    """Writes one split in COCO's layout; images are (id, file name, width, height)."""
    records = [
        dict(id=i, file_name=file_name, width=width, height=height)
        for i, file_name, width, height in images
    ]
    if pictures:
        for i, file_name, width, height in images:
            picture(root / name / file_name, (width, height), i)
    content = dict(more, images=records, annotations=annotations, categories=categories)
    path = root / "annotations" / f"instances_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def coco(root):
    """Two splits with nothing wrong."""
    for name, first in (("train2017", 1), ("val2017", 101)):
        images = [(i, f"{i:03}.jpg", 40, 30) for i in range(first, first + 4)]
        annotations = [
            annotation(10 * i + k, i, (2 * k, 3, 10 + k, 12), 1 + 2 * (k % 2))
            for i, *_ in images[:3]
            for k in range(3)
        ]
        split(root, name, images, annotations)
    return root


def tool(name):
    """A tool's module."""
    import importlib.util

    path = Path(__file__).parents[2] / "tools" / "dataset" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
