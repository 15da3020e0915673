"""Detections with and without the gates: hand-made pairs, a plain loop, and what is drawn where."""

import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from mmattn.evaluation.data import load_ground_truth
from mmattn.evaluation.table import render
from mmattn.visualization import style
from mmattn.visualization.boxes import STYLES
from mmattn.visualization.collected import Collected, Detections
from mmattn.visualization.detections import (
    Objects,
    compare_detections,
    draw_detections,
    summarize,
    summary_table,
)
from mmattn.visualization.geometry import Placement

CLASSES = ("cat", "dog")
A, B, FAR = (0, 0, 100, 100), (0, 0, 100, 80), (200, 200, 300, 300)  # A and B: IoU 0.8


def detections(*rows, classes=CLASSES):
    """From (class, box, score)."""
    labels, boxes, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        np.array(boxes, float).reshape(-1, 4),
        np.array(scores, float),
        np.array(labels, int),
        classes,
    )


def collected(with_, without=None, size=(100, 100), name="street"):
    image = np.full((*size, 3), 128, np.uint8)
    return Collected(name, image, Placement(size), (), with_, without)


# --- matching --------------------------------------------------------------------------------


def test_the_same_box_is_kept_with_its_change_of_score():
    found = compare_detections(detections((0, A, 0.9)), detections((0, B, 0.6)))
    assert found.kept.tolist() == [[0, 0]]
    assert found.iou == pytest.approx([0.8])
    assert found.change == pytest.approx([0.3])
    assert not len(found.gained)
    assert not len(found.lost)


@pytest.mark.parametrize("other", [(1, A, 0.6), (0, FAR, 0.6)], ids=["class", "place"])
def test_another_class_or_place_is_another_detection(other):
    found = compare_detections(detections((0, A, 0.9)), detections(other))
    assert (found.kept.tolist(), found.gained.tolist(), found.lost.tolist()) == ([], [0], [0])
    assert np.isnan(found.gained_from).all()
    assert np.isnan(found.lost_to).all()


@pytest.mark.parametrize(("height", "same"), [(50, True), (49, False)])
def test_iou_of_exactly_the_threshold_is_enough(height, same):
    other = detections((0, (0, 0, 100, height), 0.9))
    assert len(compare_detections(detections((0, A, 0.9)), other).kept) == same


def test_the_highest_score_chooses_first_and_takes_the_closest():
    x, y = (0, 0, 100, 60), (0, 0, 100, 90)
    # the second row has the higher score: it takes y, which is the first one's only choice
    with_ = detections((0, (0, 15, 100, 90), 0.5), (0, A, 0.9))
    found = compare_detections(with_, detections((0, x, 0.8), (0, y, 0.7)), iou=0.55)
    assert found.with_.scores.tolist() == [0.9, 0.5]
    assert found.kept.tolist() == [[0, 1]]
    assert found.without.boxes[found.kept[0, 1]].tolist() == list(y)
    assert found.with_.boxes[found.gained].tolist() == [[0, 15, 100, 90]]
    assert found.without.boxes[found.lost].tolist() == [list(x)]


def test_of_equals_each_has_one_partner():
    found = compare_detections(
        detections(*3 * [(0, A, 0.5)]), detections((0, A, 0.5), (0, A, 0.5), (1, A, 0.5))
    )
    assert len(found.kept) == 2
    assert sorted(found.kept[:, 1]) == [0, 1]
    assert len(found.gained) == 1
    assert found.lost.tolist() == [2]


def test_what_is_only_too_low_on_the_other_side_has_its_score_there():
    with_ = detections((0, A, 0.5), (1, FAR, 0.1))
    without = detections((0, B, 0.2), (1, FAR, 0.3))
    found = compare_detections(with_, without, score=0.3)
    assert found.gained.tolist() == [0]
    assert found.gained_from == pytest.approx([0.2])
    assert found.without.scores[found.lost] == pytest.approx([0.3])  # the score itself counts
    assert found.lost_to == pytest.approx([0.1])


def test_a_partner_that_is_taken_is_no_score_on_the_other_side():
    found = compare_detections(detections((0, A, 0.9), (0, B, 0.8)), detections((0, A, 0.7)))
    assert found.gained.tolist() == [1]
    assert np.isnan(found.gained_from).all()


def iou(a, b):
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    both = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return shared / (both - shared)


