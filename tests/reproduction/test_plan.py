"""Which trainings a table stands for: settings, batch, and what makes a result another one."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmattn.inspection import config_file
from mmattn.reproduction import fingerprint, plan, status
from mmattn.reproduction import table as tables
from mmattn.reproduction.plan import Machine

DEMO = "configs/demo/faster-rcnn_r50w16_fpn_600it_shapes.py"
COCO = "configs/gc/faster-rcnn_r50-gc-r16-c3-c5_fpn_1x_coco.py"


@pytest.fixture
def data(tmp_path):
    """Annotation files and image folders for the configs of the demo and of COCO."""
    root = tmp_path / "data"
    for name in ("train", "val", "instances_train2017", "instances_val2017"):
        path = root / "annotations" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": [{"id": 1}], "annotations": [], "categories": []}))
    for name in ("train", "val", "train2017", "val2017"):
        (root / name).mkdir()
        (root / name / "1.png").touch()
    return root


def make(tmp_path, data, config=DEMO, machine=None, **row):
    path = tmp_path / "t.yml"
    path.write_text(yaml.safe_dump({"title": "T", "rows": [{"config": config, **row}]}))
    made = plan.make(
        tables.load(path), tmp_path / "out", machine or Machine(), str(data), write=True
    )
    return made.runs[0]


def test_the_config_is_written_as_it_is_run(tmp_path, data):
    run = make(tmp_path, data, options={"train_cfg.max_iters": 40}, seeds=[5])
    config = config_file.load(str(run.config))
    assert config.randomness == {"seed": 5}
    assert config.train_cfg.max_iters == 40
    assert config.train_dataloader.dataset.data_root == f"{data}/"
    original = config_file.load(DEMO)
    assert config.model == original.model
    assert config.param_scheduler == original.param_scheduler
    assert (run.unit, run.total, run.images_per_update) == ("iter", 40, 4)
    assert run.record["data"]["images"] == 1
    assert run.record["config"] == DEMO
    assert status.of(run).kind == "waiting"


def test_what_makes_a_result_another_one(tmp_path, data):
    first = make(tmp_path, data)
    assert make(tmp_path, data).folder == first.folder
    # moved, the data are still the same
    moved = tmp_path / "elsewhere"
    shutil.copytree(data, moved)
    assert make(tmp_path, moved).folder == first.folder
    others = [
        make(tmp_path, data, seeds=[1]),
        make(tmp_path, data, options={"optim_wrapper.optimizer.lr": 0.5}),
        make(tmp_path, data, config=DEMO.replace("w16_", "w16-se-c2-c5_"), name=first.row),
    ]
    file = data / "annotations" / "train.json"
    file.write_text(file.read_text() + " ")
    others.append(make(tmp_path, data))
    assert len({run.setting for run in (first, *others)}) == 5


def test_code_counts_and_comments_do_not(tmp_path):
    for name in ("ops", "evaluation"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text('def f(x):\n    """Doc."""\n    return x + 1\n')
    before = fingerprint.code(tmp_path)
    (tmp_path / "ops" / "a.py").write_text("def f(x):  # why\n    'Other.'\n    return x+1\n")
    (tmp_path / "evaluation" / "a.py").write_text("g = 1")
    assert fingerprint.code(tmp_path) == before
    (tmp_path / "ops" / "a.py").write_text("def f(x):\n    'Other.'\n    return x + 2\n")
    assert fingerprint.code(tmp_path) != before


def test_what_makes_the_trainer_counts_as_code(tmp_path, monkeypatch):
    seen = [fingerprint.code(tmp_path)]
    (tmp_path / "inspection").mkdir()
    (tmp_path / "inspection" / "cost.py").write_text("a = 1")
    assert fingerprint.code(tmp_path) == seen[0]
    (tmp_path / "inspection" / "preflight.py").write_text("a = 1")
    seen.append(fingerprint.code(tmp_path))
    monkeypatch.setenv("MMATTN_BACKEND", "reference")
    seen.append(fingerprint.code(tmp_path))
    assert len(set(seen)) == 3
    package = Path(fingerprint.__file__).parents[1]
    assert all((package / name).is_file() for name in fingerprint.TRAINING)


def test_the_config_of_a_result_stays(tmp_path, data):
    eight = Machine(devices=tuple("01234567"))
    run = make(tmp_path, data, config=COCO, machine=eight, gpus=8)
    run.result.write_text("{}")
    before = run.config.read_text()
    assert make(tmp_path, data, config=COCO, gpus=8).folder == run.folder
    assert run.config.read_text() == before
    run.result.unlink()
    make(tmp_path, data, config=COCO, gpus=8)
    assert run.config.read_text() != before


def test_fewer_gpus_accumulate_the_batch_of_the_recipe(tmp_path, data):
    """16 images an update on 8, on 3 (which takes 2) and on no GPU; warm-up in updates."""
    settings_of = {}
    for devices, processes in ((8, 8), (3, 2), (0, 1)):
        machine = Machine(devices=tuple(map(str, range(devices))))
        run = make(tmp_path, data, config=COCO, machine=machine, gpus=8)
        config = Config.fromfile(run.config)
        steps = 8 // processes
        assert (run.processes, run.images_per_update) == (processes, 16)
        assert run.setting == settings_of.setdefault("any", run.setting)
        assert config.optim_wrapper.get("accumulative_counts", 1) == steps
        warm_up, decay = config.param_scheduler
        assert warm_up["end"] == 500 * steps
        assert decay["milestones"] == [8, 11]
        assert run.total == 12
    # without gpus in the table, what the learning rate is for
    assert make(tmp_path, data, config=COCO).images_per_update == 16
    with pytest.raises(ValueError, match="4 GPUs x 2 images are 8, but its learning rate is for"):
        make(tmp_path, data, config=COCO, gpus=4)
    machine = Machine(devices=tuple("0123"), nodes=2, address="a:1")
    assert make(tmp_path, data, config=COCO, machine=machine, gpus=8).processes == 8
    with pytest.raises(ValueError, match="cannot be split over 3 machines"):
        make(tmp_path, data, config=COCO, machine=Machine(nodes=3, address="a:1"), gpus=8)


def test_iterations_count_updates_when_gradients_accumulate(tmp_path, data):
    run = make(tmp_path, data, gpus=2)
    config = Config.fromfile(run.config)
    assert run.total == config.train_cfg.max_iters == 1200
    assert [s["end"] for s in config.param_scheduler] == [100, 1200]
    assert config.default_hooks.checkpoint.interval == 200


def test_missing_data_and_weights_are_named(tmp_path, data):
    with pytest.raises(ValueError, match=r"row .*w16.*: annotation file nowhere"):
        make(tmp_path, "nowhere")
    run = make(tmp_path, data, options={"load_from": "checkpoints/none.pth"})
    assert run.missing == "checkpoints/none.pth"
    assert status.of(run).text == "needs checkpoints/none.pth"
    (tmp_path / "w.pth").write_text("a")
    run = make(tmp_path, data, options={"load_from": str(tmp_path / "w.pth")})
    assert run.missing == ""
    (tmp_path / "w.pth").write_text("bc")
    assert (
        make(tmp_path, data, options={"load_from": str(tmp_path / "w.pth")}).setting != run.setting
    )
    with pytest.raises(ValueError, match="test_evaluator is expected to be one"):
        make(tmp_path, data, options={"test_evaluator.type": "CocoMetric"})


def test_a_plan_is_read_as_it_was_written(tmp_path, data):
    path = tmp_path / "t.yml"
    path.write_text(yaml.safe_dump({"title": "T", "rows": [{"config": DEMO}]}))
    made = plan.make(tables.load(path), tmp_path / "out", Machine(), str(data), write=True)
    read = plan.read(made.path)
    assert dataclasses.asdict(read) == dataclasses.asdict(made)
    # nothing is written for a look at the state
    shutil.rmtree(tmp_path / "out" / "t")
    plan.make(tables.load(path), tmp_path / "out", Machine(), str(data))
    assert not (tmp_path / "out" / "t").exists()


ABLATIONS = [
    row for path in tables.shipped() if "ablations" in path.stem for row in tables.load(path).rows
]


@pytest.mark.once
@pytest.mark.parametrize("row", [row for row in ABLATIONS if row.options], ids=lambda row: row.name)
def test_ablations_change_the_model_that_is_built(row):
    from mmdet.registry import MODELS

    init_default_scope("mmdet")
    built = []
    for options in ({}, row.options):
        with torch.device("meta"):
            built.append(MODELS.build(config_file.load(row.config, options).model.backbone))
    plain, changed = (
        [(name, type(part), settings(part)) for name, part in backbone.named_modules()]
        for backbone in built
    )
    assert plain != changed


def settings(part):
    """What a module was told, beside its parameters' shapes."""
    told = {key: value for key, value in vars(part).items() if isinstance(value, (int, str, float))}
    return told, getattr(part, "fusion", None), [tuple(p.shape) for p in part.parameters()]


