"""tools/analyze_training.py as a user runs it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = ROOT / "tools/analyze_training.py"


def imported():
    spec = importlib.util.spec_from_file_location("analyze_training", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = imported()


def write_run(work_dir, best=0.5):
    events = []
    for epoch, ap in enumerate((best / 2, best, best * 0.8), 1):
        events.append(
            {"loss": 1 / epoch, "lr": 0.1, "epoch": epoch, "iter": 10 * epoch, "step": epoch}
        )
        figures = {"": ap, "_s": ap / 2, "_m": ap, "_l": ap}
        events.append({**{f"coco/bbox_mAP{k}": v for k, v in figures.items()}, "step": epoch})
    folder = work_dir / "20260101_000000/vis_data"
    folder.mkdir(parents=True)
    (folder / "scalars.json").write_text("".join(json.dumps(x) + "\n" for x in events))
    return str(work_dir)


def test_a_table_and_a_picture(tmp_path, capsys):
    plain, sge = write_run(tmp_path / "plain"), write_run(tmp_path / "sge", 0.61234)
    out = tmp_path / "curves.png"
    tool.main([plain, f"SGE={sge}", "--out", str(out)])
    printed = capsys.readouterr().out
    assert (
        printed
        == f"""\
| run   |      | epoch |   loss |   AP (%) | small (%) | medium (%) | large (%) |
|-------|------|-------|--------|----------|-----------|------------|-----------|
| plain | last |     3 | 0.3333 |     40.0 |      20.0 |       40.0 |      40.0 |
|       | best |       |        | 50.0 (2) |  25.0 (2) |   50.0 (2) |  50.0 (2) |
| SGE   | last |     3 | 0.3333 |     49.0 |      24.5 |       49.0 |      49.0 |
|       | best |       |        | 61.2 (2) |  30.6 (2) |   61.2 (2) |  61.2 (2) |
note: plain: AP rounded to 0.1 %, as mmdet's CocoMetric logs it; it counts 1000 detections an \
image for AP by size, mmattn.CocoSizeMetric 100
written to {out}
"""
    )
    assert out.read_bytes().startswith(b"\x89PNG")


def test_other_quantities_and_iterations(tmp_path, capsys):
    plain = write_run(tmp_path / "plain")
    tool.main([plain, "--name", "a b", "--metric", "lr", "bbox_mAP_s", "--axis", "iteration"])
    assert (
        capsys.readouterr().out
        == """\
| run |      | iteration |  lr | bbox_mAP_s (%) |
|-----|------|-----------|-----|----------------|
| a b | last |        30 | 0.1 |           20.0 |
|     | best |           |     |      25.0 (20) |
note: a b: AP rounded to 0.1 %, as mmdet's CocoMetric logs it; it counts 1000 detections an \
image for AP by size, mmattn.CocoSizeMetric 100
"""
    )


def test_a_folder_with_an_equals_sign(tmp_path, capsys):
    tool.main([write_run(tmp_path / "lr=0.1"), f"x={write_run(tmp_path / 'lr=0.2')}"])
    printed = capsys.readouterr().out
    assert "| lr=0.1 | last |" in printed
    assert "| x      | last |" in printed


def test_nothing_logged_yet(tmp_path, capsys):
    new = tmp_path / "new/20260101_000000/vis_data"
    new.mkdir(parents=True)
    (new / "scalars.json").write_text('{"lr": 0.1')
    tool.main([write_run(tmp_path / "plain"), str(tmp_path / "new")])
    printed = capsys.readouterr()
    assert "new: nothing is logged in" in printed.err
    assert "| new" not in printed.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{plain}", "no/such"], "work dir no/such does not exist"),
        (
            ["{plain}", "--metric", "map"],
            "--metric map: no run has it; nearest: coco/bbox_mAP, coco/bbox_mAP_s",
        ),
        (["{plain}", "--out", "curves.jpg"], "--out ends in .png, .svg, .pdf, .html, got"),
        (["{plain}", "{plain}/"], "{plain} is given twice; name every run once"),
        (["{plain}", "a={plain}"], "{plain} is given twice"),
        (["a={plain}", "a={empty}"], "two runs are called a; give each a name"),
        (["{plain}", "--out", "a.png", "no/x.png"], "--out no/x.png: there is no folder "),
        (["{plain}", "--out", "{readonly}"], "{readonly} is there already, and read-only"),
        (["{empty}"], "no run has logged anything yet"),
        (["{iterations}", "--axis", "epoch"], "iterations was trained by iterations"),
    ],
)
def test_bad_input_ends_in_one_sentence(tmp_path, capsys, argv, message):
    for name, content in [("empty", ""), ("iterations", '{"loss": 1, "iter": 1, "step": 1}\n')]:
        folder = tmp_path / name / "vis_data"
        folder.mkdir(parents=True)
        (folder / "scalars.json").write_text(content)
    places = {x: str(tmp_path / x) for x in ("empty", "iterations")}
    places["plain"] = write_run(tmp_path / "plain")
    places["readonly"] = str(tmp_path / "readonly.png")
    Path(places["readonly"]).touch(0o444)
    with pytest.raises(SystemExit) as end:
        tool.main([x.format(**places) for x in argv])
    assert end.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message.format(**places) in printed.err
    last = printed.err.splitlines()[-1]
    assert last.startswith("analyze_training.py: ")
    assert not any(Path(x).exists() for x in ("curves.jpg", "a.png", "no"))


def test_several_files(tmp_path, capsys):
    outs = [str(tmp_path / f"curves{suffix}") for suffix in (".png", ".svg", ".html")]
    tool.main([write_run(tmp_path / "plain"), "--out", *outs])
    assert capsys.readouterr().out.endswith(f"written to {', '.join(outs)}\n")
    starts = [Path(out).read_bytes()[:5] for out in outs]
    assert starts == [b"\x89PNG\r", b"<?xml", b"<!DOC"]


def test_a_folder_of_seeds_is_one_run(tmp_path, capsys):
    for i, best in enumerate((0.5, 1.0)):
        write_run(tmp_path / f"sge/seed{i}", best)
    tool.main([str(tmp_path / "sge"), "--metric", "AP_small"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| run           |      | epoch | AP small (%) |"
    assert lines[2:4] == [
        "| sge (2 seeds) | last |     3 |         30.0 |",
        "|               | best |       |     37.5 (2) |",
    ]
    (note,) = lines[4:]  # once, not for each seed
    assert note.startswith("note: sge: AP rounded")


def test_usage_errors(capsys):
    with pytest.raises(SystemExit) as end:
        tool.main(["a", "b", "--name", "x"])
    assert end.value.code == 2
    assert "--name: expected 2 names, got 1" in capsys.readouterr().err


def test_it_starts_without_torch(tmp_path):
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['x', {write_run(tmp_path / 'a')!r}, '--out', {str(tmp_path / 'a.svg')!r}]\n"
        f"runpy.run_path({str(PATH)!r}, run_name='__main__')\n"
        "print([x for x in ('torch', 'mmengine', 'mmdet', 'pandas') if x in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "MPLBACKEND": "QtAgg"},
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "a.svg").stat().st_size > 5000


def test_a_console_that_cannot_write_a_name(tmp_path):
    work_dir = write_run(tmp_path / "a")
    done = subprocess.run(
        [sys.executable, PATH, f"größer時={work_dir}"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "gr\\xf6\\xdfer\\u6642" in done.stdout
