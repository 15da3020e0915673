"""Two made-up detectors on made-up images: one finds more of the small objects than the other."""

import numpy as np

CLASSES = ("cat", "dog")
SIZES = {"small": (10, 30), "medium": (40, 90), "large": (100, 180)}


def ground_truth(images=60, seed=0):
    rng = np.random.default_rng(seed)
    annotations = []
    for image_id in range(1, images + 1):
        for low, high in SIZES.values():
            for _ in range(2):
                side = float(rng.integers(low, high))
                x, y = rng.integers(0, 300, 2).tolist()
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": int(rng.integers(1, 3)),
                        "bbox": [x, y, side, side],
                        "area": side * side,
                        "iscrowd": 0,
                    }
                )
    return {
        "images": [
            {"id": i, "height": 480, "width": 480, "file_name": f"{i}.jpg"}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES, 1)],
        "annotations": annotations,
    }


def detections(truth, found, seed=1):
    """Detections of a share ``found[size]`` of the objects, and one false alarm an image."""
    rng = np.random.default_rng(seed)
    records = []
    for x in truth["annotations"]:
        side = x["bbox"][2]
        size = next(name for name, (low, high) in SIZES.items() if low <= side < high)
        box = np.array(x["bbox"]) + rng.normal(0, 0.04, 4) * side
        if rng.random() < found[size]:
            records.append({**_where(x), "bbox": box.tolist(), "score": rng.uniform(0.4, 1)})
    for image in truth["images"]:
        box = [*rng.uniform(0, 300, 2), *[rng.uniform(10, 150)] * 2]
        where = {"image_id": image["id"], "category_id": int(rng.integers(1, 3))}
        records.append({**where, "bbox": box, "score": rng.uniform(0, 0.6)})
    return records


def _where(x):
    return {key: x[key] for key in ("image_id", "category_id")}


TRUTH = ground_truth()
PLAIN = {"small": 0.4, "medium": 0.7, "large": 0.8}
BETTER_SMALL = {**PLAIN, "small": 0.8}
WORSE_LARGE = {**PLAIN, "large": 0.4}
BASELINE = detections(TRUTH, PLAIN)
CANDIDATE = detections(TRUTH, BETTER_SMALL, seed=2)