def test_pairs_are_those_of_a_plain_loop():
    random = np.random.default_rng(0)

    def many(n):
        corner = random.uniform(0, 60, (n, 2))
        boxes = np.concatenate([corner, corner + random.uniform(20, 60, (n, 2))], 1)
        scores = random.uniform(0.1, 1, n)
        return detections(*zip(random.integers(0, 2, n), boxes, scores, strict=True))

    with_, without = many(40), many(50)
    pairs, free = [], [k for k in range(50) if without.scores[k] >= 0.3]
    for k in np.argsort(-with_.scores):
        if with_.scores[k] < 0.3:
            continue
        near = {
            j: iou(with_.boxes[k], without.boxes[j])
            for j in free
            if with_.labels[k] == without.labels[j]
        }
        best = max(near, key=near.get, default=None)
        if best is not None and near[best] >= 0.4:
            pairs.append((with_.scores[k], without.scores[best], near[best]))
            free.remove(best)
    found = compare_detections(with_, without, iou=0.4)
    first, second = found.with_.scores[found.kept[:, 0]], found.without.scores[found.kept[:, 1]]
    assert len(pairs) > 10
    np.testing.assert_allclose(np.stack([first, second, found.iou], 1), pairs)
    assert len(found.gained) == (with_.scores >= 0.3).sum() - len(pairs)
    assert sorted(found.without.scores[found.lost]) == sorted(without.scores[free])


# --- sizes -----------------------------------------------------------------------------------


def box(area, at=0):
    return (at, at, at + 32, at + area / 32)


def test_counts_by_the_areas_of_boxes_and_both_borders_belong():
    with_ = detections((0, box(1024), 0.9), (0, box(1025, 200), 0.9), (0, box(1023, 400), 0.9))
    without = detections((0, box(1024), 0.9), (1, (0, 0, 96, 96), 0.9))
    counts = compare_detections(with_, without).counts
    assert list(counts) == ["all", "small", "medium", "large"]
    assert counts["all"] == {"with": 3, "without": 2, "kept": 1, "gained": 2, "lost": 1}
    assert counts["small"] == {"with": 2, "without": 1, "kept": 1, "gained": 1, "lost": 0}
    assert counts["medium"] == {"with": 2, "without": 2, "kept": 1, "gained": 1, "lost": 1}
    assert counts["large"] == {"with": 0, "without": 1, "kept": 0, "gained": 0, "lost": 1}


def test_a_kept_one_has_the_size_that_it_has_with_the_effect():
    counts = compare_detections(
        detections((0, box(1100), 0.9)), detections((0, box(900), 0.9))
    ).counts
    assert (counts["small"]["kept"], counts["medium"]["kept"]) == (0, 1)
    assert (counts["small"]["without"], counts["medium"]["without"]) == (1, 0)


def test_own_bins():
    found = compare_detections(detections((0, A, 0.9)), detections(), bins="tiny:0-16^2,rest:16^2-")
    assert {name: x["gained"] for name, x in found.counts.items()} == {
        "all": 1,
        "tiny": 0,
        "rest": 1,
    }


OBJECTS = Objects(
    np.array([A, FAR, (0, 200, 50, 250), (300, 0, 400, 100), (500, 500, 600, 600)], float),
    np.array([0, 1, 0, 1, 0]),
    CLASSES,
    areas=np.array([900, 5000, 2000, 9000, 10000]),
    crowd=np.array([0, 0, 0, 0, 1]),
)


def test_objects_found_by_whom_by_their_own_areas():
    with_ = detections((0, A, 0.9), (1, FAR, 0.8), (0, (500, 500, 600, 600), 0.7))
    without = detections((0, B, 0.9), (1, A, 0.9), (0, (0, 200, 50, 250), 0.4))
    found = compare_detections(with_, without, truth=OBJECTS).found
    assert found["all"] == {"both": 1, "only with": 1, "only without": 1, "neither": 1}
    assert found["small"] == {"both": 1, "only with": 0, "only without": 0, "neither": 0}
    assert found["medium"] == {"both": 0, "only with": 1, "only without": 1, "neither": 1}
    assert found["large"]["neither"] == 0  # the crowd counts as nothing


def test_one_detection_finds_one_object():
    twice = Objects(np.array([A, A], float), np.array([0, 0]), CLASSES)
    one = detections((0, A, 0.9))
    assert compare_detections(one, one, truth=twice).found["all"]["neither"] == 1


def test_annotations_may_be_detections():
    one = detections((0, A, 0.1))
    found = compare_detections(detections((0, B, 0.9)), detections(), truth=one)
    assert found.found["large"]["only with"] == 1


