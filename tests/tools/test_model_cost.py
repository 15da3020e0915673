"""tools/model_cost.py as a user runs it, and what docs/cost.md says that it says."""

import csv
import functools
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/cost.md").read_text()
SGE = "mmattn::demo/faster-rcnn_r50w16-sge-c2-c5_fpn_600it_shapes.py"
SMALL = ["--shape", "64", "90", "--repeats", "0"]


def imported(path):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


tool = imported("tools/model_cost")
modules = imported("tools/benchmarks/module_cost")


def cells(text, part):
    (line,) = [x for x in text.splitlines() if re.match(rf"\| {re.escape(part)} +\|", x)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_and_a_file(capsys, tmp_path):
    out = tmp_path / "cost.json"
    tool.main([SGE, "--shape", "64", "90", "--repeats", "1", "--out", str(out)])
    printed = capsys.readouterr()
    assert "counting plain" in printed.err
    stem = Path(SGE).stem
    assert cells(printed.out, "part") == [
        *("part", "model", "parameters", "GFLOPs", "activations (MiB)", "forward (ms)"),
    ]
    assert cells(printed.out, "SGE x 16")[1:3] == [stem, "512"]
    assert "64x90, batch 1, float32, " in printed.out
    assert "the image is padded to 64x96" in printed.out
    content = json.loads(out.read_text())
    assert content["conditions"]["torch"] == torch.__version__
    assert [row["part"] for row in content["rows"] if row["model"] == stem] == [
        *("detector", "backbone", "SGE"),
    ]
    assert all(row["forward_ms"] > 0 for row in content["rows"])


def test_several_configs_and_a_module_from_the_command_line(capsys, tmp_path):
    out = tmp_path / "cost.csv"
    plain = "mmattn::demo/faster-rcnn_r50w16_fpn_600it_shapes.py"
    copied = tmp_path / Path(plain).name
    copied.write_text(f"_base_ = {str(ROOT / 'configs/demo' / Path(plain).name)!r}\n")
    options = [
        "--cfg-options",
        "model.backbone.base_channels=8",
        "model.neck.in_channels=[32,64,128,256]",
    ]
    argv = [plain, str(copied), *SMALL, "--out", str(out), "--attention", "se:ratio=4@c5", *options]
    tool.main(argv)
    printed = capsys.readouterr().out
    assert "forward" not in printed
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    # two configs of one name are told apart, and share the plain model
    assert {row["model"] for row in rows} == {"plain", Path(plain).stem, str(copied)}
    found = [row for row in rows if row["part"] == "SE"]
    assert [row["modules"] for row in found] == ["3", "3"]
    size = 2 * 256 * 64 + 256 + 64
    assert [int(row["parameters"]) for row in found] == [3 * size, 3 * size]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["gone.py"], r"config gone\.py does not exist"),
        ([SGE.replace("sge", "sgee")], r"does not exist; did you mean"),
        ([SGE, "--device", "cuda"], "PyTorch finds no CUDA device"),
        ([SGE, "--out", "no/such/cost.csv"], "--out no/such/cost.csv: that folder does not exist"),
        ([SGE, "--attention", "sgee"], "sge"),
        ([SGE, *SMALL, "--cfg-options", "model.backbone.depth=51"], "cannot be built: .*51"),
    ],
)
def test_what_goes_wrong_is_one_sentence(argv, said, capsys):
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as ended:
        tool.main(argv)
    assert ended.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("model_cost.py: ")
    assert re.search(said, last)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        [SGE, "--shape", "0", "90"],
        [SGE, "--shape", "64"],
        [SGE, "--shape", "-8", "90"],
        [SGE, "--repeats", "x"],
        [SGE, "--out", "cost.txt"],
        [SGE, "--cfg-options", "depth"],
    ],
)
def test_usage_errors(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        tool.main(argv)
    assert ended.value.code == 2
    assert re.search(
        "error: .*expected|error: .*required|error: .*expects", capsys.readouterr().err
    )


def test_the_docs_show_the_help():
    """The definitions of the figures are those that --help prints."""
    definitions = tool.__doc__.split("\n\n")[2]
    assert definitions in DOCS


@functools.cache
def plain_resnet():
    return modules.measure(modules.Place("", {}), 50, (800, 1333))


@pytest.mark.parametrize("name", ["none", "SE", "DRConv2d, 8 regions"])
def test_the_docs_show_what_a_module_costs(name):
    shown = cells(DOCS, name)
    plain = plain_resnet()
    if name == "none":
        assert shown[2] == f"{plain.parameters:,}"
        assert shown[5] == f"{plain.gflops:.2f} G"
        return
    one = modules.measure(modules.places(50)[name], 50, (800, 1333))
    assert shown[2:] == [
        f"{one.parameters - plain.parameters:+,}",
        f"{(one.multiply_adds - plain.multiply_adds) / 1e9:+.3f}",
        f"{(one.elementwise - plain.elementwise) / 1e9:+.3f}",
        f"{100 * (one.gflops / plain.gflops - 1):+.2f} %",
        f"{(one.activations - plain.activations) / 2**20:+.0f}",
    ]


def test_every_module_has_a_row():
    """Those that are registered, by the names of the table."""
    from mmattn.registry import MODELS

    MODELS.import_from_location()
    built = {"Attach", "DRShuffleNetV2", "GCTConv2d"}  # GCT stands for the last
    named = {name.partition(",")[0] for name in modules.places(50)} - {"plain"}
    assert named == set(MODELS.module_dict) - built


@pytest.mark.slow
def test_the_docs_show_the_whole_tables():
    assert modules.modules_table((800, 1333)) in DOCS
    assert modules.published_table() in DOCS
