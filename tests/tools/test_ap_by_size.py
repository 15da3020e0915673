"""tools/ap_by_size.py: what a user sees, with good and with bad input."""

import csv
import html
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmattn.evaluation import compare, evaluate

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/evaluation"))
from made_detectors import BASELINE, CANDIDATE, PLAIN, TRUTH, detections  # noqa: E402

SCRIPT = ROOT / "tools/ap_by_size.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("ap_by_size", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, content in {"gt": TRUTH, "baseline": BASELINE, "candidate": CANDIDATE}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    for seed in range(3):
        (folder / "seeds").mkdir(exist_ok=True)
        records = detections(TRUTH, PLAIN, seed=seed + 5)
        (folder / f"seeds/seed{seed}.bbox.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def run(tool, files, capsys, monkeypatch):
    """Runs the tool in the folder of the files; gives what it prints, or its error."""

    def run(*arguments):
        monkeypatch.chdir(files)
        try:
            tool.main([*map(str, arguments)])
        except SystemExit as error:
            code = error.code
        else:
            return capsys.readouterr().out
        assert code not in (0, None)
        return code if isinstance(code, str) else capsys.readouterr().err

    return run


def percent(value):
    return f"{100 * value:.1f}"


def test_one_result(run):
    text = run("gt.json", "baseline.json")
    result = evaluate(TRUTH, BASELINE)
    small = result.by_size["small"]
    cells = [percent(small[x]) for x in ("AP", "AP50", "AP75", "AR")]
    assert f"| small  | 0 to 1024    |     120 | {' | '.join(cells)} |" in text
    assert len(text.splitlines()) == 10


def test_a_comparison(run):
    text = run("gt.json", "plain=baseline.json", "candidate.json", "--replicates", 200)
    comparison = compare(TRUTH, BASELINE, CANDIDATE, replicates=200, names=("plain", "candidate"))
    assert comparison.table() in text
    assert text.index("candidate against plain:") < text.index("- Small: better: +")
    for line in comparison.words:
        assert f"- {line}" in text
    result = evaluate(TRUTH, CANDIDATE)
    assert f"{percent(result.ap)} (+{percent(comparison.ap.value)})" in text


def test_without_intervals(run):
    text = run("gt.json", "baseline.json", "candidate.json", "--replicates", 0)
    assert "In brackets: difference to baseline." in text
    assert "interval" not in text


def test_seeds(run):
    text = run("gt.json", "seeds", "candidate.json", "--replicates", 50)
    ap = [evaluate(TRUTH, detections(TRUTH, PLAIN, seed=seed + 5)).ap for seed in range(3)]
    assert f"{percent(np.mean(ap))} +- {percent(np.std(ap, ddof=1))}" in text
    assert "standard deviation over seeds (seeds 3, candidate 1)" in text


def test_options_reach_the_evaluation(run):
    options = {
        "--bins": "tiny:0-16^2,rest:16^2-",
        "--size-by": "bbox",
        "--max-dets": 2,
        "--iou": "0.5:0.7:0.1",
        "--classes": "dog",
    }
    text = run("gt.json", "baseline.json", *[x for item in options.items() for x in item])
    result = evaluate(
        TRUTH,
        BASELINE,
        [("tiny", 0, 256), ("rest", 256, None)],
        size_by="bbox",
        max_dets=2,
        iou_thrs=[0.5, 0.6, 0.7],
        classes=["dog"],
    )
    assert result.table() in text
    assert "2 detections of an image and class, 60 images, IoU 0.5, 0.6, 0.7" in text
    assert 0 < result.by_size["tiny"].num_objects < result.num_objects < 360


def test_per_class(run):
    text = run("gt.json", "baseline.json", "--per-class")
    dog = evaluate(TRUTH, BASELINE).per_class["dog"]
    assert f"| dog   | {percent(dog.ap)} ({dog.num_objects}) |" in text
    text = run("gt.json", "baseline.json", "candidate.json", "--per-class", "--replicates", 50)
    assert re.search(r"\| dog   \| \+\d+\.\d \([+-]\d+\.\d to \+\d+\.\d\) ", text)


def test_options_reach_every_output(run, files, tmp_path):
    out = [tmp_path / f"r{suffix}" for suffix in (".json", ".csv", ".html")]
    run(
        "gt.json", "seeds", "new=candidate.json", "--per-class", "--replicates", 100, "--seed", 3,
        "--level", 0.8, "--max-dets", 3, "--out", *out,
    )  # fmt: skip
    seeds = [detections(TRUTH, PLAIN, seed=seed + 5) for seed in range(3)]
    comparison = compare(
        TRUTH, seeds, CANDIDATE, replicates=100, seed=3, level=0.8, max_dets=3, per_class=True,
        names=("seeds", "new"),
    )  # fmt: skip
    data = json.loads(out[0].read_text())
    assert data["comparisons"] == [json.loads(comparison.to_json())]
    assert [x["name"] for x in data["runs"][0]["results"]] == [f"seeds/seed{n}" for n in range(3)]
    assert data["runs"][0]["std"]["small"]["AP"] == comparison.baseline_run.std["small"]["AP"]
    assert data["errors"]["new"]["max_dets"] == 3
    rows = list(csv.DictReader(out[1].read_text().splitlines()))
    large = [x for x in rows if (x["run"], x["class"], x["size"]) == ("seeds", "all", "large")]
    assert [float(x["std"]) for x in large] == list(comparison.baseline_run.std["large"].values())
    dog = [x for x in rows if (x["run"], x["class"], x["size"]) == ("seeds", "dog", "all")]
    assert float(dog[0]["std"]) == comparison.baseline_run.class_std["dog"]["all"]
    assert {(x["low_limit"], x["high_limit"], x["difference"]) for x in large} == {
        ("9216.0", "", "")
    }
    page = out[2].read_text()
    for words in comparison.words:
        assert html.escape(words, quote=True).replace("&#x27;", "&#39;") in page
    assert "80 % interval" in page
    assert str(files / "seeds/seed1.bbox.json") in page or "seeds/seed1.bbox.json" in page


def test_a_console_that_cannot_write_a_name(files, tmp_path):
    truth = json.loads(json.dumps(TRUTH))
    truth["categories"][0]["name"] = "猫"
    (files / "cats.json").write_text(json.dumps(truth))
    out = tmp_path / "x.md"
    done = subprocess.run(
        [sys.executable, SCRIPT, "cats.json", "baseline.json", "--per-class", "--out", out],
        cwd=files,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "| \\u732b" in done.stdout
    assert "| 猫" in out.read_text(encoding="utf-8")


def test_images_of_one_bin(run, tmp_path):
    for size in ("small", "large"):
        run(
            "gt.json", "baseline.json", "candidate.json", "--replicates", 0, "--num-images", 2,
            "--image-bin", size, "--pictures", tmp_path / size,
        )  # fmt: skip
    small, large = ((tmp_path / size / "image_01.jpg").read_bytes() for size in ("small", "large"))
    assert small != large


def test_files(run, files, tmp_path):
    out = [tmp_path / f"report{suffix}" for suffix in (".md", ".csv", ".json", ".html")]
    text = run(
        "gt.json", "plain=baseline.json", "candidate.json", "--per-class", "--replicates", 200,
        "--out", *out, "--pictures", tmp_path / "pictures", "--num-images", 4,
    )  # fmt: skip
    comparison = compare(TRUTH, BASELINE, CANDIDATE, replicates=200, per_class=True)
    for path in out:
        assert f"written to {path}" in text
    markdown, table, data, page = (path.read_text() for path in out)
    assert "- Small: better: +" in markdown

    rows = list(csv.DictReader(table.splitlines()))
    assert len(rows) == 2 * (4 * 4 + 2 * 4)  # runs x (sizes x figures + classes x sizes)
    key = {"run": "candidate", "class": "all", "size": "small", "figure": "AP"}
    (row,) = (x for x in rows if key.items() <= x.items())
    small = comparison.by_size["small"].ap
    for column in ("low", "high", "p"):
        assert float(row[column]) == getattr(small, column)
    assert float(row["difference"]) == small.value
    assert float(row["value"]) == evaluate(TRUTH, CANDIDATE).by_size["small"].ap
    assert (row["objects"], row["high_limit"], row["std"]) == ("120", "1024.0", "")
    key = {"run": "candidate", "class": "dog", "size": "large", "figure": "AP"}
    (row,) = (x for x in rows if key.items() <= x.items())
    assert float(row["p"]) == comparison.per_class["dog"]["large"].p

    data = json.loads(data)
    assert [x["name"] for x in data["runs"]] == ["plain", "candidate"]
    assert data["runs"][1]["results"][0]["AP"] == evaluate(TRUTH, CANDIDATE).ap
    assert data["comparisons"][0]["differences"]["small"]["AP"]["low"] == small.low

    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<svg") >= 4
    assert page.count("data:image/jpeg;base64,") >= 4
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == sorted(
        [
            *(f"image_{n:02d}.jpg" for n in range(1, 5)),
            *(
                f"{name}.{suffix}"
                for name in ("ap_by_size", "differences", "errors", "precision_recall")
                for suffix in ("png", "svg")
            ),
        ]
    )


def test_a_page_of_one_result(run, tmp_path):
    page = tmp_path / "one.html"
    run("gt.json", "baseline.json", "--out", page)
    assert "Precision and recall" in page.read_text()


def test_no_framework_is_loaded(files):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['x', {str(files / 'gt.json')!r}, {str(files / 'baseline.json')!r}]\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "heavy = 'torch mmengine mmcv mmdet numba matplotlib pandas scipy pycocotools'.split()\n"
        "print([x for x in heavy if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_nothing_is_left_of_a_failed_output(run, files, tmp_path, monkeypatch):
    old = tmp_path / "old.json"
    old.write_text("before")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    assert run("gt.json", "baseline.json", "--out", old) == (
        f"ap_by_size.py: {old} cannot be written: No space left on device"
    )
    assert old.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


# --- bad input -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad(files):
    """File name -> what is wrong with it."""
    first = BASELINE[0]
    contents = {
        "not_json": '{"images": [',
        "empty": "",
        "unknown_image": [first, {**first, "image_id": 777}, {**first, "image_id": 778}],
        "unknown_category": [first, {**first, "category_id": 0}],
        "nan_box": [first, {**first, "bbox": [1, 2, 3, math.nan]}],
        "negative": [{**first, "bbox": [5, 5, -1, 5]}],
        "no_score": [{k: v for k, v in first.items() if k != "score"}],
        "boxes_and_masks": [{**first, "bbox": [1, 2, 3]}],
        "a_number": 3,
        "strings": [{**first, "image_id": "1"}],
    }
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (files / f"{name}.json").write_text(text)
    (files / "read_only.csv").write_text("mine")
    (files / "read_only.csv").chmod(0o444)
    (files / "copies").mkdir()
    for seed in range(2):
        (files / f"copies/seed{seed}.json").write_text(json.dumps(BASELINE))
    return files


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["gt.json", "not_json.json"], "not_json.json"),
        (["not_json.json", "baseline.json"], "'not_json.json' is not JSON: Expecting value"),
        (["gt.json", "empty.json"], "empty.json.* is empty"),
        (["empty.json", "baseline.json"], "'empty.json' is empty"),
        (
            ["gt.json", "unknown_image.json"],
            r"2 of 3 detections are of images .* first is detections\[1\] with image_id 777",
        ),
        (["gt.json", "unknown_category.json"], "1 of 2 .* categories .* category_id 0"),
        (["gt.json", "nan_box.json"], r"detections\[1\]: 'bbox' must be .* finite numbers, got"),
        (["gt.json", "negative.json"], r"detections\[0\]: 'bbox' must be .* not negative"),
        (["gt.json", "no_score.json"], "score"),
        (["gt.json", "boxes_and_masks.json"], r"'bbox' must be .*, got \[1, 2, 3\]"),
        (["gt.json", "a_number.json"], "a_number.json"),
        (
            ["gt.json", "strings.json"],
            "image_id '1', and the ground truth has 1, 2, 3.*; it is a text and they are numbers",
        ),
        (["gt.json", "gt.json"], "ground truth"),
        (["baseline.json", "gt.json"], "baseline.json.*it looks like results|ground truth"),
        (["none.json", "baseline.json"], "ground truth 'none.json' does not exist"),
        (["gt.json", "baselin.json"], "baseline.json"),
        (["gt.json", "baseline.json", "--iou-type", "segm"], "no 'segmentation'"),
        (["gt.json", "baseline.json", "--bins", "a:0-9,b:5-20"], "overlap"),
        (["gt.json", "baseline.json", "--bins", "a:9-3"], "low < high"),
        (["gt.json", "baseline.json", "--bins", "cocoa"], "cannot read 'cocoa'"),
        (["gt.json", "baseline.json", "--bins", "coco", "--size-by", "sqrt-relative"], "px"),
        (["gt.json", "baseline.json", "--classes", "horse"], "no category 'horse'; .* 'cat'"),
        (["gt.json", "baseline.json", "--max-dets", "0"], "max_dets must be"),
        (["gt.json", "baseline.json", "--iou", "50"], r"iou_thrs must be .* in \(0, 1\]"),
        (["gt.json", "baseline.json", "--iou", "a"], "expected 0.5, or 0.5,0.75"),
        (["gt.json", "baseline.json", "--iou", "0.5:0.9:0"], "expected 0.5, or 0.5,0.75"),
        (["gt.json", "baseline.json", "--replicates", "-1"], "--replicates must be 0 or more"),
        (["gt.json", "baseline.json", "candidate.json", "--level", "95"], "between 0 and 1"),
        (["gt.json", "a=baseline.json", "a=candidate.json"], "'a' is given twice"),
        (["gt.json", "baseline.json", "--out", "x.txt"], "ends in .md, .csv, .json, .html"),
        (["gt.json", "baseline.json", "--out", "seeds"], "--out seeds"),
        (["gt.json", "baseline.json", "--pictures", "gt.json"], "gt.json is not a folder"),
        (["gt.json", "baseline.json", "--images", "nowhere"], "no such folder"),
        (["gt.json", "baseline.json", "--images", "seeds"], "needs --out x.html or --pictures"),
        (["gt.json", "baseline.json", "--out", "no/x.md"], "there is no folder .*/no$"),
        (["gt.json", "baseline.json", "--out", "gt.json"], "gt.json is one of the inputs"),
        (["gt.json", "baseline.json", "--out", "./baseline.json"], "is one of the inputs"),
        (["gt.json", "baseline.json", "--out", "read_only.csv"], "there already, and read-only"),
        (["gt.json", "baseline.json", "--image-bin", "tiny"], "the bins are small, medium, large"),
        (["gt.json", "copies"], "copies/seed1 has the same detections as copies/seed0; seeds"),
        (["gt.json", "baseline.json", "--level", "95"], "between 0 and 1"),
        (["gt.json", "baseline.json", "candidate.json", "--replicates", "5"], "from 40 on"),
        (
            ["gt.json", "baseline.json", "--size-by", "sqrt-relative", "--bins", "a:0-1,b:32^2-"],
            "'b' is 1024 to no limit, but size_by 'sqrt-relative' measures shares",
        ),
        (["gt.json"], "RESULTS"),
    ],
)
def test_bad_input_ends_in_one_sentence(run, bad, arguments, match):
    error = run(*arguments)
    last = error.strip().splitlines()[-1]
    assert re.search(match, last), error
    assert "Traceback" not in error
    assert error.startswith(("ap_by_size.py: ", "usage:"))