def test_objects_of_a_ground_truth():
    truth = load_ground_truth(
        {
            "images": [
                {"id": 1, "file_name": "a.png", "width": 300, "height": 300},
                {"id": 7, "file_name": "b.png", "width": 300, "height": 300},
            ],
            "categories": [{"id": 3, "name": "bird"}, {"id": 5, "name": "dog"}],
            "annotations": [
                dict(id=1, image_id=7, category_id=5, bbox=[5, 6, 10, 20], area=99, iscrowd=0),
                dict(id=2, image_id=7, category_id=3, bbox=[0, 0, 10, 20], area=99, iscrowd=0),
                dict(id=3, image_id=1, category_id=5, bbox=[1, 1, 10, 20], area=99, iscrowd=1),
            ],
        }
    )
    found = Objects.of(truth, "b.png", CLASSES)
    assert found.boxes.tolist() == [[5, 6, 15, 26]]
    assert (found.labels.tolist(), found.areas.tolist()) == ([1], [99])
    assert Objects.of(truth, 1, CLASSES).crowd.tolist() == [True]
    with pytest.raises(ValueError, match=r"no image 'c\.png'.*a\.png"):
        Objects.of(truth, "c.png", CLASSES)


# --- many images -----------------------------------------------------------------------------


def differences(**options):
    with_ = detections((0, A, 0.9), (1, FAR, 0.8))
    return [
        compare_detections(with_, detections((0, A, 0.5)), **options),
        compare_detections(
            detections((0, box(900), 0.6)), detections((0, box(900), 0.7)), **options
        ),
    ]


def test_sums_over_images():
    rows = json.loads(json.dumps(summarize(differences(truth=OBJECTS))))
    assert [row["size"] for row in rows] == ["all", "small", "medium", "large"]
    everything, small, medium, large = rows
    assert (everything["with"], everything["without"], everything["gained"]) == (3, 2, 1)
    assert everything["score change"] == pytest.approx((0.4 - 0.1) / 2)
    assert small["score change"] == pytest.approx(-0.1)
    assert large["score change"] == pytest.approx(0.4)
    assert medium["score change"] is None
    assert (everything["objects"], everything["both"], everything["only with"]) == (8, 1, 1)
    assert (small["low"], small["high"], large["high"]) == (0, 1024, None)


def test_images_without_annotations_have_no_objects():
    rows = summarize([*differences(), *differences(truth=OBJECTS)])
    assert (rows[0]["images"], rows[0]["annotated"], rows[0]["objects"]) == (4, 2, 8)
    assert "objects" not in summarize(differences())[0]


def test_table():
    text = render(summary_table(summarize(differences())))
    assert "| large  | from 96^2    |" in text
    assert "n/a" in text
    assert "+0.150" in text
    assert "found by" not in text
    assert "found by neither" in render(summary_table(summarize(differences(truth=OBJECTS))))


def test_what_cannot_be_summed():
    with pytest.raises(ValueError, match="at least one"):
        summarize([])
    with pytest.raises(ValueError, match="same score"):
        summarize([*differences(), *differences(score=0.5)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": 1.5}, "score must"),
        ({"iou": 0}, "iou must"),
        ({"truth": Objects(np.array([A]), np.array([0]), ("cat",))}, "same classes"),
    ],
)
def test_bad_arguments(options, message):
    one = detections((0, A, 0.9))
    with pytest.raises(ValueError, match=message):
        compare_detections(one, one, **options)
    with pytest.raises(ValueError, match=message):
        draw_detections(collected(one), **options)


def test_objects_of_unequal_lengths():
    with pytest.raises(ValueError, match="2 boxes, got 1 labels"):
        Objects(np.array([A, B]), np.array([0]), CLASSES)


# --- pictures --------------------------------------------------------------------------------

KEPT, GAINED, LOST = (10, 10, 50, 50), (60, 10, 95, 60), (10, 60, 60, 95)


@pytest.fixture(scope="module")
def figure():
    with_ = detections((0, KEPT, 0.9), (1, GAINED, 0.8))
    without = detections((0, KEPT, 0.7), (0, LOST, 0.6), (1, GAINED, 0.25))
    return draw_detections(collected(with_, without))


@pytest.fixture(scope="module")
def pixels(figure):
    return np.asarray(Image.open(io.BytesIO(style.png(figure))).convert("RGB"))


def axes(figure, label):
    [found] = [x for x in figure.axes if x.get_label() == label]
    return found


def line(figure, pixels, side, start, end):
    """The pixels from one point of the image to another, on a panel."""
    ends = axes(figure, side).transData.transform([start, end]) * style.DPI / figure.dpi
    points = np.linspace(*ends, 200).round().astype(int)
    return pixels[pixels.shape[0] - 1 - points[:, 1], points[:, 0]].astype(int)


