"""The benchmark of the operators times only what is right, and says what it leaves out."""

import copy
import csv
import gc
import importlib
import sys
from pathlib import Path

import pytest
import torch

from mmattn.ops import _backend, _operator

ROOT = Path(__file__).parents[2]
PAGES = sorted(x for x in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SGE, GCT = (_operator._OPERATORS[name] for name in ("sge", "gct"))
SMALL = ["--shapes", "1x64x5x7", "--runs", "2"]


@pytest.fixture(autouse=True)
def from_its_folder(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools/benchmarks")


@pytest.fixture
def harness():
    return importlib.import_module("harness")


@pytest.fixture
def tables():
    return importlib.import_module("tables")


@pytest.fixture
def benchmark(monkeypatch, harness):
    """With a small copy, a quick compiler, and tests that pass."""
    module = importlib.import_module("run")
    monkeypatch.setitem(harness.COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setattr(harness, "FLUSH_BYTES", 1 << 10)
    monkeypatch.setattr(module, "COMPILER", "aot_eager")
    monkeypatch.setattr(module, "tests_of", lambda op: "passed")
    # main() sets them to a folder that is gone when it returns
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
    why_not = module.why_not
    why_not.cache_clear()
    gc.freeze()  # a measure of memory collects, and here there is much to look through
    yield module
    gc.unfreeze()
    why_not.cache_clear()


def read(folder):
    (file,) = folder.glob("*.csv")
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def small(benchmark, folder, *arguments):
    return benchmark.main([*arguments, *SMALL, "--out", str(folder)])


# --- a run -----------------------------------------------------------------------------------


def test_a_small_run(benchmark, harness, tmp_path, capsys):
    providers = ["reference", "eager", "triton", "auto"]
    assert small(benchmark, tmp_path, "--op", "sge", "GCT", "--providers", *providers) == 0
    printed = capsys.readouterr().out
    providers.remove("triton")
    assert printed.count("triton is left out: its kernels are for CUDA") == 1
    rows = read(tmp_path)
    assert [(r["op"], r["mode"], r["provider"]) for r in rows] == [
        (op, mode, p) for op in ("SGE", "GCT") for mode in benchmark.MODES for p in providers
    ]
    version = ".".join(torch.__version__.split(".")[:2])
    assert [x.name for x in tmp_path.iterdir()] == [
        harness.file_name("ops", "cpu", harness.conditions("cpu"))
    ]
    assert next(tmp_path.iterdir()).name.endswith(
        f"-{torch.get_num_threads()}threads-torch{version}.csv"
    )
    for row in rows:
        case = [r for r in rows if (r["op"], r["mode"]) == (row["op"], row["mode"])]
        median = float(row["median_ms"])
        assert 0 < float(row["p20_ms"]) <= median <= float(row["p80_ms"])
        assert float(row["ratio"]) == pytest.approx(
            median / float(case[0]["median_ms"]), rel=0.01, abs=0.001
        )
        least = {"forward": 2, "forward+backward": 5}  # a group fits on chip
        if row["op"] == "GCT":
            least = {"forward": 3, "forward+backward": 8}
        assert int(row["least_maps"]) == least[row["mode"]]
        speed = least[row["mode"]] * 64 * 35 * 4 / median / 1e6
        assert float(row["gb_per_s"]) == pytest.approx(speed, rel=0.02, abs=0.006)
        share = speed / float(row["copy_gb_per_s"])
        assert float(row["share_of_copy"]) == pytest.approx(share, rel=0.05, abs=0.002)
        assert 0 < float(row["error"]) < 1e-4
        assert float(row["first_call_ms"]) > 0
        assert float(row["peak_mib"]) >= 0
        assert row["tests"] == "passed"
        assert row["threads"] == str(torch.get_num_threads())
        assert row["torch"] == torch.__version__
        assert row["date"]
    by = {r["provider"]: r["implementation"] for r in rows}
    assert by["reference"] == "reference"
    assert printed.count("| SGE, 1x64x5x7, ") == 3 * 2
    assert printed.count(" | auto (plain) | ") == printed.count(" | eager (plain) | ") == 2 * 2
    assert "Ratios are against reference." in printed


def test_compiled(benchmark, tmp_path):
    arguments = ["--providers", "compile", "compile-eager", "--mode", MODE]
    assert small(benchmark, tmp_path, "--op", "gct", *arguments) == 0
    rows = read(tmp_path)
    assert [(r["provider"], r["implementation"]) for r in rows] == [
        ("compile", ""),
        ("compile-eager", ""),
    ]
    # the first call has the compiler in it
    assert all(float(r["first_call_ms"]) > 10 * float(r["median_ms"]) for r in rows)


def test_dtypes_layouts_and_modes(benchmark, tmp_path):
    options = ["--dtype", "float16", "bfloat16", "--layout", "channels_last", "contiguous"]
    options += ["--mode", "forward", "--providers", "eager"]
    assert small(benchmark, tmp_path, "--op", "se", *options) == 0
    assert [(r["dtype"], r["layout"], r["mode"], r["against"]) for r in read(tmp_path)] == [
        (dtype, layout, "forward", "eager")
        for dtype in ("float16", "bfloat16")
        for layout in ("channels_last", "contiguous")
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_module_can_be_measured(dtype, benchmark):
    assert set(benchmark.LEAST) <= set(benchmark.modules())
    for op in benchmark.modules():
        case = benchmark.Case(op, (2, 64, 9, 11), dtype, "channels_last", "forward+backward", "cpu")
        (x, dy), parameters = case.inputs[0], list(case.module.parameters())
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert dy.is_contiguous(memory_format=torch.channels_last)
        expected = case.expected()
        assert len(expected) == 2 + len(parameters)
        assert {t.dtype for t in expected} == {torch.float64}
        try:
            _, who, _, found = benchmark.prepare(case, "eager")
        except benchmark.CannotRunError as reason:
            assert "calls no operator" in str(reason)  # noqa: PT017
            _, who, _, found = benchmark.prepare(case, "reference")
        assert who in ("", "plain", "eager")
        # what the modules without operators do in half precision is not this tool's business
        allowed = None if dtype != torch.float32 and not who else case.allowed(expected)
        assert case.check(found, expected, allowed) >= 0


def test_what_is_measured_is_the_whole_module(benchmark):
    case = benchmark.Case("SE", (2, 64, 5, 6), torch.float32, "contiguous", MODE, "cpu")
    gradients = case.call(case.module, "eager")
    assert [t.shape for t in gradients] == [
        x.shape for x in (case.inputs[0][0], *case.module.parameters())
    ]
    case = benchmark.Case("SE", (2, 64, 5, 6), torch.float32, "contiguous", "forward", "cpu")
    (y,) = case.call(case.module, "eager")
    assert y.shape == (2, 64, 5, 6)
    assert not y.requires_grad


MODE = "forward+backward"


def test_least_maps(benchmark):
    def least(op, shape, mode, device, dtype=torch.float32):
        return benchmark.least_maps(op, shape, dtype, mode, device)

    c2, _, c4, c5 = benchmark.SHAPES
    assert least("SE", c2, "forward", "cuda") == 3
    assert least("SE", c2, MODE, "cuda") == 7
    assert least("GC", c5, MODE, "cpu") == 7
    assert least("GCT", c2, MODE, "cpu") == 8
    assert least("CBAM", c2, MODE, "cpu") == 10
    assert least("SGE", c2, MODE, "cuda") == 3 + 4
    assert least("SGE", c4, MODE, "cuda") == 3 + 4  # 16 x 4200 x 4 bytes are 263 KiB
    assert least("SGE", c4, MODE, "cuda", torch.float16) == 2 + 4  # dy has to fit, too
    assert least("SGE", c5, MODE, "cuda") == 2 + 4
    assert least("SGE", c5, MODE, "cuda", torch.bfloat16) == 2 + 3
    assert least("SGE", c2, "forward", "cpu") == 2
    assert least("ECA", c2, MODE, "cpu") is None


# --- what is refused -------------------------------------------------------------------------


def wrong_forward(monkeypatch):
    right = SGE.eager.forward

    def wrong(*args):
        y, saved = right(*args)
        return 1.001 * y, saved

    monkeypatch.setattr(SGE.eager, "forward", wrong)
    monkeypatch.setattr(_backend, "EAGER_FROM", 0)


def wrong_parameter(monkeypatch):
    right = SGE.eager.backward

    def wrong(*args):
        dx, weight, bias, scale = right(*args)
        return dx, weight, bias * 1.01, scale

    monkeypatch.setattr(SGE.eager, "backward", wrong)
    monkeypatch.setattr(_backend, "EAGER_FROM", 0)


def broken(monkeypatch):
    def wrong(*_):
        raise KeyError("lost")

    monkeypatch.setattr(SGE.eager, "forward", wrong)
    monkeypatch.setattr(_backend, "EAGER_FROM", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_forward, "eager: y differs from the reference in float64 by 0.001 (relative)"),
        (wrong_parameter, "eager: gradient of bias differs from the reference in float64 by 0.01"),
        (broken, "eager: KeyError: 'lost'"),
    ],
)
def test_what_is_wrong_is_not_timed(
    change, message, benchmark, harness, monkeypatch, tmp_path, capsys
):
    change(monkeypatch)
    timed = []
    in_turns = harness.in_turns

    def watched(calls, *args, **kwargs):
        timed.append(list(calls))
        return in_turns(calls, *args, **kwargs)

    monkeypatch.setattr(harness, "in_turns", watched)
    arguments = ["--providers", "reference", "eager", "--mode", MODE]
    assert small(benchmark, tmp_path, "--op", "sge", *arguments) == 1
    said = capsys.readouterr()
    assert f"SGE 1x64x5x7 float32 contiguous {MODE}, {message}" in said.err
    assert "SGE is left out" in said.err
    assert "|" not in said.out
    assert timed == []
    assert list(tmp_path.iterdir()) == []
    # the other one is measured
    assert small(benchmark, tmp_path, "--op", "sge", "gct", *arguments) == 1
    assert {row["op"] for row in read(tmp_path)} == {"GCT"}
    assert "| SGE |" not in capsys.readouterr().out


def test_nan_is_wrong(benchmark):
    case = benchmark.Case("SGE", (1, 64, 5, 7), torch.float32, "contiguous", MODE, "cpu")
    expected = case.expected()
    found = [t.float() for t in expected]
    allowed = case.allowed(expected)
    assert case.check(found, expected, allowed) < 1e-6
    for number in range(len(found)):
        bad = [t.clone() for t in found]
        bad[number].view(-1)[0] = float("nan")
        with pytest.raises(benchmark.WrongError, match="by nan"):
            case.check(bad, expected, allowed)
        assert case.check(bad, expected) != case.check(found, expected)
    with pytest.raises(benchmark.WrongError, match="y is .* in torch.float64, not"):
        case.check(expected, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maxima_are_clear(dtype, benchmark, monkeypatch):
    """A tie of two channels but for rounding would be taken for a wrong gradient."""
    monkeypatch.setattr(benchmark, "AHEAD", 1e-3)  # by chance, some pixels are nearer
    case = benchmark.Case("CBAM", (2, 64, 20, 30), dtype, "channels_last", MODE, "cpu")

    def gated():
        module = copy.deepcopy(case.module).double()
        reference = benchmark.use_backend("reference")
        with torch.no_grad(), reference, benchmark._ChannelMaxima() as maxima:
            module(case.inputs[0][0].detach().double())
        (found,) = maxima.of
        return found

    def ahead():
        top = gated().topk(2, dim=1).values
        return ((top[:, 0] - top[:, 1]) / top[:, 0]).min()

    assert ahead() > benchmark.AHEAD
    if dtype != torch.float32:
        return
    x = case.inputs[0][0].detach()
    for _ in range(9):  # each moves the gates a little
        y = gated()[1, :, 2, 3]
        first, second = y.topk(2).indices.tolist()
        x[1, second, 2, 3] *= y[first] / y[second]
    assert ahead() < benchmark.AHEAD
    before = x.clone()
    case._make_clear()
    assert ahead() > benchmark.AHEAD
    assert 1 <= (x != before).sum() <= 3  # all others are as they were


def test_first_calls_come_first(benchmark, monkeypatch, harness):
    """Before the check, which computes the reference."""
    log = []
    case = benchmark.Case("SE", (1, 64, 5, 7), torch.float32, "contiguous", "forward", "cpu")
    for owner, name in ((benchmark, "prepare"), (case, "expected"), (case, "allowed")):
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *a, real=real, name=name: log.append(name) or real(*a)
        )
    rows = benchmark.measure(case, ["eager", "reference"], 2, harness.Copy("cpu"))
    assert [row["provider"] for row in rows] == ["eager", "reference"]
    assert log == ["prepare", "prepare", "expected", "allowed"]


def fake_tests(folder, harness, benchmark, monkeypatch, **files):
    (folder / "tests/ops").mkdir(parents=True)
    for name, text in files.items():
        (folder / f"tests/ops/{name}.py").write_text(text)
    monkeypatch.setattr(harness, "ROOT", folder)
    original = importlib.util.find_spec("run").loader.get_code("run")
    fresh = {"__name__": "run_again"}
    exec(original, fresh)
    monkeypatch.setattr(benchmark, "tests_of", fresh["tests_of"])
    # a failure must be this module's own kind
    fresh["tests_of"].__wrapped__.__globals__["WrongError"] = benchmark.WrongError


FAILS = "def test_it(): assert False"


def test_failing_tests(benchmark, harness, monkeypatch, tmp_path, capsys):
    files = dict(
        test_fused_sge=FAILS,
        test_a_dense="def test_reverse(): assert False",
        test_all=(
            "import pathlib, pytest\n"
            "@pytest.mark.parametrize('op', ['se', 'sge', 'gct', 'non_local'])\n"
            "def test_op(op):\n"
            "    with open('log', 'a') as stream: print(op, file=stream)\n"
            "    assert op != 'se'"
        ),
    )
    fake_tests(tmp_path, harness, benchmark, monkeypatch, **files)
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["--providers", "reference", "--mode", "forward"]
    status = small(benchmark, out, "--op", "sge", "non_local", "se", "bam", *arguments)
    assert status == 1
    said = capsys.readouterr()
    assert "the tests of SGE fail: FAILED tests/ops/test_fused_sge.py::test_it" in said.err
    assert "the tests of SE fail: FAILED tests/ops/test_all.py::test_op[se]" in said.err
    assert "SGE is left out" in said.err
    assert "BAM: its tests were not run (there are none)" in said.out
    assert [(row["op"], row["tests"]) for row in read(out)] == [
        ("NonLocal", "passed"),
        ("BAM", "not run (there are none)"),
    ]
    ran = (tmp_path / "log").read_text().split()
    # not sge, whose first failure ends it
    assert sorted(ran) == ["non_local", "se", "sge"]
    assert small(benchmark, out, "--op", "non_local", *arguments) == 0
    assert (tmp_path / "log").read_text().split() == ran  # once in a run


def test_without_tests(benchmark, harness, monkeypatch, tmp_path, capsys):
    fake_tests(tmp_path, harness, benchmark, monkeypatch)
    (tmp_path / "tests/ops").rmdir()
    assert small(benchmark, tmp_path, "--op", "se", "--providers", "reference") == 0
    why = "not run (they are not there)"
    said = capsys.readouterr().out
    assert f"SE: its tests were {why}" in said
    assert f"Tests of SE: {why}." in said  # with the table
    assert {row["tests"] for row in read(tmp_path)} == {why}
    (tmp_path / "tests/ops").mkdir()
    fresh = benchmark.tests_of.__wrapped__
    monkeypatch.setattr(harness, "version", lambda package: "")
    assert fresh("SE") == "not run (pytest is not installed)"


def test_of_tests_what_an_operator_shares_is_run(benchmark, harness, monkeypatch, tmp_path):
    """Its kernels' own, and those of the passes it is made of."""
    log = "def test_it():\n    with open('log', 'a') as stream: print('{0}', file=stream)"
    names = ["test_channel_passes", *(f"test_fused_triton_{x}" for x in ("se", "sge", "gct"))]
    files = {name: log.format(name) for name in names}
    skipped = "import pytest\n@pytest.mark.skip\ndef test_gc(): pass"
    fake_tests(tmp_path, harness, benchmark, monkeypatch, **files, test_skipped=skipped)
    for op, ran in (("SE", (0, 1)), ("SGE", (2,)), ("GCT", (0, 3))):
        assert benchmark.tests_of(op) == "passed"
        assert sorted((tmp_path / "log").read_text().split()) == sorted(names[i] for i in ran)
        (tmp_path / "log").unlink()
    assert benchmark.tests_of("GC") == "not run (all are skipped here)"
    # the real ones, which may not be renamed alone
    for name in names:
        assert (ROOT / f"tests/ops/{name}.py").is_file()


# --- what is left out ------------------------------------------------------------------------


def on_any_device(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "why_not", lambda provider, device: "")


def test_a_fallback_is_said(benchmark, monkeypatch, tmp_path, capsys):
    on_any_device(benchmark, monkeypatch)
    arguments = ["--providers", "reference", "triton", "eager", "--mode", "forward"]
    assert small(benchmark, tmp_path, "--op", "eca", *arguments) == 0
    assert "triton is left out: mmattn.ops.eca has no triton kernels" in capsys.readouterr().out
    monkeypatch.setattr(_backend, "triton_runs", lambda *_: False)  # and says nothing
    assert small(benchmark, tmp_path, "--op", "sge", *arguments) == 0
    said = capsys.readouterr().out
    assert "triton is left out: other implementations would take its place (sge: " in said
    assert {(r["op"], r["provider"]) for r in read(tmp_path)} == {
        (op, p) for op in ("ECA", "SGE") for p in ("reference", "eager")
    }
    # said again to a user afterwards
    assert not any(key.startswith("eca") for key in _backend._said)


@pytest.mark.skipif(torch.cuda.is_available(), reason="in Triton's interpreter, on the CPU")
@pytest.mark.parametrize("op", ["SGE", "GCT"])
def test_the_kernels_themselves_are_taken(op, benchmark):
    case = benchmark.Case(op, (1, 64, 3, 4), torch.float32, "contiguous", MODE, "cpu")
    assert benchmark.why_not("triton", "cpu") != ""  # times of the interpreter say nothing
    _, who, _, found = benchmark.prepare(case, "triton")
    assert who == "triton"
    expected = case.expected()
    case.check(found, expected, case.allowed(expected))


def test_a_module_without_operators(benchmark, tmp_path, capsys):
    arguments = ["--providers", "eager", "reference", "auto", "--mode", "forward"]
    assert small(benchmark, tmp_path, "--op", "bam", *arguments) == 0
    assert capsys.readouterr().out.count("left out: it calls no operator that has") == 2
    (row,) = read(tmp_path)
    assert (row["provider"], row["against"], row["least_maps"]) == ("reference", "reference", "")
    assert small(benchmark, tmp_path, "--op", "bam", "--providers", "eager") == 1
    assert "BAM: none of eager can run here" in capsys.readouterr().err


def test_a_compiler_that_does_not_work(benchmark, monkeypatch, tmp_path, capsys):
    def fails(*_):
        raise FileNotFoundError("no g++\nat all")

    monkeypatch.setattr(benchmark, "COMPILER", fails)
    arguments = ["--providers", "compile", "reference", "--mode", "forward"]
    assert small(benchmark, tmp_path, "--op", "se", *arguments) == 0
    said = capsys.readouterr().out
    assert said.count("compile is left out: torch.compile does not work here: ") == 1
    assert "no g++" in said
    on_any_device(benchmark, monkeypatch)
    assert small(benchmark, tmp_path, "--op", "se", *arguments) == 0
    assert "compile is left out: torch.compile fails: " in capsys.readouterr().out
    assert {row["provider"] for row in read(tmp_path)} == {"reference"}


def test_too_large(benchmark, monkeypatch, tmp_path, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(SGE.eager, "forward", full)
    monkeypatch.setattr(_backend, "EAGER_FROM", 0)
    assert small(benchmark, tmp_path, "--op", "sge", "--providers", "reference", "eager") == 0
    assert "eager is left out: out of memory: " in capsys.readouterr().out
    assert {row["provider"] for row in read(tmp_path)} == {"reference"}


def test_the_reference_in_half_precision_may_be_what_it_is(benchmark, monkeypatch, tmp_path):
    right = GCT.reference

    def rounded(x, *rest):
        return right(x, *rest) * (1 if x.dtype == torch.float64 else 1.1)

    monkeypatch.setitem(GCT.__dict__, "reference", rounded)  # it is frozen
    arguments = ["--op", "gct", "--providers", "reference", "--mode", "forward"]
    assert small(benchmark, tmp_path, *arguments) == 1
    assert small(benchmark, tmp_path, *arguments, "--dtype", "float16") == 0
    (row,) = read(tmp_path)
    assert 0.09 < float(row["error"]) < 0.12


# --- files and tables ------------------------------------------------------------------------


def test_other_rows_stay(benchmark, tmp_path):
    arguments = ["--mode", "forward", "--providers", "reference", "eager"]
    small(benchmark, tmp_path, "--op", "se", "gct", *arguments)
    first = read(tmp_path)
    small(benchmark, tmp_path, "--op", "se", *arguments[:3], "eager", "auto")
    small(benchmark, tmp_path, "--op", "se", "--mode", MODE, "--providers", "eager")
    rows = read(tmp_path)
    assert [(r["op"], r["mode"], r["provider"], r["against"]) for r in rows] == [
        ("SE", "forward", "eager", "eager"),  # one measurement, not a mixture of two
        ("SE", "forward", "auto", "eager"),
        ("GCT", "forward", "reference", "reference"),
        ("GCT", "forward", "eager", "reference"),
        ("SE", MODE, "eager", "eager"),
    ]
    assert rows[2:4] == first[2:4]


def test_table(benchmark, harness, tmp_path, capsys):
    same = dict(
        op="SGE", dtype="float32", layout="contiguous", mode="forward", map_mib="130.5",
        against="reference", copy_gb_per_s="12.30", hardware="a CPU", threads="2", torch="2.11",
        triton="", python="3.11", date="2025-11-22", commit="abc-dirty",
    )  # fmt: skip
    c2, c3 = dict(same, shape="2x256x200x334"), dict(same, shape="2x512x100x167", map_mib="65.23")
    rows = [
        dict(c2, provider="reference", implementation="reference", median_ms="201.4",
             p20_ms="200.1", p80_ms="220.7", ratio="1.000", gb_per_s="6.11", share_of_copy="0.230",
             peak_mib="400.2", first_call_ms="250.0"),
        dict(c2, provider="eager", implementation="eager", median_ms="61.22", p20_ms="58.01",
             p80_ms="66.10", ratio="0.304", gb_per_s="15.30", share_of_copy="0.757",
             peak_mib="130.6", first_call_ms="70.11"),
        dict(c3, provider="reference", implementation="", median_ms="2.000", p20_ms="1.900",
             p80_ms="2.100", ratio="1.000", gb_per_s="", share_of_copy="",
             peak_mib="", first_call_ms="3.000", commit="def"),
        dict(c3, provider="compile", implementation="", median_ms="3.000", p20_ms="2.987",
             p80_ms="3.100", ratio="1.500", gb_per_s="0.52", share_of_copy="0.01",
             peak_mib="7.1", first_call_ms="12345", commit="def"),
    ]  # fmt: skip
    harness.write(tmp_path / "out.csv", rows)
    assert benchmark.main(["--table", str(tmp_path / "out.csv")]) == 0
    c2, c3 = "SGE, 2x256x200x334, 130 MiB", "SGE, 2x512x100x167, 65.2 MiB"
    assert capsys.readouterr().out.splitlines() == [
        "a CPU, 2 CPU threads, PyTorch 2.11, Python 3.11; 2025-11-22, commit abc-dirty, def. "
        "Ratios are against reference. The copy: 12.3 GB/s, read and written.",
        "",
        "**float32, contiguous, forward**",
        "",
        "| op, map | provider | median (p20-p80) | ratio | GB/s | of the copy | peak memory | "
        "first call |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| {c2} | reference | 201 ms (200-221) | 1.00 | 6.11 | 23 % | 400 MiB | 250 ms |",
        f"| {c2} | eager | 61.2 ms (58.0-66.1) | 0.30 | 15.3 | 76 % | 131 MiB | 70.1 ms |",
        f"| {c2} | compile | not run |  |  |  |  |  |",
        f"| {c3} | reference | 2.00 ms (1.90-2.10) | 1.00 |  |  | ? | 3.00 ms |",
        f"| {c3} | eager | not run |  |  |  |  |  |",
        f"| {c3} | compile | 3.00 ms (2.99-3.10) | 1.50 | 0.520 | 1 % | 7 MiB | 12345 ms |",
    ]
    assert "2x512" not in benchmark.table(tmp_path / "out.csv", shape="2x256x200x334")
    rows[1]["host_ms"] = "0.1234"  # on CUDA
    rows[1]["implementation"] = "plain"
    harness.write(tmp_path / "out.csv", rows)
    text = benchmark.table(tmp_path / "out.csv")
    assert " | first call | launch |" in text
    assert " | eager (plain) | 61.2 ms " in text
    assert " | 70.1 ms | 0.1234 ms |" in text
    assert "In brackets behind a provider: who computed it" in text
    assert {line.count("|") for line in text.splitlines() if "|" in line} == {10}


def test_a_file_is_written_as_a_whole(harness, tmp_path):
    file = tmp_path / "out.csv"
    harness.write(file, [{"a": 1}, {"a": 2, "b": 3}])
    assert file.read_text().split() == ["a,b", "1,", "2,3"]
    assert file.stat().st_mode & 0o044 == 0o044 & ~_umask()

    class Bad:
        def __str__(self):
            raise KeyError

    with pytest.raises(KeyError):
        harness.write(file, [{"a": 5}, {"a": Bad()}])
    assert file.read_text().split() == ["a,b", "1,", "2,3"]
    assert list(tmp_path.iterdir()) == [file]
    assert harness.read(file, a=["2", "7"]) == [{"a": "2", "b": "3"}]
    with pytest.raises(ValueError, match="has no column c; it has a, b"):
        harness.read(file, c="1")


def _umask():
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_tables_in_pages(tables, harness, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    (tmp_path / "fake_tool.py").write_text(
        "import harness\n"
        "def table(path, **wanted): return f'{path.name}: {len(harness.read(path, **wanted))}'"
    )
    monkeypatch.syspath_prepend(tmp_path)
    harness.write(tmp_path / "fake_tool-x.csv", [{"a": 1}, {"a": 2}, {"a": 3}])
    page = tmp_path / "page.md"
    page.write_text(
        "one\n<!-- table: fake_tool-x.csv -->\nold\n<!-- end -->\ntwo\n"
        "<!-- table: fake_tool-x.csv a=1,3 -->\n<!-- end -->\nthree\n"
    )
    before = page.read_text()
    assert tables.main([str(page), "--check"]) == 1
    assert page.read_text() == before
    assert tables.main([str(page)]) == 0
    assert page.read_text() == (
        "one\n<!-- table: fake_tool-x.csv -->\n\nfake_tool-x.csv: 3\n\n<!-- end -->\ntwo\n"
        "<!-- table: fake_tool-x.csv a=1,3 -->\n\nfake_tool-x.csv: 2\n\n<!-- end -->\nthree\n"
    )
    capsys.readouterr()
    assert tables.main([str(page)]) == 0
    assert tables.main([str(page), "--check"]) == 0
    assert capsys.readouterr().out == ""
    for text, message in (
        ("<!-- table: fake_tool-x.csv -->\n", "has no '<!-- end -->' of its own"),
        ("<!-- table: gone.csv -->\n<!-- end -->", "there is no file .*gone.csv"),
        ("<!-- table: fake_tool-x.csv a -->\n<!-- end -->", "expected column=value"),
        ("<!-- table: fake_tool-x.csv a=9 -->\n<!-- end -->", "has no rows with a=9"),
        ("<!-- table: fake_tool-x.csv b=9 -->\n<!-- end -->", "has no column b"),
    ):
        page.write_text(text)
        with pytest.raises(SystemExit, match=f"page.md: .*{message}"):
            tables.main([str(page)])
    sys.modules.pop("fake_tool", None)


def test_every_kind_of_file_has_its_table(tables, harness):
    """Every file in results/ can stand in a page."""
    for path in harness.RESULTS.glob("*.csv"):
        assert "| ---" in tables.table(path.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_pages_show_the_files(page, tables):
    text = page.read_text()
    assert tables.updated(text) == text


# --- the measures ----------------------------------------------------------------------------


def test_in_turns(harness):
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "abc"}
    times = harness.in_turns(calls, 20, "cpu", at_most={"c": 2})
    assert {name: len(taken) for name, taken in times.items()} == {"a": 20, "b": 20, "c": 2}
    assert sorted(called) == sorted("ab" * 21 + "cc")
    assert set(called[:2]) == {"a", "b"}  # a warm-up, without the slow one
    rounds = [called[2:5], called[5:8], *(called[i : i + 2] for i in range(8, len(called), 2))]
    for one in rounds:
        assert len(set(one)) == len(one)
    assert len(set(map(tuple, rounds[2:]))) == 2  # the order changes
    assert all(x > 0 for taken in times.values() for x in taken)


def test_what_is_freed_is_not_timed(harness, monkeypatch):
    log = []
    real = harness.time.perf_counter
    monkeypatch.setattr(harness.time, "perf_counter", lambda: log.append("clock") or real())

    class Result:
        def __del__(self):
            log.append("freed")

    harness.milliseconds(Result, "cpu")
    assert log == ["clock", "clock", "freed"]


def test_the_caches_are_full_of_other_data(harness, monkeypatch):
    """Before every call, outside the clock."""
    monkeypatch.setattr(harness, "FLUSH_BYTES", 80)
    log, ones = [], torch.zeros

    class Other:
        def add_(self, one):
            log.append("flush")

    def zeros(*shape, **kwargs):
        assert ones(*shape, **kwargs).nbytes == 80
        return Other()

    monkeypatch.setattr(torch, "zeros", zeros)
    harness.in_turns({"x": lambda: log.append("call")}, 2, "cpu", flush=True)
    assert log == ["flush", "call"] * 3
    log.clear()
    harness.in_turns({"x": lambda: log.append("call")}, 2, "cpu")
    assert log == ["call"] * 3


@pytest.mark.parametrize(("host", "slept"), [(0.1, 1), (5.0, 10), (700.0, 50)])
def test_a_launch_is_hidden(host, slept, harness, monkeypatch):
    """The device is busy for at least twice as long as Python takes, and not for ever."""
    log, cuda = [], torch.cuda

    class Event:
        def __init__(self, enable_timing):
            self.at = None

        def record(self):
            self.at = sum(x for x in log if isinstance(x, float))

        def elapsed_time(self, end):
            return end.at - self.at

    # a device of a million cycles a millisecond
    monkeypatch.setattr(cuda, "_sleep", lambda cycles: log.append(cycles / 1e6), raising=False)
    monkeypatch.setattr(cuda, "Event", Event)
    monkeypatch.setattr(cuda, "synchronize", lambda: None)
    monkeypatch.setattr(cuda, "get_device_properties", lambda _: None)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, device, **k: empty(8, **k))
    monkeypatch.setattr(harness, "host_milliseconds", lambda call, runs: host)
    measure = harness._Events()
    log.clear()

    def call():
        log.append("call")
        log.append(0.25)

    assert measure(call, "cuda") == 0.25
    assert log == ["call", 0.25, slept, "call", 0.25]
    log.clear()
    assert measure(call, "cuda") == 0.25  # measured once
    assert log == [slept, "call", 0.25]


def test_time(harness):
    import time

    times = harness.in_turns({"x": lambda: time.sleep(0.02)}, 1, "cpu")
    assert 20 <= times["x"][0] < 2000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts it")
def test_peak_memory(harness):
    size = 64 << 20

    def call():
        a = torch.ones(size, dtype=torch.uint8)
        del a
        return torch.ones(size // 2, dtype=torch.uint8)

    # the kernel may take back the first tensor late, on a busy machine: the least of a few
    found = [harness.peak_memory(call, "cpu") for _ in range(4)]
    assert size * 0.9 < min(found) < size * 1.3
    assert harness.peak_memory(lambda: None, "cpu") < 4 << 20


def test_the_copy(harness, monkeypatch):
    monkeypatch.setitem(harness.COPY_BYTES, "cpu", 1 << 22)
    copy = harness.Copy("cpu")
    assert copy.tensors.shape == (2, 1 << 22)
    monkeypatch.setattr(harness, "in_turns", lambda *_: {"copy": [2.0, 4.0]})
    assert copy.bytes_per_second(2) == [2 * (1 << 22) / 2e-3, 2 * (1 << 22) / 4e-3]


def test_numbers(harness):
    assert [harness.digits(x, 3) for x in (0.0001234, 0.999, 1, 12.34, 1234.5, 0)] == [
        "0.000123",
        "0.999",
        "1.00",
        "12.3",
        "1234",
        "0",
    ]
    assert harness.percentile([5.0], 80) == 5
    assert harness.percentile([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 20) == 2
    assert harness.percentile([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 80) == 5


def test_names_of_files(harness):
    about = dict(hardware="AMD EPYC", threads=2, torch="2.11.0+cu130")
    assert harness.file_name("ops", "cpu", about) == "ops-cpu-amd-epyc-2threads-torch2.11.csv"
    about["hardware"] = "NVIDIA H100 80GB HBM3"
    name = "ops-cuda-nvidia-h100-80gb-hbm3-torch2.11.csv"
    assert harness.file_name("ops", "cuda", about) == name


# --- the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--op is missing"),
        (["--op", "sgee"], "'sgee' is no module; there are BAM, CBAM"),
        (["--op", "sge", "--shapes", "2x256"], "expected NxCxHxW, such as 2x256x200x334"),
        (["--op", "sge", "--shapes", "2x0x3x4"], "expected NxCxHxW"),
        (["--op", "sge", "--shapes", "2x63x3x4"], "--shapes 2x63x3x4: SGE expects groups"),
        (["--op", "sge", "--runs", "0"], "expected an integer of 1 or more, got '0'"),
        (["--op", "sge", "--dtype", "float64"], "invalid choice: 'float64'"),
        (["--table", "no.csv"], "there is no file no.csv"),
    ],
)
def test_bad_arguments(arguments, message, benchmark, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_no_cuda(benchmark, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["--op", "sge", "--device", "cuda"])
    assert "PyTorch finds no CUDA device" in capsys.readouterr().err


def test_names_of_modules(benchmark):
    for text in ("NonLocal", "non_local", "nonlocal", "NON_LOCAL"):
        assert benchmark.module_name(text) == "NonLocal"
    assert benchmark.parse(["--op", "all"]).op == ["SE", "SGE", "GC", "GCT", "CBAM"]