def test_dropping_what_is_unknown(run, bad):
    text = run("gt.json", "unknown_image.json", "--drop-unknown")
    assert "2 of 3 detections are of images that the ground truth does not have" in text
    assert "59 of the 60 images with objects have no detection at all" in text


def test_odd_bins_and_truths_are_noted(run, files):
    text = run("gt.json", "baseline.json", "--bins", "a:0-32,b:32-96,c:96-")
    assert "No object is in a, b: limits are areas in px^2" in text
    (files / "nothing_there.json").write_text(json.dumps({**TRUTH, "annotations": []}))
    text = run("nothing_there.json", "baseline.json")
    assert "The ground truth has no objects of these classes: all figures are n/a." in text


def test_masks_with_boxes_are_noted(run, files):
    from pycocotools import mask as mask_util

    encoded = mask_util.encode(np.ones((480, 480), np.uint8, order="F"))
    mask = {"size": [480, 480], "counts": encoded["counts"].decode()}
    truth, found = json.loads(json.dumps(TRUTH)), []
    for x in truth["annotations"]:
        left, top, side, _ = x["bbox"]
        right, low = left + side, top + side
        x["segmentation"] = [[left, top, right, top, right, low, left, low]]
    for x in truth["annotations"]:
        where = {"image_id": x["image_id"], "category_id": 1, "score": 0.5}
        found.append({**where, "segmentation": mask, "bbox": x["bbox"]})
    (files / "masks_gt.json").write_text(json.dumps(truth))
    for name, records, noted in (
        ("with", found, True),
        ("without", [{k: v for k, v in x.items() if k != "bbox"} for x in found], False),
    ):
        (files / f"masks_{name}.json").write_text(json.dumps(records))
        text = run("masks_gt.json", f"masks_{name}.json", "--iou-type", "segm")
        assert ("pycocotools would take that of the results' boxes" in text) == noted


