"""The report: what it says of full, half-done and mixed tables, and that it keeps to its rules."""

import hashlib
import html.parser
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

from made_detectors import PLAIN, detections, ground_truth

from mmattn.evaluation import compare, evaluate
from mmattn.evaluation.statistics import holm
from mmattn.reproduction.report import write_report
from mmattn.reproduction.report.pictures import _picture_line as picture_line

TRUTH = ground_truth(images=24)
for annotation in TRUTH["annotations"]:
    x, y, w, h = annotation["bbox"]
    annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
CODE, COMMIT = "c0de" * 16, "0123456789abcdef0123456789abcdef01234567"
EVIL = "<script>alert('x')</script> | *a* _b_"
MINUS = "\N{MINUS SIGN}"
PI = SimpleNamespace(key="PI", name="PytorchInsight", url="https://example.org/pi")


def published(figures, baseline=None, source=PI, cost=None, note=""):
    plain = baseline and published(baseline, source=source)
    return SimpleNamespace(
        config="a/b", source=source, figures=figures, cost=cost or {}, baseline=plain, note=note
    )


def row(name, baseline=None, seeds=(0,), label=None, group="", reported=(), note=""):
    return SimpleNamespace(
        name=name, label=label or name, group=group, config=f"/x/configs/a/{name}.py",
        baseline=baseline, seeds=tuple(seeds), gpus=1, options={}, published=tuple(reported),
        note=note,
    )  # fmt: skip


def table(*rows, **more):
    whole = dict(name="demo", title="A demo", about="What it is.", paper="https://example.org/p")
    return SimpleNamespace(**whole | more, rows=tuple(rows), path=Path("demo.yml"))


def segm(records):
    """Boxes as masks, as RLE."""
    from random_sets import mask_util

    out = []
    for record in records:
        x, y, w, h = (round(v) for v in record["bbox"])
        mask = np.zeros((480, 480), np.uint8, order="F")
        mask[max(y, 0) : y + h, max(x, 0) : x + w] = 1
        encoded = mask_util.encode(mask)
        shape = {"size": encoded["size"], "counts": encoded["counts"].decode()}
        out.append({k: v for k, v in record.items() if k != "bbox"} | {"segmentation": shape})
    return out


class Results:
    """Makes ``result.json`` and what belongs to it, as a run does."""

    def __init__(self, folder, truth=TRUTH):
        self.folder, self.paths = folder, {}
        self.truth, self.annotations = truth, folder / "val.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.annotations.write_text(json.dumps(truth))

    def add(self, name, seed=0, found=None, masks=False, figures=None, **changes):
        folder = self.folder / name / str(seed)
        folder.mkdir(parents=True)
        number = int(hashlib.sha256(f"{name} {seed}".encode()).hexdigest()[:6], 16)
        found = detections(self.truth, PLAIN | (found or {}), seed=number)
        predictions = {"bbox": found, **({"segm": segm(found)} if masks else {})}
        for kind, records in predictions.items():
            (folder / f"results.{kind}.json").write_text(json.dumps(records))
        recorded = {
            size: dict.fromkeys(("AP", "AP50", "AP75", "AR"), value)
            for size, value in (("all", 0.111), ("small", None), ("medium", 0.2), ("large", 0.3))
        }
        content = {
            "format": 1, "table": "demo", "row": name, "seed": seed,
            "config": f"configs/a/{name}.py", "options": {}, "setting": "5e77" * 16, "code": CODE,
            "git_commit": COMMIT, "git_dirty": False,
            "versions": {"mmattn": "0.1.0", "torch": "2.11.0"},
            "data": {
                "annotations": str(self.annotations), "train_sha256": "7a" * 32,
                "val_sha256": hashlib.sha256(self.annotations.read_bytes()).hexdigest(),
                "images": len(self.truth["images"]), "train_images": 400,
            },
            "hardware": {"device": "CPU X (2 cores)", "processes": 1, "images_per_update": 4},
            "started": "2026-11-22T10:00:00Z", "finished": "2026-11-22T11:00:00Z",
            "train_seconds": 100.0, "attempts": 1, "checkpoint": "/w/iter_250.pth",
            "predictions": {kind: f"results.{kind}.json" for kind in predictions},
            "figures": dict.fromkeys(predictions, figures or recorded),
            "cost": {"params": 1_000_000, "flops": 2_000_000_000, "shape": [256, 320]},
        }  # fmt: skip
        for key, value in changes.items():
            merged = isinstance(value, dict) and key != "figures"
            content[key] = content[key] | value if merged else value
        path = folder / "result.json"
        path.write_text(json.dumps(content))
        self.paths.setdefault(name, {})[seed] = path
        return path


