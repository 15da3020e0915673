"""Size bins: every way to write them, and what is refused."""

import math

import pytest

from mmattn.evaluation import SizeBin, parse_bins
from mmattn.evaluation.bins import COCO_BINS, COCO_FINE_BINS, RELATIVE_BINS


def test_bins():
    assert [(x.low, x.high) for x in COCO_FINE_BINS[1:4]] == [
        (256, 1024),
        (1024, 4096),
        (4096, 9216),
    ]
    assert parse_bins("coco-fine") == COCO_FINE_BINS
    assert parse_bins(size_by="sqrt-relative") == RELATIVE_BINS
    assert parse_bins() == parse_bins("coco") == COCO_BINS
    assert [(x.low, x.high) for x in COCO_BINS] == [(0, 32**2), (32**2, 96**2), (96**2, 1e5**2)]
    expected = (SizeBin("tiny", 0.0, 256.0), SizeBin("rest", 1024.0, 1e10))
    for spec in (
        [("tiny", 0, 256), ("rest", 1024, None)],
        [["tiny", 0, 256], ["rest", 1024, math.inf]],
        {"tiny": (0, 256), "rest": [1024, None]},
        expected,
        "tiny:0-16^2,rest:1024-",
        " tiny: 0 - 256 , rest : 1.024e3-inf",
    ):
        assert parse_bins(spec) == expected


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ([], ValueError, "no bins"),
        ({}, ValueError, "no bins"),
        ("small", ValueError, "cannot read 'small'; expected 'coco'"),
        (3, TypeError, "got 3"),
        ([1, 2], TypeError, r"bins\[0\], got 1"),
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
        ("a:5-3", ValueError, "low < high, got low=5.0, high=3.0"),
        ("a:0-5,,", ValueError, "cannot read ''"),
        ("a:-5-3", ValueError, "cannot read 'a:-5-3'"),
        ("a:0-16**2", ValueError, "cannot read"),
        ("a:10-20,b:0-11", ValueError, r"'b' \(0 to 11\) and 'a' \(10 to 20\) overlap"),
        ([("a", 0, None), ("b", 5, 6)], ValueError, r"'a' \(0 to no limit\) and 'b'"),
    ],
)
def test_bad_bins(spec, error, match):
    with pytest.raises(error, match=match):
        parse_bins(spec)


@pytest.mark.parametrize("preset", ["coco", "coco-fine"])
def test_presets_in_px_do_not_fit_shares(preset):
    with pytest.raises(ValueError, match=f"'{preset}' are in px\\^2, but size_by 'sqrt-relative'"):
        parse_bins(preset, "sqrt-relative")
    with pytest.raises(ValueError, match="size_by must be one of area, bbox, sqrt-relative"):
        parse_bins(preset, "box")


@pytest.mark.parametrize("bins", ["a:0-16", "a:0-16^2,b:16^2-", [("a", 2, None)]])
def test_pixels_are_no_shares(bins):
    with pytest.raises(ValueError, match="'a' is .* measures shares of the image's side, 0 to 1"):
        parse_bins(bins, "sqrt-relative")
    parse_bins([("a", 0.5, 1)], "sqrt-relative")


def test_a_list_of_texts():
    # what --cfg-options size_bins=tiny:0-16^2,rest:16^2- gives
    assert parse_bins(["tiny:0-16^2", "rest:16^2-"]) == parse_bins("tiny:0-16^2,rest:16^2-")
    with pytest.raises(ValueError, match="overlap"):
        parse_bins(["tiny:0-16^2", "rest:10^2-"])
