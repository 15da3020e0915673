"""AP by size against values computed by hand and against pycocotools."""

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

from mmattn.evaluation import SizeBin, evaluate, parse_bins
from mmattn.evaluation.data import load_detections, load_ground_truth
from mmattn.evaluation.evaluator import evaluate_loaded
from mmattn.evaluation.result import FIGURES

ROOT = Path(__file__).parents[2]
COCO_TINY = Path(os.environ.get("MMATTN_COCO_TINY", ROOT.parent / "shared/data/coco-tiny"))
CUSTOM = [("tiny", 0, 256), ("point", 1024, 1025), ("rest", 1025, None)]
# as curves over size need them
OVERLAPPING = [
    SizeBin("tiny", 0, 256),
    SizeBin("wide", 100, 1e10),
    SizeBin("everything", 0, 1e10),
    SizeBin("again", 100, 1e10),
]


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
    result = evaluate(*BY_HAND)
    small, medium, large = (result.by_size[name] for name in ("small", "medium", "large"))
    for name in ("AP", "AP50", "AP75"):
        assert small[name] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)
        assert result[name] == pytest.approx((34 + 33 * 2 / 3) / 101, abs=1e-12)
        assert large[name] == 0
        assert math.isnan(medium[name])
    assert (small.ar, large.ar) == (1, 0)
    assert math.isnan(medium.ar)
    assert result.ar == pytest.approx(2 / 3, abs=1e-12)
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
    result = evaluate(truth, found)
    assert result.by_size["small"].ap == pytest.approx(1)  # the false positive is not in it
    assert result.by_size["medium"].ap == pytest.approx(1 / 2)  # it comes first in it


def test_limits_belong_to_both_bins():
    truth = dataset([annotation(1, 1, 1, (0, 0, 32, 32))])
    by_size = evaluate(truth, [detection(1, 1, (0, 0, 32, 32), 1)]).by_size
    assert [x.num_objects for x in by_size.values()] == [1, 1, 0]
    assert [x.ap for x in by_size.values()] == pytest.approx([1, 1, math.nan], nan_ok=True)


def test_an_object_in_a_gap_counts_overall_only():
    bins = [("tiny", 0, 100), ("huge", 10_000, None)]
    result = evaluate(
        dataset([annotation(1, 1, 1, (0, 0, 32, 32))]),
        [detection(1, 1, (0, 0, 32, 32), 1)],
        bins=bins,
    )
    assert result.ap == pytest.approx(1)
    assert [x.num_objects for x in result.by_size.values()] == [0, 0]
    assert all(math.isnan(x.ap) for x in result.by_size.values())


def test_max_dets():
    # 100 false positives with better scores hide the object unless 101 detections count
    truth = dataset([annotation(1, 1, 1, (0, 0, 20, 20))])
    found = [detection(1, 1, (100, 100, 9, 9), 0.9)] * 100 + [detection(1, 1, (0, 0, 20, 20), 0.1)]
    assert evaluate(truth, found).ap50 == 0
    assert evaluate(truth, found, max_dets=101).ap50 == pytest.approx(1 / 101)


def test_no_detections():
    result = evaluate(BY_HAND[0], [])
    assert (result.ap, result.ap50, result.ar) == (0, 0, 0)
    assert [x.ap for x in result.by_size.values()] == pytest.approx([0, math.nan, 0], nan_ok=True)


def test_no_objects():
    result = evaluate(dataset([]), BY_HAND[1])
    assert math.isnan(result.ap)
    assert math.isnan(result.ar)
    assert result.num_objects == 0
    assert json.loads(result.to_json())["AP"] is None


def figures_of(result):
    """Everything but name, conditions and curves; None is n/a, which equals itself."""
    data = result.to_dict()
    return {key: data[key] for key in data if key not in ("name", "conditions")}


def test_annotation_ids_do_not_matter():
    # pycocotools drops matches to id 0 and mixes up annotations that share an id
    expected = evaluate(*BY_HAND)
    for ids in ([0, 1, 2], [7, 7, 7], [None, None, None]):
        truth = copy.deepcopy(BY_HAND[0])
        for x, ann_id in zip(truth["annotations"], ids, strict=True):
            x["id"] = ann_id
            if ann_id is None:
                del x["id"]
        result = evaluate(truth, BY_HAND[1])
        assert figures_of(result) == figures_of(expected)
        repeated = "2 annotations repeated the id of another: each counts."
        assert result.conditions.notes == ([repeated] if ids[0] == 7 else [])


