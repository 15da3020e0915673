"""AP by size against values computed by hand and against pycocotools."""
# ruff: noqa: SIM300  result.AP is not a constant

import contextlib
import copy
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmattn.evaluation import COCO_BINS, SizeBin, evaluate_coco, parse_size_bins

ROOT = Path(__file__).parents[2]
COCO_TINY = Path(os.environ.get("MMATTN_COCO_TINY", ROOT.parent / "shared/data/coco-tiny"))
NAMES = ("AP", "AP50", "AP75", "AR")
CUSTOM = [("tiny", 0, 256), ("point", 1024, 1025), ("wide", 100, None), ("everything", 0, None)]


def image(image_id, size=200):
    return {"id": image_id, "height": size, "width": size}


def rectangle(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def rle(x, y, w, h, size=200):
    mask = np.zeros((size, size), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    encoded = mask_util.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def annotation(ann_id, image_id, cat_id, box, area=None, iscrowd=0):
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": cat_id,
        "bbox": list(box),
        "segmentation": rectangle(*box),
        "area": box[2] * box[3] if area is None else area,
        "iscrowd": iscrowd,
    }


def detection(image_id, cat_id, box, score):
    return {"image_id": image_id, "category_id": cat_id, "bbox": list(box), "score": score}


def dataset(annotations, images=(1,), classes=("cat",)):
    return {
        "images": [image(image_id) for image_id in images],
        "categories": [{"id": n, "name": name} for n, name in enumerate(classes, 1)],
        "annotations": list(annotations),
    }


# --- by hand -------------------------------------------------------------------------------
#
#   objects:     A 20 x 20 (400, small)   B 30 x 30 (900, small)   C 100 x 100 (10000, large)
#   detections:  0.9 on A    0.8 on nothing, 25 x 25    0.7 on B          nothing on C
#
#   small: 2 objects                              all: 3 objects
#     score   hit  precision  recall                score   hit  precision  recall
#     0.9     A    1          1/2                   0.9     A    1          1/3
#     0.8     -    1/2        1/2                   0.8     -    1/2        1/3
#     0.7     B    2/3        1                     0.7     B    2/3        2/3
#   101 recall levels, precision of the best later point:
#     0.00..0.50 (51): 1, 0.51..1 (50): 2/3         0.00..0.33 (34): 1, 0.34..0.66 (33): 2/3,
#                                                   0.67..1: 0
BY_HAND = (
    dataset(
        [
            annotation(1, 1, 1, (0, 0, 20, 20)),
            annotation(2, 1, 1, (40, 0, 30, 30)),
            annotation(3, 1, 1, (80, 80, 100, 100)),
        ]
    ),
    [
        detection(1, 1, (0, 0, 20, 20), 0.9),
        detection(1, 1, (0, 150, 25, 25), 0.8),
        detection(1, 1, (40, 0, 30, 30), 0.7),
    ],
)


def test_by_hand():
    result = evaluate_coco(*BY_HAND)
    small, medium, large = (result.by_size[name] for name in ("small", "medium", "large"))
    for name in ("AP", "AP50", "AP75"):
        assert getattr(small, name) == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)
        assert getattr(result, name) == pytest.approx((34 + 33 * 2 / 3) / 101, abs=1e-12)
        assert getattr(large, name) == 0
        assert getattr(medium, name) is None
    assert (small.AR, medium.AR, large.AR) == (1, None, 0)
    assert result.AR == pytest.approx(2 / 3, abs=1e-12)
    assert [x.num_objects for x in (result, small, medium, large)] == [3, 2, 0, 1]


def test_area_of_the_annotation_places_an_object():
    # box 40 x 40 = 1600 px^2 (medium), mask 1000 px^2 (small); the detection that hits it counts
    # as small too, and the false positive of 40 x 40 as medium, where no object is
    truth = dataset(
        [
            annotation(1, 1, 1, (0, 0, 40, 40), area=1000),
            annotation(2, 1, 1, (100, 100, 40, 40), area=2000),
        ]
    )
    found = [
        detection(1, 1, (150, 0, 40, 40), 0.9),
        detection(1, 1, (0, 0, 40, 40), 0.8),
        detection(1, 1, (100, 100, 40, 40), 0.7),
    ]
    result = evaluate_coco(truth, found)
    assert result.by_size["small"].AP == pytest.approx(1)  # the false positive is not in it
    assert result.by_size["medium"].AP == pytest.approx(1 / 2)  # it comes first in it


