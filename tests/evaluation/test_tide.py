"""TIDE's errors by size against scenes worked out by hand, hotcoco and a plain Python oracle."""

import contextlib
import io
import json
import math

import hotcoco
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmattn.evaluation.bins import ALL
from mmattn.evaluation.data import load_detections, load_ground_truth
from mmattn.evaluation.overlaps import Overlaps, overlaps
from mmattn.evaluation.tide import (
    ERROR_TYPES,
    SPECIAL_TYPES,
    Errors,
    SizeErrors,
    error_types,
    mean_errors,
)

EVERYTHING = (ALL.low, ALL.high)
SMALL_LARGE = {"small": (0, 500), "large": (500, 1e10)}
KEYS = ERROR_TYPES + SPECIAL_TYPES
HALF = 51 / 101  # AP when the first of two objects is found, and nothing else


# --- datasets ------------------------------------------------------------------------------


def thing(name, box, area=None, image=1, crowd=0):
    """An object, or with a score a detection; class names are letters."""
    area = box[2] * box[3] if area is None else area
    return {
        "image_id": image,
        "category_id": "abcdefghijkl".index(name) + 1,
        "bbox": [float(x) for x in box],
        "area": float(area),
        "iscrowd": int(crowd),
    }


def hit(name, box, score, image=1):
    return {
        "image_id": image,
        "category_id": "abcdefghijkl".index(name) + 1,
        "bbox": [float(x) for x in box],
        "score": score,
    }


def dataset(objects, images=1, classes=3):
    return {
        "images": [{"id": i, "width": 200, "height": 200} for i in range(1, images + 1)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, classes + 1)],
        "annotations": [{**x, "id": n} for n, x in enumerate(objects, 1)],
    }


def loaded(truth, found, iou_type="bbox", **kwargs):
    ground_truth = load_ground_truth(truth, iou_type, **kwargs)
    detections = load_detections(found, ground_truth)
    return ground_truth, detections, overlaps(ground_truth, detections)


def errors(truth, found, bins=None, iou_type="bbox", **kwargs):
    return error_types(*loaded(truth, found, iou_type), bins or {}, **kwargs)


