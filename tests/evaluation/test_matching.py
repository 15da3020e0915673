"""Matching at every bin and threshold: the figures that follow are pycocotools'."""

import copy

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmattn.evaluation.bins import SizeBin
from mmattn.evaluation.bootstrap import figures
from mmattn.evaluation.data import load_detections, load_ground_truth
from mmattn.evaluation.evaluator import evaluate_loaded
from mmattn.evaluation.matching import jit, match
from mmattn.evaluation.overlaps import overlaps
from tests.evaluation.random_sets import (
    BINS,
    IOU_THRS,
    assert_figures,
    load,
    matched,
    pycocotools_figures,
    random_set,
)

RANDOM = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
TRUTH = {
    "images": [{"id": 1, "height": 200, "width": 200}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [],
}


def annotation(box, **more):
    return {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        **more,
    }


def detection(box, score, **more):
    return {"image_id": 1, "category_id": 1, "bbox": box, "score": score, **more}


@RANDOM
@given(
    seed=st.integers(0, 2**32 - 1),
    iou_type=st.sampled_from(["bbox", "bbox", "segm"]),
    images=st.integers(1, 12),
    classes=st.integers(1, 3),
    levels=st.sampled_from([None, 1, 4, 20]),
    max_dets=st.sampled_from([1, 3, 100]),
)
def test_figures_equal_pycocotools_and_hotcoco(seed, iou_type, images, classes, levels, max_dets):
    truth, found = random_set(np.random.default_rng(seed), iou_type, images, classes, levels)
    ground_truth, detections, ious = load(truth, found, iou_type)
    result = figures(match(ground_truth, detections, ious, BINS, IOU_THRS, max_dets))
    assert_figures(result, pycocotools_figures(truth, found, iou_type, max_dets=max_dets))
    bins = [SizeBin(str(n), *limits) for n, limits in enumerate(BINS)]
    other = evaluate_loaded(ground_truth, detections, bins, max_dets=max_dets)
    for name in ("ap", "ap50", "ap75", "ar"):
        expected = [getattr(x, name) for x in other.by_size.values()]
        np.testing.assert_allclose(getattr(result, name), expected, rtol=0, atol=1e-9)
    per_class = [[x.ap for x in c.by_size.values()] for c in other.per_class.values()]
    np.testing.assert_allclose(result.class_ap, per_class, rtol=0, atol=1e-9)


def test_the_random_sets_have_what_they_are_for():
    seen = set()
    for seed in range(20):
        truth, found = random_set(np.random.default_rng(seed))
        with_objects = {x["image_id"] for x in truth["annotations"]}
        seen |= {"crowd" for x in truth["annotations"] if x["iscrowd"]}
        seen |= {"on a limit" for x in truth["annotations"] if x["area"] in (32**2, 64**2)}
        seen |= {"no objects" for x in truth["images"] if x["id"] not in with_objects}
        seen |= {"no such object" for x in found if x["category_id"] == 5}
        result = pycocotools_figures(truth, found)
        if np.isnan(result["ap"]).any():
            seen.add("n/a")
        if (result["ap"] > 0.2).any():
            seen.add("found")
    assert len(seen) == 6, seen


def test_more_detections_than_count():
    rng = np.random.default_rng(0)
    truth = {**TRUTH, "annotations": [annotation([60 * i, 0, 50, 50], id=i) for i in (1, 2)]}
    # 150 false ones, the two good ones are the 100th and the 101st
    scores = np.sort(rng.random(152))[::-1]
    found = [detection([0, 100, 20, 20], x) for x in scores]
    found[99]["bbox"], found[100]["bbox"] = [60, 0, 50, 50], [120, 0, 50, 50]
    result = figures(matched(truth, found))
    assert result.ar[0] == 0.5
    assert_figures(result, pycocotools_figures(truth, found))
    assert figures(matched(truth, found, max_dets=101)).ar[0] == 1


def test_an_iou_exactly_on_the_threshold_counts():
    # IoU 1/2 at threshold 1/2; IoU 1 at threshold 1
    truth = {**TRUTH, "annotations": [annotation([0, 0, 64, 64])]}
    half, whole = detection([0, 0, 64, 32], 0.9), detection([0, 0, 64, 64], 0.9)
    assert figures(matched(truth, [half])).ap50[0] == pytest.approx(1)
    ground_truth, detections, ious = load(truth, [whole])
    result = figures(match(ground_truth, detections, ious, BINS, [1.0], 100))
    assert result.ap[0] == pytest.approx(1)
    assert np.isnan(result.ap50).all()
    assert np.isnan(result.ap75).all()
    # by rounding, a box may have an IoU with itself that is just below 1
    odd = [38.6, 16.9, 3.4, 2.0]
    arguments = load({**TRUTH, "annotations": [annotation(odd)]}, [detection(odd, 0.9)])
    assert 1 - 1e-10 < arguments[2].iou[0] < 1
    assert figures(match(*arguments, BINS, [1.0], 100)).ap[0] == pytest.approx(1)


@pytest.mark.parametrize("empty", ["objects", "detections", "both"])
def test_nothing_there(empty):
    truth, found = random_set(np.random.default_rng(1))
    if empty != "detections":
        truth["annotations"] = []
    if empty != "objects":
        found = []
    result = figures(matched(truth, found))
    assert_figures(result, pycocotools_figures(truth, found))
    assert np.isnan(result.ap[0]) == (empty != "detections")


def test_classes_can_be_chosen():
    truth, found = random_set(np.random.default_rng(2), images=12)
    ground_truth = load_ground_truth(truth, classes=[3, 1])
    detections = load_detections(found, ground_truth)
    ious = overlaps(ground_truth, detections)
    result = figures(match(ground_truth, detections, ious, BINS, IOU_THRS, 100))
    expected = pycocotools_figures(truth, found)["class_ap"][[2, 0]]
    np.testing.assert_allclose(result.class_ap, expected, rtol=0, atol=1e-9)


def test_many_groups_and_threads_change_nothing(monkeypatch):
    truth, found = random_set(np.random.default_rng(3), images=60)
    one = matched(truth, found, workers=1)
    monkeypatch.setattr("mmattn.evaluation.matching.GROUPS_PER_TASK", 7)
    for workers in (1, 4):
        many = matched(truth, found, workers=workers)
        for name in ("event_starts", "event_detection", "event_iou", "event_hit"):
            np.testing.assert_array_equal(getattr(many, name), getattr(one, name))


def test_any_bins_together_are_as_one_by_one():
    truth, found = random_set(np.random.default_rng(4), images=30)
    windows = [(s**2, (2 * s) ** 2) for s in range(4, 80, 4)]
    together = figures(matched(truth, found, bins=windows)).class_ap
    for n, window in enumerate(windows):
        alone = figures(matched(truth, found, bins=[window])).class_ap
        np.testing.assert_array_equal(together[:, n], alone[:, 0])


def test_bad_arguments():
    arguments = load(*random_set(np.random.default_rng(0)))
    for bins, iou_thrs, max_dets, message in (
        ([], IOU_THRS, 100, "bins must be pairs"),
        ([(1, 2, 3)], IOU_THRS, 100, "bins must be pairs"),
        ([(2, 1)], IOU_THRS, 100, "must not be above"),
        ([(float("nan"), 1)], IOU_THRS, 100, "must not be above"),
        (BINS, [], 100, "iou_thrs"),
        (BINS, [0.5, 1.5], 100, "iou_thrs"),
        (BINS, IOU_THRS, 0, "max_dets"),
    ):
        with pytest.raises(ValueError, match=message):
            match(*arguments, copy.deepcopy(bins), iou_thrs, max_dets)


def test_works_where_no_cache_can_be_written():
    # numba finds no folder for code that is in no file, as where all folders are read-only
    namespace = {}
    exec("def double(x):\n    return 2 * x", namespace)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(namespace["double"])
    assert jit(namespace["double"])(21) == 42