class Page(html.parser.HTMLParser):
    """Tags with their attributes, the text, and the rows of each table by its section."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.tables, self.section, self.cell = [], "", {}, "", False
        self.skipped = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "section":
            self.section = attrs["id"]
        elif tag == "table":
            self.tables[self.section] = []
        elif tag == "tr":
            self.tables[self.section].append([])
        elif tag in ("td", "th"):
            self.tables[self.section][-1].append("")
            self.cell = True
        elif tag == "style":
            self.skipped = True

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")
        self.skipped = self.skipped and tag != "style"

    def handle_data(self, data):
        if not self.skipped:
            self.text += data
        if self.cell:
            self.tables[self.section][-1][-1] += data

    def row(self, table, label, number=0):
        heads = next(x for x in self.tables[table] if x[0] == "row")
        rows = [x for x in self.tables[table] if x[0] == label and len(x) == len(heads)]
        return rows[number]


class Written:
    def __init__(self, paths, out):
        self.paths, self.out = paths, out
        self.md = (out / "report.md").read_text(encoding="utf-8")
        self.html = (out / "report.html").read_text(encoding="utf-8")
        self.json = json.loads((out / "report.json").read_text(encoding="utf-8"))
        self.page = Page(self.html)
        self.rows = {x["name"]: x for x in self.json["rows"]}

    def md_row(self, heading, label):
        part = self.md.split(f"## {heading}\n")[1].split("\n## ")[0]
        line = next(x for x in part.splitlines() if x.startswith(f"| {label} |"))
        return [x.strip() for x in line.strip("|").split(" | ")]


def write(tables, results, out, **options):
    paths = write_report(tables, getattr(results, "paths", results), out, replicates=60, **options)
    return Written(paths, out)


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes most of the time."""
    monkeypatch.setattr("mmattn.reproduction.report.pictures_of", lambda report: [])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    made = Results(tmp_path_factory.mktemp("runs"))
    for seed in (0, 1):
        made.add("plain", seed, {"small": 0.1})
        made.add("sge", seed, {"small": 0.9}, cost={"params": 1_000_384, "flops": 2_020_000_000})
    made.add("se", 0, {"small": 0.2, "large": 0.1}, train_seconds=150.0)
    return made


GAINS = {"ap": 38.7, "ap50": 60.8, "ap_s": 21.8}
PLAINS = {"ap": 37.5, "ap50": 59.1, "ap_s": 19.9}
DEMO = table(
    row("plain", seeds=(0, 1), label="Plain", group="Faster R-CNN, ResNet-50", note="a remark"),
    row("sge", "plain", (0, 1), "SGE", "Faster R-CNN, ResNet-50", [published(GAINS, PLAINS)]),
    row("se", "plain", (0, 1), "SE", "Faster R-CNN, ResNet-50", [published({"ap": 38.1})]),
    row(
        "gc", "plain", (0, 1), "GC", "", [published({"ap": 99.9}, PLAINS), published({"ap": 88.8})]
    ),
)
STATES = {"se": {1: "running 120/250"}, "gc": {0: "failed: no memory", 1: "waiting"}}


@pytest.fixture(scope="module")
def demo(results, tmp_path_factory):
    return write(DEMO, results, tmp_path_factory.mktemp("report"), states=STATES)


def test_figures_are_means_over_seeds_of_the_prediction_files(demo, results):
    of = [
        evaluate(TRUTH, str(results.paths["sge"][seed].parent / "results.bbox.json"))
        for seed in (0, 1)
    ]
    ap, small = ([x.ap for x in of], [x.by_size["small"].ap for x in of])
    figures = demo.rows["sge"]["figures"]["bbox"]
    assert figures["from"] == "predictions"
    assert figures["mean"]["all"]["AP"] == pytest.approx(np.mean(ap))
    assert figures["std"]["small"]["AP"] == pytest.approx(np.std(small, ddof=1))
    assert figures["seeds"]["1"]["small"]["AP"] == pytest.approx(small[1])
    cell = f"{100 * np.mean(small):.1f} ± {100 * np.std(small, ddof=1):.1f}"
    assert demo.page.row("table", "SGE")[7] == cell == demo.md_row("Reported and ours", "SGE")[7]
    # one seed: no spread
    assert re.fullmatch(r"\d+\.\d", demo.page.row("table", "SE")[4])


