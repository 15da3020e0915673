"""Reading: the fast way and the careful way give the same columns, and odd files are read."""

import json

import numpy as np
import pytest

from mmattn.evaluation import evaluate, reading
from mmattn.evaluation.data import load_detections, load_ground_truth
from mmattn.evaluation.files import write_bytes
from mmattn.evaluation.reading import RawDetections, read_detections, read_ground_truth

TRUTH = {
    "images": [
        {"id": 7, "height": 50, "width": 60, "file_name": "b.jpg", "license": 3},
        {"id": 3, "height": 40, "width": 30},
    ],
    "categories": [{"id": 5, "name": "cat", "supercategory": "x"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 2, 8.5, 4], "area": 30},
        {"id": 2, "image_id": 3, "category_id": 5, "bbox": [0, 0, 5, 5], "area": 20, "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 5, "bbox": [9, 9, 5, 5], "area": 25, "iscrowd": 0},
    ],
}
FOUND = [
    {"image_id": 7, "category_id": 2, "bbox": [1, 2, 8, 4], "score": 0.5, "area": 1, "id": 9},
    {"image_id": 3, "category_id": 5, "bbox": [0, 0, 5, 5], "score": 1},
    {"image_id": 7, "category_id": 2, "bbox": [1, 2, 8, 5], "score": 0.75},
    {"image_id": 7, "category_id": 5, "bbox": [1, 2, 8, 6], "score": 0.5},
]


def test_columns():
    truth = load_ground_truth(TRUTH)
    assert truth.image_ids == [3, 7]
    assert truth.file_names == [None, "b.jpg"]
    assert truth.class_names == ["cat", "dog"]
    np.testing.assert_array_equal(truth.image_sizes, [[40, 30], [50, 60]])
    np.testing.assert_array_equal(truth.image, [0, 1, 1])
    np.testing.assert_array_equal(truth.category, [0, 1, 0])
    np.testing.assert_array_equal(truth.crowd, [True, False, False])
    np.testing.assert_array_equal(truth.size, [20, 30, 25])
    np.testing.assert_array_equal(truth.starts, [0, 1, 3])
    assert truth.ids == [2, 1, 3]
    found = load_detections(FOUND, truth)
    np.testing.assert_array_equal(found.image, [0, 1, 1, 1])
    np.testing.assert_array_equal(found.scores, [1, 0.75, 0.5, 0.5])
    # equal scores stay in the file's order; the file's 'area' is not read
    np.testing.assert_array_equal(found.size, [25, 40, 32, 48])
    np.testing.assert_array_equal(found.starts, [0, 1, 4])


def test_the_careful_way_gives_the_same(monkeypatch, tmp_path):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(FOUND))
    fast = [read_ground_truth(TRUTH, "bbox"), read_detections(path, "bbox")]

    def refuse(*_):
        raise reading.msgspec.ValidationError

    monkeypatch.setattr(reading, "_decode", refuse)
    careful = [read_ground_truth(TRUTH, "bbox"), read_detections(path, "bbox")]
    for key in ("images", "categories", "annotations"):
        assert getattr(fast[0], key) == getattr(careful[0], key)
    for key in ("image_ids", "category_ids", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(fast[1], key), getattr(careful[1], key))


def test_numbers_as_tables_write_them():
    # pandas and numpy: ids as floats, numpy's own numbers
    odd = [
        {**x, "image_id": float(x["image_id"]), "bbox": np.array(x["bbox"], np.float32).tolist()}
        for x in FOUND
    ]
    numpy_found = [{**x, "image_id": np.int64(x["image_id"])} for x in FOUND]
    expected = evaluate(TRUTH, FOUND).to_dict()
    assert evaluate(TRUTH, odd).to_dict() == expected
    assert evaluate(TRUTH, numpy_found).to_dict() == expected


def test_columns_are_taken_as_they_are():
    columns = RawDetections(
        name="mine",
        image_ids=np.array([x["image_id"] for x in FOUND]),
        category_ids=np.array([x["category_id"] for x in FOUND]),
        scores=np.array([x["score"] for x in FOUND], float),
        boxes=np.array([x["bbox"] for x in FOUND], float),
        masks=None,
    )
    assert evaluate(TRUTH, columns).to_dict() == evaluate(TRUTH, FOUND).to_dict()


def test_ids_of_more_than_64_bits(tmp_path):
    # hashes as ids
    big = 2**70
    truth = json.loads(json.dumps(TRUTH))
    found = json.loads(json.dumps(FOUND))
    for x in [*truth["images"], *truth["annotations"], *found]:
        key = "image_id" if "image_id" in x else "id"
        x[key] += big
    result = evaluate(truth, found)
    assert result.ap == evaluate(TRUTH, FOUND).ap
    (tmp_path / "found.json").write_text(json.dumps(found))
    assert evaluate(truth, tmp_path / "found.json").ap == result.ap


@pytest.mark.parametrize(
    ("key", "value", "note"),
    [
        ("images", [TRUTH["images"][0]], "1 image repeated the id of another: left out."),
        (
            "annotations",
            [{**TRUTH["annotations"][0], "id": 9, "image_id": 99}],
            "1 annotation of images or categories that the ground truth does not list: left out.",
        ),
        (
            "annotations",
            [{**TRUTH["annotations"][0], "id": 9, "category_id": 99}] * 2,
            "2 annotations of images or categories that the ground truth does not list: left out.",
        ),
    ],
)
def test_notes(key, value, note):
    truth = {**TRUTH, key: TRUTH[key] + value}
    result = evaluate(truth, FOUND)
    assert note in result.conditions.notes
    assert result.ap == evaluate(TRUTH, FOUND).ap


@pytest.mark.parametrize(
    ("truth", "match"),
    [
        ({**TRUTH, "images": 3}, "has no 'images'"),
        ({**TRUTH, "annotations": 3}, "'annotations' must be a list, got int"),
        ({**TRUTH, "categories": [{"id": 5}, {"id": 5, "name": "x"}]}, "id 5 comes twice"),
        ({**TRUTH, "images": [{"id": 3, "height": "x"}]}, r"images\[0\]: 'height' must be px"),
        ({**TRUTH, "images": [{"id": None}]}, r"images\[0\]: 'id' must be a whole number"),
    ],
)
def test_bad_ground_truths(truth, match):
    with pytest.raises(ValueError, match=match):
        load_ground_truth(truth)


def test_relative_sizes_need_image_sizes():
    truth = {**TRUTH, "images": [{"id": 7, "height": 50, "width": 60}, {"id": 3}]}
    with pytest.raises(ValueError, match="1 of 2 images have none, the first is 3"):
        load_ground_truth(truth, size_by="sqrt-relative")


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "a.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [x.name for x in path.parent.iterdir()] == ["a.bin"]
    with pytest.raises(OSError, match="Not a directory|exists"):
        write_bytes(path / "below", b"three")
    assert path.read_bytes() == b"two"