def test_image_and_category_ids_may_be_strings():
    truth, found = copy.deepcopy(BY_HAND)
    truth["categories"][0]["id"] = "c"
    for x in truth["images"]:
        x["id"] = "a.jpg"
    for x in truth["annotations"] + found:
        x.update(image_id="a.jpg", category_id="c")
    result, expected = evaluate(truth, found), evaluate(*BY_HAND)
    assert figures_of(result)["by_size"] == figures_of(expected)["by_size"]
    assert result.ap == expected.ap
    assert result.per_class["cat"].id == "c"


def test_missing_area_is_measured_and_noted():
    truth = copy.deepcopy(BY_HAND[0])
    del truth["annotations"][0]["area"]
    truth["annotations"][1]["area"] = None
    result, expected = evaluate(truth, BY_HAND[1]), evaluate(*BY_HAND)
    assert figures_of(result) == figures_of(expected)
    assert result.conditions.notes == [
        "2 of 3 annotations have no 'area': their size is the area of their box."
    ]
    # masks: a triangle of about 450 px^2 in a box of 900, and RLE of 30 x 30
    truth["annotations"][0]["segmentation"] = [[0, 0, 30, 0, 30, 30]]
    truth["annotations"][1]["segmentation"] = rle(40, 0, 30, 30)
    bins = [("triangle", 430, 470), ("square", 900, 901)]
    by_size = evaluate(truth, [], bins, "segm").by_size
    assert [x.num_objects for x in by_size.values()] == [1, 1]


def test_a_mask_is_measured_by_itself():
    # a false positive with a mask of 20 x 20 and a box of 100 x 100: small
    truth = dataset([annotation(1, 1, 1, (150, 150, 20, 20)), annotation(2, 1, 1, (0, 0, 99, 99))])
    found = [
        {**detection(1, 1, (0, 0, 100, 100), 0.9), "segmentation": rle(0, 150, 20, 20)},
        {**detection(1, 1, (0, 0, 100, 100), 0.8), "segmentation": rle(150, 150, 20, 20)},
        {**detection(1, 1, (0, 0, 100, 100), 0.8), "segmentation": rle(0, 0, 99, 99)},
    ]
    by_size = evaluate(truth, found, iou_type="segm").by_size
    assert by_size["small"].ap == pytest.approx(1 / 2)
    assert by_size["large"].ap == pytest.approx(1)


def test_what_the_ground_truth_does_not_have_is_dropped_on_request():
    extra = [detection(1, 9, (0, 0, 5, 5), 1), detection("a", 1, (0, 0, 5, 5), 1)]
    result = evaluate(BY_HAND[0], [*extra, *BY_HAND[1]], unknown="drop")
    assert figures_of(result) == figures_of(evaluate(*BY_HAND))
    assert result.conditions.notes == [
        "1 of 5 detections are of images that the ground truth does not have: they are left out "
        "(the first has image_id 'a').",
        "1 of 5 detections are of categories that the ground truth does not have: they are left "
        "out (the first has category_id 9).",
    ]


def test_some_classes_only():
    truth = dataset(
        [annotation(1, 1, 1, (0, 0, 20, 20)), annotation(2, 1, 2, (40, 0, 20, 20))],
        classes=("cat", "dog"),
    )
    found = [detection(1, 1, (0, 0, 20, 20), 0.9), detection(1, 2, (90, 90, 20, 20), 0.9)]
    for classes in (["dog"], [2]):
        result = evaluate(truth, found, classes=classes)
        assert (result.ap, list(result.per_class), result.num_objects) == (0, ["dog"], 1)
        # a cat is known, and not asked for
        assert result.conditions.notes == [x for x in result.conditions.notes if "Next to" in x]
    assert list(evaluate(truth, found, classes=["dog", "cat"]).per_class) == ["dog", "cat"]


def test_two_classes_of_one_name():
    truth = dataset([annotation(1, 1, 2, (0, 0, 20, 20))], classes=("cat", "cat"))
    result = evaluate(truth, [detection(1, 2, (0, 0, 20, 20), 0.9)])
    assert list(result.per_class) == ["cat (1)", "cat (2)"]
    assert result.per_class["cat (2)"].ap == pytest.approx(1)