def test_differences_are_those_of_compare_with_all_seeds(demo, results):
    files = {
        name: [str(path.parent / "results.bbox.json") for path in paths.values()]
        for name, paths in results.paths.items()
    }
    for name in ("sge", "se"):
        expected = compare(
            str(results.annotations), files["plain"], files[name], replicates=60,
            names=("Plain", {"sge": "SGE", "se": "SE"}[name]),
        )  # fmt: skip
        found = demo.rows[name]["differences"]["bbox"]
        for size, figures in expected.differences.items():
            for key in ("value", "low", "high", "p"):
                assert found["sizes"][size]["AP"][key] == pytest.approx(getattr(figures["AP"], key))
        assert found["words"] == expected.words
        assert expected.words[1] in demo.page.text
    x = demo.rows["sge"]["differences"]["bbox"]["sizes"]["small"]["AP"]
    cell = demo.page.row("differences", "SGE")[4]
    assert cell.startswith(
        f"+{100 * x['value']:.2f} [+{100 * x['low']:.2f}, +{100 * x['high']:.2f}]"
    )


def test_p_is_corrected_for_the_number_of_rows(demo):
    for size in ("all", "small"):
        of = [demo.rows[x]["differences"]["bbox"] for x in ("sge", "se")]
        expected = holm([x["sizes"][size]["AP"]["p"] for x in of])
        assert [x["holm_ap"][size] for x in of] == pytest.approx(expected)
    strong = re.findall(r'class="number strong">(\S+)', demo.html)
    shown = [
        x["sizes"][size]["AP"]["value"]
        for x in of
        for size in x["sizes"]
        if x["holm_ap"][size] <= 0.05
    ]
    assert [x.replace(MINUS, "-") for x in strong] == [f"{100 * x:+.2f}" for x in shown]
    assert 0 < len(shown) < 8


def test_what_one_seed_does_not_say_is_said(demo):
    sentence = "does not contain the training's own chance"
    assert demo.page.row("differences", "SE")[-2] == "1 and 2 images only"
    assert demo.page.row("differences", "SGE")[-2] == "2 and 2 images and trainings"
    (told,) = [x for x in demo.json["answer"] if sentence in x]
    assert told.startswith("In 1 of 2 the row or its baseline was trained with one seed only.")
    assert told in demo.page.text
    assert "which say little about how seeds vary" in " ".join(demo.json["answer"])


def test_the_answer_counts_what_is_shown(demo):
    assert demo.json["answer"][0] == "2 of 4 rows are done, 1 in part."
    assert demo.json["answer"][1].startswith(
        "Of 2 rows compared, each with its own baseline: AP is"
    )
    for name in ("SGE", "SE"):
        assert demo.json["answer"][1].count(name) == 1


def test_published_figures_stand_in_their_own_columns(demo):
    heads = ["row", "baseline", "this row", "source", "AP", "AP50", "AP75", "small", "medium"]
    assert demo.page.tables["table"][1] == [*heads, "large", "seeds", "state"]
    sge = demo.page.row("table", "SGE")
    assert sge[1:4] == ["AP 37.5 AP50 59.1 small 19.9", "AP 38.7 AP50 60.8 small 21.8", PI.name]
    assert demo.page.row("table", "SE")[1:3] == ["n/a", "AP 38.1"]
    # two sources, two lines; nothing was run
    assert demo.page.row("table", "GC")[1:] == [
        "AP 37.5 AP50 59.1 small 19.9", "AP 99.9", PI.name, *[""] * 7,
        "seed 0: failed: no memory; seed 1: waiting",
    ]  # fmt: skip
    assert demo.page.row("table", "")[1:] == ["n/a", "AP 88.8", PI.name, *[""] * 8]
    for text in ("99.9", "88.8"):
        assert demo.page.text.count(text) == demo.md.count(text) == 1
    assert demo.page.row("differences", "SGE")[2] == "AP +1.2 (PI) small +1.9 (PI)"
    assert f"[{PI.name}]({PI.url})" in demo.md
    assert ("a", {"href": PI.url, "rel": "noreferrer"}) in demo.page.tags