def test_limits_belong_to_both_bins():
    truth = dataset([annotation(1, 1, 1, (0, 0, 32, 32))])
    by_size = evaluate_coco(truth, [detection(1, 1, (0, 0, 32, 32), 1)]).by_size
    assert [x.num_objects for x in by_size.values()] == [1, 1, 0]
    assert [x.AP for x in by_size.values()] == [pytest.approx(1), pytest.approx(1), None]


def test_an_object_in_a_gap_counts_overall_only():
    bins = [("tiny", 0, 100), ("huge", 10_000, None)]
    result = evaluate_coco(
        dataset([annotation(1, 1, 1, (0, 0, 32, 32))]),
        [detection(1, 1, (0, 0, 32, 32), 1)],
        size_bins=bins,
    )
    assert result.AP == pytest.approx(1)
    assert [(x.AP, x.num_objects) for x in result.by_size.values()] == [(None, 0)] * 2


def test_max_dets():
    # 100 false positives with better scores hide the object unless 101 detections count
    truth = dataset([annotation(1, 1, 1, (0, 0, 20, 20))])
    found = [detection(1, 1, (100, 100, 9, 9), 0.9)] * 100 + [detection(1, 1, (0, 0, 20, 20), 0.1)]
    assert evaluate_coco(truth, found).AP50 == 0
    assert evaluate_coco(truth, found, max_dets=101).AP50 == pytest.approx(1 / 101)


def test_no_detections():
    result = evaluate_coco(BY_HAND[0], [])
    assert (result.AP, result.AP50, result.AR) == (0, 0, 0)
    assert [x.AP for x in result.by_size.values()] == [0, None, 0]


def test_no_objects():
    result = evaluate_coco(dataset([]), BY_HAND[1])
    assert (result.AP, result.AR, result.num_objects) == (None, None, 0)
    json.dumps(result.to_dict(), allow_nan=False)


def test_annotation_ids_do_not_matter():
    # pycocotools drops matches to id 0 and mixes up annotations that share an id
    expected = evaluate_coco(*BY_HAND)
    for ids in ([0, 1, 2], [7, 7, 7], [None, None, None]):
        truth = copy.deepcopy(BY_HAND[0])
        for x, ann_id in zip(truth["annotations"], ids, strict=True):
            x["id"] = ann_id
            if ann_id is None:
                del x["id"]
        assert evaluate_coco(truth, BY_HAND[1]) == expected


def test_image_and_category_ids_may_be_strings():
    truth, found = copy.deepcopy(BY_HAND)
    truth["categories"][0]["id"] = "c"
    for x in truth["images"]:
        x["id"] = "a.jpg"
    for x in truth["annotations"] + found:
        x.update(image_id="a.jpg", category_id="c")
    result, expected = evaluate_coco(truth, found), evaluate_coco(*BY_HAND)
    assert (result.AP, result.by_size) == (expected.AP, expected.by_size)
    assert result.classes[0].id == "c"


def test_missing_area_is_measured_and_noted():
    truth = copy.deepcopy(BY_HAND[0])
    del truth["annotations"][0]["area"]
    truth["annotations"][1]["area"] = None
    result, expected = evaluate_coco(truth, BY_HAND[1]), evaluate_coco(*BY_HAND)
    assert (result.AP, result.by_size) == (expected.AP, expected.by_size)
    assert result.conditions.notes == [
        "2 of 3 annotations have no 'area': their size is the area of their box."
    ]
    # masks: a triangle of about 450 px^2 in a box of 900, and RLE of 30 x 30
    truth["annotations"][0]["segmentation"] = [[0, 0, 30, 0, 30, 30]]
    truth["annotations"][1]["segmentation"] = rle(40, 0, 30, 30)
    bins = [("triangle", 430, 470), ("square", 900, 901)]
    by_size = evaluate_coco(truth, [], "segm", size_bins=bins).by_size
    assert [x.num_objects for x in by_size.values()] == [1, 1]


