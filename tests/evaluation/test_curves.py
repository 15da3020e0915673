"""AP against size: each point is an evaluation, and the band is about it."""

import json

import numpy as np
import pytest
from made_detectors import BASELINE, CANDIDATE, PLAIN, TRUTH, detections
from scipy import stats

from mmattn.evaluation import evaluate
from mmattn.evaluation.bootstrap import draw
from mmattn.evaluation.curves import size_curve, windows
from mmattn.evaluation.data import load_detections, load_ground_truth

WEIGHTS = draw(60, 100, 0)


def curve(*seeds, truth=TRUTH, size_by="area", weights=WEIGHTS, **options):
    truth = load_ground_truth(truth, size_by=size_by)
    found = [load_detections(x, truth) for x in seeds]
    options = {"iou_thrs": [0.5], "max_dets": 100, **options}
    return size_curve("x", truth, found, weights, **options)


@pytest.mark.parametrize("size_by", ["area", "sqrt-relative"])
def test_each_point_is_an_evaluation_of_its_window(size_by):
    made = curve(BASELINE, size_by=size_by)
    for p in (3, 8, 14):
        side = made.size[p]
        if size_by == "area":
            window = [("window", side**2 / 2, side**2 * 2)]
        else:
            window = [("window", side / 2**0.5, side * 2**0.5)]
            if window[0][2] > 1:
                continue
        point = evaluate(TRUTH, BASELINE, window, iou_thrs=[0.5], size_by=size_by)
        assert point.by_size["window"].ap == pytest.approx(made.ap[p], abs=1e-9)
        assert point.by_size["window"].num_objects == made.num_objects[p]
    unit = 1 if size_by == "area" else 1 / 480
    assert 9.9 * unit < made.size[0] < made.size[-1] < 180 * unit


def test_the_curve_lies_in_its_band():
    # the mean of the resamples does not: copies of an image agree with each other
    made, narrow = curve(BASELINE), curve(BASELINE, level=0.5)
    have = ~np.isnan(made.ap)
    assert have.sum() >= 12
    assert (made.low[have] < narrow.low[have]).all()
    assert (narrow.low[have] < made.ap[have]).all()
    assert (made.ap[have] < narrow.high[have]).all()
    assert (narrow.high[have] < made.high[have]).all()
    assert curve(BASELINE, weights=None).low is None


def test_several_seeds_are_a_mean_with_their_spread():
    seeds = [detections(TRUTH, PLAIN, seed=seed) for seed in (5, 6, 7)]
    single, made = [curve(x) for x in seeds], curve(*seeds)
    ap = np.array([x.ap for x in single])
    np.testing.assert_allclose(made.ap, ap.mean(0), atol=1e-12)
    half = stats.t.ppf(0.975, 2) * ap.std(0, ddof=1) / 3**0.5
    have = ~np.isnan(made.low)
    assert have.sum() >= 12
    assert (made.ap - made.low >= half - 1e-12)[have].all()
    assert (made.high - made.ap >= half - 1e-12)[have].all()


def test_few_images_have_no_band():
    # the objects of 60 images on four, and on five
    for images in (4, 5):
        annotations, found = (
            [{**x, "image_id": 1 + x["image_id"] % images} for x in y]
            for y in (TRUTH["annotations"], CANDIDATE)
        )
        made = curve(found, truth={**TRUTH, "annotations": annotations})
        assert (~np.isnan(made.ap)).sum() >= 12
        assert np.isnan(made.low).all() == (images == 4)


def test_windows():
    truth = json.loads(json.dumps(TRUTH))
    for x in truth["annotations"]:
        x["area"] = 400.0
    middles, ranges = windows(load_ground_truth(truth))
    np.testing.assert_allclose(middles, [20])  # all of one size: one window about it
    np.testing.assert_allclose(ranges, [[200, 800]])
    for x in truth["annotations"][9:]:
        x["iscrowd"] = 1
    assert len(windows(load_ground_truth(truth))[0]) == 0  # nine objects, crowds left out
    assert len(curve(BASELINE, truth=truth).size) == 0
