"""The images on which two runs differ most, against scenes made by hand and pycocotools."""

import contextlib
import io

import hotcoco
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmattn.evaluation.data import load_detections, load_ground_truth
from mmattn.evaluation.differences import Counts, differing_images
from mmattn.evaluation.overlaps import overlaps


def truth(objects, images=1, classes=2, **image):
    """Ground truth of (image, class, box[, crowd[, area]]), images and classes from 1."""
    annotations = []
    for number, (i, category, box, *rest) in enumerate(objects, 1):
        crowd, area = (*rest, 0, None)[:2] if len(rest) < 2 else rest
        annotations.append(
            {
                "id": number,
                "image_id": i,
                "category_id": category,
                "bbox": list(box),
                "area": box[2] * box[3] if area is None else area,
                "iscrowd": crowd,
                "segmentation": [rectangle(*box)],
            }
        )
    return {
        "images": [
            {"id": i, "height": 200, "width": 200, "file_name": f"{i}.png", **image}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": k, "name": f"class{k}"} for k in range(1, classes + 1)],
        "annotations": annotations,
    }


def rectangle(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def results(detections):
    """Detections of (image, class, box, score)."""
    return [
        {"image_id": i, "category_id": category, "bbox": list(box), "score": score}
        for i, category, box, score in detections
    ]


def compare(objects, baseline, candidate, images=1, iou_type="bbox", **options):
    ground_truth = load_ground_truth(truth(objects, images), iou_type)
    runs = []
    for name, detections in (("old", baseline), ("new", candidate)):
        loaded = load_detections(results(detections), ground_truth)
        runs.append((name, loaded, overlaps(ground_truth, loaded)))
    return differing_images(ground_truth, *runs, **options)


# --- by hand -------------------------------------------------------------------------------

A, B, C = (0, 0, 20, 20), (50, 0, 40, 40), (0, 100, 100, 100)  # small, medium, large
NOTHING = (150, 150, 10, 10)


def test_what_each_run_found_missed_and_imagined():
    # old finds C and imagines two things, of which new has one too; new finds A and C
    objects = [(1, 1, A), (1, 1, B), (1, 2, C)]
    old = [(1, 2, C, 0.9), (1, 1, NOTHING, 0.95), (1, 1, (120, 0, 50, 50), 0.97)]
    new = [(1, 1, A, 0.9), (1, 2, C, 0.8), (1, 1, (150, 150, 10, 12), 0.85)]
    (image,) = compare(objects, old, new)
    assert (image.image, image.image_id, image.file_name) == (0, 1, "1.png")
    assert image.difference == (2 - 1) - (1 - 2)
    baseline, candidate = image.baseline, image.candidate
    assert (baseline.name, candidate.name) == ("old", "new")
    assert (baseline.score_thr, candidate.score_thr) == (0.9, 0.8)
    # detections are numbered by score: old's C is its third, new's A the first, C the third
    assert baseline.found.tolist() == [2]
    assert baseline.found_by.tolist() == [2]
    assert baseline.missed.tolist() == [0, 1]
    assert baseline.false_alarms.tolist() == [0, 1]
    assert baseline.shared.tolist() == [False, True]
    assert candidate.found.tolist() == [0, 2]
    assert candidate.found_by.tolist() == [0, 2]
    assert candidate.missed.tolist() == [1]
    assert candidate.false_alarms.tolist() == [1]
    assert candidate.shared.tolist() == [True]
    assert image.gained.tolist() == [0]
    assert image.lost.tolist() == []
    assert baseline.counts == {
        "all": Counts(1, 2, 2),
        "small": Counts(0, 1, 1),
        "medium": Counts(0, 1, 1),
        "large": Counts(1, 0, 0),
    }
    assert candidate.counts["small"] == Counts(1, 0, 1)
    assert image.picture is None


def test_threshold_is_the_one_of_the_best_f1():
    # F1 down to 0.9: 2/4, down to 0.8: 2/5, down to 0.7: 4/6, down to 0.1: 4/7
    objects = [(1, 1, A), (1, 1, B), (1, 2, C)]
    found = [(1, 1, A, 0.9), (1, 1, NOTHING, 0.8), (1, 1, B, 0.7), (1, 1, NOTHING, 0.1)]
    (image,) = compare(objects, [], found)
    assert image.candidate.score_thr == 0.7
    assert image.candidate.false_alarms.tolist() == [1]


def test_threshold_does_not_count_crowds_as_objects():
    # F1 down to 0.9: 2/3, down to 0.7: 4/6, the same; were the crowd an object: 2/4 and 4/7
    found = [(1, 1, A, 0.9), (1, 1, NOTHING, 0.8), (1, 1, NOTHING, 0.75), (1, 1, B, 0.7)]
    (image,) = compare([(1, 1, A), (1, 1, B), (1, 1, C, 1)], [], found)
    assert image.candidate.score_thr == 0.9


def test_equal_scores_count_together():
    # two of the three would be perfect, but the one of nothing has the same score
    found = [(1, 1, A, 0.9), (1, 1, B, 0.9), (1, 1, NOTHING, 0.9)]
    (image,) = compare([(1, 1, A), (1, 1, B)], [], found)
    assert image.difference == 2 - 1
    assert image.candidate.false_alarms.tolist() == [2]


def test_a_run_that_hits_nothing_shows_no_detection():
    (image,) = compare([(1, 1, A)], [(1, 1, NOTHING, 0.9)], [(1, 1, A, 0.5)])
    assert image.baseline.score_thr == np.inf
    assert image.baseline.false_alarms.tolist() == []
    assert image.difference == 1


def test_second_detection_of_an_object_is_a_false_alarm():
    old, new = [(1, 1, A, 0.9), (1, 1, B, 0.5)], [(1, 1, A, 0.9), (1, 1, A, 0.8), (1, 1, B, 0.5)]
    (image,) = compare([(1, 1, A), (1, 1, B)], old, new)
    assert image.difference == -1
    assert image.candidate.false_alarms.tolist() == [1]


def test_false_alarms_are_shared_one_to_one_within_a_class():
    spot, beside = (150, 150, 20, 20), (150, 152, 20, 20)
    old = [(1, 1, A, 0.1), (1, 1, spot, 0.9), (1, 2, spot, 0.8)]
    new = [(1, 1, A, 0.1), (1, 1, beside, 0.9), (1, 1, spot, 0.8), (1, 1, B, 0.95)]
    objects = [(1, 1, A), (1, 1, A), (1, 1, B), (1, 1, C)]
    (image,) = compare(objects, old, new)
    assert image.baseline.shared.tolist() == [True, False]
    assert image.candidate.shared.tolist() == [False, True]  # the closest one


def test_false_alarms_are_shared_in_every_class():
    old = [(1, 1, A, 0.1), (1, 1, NOTHING, 0.9), (1, 2, NOTHING, 0.8)]
    new = [(1, 2, NOTHING, 0.9), (1, 1, A, 0.1), (1, 1, B, 0.1), (1, 1, NOTHING, 0.7)]
    (image,) = compare([(1, 1, A), (1, 1, B), (1, 1, C), (1, 2, C)], old, new)
    assert image.baseline.shared.tolist() == [True, True]
    assert image.candidate.shared.tolist() == [True, True]


def test_crowds_and_what_is_matched_to_them_count_as_nothing():
    objects = [(1, 1, A), (1, 1, C, 1), (2, 1, A)]
    in_crowd = [(1, 1, (10, 110, 20, 20), 0.9), (1, 1, (50, 150, 20, 20), 0.9)]
    images = compare(objects, [(1, 1, A, 0.9)], [*in_crowd, (1, 1, A, 0.9), (2, 1, A, 0.9)], 2)
    assert [x.image_id for x in images] == [2]
    (image,) = compare(objects, [(2, 1, A, 0.9)], [*in_crowd, (1, 1, A, 0.5), (2, 1, A, 0.9)], 2)
    assert (image.difference, image.candidate.score_thr) == (1, 0.5)
    assert image.candidate.counts["all"] == Counts(1, 0, 0)
    assert image.baseline.missed.tolist() == [0]


def test_size_counts_only_what_is_in_it():
    objects = [(1, 1, A), (1, 1, B), (1, 1, C)]
    old = [(1, 1, A, 0.9), (1, 1, NOTHING, 0.9)]
    new = [(1, 1, A, 0.9), (1, 1, B, 0.9), (1, 1, C, 0.9), (1, 1, (110, 0, 60, 60), 0.9)]
    (image,) = compare(objects, old, new, size=(0, 32**2))
    assert image.difference == 1
    assert image.candidate.found.tolist() == [0]
    assert image.candidate.missed.tolist() == []
    assert image.candidate.counts["all"] == Counts(1, 0, 0)
    assert image.baseline.false_alarms.tolist() == [1]
    # both limits are inside
    (image,) = compare(objects, old, new, size=(1600, 1600))
    assert image.candidate.found.tolist() == [1]
    (image,) = compare(objects, old, new, size=(3600, 3600))
    assert image.candidate.counts["all"] == Counts(0, 0, 1)
    # the threshold is that of all sizes, so that a run shows the same detections
    assert image.candidate.score_thr == 0.9


def test_a_detection_takes_what_it_overlaps_most():
    # the one of 0.9 overlaps both; if it took the first, that of 0.8 would find nothing
    near, far = (0, 0, 30, 20), (10, 0, 30, 20)
    new = [(1, 1, (8, 0, 30, 20), 0.9), (1, 1, (0, 0, 24, 20), 0.8)]
    (image,) = compare([(1, 1, far), (1, 1, near)], [], new)
    assert image.candidate.found.tolist() == [0, 1]
    assert image.candidate.found_by.tolist() == [0, 1]


def test_of_equal_choices_the_last_is_taken():
    (image,) = compare([(1, 1, A), (1, 1, A)], [], [(1, 1, A, 0.9)])
    assert image.candidate.found.tolist() == [1]


def test_what_does_not_count_is_a_last_choice():
    # the crowd covers all of the detection, the object only a part
    crowd = (1, 1, (0, 0, 60, 60), 1)
    (image,) = compare([(1, 1, (0, 0, 30, 20)), crowd], [], [(1, 1, (5, 0, 30, 20), 0.9)])
    assert image.candidate.found.tolist() == [0]


def test_iou_of_one_is_reached_up_to_rounding():
    box = (25.6, 47.5, 7.3, 47.4)  # its IoU with itself is a little less
    (image,) = compare([(1, 1, box)], [], [(1, 1, box, 0.9)], iou_thr=1)
    assert image.candidate.found.tolist() == [0]


def test_masks():
    ground_truth = load_ground_truth(truth([(1, 1, A), (1, 2, C)]), "segm")
    masks = ground_truth.masks
    old = [{"image_id": 1, "category_id": 2, "segmentation": masks[1], "score": 0.9}]
    new = [*old, {"image_id": 1, "category_id": 1, "segmentation": masks[0], "score": 0.8}]
    new.append({"image_id": 1, "category_id": 1, "segmentation": masks[1], "score": 0.95})
    old.append({"image_id": 1, "category_id": 1, "segmentation": masks[1], "score": 0.95})
    old.append({"image_id": 1, "category_id": 2, "segmentation": masks[1], "score": 0.92})
    runs = [(name, load_detections(x, ground_truth)) for name, x in (("old", old), ("new", new))]
    runs = [(*run, overlaps(ground_truth, run[1])) for run in runs]
    (image,) = differing_images(ground_truth, *runs)
    assert image.candidate.found.tolist() == [0, 1]
    assert image.baseline.shared.tolist() == [True]
    assert image.candidate.shared.tolist() == [True]


def test_masks_in_one_box_are_not_the_same_false_alarm():
    ground_truth = load_ground_truth(truth([(1, 1, A), (1, 1, B)]), "segm")

    def triangle(*corners):
        mask = hotcoco.mask.merge(hotcoco.mask.fr_py_objects([list(corners)], 200, 200))
        return {"image_id": 1, "category_id": 1, "segmentation": mask, "score": 0.95}

    hits = [
        {"image_id": 1, "category_id": 1, "segmentation": mask, "score": 0.9}
        for mask in ground_truth.masks
    ]
    lower, upper = triangle(100, 100, 150, 150, 100, 150), triangle(100, 100, 150, 100, 150, 150)
    runs = [
        (name, load_detections(x, ground_truth))
        for name, x in (("old", [lower, hits[0]]), ("new", [upper, *hits]))
    ]
    runs = [(*run, overlaps(ground_truth, run[1])) for run in runs]
    np.testing.assert_allclose(runs[0][1].boxes[0], runs[1][1].boxes[0], atol=1)
    (image,) = differing_images(ground_truth, *runs)
    assert image.baseline.shared.tolist() == [False]
    assert image.candidate.shared.tolist() == [False]


# --- choice --------------------------------------------------------------------------------


def scene(differences):
    """Images where the candidate finds so many objects more (fewer, if negative)."""
    objects, old, new = [], [], []
    for i, difference in enumerate(differences, 1):
        for k in range(abs(difference)):
            box = (20 * k, 0, 10, 10)
            objects.append((i, 1, box))
            (new if difference > 0 else old).append((i, 1, box, 0.9))
        objects.append((i, 2, B))
        old.append((i, 2, B, 0.5))
        new.append((i, 2, B, 0.5))
    return objects, old, new, len(differences)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (12, [(4, 5), (1, 2), (6, 2), (5, 1), (3, -3), (2, -1), (8, -1)]),
        (4, [(4, 5), (1, 2), (3, -3), (2, -1)]),
        (3, [(4, 5), (1, 2), (3, -3)]),
        (1, [(4, 5)]),
        (0, []),
    ],
)
def test_half_better_half_worse_largest_first(number, expected):
    images = compare(*scene([2, -1, -3, 5, 1, 2, 0, -1]), number=number)
    assert [(x.image_id, x.difference) for x in images] == expected