def share(colours, wanted):
    wanted = np.array([int(wanted[k : k + 2], 16) for k in (1, 3, 5)])
    return (abs(colours - wanted).max(1) < 60).mean()


def test_gained_and_lost_have_their_colour_and_line_where_their_box_is(figure, pixels):
    # the upper edge of the box, less its corners
    gained, lost = ((70, 10), (85, 10)), ((20, 95), (50, 95))
    blue, red = STYLES["gained"].colour, STYLES["lost"].colour
    assert share(line(figure, pixels, "with", *gained), blue) == 1
    assert share(line(figure, pixels, "without", *gained), blue) == 0
    assert share(line(figure, pixels, "with", *lost), red) == 0
    assert 0.4 < share(line(figure, pixels, "without", *lost), red) < 0.85  # dashed


def test_kept_ones_are_pale_on_both_sides(figure, pixels):
    for side in ("with", "without"):
        # a thin line lies in one row of pixels or the next
        rows = [np.roll(pixels, step, 0) for step in (-1, 0, 1)]
        colours = [line(figure, x, side, (20, 50), (40, 50)) for x in rows]
        assert max(x.min() for x in colours) > 180  # white, on an image of 128
        assert max(np.ptp(x, axis=1).max() for x in colours) < 5
        patches = {x.get_gid(): x for x in axes(figure, side).patches}
        only = patches["gained" if side == "with" else "lost"]
        assert patches["kept"].get_linewidth() < only.get_linewidth() / 2


def test_kept_ones_are_seen_on_a_bright_image():
    both = detections((0, KEPT, 0.9))
    image = collected(both, both)
    image.image[...] = 255
    found = draw_detections(image)
    bright = np.asarray(Image.open(io.BytesIO(style.png(found))).convert("RGB"))
    rows = [line(found, np.roll(bright, n, 0), "with", (20, 50), (40, 50)) for n in range(-3, 4)]
    assert min(x.max() for x in rows) < 125


def test_kept_ones_without_a_label_are_said():
    boxes = [(0, (k, k, k + 20, k + 20), 0.9) for k in range(20, 60)]
    note = "not all kept boxes have room for a label"
    for count, expected in ((1, 0), (40, 2)):
        both = detections(*boxes[:count])
        found = draw_detections(collected(both, both), iou=0.99)
        assert [x.get_text() for x in found.texts].count(note) == expected
        drawn = len(texts(found, "with"))
        assert drawn < count if expected else drawn == count


def texts(figure, label):
    return [x.get_text() for x in axes(figure, label).texts]


def test_labels_and_titles(figure):
    assert set(texts(figure, "with")) == {"cat 0.90", "dog 0.80 (0.25 without)"}
    assert set(texts(figure, "without")) == {"cat 0.70", "cat 0.60 (none with)"}
    titles = [x.get_text() for x in figure.texts]
    assert "street: detections with a score of 0.3 or more" in titles[0]
    assert titles[1:3] == ["with attention", "2 detections, 1 only here"]
    assert titles[3:] == ["without (gates neutral)", "2 detections, 1 only here"]


def test_bars_are_the_counts(figure):
    chart = axes(figure, "detections by size")
    heights = {x.get_label(): [int(bar.get_height()) for bar in x] for x in chart.containers}
    assert heights == {
        "with": [0, 2, 0],
        "without": [0, 2, 0],
        "gained": [0, 1, 0],
        "lost": [0, 1, 0],
    }
    assert [x.get_text().split("\n")[0] for x in chart.get_xticklabels()] == [
        "small",
        "medium",
        "large",
    ]


def test_scores_on_both_sides_are_points(figure):
    points = np.ma.filled(
        np.ma.concatenate([x.get_offsets() for x in axes(figure, "scores").collections]), np.nan
    )
    points = points[~np.isnan(points).any(1)]
    assert sorted(map(tuple, points.round(6))) == [(0.25, 0.8), (0.7, 0.9)]


def test_a_score_below_the_limit_is_never_rounded_up_to_it():
    found = draw_detections(collected(detections((0, KEPT, 0.5)), detections((0, KEPT, 0.29996))))
    assert texts(found, "with") == ["cat 0.50 (0.29996 without)"]


