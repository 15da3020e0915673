"""compare(): what it says of detectors that differ in a known way."""

import dataclasses
import json
import math

import numpy as np
import pytest
from made_detectors import (
    BASELINE,
    BETTER_SMALL,
    CANDIDATE,
    PLAIN,
    TRUTH,
    WORSE_LARGE,
    detections,
)

from mmattn.evaluation import compare, evaluate
from mmattn.evaluation.result import FIGURES
from mmattn.evaluation.statistics import Difference
from mmattn.evaluation.table import limits, signed


@pytest.fixture(scope="module")
def comparison():
    return compare(TRUTH, BASELINE, CANDIDATE, replicates=200, per_class=True)


def rows(x):
    return {"all": x, **x.by_size}


def test_values_are_those_of_evaluate(comparison):
    before, after = evaluate(TRUTH, BASELINE), evaluate(TRUTH, CANDIDATE)
    for size, row in rows(comparison).items():
        for figure in FIGURES:
            expected = rows(after)[size][figure] - rows(before)[size][figure]
            assert row[figure].value == pytest.approx(expected, abs=1e-12)
            assert row[figure].low < row[figure].value < row[figure].high
    for name, row in comparison.per_class.items():
        one, other = before.per_class[name], after.per_class[name]
        for size, x in row.items():
            assert x.value == pytest.approx(rows(other)[size].ap - rows(one)[size].ap, abs=1e-12)
            assert x.low < x.value < x.high


def test_says_which_sizes_changed(comparison):
    assert comparison.by_size["small"].ap.p < 0.02
    assert comparison.by_size["small"].ap.low > 0.1
    words = comparison.words
    assert words[1].startswith("Small: better: +")
    assert words[1].endswith(f"p = {comparison.by_size['small'].ap.p:.3f}).")
    assert "there is one of baseline and candidate" in words[4]
    assert words[2].startswith("Medium: no difference shown: ")
    assert words[3].startswith("Large: no difference shown: ")
    assert "another seed of the same config differs too" in words[4]
    assert "| small  |     120 | AP     |      +" in str(comparison)
    assert repr(comparison) == str(comparison)


def test_a_candidate_may_be_worse():
    worse = detections(TRUTH, WORSE_LARGE, seed=3)
    comparison = compare(TRUTH, BASELINE, worse, replicates=200)
    assert comparison.by_size["large"].ap.high < 0
    assert comparison.words[3].startswith("Large: worse: -")
    assert comparison.per_class == {}


def test_a_run_against_itself():
    same = compare(TRUTH, BASELINE, BASELINE, replicates=50)
    for row in rows(same).values():
        for figure in FIGURES:
            x = row[figure]
            assert (x.value, x.low, x.high, x.p) == (0, 0, 0, 1)


def test_swapping_turns_the_sign(comparison):
    swapped = compare(TRUTH, CANDIDATE, BASELINE, replicates=200)
    for size, row in rows(comparison).items():
        assert rows(swapped)[size].ap.value == pytest.approx(-row.ap.value, abs=1e-12)
        assert rows(swapped)[size].ap.low == pytest.approx(-row.ap.high, abs=1e-12)
        assert rows(swapped)[size].ap.p == row.ap.p


def test_the_seed_decides(comparison):
    again = compare(TRUTH, BASELINE, CANDIDATE, replicates=200, per_class=True)
    other = compare(TRUTH, BASELINE, CANDIDATE, replicates=200, seed=1)
    assert again.to_dict() == comparison.to_dict()
    assert other.ap.value == comparison.ap.value
    assert other.ap.low != comparison.ap.low


def test_several_seeds(tmp_path):
    # mean over seeds; the interval is wider than that of one, as seeds differ too
    runs = {"plain": PLAIN, "better": BETTER_SMALL}
    for name, found in runs.items():
        for seed in range(3):
            folder = tmp_path / name / f"seed{seed}"
            folder.mkdir(parents=True)
            records = detections(TRUTH, found, seed=10 * seed + len(name))
            (folder / "results.bbox.json").write_text(json.dumps(records))
    files = [[str(path) for path in sorted((tmp_path / name).rglob("*.json"))] for name in runs]
    comparison = compare(TRUTH, *files, replicates=200, names=list(runs))
    expected = [np.mean([evaluate(TRUTH, x).ap for x in paths]) for paths in files]
    assert comparison.ap.value == pytest.approx(expected[1] - expected[0], abs=1e-12)
    assert comparison.words[1].startswith("Small: better: +")
    assert comparison.words[-1].endswith("the chance of a training (3 and 3 seeds).")
    # from the folder: the same
    folders = compare(TRUTH, tmp_path / "plain", tmp_path / "better", replicates=200)
    assert folders.ap == comparison.ap
    run = comparison.candidate_run
    assert run.std["all"]["AP"] == pytest.approx(
        np.std([evaluate(TRUTH, x).ap for x in files[1]], ddof=1)
    )


