"""tools/module_stats.py as a user runs it."""

import importlib.util
import json
import re
import signal
import xml.dom.minidom
from pathlib import Path

import numpy as np
import pytest
import torch

from mmattn.inspection import attention_option, build, config_file
from mmattn.visualization import statistics_plots

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs/demo/faster-rcnn_r50w16_fpn_600it_shapes.py"
WISH = "sge:groups=4@c5"
SGE = ["small.py", f"{WISH}.pth", "--attention", WISH]
VAL = [*SGE, "--data", "val"]


def imported(path):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = imported("tools/module_stats")


def build_and_save(config, folder, attention, seed=0):
    cfg = config_file.load(str(config))
    if attention:
        attention_option.apply(cfg, attention)
    torch.manual_seed(seed)
    model = build.build_model(cfg)
    for parameter in model.parameters():
        if parameter.dim() <= 4 and parameter.numel() < 5000:
            parameter.data.normal_(0, 0.3)
    path = folder / f"{attention or 'plain'}.pth"
    torch.save({"state_dict": model.state_dict(), "meta": {}}, path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Drawn images, a config and checkpoints of three models."""
    folder = tmp_path_factory.mktemp("stats")
    draw = imported("tools/dataset/draw_shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        handler = signal.getsignal(signal.SIGTERM)
        options = ["--train", "3", "--val", "5"]
        assert draw.main([str(folder / "data/shapes"), *options]) == 0
        signal.signal(signal.SIGTERM, handler)
    lines = [f"_base_ = {str(DEMO)!r}"]
    lines.append("model = dict(backbone=dict(base_channels=8), ")
    lines.append("             neck=dict(in_channels=[32, 64, 128, 256]))")
    config = folder / "small.py"
    config.write_text("\n".join(lines) + "\n")
    for attention in (WISH, None):
        build_and_save(config, folder, attention)
    return folder


@pytest.fixture
def run(place, monkeypatch):
    monkeypatch.chdir(place)

    def run(*argv):
        tool.main([str(x) for x in argv])

    return run


@pytest.fixture
def few_pictures(monkeypatch):
    """All are drawn in test_statistics.py; writing them takes longer than the rest."""
    draw = statistics_plots.figures

    def figures(statistics):
        keep = ("gates", "sge_parameters")
        return {name: one for name, one in draw(statistics).items() if name in keep}

    monkeypatch.setattr(statistics_plots, "figures", figures)


def test_a_table_a_file_and_pictures(run, place, few_pictures, capsys):
    run(*VAL, "--images", "3", "--out", "out")
    printed = capsys.readouterr().out
    assert re.search(r"\| c5, block 3.* \| SGE mask +\| +4 \|", printed)
    found = json.loads((place / "out/module_stats.json").read_text())
    assert set(found) == {
        *("schema", "tolerance", "parameters", "layers", "images", "classes", "needs_data"),
        "conditions",
    }
    conditions = found["conditions"]
    assert conditions["data"] == {
        "split": "val",
        "dataset_size": 5,
        "images": 3,
        "chosen": "evenly spaced",
        "batch_size": 1,
    }
    assert conditions["attention"] == WISH
    assert conditions["versions"]["torch"] == torch.__version__
    # with few classes all are shown, and images count as the annotations say
    annotations = json.loads((place / "data/shapes/annotations/val.json").read_text())
    ids = [annotations["images"][i]["id"] for i in (0, 2, 4)]
    shown = {"all": 3}
    for one in annotations["categories"]:
        having = {
            x["image_id"] for x in annotations["annotations"] if x["category_id"] == one["id"]
        }
        shown[one["name"]] = len(having & set(ids))
    assert found["classes"] == shown
    assert [one["label"].partition(", sge")[0] for one in found["layers"]] == [
        f"c5, block {i}" for i in (1, 2, 3)
    ]
    gate = found["layers"][0]["maps"][0]
    assert sum(gate["histogram"]["counts"]) == 3 * 4 * 8 * 8
    for name in ("gates", "sge_parameters"):
        assert (place / f"out/{name}.png").read_bytes().startswith(b"\x89PNG")
        xml.dom.minidom.parse(str(place / f"out/{name}.svg"))
    # another run into the folder takes away the pictures that are not its own
    run(*SGE, "--out", "out")
    printed = capsys.readouterr().out
    assert "| c5, block 1" in printed
    assert {p.name for p in (place / "out").iterdir()} == {
        "module_stats.json", "sge_parameters.png", "sge_parameters.svg",
    }  # fmt: skip
    found = json.loads((place / "out/module_stats.json").read_text())
    assert (found["images"], found["layers"], found["conditions"]["data"]) == (0, [], None)
    assert len(found["parameters"]) == 3


def test_the_training_images_come_as_in_a_test(place, monkeypatch):
    monkeypatch.chdir(place)
    cfg = config_file.load("small.py")
    cfg.train_dataloader.dataset = dict(
        type="RepeatDataset", times=7, dataset=cfg.train_dataloader.dataset
    )
    dataset = tool.build_dataset(cfg, "train")
    assert len(dataset) == 3
    assert [type(step).__name__ for step in dataset.pipeline.transforms] == [
        *("LoadImageFromFile", "Resize", "LoadAnnotations", "PackDetInputs"),
    ]


@pytest.mark.parametrize(
    ("size", "count", "chosen"),
    [(5, 3, [0, 2, 4]), (10, 2, [2, 7]), (3, 500, [0, 1, 2]), (1000, 1, [500])],
)
def test_images_are_spaced_evenly(size, count, chosen):
    assert tool.spaced(size, count) == chosen


def test_spacing_has_no_image_twice():
    for size in range(1, 40):
        for count in range(1, size + 1):
            chosen = tool.spaced(size, count)
            assert len(set(chosen)) == count
            assert 0 <= chosen[0] <= chosen[-1] < size
            assert np.ptp(np.diff(chosen)) <= 1 if count > 2 else True


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["small.py", "None.pth"], "checkpoint None.pth does not exist"),
        (["small.py", "plain.pth"], "no inserted module.*it was trained with"),
        (["small.py", "plain.pth", "--attention", "sge@c5"], "plain.pth.*sge"),
        ([*SGE, "--device", "cuda"], "PyTorch finds no CUDA device"),
        ([*VAL, "--classes", "circel"], "no class 'circel'; did you mean 'circle'"),
        ([*VAL, "--cfg-options", "data_root=gone/"], "gone/.* does not exist"),
        (
            [*SGE, "--data", "test", "--cfg-options", "test_dataloader=None"],
            "no test_dataloader; it has train and val",
        ),
        ([*SGE, "--out", "small.py"], "--out small.py is expected to be a folder"),
        ([*SGE, "--out", "data"], "--out data has files that are not of an earlier run"),
    ],
)
def test_what_goes_wrong_is_one_sentence(run, argv, said, capsys):
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as ended:
        run(*argv)
    assert ended.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("module_stats.py: ")
    assert re.search(said, last), last


def test_files_of_others_stay(place, run, capsys):
    own = place / "own"
    own.mkdir()
    (own / "gates.png").write_text("mine")
    with pytest.raises(SystemExit):
        run(*SGE, "--out", "own")
    assert "name another folder" in capsys.readouterr().err
    assert [p.name for p in own.iterdir()] == ["gates.png"]


def test_an_image_that_cannot_be_read_is_named(place, run, capsys):
    names = sorted((place / "data/shapes/val").iterdir())
    content = names[2].read_bytes()
    names[2].write_bytes(b"no image")
    try:
        with pytest.raises(SystemExit):
            run(*SGE, "--data", "val", "--out", "broken")
    finally:
        names[2].write_bytes(content)
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"image .* of val cannot be loaded", last)
    assert not (place / "broken").exists()  # nothing of a run that failed


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["small.py"],
        [*SGE, "--data", "vall"],
        [*SGE, "--data", "val", "--images", "0"],
        [*SGE, "--data", "val", "--images", "-3"],
        [*SGE, "--classes", "circle"],
        [*SGE, "--images", "5"],
    ],
)
def test_usage_errors(run, argv, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*argv)
    assert ended.value.code == 2
    assert re.search("expected|required|invalid choice", capsys.readouterr().err)


def test_the_docs_name_every_picture():
    docs = (ROOT / "docs/module-stats.md").read_text()
    named = set(re.findall(r"^\| `(\w+)` \|", docs, re.MULTILINE))
    assert named == set(statistics_plots.NAMES)