def test_scores_outside_0_to_1_are_noted():
    found = [{**x, "score": x["score"] * 10 - 8} for x in BY_HAND[1]]
    result = evaluate(BY_HAND[0], found)
    assert figures_of(result) == figures_of(evaluate(*BY_HAND))
    assert result.conditions.notes == [
        "1 of 3 scores are outside [0, 1] (-1 to 1); only their order counts."
    ]


def test_size_by():
    # area 400 in a box of 40 x 40 in an image of 200 x 200: share of the side 20 / 200
    truth = dataset([annotation(1, 1, 1, (0, 0, 40, 40), area=400)])
    found = [detection(1, 1, (100, 100, 10, 10), 0.9), detection(1, 1, (0, 0, 40, 40), 0.5)]

    def places(size_by, bins):
        result = evaluate(truth, found, bins, size_by=size_by)
        return [(x.num_objects, x.ap) for x in result.by_size.values()]

    none = (0, pytest.approx(math.nan, nan_ok=True))
    one, half = (1, pytest.approx(1)), (1, pytest.approx(1 / 2))
    # the false positive of 10 x 10 counts where its own size is
    assert places("area", "a:0-200,b:200-1000,c:1000-") == [none, one, none]
    assert places("area", "a:0-1000,b:1000-") == [half, none]
    assert places("bbox", "a:0-1000,b:1000-") == [none, one]
    assert places("sqrt-relative", "a:0-0.08,b:0.08-0.12,c:0.12-") == [none, one, none]
    assert places("sqrt-relative", "a:0-0.12,b:0.12-") == [half, none]
    assert places("sqrt-relative", None) == [none, one, none]  # 0.06 to 0.17
    table = str(evaluate(truth, found, size_by="sqrt-relative"))
    assert "| medium | 0.06 to 0.17  |       1 |" in table


def test_iou_thrs():
    result = evaluate(*BY_HAND, iou_thrs=0.6)
    assert math.isnan(result.ap50)
    assert math.isnan(result.ap75)
    assert result.ap == pytest.approx(56 / 101)
    assert evaluate(*BY_HAND, iou_thrs=[0.5, 0.75]).ap75 == pytest.approx(56 / 101)


def test_files_and_json(tmp_path):
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    truth.write_text(json.dumps(BY_HAND[0]))
    found.write_text(json.dumps(BY_HAND[1]))
    result = evaluate(str(truth), found)
    assert figures_of(result) == figures_of(evaluate(*BY_HAND))
    assert result.name == "found.json"
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["AP"] == result.ap  # every digit
    assert data["by_size"]["medium"] == {**dict.fromkeys(FIGURES), "num_objects": 0}
    assert data["classes"][0]["name"] == "cat"
    assert data["classes"][0]["by_size"] == data["by_size"]
    assert data["conditions"]["max_dets"] == 100
    assert data["conditions"]["size_bins"]["large"] == [9216, 1e10]
    assert data["conditions"]["num_images"] == 1


# --- against pycocotools -------------------------------------------------------------------


def pycocotools_figures(truth, found, iou_type, bins, max_dets, size_by="area"):
    """(bin or 'all', class id or None, figure) -> value, nan where pycocotools says -1."""
    sizes = {x["id"]: x["height"] * x["width"] for x in truth["images"]}

    def set_size(x):
        if size_by == "bbox":
            x["area"] = x["bbox"][2] * x["bbox"][3]
        elif size_by == "sqrt-relative":
            x["area"] = math.sqrt(x["area"] / sizes[x["image_id"]])

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(truth)
        for x in gt.dataset["annotations"]:
            set_size(x)
        gt.createIndex()
        if found:
            dt = gt.loadRes(copy.deepcopy(found))
        else:  # loadRes fails on an empty list
            dt = COCO()
            dt.dataset = {**gt.dataset, "annotations": []}
            dt.createIndex()
        for x in dt.dataset["annotations"]:
            set_size(x)
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
                figures[name, cat_id, key] = valid.mean() if valid.size else math.nan
    return figures


def assert_agrees(truth, found, iou_type="bbox", bins=None, max_dets=100, size_by="area"):
    if bins is OVERLAPPING:
        loaded = load_ground_truth(truth, iou_type, size_by)
        detections = load_detections(found, loaded)
        result = evaluate_loaded(loaded, detections, bins, max_dets=max_dets)
    else:
        result = evaluate(truth, found, bins, iou_type, max_dets=max_dets, size_by=size_by)
        bins = parse_bins(bins, size_by)
    expected = pycocotools_figures(truth, found, iou_type, bins, max_dets, size_by)
    for owner, cat_id in [(result, None), *((row, row.id) for row in result.per_class.values())]:
        for name, figures in {"all": owner, **owner.by_size}.items():
            for key in FIGURES:
                value = expected.pop((name, cat_id, key))
                where = (name, cat_id, key)
                assert figures[key] == pytest.approx(value, abs=1e-9, rel=0, nan_ok=True), where
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
    assert assert_agrees(truth, found).ap == pytest.approx(1 / 2)