def test_rows_that_were_not_run_stay_with_their_state(demo):
    assert demo.page.row("table", "Plain")[-2:] == ["2", "done"]
    assert demo.page.row("table", "SE")[-1] == "1 of 2 seeds done; seed 1: running 120/250"
    gc = demo.page.row("differences", "GC")
    assert gc[3:] == [*[""] * 5, "seed 0: failed: no memory; seed 1: waiting"]
    assert demo.page.row("cost", "GC")[1:7] == [""] * 6


def test_cost_beside_the_baseline(demo):
    sge, se = (demo.page.row("cost", x) for x in ("SGE", "SE"))
    assert sge[1:3] == ["1.000 M", "+384 (+0.038 %)"]
    assert sge[3:5] == ["2.020 G", "+20.00 M (+1 %)"]
    assert sge[5:8] == ["100 s", "1.00 times", "10"]  # 250 updates of 4 images
    assert se[5:8] == ["2.5 min", "1.50 times", "6.67"]
    assert demo.page.row("cost", "Plain")[2] == ""


def test_what_belongs_to_a_report_is_written(demo):
    names = [
        f"pictures/{x}.{y}"
        for x in ("differences", "ap", "reported", "cost")
        for y in ("svg", "png")
    ]
    found = sorted(str(x.relative_to(demo.out)) for x in demo.out.rglob("*") if x.is_file())
    assert found == sorted([*names, "report.md", "report.html", "report.json"])
    assert sorted(demo.paths) == sorted(demo.out / x for x in found)
    assert re.findall(r"!\[[^]]*\]\((.*?)\)", demo.md) == [
        f"pictures/{x}.svg" for x in ("ap", "differences", "reported", "cost")
    ]
    assert demo.html.count("<svg") == 4
    assert "SGE: small (PI)" in demo.page.text  # the picture of reported gains


def test_conditions(demo):
    conditions = demo.md.split("## Conditions")[1]
    for text in (
        "400 images", "val.json, 24 images, SHA-256 ", "CPU X (2 cores)", "Images an update: 4",
        "git commit: 0123456789ab.", "torch 2.11.0", CODE[:12], "60 resamples",
        "small from 0 to 1024", "Run from 2026-11-22T10:00:00Z to 2026-11-22T11:00:00Z",
        "Plain: a remark",
    ):  # fmt: skip
        assert text.replace("_", r"\_") in conditions
        assert text in demo.page.text
    assert not demo.json["warnings"]
    assert "Beware" not in demo.html + demo.md


def test_the_page_needs_nothing_but_itself(demo):
    policy = next(x["content"] for t, x in demo.page.tags if "http-equiv" in x)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    for tag, attrs in demo.page.tags:
        assert tag != "script"
        for key in ("src", "href", "xlink:href"):
            if tag != "a":
                assert attrs.get(key, "#").startswith(("#", "data:"))


def test_nothing_was_run_yet(tmp_path):
    old = tmp_path / "pictures" / "cost.png"
    old.parent.mkdir()
    old.write_bytes(b"of an earlier report")
    states = {x.name: {0: "waiting", 1: "waiting"} for x in DEMO.rows}
    written = write(DEMO, {}, tmp_path, states=states)
    assert written.json["answer"] == ["Nothing of this table was run yet: its 4 rows are empty."]
    for label in ("Plain", "SGE", "SE"):
        assert written.page.row("table", label)[4:] == [*[""] * 7, "waiting"]
    assert written.page.row("table", "SGE")[2].startswith("AP 38.7")
    assert "<svg" not in written.html
    assert "![" not in written.md
    assert not old.exists()


def test_one_row_alone(results, tmp_path, undrawn):
    one = {"plain": {0: results.paths["plain"][0]}}
    written = write(table(row("plain", label="Plain")), one, tmp_path)
    assert "differences" not in written.page.tables
    assert written.json["answer"] == [
        "1 of 1 row is done.", "No row can be compared with its baseline yet.",
    ]  # fmt: skip


