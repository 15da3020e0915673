"""The benchmark's data are like val2017's, its measures right, and what is wrong is not timed."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools/benchmarks/evaluation.py"
RESULTS = sorted((ROOT / "tools/benchmarks/results").glob("evaluation-*.csv"))


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("evaluation_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated(benchmark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "made"
    benchmark.generate(folder, images=600, objects=4320)
    return folder


def read(folder, name):
    return json.loads((folder / name).read_text())


def main(benchmark, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["evaluation.py", *map(str, arguments)])
    benchmark.main()


# --- the data --------------------------------------------------------------------------------


def test_the_objects_are_like_those_of_val2017(generated):
    truth = read(generated, "gt.json")
    found = truth["annotations"]
    assert len(truth["images"]) == 600
    assert len(found) == 4320
    assert [x["id"] for x in truth["categories"]] == list(range(1, 81))
    assert [x["id"] for x in found] == list(range(1, 4321))
    area = np.array([x["area"] for x in found])
    shares = np.histogram(area, [0, 32**2, 96**2, 1e10])[0] / len(area)
    np.testing.assert_allclose(shares, [0.41, 0.34, 0.24], atol=0.03)
    crowds = [x["iscrowd"] for x in found]
    assert 20 < sum(crowds) < 90
    assert set(crowds) == {0, 1}
    classes = np.bincount([x["category_id"] for x in found], minlength=81)[1:]
    assert 0.2 < classes.max() / len(found) < 0.36
    assert np.median(classes) < classes.max() / 20
    per_image = np.bincount([x["image_id"] for x in found], minlength=601)[1:]
    assert per_image.min() == 0
    assert per_image.max() > 25
    for x in found:
        polygon = np.reshape(x["segmentation"][0], (-1, 2))
        box = np.array([*polygon.min(0), *np.ptp(polygon, axis=0)])
        np.testing.assert_allclose(box, x["bbox"], atol=0.02)
        assert 0 < x["area"] < x["bbox"][2] * x["bbox"][3]


def test_the_detections_are_like_those_of_a_detector(generated):
    import hotcoco

    truth = hotcoco.COCO(str(generated / "gt.json"))
    ap = []
    for name in ("dt0.json", "dt1.json"):
        found = read(generated, name)
        image = np.array([x["image_id"] for x in found])
        assert np.bincount(image)[1:].tolist() == [100] * 600
        score = np.array([x["score"] for x in found])
        assert ((score >= 0) & (score <= 1)).all()
        assert (np.diff(score)[np.diff(image) == 0] <= 0).all()
        assert (np.array([x["bbox"] for x in found])[:, 2:] > 0).all()
        assert {x["category_id"] for x in found} <= set(range(1, 81))
        evaluator = hotcoco.COCOeval(truth, truth.load_res(str(generated / name)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        precision = evaluator.eval["precision"][..., :2, -1]
        ap.append([x[x > -1].mean() for x in np.moveaxis(precision, -1, 0)])
    (first, first_small), (second, second_small) = ap
    assert 0.3 < first < 0.5
    assert first_small < second_small  # what a comparison has to find
    assert abs(second - first) < 0.05


def test_the_same_files_always(generated, benchmark, tmp_path):
    benchmark.generate(tmp_path / "again", images=600, objects=4320)
    for name in ("gt.json", "dt0.json", "dt1.json"):
        assert (tmp_path / "again" / name).read_bytes() == (generated / name).read_bytes()
    assert (generated / "dt0.json").read_bytes() != (generated / "dt1.json").read_bytes()


def test_files_are_there_whole_or_not_at_all(benchmark, monkeypatch, tmp_path):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "_write_detections", fail)
    with pytest.raises(KeyboardInterrupt):
        benchmark.generate(tmp_path / "made", images=5, objects=20)
    assert list(tmp_path.iterdir()) == []


def test_files_are_made_once(benchmark, tmp_path):
    first = benchmark.prepare(tmp_path / "data", 5, 20, large=False)
    time = (first / "gt.json").stat().st_mtime_ns
    assert benchmark.prepare(tmp_path / "data", 5, 20, large=False) == first
    assert (first / "gt.json").stat().st_mtime_ns == time
    assert sorted(x.name for x in first.iterdir()) == ["dt0.json", "dt1.json", "gt.json"]
    large = benchmark.prepare(tmp_path / "data", 5, 20, large=True)
    assert sorted(x.name for x in large.iterdir()) == ["dt0.json", "gt.json"]
    assert "segmentation" not in (large / "gt.json").read_text()


def test_a_full_disk_is_found_first(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark.shutil, "disk_usage", lambda _: SimpleNamespace(free=5e9))
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *_, **__: pytest.fail("written"))
    match = r"5\.0 GB free, but the generated files take 10\.1 GB; name another folder with --data"
    with pytest.raises(SystemExit, match=match):
        benchmark.prepare(tmp_path, 1_000_000, 720_000, large=True)


# --- the figures -----------------------------------------------------------------------------


def test_tools_agree(benchmark, tmp_path):
    benchmark.generate(tmp_path / "made", images=60, objects=432)
    truth, results = str(tmp_path / "made/gt.json"), [str(tmp_path / "made/dt0.json")]
    bins = "small:0-32^2,rest:32^2-"
    expected = benchmark.run_pycocotools(truth, results, bins)
    assert len(expected) == 3 * 4 + 3 * 80
    assert expected["small AP"] != expected["rest AP"] != expected["all AP"]
    assert None in expected.values()  # a class without small objects
    benchmark.check("hotcoco", benchmark.run_hotcoco(truth, results, bins), expected)
    if benchmark.installed("faster-coco-eval"):
        found = benchmark.run_faster_coco_eval(truth, results, bins)
        benchmark.check("faster-coco-eval", found, expected)


def test_bins_are_the_same_in_both_languages(benchmark):
    from mmattn.evaluation.bins import parse_bins

    for text in (benchmark.COCO, benchmark.TEN):
        ours = {name: (low, high) for name, low, high in parse_bins(text)}
        assert benchmark._ranges(text) == {"all": (0, 1e10), **ours}
    assert len(ours) == 10


def test_a_wrong_figure(benchmark):
    right = {"all AP": 0.5, "small AP": None}
    benchmark.check("x", right, right)
    benchmark.check("x", {"all AP": 0.5 + 9e-10, "small AP": None}, right)
    for wrong, match in (
        ({"all AP": 0.5 + 2e-9, "small AP": None}, "x: all AP is 0.500000002, but 0.5 is right"),
        ({"all AP": 0.5, "small AP": 0.0}, "x: small AP is 0.0, but None is right"),
        ({"all AP": None, "small AP": None}, "x: all AP is None, but 0.5 is right"),
        ({"all AP": float("nan"), "small AP": None}, "x: all AP is nan"),
        ({**right, "tiny AP": 0.1}, "tiny AP"),
        ({"all AP": 0.5}, "small AP"),
        ({}, "'all AP' is not among both figures"),
    ):
        with pytest.raises(SystemExit, match=match):
            benchmark.check("x", wrong, right)


# --- the measures ----------------------------------------------------------------------------


def test_the_benchmark_itself_is_small():
    """Linux counts the memory of the process that starts another as the other's."""
    code = "import sys, evaluation; print('numpy' in sys.modules); "
    code += "print(evaluation.run([sys.executable, '-c', 'pass'])[2])"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True, check=True)
    numpy, peak = said.stdout.split()
    assert numpy == "False"
    assert float(peak) < 40


