"""tools/check_config.py as a user runs it, and the report at the start of tools/train.py."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmattn.inspection import check_config, config_file, preflight

TOOLS = Path(__file__).parents[2] / "tools"
DEMO = "mmattn::demo/faster-rcnn_r50w16-sge-c2-c5_fpn_600it_shapes.py"
FROZEN = """
_base_ = 'mmattn::demo/faster-rcnn_r50w16_fpn_600it_shapes.py'
model = dict(backbone=dict(frozen_stages=1, plugins=[
    dict(cfg=dict(type='mmattn.SE'), position='after_conv3')]))
"""


@pytest.fixture
def tool(monkeypatch, capsys):
    """Runs the tool in this process: its status, stdout and stderr."""
    spec = importlib.util.spec_from_file_location("check_config_tool", TOOLS / "check_config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["check_config.py", *map(str, argv)])
        status = 0
        try:
            module.main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def frozen(tmp_path):
    path = tmp_path / "frozen.py"
    path.write_text(FROZEN)
    return path


@pytest.mark.once  # in this process, on both stacks: the tests below
def test_a_config_as_a_user_checks_it(tmp_path):
    """In a process of its own, in an empty folder, that it leaves empty."""
    command = [sys.executable, TOOLS / "check_config.py", DEMO, "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"^\| mmattn\.SGE \| backbone\.layer1 \| +3 \| +64 \|", done.stdout, re.M)
    assert done.stdout.endswith("No hazard found, of 16 that are known.\n")
    assert list(tmp_path.iterdir()) == []


def test_strict_is_about_warnings(tool, frozen):
    status, out, _ = tool(frozen)
    assert status == 0
    assert "warning: frozen-module: 3 mmattn.SE in backbone.layer1" in out
    assert "\n    model = dict(backbone=dict(frozen_stages=0))\n" in out
    assert "| mmattn.SE | backbone.layer3 " in out
    status, strict, _ = tool(frozen, "--strict")
    assert status == 1
    assert strict == out


def test_options(tool, frozen):
    batch = ["--cfg-options", "auto_scale_lr.base_batch_size=8", "model.backbone.frozen_stages=0"]
    status, out, _ = tool(frozen, "--strict", "--all", "--gpus", "1", *batch)
    assert status == 1
    assert "| mmattn.SE | backbone.layer3.5.se " in out
    assert re.findall("^warning: ([a-z-]+):", out, re.M) == ["lr-batch"]
    plain = "mmattn::demo/faster-rcnn_r50w16_fpn_600it_shapes.py"
    status, out, _ = tool(plain, "--strict", "--attention", "gc@c3-c5", "--gpus", "2", *batch[:2])
    assert status == 0
    assert "| mmattn.GC | backbone.layer2 " in out
    status, _, err = tool(frozen, "--gpus", "0")
    assert status == 2
    assert err.splitlines()[-1].endswith("--gpus is expected to be an integer above 0, got 0")


def test_the_newest_checkpoint_of_a_work_dir(tool, frozen, tmp_path):
    cfg = config_file.load(str(frozen))
    work = tmp_path / "work"
    work.mkdir()
    status, _, err = tool(frozen, work)
    assert (status, err) == (1, f"check_config.py: folder {work} has no whole checkpoint\n")
    model = check_config.build.build_model(cfg)
    state = dict(state_dict=model.state_dict(), meta=dict(epoch=0, iter=2), message_hub={})
    torch.save(state, work / "iter_2.pth")
    status, out, _ = tool(frozen, work, "--strict")
    assert status == 0
    assert re.search(r"weights: whole model from .*iter_2\.pth: (\d+) of \1 weights\n", out)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["gone.py"], "config gone.py does not exist"),
        ([DEMO, "gone.pth"], "checkpoint gone.pth does not exist"),
        ([DEMO, "--cfg-options", "load_from=gone.pth"], "checkpoint gone.pth does not exist"),
        ([DEMO, "--cfg-options", "modle.a=1"], "did you mean model.a?"),
        ([DEMO, "--cfg-options", "model.type=FastRCNNN"], "the config cannot be built: "),
        ([DEMO, "--attention", "sgee"], "--attention knows no module"),
    ],
)
def test_a_mistake_is_one_line(tool, argv, said):
    status, _, err = tool(*argv)
    assert status == 1
    assert err.startswith("check_config.py: ")
    assert said in err
    assert err.count("\n") == 1


# the start of tools/train.py


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    (folder / "frozen.py").write_text(FROZEN)
    cfg = config_file.load(str(folder / "frozen.py"))
    cfg.launcher, cfg.work_dir = "none", str(folder / "work")
    return preflight.build_runner(cfg)


def test_a_training_starts_with_a_short_report(runner, capsys):
    capsys.readouterr()
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    preflight.report(runner, preflight.check_weights(runner, training=True))
    out, err = capsys.readouterr()
    inserted = [line for line in out.splitlines() if line.startswith("inserted: ")]
    assert len(inserted) == 1
    assert re.match(r"inserted: 16 mmattn\.SE in .*, 3 of 16 frozen, factor 0\.5$", inserted[0])
    assert err.splitlines() == [
        "warning: frozen-module: 3 mmattn.SE in backbone.layer1: frozen at the start "
        "(factor 0.5), and never trained",
        "    model = dict(backbone=dict(frozen_stages=0))",
    ]
    after = runner.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_processes_of_a_run_are_its_gpus(runner, capsys, monkeypatch):
    monkeypatch.setitem(runner.cfg._cfg_dict, "auto_scale_lr", dict(base_batch_size=16))
    preflight.report(runner, [])
    assert "warning: lr-batch: " in capsys.readouterr().err
    monkeypatch.setattr(type(runner), "world_size", 4)
    preflight.report(runner, [])
    assert "lr-batch" not in capsys.readouterr().err


def test_a_report_that_fails_does_not_stop_a_training(runner, capsys, monkeypatch):
    def fail(*_):
        raise RuntimeError("a\nbug")

    monkeypatch.setattr(check_config, "look_at", fail)
    capsys.readouterr()
    preflight.report(runner, [])
    assert capsys.readouterr() == (
        "",
        "warning: the config check has failed: RuntimeError: a bug\n",
    )


def test_one_process_reports_for_all(runner, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(check_config, "look_at", lambda *_: pytest.fail("looked"))
    capsys.readouterr()
    preflight.report(runner, [])
    assert capsys.readouterr() == ("", "")


def test_a_training_that_cannot_be_built_names_the_line(frozen, tmp_path):
    options = {"model.backbone.depth": 18, "model.neck.in_channels": [16, 32, 64, 128]}
    cfg = config_file.load(str(frozen), options)
    cfg.launcher, cfg.work_dir = "none", str(tmp_path / "work")
    with pytest.raises(preflight.PreflightError, match=r"attach them: model = dict\(type='mmattn"):
        preflight.build_runner(cfg)