PAIR = table(row("plain", seeds=(0,)), row("sge", "plain", (0,)), paper="", about="")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"data": {"train_sha256": "1b" * 32}}, "training"),
        ({"other_truth": True}, "test"),
    ],
)
def test_rows_of_other_data_are_not_compared(changes, where, tmp_path, undrawn):
    made = Results(tmp_path / "runs")
    made.add("plain")
    if changes.pop("other_truth", None):
        other = Results(tmp_path / "other", ground_truth(images=24, seed=5))
        changes = {"data": json.loads(other.add("sge").read_text())["data"]}
        made.truth = other.truth
    made.add("sge", **changes)
    written = write(PAIR, made, tmp_path / "out")
    why = f"not compared: its {where} data are not those of its baseline (other checksums)"
    assert written.page.row("differences", "sge")[2:] == [*[""] * 5, why]
    assert written.rows["sge"]["differences"] == {}
    assert written.rows["sge"]["not_compared"] == why
    assert written.page.row("table", "sge")[4] != ""
    assert len(written.json["warnings"]) == 1
    assert f"not of one {where} data:" in written.json["warnings"][0]
    assert "Beware" in written.page.text


def test_seeds_of_different_data_have_no_mean(tmp_path, undrawn):
    made = Results(tmp_path / "runs")
    for seed in (0, 1):
        made.add("plain", seed, data={"train_sha256": f"{seed}b" * 32})
    made.add("sge")
    pair = table(row("plain", seeds=(0, 1)), row("sge", "plain"))
    written = write(pair, made, tmp_path / "out")
    assert written.rows["plain"]["figures"] == {}
    assert written.page.row("table", "plain")[4:10] == [""] * 6
    assert "no mean of them" in written.page.text
    assert written.page.row("differences", "sge")[-1].startswith("not compared: the seeds of its")


@pytest.mark.parametrize("gone", ["plain", "sge"])
def test_without_a_prediction_file_the_recorded_figures_stand(gone, tmp_path, undrawn):
    made = Results(tmp_path / "runs")
    made.add("plain")
    made.add("sge")
    lost = made.paths[gone][0].parent / "results.bbox.json"
    lost.unlink()
    written = write(PAIR, made, tmp_path / "out")
    assert written.page.row("table", gone)[4:10] == ["11.1"] * 3 + ["n/a", "20.0", "30.0"]
    assert written.rows[gone]["figures"]["bbox"]["from"] == "result.json"
    assert (
        written.rows[{"plain": "sge", "sge": "plain"}[gone]]["figures"]["bbox"]["from"]
        != "result.json"
    )
    why = f"not compared: the prediction file {lost} is gone"
    assert written.page.row("differences", "sge")[2:] == [*[""] * 5, why]
    assert f"{gone}: the prediction file {lost} is gone" in written.page.text
    assert "(mmattn 0.1.0)" in written.page.text


def test_annotations_that_moved_or_changed(tmp_path, undrawn):
    made = Results(tmp_path / "runs")
    made.add("plain")
    made.add("sge")
    moved = made.annotations.rename(tmp_path / "moved.json")
    written = write(PAIR, made, tmp_path / "out")
    assert f"the annotation file {made.annotations} is gone" in written.page.text
    assert written.page.row("table", "sge")[4] == "11.1"
    assert written.page.row("differences", "sge")[3] == ""
    # another run of the same data knows where they are
    path = made.paths["sge"][0]
    content = json.loads(path.read_text())
    content["data"]["annotations"] = str(moved)
    path.write_text(json.dumps(content))
    written = write(PAIR, made, tmp_path / "out")
    assert written.page.row("differences", "sge")[3] != ""
    moved.write_text(json.dumps(ground_truth(images=24, seed=3)))
    written = write(PAIR, made, tmp_path / "out")
    assert f"the annotation file {moved} has changed since" in written.page.text
    assert written.page.row("table", "sge")[4] == "11.1"


def test_other_code_hardware_and_versions_are_said_on_top(tmp_path, undrawn):
    made = Results(tmp_path / "runs")
    made.add("plain")
    made.add(
        "sge", code="beef" * 16, hardware={"device": "NVIDIA H100", "processes": 2},
        versions={"torch": "2.4.1"}, options={"train_cfg.max_iters": 9}, git_dirty=True,
    )  # fmt: skip
    written = write(PAIR, made, tmp_path / "out")
    assert written.json["warnings"] == [
        "These results are not of one code: c0dec0dec0de in plain; beefbeefbeef in sge.",
        "These results are not of one hardware: CPU X (2 cores) in plain; 2 x NVIDIA H100 in sge.",
        "These results are not of one version of torch: 2.11.0 in plain; 2.4.1 in sge.",
    ]
    for sentence in written.json["warnings"]:
        assert sentence in written.page.text
    before, after = written.md.split("## Reported and ours")
    assert "**Beware**" in before
    assert "Beware" not in after
    remarks = "other code, other versions, other hardware, other options"
    assert written.page.row("differences", "sge")[-1] == remarks
    assert written.page.row("cost", "sge")[6] == "other hardware"
    assert "0123456789ab with uncommitted changes (sge)" in written.page.text
    assert "train_cfg.max_iters=9 (sge)" in written.page.text