relaxed = settings(
    max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@relaxed
@given(
    datasets(),
    st.sampled_from([None, "coco-fine", CUSTOM, OVERLAPPING]),
    st.sampled_from([1, 3, 100]),
    st.sampled_from(["area", "bbox"]),
)
def test_generated_boxes_agree(data, bins, max_dets, size_by):
    assert_agrees(*data, bins=bins, max_dets=max_dets, size_by=size_by)


@settings(relaxed, max_examples=30)
@given(datasets(), st.sampled_from([None, [("a", 0, 0.04), ("b", 0.04, 0.16), ("c", 0.16, 1)]]))
def test_generated_boxes_agree_by_share(data, bins):
    assert_agrees(*data, bins=bins, size_by="sqrt-relative")


@settings(relaxed, max_examples=60)
@given(datasets("mask"), st.sampled_from([None, CUSTOM, OVERLAPPING]))
def test_generated_masks_agree(data, bins):
    assert_agrees(*data, "segm", bins)


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


@pytest.mark.parametrize(
    ("seed", "max_dets", "bins"),
    # every two values meet
    [
        ((i + j) % 2, max_dets, bins)
        for i, max_dets in enumerate((100, 7, 1000))
        for j, bins in enumerate((None, CUSTOM, OVERLAPPING))
    ],
)
def test_more_than_100_detections_agree(seed, max_dets, bins):
    truth = random_dataset(seed)
    found = jittered(truth, seed, per_object=3, noise_per_image=600)
    assert len(found) > 100 * len(truth["images"]) * len(truth["categories"])
    result = assert_agrees(truth, found, bins=bins, max_dets=max_dets)
    assert 0 < result.ap < 1
    assert math.isnan([*result.per_class.values()][-1].ap)


@pytest.mark.skipif(not COCO_TINY.is_dir(), reason="needs the coco-tiny images")
@pytest.mark.parametrize(
    ("split", "iou_type", "bins"),
    # every two values meet
    [
        ("train2017", "bbox", None),
        ("train2017", "segm", CUSTOM),
        ("train2017", "bbox", OVERLAPPING),
        ("val2017", "segm", None),
        ("val2017", "bbox", CUSTOM),
        ("val2017", "segm", OVERLAPPING),
    ],
)
def test_coco_tiny_agrees(split, iou_type, bins):
    truth = json.loads((COCO_TINY / f"annotations/instances_{split}.json").read_text())
    found = jittered(truth, 0, 2, 20, masks=iou_type == "segm")
    result = assert_agrees(truth, found, iou_type, bins)
    assert 0 < result.ap < 1
    crowds = sum(x["iscrowd"] for x in truth["annotations"])
    assert result.conditions.num_crowds == crowds
    assert result.num_objects == len(truth["annotations"]) - crowds


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
        (
            change(1, image_id=9),
            r"1 of 3 detections are of images that the ground truth does not have; the first is "
            r"detections\[1\] with image_id 9, and the ground truth has 1; .* another split",
        ),
        (
            change(0, category_id=0),
            r"of categories .* detections\[0\] with category_id 0, .*labels",
        ),
        (change(1, image_id="1"), "with image_id '1', and the ground truth has 1"),
        (change(1, image_id=1.5), "'image_id' must be a whole number or a text, got 1.5"),
        (change(1, image_id=None), r"detections\[1\] has no 'image_id'"),
        (change(1, category_id=None), "has no 'category_id'"),
        (change(0, score=None), r"detections\[0\] has no 'score'"),
        (change(0, score=math.nan), "'score' must be a finite number, got nan"),
        (change(0, score=math.inf), "'score' must be a finite number, got inf"),
        (change(0, score=True), "'score' must be a number, got True"),
        (change(0, score="1"), "'score' must be a number, got '1'"),
        (change(2, bbox=None), r"detections\[2\] has no 'bbox'"),
        (change(2, bbox=[1, 2, 3]), r"\[x, y, width, height\], numbers, got \[1, 2, 3\]"),
        (
            change(2, bbox=[1, 2, -3, 4]),
            r"detections\[2\]: 'bbox' .* not negative, got \[1.0, 2.0, -3",
        ),
        (change(2, bbox=[1, 2, 3, math.nan]), "finite numbers"),
        (change(2, bbox="none"), "numbers, got 'none'"),
        (lambda records: records.append(5), r"detections\[3\] must be a dict, got 5"),
    ],
)
def test_bad_detections(apply, match):
    found = copy.deepcopy(BY_HAND[1])
    apply(found)
    with pytest.raises(ValueError, match=match):
        evaluate(BY_HAND[0], found)


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (None, r"detections\[0\] has no 'segmentation'"),
        (rectangle(0, 0, 9, 9), "must be RLE"),
        (rle(0, 0, 9, 9, size=100), "the mask is 100 x 100 .* but the image is 200 x 200"),
        ({"size": 5, "counts": ""}, "'size' must be"),
    ],
)
def test_bad_masks(mask, match):
    found = [{**BY_HAND[1][0], "segmentation": mask}]
    if mask is None:
        del found[0]["segmentation"]
    with pytest.raises(ValueError, match=match):
        evaluate(BY_HAND[0], found, iou_type="segm")