def test_output_that_nobody_reads_is_no_error(files):
    command = f"{sys.executable} {SCRIPT} gt.json baseline.json --per-class | head -1"
    done = subprocess.run(command, shell=True, cwd=files, capture_output=True, text=True)
    assert done.stdout.startswith("AP by size")
    assert done.stderr == ""


def test_no_detections_are_ap_0(run, files):
    (files / "nothing.json").write_text("[]")
    text = run("gt.json", "nothing.json")
    assert "| all    | any          |     360 | 0.0 |" in text
    assert "There are no detections." in text


def test_results_of_other_boxes_are_noted(run, files):
    corners = [
        {**x, "bbox": [*x["bbox"][:2], *(np.add(x["bbox"][:2], x["bbox"][2:]).tolist())]}
        for x in BASELINE
    ]
    shares = [{**x, "bbox": [v / 480 for v in x["bbox"]]} for x in BASELINE]
    equal = [{**x, "score": 1} for x in BASELINE]
    centres = [{**x, "bbox": [v / 2 for v in x["bbox"]]} for x in BASELINE]
    for records, match in (
        (corners, r"are they \[x1, y1, x2, y2\]"),
        (shares, "are these shares"),
        (equal, "All scores are equal"),
        (centres, "Next to nothing is found: are the boxes"),
    ):
        (files / "odd.json").write_text(json.dumps(records))
        assert re.search(match, run("gt.json", "odd.json"))