def test_masks(tmp_path, undrawn):
    made = Results(tmp_path / "runs")
    made.add("plain", masks=True)
    path = made.add("sge", masks=True)
    made.add("se")
    rows = table(*PAIR.rows, row("se", "plain"))
    written = write(rows, made, tmp_path / "out")
    heads = written.page.tables["table"][1]
    mask = heads.index("mask AP")
    expected = evaluate(TRUTH, str(path.parent / "results.segm.json"), iou_type="segm")
    ap = written.page.row("table", "sge")[mask]
    assert ap.startswith(f"{100 * expected.ap:.1f} small {100 * expected.by_size['small'].ap:.1f} ")
    assert written.page.row("table", "se")[mask] == ""
    place = written.page.tables["differences"][0].index("mask AP")
    assert "[" in written.page.row("differences", "sge")[place]
    assert written.page.row("differences", "se")[place] == ""
    assert any(x.startswith("Masks. ") for x in Page(written.html).text.splitlines())


def test_boxes_without_predictions_are_not_drawn_against_the_baseline(tmp_path, undrawn):
    from mmattn.reproduction.report import pictures as report_pictures

    made = Results(tmp_path / "runs")
    made.add("plain", masks=True)
    lost = made.add("sge", masks=True).parent / "results.bbox.json"
    lost.unlink()
    report = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmattn.reproduction.report.pictures_of", lambda x: report.append(x) or [])
        written = write(PAIR, made, tmp_path / "out")
    row = written.page.row("differences", "sge")
    assert row[2:6] == [""] * 4
    assert row[6].startswith(("+", MINUS))
    assert "Holm" not in row[6]
    assert row[-1] == f"boxes not compared: the prediction file {lost} is gone"
    plain, sge = map(picture_line, report[0].entries)
    assert isinstance(sge, report_pictures.Line)
    assert sge.baseline_ap is None
    assert sge.differences is None
    assert sge.ap["all"] == 0.111
    assert plain.ap["all"] > 0.2


def test_the_mask_column_is_there_before_masks_are(tmp_path):
    published_mask = [published({"ap": 38.5, "mask_ap": 35.1}, {"ap": 37.3, "mask_ap": 34.2})]
    rows = table(row("plain"), row("sge", "plain", reported=published_mask))
    written = write(rows, {}, tmp_path)
    assert written.page.tables["table"][1][10] == "mask AP"
    assert written.page.row("table", "sge")[1:3] == ["AP 37.3 mask AP 34.2", "AP 38.5 mask AP 35.1"]
    assert written.page.row("table", "sge")[4:] == [*[""] * 8, "not run"]
    assert written.page.row("differences", "sge")[2] == "AP +1.2 (PI) mask AP +0.9 (PI)"


def test_time_and_speed(tmp_path, undrawn):
    made = Results(tmp_path / "runs")
    made.add("plain", checkpoint="/w/epoch_12.pth", train_seconds=4800.0)
    made.add("sge", attempts=3, train_seconds=30000.0)
    made.add("se", checkpoint=None, train_seconds=None, cost={"params": None, "flops": None})
    rows = table(*PAIR.rows, row("se", "plain"))
    written = write(rows, made, tmp_path / "out")
    assert written.page.row("cost", "plain")[5:] == ["80.0 min", "", "1"]  # 12 epochs of 400
    assert written.page.row("cost", "sge")[5:] == ["8.3 h in up to 3 attempts", "6.25 times", ""]
    assert written.page.row("cost", "se")[1:] == [""] * 7


def test_few_images_give_no_verdict(tmp_path, undrawn):
    made = Results(tmp_path / "runs", ground_truth(images=12))
    made.add("plain", found={"small": 0, "medium": 0, "large": 0.1})
    made.add("sge", found={"small": 1, "medium": 1, "large": 1})
    written = write(PAIR, made, tmp_path / "out")
    assert "no verdict, as fewer than 20 images have objects in 1 (sge)" in written.page.text
    assert "higher in 0" in written.page.text


