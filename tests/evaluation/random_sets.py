"""Small random datasets full of special cases, and pycocotools' figures of them."""

import contextlib
import copy
import io

import numpy as np
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmattn.evaluation.data import load_detections, load_ground_truth
from mmattn.evaluation.matching import match
from mmattn.evaluation.overlaps import overlaps

SIDE = 160
IOU_THRS = np.linspace(0.5, 0.95, 10)
# overlapping, with limits that boxes meet exactly, and one that has next to nothing in it
BINS = [(0, 1e10), (0, 32**2), (32**2, 64**2), (16**2, 48**2), (64**2, 1e10), (3, 7)]


def random_set(rng, iou_type="bbox", images=6, classes=3, levels=None):
    """Ground truth and results; ``levels`` is the number of different scores, None for any.

    Some images have no objects or no detections, the last class has detections only, the one
    before it objects only.
    """
    truth = {
        "images": [{"id": 10 * i, "height": SIDE, "width": SIDE} for i in range(1, images + 1)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, classes + 3)],
        "annotations": [],
    }
    found = []
    for image in truth["images"]:
        boxes = []
        for _ in range(rng.integers(0, 6)):
            box = random_box(rng)
            category = int(rng.integers(1, classes + 1)) if rng.random() < 0.9 else classes + 1
            boxes.append((category, box))
            area = box[2] * box[3] * rng.choice([1, 1, 0.5])
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": float(area),
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": rle(box),
                }
            )
        for _ in range(rng.integers(0, 12)):
            category, box = int(rng.integers(1, classes + 3)), random_box(rng)
            if category == classes + 1:
                category += 1
            if boxes and rng.random() < 0.8:
                category, box = boxes[rng.integers(len(boxes))]
                box = np.add(box, rng.integers(-3, 4, 4)).clip([0, 0, 4, 4], SIDE // 2).tolist()
                category = category if category <= classes else classes
            score = rng.random() if levels is None else rng.integers(1, levels + 1) / levels
            found.append({"image_id": image["id"], "category_id": category, "score": float(score)})
            if iou_type == "bbox":
                found[-1]["bbox"] = box
            else:
                found[-1]["segmentation"] = rle(box)
    return truth, [found[i] for i in rng.permutation(len(found))]


def random_box(rng):
    sides = rng.choice([8, 16, 24, 32, 32, 48, 64, 64, 80], 2)
    return [*rng.integers(0, SIDE // 2, 2).tolist(), *sides.tolist()]


def rle(box):
    x, y, w, h = box
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    encoded = mask_util.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def load(truth, found, iou_type="bbox"):
    """What :func:`match` needs, as it takes it."""
    ground_truth = load_ground_truth(truth, iou_type)
    detections = load_detections(found, ground_truth)
    return ground_truth, detections, overlaps(ground_truth, detections)


def matched(truth, found, iou_type="bbox", bins=BINS, max_dets=100, **options):
    return match(*load(truth, found, iou_type), bins, IOU_THRS, max_dets, **options)


def repeated(truth, found, weights):
    """The dataset with every image ``weight`` times, copies under ids right after its own."""
    out = {"images": [], "categories": truth["categories"], "annotations": []}
    results = []
    for image, weight in zip(truth["images"], weights, strict=True):
        for copied in range(weight):
            new = 1000 * image["id"] + copied
            out["images"].append({**image, "id": new})
            for x in truth["annotations"]:
                if x["image_id"] == image["id"]:
                    x = {**x, "image_id": new, "id": len(out["annotations"]) + 1}
                    out["annotations"].append(x)
            results += [{**x, "image_id": new} for x in found if x["image_id"] == image["id"]]
    return out, results


def pycocotools_figures(truth, found, iou_type="bbox", bins=BINS, max_dets=100):
    """ap, ap50, ap75, ar (bins,) and class_ap (classes, bins)."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        if found:
            results = coco.loadRes(copy.deepcopy(found))
        else:
            results = COCO()
            results.dataset = {**coco.dataset, "annotations": []}
            results.createIndex()
        evaluator = COCOeval(coco, results, iou_type)
        evaluator.params.areaRng = [list(x) for x in bins]
        evaluator.params.areaRngLbl = [str(x) for x in bins]
        evaluator.params.maxDets = [max_dets]
        evaluator.evaluate()
        evaluator.accumulate()
    precision, recall = (evaluator.eval[x][..., 0] for x in ("precision", "recall"))
    return {
        "ap": np.array([mean(precision[..., a]) for a in range(len(bins))]),
        "ap50": np.array([mean(precision[0, ..., a]) for a in range(len(bins))]),
        "ap75": np.array([mean(precision[5, ..., a]) for a in range(len(bins))]),
        "ar": np.array([mean(recall[..., a]) for a in range(len(bins))]),
        "class_ap": np.array(
            [[mean(x[..., a]) for a in range(len(bins))] for x in np.moveaxis(precision, 2, 0)]
        ),
    }


def mean(values):
    values = values[values > -1]
    return values.mean() if values.size else np.nan


def assert_figures(figures, expected):
    for name, values in expected.items():
        np.testing.assert_allclose(
            getattr(figures, name), values, rtol=0, atol=1e-9, err_msg=name, equal_nan=True
        )