def test_what_is_not_there_is_not_available():
    bins = "none:0-4,small:4-32^2,rest:32^2-"
    comparison = compare(TRUTH, BASELINE, CANDIDATE, bins, replicates=50, iou_thrs=0.5)
    none = comparison.by_size["none"].ap
    assert all(map(math.isnan, dataclasses.astuple(none)))
    assert math.isnan(comparison.ap75.value)
    assert "None: nothing to find." in comparison.words
    data = json.loads(comparison.to_json())
    assert data["differences"]["none"]["AP"]["p"] is None
    (row,) = (line for line in comparison.table().splitlines() if line.startswith("| none"))
    assert row.count(" n/a ") == 3


def test_many_sizes_are_not_many_chances():
    # an interval that leaves out 0 is no proof where six were looked at
    other = detections(TRUTH, {**PLAIN, "medium": 0.76}, seed=11)
    comparison = compare(TRUTH, BASELINE, other, "coco-fine", replicates=400)
    chance = [x for x in comparison.words if "by chance too often" in x]
    x = comparison.by_size["medium-large"].ap
    assert 0.01 < x.p < 0.05  # 5 sizes have objects
    assert x.low > 0
    assert len(chance) == 1
    assert chance[0].startswith("Medium-large: perhaps better, not shown: +")
    assert chance[0].endswith(f"adjusted p = {5 * x.p:.3f}).")


@pytest.mark.parametrize("images", [4, 5, 20])
def test_few_images_say_nothing_about_others(images):
    truth = {**TRUTH, "annotations": TRUTH["annotations"][: 6 * images]}
    found = [x for x in CANDIDATE if x["image_id"] <= images]
    comparison = compare(truth, [], found, replicates=50, per_class=True)
    assert comparison.ap.value > 0.1
    assert math.isnan(comparison.ap.low) == math.isnan(comparison.ap.p) == (images == 4)
    few = " (only 24 objects)" if images == 4 else ""  # 30 are not called few
    assert comparison.words[0].startswith(f"All sizes{few}: ")
    assert comparison.num_images["all"] == images
    assert ("no verdict, as only 5 images" in comparison.words[0]) == (images == 5)
    assert ("All sizes: better: " in comparison.words[0]) == (images == 20)
    too_few = comparison.words[0].endswith("AP; too few images with objects for an interval.")
    assert too_few == (images == 4)
    # of a class, its own images count
    for k, name in enumerate(("cat", "dog"), 1):
        of_class = {x["image_id"] for x in truth["annotations"] if x["category_id"] == k}
        assert math.isnan(comparison.per_class[name]["all"].low) == (len(of_class) < 5)


def test_few_replicates_are_named():
    words = compare(TRUTH, BASELINE, CANDIDATE, replicates=60).words
    assert any(x.startswith("60 resamples are too few") for x in words)
    words = compare(TRUTH, BASELINE, CANDIDATE, replicates=200).words
    assert not any("too few" in x for x in words)


def test_to_pandas_and_json(comparison, tmp_path):
    pandas = pytest.importorskip("pandas")
    table = comparison.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == 4 * 4 + 2 * 4  # sizes x figures, classes x sizes
    row = table[(table["class"] == "all") & (table["size"] == "small") & (table.figure == "AP")]
    assert row.value.item() == comparison.by_size["small"].ap.value
    text = comparison.to_json()
    assert comparison.to_json(tmp_path / "c.json") is None
    assert (tmp_path / "c.json").read_text() == text
    assert json.loads(text)["differences"]["small"]["AP"]["p"] == comparison.by_size["small"].ap.p