def test_time_and_memory_of_a_process(benchmark):
    code = "import time; a = bytearray(b'1') * (300 << 20); time.sleep(0.3)\n"
    code += "while time.process_time() < 0.3: pass"
    seconds, cpu, peak = benchmark.run([sys.executable, "-c", code])
    assert 0.3 <= cpu < 2
    assert seconds >= 0.5
    assert peak >= 300


def test_a_process_that_fails(benchmark):
    code = "print('what happened'); raise SystemExit(3)"
    with pytest.raises(SystemExit, match=r"failed \(3\):\nwhat happened"):
        benchmark.run([sys.executable, "-c", code])


class Fake:
    """A case whose command writes figures, and a line each time it runs."""

    bins, options, limits, version = "x:0-", (), (None, None), "1"

    def __init__(self, tool, value, log, results=1):
        self.task, self.tool, self.value, self.log = "task", tool, value, log
        self.results, self.name = results, f"{tool} (task)"

    def command(self, folder, output=None):
        code = "import sys, pathlib; _, output, figures, tool, log = sys.argv\n"
        code += "if output: pathlib.Path(output).write_text(figures)\n"
        code += "print(tool, file=open(log, 'a'))"
        figures = json.dumps({"all AP": self.value})
        command = [sys.executable, "-c", code, str(output or ""), figures, self.tool]
        return [*command, str(self.log)]

    def figures(self, output):
        return json.loads(output.read_text())


def test_what_is_wrong_is_not_timed(benchmark, tmp_path):
    log = tmp_path / "log"
    right, wrong = Fake("pycocotools", 0.5, log), Fake("hotcoco", 0.6, log)
    with pytest.raises(SystemExit, match=r"hotcoco \(task\): all AP is 0.6, but 0.5 is right"):
        benchmark.measure([right, wrong], tmp_path, 3)
    assert log.read_text().split() == ["pycocotools", "hotcoco"]
    log.unlink()
    wrong.value = 0.5
    rows = benchmark.measure([right, wrong], tmp_path, 3)
    assert log.read_text().split() == ["pycocotools", "hotcoco"] * 4  # in turns
    assert [row["runs"] for row in rows] == [3, 3]
    for row in rows:
        assert 0 < float(row["median_s"]) < 10
        assert float(row["peak_mib"]) > 5


def test_a_tool_that_is_not_installed(benchmark, tmp_path):
    cases = [Fake("pycocotools", 0.5, tmp_path / "log"), Fake("no-such-tool", 0.5, tmp_path)]
    rows = benchmark.measure(cases, tmp_path, 1)
    assert rows[0]["median_s"]
    assert rows[1] == {"task": "task", "tool": "no-such-tool", "version": "not installed"}