@pytest.mark.parametrize(
    ("key", "apply", "iou_type", "match"),
    [
        ("images", list.clear, "bbox", "no 'images'"),
        ("categories", list.clear, "bbox", "no 'categories'"),
        ("images", change(0, id=None), "bbox", r"images\[0\] has no 'id'"),
        ("images", lambda x: x.append(image("b")), "bbox", "all numbers or all texts"),
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
        evaluate(truth, [], iou_type=iou_type)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"iou_type": "keypoints"}, "iou_type must be one of bbox, segm, got 'keypoints'"),
        ({"max_dets": 0}, "max_dets must be .* got 0"),
        ({"max_dets": 1.5}, "max_dets must be .* got 1.5"),
        ({"max_dets": True}, "max_dets must be .* got True"),
        ({"iou_thrs": []}, "iou_thrs must be"),
        ({"iou_thrs": 50}, r"numbers in \(0, 1\], got 50"),
        ({"iou_thrs": "0.5"}, "iou_thrs must be"),
        ({"classes": [4]}, "no category 4"),
        ({"classes": []}, "classes is empty"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        evaluate(*BY_HAND, **kwargs)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ground truth '.*none.json' does not exist"):
        evaluate(tmp_path / "none.json", [])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"results '.*broken.json' is not JSON"):
        evaluate(BY_HAND[0], tmp_path / "broken.json")
    with pytest.raises(TypeError, match="ground truth must be a COCO annotation dict, got list"):
        evaluate([], [])
    with pytest.raises(TypeError, match="results must be a list of COCO results, got dict"):
        evaluate(BY_HAND[0], {})


def test_a_folder_and_a_prefix(tmp_path):
    truth, found = copy.deepcopy(BY_HAND)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/results.bbox.json").write_text(json.dumps(found))
    expected = figures_of(evaluate(truth, found))
    assert figures_of(evaluate(truth, tmp_path / "run/results")) == expected
    assert figures_of(evaluate(truth, str(tmp_path / "run"))) == expected
    for seed in range(2):
        (tmp_path / f"seeds/seed{seed}").mkdir(parents=True)
        (tmp_path / f"seeds/seed{seed}/a.json").write_text(json.dumps(found))
    with pytest.raises(
        ValueError, match=r"seeds has results of 2 seeds; .* such as .*seed0/a.json"
    ):
        evaluate(truth, tmp_path / "seeds")


def test_pycocotools_own_objects():
    truth, found = copy.deepcopy(BY_HAND)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        results = coco.loadRes(copy.deepcopy(found))
    assert figures_of(evaluate(coco, results)) == figures_of(evaluate(*BY_HAND))


def test_what_is_shown_of_a_result_is_the_table():
    result = evaluate(*BY_HAND)
    assert repr(result) == str(result) == result.table()


def test_importing_is_light():
    code = (
        "import sys, mmattn.evaluation as e; e.evaluate, e.Result\n"
        "heavy = 'torch torchvision mmengine mmcv mmdet matplotlib numba pandas'.split()\n"
        "print([m for m in sys.modules if m.partition('.')[0] in heavy])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