def test_small_ones_that_differ_are_enlarged():
    tiny = (400, 300, 412, 310)
    found = draw_detections(
        collected(detections((0, tiny, 0.9)), detections(), size=(480, 640)),
    )
    [name] = {x.get_label() for x in found.axes if x.get_label().startswith("enlarged")}
    left, right = [x for x in found.axes if x.get_label() == name]
    for view in (left, right):
        x0, x1 = view.get_xlim()
        y1, y0 = view.get_ylim()
        assert x0 < 400 < 412 < x1
        assert y0 < 300 < 310 < y1
        width = view.get_position().width * found.get_figwidth() * style.DPI
        assert width / (x1 - x0) > 3 * 690 / 640  # three times as large as in the panel
    assert [x.get_text() for x in left.texts] == ["A", "cat 0.90 (none without)"]
    assert "cat 0.90" not in texts(found, "with")  # said once, where it is large
    assert {x.get_gid() for x in left.patches} >= {"gained"}
    assert "gained" not in {x.get_gid() for x in right.patches}


def test_missed_objects_are_shown_in_the_panel_that_misses_them():
    truth = Objects(np.array([KEPT, GAINED, LOST]), np.array([0, 1, 0]), CLASSES)
    found = draw_detections(
        collected(detections((0, KEPT, 0.9), (1, GAINED, 0.8)), detections((0, KEPT, 0.9))),
        truth=truth,
    )
    assert texts(found, "with").count("missed: cat") == 1
    assert sorted(x for x in texts(found, "without") if "missed" in x) == [
        "missed: cat",
        "missed: dog",
    ]
    assert "finds 2 of 3 objects" in found.texts[2].get_text()
    assert "finds 1 of 3 objects" in found.texts[4].get_text()
    chart = axes(found, "objects by size")
    heights = {x.get_label(): [int(bar.get_height()) for bar in x] for x in chart.containers}
    assert heights["neither"] == [0, 1, 0]
    assert heights["only with"] == [0, 1, 0]


def test_without_neutral_detections_there_is_one_panel():
    found = draw_detections(collected(detections((0, KEPT, 0.9), (0, LOST, 0.2))))
    assert texts(found, "with") == ["cat 0.90"]
    assert "without" not in {x.get_label() for x in found.axes}
    assert [x.get_text() for x in found.texts[1:]] == ["detections", "1 detection"]


def test_one_panel_with_annotations():
    truth = Objects(np.array([KEPT, LOST]), np.array([0, 1]), CLASSES)
    found = draw_detections(collected(detections((0, KEPT, 0.9))), truth=truth)
    assert set(texts(found, "with")) == {"cat 0.90", "missed: dog"}
    chart = axes(found, "objects by size")
    heights = {x.get_label(): [int(bar.get_height()) for bar in x] for x in chart.containers}
    assert heights == {"found": [0, 1, 0], "missed": [0, 1, 0]}


@pytest.mark.parametrize(
    ("own", "message"),
    [(None, "this model gives no detections"), (detections((0, A, 0.2)), "no detection with")],
)
def test_no_detections_are_said(own, message):
    [text] = texts(draw_detections(collected(own, own)), "with")
    assert message in text


@pytest.mark.parametrize(("bins", "both"), [("coco", True), ("coco", False), ("coco-fine", True)])
def test_names_of_sizes_do_not_overlap(bins, both):
    own = detections((0, KEPT, 0.9))
    truth = Objects(np.array([KEPT]), np.array([0]), CLASSES)
    found = draw_detections(collected(own, own if both else None), truth=truth, bins=bins)
    found.canvas.draw()
    for chart in (axes(found, "detections by size"), axes(found, "objects by size")):
        labels = chart.get_xticklabels()
        boxes = [x.get_window_extent() for x in labels]
        if not labels[0].get_rotation():
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
        assert all(x.y0 >= 0 for x in boxes)
    if both:
        legend = axes(found, "scores").get_legend().get_window_extent()
        assert legend.x1 <= found.bbox.x1


def test_odd_names_are_written_as_they_are():
    own = detections((0, KEPT, 0.9), classes=("$x_1$\n" + 40 * "y",))
    found = draw_detections(collected(own, name="a_$b$" + 80 * "c"))
    [label] = axes(found, "with").texts
    assert label.get_text().startswith("$x_1$ yyy")
    assert len(label.get_text()) < 40
    assert not label.get_parse_math()
    style.png(found, dpi=30)


def test_boxes_at_the_edge_and_without_extent_are_seen():
    own = detections((0, (-20, -20, 130, 130), 0.9), (1, (50, 50, 50, 50), 0.8))
    panel = axes(draw_detections(collected(own)), "with")
    around, point = (x for x in panel.patches if x.get_gid() == "found")
    assert 0 < around.get_x() < 1
    assert 99 < around.get_x() + around.get_width() < 100
    assert point.get_width() == pytest.approx(7 / 6.9)