def test_text_cannot_break_out(tmp_path, undrawn):
    made = Results(tmp_path / "runs")
    made.add("plain")
    source = SimpleNamespace(key=EVIL, name=EVIL, url="javascript:alert(1)")
    reported = [published({"ap": 1.0}, source=source, note=EVIL)]
    rows = [
        row("plain", label=EVIL, group=EVIL, reported=reported),
        row("sge", "plain", note=EVIL),
    ]  # fmt: skip
    evil = table(*rows, title=EVIL, about=EVIL, paper="javascript:alert(1)")
    written = write(evil, made, tmp_path / "out", states={"sge": {0: EVIL}})
    assert "<script" not in written.html
    assert not any(x.get("href", "").startswith("javascript") for _, x in written.page.tags)
    assert "](javascript" not in written.md
    assert "<script" not in re.sub(r"\\<", "", written.md)
    tables = [x for x in written.md.splitlines() if x.startswith("|")]
    part = [x for x in tables if "state" in x or len(re.findall(r"(?<!\\)\|", x)) == 13]
    assert len(part) == 5  # head, rule, heading, two rows: no cell was split


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:200], "is no result of a run, or is cut off: remove it and run"),
        (lambda x: "[]", "is no result of a run, or is cut off"),
        (lambda x: x.replace('"format": 1', '"format": 2'), r"format 2, and mmattn \S+ reads 1"),
        (lambda x: x.replace('"format": 1, ', ""), "has the format None"),
        (lambda x: x.replace('"code"', '"kode"'), r"no whole result of a run \(.*`code`"),
        (lambda x: x.replace('"seed": 0', '"seed": "0"'), r"no whole result of a run \(.*seed"),
        (lambda x: x.replace('"row": "plain"', '"row": "sge"'), "result of table demo, row sge"),
        (lambda x: x.replace(': "demo"', ': "demo-quick"'), "result of table demo-quick"),
    ],
)  # fmt: skip
def test_a_bad_result_is_one_sentence(change, message, tmp_path):
    made = Results(tmp_path / "runs")
    path = made.add("plain")
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message) as error:
        write(PAIR, made, tmp_path / "out")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_bad_table_or_call_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"row sge is no other row; rows: sge"):
        write(table(row("sge", "plain")), {}, tmp_path / "out")
    with pytest.raises(ValueError, match=r"results of foo, which table demo does not have"):
        write(PAIR, {"foo": {}}, tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        write(PAIR, {"plain": {0: tmp_path / "result.json"}}, tmp_path / "out")
    with pytest.raises(ValueError, match="replicates must be"):
        write_report(PAIR, {}, tmp_path / "out", replicates=3)


def test_an_invalid_prediction_file_is_named_and_the_old_report_stays(tmp_path, undrawn):
    made = Results(tmp_path / "runs")
    made.add("plain")
    old = write(PAIR, made, tmp_path / "out")
    again = write(PAIR, made, tmp_path / "out")
    assert (old.html, old.md, old.json) == (again.html, again.md, again.json)
    path = made.paths["plain"][0].parent / "results.bbox.json"
    path.write_text(path.read_text()[:500])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        write(PAIR, made, tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == old.html
    assert not list((tmp_path / "out").glob(".*"))


def test_images_where_a_row_differs(tmp_path, undrawn):
    from PIL import Image

    made = Results(tmp_path / "runs")
    made.add("plain", found={"small": 0.1})
    made.add("sge", found={"small": 0.9})
    folder = tmp_path / "images"
    folder.mkdir()
    for image in TRUTH["images"]:
        Image.new("RGB", (480, 480), (40, 80, 120)).save(folder / image["file_name"])
    written = write(PAIR, made, tmp_path / "out", images=folder)
    pictures = [x for t, x in written.page.tags if t == "img"]
    assert len(pictures) == 4
    assert all(x["src"].startswith("data:image/jpeg;base64,") for x in pictures)
    assert "sge against plain" in written.page.text


def lines(**more):
    from mmattn.reproduction.report.pictures import Line

    def difference(value):
        return SimpleNamespace(value=value, low=value - 0.01, high=value + 0.02, p=0.1)

    for n, (group, label) in enumerate([("A", "SE"), ("A", "SGE"), ("B", "SE"), ("B", "SGE")]):
        yield Line(**{
            "group": group, "label": label, "baseline": "plain",
            "ap": {"all": 0.3 + n / 100, "small": 0.1 + n / 20, "medium": math.nan},
            "of_seeds": {"all": [0.29, 0.31]}, "baseline_ap": {"all": 0.3, "small": 0.1},
            "differences": {"all": difference(n / 100), "small": difference(n / 20 - 0.05)},
            "reported": [("AP", "PI", "all", 1.0 + n), ("mask AP", "PI", "mask", 1.5)],
            "added": {"parameters": n / 10, "FLOPs": 0.01},
        } | more)  # fmt: skip


def test_panels_that_are_compared_have_one_scale():
    from mmattn.reproduction.report import pictures

    labels = ["plain", "SE", "SGE"]
    gains = pictures.plot_gains(list(lines()), labels, 0.95).axes
    assert len({x.get_xlim() for x in gains}) == 1
    low, high = gains[0].get_xlim()
    assert low < -6
    assert high > 12
    widths = {round(np.ptp(x.get_xlim()), 6) for x in pictures.plot_ap(list(lines()), labels).axes}
    assert len(widths) == 1
    # headings, and a line for each row
    texts = [x.get_text() for x in gains[0].get_yticklabels()]
    assert texts == ["A", "SE", "SGE", "B", "SE", "SGE"]


def test_a_method_has_one_colour_and_a_group_its_number():
    from mmattn.reproduction.report import pictures

    axes = pictures.plot_cost(list(lines()), ["plain", "SE", "SGE"], 0.95).axes
    assert [x.get_xlabel() for x in axes] == ["parameters added, %", "FLOPs added, %"]
    points = [x for x in axes[0].lines if x.get_marker() not in ("None", "")]
    assert [x.get_xdata()[0] for x in points] == pytest.approx([0, 10, 20, 30])
    colours = [x.get_markeredgecolor() for x in points]
    assert colours[0] == colours[2] != colours[1] == colours[3]
    assert [x.get_text() for x in axes[0].texts] == ["1", "1", "2", "2"]


def test_reported_gains_stand_beside_ours():
    from mmattn.reproduction.report import pictures

    (axes,) = pictures.plot_reported(list(lines()), ["SE", "SGE"], 0.95).axes
    grey = [x for x in axes.lines if x.get_markerfacecolor() == "#c8c8c8"]
    assert [x.get_xdata()[0] for x in grey] == [1, 2, 3, 4]  # none of the masks
    mask = SimpleNamespace(value=0.02, low=0.01, high=0.03)
    (axes,) = pictures.plot_reported(list(lines(mask_difference=mask)), ["SE", "SGE"], 0.95).axes
    assert "SE: mask AP (PI)" in [x.get_text() for x in axes.get_yticklabels()]


def test_bold_and_the_answer_go_by_the_corrected_p(results, tmp_path, monkeypatch):
    report = []
    monkeypatch.setattr("mmattn.reproduction.report.pictures_of", lambda x: report.append(x) or [])
    monkeypatch.setattr("mmattn.reproduction.report.gather.holm", lambda p: np.full(len(p), 0.06))
    written = write(DEMO, results, tmp_path)
    small = written.rows["sge"]["differences"]["bbox"]["sizes"]["small"]["AP"]
    assert small["p"] <= 0.05
    assert "number strong" not in written.html
    assert "no difference is shown in 2 (SGE, SE)" in written.page.text
    added = picture_line(report[0].entries[1]).added
    assert added == pytest.approx({"parameters": 0.000384, "FLOPs": 0.01, "training time": 0})


def test_rows_of_one_label_are_told_apart_by_their_headings(tmp_path, undrawn):
    made = Results(tmp_path / "runs")
    groups = ("RetinaNet, R50", "Faster R-CNN, R50", "Faster R-CNN, R101", "Faster R-CNN, R101")
    for name in "abcd":
        made.add(name)
    rows = [row(name, label="SGE", group=group) for name, group in zip("abcd", groups, strict=True)]
    made.add("e", code="beef" * 16)
    written = write(table(*rows, row("e", "a")), made, tmp_path / "out")
    names = "SGE (RetinaNet), SGE (Faster R-CNN, R50), c, d"
    assert f"c0dec0dec0de in {names}; beefbeefbeef in e." in written.json["warnings"][0]