# --- the command line ------------------------------------------------------------------------


def write_csv(path, *rows):
    same = dict(
        hardware="a CPU", cores=2, load=0, python="3.11", numpy="2.2", commit="abc",
        date="2025-11-22", images=5000, objects=36000, detections=500000, truth_mb=19,
        results_mb=48,
    )  # fmt: skip
    rows = [{**same, **row} for row in rows]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, dict.fromkeys(k for row in rows for k in row), restval="")
        writer.writeheader()
        writer.writerows(rows)


def timed(tool, seconds, peak=100, task="3 bins", **limits):
    return dict(
        task=task, tool=tool, version="1.0", first_s=9, median_s=seconds, runs=5, cpu_s=seconds,
        peak_mib=peak, **limits,
    )  # fmt: skip


def test_a_small_run(benchmark, monkeypatch, tmp_path, capsys):
    chosen = [x for x in benchmark.cases(slow=False) if x.tool in ("pycocotools", benchmark.OURS)]
    monkeypatch.setattr(benchmark, "cases", lambda slow: chosen)
    file = tmp_path / "out.csv"
    main(benchmark, monkeypatch, file, "--images", 12, "--repeats", 1)
    printed = capsys.readouterr()
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["task"], row["tool"]) for row in rows] == [(x.task, x.tool) for x in chosen]
    assert {row["detections"] for row in rows} == {"1200"}
    for row in rows:
        assert row["python"]
        assert 0 < float(row["median_s"]) < 60
        assert 20 < float(row["peak_mib"]) < 4000
    assert benchmark.table(file) in printed.out
    assert "checking pycocotools (second results)" in printed.err


def test_a_large_run(benchmark, monkeypatch, tmp_path, capsys):
    file = tmp_path / "out.csv"
    main(benchmark, monkeypatch, file, "--detections", 1000, "--repeats", 1, "--data", tmp_path)
    assert f"| 3 bins, 1,000 detections | {benchmark.OURS} " in capsys.readouterr().out
    with file.open(newline="") as stream:
        assert [row["tool"] for row in csv.DictReader(stream)] == ["hotcoco", benchmark.OURS]
    assert [x.name for x in tmp_path.glob("generated-*")] == ["generated-1-10-72-100-large"]


def test_table(benchmark, monkeypatch, tmp_path, capsys):
    file = tmp_path / "out.csv"
    write_csv(
        file,
        timed("pycocotools", 39.04),
        dict(task="3 bins", tool="faster-coco-eval", version="not installed"),
        timed(benchmark.OURS, 1.3, limit_s=1.5),
    )
    main(benchmark, monkeypatch, file, "--table")
    printed = capsys.readouterr().out
    assert "a CPU, 2 cores, Python 3.11, NumPy 2.2; 2025-11-22, commit abc. 5,000 images" in printed
    assert "| 3 bins | pycocotools 1.0 | 39.0 | 30.03 x | 39.04 | 100 | 9 |" in printed
    assert "| 3 bins | faster-coco-eval | not installed |" in printed
    assert "| 3 bins | ap_by_size.py 1.0 | 1.30 | 1.00 x |" in printed
    main(benchmark, monkeypatch, file, "--table", "--check")


def test_limits(benchmark, monkeypatch, tmp_path):
    file = tmp_path / "out.csv"
    write_csv(
        file,
        timed(benchmark.OURS, 1.51, limit_s=1.5),
        timed(benchmark.OURS, 24, peak=4097, task="two", limit_s=25, limit_gib=4),
        timed(benchmark.OURS, 4.9, peak=9999, task="ten", limit_s=5),
    )
    main(benchmark, monkeypatch, file, "--table")
    with pytest.raises(SystemExit) as info:
        main(benchmark, monkeypatch, file, "--table", "--check")
    first, second = str(info.value).splitlines()
    assert first == "3 bins: 1.51 s, the limit is 1.5 s"
    assert second == "two: 4.00 GiB, the limit is 4 GiB"


def test_the_limits_of_the_tasks(benchmark):
    limits = {c.task: c.limits for c in benchmark.cases(slow=False) if c.tool == benchmark.OURS}
    assert list(limits.values()) == [(1.5, None), (5, None), (25, 4)]
    (ours,) = [c for c in benchmark.large_cases(10**7) if c.tool == benchmark.OURS]
    assert ours.limits == (None, 8)
    assert ours.task == "3 bins, 10,000,000 detections"
    assert {c.tool for c in benchmark.cases(slow=True)} >= {"pycocotools", "hotcoco.compare"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "--repeats, --images and --cores must be 1 or more"),
        (["--detections", "150"], "--detections must be a multiple of 100"),
    ],
)
def test_bad_arguments(benchmark, monkeypatch, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(benchmark, monkeypatch, tmp_path / "out.csv", *arguments)
    assert message in capsys.readouterr().err


def test_a_folder_that_is_not_there(benchmark, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(benchmark, monkeypatch, tmp_path / "no/out.csv")
    assert "there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.name)
def test_the_docs_show_the_file(path, benchmark):
    assert benchmark.table(path) in (ROOT / "docs/evaluation-speed.md").read_text()