def test_a_mask_is_measured_by_itself():
    # a false positive with a mask of 20 x 20 and a box of 100 x 100: small
    truth = dataset([annotation(1, 1, 1, (150, 150, 20, 20)), annotation(2, 1, 1, (0, 0, 99, 99))])
    found = [
        {**detection(1, 1, (0, 0, 100, 100), 0.9), "segmentation": rle(0, 150, 20, 20)},
        {**detection(1, 1, (0, 0, 100, 100), 0.8), "segmentation": rle(150, 150, 20, 20)},
        {**detection(1, 1, (0, 0, 100, 100), 0.8), "segmentation": rle(0, 0, 99, 99)},
    ]
    by_size = evaluate_coco(truth, found, "segm").by_size
    assert by_size["small"].AP == pytest.approx(1 / 2)
    assert by_size["large"].AP == pytest.approx(1)


def test_detections_of_unlisted_categories_are_noted():
    result = evaluate_coco(BY_HAND[0], [*BY_HAND[1], detection(1, 9, (0, 0, 5, 5), 1)])
    assert result.AP == evaluate_coco(*BY_HAND).AP
    assert "1 of 4 detections are of categories" in result.conditions.notes[0]


def test_iou_thrs():
    result = evaluate_coco(*BY_HAND, iou_thrs=0.6)
    assert (result.AP50, result.AP75) == (None, None)
    assert result.AP == pytest.approx(56 / 101)
    assert evaluate_coco(*BY_HAND, iou_thrs=[0.5, 0.75]).AP75 is not None


def test_files_and_json(tmp_path):
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    truth.write_text(json.dumps(BY_HAND[0]))
    found.write_text(json.dumps(BY_HAND[1]))
    result = evaluate_coco(str(truth), found)
    assert result == evaluate_coco(*BY_HAND)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["AP"] == result.AP  # every digit
    assert data["by_size"]["medium"] == {**dict.fromkeys(NAMES), "num_objects": 0}
    assert data["classes"][0]["name"] == "cat"
    assert data["classes"][0]["by_size"] == data["by_size"]
    assert data["conditions"]["max_dets"] == 100
    assert data["conditions"]["size_bins"]["large"] == [9216, 1e10]
    assert data["conditions"]["num_images"] == 1


# --- against pycocotools -------------------------------------------------------------------


