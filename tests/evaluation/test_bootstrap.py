"""The bootstrap is exact on repeated images, and its intervals hold what they say."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmattn.evaluation.bootstrap import LANES, bootstrap, draw, figures
from mmattn.evaluation.data import load_ground_truth
from mmattn.evaluation.statistics import difference
from tests.evaluation.random_sets import (
    BINS,
    assert_figures,
    matched,
    pycocotools_figures,
    random_set,
    repeated,
)

RANDOM = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
FIGURES = ("ap", "ap50", "ap75", "ar", "class_ap")


def of_replicate(samples, n):
    return dataclasses.replace(samples, **{name: getattr(samples, name)[n] for name in FIGURES})


def assert_exact(truth, found, weights, iou_type="bbox", max_dets=100, bins=BINS):
    """Every replicate is what pycocotools says of the dataset with its images repeated."""
    matches = matched(truth, found, iou_type, bins, max_dets)
    samples = bootstrap(matches, weights, per_class=True)
    for n, row in enumerate(weights):
        expected = pycocotools_figures(*repeated(truth, found, row), iou_type, bins, max_dets)
        assert_figures(of_replicate(samples, n), expected)
        assert_figures(figures(matches, row), expected)


@RANDOM
@given(
    seed=st.integers(0, 2**32 - 1),
    iou_type=st.sampled_from(["bbox", "bbox", "segm"]),
    images=st.integers(1, 6),
    classes=st.integers(1, 3),
    levels=st.sampled_from([None, 1, 2, 5, 20]),
    max_dets=st.sampled_from([2, 100]),
)
def test_equals_pycocotools_on_really_repeated_images(
    seed, iou_type, images, classes, levels, max_dets
):
    rng = np.random.default_rng(seed)
    truth, found = random_set(rng, iou_type, images, classes, levels)
    weights = rng.choice([0, 0, 1, 1, 2, 3, 7], (3, images))
    weights[:, 0] |= weights.sum(1) == 0  # pycocotools cannot evaluate no image at all
    assert_exact(truth, found, weights, iou_type, max_dets)


@pytest.mark.parametrize("levels", [None, 3])
def test_equals_pycocotools_on_a_drawn_replicate_of_many_images(levels):
    truth, found = random_set(np.random.default_rng(0), images=80, levels=levels)
    assert_exact(truth, found, draw(80, 2, seed=0))


def one_image(good_first):
    """Two detections of one score, one of them right."""
    truth = {
        "images": [{"id": 1, "height": 99, "width": 99}, {"id": 2, "height": 99, "width": 99}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81}
        ],
    }
    for x in truth["annotations"]:
        x["iscrowd"] = 0
    boxes = [[0, 0, 9, 9], [50, 50, 9, 9]]
    found = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": 0.5}
        for box in (boxes if good_first else boxes[::-1])
    ]
    return truth, found


@pytest.mark.parametrize(
    ("good_first", "expected"),
    [
        # hit, false, hit, false: precision 1 up to recall 1/2, then 2/3
        (True, (51 + 50 * 2 / 3) / 101),
        # false, hit, false, hit: 1/2 everywhere
        (False, 1 / 2),
    ],
)
def test_equal_scores_by_hand(good_first, expected):
    truth, found = one_image(good_first)
    assert figures(matched(truth, found), [2, 1]).ap[0] == pytest.approx(expected)
    assert_exact(truth, found, np.array([[2, 1], [1, 2], [3, 0], [0, 2]]))


def test_an_image_of_weight_w_hits_w_times_in_a_row():
    # the precisions of the w steps rise, so the last stands for all: false, hit, hit, hit
    truth, found = one_image(good_first=False)
    found[0]["score"] = 0.9
    assert figures(matched(truth, found), [3, 0]).ap[0] == pytest.approx(3 / 6)
    found[0].update(score=0.9, image_id=2)
    result = figures(matched(truth, found), [3, 1])
    assert result.ap[0] == pytest.approx(3 / 4)
    assert_exact(truth, found, np.array([[3, 1], [1, 3], [7, 2]]))


@pytest.mark.parametrize("n", [1, 3, 7, 20, 25, 50, 100, 200])
def test_recall_levels_are_read_as_searchsorted_does(n):
    # recall m / n for every m, on the levels (where the last bit decides) and off them, with a
    # precision that falls from step to step
    truth, found = ladder(n)
    assert_exact(truth, found, np.array([[1] * n, [2] * n]), bins=[(0, 1e10)])


def ladder(n):
    """Image i has an object, which is found, and i % 5 false detections of less score."""
    truth = {
        "images": [{"id": i, "height": 99, "width": 99} for i in range(1, n + 1)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "bbox": [0, 0, 9, 9],
                "area": 81,
                "iscrowd": 0,
            }
            for i in range(1, n + 1)
        ],
    }
    found = []
    for i in range(1, n + 1):
        found.append({"image_id": i, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 1 / i})
        for _ in range(i % 5):
            found.append({**found[-1], "bbox": [50, 50, 9, 9], "score": 1 / (i + 0.5)})
    return truth, found


def test_draw():
    weights = draw(50, 200, seed=1)
    assert weights.shape == (200, 50)
    assert (weights.sum(1) == 50).all()
    np.testing.assert_array_equal(weights, draw(50, 200, seed=1))
    np.testing.assert_array_equal(weights[:20], draw(50, 20, seed=1))
    assert (weights != draw(50, 200, seed=2)).any()
    # with replacement: a share of about 1/e is not drawn, and each image as often as any other
    assert (weights == 0).mean() == pytest.approx(np.exp(-1), abs=0.02)
    assert weights.mean(0) == pytest.approx(np.ones(50), abs=0.4)
    for arguments in ((0, 10, 0), (10, 0, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            draw(*arguments)


@pytest.mark.parametrize("levels", [None, 4])
def test_threads_and_blocks_change_nothing(levels):
    truth, found = random_set(np.random.default_rng(5), images=30, levels=levels)
    matches = matched(truth, found)
    weights = draw(30, 2 * LANES + 5, seed=0)
    done = []
    one = bootstrap(matches, weights, per_class=True, workers=1)
    many = bootstrap(matches, weights, per_class=True, workers=3, progress=done.append)
    parts = [bootstrap(matches, x, per_class=True) for x in (weights[:3], weights[3:])]
    for name in FIGURES:
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))
        together = np.concatenate([getattr(x, name) for x in parts])
        np.testing.assert_array_equal(getattr(one, name), together)
    assert sum(done) == len(weights)
    assert bootstrap(matches, weights[:1]).class_ap is None


def test_without_objects_a_class_is_left_out():
    # class 1 only in image 1 (small, found), class 2 only in image 2 (large, not found)
    truth, found = one_image(good_first=True)
    truth["categories"].append({"id": 2, "name": "dog"})
    truth["annotations"].append(
        {
            "id": 2,
            "image_id": 2,
            "category_id": 2,
            "bbox": [0, 0, 98, 98],
            "area": 98**2,
            "iscrowd": 0,
        }
    )
    bins = [(0, 1e10), (0, 1024), (64**2, 1e10), (2000, 3000)]
    samples = bootstrap(
        matched(truth, found, bins=bins), np.array([[1, 1], [1, 0], [0, 1], [0, 0]]), per_class=True
    )
    nan = np.nan
    expected = [[0.5, 1, 0, nan], [1, 1, nan, nan], [0, nan, 0, nan], [nan, nan, nan, nan]]
    for name in ("ap", "ap50", "ap75", "ar"):
        assert getattr(samples, name) == pytest.approx(np.array(expected), nan_ok=True)
    assert samples.class_ap[0] == pytest.approx(
        np.array([[1, 1, nan, nan], [0, nan, 0, nan]]), nan_ok=True
    )
    assert np.isnan(samples.class_ap[3]).all()


def test_weights_that_do_not_fit():
    matches = matched(*one_image(True))
    for weights in (np.ones((2, 3), int), np.ones(2, int), np.ones((0, 2), int)):
        with pytest.raises(ValueError, match="a column for each of the 2 images"):
            bootstrap(matches, weights)
    for weights in ([[0.5, 1.5]], [[-1, 3]], [[70_000, 0]]):
        with pytest.raises(ValueError, match="whole numbers from 0 to 65535"):
            bootstrap(matches, np.array(weights))


def test_an_error_in_progress_stops_the_work():
    def fail(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bootstrap(matched(*one_image(True)), draw(2, 1000, seed=0), progress=fail)


# --- simulated detectors --------------------------------------------------------------------
#
# Images differ in how hard they are and in how many objects they hold. A detector finds an object
# with some probability, with a noisy box and score, and finds some that are not there.

SIZES = [(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)]
IMAGES, REPLICATES, DATASETS = 100, 400, 200


def simulated_truth(rng):
    truth = {
        "images": [{"id": i, "height": 600, "width": 600} for i in range(IMAGES)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [],
    }
    for i in range(IMAGES):
        for _ in range(1 + rng.poisson(3)):
            side = float(np.exp(rng.uniform(np.log(12), np.log(260))))
            x, y = rng.uniform(0, 300, 2).tolist()
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]),
                    "image_id": i,
                    "category_id": 1,
                    "bbox": [x, y, side, side],
                    "area": side**2,
                    "iscrowd": 0,
                }
            )
    return truth, rng.normal(0, 0.7, IMAGES)


def simulated_detections(rng, truth, hardness, better=0.0, better_up_to=np.inf):
    objects = truth["annotations"]
    image = np.array([x["image_id"] for x in objects])
    box = np.array([x["bbox"] for x in objects])
    gain = better * (box[:, 2] <= better_up_to)
    found = rng.random(len(box)) < 1 / (1 + np.exp(-1 - gain + hardness[image]))
    noise = 0.09 * np.exp(-gain / 2)[:, None] * rng.normal(size=box.shape)
    box = (box * [1, 1, 0, 0] + box[:, 2:3] * (np.array([0, 0, 1, 1]) + noise)).clip(1)[found]
    number = rng.poisson(2 * np.exp(hardness / 2))
    side = np.exp(rng.uniform(np.log(12), np.log(260), number.sum()))
    false = np.column_stack([rng.uniform(0, 300, (len(side), 2)), side, side])
    score = np.concatenate([rng.normal(1, 1, len(box)), rng.normal(0, 1, len(false))])
    return [
        {"image_id": i, "category_id": 1, "bbox": b, "score": s}
        for i, b, s in zip(
            [*image[found].tolist(), *np.repeat(np.arange(IMAGES), number).tolist()],
            [*box.tolist(), *false.tolist()],
            score.tolist(),
            strict=True,
        )
    ]


def simulated_runs(rng, seeds=1, **of_candidate):
    """Matches of the baseline's and of the candidate's seeds on a new dataset."""
    truth, hardness = simulated_truth(rng)
    loaded = load_ground_truth(truth)
    return [
        [
            matched(loaded, simulated_detections(rng, truth, hardness, **options), bins=SIZES)
            for _ in range(seeds)
        ]
        for options in ({}, of_candidate)
    ]


def sampled(run, weights):
    """AP of every seed, on all images (seeds, sizes) and resampled (seeds, R, sizes)."""
    return (
        np.array([figures(x).ap for x in run]),
        np.array([bootstrap(x, weights, workers=1).ap for x in run]),
    )


def differences(base, candidate, seeds=1):
    """Of AP, for every size."""
    return [
        difference(base[0][:, a], candidate[0][:, a], base[1][..., a], candidate[1][..., a])
        for base, candidate in [([x[:seeds] for x in base], [x[:seeds] for x in candidate])]
        for a in range(len(SIZES))
    ]


@pytest.fixture(scope="module")
def coverage():
    """Share of datasets, by size, in which the interval of two equal detectors holds 0."""
    held = {"one seed": [], "three seeds": [], "repeats dropped": []}
    for n in range(DATASETS):
        # half of them are enough for what has one bound
        seeds = 3 if n < DATASETS // 2 else 1
        base, candidate = simulated_runs(np.random.default_rng([0, n]), seeds=3)
        weights = draw(IMAGES, REPLICATES, seed=n)
        runs = [sampled(x[:seeds], weights) for x in (base, candidate)]
        found = {"one seed": differences(*runs)}
        if seeds == 3:
            dropped = [sampled(x[:1], weights.clip(max=1)) for x in (base, candidate)]
            found["three seeds"] = differences(*runs, seeds=3)
            found["repeats dropped"] = differences(*dropped)
        for name, every in found.items():
            held[name].append([x.low <= 0 <= x.high for x in every])
    return {name: np.mean(x, axis=0) for name, x in held.items()}


def test_the_interval_of_equal_detectors_holds_0(coverage):
    assert (coverage["one seed"] >= 0.92).all(), coverage
    assert (coverage["one seed"] <= 0.98).all(), coverage


def test_the_interval_of_equal_detectors_holds_0_with_several_seeds(coverage):
    assert (coverage["three seeds"] >= 0.92).all(), coverage


def test_dropping_repeated_images_makes_the_interval_too_narrow(coverage):
    # that the test above can fail
    assert (coverage["repeats dropped"] < 0.91).all(), coverage


def test_a_better_detector_is_found():
    weights = draw(IMAGES, REPLICATES, seed=0)
    better, at_small = [], []
    for n in range(20):
        rng = np.random.default_rng([1, n])
        for low, options in ((better, {}), (at_small, {"better_up_to": 32})):
            runs = [sampled(x, weights) for x in simulated_runs(rng, better=1.0, **options)]
            low.append([x.low > 0 for x in differences(*runs)])
    better, at_small = np.mean(better, axis=0), np.mean(at_small, axis=0)
    assert (better >= 0.9).all(), better
    assert at_small[1] >= 0.9, at_small
    assert (at_small[2:] <= 0.15).all(), at_small
