"""tools/train.py and tools/test.py as a user runs them: what is said, and with which status?

A test and an interrupted training start a process; the others call ``main`` in this one.
"""

import contextlib
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmdet.visualization import DetLocalVisualizer

from mmattn.inspection import checkpoint_file

TOOLS = Path(__file__).parents[2] / "tools"
PLAIN = "mmattn::demo/faster-rcnn_r50w16_fpn_600it_shapes.py"
SGE = "mmattn::demo/faster-rcnn_r50w16-sge-c2-c5_fpn_600it_shapes.py"
RETINANET = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
TINY = [
    "train_dataloader.batch_size=2",
    *[f"{name}_dataloader.num_workers=0" for name in ("train", "val", "test")],
    *[f"{name}_dataloader.persistent_workers=False" for name in ("train", "val", "test")],
    "default_hooks.logger.interval=1",
    "default_hooks.checkpoint.interval=1",
]


def command(tool, *argv):
    return [sys.executable, TOOLS / tool, *map(str, argv)]


def start(cwd, tool, *argv):
    return subprocess.run(
        command(tool, *argv),
        cwd=cwd,
        env={**os.environ, "MMDET_DATASETS": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run(cwd, tool, *argv):
    """``start`` in this process, which has imported everything."""
    spec = importlib.util.spec_from_file_location(f"run_{tool[:-3]}", TOOLS / tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(cwd)
        patch.setenv("MMDET_DATASETS", "")
        # else it would write into the folder of an earlier run
        patch.setattr(DetLocalVisualizer, "_instance_dict", OrderedDict())
        patch.setattr(sys, "argv", [tool, *map(str, argv)])
        try:
            module.main()
        except SystemExit as end:
            status = end.code
    return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())


def tiny(iterations):
    # the data root, not the environment, says where data are
    return ["--cfg-options", *TINY, "data_root=shapes", f"train_cfg.max_iters={iterations}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a drawn dataset and a finished training of two iterations."""
    cwd = tmp_path_factory.mktemp("run")
    argv = ["--train", "4", "--val", "2", "--size", "224"]
    subprocess.run(command("dataset/draw_shapes.py", cwd / "shapes", *argv), check=True)
    return cwd


@pytest.fixture(scope="module")
def trained(folder):
    done = run(folder, "train.py", SGE, "--work-dir", "work", "--resume", *tiny(2))
    assert done.returncode == 0, done.stderr
    return done


def errs(done, said, status=1):
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert re.search(said, done.stderr.splitlines()[-1]), done.stderr


@pytest.mark.once
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["demo.py"], r"^train\.py: config demo\.py does not exist"),
        ([PLAIN], r"annotation file data/shapes/annotations/train\.json .*data_root="),
        (
            ["mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"],
            "instances_train2017.json .*data/coco ",
        ),
        ([PLAIN, "--cfg-options", "load_from=gone.pth"], r"checkpoint gone\.pth does not exist"),
        ([PLAIN, "--resume", "gone.pth"], r"checkpoint gone\.pth does not exist"),
        ([PLAIN, "--auto-scale-lr"], "--auto-scale-lr needs auto_scale_lr="),
        ([PLAIN, "--cfg-options", "modle.a=1"], r"did you mean model\.a\?"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(tmp_path, argv, said):
    done = run(tmp_path, "train.py", *argv)
    errs(done, said)
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.once
def test_arguments_that_a_module_refuses_are_one_line(folder):
    child = folder / "seven.py"
    child.write_text(
        f"_base_ = {PLAIN!r}\nmodel = dict(backbone=dict(plugins=["
        "dict(cfg=dict(type='mmattn.SGE', groups=7), position='after_conv3')]))\n"
    )
    done = run(folder, "train.py", child, "--work-dir", "seven", *tiny(2))
    errs(done, "cannot be built: .*SGE expects groups that divide in_channels=64, got groups=7")


@pytest.mark.once
def test_options_that_are_no_pairs(tmp_path):
    done = run(tmp_path, "train.py", PLAIN, "--cfg-options", "data_root")
    errs(done, "--cfg-options expects key=value pairs, got 'data_root'", status=2)


@pytest.mark.once
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_mixed_precision_without_a_gpu(tmp_path):
    errs(run(tmp_path, "train.py", PLAIN, "--amp"), "--amp needs a GPU")


def test_a_training_names_its_files(folder, trained):
    named = dict(re.findall(r"^(last checkpoint|AP by size|log): (.+)$", trained.stdout, re.M))
    assert named.keys() == {"last checkpoint", "AP by size", "log"}
    assert named["last checkpoint"] == "work/iter_2.pth"
    assert all((folder / path).is_file() for path in named.values())
    assert "nothing to resume in work: training from the beginning" in trained.stdout
    # the console has no config, the log file has
    assert "base_channels" not in trained.stdout
    assert "base_channels" in (folder / named["log"]).read_text()


@pytest.mark.once
def test_a_complete_training_is_not_repeated(folder, trained):
    before = sorted(folder.glob("work/*"))
    done = run(folder, "train.py", SGE, "--work-dir", "work", "--resume", *tiny(2))
    assert done.returncode == 0
    assert done.stdout == "training was complete already: work/iter_2.pth\n"
    assert sorted(folder.glob("work/*")) == before


def test_a_test_takes_the_newest_checkpoint_of_a_work_dir(folder, trained):
    done = run(folder, "test.py", SGE, "work", "--out", "work/out.pkl", *tiny(2))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| small +\| 0 to 1024", done.stdout, re.M)
    named = dict(re.findall(r"^(AP by size|log): (.+)$", done.stdout, re.M))
    assert all((folder / path).is_file() for path in named.values())
    assert named["AP by size"].startswith(
        "work_dirs/faster-rcnn_r50w16-sge-c2-c5_fpn_600it_shapes/"
    )
    assert (folder / "work" / "out.pkl").is_file()


@pytest.mark.once
def test_a_checkpoint_of_another_module_is_named(folder, trained):
    done = start(folder, "test.py", PLAIN, "work/iter_2.pth", *tiny(2))
    errs(
        done,
        r"backbone\.layer1\.0\.sge\.weight.*it was trained with, work/faster-rcnn_r50w16-sge",
    )


@pytest.mark.once
def test_a_test_without_its_checkpoint(folder, tmp_path):
    errs(run(folder, "test.py", SGE, "gone.pth", *tiny(2)), r"checkpoint gone\.pth does not exist")
    errs(run(folder, "test.py", SGE, tmp_path, *tiny(2)), "has no whole checkpoint")
    errs(run(folder, "test.py", SGE, "work", "--out", "a.json"), r"end in \.pkl", status=2)


def test_a_resumed_training_passes_over_a_damaged_checkpoint(folder, trained):
    work = folder / "damaged"
    work.mkdir()
    checkpoint = (folder / "work" / "iter_2.pth").read_bytes()
    (work / "iter_2.pth").write_bytes(checkpoint)
    (work / "iter_3.pth").write_bytes(checkpoint[: len(checkpoint) // 2])
    (work / "last_checkpoint").write_text(str(work / "iter_3.pth"))
    done = run(folder, "train.py", SGE, "--work-dir", "damaged", "--resume", *tiny(3))
    assert done.returncode == 0, done.stderr
    assert "passed over: checkpoint" in done.stderr
    assert re.search(r"resumed epoch: 0, iter: 2", done.stdout)
    assert re.findall(r"Iter\(train\) +\[(\d+)/3\]", done.stdout) == ["3"]
    assert checkpoint_file.read(str(work / "iter_3.pth"))["meta"]["iter"] == 3


@pytest.mark.once
def test_a_checkpoint_of_another_optimizer_is_named(folder, trained):
    options = [*tiny(3), "optim_wrapper.paramwise_cfg.bias_decay_mult=0."]
    done = run(folder, "train.py", SGE, "--work-dir", "work", "--resume", *options)
    errs(done, "was saved with another optimizer")


@pytest.mark.once
def test_ctrl_c_says_how_to_go_on(folder):
    process = subprocess.Popen(
        command("train.py", SGE, "--work-dir", "interrupted", *tiny(1000)),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if "Iter(train)" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("train.py: interrupted; go on from the last checkpoint:")
    assert err.splitlines()[-1].endswith("--resume")