def test_reproduce_py_says_what_it_would_do(tmp_path, data, monkeypatch, capsys):
    sys.path.insert(0, str(tables.root() / "tools"))
    try:
        import reproduce
    finally:
        sys.path.pop(0)
    pytest.importorskip("snakemake")
    out, root = str(tmp_path / "out"), str(data)
    reproduce.main(["list"])
    assert "sge-ablations" in capsys.readouterr().out
    rows = [
        {"name": "plain", "config": DEMO},
        {"name": "other", "config": DEMO, "options": {"train_cfg.max_iters": 4}},
        {"name": "pre", "config": DEMO, "options": {"load_from": "none.pth"}},
    ]
    path = tmp_path / "t.yml"
    path.write_text(yaml.safe_dump({"title": "T", "rows": rows}))
    coco = tmp_path / "coco.yml"
    coco.write_text(yaml.safe_dump({"title": "T", "rows": [{"config": COCO}]}))
    common = [str(path), "--out", out, "--data-root", root, "--cpu"]
    reproduce.main(["run", *common, "--rows", "other", "--dry-run", "--at-once", "3"])
    said = capsys.readouterr().out
    assert "1 of 1 run to do" in said
    assert "on the CPU, 3 runs at a time" in said
    assert "other seed 0: 4 iters, 1 process\n" in said
    reproduce.main(
        ["run", *common, "--rows", "plain", "--dry-run", "--cfg-options", "train_cfg.max_itrs=4"]
    )
    assert "did you mean train_cfg.max_iters?" in capsys.readouterr().err
    reproduce.main(["status", *common])
    said = capsys.readouterr().out
    assert "0 of 3 runs done" in said
    assert said.count("waiting") == 2
    # a result of other options is not shown as this one's, and not passed over in silence
    other = tmp_path / "out" / "t" / "plain" / "seed0" / "0-0" / "result.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    reproduce.main(["status", *common, "--rows", "plain"])
    said = capsys.readouterr().out
    assert "waiting (1 done with other options or data)" in said
    assert "0 of 1 runs done" in said
    with pytest.raises(SystemExit):
        reproduce.main(["report", *common])
    assert "1 runs are with others (plain seed 0 ...): give the --cfg-options" in (
        capsys.readouterr().err
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit):
        reproduce.main(["run", str(coco), "--out", out, "--data-root", root, "--dry-run"])
    assert "no GPU was found, and these recipes are for 8: --cpu" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["run", *common])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "reproduce.py: pre-trained weights are not there: pre (none.pth)" in said
    with pytest.raises(SystemExit):
        reproduce.main(["run", "nope"])
    assert "table nope does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        reproduce.main(["run", "demo", "--nodes", "2"])
    assert "need --nodes N --node-rank" in capsys.readouterr().err
    # only a run that begins writes
    assert not list(Path(out).rglob("plan.json"))
