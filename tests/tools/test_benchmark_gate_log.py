"""The benchmark of the gate log times what it says, and its table says what is in the file."""

import importlib
from pathlib import Path

import pytest

from tests.tools.test_benchmark_detector import TINY

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "tools/benchmarks")
    module = importlib.import_module("gate_log")
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    case = module.Case(str(path), "sge:groups=16", (64, 80), 1)
    monkeypatch.setattr(module, "CASES", {"demo-sge": case})
    return module


def test_a_run(benchmark, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    steps, listened = [], []
    step, hear = benchmark.detector.Detector.step, benchmark.Training._write
    monkeypatch.setattr(
        benchmark.detector.Detector, "step", lambda self: steps.append(1) or step(self)
    )
    monkeypatch.setattr(
        benchmark.Training,
        "_write",
        lambda self, s, step: listened.append(step) or hear(self, s, step),
    )
    common = ["--cases", "demo-sge", "--rounds", "1", "--out", str(out)]
    benchmark.main([*common, "--interval", "2", "--blocks", "1"])
    # a round more to warm up, two steps in each; a pair of blocks
    assert len(steps) == 2 * 2 + 2 * 2
    assert len(listened) == 2 + 1
    (path,) = out.glob("gate_log-cpu-*.csv")
    (row,) = benchmark.harness.read(path)
    assert (row["modules"], row["scalars"], row["module"]) == ("16", "64", "SGE:groups=16")
    share = 100 * float(row["extra_ms"]) / float(row["median_ms"])
    assert float(row["extra_percent"]) == pytest.approx(share, abs=0.01)
    assert float(row["average_percent"]) == pytest.approx(share / 2, abs=0.01)
    assert float(row["block_lowest"]) <= float(row["block_ratio"]) <= float(row["block_highest"])
    shown = capsys.readouterr().out
    assert benchmark.table(path) in shown
    assert f"| SGE:groups=16, tiny, 1 x 64x80 | 16, 64 | {float(row['median_ms']):.1f} |" in shown
    assert f"| {float(row['average_percent']):+.2f} % | {row['block_ratio']} (" in shown


def test_a_file_of_another_tool(benchmark, tmp_path, capsys):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit):
        benchmark.main(["--table", str(path)])
    assert "is no file of this tool: no column" in capsys.readouterr().err
