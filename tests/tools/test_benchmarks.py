"""The benchmark refuses to time what is wrong, and the docs show what was measured."""

import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "tools/benchmarks/results").glob("region_conv-*.csv"))


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools/benchmarks")
    module = importlib.import_module("region_conv")
    monkeypatch.setitem(module.harness.COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setattr(module.harness, "FLUSH_BYTES", 1 << 10)
    # a tenth of a second a call in a process that imported all this
    monkeypatch.setattr(module.harness.gc, "collect", lambda: 0)
    return module


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.name)
def test_the_docs_show_the_file(path, benchmark):
    assert benchmark.table(path, m="8") in (ROOT / "docs/benchmarks.md").read_text()


def test_results_are_there():
    assert RESULTS


def test_a_small_run(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "SHAPES", [(4, 5, 6, 3), (4, 5, 6, 1)])
    file = tmp_path / "out.csv"
    arguments = ["region_conv.py", str(file), "--regions", "3", "--runs", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    benchmark.main()
    lines = file.read_text().splitlines()
    # 2 dtypes x 2 shapes x (3 + 3 + 4 implementations on smooth regions, 2 + 2 on noise)
    assert len(lines) == 1 + 2 * 2 * (10 + 4)
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", [*arguments[:2], "--table", "--regions", "3"])
    benchmark.main()
    printed = capsys.readouterr().out
    assert printed.count("| 4 ch 5x6, 3x3 | 3 |") == 2 * (3 + 2)
    assert "eager, top 2" in printed


def test_wrong_results_are_not_timed(benchmark, monkeypatch):
    case = benchmark.Case((4, 5, 6, 3), 3, "noise", torch.float32, "cpu")
    right = case.call

    def wrong(implementation, mode):
        return [1.01 * t if implementation == "eager" else t for t in right(implementation, mode)]

    benchmark.check(case, ["plain", "reference", "eager"], "forward")
    monkeypatch.setattr(case, "call", wrong)
    with pytest.raises(SystemExit, match="eager differs from the reference by 0.01: not timed"):
        benchmark.check(case, ["plain", "reference", "eager"], "forward")