def test_plot(comparison):
    figure = comparison.plot()
    assert any("AP" in axes.get_xlabel() for axes in figure.axes)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"replicates": 39}, "whole number from 40 on for a 95 % interval; 1000 .*, got 39"),
        ({"replicates": 199, "level": 0.99}, "from 200 on for a 99 % interval; .*, got 199"),
        ({"replicates": 1e3}, "replicates must be a whole number from 40 on .* got 1000.0"),
        ({"seed": -1}, "seed must be a whole number from 0 on, got -1"),
        ({"level": 95}, "level must be between 0 and 1, such as 0.95, got 95"),
        ({"names": ("a", "a")}, "two different names"),
        ({"bins": "a:5-3"}, "low < high"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        compare(TRUTH, BASELINE, CANDIDATE, **kwargs)


def test_copies_are_no_seeds():
    with pytest.raises(ValueError, match="candidate, seed 2 has the same .* as candidate, seed 0"):
        compare(TRUTH, BASELINE, [CANDIDATE, BASELINE, CANDIDATE], replicates=40)
    compare(TRUTH, BASELINE, BASELINE, replicates=40)  # two runs may be the same
    compare(TRUTH, [BASELINE, []], [CANDIDATE, []], replicates=40)  # nothing found, twice


def test_classes_of_few_objects_are_named():
    # large: 2 dogs among many cats
    truth = json.loads(json.dumps(TRUTH))
    large = [x for x in truth["annotations"] if x["area"] > 96**2]
    for n, x in enumerate(large):
        x["category_id"] = 2 if n < 2 else 1
    words = compare(truth, BASELINE, CANDIDATE, replicates=200).words
    assert words[3].startswith("Large: ")
    assert words[3].endswith(
        "1 of the 2 classes with such objects have fewer than 10 of them, and each counts as much "
        "as any other."
    )
    assert "fewer" not in words[1]


def test_sizes_that_nobody_finds_say_nothing():
    found = [[x for x in y if x["bbox"][2] > 50] for y in (BASELINE, CANDIDATE)]
    words = compare(TRUTH, *found, replicates=40).words
    assert words[1] == "Small: neither run finds any."
    assert words[3].startswith("Large: ")


def test_an_interval_beside_0_does_not_read_as_0():
    def shown(low, high):
        return limits(Difference(0, low, high, 0.04, 0.01))

    assert shown(-0.0123, -0.0004) == "-1.2 to -0.04"
    assert shown(0.00041, 0.01) == "+0.04 to +1.0"
    assert shown(-0.00004, 0) == "0.0 to 0.0"
    assert signed(-0.0004) == "0.0"


def test_level():
    wide = compare(TRUTH, BASELINE, CANDIDATE, replicates=400, level=0.95)
    narrow = compare(TRUTH, BASELINE, CANDIDATE, replicates=400, level=0.5)
    for size, row in rows(wide).items():
        x, y = row.ap, rows(narrow)[size].ap
        assert x.low < y.low < y.value < y.high < x.high
        assert x.p == y.p
    assert "(50 % interval" in narrow.words[0]
    # the level is the limit of p, too
    other = detections(TRUTH, PLAIN, seed=8)
    p = compare(TRUTH, BASELINE, other, replicates=400, level=0.5).ap.p
    for level in (0.5, 0.95):
        words = compare(TRUTH, BASELINE, other, replicates=400, level=level).words
        assert ("no difference shown" in words[0]) == (p > 1 - level)


def test_images_that_one_run_lacks():
    half = [x for x in CANDIDATE if x["image_id"] > 30]
    comparison = compare(TRUTH, BASELINE, half, replicates=40)
    assert comparison.one_sided == (30, 0)
    line = "On 30 of 60 images with objects only baseline has detections: are both the results of "
    assert any(x.startswith(line) for x in comparison.words)
    some = [x for x in CANDIDATE if x["image_id"] > 5]
    assert not any(
        "only baseline" in x for x in compare(TRUTH, BASELINE, some, replicates=40).words
    )


def test_crowds_are_no_objects():
    truth = json.loads(json.dumps(TRUTH))
    for x in truth["annotations"]:
        x["iscrowd"] = int(x["image_id"] > 10)
    result = evaluate(truth, BASELINE)
    assert (result.num_objects, result.conditions.num_crowds) == (60, 300)
    assert sum(x.num_objects for x in result.per_class.values()) == 60
    comparison = compare(truth, BASELINE, CANDIDATE, replicates=40)
    assert comparison.num_images == {"all": 10, "small": 10, "medium": 10, "large": 10}


def test_seeds_that_do_not_vary():
    # two seeds whose figures are equal, found on other boxes: no spread, no interval
    found = [[{**x, "score": x["score"] / n} for x in CANDIDATE] for n in (1, 2)]
    empty = [[{**CANDIDATE[0], "bbox": [470, 470, n, 1]}] for n in (1, 2)]
    comparison = compare(TRUTH, empty, empty, replicates=40)
    assert comparison.ap.p == 1
    assert "too few" not in " ".join(comparison.words)
    assert compare(TRUTH, BASELINE, found, replicates=40).heading.endswith("and the seeds")


def test_bad_results():
    with pytest.raises(ValueError, match=r"detections\[0\] with image_id 999"):
        compare(TRUTH, BASELINE, [{**CANDIDATE[0], "image_id": 999}])
    with pytest.raises(FileNotFoundError, match=r"'none.json' do not exist"):
        compare(TRUTH, BASELINE, "none.json")