def with_masks(records, size=200):
    """Each box's lower left triangle and right half as its mask."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    out = []
    for x in records:
        left, top, width, height = x["bbox"]
        across, down = (columns - left) / width, (rows - top) / height
        mask = (across > 0) & (across < 1) & (down > 0) & (down < 1)
        mask &= (down >= across) | (across > 0.5)
        encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentation = {"size": encoded["size"], "counts": encoded["counts"].decode()}
        out.append({**x, "segmentation": segmentation})
        if "score" in x:
            del out[-1]["bbox"]
    return out


@st.composite
def scenes(draw, crowds=True):
    """Small crowded images: whole-number boxes, so that IoUs fall on thresholds and tie."""
    seed = draw(st.integers(0, 2**32 - 1))
    images, classes = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 3, 12]))
    levels = draw(st.sampled_from([1, 3, 10, 10**6]))  # few: many equal scores
    side = draw(st.sampled_from([10, 20, 40]))
    most = draw(st.sampled_from([4, 12, 30]))
    rng = np.random.default_rng(seed)

    def box():
        return np.concatenate([rng.integers(0, side, 2), rng.integers(1, side, 2)])

    def name():
        return "abcdefghijkl"[rng.integers(classes)]

    objects, found = [], []
    for image in range(1, images + 1):
        here = [
            thing(
                name(),
                x := box(),
                x[2] * x[3] * rng.choice([1, 0.7]),
                image,
                crowds and rng.random() < 0.15,
            )
            for _ in range(rng.integers(0, 6))
        ]
        for _ in range(rng.integers(0, most)):
            which, at = name(), box()
            if here and rng.random() < 0.8:
                near = here[rng.integers(len(here))]
                at = np.array(near["bbox"]) + rng.integers(-3, 4, 4)
                at[2:] = at[2:].clip(1)
                if rng.random() < 0.6:
                    which = "abcdefghijkl"[near["category_id"] - 1]
            at[:2] = at[:2].clip(0)
            found.append(hit(which, at, float(rng.integers(levels) + 1) / levels, image))
        objects += here
    rng.shuffle(objects)
    rng.shuffle(found)
    return dataset(objects, images, classes), found


# --- scenes by hand ------------------------------------------------------------------------

# Objects of class a at A1 and A2 (100 px^2 each), of class b at B. A2 is found with score 0.5;
# what is above it in score is the error.
#
#    0        10       50       60       100      110
#    +--------+        +--------+        +--------+
#    |   A1   |        |   A2   |        |   B    |
#    +--------+        +--------+        +--------+
A1, A2, B = (0, 0, 10, 10), (50, 0, 10, 10), (100, 0, 10, 10)
FAR = (150, 150, 10, 10)
FOUND = hit("a", A2, 0.5)


def part(box, share):
    """The top of a box, so that their IoU is ``share``."""
    return (*box[:3], box[3] * share)


BASE = HALF / 2  # one detection above it that finds nothing: precision 1/2 up to recall 1/2


@pytest.mark.parametrize(
    ("objects", "found", "base", "counts", "gains"),
    [
        pytest.param(
            [thing("a", A1), thing("a", A2)],
            [hit("a", part(A1, 0.4), 0.9), FOUND],
            BASE,
            {"Loc": 1},
            # taking A1 out leaves one object, found at precision 1/2
            {"Loc": 1 - BASE, "FP": HALF - BASE, "FN": 0.5 - BASE},
            id="Loc",
        ),
        pytest.param(
            [thing("a", A1), thing("a", A2), thing("b", B)],
            [hit("a", part(B, 0.6), 0.9), FOUND],
            BASE / 2,
            {"Cls": 1, "Miss": 1},
            {
                "Cls": (HALF + 1 - BASE) / 2,  # a loses a false positive and b is found
                "Miss": (0.5 - BASE) / 2,
                "FP": (HALF - BASE) / 2,
                "FN": (0.5 - BASE) / 2,  # no AP for b without its only object
            },
            id="Cls",
        ),
        pytest.param(
            [thing("a", A1), thing("a", A2), thing("b", B)],
            [hit("a", part(B, 0.4), 0.9), FOUND],
            BASE / 2,
            {"Both": 1, "Miss": 2},
            {
                "Both": (HALF - BASE) / 2,
                "Miss": (0.5 - BASE) / 2,
                "FP": (HALF - BASE) / 2,
                "FN": (0.5 - BASE) / 2,
            },
            id="Both",
        ),
        pytest.param(
            [thing("a", A1), thing("a", A2)],
            [hit("a", A1, 0.9), hit("a", part(A1, 0.8), 0.8), FOUND],
            (51 + 50 * 2 / 3) / 101,
            {"Dupe": 1},
            {"Dupe": 50 / 3 / 101, "FP": 50 / 3 / 101},
            id="Dupe",
        ),
        pytest.param(
            [thing("a", A1), thing("a", A2)],
            [hit("a", FAR, 0.9), FOUND],
            BASE,
            {"Bkg": 1, "Miss": 1},
            {"Bkg": HALF - BASE, "Miss": 0.5 - BASE, "FP": HALF - BASE, "FN": 0.5 - BASE},
            id="Bkg",
        ),
        pytest.param(
            [thing("a", A1), thing("a", A2)],
            [FOUND],
            HALF,
            {"Miss": 1},
            {"Miss": 1 - HALF, "FN": 1 - HALF},
            id="Miss",
        ),
        # Cls (0.9) and Loc (0.8) on A1: the object goes to the first of both, so fixing Loc
        # drops the Loc; fixing Cls leaves the Loc as a false positive
        pytest.param(
            [thing("a", A1), thing("a", A2), thing("b", B)],
            [hit("b", A1, 0.9), hit("a", part(A1, 0.4), 0.8), FOUND, hit("b", B, 0.6)],
            (BASE + 0.5) / 2,
            {"Cls": 1, "Loc": 1},
            {
                "Cls": ((51 + 50 * 2 / 3) / 101 + 1 - BASE - 0.5) / 2,
                "Loc": (HALF - BASE) / 2,
                "FP": (HALF + 1 - BASE - 0.5) / 2,
                "FN": (0.5 - BASE) / 2,
            },
            id="Cls before Loc",
        ),
        # two Locs on A1, the better placed with the lower score: the higher score finds it
        pytest.param(
            [thing("a", A1), thing("a", A2)],
            [hit("a", part(A1, 0.2), 0.9), FOUND, hit("a", part(A1, 0.4), 0.4)],
            BASE,
            {"Loc": 2},
            {"Loc": 1 - BASE, "FP": HALF - BASE, "FN": 0.5 - BASE},
            id="two Loc",
        ),
        # a Loc on an object that is found cannot find it again
        pytest.param(
            [thing("a", A1), thing("a", A2)],
            [hit("a", part(A1, 0.4), 0.9), hit("a", A1, 0.8), FOUND],
            2 / 3,  # precision 1/2, then 2/3, which counts for all recalls
            {"Loc": 1},
            {"Loc": 1 / 3, "FP": 1 / 3},
            id="Loc on a found object",
        ),
        # a class without objects is out of the mean, yet its detections can be a Cls
        pytest.param(
            [thing("a", A1), thing("a", A2)],
            [hit("c", A1, 0.9), FOUND],
            HALF,
            {"Cls": 1},
            {"Cls": 1 - HALF, "FN": 1 - HALF},
            id="class without objects",
        ),
        # on a limit: 0.1 of the class is Loc, 0.5 of it that is taken too; of another class 0.1
        # is Bkg and 0.5 is Cls
        pytest.param(
            [thing("a", A1), thing("a", A2), thing("b", B)],
            [
                hit("a", A1, 0.9),
                hit("a", part(A1, 0.1), 0.3),
                hit("a", part(A1, 0.5), 0.3),
                hit("a", part(B, 0.1), 0.3),
                hit("a", part(B, 0.5), 0.3),
                FOUND,
            ],
            0.5,
            {"Loc": 2, "Bkg": 1, "Cls": 1},
            {"Cls": 0.5},
            id="limits",
        ),
        pytest.param([thing("a", A1)], [hit("a", A1, 0.9)], 1, {}, {}, id="nothing wrong"),
        pytest.param([thing("a", A1)], [], 0, {"Miss": 1}, {}, id="nothing found"),
    ],
)
def test_types(objects, found, base, counts, gains):
    result = errors(dataset(objects), found).by_size["all"]
    assert result.counts == {key: counts.get(key, 0) for key in ERROR_TYPES}
    assert result.ap50 == pytest.approx(base, abs=1e-12)
    expected = {key: gains.get(key, 0) for key in KEYS}
    assert result.delta_ap == pytest.approx(expected, abs=1e-12)


def test_thresholds_are_the_users():
    # IoU 0.6 and 0.2 with A1
    truth = dataset([thing("a", A1)])
    found = [hit("a", part(A1, 0.6), 0.9), hit("a", part(A1, 0.2), 0.8)]
    for pos_thr, bg_thr, ap, loc, bkg in (
        (0.5, 0.1, 1, 1, 0),
        (0.5, 0.3, 1, 0, 1),
        (0.62, 0.3, 0, 1, 1),
        (0.6, 0.3, 1, 0, 1),
        (1.0, 0.7, 0, 0, 2),
    ):
        result = errors(truth, found, pos_thr=pos_thr, bg_thr=bg_thr)
        assert (result.pos_thr, result.bg_thr, result.max_dets) == (pos_thr, bg_thr, 100)
        part_of = result.by_size["all"]
        assert (part_of.ap50, part_of.counts["Loc"], part_of.counts["Bkg"]) == (ap, loc, bkg)


def test_an_iou_of_almost_one_is_one():
    # as in pycocotools, which compares with 1 - 1e-10
    truth = dataset([thing("a", A1)])
    for share, ap in ((1 - 1e-11, 1), (1 - 1e-9, 0)):
        found = [hit("a", part(A1, share), 0.9)]
        assert errors(truth, found, pos_thr=1.0).by_size["all"].ap50 == ap


@pytest.mark.parametrize("name", ["a", "b"])
def test_of_two_equal_ious_the_first_object_is_meant(name):
    # Two objects share a box; matching, as pycocotools does it, takes the last: the error is about
    # the one that is not found, so there is no Miss.
    first, last = thing("a", A1, area=100), thing("a", A1, area=900)
    found = [hit("a", A1, 0.9), hit(name, part(A1, 0.4 if name == "a" else 0.6), 0.8)]
    kind = "Loc" if name == "a" else "Cls"
    truth = dataset([first, last])
    result = errors(truth, found, SMALL_LARGE).by_size
    assert result["all"].counts == {**dict.fromkeys(ERROR_TYPES, 0), kind: 1}
    assert (result["small"].counts[kind], result["large"].counts[kind]) == (1, 0)
    assert result["all"].counts == hotcoco_errors(truth, found)["counts"]


def test_max_dets_is_by_image_and_class():
    truth = dataset([thing("a", A1), thing("b", B), thing("a", A1, image=2)], images=2)
    found = [hit("a", FAR, 0.9), hit("a", A1, 0.8), hit("b", FAR, 0.7), hit("b", B, 0.6)]
    found.append(hit("a", A1, 0.1, image=2))
    counts = {n: errors(truth, found, max_dets=n).by_size["all"].counts for n in (1, 2)}
    assert (counts[1]["Bkg"], counts[1]["Miss"]) == (2, 2)
    assert (counts[2]["Bkg"], counts[2]["Miss"]) == (2, 0)


# --- sizes by hand -------------------------------------------------------------------------


def test_an_error_is_in_the_bin_of_its_object():
    #  +------------------+
    #  | A1 |             |   a detection of 25 x 25 px on an object of 10 x 10 (IoU 0.16),
    #  +----+             |   and an object of 30 x 30 that is found, with a lower score
    #  |   detection      |   +-------+
    #  +------------------+   | found |
    truth = dataset([thing("a", A1), thing("a", (100, 0, 30, 30))])
    found = [hit("a", (0, 0, 25, 25), 0.9), hit("a", (100, 0, 30, 30), 0.5)]
    result = errors(truth, found, SMALL_LARGE).by_size
    assert (result["small"].counts["Loc"], result["large"].counts["Loc"]) == (1, 0)
    # no false positive in small, whose object it finds once it is fixed; one in large, where it
    # is ignored once it is fixed
    assert (result["small"].ap50, result["small"].delta_ap["Loc"]) == (0, 1)
    assert (result["large"].ap50, result["large"].delta_ap["Loc"]) == (0.5, 0.5)
    assert (result["small"].delta_ap["FP"], result["large"].delta_ap["FP"]) == (0, 0.5)


def test_background_is_in_the_bin_of_its_own_size():
    truth = dataset([thing("a", A1), thing("a", (100, 0, 30, 30))])
    found = [hit("a", A1, 0.5), hit("a", (100, 0, 30, 30), 0.5), hit("a", (100, 100, 30, 30), 0.9)]
    result = errors(truth, found, SMALL_LARGE).by_size
    assert (result["small"].counts["Bkg"], result["large"].counts["Bkg"]) == (0, 1)
    assert (result["small"].ap50, result["small"].delta_ap["Bkg"]) == (1, 0)
    assert (result["large"].ap50, result["large"].delta_ap["Bkg"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("kind", "share", "gain"), [("Cls", 0.6, (0.25, 0.5)), ("Both", 0.4, (0.25, 0))]
)
def test_a_confusion_is_in_the_bin_of_the_other_classs_object(kind, share, gain):
    # small: A1, found with score 0.5; large: B of 30 x 30, whose top is taken for an a
    #   share 0.6: 540 px^2 is large itself; share 0.4: 360 px^2 is small
    large = (100, 0, 30, 30)
    truth = dataset([thing("a", A1), thing("b", large), thing("a", (100, 100, 30, 30))])
    found = [hit("a", part(large, share), 0.9), hit("a", A1, 0.5)]
    found.append(hit("a", (100, 100, 30, 30), 0.5))
    result = errors(truth, found, SMALL_LARGE).by_size
    assert (result["small"].counts[kind], result["large"].counts[kind]) == (0, 1)
    if kind == "Cls":
        assert (result["small"].ap50, result["small"].delta_ap["Cls"]) == (1, 0)
        # a: one of the two is a false positive, dropped: +0.5; b: 0 -> 1
        assert (result["large"].ap50, result["large"].delta_ap["Cls"]) == (0.25, 0.75)
    else:
        assert (result["small"].ap50, result["small"].delta_ap["Both"]) == (0.5, 0.5)
        assert (result["large"].ap50, result["large"].delta_ap["Both"]) == (0.5, 0)


def test_an_object_on_a_limit_is_in_both_bins():
    truth = dataset([thing("a", A1, area=500), thing("a", B, area=500)])
    found = [hit("a", part(A1, 0.4), 0.9)]
    result = errors(truth, found, SMALL_LARGE).by_size
    for name in ("all", "small", "large"):
        assert result[name].counts == {**dict.fromkeys(ERROR_TYPES, 0), "Loc": 1, "Miss": 1}


def test_matches_of_a_bin_are_its_own():
    #  +-----------+   L, 20 x 30, is large; S, its upper 20 x 20, is small; both of class a.
    #  |     S     |   Over all sizes, the first detection (20 x 26) finds L and the second
    #  |- - - - - -|   (20 x 14) finds S. Of the small ones the first finds S, and the second,
    #  |     L     |   whose IoU with L is 0.47, nothing: a Dupe there, that costs T (score 0.7)
    #  +-----------+   precision 1/3. No error over all sizes, so the count is 0.
    other = (100, 0, 10, 10)  # T
    truth = dataset([thing("a", (0, 0, 20, 30)), thing("a", (0, 0, 20, 20)), thing("a", other)])
    found = [hit("a", (0, 0, 20, 26), 0.9), hit("a", (0, 0, 20, 14), 0.8), hit("a", other, 0.7)]
    result = errors(truth, found, SMALL_LARGE).by_size
    assert result["all"].ap50 == 1
    assert not any(result["small"].counts.values())
    assert result["small"].ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert result["small"].delta_ap["Dupe"] == pytest.approx(50 / 3 / 101)


def test_a_miss_of_all_sizes_that_its_bin_does_not_miss():
    # as above without the second detection: S is a Miss, but of the small ones none is unfound
    truth = dataset([thing("a", (0, 0, 20, 30)), thing("a", (0, 0, 20, 20))])
    result = errors(truth, [hit("a", (0, 0, 20, 26), 0.9)], SMALL_LARGE).by_size
    assert result["small"].counts["Miss"] == 1
    assert (result["small"].ap50, result["small"].delta_ap["Miss"]) == (1, 0)
    assert result["all"].delta_ap["Miss"] == pytest.approx(1 - HALF)


def test_a_bin_without_objects_is_not_available():
    truth = dataset([thing("a", A1)])
    result = errors(truth, [hit("a", A1, 0.9), hit("a", (50, 50, 40, 40), 0.8)], SMALL_LARGE)
    large = result.by_size["large"]
    assert math.isnan(large.ap50)
    assert all(math.isnan(value) for value in large.delta_ap.values())
    assert large.counts["Bkg"] == 1
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert list(data["by_size"]) == ["all", "small", "large"]
    assert data["by_size"]["large"]["ap50"] is None
    assert data["by_size"]["large"]["delta_ap"] == dict.fromkeys(KEYS)
    assert data["by_size"]["small"]["delta_ap"] == dict.fromkeys(KEYS, 0.0)
    assert data["by_size"]["all"]["counts"] == {**dict.fromkeys(ERROR_TYPES, 0), "Bkg": 1}
    assert (data["pos_thr"], data["bg_thr"], data["max_dets"]) == (0.5, 0.1, 100)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("found", [[], [hit("a", A1, 0.9)]])
@pytest.mark.parametrize("objects", [[], [thing("a", A1, crowd=1)]])
def test_without_any_object(objects, found):
    result = errors(dataset(objects), found, SMALL_LARGE).by_size
    assert all(math.isnan(x.ap50) for x in result.values())
    assert result["small"].counts["Bkg"] == (len(found) if not objects else 0)


# --- against others ------------------------------------------------------------------------


def hotcoco_errors(truth, found, iou_type="bbox", max_dets=100, pos_thr=0.5, bg_thr=0.1):
    ground_truth = hotcoco.COCO(truth)
    evaluator = hotcoco.COCOeval(ground_truth, ground_truth.load_res(found), iou_type)
    evaluator.params.max_dets = [max_dets]
    evaluator.params.iou_thrs = [pos_thr]
    evaluator.evaluate()
    return evaluator.tide_errors(pos_thr, bg_thr)


def image_ious(truth, found, iou_type):
    """By image: its annotations, its detections by score, and their IoUs by pycocotools."""
    shape = "bbox" if iou_type == "bbox" else "segmentation"
    for image in truth["images"]:
        objects = [x for x in truth["annotations"] if x["image_id"] == image["id"]]
        here = [x for x in found if x["image_id"] == image["id"]]
        here.sort(key=lambda x: -x["score"])
        crowd = [x["iscrowd"] for x in objects]
        ious = mask_util.iou([x[shape] for x in here], [x[shape] for x in objects], crowd)
        yield objects, here, np.asarray(ious).reshape(len(here), len(objects))


def without_partly_covered(truth, found, iou_type, pos_thr, bg_thr):
    """Leaves out detections that a crowd of their class partly covers: Loc for hotcoco."""
    kept = []
    for objects, here, ious in image_ious(truth, found, iou_type):
        for detection, row in zip(here, ious, strict=True):
            shares = [
                share
                for share, x in zip(row, objects, strict=True)
                if x["iscrowd"] and x["category_id"] == detection["category_id"]
            ]
            if not any(bg_thr <= share < pos_thr for share in shares):
                kept.append(id(detection))
    return [x for x in found if id(x) in kept]


def oracle(
    truth,
    found,
    limits,
    iou_type="bbox",
    max_dets=100,
    pos_thr=0.5,
    bg_thr=0.1,
    crowd_is_object=False,
):
    """The definition, one detection at a time. 'fixed' is AP with every type fixed."""
    low, high = limits
    classes = [x["id"] for x in truth["categories"]]
    size_of = {}
    for x in found:
        box, mask = x.get("bbox"), x.get("segmentation")
        size_of[id(x)] = box[2] * box[3] if iou_type == "bbox" else float(mask_util.area(mask))
    right, wrong, unfound = [], [], []  # detections; (detection, type, object); objects
    in_bin = {}
    for objects, here, ious in image_ious(truth, found, iou_type):
        for x in objects:
            in_bin[x["id"]] = not x["iscrowd"] and low <= x["area"] <= high
        taken, seen = set(), dict.fromkeys(classes, 0)
        for detection, row in zip(here, ious, strict=True):
            name = detection["category_id"]
            seen[name] += 1
            if seen[name] > max_dets:
                continue
            free = [
                (in_bin[x["id"]], iou, g)
                for g, (x, iou) in enumerate(zip(objects, row, strict=True))
                if x["category_id"] == name
                and iou >= min(pos_thr, 1 - 1e-10)
                and (x["iscrowd"] or g not in taken)
            ]
            if free:
                counts, _, g = max(free)  # of the bin, then the best, then the last
                taken.add(g)
                if counts:
                    right.append(detection)
                continue
            same = other = 0.0
            mine = others = None
            # stable: crowds last, as hotcoco has them
            for g in sorted(range(len(objects)), key=lambda g: objects[g]["iscrowd"]):
                x, iou = objects[g], row[g]
                if x["category_id"] == name:
                    if iou > same and (crowd_is_object or not x["iscrowd"]):
                        same, mine = iou, x
                elif not x["iscrowd"] and (
                    iou > other
                    or (
                        iou == other > 0
                        and classes.index(x["category_id"]) < classes.index(others["category_id"])
                    )
                ):
                    other, others = iou, x
            if bg_thr <= same <= pos_thr:
                wrong.append((detection, "Loc", mine))
            elif other >= pos_thr:
                wrong.append((detection, "Cls", others))
            elif same > pos_thr:
                wrong.append((detection, "Dupe", mine))
            elif other > bg_thr:
                wrong.append((detection, "Both", others))
            else:
                wrong.append((detection, "Bkg", None))
        unfound += [x for g, x in enumerate(objects) if in_bin[x["id"]] and g not in taken]

    finder = {}
    for detection, kind, x in wrong:
        if kind in ("Loc", "Cls") and any(x is y for y in unfound):
            best = finder.setdefault(x["id"], detection)
            if detection["score"] > best["score"]:
                finder[x["id"]] = detection
    missed = [x for x in unfound if x["id"] not in finder]
    number = dict.fromkeys(classes, 0)
    for x in truth["annotations"]:
        number[x["category_id"]] += in_bin[x["id"]]
    right_ids = {id(x) for x in right}
    error_of = {id(detection): (kind, x) for detection, kind, x in wrong}
    by_image = [x for image in truth["images"] for x in found if x["image_id"] == image["id"]]

    def mean_ap(fixed=(), gone=()):
        rows = {name: [] for name in classes}
        late = []  # a fixed Cls comes after the equal scores of its new class
        for detection in by_image:
            name, score = detection["category_id"], detection["score"]
            if id(detection) in right_ids:
                rows[name].append((score, True))
            elif id(detection) in error_of:
                kind, x = error_of[id(detection)]
                if kind not in fixed:
                    if low <= size_of[id(detection)] <= high:
                        rows[name].append((score, False))
                elif x is not None and finder.get(x["id"]) is detection:
                    if kind == "Loc":
                        rows[name].append((score, True))
                    elif kind == "Cls":
                        late.append((x["category_id"], score))
        for name, score in late:
            rows[name].append((score, True))
        objects = {k: n - sum(x["category_id"] == k for x in gone) for k, n in number.items()}
        return np.mean(
            [average_precision(rows[k], objects[k]) for k in classes if number[k]] or [np.nan]
        )

    base = mean_ap()
    fixes = {kind: mean_ap((kind,)) for kind in ERROR_TYPES[:-1]}
    fixes |= {"Miss": mean_ap(gone=missed), "FN": mean_ap(gone=unfound)}
    finder_of, finder = finder, {}
    fixes["FP"] = mean_ap(ERROR_TYPES)
    finder = finder_of
    counts = {key: sum(kind == key for _, kind, _ in wrong) for key in ERROR_TYPES}
    return {
        "ap_base": base,
        "delta_ap": {key: value - base for key, value in fixes.items()},
        "counts": {**counts, "Miss": len(missed)},
        "errors": [
            (kind, size_of[id(detection)] if x is None else x["area"])
            for detection, kind, x in wrong
        ]
        + [("Miss", x["area"]) for x in missed],
        "fixed": mean_ap(ERROR_TYPES, missed),
        "all_missed": [
            sum(x["category_id"] == k for x in missed) == number[k] for k in classes if number[k]
        ],
    }


def average_precision(rows, objects):
    rows = sorted(rows, key=lambda row: -row[0])
    points, true = [], 0  # recall, precision
    for n, (_, found) in enumerate(rows, 1):
        true += found
        points.append((true / objects if objects else 0, true / n))
    precisions = [
        max((p for r, p in points if r >= recall), default=0) for recall in np.linspace(0, 1, 101)
    ]
    return sum(precisions) / 101 if objects else 0.0


def agree(ours, other):
    assert ours.ap50 == pytest.approx(other["ap_base"], abs=1e-9, nan_ok=True)
    assert ours.delta_ap == pytest.approx(other["delta_ap"], abs=1e-9, nan_ok=True)


HYPOTHESIS = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
THRESHOLDS = st.sampled_from([(0.5, 0.1), (0.5, 0.1), (0.6, 0.3), (0.75, 0.01)])


@settings(HYPOTHESIS, max_examples=100)
@given(scenes(), st.sampled_from(["bbox", "bbox", "segm"]), THRESHOLDS, st.sampled_from([100, 3]))
def test_all_sizes_agree_with_hotcoco(scene, iou_type, thresholds, max_dets):
    truth, found = scene
    pos_thr, bg_thr = thresholds
    if iou_type == "segm":
        truth = {**truth, "annotations": with_masks(truth["annotations"])}
        found = with_masks(found)
    found = without_partly_covered(truth, found, iou_type, pos_thr, bg_thr)
    assume(found and not all(x["iscrowd"] for x in truth["annotations"]))
    kwargs = dict(max_dets=max_dets, pos_thr=pos_thr, bg_thr=bg_thr)
    result = errors(truth, found, {"everything": EVERYTHING}, iou_type, **kwargs).by_size
    other = hotcoco_errors(truth, found, iou_type, **kwargs)
    agree(result["all"], other)
    assert result["all"].counts == other["counts"]
    assert result["everything"] == result["all"]


def test_of_equal_overlaps_the_first_class_is_meant():
    # c covers a and b with the same IoU. The file has b first, which is found; a is not, so the
    # Cls that is about a covers it: no Miss, as in hotcoco
    truth = dataset([thing("b", (0, 0, 10, 10)), thing("a", (0, 0, 10, 10)), thing("c", B)])
    found = [hit("b", (0, 0, 10, 10), 0.9), hit("c", part(A1, 0.8), 0.8), hit("c", B, 0.5)]
    result, other = errors(truth, found).by_size["all"], hotcoco_errors(truth, found)
    assert result.counts == {**dict.fromkeys(ERROR_TYPES, 0), "Cls": 1} == other["counts"]
    agree(result, other)


def test_a_crowd_is_no_object():
    # The crowd (c) covers 0.4 of a detection of class a that lies on an object of class b with
    # IoU 0.8: a Cls, as in tidecv. To hotcoco 1.3 it is a Loc on the crowd, and b is a Miss.
    #
    #   +------+---------+
    #   |c c c |c c      |
    #   | c c c| c c   b |
    #   |c c c |c c      |
    #   +------+---------+
    #          0    4    10
    truth = dataset([thing("a", (-16, 0, 20, 10), crowd=1), thing("b", A1), thing("a", B)])
    found = [hit("a", part(A1, 0.8), 0.9), hit("a", B, 0.5)]
    result = errors(truth, found).by_size["all"]
    assert result.counts == {**dict.fromkeys(ERROR_TYPES, 0), "Cls": 1}
    assert (result.ap50, result.delta_ap["Cls"]) == (0.25, 0.75)
    other = hotcoco_errors(truth, found)
    assert other["counts"] == {**dict.fromkeys(ERROR_TYPES, 0), "Loc": 1, "Miss": 1}
    assert other["ap_base"] == result.ap50
    agree(result, oracle(truth, found, EVERYTHING))


@settings(HYPOTHESIS, max_examples=100)
@given(scenes())
def test_nothing_else_differs_from_hotcoco(scene):
    truth, found = scene
    assume(found and not all(x["iscrowd"] for x in truth["annotations"]))
    with_crowds = oracle(truth, found, EVERYTHING, crowd_is_object=True)
    other = hotcoco_errors(truth, found)
    assert with_crowds["counts"] == other["counts"]
    assert with_crowds["ap_base"] == pytest.approx(other["ap_base"], abs=1e-9)
    assert with_crowds["delta_ap"] == pytest.approx(other["delta_ap"], abs=1e-9)


BINS = {"tiny": (0, 30), "small": (30, 150), "large": (150, 1e10), "middle": (50, 300)}


@settings(HYPOTHESIS, max_examples=100)
@given(scenes(), THRESHOLDS, st.sampled_from([100, 3]))
def test_every_size_agrees_with_the_definition(scene, thresholds, max_dets):
    truth, found = scene
    kwargs = dict(max_dets=max_dets, pos_thr=thresholds[0], bg_thr=thresholds[1])
    result = errors(truth, found, BINS, **kwargs).by_size
    assert list(result) == ["all", *BINS]
    everything = oracle(truth, found, EVERYTHING, **kwargs)
    for name, limits in {"all": EVERYTHING, **BINS}.items():
        ours, slow = result[name], oracle(truth, found, limits, **kwargs)
        agree(ours, slow)
        for key in ERROR_TYPES:
            of_bin = [
                limits[0] <= x <= limits[1] for kind, x in everything["errors"] if kind == key
            ]
            assert ours.counts[key] == sum(of_bin)
        if not math.isnan(ours.ap50):
            assert min(ours.delta_ap.values()) >= 0
            # with every type fixed nothing is lost, but what is missed altogether
            assert slow["fixed"] == pytest.approx(1 - np.mean(slow["all_missed"]))
    on_limit = [kind for kind, x in everything["errors"] if x in (30, 150)]
    for key in ERROR_TYPES:
        parts = sum(result[name].counts[key] for name in ("tiny", "small", "large"))
        assert parts == result["all"].counts[key] + on_limit.count(key)


@pytest.mark.parametrize("seed", range(3))
def test_ap_is_pycocotools(seed):
    truth, found = many(seed)
    result = errors(truth, found, BINS).by_size
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = truth
        ground_truth.createIndex()
        evaluator = COCOeval(ground_truth, ground_truth.loadRes(found), "bbox")
        evaluator.params.areaRng = [EVERYTHING, *BINS.values()]
        evaluator.params.areaRngLbl = ["all", *BINS]
        evaluator.params.iouThrs = np.array([0.5])
        evaluator.evaluate()
        evaluator.accumulate()
    for a, name in enumerate(("all", *BINS)):
        precision = evaluator.eval["precision"][0, :, :, a, -1]
        assert result[name].ap50 == pytest.approx(precision[precision > -1].mean(), abs=1e-12)
    assert all(result[name].delta_ap[key] > 0 for name in ("all", "large") for key in KEYS)


def many(seed, images=30, classes=4, crowds=True):
    """Boxes of real numbers and scores that differ, so that no order matters."""
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for image in range(1, images + 1):
        for _ in range(6):
            name = "abcd"[rng.integers(classes)]
            box = rng.uniform([0, 0, 2, 2], [50, 50, 30, 30])
            objects.append(thing(name, box, image=image, crowd=crowds and rng.random() < 0.1))
            for _ in range(rng.integers(0, 4)):
                near = box + rng.normal(0, 0.15, 4) * np.tile(box[2:], 2)
                near[2:] = near[2:].clip(1)
                which = name if rng.random() < 0.8 else "abcd"[rng.integers(classes)]
                found.append(hit(which, near, float(rng.random()), image))
        for _ in range(5):
            box = rng.uniform([0, 0, 2, 2], [150, 150, 30, 30])
            found.append(hit("abcd"[rng.integers(classes)], box, float(rng.random()), image))
    return dataset(objects, images, classes), found


@pytest.mark.parametrize("seed", range(3))
def test_many_objects_agree_with_hotcoco(seed):
    truth, found = many(seed, crowds=False)
    result, other = errors(truth, found).by_size["all"], hotcoco_errors(truth, found)
    agree(result, other)
    assert result.counts == other["counts"]


def test_order_does_not_matter():
    truth, found = many(0)
    expected = errors(truth, found, BINS)
    rng = np.random.default_rng(1)
    for key in ("images", "categories", "annotations"):
        shuffled = {**truth, key: [truth[key][i] for i in rng.permutation(len(truth[key]))]}
        result = errors(shuffled, found, BINS).to_dict()
        assert_same(result, expected.to_dict())
    result = errors(truth, [found[i] for i in rng.permutation(len(found))], BINS)
    assert_same(result.to_dict(), expected.to_dict())


def test_only_the_order_of_scores_matters():
    truth, found = many(0)
    other = [{**x, "score": math.exp(9 * x["score"]) - 3} for x in found]
    assert errors(truth, other, BINS) == errors(truth, found, BINS)


def test_enlarged_images_with_enlarged_bins():
    truth, found = many(0)

    def larger(records):
        return [{**x, "bbox": [4 * v for v in x["bbox"]]} for x in records]

    annotations = [{**x, "area": 16 * x["area"]} for x in larger(truth["annotations"])]
    bins = {name: (16 * low, 16 * high) for name, (low, high) in BINS.items()}
    result = errors({**truth, "annotations": annotations}, larger(found), bins)
    assert result == errors(truth, found, BINS)


def test_sizes_as_shares_of_the_image():
    truth, found = many(0)
    shares = {
        name: (math.sqrt(low) / 200, math.sqrt(high) / 200) for name, (low, high) in BINS.items()
    }
    result = error_types(*loaded(truth, found, size_by="sqrt-relative"), shares)
    assert_same(result.to_dict(), errors(truth, found, BINS).to_dict())


def assert_same(result, expected):
    for name, part_of in expected["by_size"].items():
        assert result["by_size"][name]["counts"] == part_of["counts"]
        assert result["by_size"][name]["ap50"] == pytest.approx(part_of["ap50"], abs=1e-12)
        assert result["by_size"][name]["delta_ap"] == pytest.approx(part_of["delta_ap"], abs=1e-12)


# --- bad arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"pos_thr": 0.1}, r"0 < bg_thr < pos_thr <= 1, got bg_thr=0.1 and pos_thr=0.1"),
        ({"pos_thr": 0.3, "bg_thr": 0.4}, "0 < bg_thr < pos_thr <= 1"),
        ({"pos_thr": 1.5}, "0 < bg_thr < pos_thr <= 1"),
        ({"bg_thr": 0}, "0 < bg_thr < pos_thr <= 1"),
        ({"pos_thr": math.nan}, "0 < bg_thr < pos_thr <= 1"),
        ({"max_dets": 0}, "1 or more, got 0"),
        ({"max_dets": 2.5}, "1 or more, got 2.5"),
        ({"max_dets": True}, "1 or more, got True"),
        ({"bins": {"all": (0, 5)}}, "'all' is the name of the overall figures"),
        ({"bins": {"x": (5, 5)}}, r"'x' must be \(low, high\) with low < high, got \(5, 5\)"),
        ({"bins": {"x": (0, math.nan)}}, "low < high"),
        ({"bins": {"x": (0, 5, 9)}}, "low < high"),
    ],
)
def test_bad_arguments(kwargs, match):
    data = loaded(dataset([thing("a", A1)]), [hit("a", A1, 0.9)])
    with pytest.raises(ValueError, match=match):
        error_types(*data, **{"bins": {}, **kwargs})


def test_overlaps_of_other_data():
    ground_truth, detections, ious = loaded(dataset([thing("a", A1)]), [hit("a", A1, 0.9)])
    for bad in (Overlaps(np.zeros(2), ious.starts), Overlaps(ious.iou, ious.starts + 1)):
        with pytest.raises(ValueError, match="the overlaps are not those of this ground truth"):
            error_types(ground_truth, detections, bad, {})


def test_the_mean_over_seeds():
    made = [
        Errors(
            by_size={
                "all": SizeErrors(ap50=x, delta_ap={"Cls": x / 2}, counts={"Cls": int(10 * x)})
            },
            pos_thr=0.5,
            bg_thr=0.1,
            max_dets=100,
        )
        for x in (0.2, 0.5)
    ]
    mean = mean_errors(made)
    assert mean.by_size["all"].ap50 == pytest.approx(0.35)
    assert mean.by_size["all"].delta_ap == {"Cls": pytest.approx(0.175)}
    assert mean.by_size["all"].counts == {"Cls": 3.5}
    assert (mean.pos_thr, mean.max_dets) == (0.5, 100)