def test_more_of_the_other_kind_where_one_is_rare():
    assert [x.difference for x in compare(*scene([-1, 1, -2, -3, -4]), number=4)] == [1, -4, -3, -2]
    assert [x.difference for x in compare(*scene([1, 2, 3, -4, 5]), number=4)] == [5, 3, 2, -4]


def test_equal_runs_have_no_differing_image():
    objects, old, _, images = scene([2, 3])
    assert compare(objects, old, old, images) == []
    assert compare([], [], [], 3) == []


def test_bins_as_elsewhere():
    objects, old, new, images = scene([1])
    (image,) = compare(objects, old, new, images, bins="low:0-100,high:100-")
    assert list(image.candidate.counts) == ["all", "low", "high"]
    assert image.candidate.counts["low"] == Counts(1, 0, 0)
    assert image.candidate.counts["high"] == Counts(2, 0, 0)  # 100 is in both


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": -1}, "number must be a count"),
        ({"number": 1.5}, "number must be a count"),
        ({"iou_thr": 0}, "iou_thr must be above 0"),
        ({"iou_thr": 1.1}, "iou_thr must be above 0"),
        ({"size": (5, 1)}, "size must be"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        compare([(1, 1, A)], [], [], **options)


def test_overlaps_of_other_detections():
    ground_truth = load_ground_truth(truth([(1, 1, A)]))
    one, two = (load_detections(results([(1, 1, A, 0.9)] * n), ground_truth) for n in (1, 2))
    right = ("old", one, overlaps(ground_truth, one))
    wrong = ("new", two, overlaps(ground_truth, one))
    with pytest.raises(ValueError, match="Expected the 2 IoUs .* got 1"):
        differing_images(ground_truth, right, wrong)


# --- against pycocotools -------------------------------------------------------------------


def pycocotools_images(annotations, detections, limits, max_dets, iou_thr):
    """(image, numbers of its objects and detections, their matches and what is ignored)."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = annotations
        coco.createIndex()
        if not detections:
            return coco, []
        evaluation = COCOeval(coco, coco.loadRes([dict(x) for x in detections]), "bbox")
        evaluation.params.iouThrs = np.array([iou_thr])
        evaluation.params.areaRng = [limits]
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
    return coco, [x for x in evaluation.evalImgs if x is not None]


def judge(annotations, detections, size, max_dets, iou_thr):
    """The threshold, and for each image id the objects found and missed and false alarms."""
    everything = (0, 1e10)
    _, images = pycocotools_images(annotations, detections, everything, max_dets, iou_thr)
    scores = []
    for x in images:
        for k, score in enumerate(x["dtScores"]):
            if not x["dtIgnore"][0, k]:
                scores.append((score, x["dtMatches"][0, k] > 0))
    num_objects = sum(not a["iscrowd"] for a in annotations["annotations"])
    best, thr = 0, np.inf
    for candidate in sorted({s for s, _ in scores}, reverse=True):
        above = [hit for s, hit in scores if s >= candidate]
        f1 = 2 * sum(above) / (len(above) + num_objects)
        if f1 > best:
            best, thr = f1, candidate
    _, images = pycocotools_images(annotations, detections, size or everything, max_dets, iou_thr)
    found, missed, alarms = {}, {}, {}
    for annotation in annotations["annotations"]:
        low, high = size or everything
        if not annotation["iscrowd"] and low <= annotation["area"] <= high:
            missed.setdefault(annotation["image_id"], set()).add(annotation["id"])
    for x in images:
        of_image = found.setdefault(x["image_id"], {})
        score = dict(zip(x["dtIds"], x["dtScores"], strict=True))
        for k, g in enumerate(x["gtIds"]):
            d = x["gtMatches"][0, k]
            if d > 0 and not x["gtIgnore"][k] and score[d] >= thr:
                of_image[g] = int(d)
                missed[x["image_id"]].discard(g)
        for k, d in enumerate(x["dtIds"]):
            if not x["dtMatches"][0, k] and not x["dtIgnore"][0, k] and score[d] >= thr:
                alarms.setdefault(x["image_id"], set()).add(d)
    return thr, found, missed, alarms


coordinate = st.sampled_from([0, 2, 5, 10, 20, 21])
side = st.sampled_from([10, 15, 20])
box = st.tuples(coordinate, st.just(0), side, st.just(10))
where = st.tuples(st.integers(1, 3), st.sampled_from([1, 1, 1, 2]), box)
an_object = st.tuples(where, st.booleans(), st.sampled_from([None, 100, 180])).map(
    lambda x: (*x[0], int(x[1]), x[2])
)
a_detection = st.tuples(where, st.sampled_from([0.2, 0.4, 0.6, 0.8])).map(lambda x: (*x[0], x[1]))


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    objects=st.lists(an_object, max_size=12),
    old=st.lists(a_detection, max_size=12),
    new=st.lists(a_detection, max_size=12),
    size=st.sampled_from([None, (0, 180), (120, 200)]),
    max_dets=st.sampled_from([1, 3, 100]),
    iou_thr=st.sampled_from([0.5, 0.3, 1]),
    number=st.sampled_from([1, 2, 3, 12]),
)
def test_as_pycocotools(objects, old, new, size, max_dets, iou_thr, number):
    annotations = truth(objects, images=3)
    images = compare(
        objects,
        old,
        new,
        3,
        size=size,
        max_dets=max_dets,
        iou_thr=iou_thr,
        number=number,
    )
    judged = [judge(annotations, results(x), size, max_dets, iou_thr) for x in (old, new)]
    values = [
        {i: len(found.get(i, ())) - len(alarms.get(i, ())) for i in range(1, 4)}
        for _, found, _, alarms in judged
    ]
    differences = {i: values[1][i] - values[0][i] for i in range(1, 4)}
    better = sorted((i for i in differences if differences[i] > 0), key=lambda i: -differences[i])
    worse = sorted((i for i in differences if differences[i] < 0), key=lambda i: differences[i])
    kept_worse = worse[: max(number // 2, number - len(better))]
    expected = [*better[: number - len(kept_worse)], *kept_worse]
    assert [(x.image_id, x.difference) for x in images] == [(i, differences[i]) for i in expected]
    for image in images:
        for run, detections, (thr, found, missed, alarms) in zip(
            (image.baseline, image.candidate), (old, new), judged, strict=True
        ):
            # our numbers to ids: objects in the file's order by image, detections by score too
            by_image = sorted(range(len(objects)), key=lambda k: objects[k][0])
            by_score = sorted(
                range(len(detections)), key=lambda k: (detections[k][0], -detections[k][3])
            )
            own = found.get(image.image_id, {})
            assert run.score_thr == thr
            ids = [by_image[k] + 1 for k in run.found]
            assert dict(zip(ids, (by_score[k] + 1 for k in run.found_by), strict=True)) == own
            assert {by_image[k] + 1 for k in run.missed} == missed.get(image.image_id, set())
            assert {by_score[k] + 1 for k in run.false_alarms} == alarms.get(image.image_id, set())
            counts = run.counts["all"]
            assert counts == (len(run.found), len(run.missed), len(run.false_alarms))
        # no pair is counted twice, and pairs are of one class
        assert image.baseline.shared.sum() == image.candidate.shared.sum()
