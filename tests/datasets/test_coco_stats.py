"""Objects are counted as the evaluation counts them."""

import csv
import json
from xml.etree import ElementTree

import pytest
from PIL import Image

from mmattn.datasets.stats import stats
from tests.datasets.made import annotation, split, tool

coco_py = tool("coco")


@pytest.fixture
def root(tmp_path):
    annotations = [
        annotation(1, 1, (0, 0, 10, 10)),  # tiny
        annotation(2, 1, (0, 0, 32, 32)),  # 1024: small and medium, as in COCO
        annotation(3, 1, (0, 0, 50, 50), 3, area=200.5),  # the area counts, not the box: tiny
        annotation(4, 2, (0, 0, 200, 200), 3),  # huge
        annotation(5, 2, (0, 0, 100, 100), 3, iscrowd=1),  # a crowd is none
    ]
    images = [(i, f"{i}.jpg", 640, 480) for i in (1, 2, 3)]
    split(tmp_path / "coco", "val2017", images, annotations, pictures=False)
    return tmp_path / "coco"


def test_numbers(root):
    found = stats(root / "annotations" / "instances_val2017.json")
    assert (found.images, found.empty_images, found.objects, found.crowds) == (3, 1, 4, 1)
    assert {x.name: (x.objects, x.images) for x in found.bins} == {
        "small": (3, 1),
        "medium": (1, 1),
        "large": (1, 1),
    }
    assert [x.objects for x in found.fine_bins] == [2, 1, 1, 0, 0, 1]
    assert [x.share for x in found.bins] == [0.75, 0.25, 0.25]
    assert found.per_image == {"mean": 4 / 3, "median": 1.0, "max": 3}
    assert [(x.name, x.objects, x.images, list(x.by_size.values())) for x in found.classes] == [
        ("cat", 2, 1, [2, 1, 0]),
        ("dog", 2, 2, [1, 0, 1]),
    ]


def test_the_evaluation_counts_the_same(root):
    from mmattn.evaluation import evaluate

    path = root / "annotations" / "instances_val2017.json"
    result = evaluate(path, [dict(image_id=1, category_id=1, score=0.5, bbox=[0, 0, 9, 9])])
    found = {x.name: x.objects for x in stats(path).bins}
    assert {name: result.by_size[name].num_objects for name in found} == found


def test_tool(root, tmp_path, capsys):
    files = [tmp_path / f"s.{suffix}" for suffix in ("json", "csv", "png", "svg")]
    assert coco_py.main(["stats", str(root), "--out", *map(str, files), "--classes", "1"]) == 0
    text = capsys.readouterr().out
    assert "val2017: 3 images (1 without objects), 4 objects and 1 crowds" in text
    assert "| medium | 1024 to 9216 |       1 |    25.0 |      1 |" in text
    assert "1 more classes are in --out" in text
    (one,) = json.loads(files[0].read_text())["splits"]
    assert [x["objects"] for x in one["bins"]] == [3, 1, 1]
    assert one["bins"][2]["high"] is None
    rows = list(csv.DictReader(files[1].open()))
    assert {(x["class"], x["bin"]): x["objects"] for x in rows}["dog", "large"] == "1"
    with Image.open(files[2]) as picture:
        assert picture.width == 1800
    texts = "".join(ElementTree.parse(files[3]).getroot().itertext())
    assert "2026" not in texts  # no date: the same picture, the same bytes
    assert files[3].stat().st_size > 5000


def test_own_bins(root, capsys):
    assert coco_py.main(["stats", str(root), "--bins", "dot:0-16^2,rest:16^2-"]) == 0
    assert "| dot  |    0 to 256 |       2 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["{root}", "--bins", "dot"], "bins: cannot read 'dot'"),
        (["{root}", "--out", "sizes.pdf"], "ends in .json, .csv, .png, .svg, got sizes.pdf"),
        (["--ann", "{root}/nothing.json"], "nothing.json' does not exist"),
        (["{root}", "--splits", "train2017"], "instances_train2017.json' does not exist"),
    ],
)
def test_wrong_arguments(root, capsys, argv, sentence):
    assert coco_py.main(["stats", *[a.format(root=root) for a in argv]]) == 2
    assert sentence in capsys.readouterr().err


def test_no_objects(tmp_path, capsys):
    split(tmp_path / "coco", "val2017", [(1, "1.jpg", 40, 30)], [], pictures=False)
    assert coco_py.main(["stats", str(tmp_path / "coco")]) == 0
    assert "n/a" in capsys.readouterr().out
    picture = str(tmp_path / "s.png")
    assert coco_py.main(["stats", str(tmp_path / "coco"), "--out", picture]) == 2
    assert "there are no objects to draw" in capsys.readouterr().err