def pycocotools_figures(truth, found, iou_type, bins, max_dets):
    """(bin or 'all', class id or None, figure) -> value, None where pycocotools says -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(truth)
        gt.createIndex()
        if found:
            dt = gt.loadRes(copy.deepcopy(found))
        else:  # loadRes fails on an empty list
            dt = COCO()
            dt.dataset = {**gt.dataset, "annotations": []}
            dt.createIndex()
        evaluator = COCOeval(gt, dt, iou_type)
        params = evaluator.params
        params.maxDets = [max_dets]
        params.areaRng = [[0, 1e10], *([low, high] for _, low, high in bins)]
        evaluator.evaluate()
        evaluator.accumulate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    figures = {}
    for a, name in enumerate(["all", *(name for name, *_ in bins)]):
        for k, cat_id in [(slice(None), None), *enumerate(params.catIds)]:
            for key, values in {
                "AP": precision[:, :, k, a],
                "AP50": precision[0, :, k, a],
                "AP75": precision[5, :, k, a],
                "AR": recall[:, k, a],
            }.items():
                valid = values[values > -1]
                figures[name, cat_id, key] = float(valid.mean()) if valid.size else None
    return figures


def assert_agrees(truth, found, iou_type="bbox", size_bins=None, max_dets=100):
    bins = parse_size_bins(size_bins)
    expected = pycocotools_figures(truth, found, iou_type, bins, max_dets)
    result = evaluate_coco(truth, found, iou_type, size_bins=size_bins, max_dets=max_dets)
    for owner, cat_id in [(result, None), *((row, row.id) for row in result.classes)]:
        for name, figures in {"all": owner, **owner.by_size}.items():
            for key in NAMES:
                value = expected.pop((name, cat_id, key))
                assert getattr(figures, key) == (value and pytest.approx(value, abs=1e-9)), (
                    name,
                    cat_id,
                    key,
                )
    assert not expected
    return result


@st.composite
def datasets(draw, shape="box"):
    """Few coordinates, areas and scores, so that ties, equal boxes and exact limits are common."""
    images, classes = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    box = st.tuples(*[st.sampled_from([0, 3, 10])] * 2, *[st.sampled_from([8, 10, 32, 96])] * 2)
    where = st.tuples(st.integers(1, images), st.integers(1, classes))
    areas = st.sampled_from([None, 0, 64, 256, 1023.5, 1024, 1024.0001, 9216, 1e10, 2e10])
    annotations = []
    for n, (at, b, area, crowd) in enumerate(
        draw(st.lists(st.tuples(where, box, areas, st.integers(0, 4)), max_size=12)), 1
    ):
        x = annotation(n, *at, b, area, iscrowd=int(crowd == 0))
        if shape == "mask" and x["iscrowd"]:
            x["segmentation"] = rle(*b)
        annotations.append({**x, "ignore": n % 2})  # 'ignore' is not read
    found = []
    scores = st.sampled_from([0.1, 0.5, 0.50000001, 0.9])
    for at, b, score in draw(st.lists(st.tuples(where, box, scores), max_size=20)):
        x = detection(*at, b, score)
        if shape == "mask":
            del x["bbox"]
            x["segmentation"] = rle(*b)
        found.append(x)
    ids = draw(st.permutations(range(1, images + 1)))  # the file's order is not the ids' order
    return dataset(annotations, ids, [f"class {n}" for n in range(classes)]), found


def test_equal_scores_count_in_the_order_of_image_ids():
    # the same score in two images, a miss in image 1 and a hit in image 2; the file lists 2 first
    truth = dataset([annotation(1, 2, 1, (0, 0, 20, 20))], images=(2, 1))
    found = [detection(2, 1, (0, 0, 20, 20), 0.5), detection(1, 1, (0, 0, 20, 20), 0.5)]
    assert assert_agrees(truth, found).AP == pytest.approx(1 / 2)


relaxed = settings(
    max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@relaxed
@given(datasets(), st.sampled_from([None, CUSTOM]), st.sampled_from([1, 3, 100]))
def test_generated_boxes_agree(data, size_bins, max_dets):
    assert_agrees(*data, size_bins=size_bins, max_dets=max_dets)


@settings(relaxed, max_examples=60)
@given(datasets("mask"), st.sampled_from([None, CUSTOM]))
def test_generated_masks_agree(data, size_bins):
    assert_agrees(*data, "segm", size_bins=size_bins)


def jittered(truth, seed, per_object=1, noise_per_image=0, masks=False):
    """Detections: moved objects, sometimes of another class, and random boxes; scores tie."""
    rng = np.random.default_rng(seed)
    cat_ids = [x["id"] for x in truth["categories"]]
    sizes = {x["id"]: (x["height"], x["width"]) for x in truth["images"]}
    found = []

    def add(image_id, cat_id, box, polygons=None):
        height, width = sizes[image_id]
        x, y = np.clip(box[:2], 0, [width - 2, height - 2])
        w, h = np.clip(box[2:], 1, [width - x, height - y])
        record = detection(image_id, cat_id, [x, y, w, h], round(float(rng.random()), 2))
        if masks:
            parts = mask_util.frPyObjects(polygons or rectangle(x, y, w, h), height, width)
            encoded = mask_util.merge(parts)
            del record["bbox"]
            record["segmentation"] = {**encoded, "counts": encoded["counts"].decode()}
        found.append(record)

    def moved(polygons):
        if isinstance(polygons, dict):  # a crowd's RLE
            return None
        return [(np.array(p) + rng.normal(0, 3, len(p))).tolist() for p in polygons]

    for x in truth["annotations"]:
        for _ in range(per_object):
            box = np.array(x["bbox"]) + rng.normal(0, 0.08, 4) * np.tile(x["bbox"][2:], 2)
            cat_id = x["category_id"] if rng.random() < 0.9 else int(rng.choice(cat_ids))
            add(x["image_id"], cat_id, box, moved(x["segmentation"]))
    for image_id, (height, width) in sizes.items():
        for _ in range(noise_per_image):
            box = rng.uniform(0, 1, 4) ** 2 * [width, height, width, height]
            add(image_id, int(rng.choice(cat_ids)), box)
    return found


def random_dataset(seed, images=12, classes=4, objects=10):
    rng = np.random.default_rng(seed)
    annotations = []
    for image_id in range(1, images):  # the last image and the last class have no objects
        for _ in range(objects):
            box = np.round(rng.uniform(0, 1, 4) ** 2 * 199 + np.array([0, 0, 1, 1]))
            area = float(rng.choice([box[2] * box[3] * 0.7, 1024, 9216]))
            annotations.append(
                annotation(
                    len(annotations) + 1,
                    image_id,
                    int(rng.integers(1, classes)),
                    box.tolist(),
                    area,
                    int(rng.random() < 0.1),
                )
            )
    return dataset(annotations, range(1, images + 1), [f"class {n}" for n in range(classes)])


@pytest.mark.parametrize("size_bins", [None, CUSTOM], ids=["coco", "custom"])
@pytest.mark.parametrize("max_dets", [100, 7, 1000])
@pytest.mark.parametrize("seed", range(2))
def test_more_than_100_detections_agree(seed, max_dets, size_bins):
    truth = random_dataset(seed)
    found = jittered(truth, seed, per_object=3, noise_per_image=600)
    assert len(found) > 100 * len(truth["images"]) * len(truth["categories"])
    result = assert_agrees(truth, found, size_bins=size_bins, max_dets=max_dets)
    assert 0 < result.AP < 1
    assert result.classes[-1].AP is None


@pytest.mark.skipif(not COCO_TINY.is_dir(), reason="needs the coco-tiny images")
@pytest.mark.parametrize("size_bins", [None, CUSTOM], ids=["coco", "custom"])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_coco_tiny_agrees(split, iou_type, size_bins):
    truth = json.loads((COCO_TINY / f"annotations/instances_{split}.json").read_text())
    found = jittered(truth, 0, 2, 20, masks=iou_type == "segm")
    result = assert_agrees(truth, found, iou_type, size_bins)
    assert 0 < result.AP < 1
    crowds = sum(x["iscrowd"] for x in truth["annotations"])
    assert result.conditions.num_crowds == crowds
    assert result.num_objects == len(truth["annotations"]) - crowds


# --- size bins -----------------------------------------------------------------------------


def test_size_bins():
    assert parse_size_bins() == parse_size_bins("coco") == COCO_BINS
    assert [(x.low, x.high) for x in COCO_BINS] == [(0, 32**2), (32**2, 96**2), (96**2, 1e5**2)]
    expected = (SizeBin("tiny", 0.0, 256.0), SizeBin("rest", 1024.0, 1e10))
    for spec in (
        [("tiny", 0, 256), ("rest", 1024, None)],
        [["tiny", 0, 256], ["rest", 1024, math.inf]],
        {"tiny": (0, 256), "rest": [1024, None]},
        expected,
    ):
        assert parse_size_bins(spec) == expected


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ([], ValueError, "is empty"),
        ({}, ValueError, "is empty"),
        ("small", TypeError, "got 'small'"),
        (3, TypeError, "got 3"),
        ([1, 2], TypeError, r"size_bins\[0\], got 1"),
        ({"tiny": 5}, TypeError, "tiny, got 5"),
        ([("tiny", 0)], TypeError, r"expected \(name, low, high\), got"),
        ([("tiny", 0, "256")], TypeError, "limits of 'tiny' must be numbers, got '256'"),
        ([("tiny", False, 256)], TypeError, "must be numbers, got False"),
        ([("tiny", 256, 0)], ValueError, "low < high, got low=256, high=0"),
        ([("tiny", 5, 5)], ValueError, "low < high"),
        ([("tiny", -1, 5)], ValueError, "0 <= low"),
        ([("tiny", math.nan, 5)], ValueError, "0 <= low"),
        ([("", 0, 5)], ValueError, "cannot name a bin"),
        ([("50", 0, 5)], ValueError, "cannot name a bin"),
        ([("a/b", 0, 5)], ValueError, "cannot name a bin"),
        ([("very small", 0, 5)], ValueError, "cannot name a bin"),
        ([(7, 0, 5)], ValueError, "7 cannot name a bin"),
        ([("all", 0, 5)], ValueError, "choose another"),
        ([("a", 0, 5), ("a", 5, 6)], ValueError, "'a' comes twice"),
    ],
)
def test_bad_size_bins(spec, error, match):
    with pytest.raises(error, match=match):
        parse_size_bins(spec)


# --- bad input -----------------------------------------------------------------------------


def change(index, **fields):
    """A change of one record; a field of None is removed."""

    def apply(records):
        for key, value in fields.items():
            if value is None:
                del records[index][key]
            else:
                records[index][key] = value

    return apply


@pytest.mark.parametrize(
    ("apply", "match"),
    [
        (change(1, image_id=9), r"detections\[1\]: image_id 9 is not among the 1 images"),
        (change(1, image_id="1"), "image_id '1' is not among"),
        (change(1, image_id=None), r"detections\[1\] has no 'image_id'"),
        (change(1, category_id=None), "has no 'category_id'"),
        (change(0, score=None), r"detections\[0\] has no 'score'"),
        (change(0, score=math.nan), "'score' must be a number, got nan"),
        (change(0, score="1"), "'score' must be a number, got '1'"),
        (change(2, bbox=None), r"detections\[2\] has no 'bbox'"),
        (change(2, bbox=[1, 2, 3]), r"\[x, y, width, height\], finite numbers, got \[1, 2, 3\]"),
        (change(2, bbox=[1, 2, 3, math.nan]), "finite numbers"),
        (change(2, bbox="none"), "finite numbers, got 'none'"),
        (lambda records: records.append(5), r"detections\[3\] has no 'image_id': 5"),
    ],
)
def test_bad_detections(apply, match):
    found = copy.deepcopy(BY_HAND[1])
    apply(found)
    with pytest.raises(ValueError, match=match):
        evaluate_coco(BY_HAND[0], found)


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (None, r"detections\[0\] has no 'segmentation'"),
        (rectangle(0, 0, 9, 9), "must be RLE"),
        (rle(0, 0, 9, 9, size=100), "the mask is 100 x 100 .* but image 1 is 200 x 200"),
        ({"size": 5, "counts": ""}, "'size' must be"),
    ],
)
def test_bad_masks(mask, match):
    found = [{**BY_HAND[1][0], "segmentation": mask}]
    if mask is None:
        del found[0]["segmentation"]
    with pytest.raises(ValueError, match=match):
        evaluate_coco(BY_HAND[0], found, "segm")


@pytest.mark.parametrize(
    ("key", "apply", "iou_type", "match"),
    [
        ("images", list.clear, "bbox", "no 'images'"),
        ("categories", list.clear, "bbox", "no 'categories'"),
        ("images", change(0, id=None), "bbox", r"images\[0\] has no 'id'"),
        ("images", lambda x: x.append(image("b")), "bbox", "all numbers or all strings"),
        ("images", change(0, height=None), "segm", "image 1 has polygons but no 'height'"),
        ("annotations", change(1, bbox=None), "bbox", r"annotations\[1\] has no 'bbox'"),
        ("annotations", change(1, area=-1), "bbox", r"annotations\[1\] \(id 2\): 'area'"),
        ("annotations", change(1, segmentation=None), "segm", "has no 'segmentation'"),
        ("annotations", change(1, segmentation=[]), "segm", "at least three points, got"),
        ("annotations", change(1, segmentation=[[1, 2, 3, 4]]), "segm", "at least three points"),
    ],
)
def test_bad_ground_truth(key, apply, iou_type, match):
    truth = copy.deepcopy(BY_HAND[0])
    apply(truth[key])
    with pytest.raises(ValueError, match=match):
        evaluate_coco(truth, [], iou_type)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"iou_type": "keypoints"}, r"iou_type must be one of \('bbox', 'segm'\)"),
        ({"max_dets": 0}, "max_dets must be .* got 0"),
        ({"max_dets": 1.5}, "max_dets must be .* got 1.5"),
        ({"max_dets": True}, "max_dets must be .* got True"),
        ({"iou_thrs": []}, "iou_thrs must be"),
        ({"iou_thrs": 50}, r"numbers in \(0, 1\], got 50"),
        ({"iou_thrs": "0.5"}, "iou_thrs must be"),
        ({"cat_ids": [4]}, "no category 4"),
        ({"cat_ids": []}, "cat_ids is empty"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        evaluate_coco(*BY_HAND, **kwargs)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ground truth '.*none.json' does not exist"):
        evaluate_coco(tmp_path / "none.json", [])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"detections '.*broken.json' is not JSON"):
        evaluate_coco(BY_HAND[0], tmp_path / "broken.json")
    with pytest.raises(TypeError, match="ground truth must be a COCO annotation dict, got list"):
        evaluate_coco([], [])
    with pytest.raises(TypeError, match="detections must be a list of COCO results, got dict"):
        evaluate_coco(BY_HAND[0], {})


def test_importing_is_light():
    code = (
        "import sys, mmattn.evaluation as e; e.evaluate_coco, e.size_table\n"
        "heavy = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'matplotlib')\n"
        "print([m for m in sys.modules if m.partition('.')[0] in heavy])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
