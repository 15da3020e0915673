"""Loss and AP by size over a training: what is read from work dirs, shown and drawn."""

import json
import math
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import mmattn  # noqa: F401  before any mm* package: it offers the operators that mmcv may lack

# isort: split
import numpy as np
import pytest
import test_coco_size_metric as tiny
from matplotlib.colors import to_hex
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import init_default_scope

from mmattn.checkpoints.files import allow_training_state
from mmattn.evaluation import training_curves as curves

COCO_KEYS = {"": 0.4, "_s": 0.2, "_m": 0.45, "_l": 0.5}
NAN = math.nan


def write_start(work_dir, events, time="20260101_000000", end=""):
    """A start of a training, as LocalVisBackend writes it."""
    folder = work_dir / time / "vis_data"
    folder.mkdir(parents=True)
    text = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "scalars.json").write_text(text + end)
    return folder.parent


def iteration(i, loss, epoch=None):
    """A line of a training iteration."""
    event = {"lr": 0.01, "loss": loss, "iter": i, "step": i}
    return event if epoch is None else {**event, "epoch": epoch}


def evaluation(step, factor=1.0, prefix="coco/"):
    """A line of an evaluation."""
    figures = {f"{prefix}bbox_mAP{k}": factor * v for k, v in COCO_KEYS.items()}
    return {**figures, "time": 0.1, "step": step}


def by_epochs(epochs=3, length=100, interval=40, first=1, factor=1.0):
    events = []
    for epoch in range(first, epochs + 1):
        start = (epoch - 1) * length
        events += [
            iteration(start + i, factor / (start + i), epoch)
            for i in range(interval, length + 1, interval)
        ]
        events.append(evaluation(epoch, factor * epoch / 10))
    return events


def figures_file(folder, iteration, epoch, ap, bins=None, objects=7, size_by="area", prefix="coco"):
    """A file of CocoSizeMetric; AR is half of AP."""
    bins = bins or {"small": (0, 1024), "medium": (1024, 9216), "large": (9216, 1e10)}
    row = {"AP": ap, "AP50": ap, "AP75": None, "AR": ap / 2, "num_objects": objects}
    by_size = dict.fromkeys(bins, row)
    content = {
        "prefix": prefix,
        "stage": "val",
        "epoch": epoch,
        "iter": iteration,
        "results": {
            "bbox": {
                "conditions": {"max_dets": 100, "size_bins": bins, "size_by": size_by},
                **row,
                "by_size": by_size,
                "classes": [{"name": "cat", **row, "by_size": by_size}],
            }
        },
    }
    name = f"epoch_{epoch}" if epoch else f"iter_{iteration}"
    (folder / f"ap_by_size_val_{name}.json").write_text(json.dumps(content))


def shown(run, name, axis="epoch", metrics=None):
    """x and y of a panel, as lists."""
    (panel,) = [p for p in curves.choose_panels([run], metrics) if p.name == name]
    return [x.tolist() for x in panel.of(run, axis)]


# --- reading -------------------------------------------------------------------------------


def test_epochs(tmp_path):
    write_start(tmp_path / "sge", by_epochs())
    run = curves.read_run(tmp_path / "sge")
    assert run.name == "sge"
    assert run.notes == []
    assert curves.choose_axis([run]) == "epoch"
    names = [p.name for p in curves.choose_panels([run])]
    assert names == ["loss", "AP", "small", "medium", "large"]
    assert shown(run, "AP") == [[1, 2, 3], pytest.approx([4, 8, 12])]
    assert shown(run, "small") == [[1, 2, 3], pytest.approx([2, 4, 6])]
    # of 100 iterations an epoch, the last ones are not logged: 93.33 to the nearest below
    x, y = shown(run, "loss")
    assert y == [1 / i for i in (40, 80, 140, 180, 240, 280)]
    assert x == pytest.approx([i / 94 for i in (40, 80, 140, 180, 240, 280)])
    assert shown(run, "AP", "iteration")[0] == [94, 188, 282]


def test_files_say_how_long_an_epoch_is_and_have_more_figures(tmp_path):
    folder = write_start(tmp_path / "a", by_epochs())
    for epoch in (1, 2, 3):
        figures_file(folder, 100 * epoch, epoch, epoch / 10)
    run = curves.read_run(tmp_path / "a")
    assert run.iterations_per_epoch == 100
    assert shown(run, "loss")[0] == pytest.approx([0.4, 0.8, 1.4, 1.8, 2.4, 2.8])
    assert shown(run, "AP", "iteration")[0] == [100, 200, 300]
    # of the file, not of scalars.json
    assert shown(run, "large") == [[1, 2, 3], pytest.approx([10, 20, 30])]
    assert shown(run, "AR medium", metrics=["AR"])[1] == pytest.approx([5, 10, 15])
    assert shown(run, "cat_precision_s", metrics=["cat_precision_s"])[1] == pytest.approx(
        [10, 20, 30]
    )
    titles = [p.title for p in curves.choose_panels([run], ["AP"])]
    assert titles == [
        *("AP", "AP small (0 to 32² px²)", "AP medium (32² to 96² px²)"),
        "AP large (96² px² or more)",
    ]


@pytest.mark.parametrize("step", [True, False], ids=["iteration", "0"])
def test_iterations(tmp_path, step):
    """LoggerHook says step 0 for every evaluation unless log_metric_by_epoch is False."""
    events = [
        *(iteration(100, 2.0), evaluation(100 * step, 0.1)),
        *(iteration(200, 1.0), evaluation(200 * step, 0.5)),
    ]
    write_start(tmp_path / "a", events)
    run = curves.read_run(tmp_path / "a")
    assert curves.choose_axis([run]) == "iteration"
    assert shown(run, "AP", "iteration") == [[100, 200], pytest.approx([4, 20])]
    assert ["at the last iteration logged before" in note for note in run.notes] == [True] * (
        not step
    )
    with pytest.raises(curves.WorkDirError, match="a was trained by iterations .* an epoch"):
        curves.choose_axis([run], "epoch")


def test_evaluations_between_logged_iterations_are_placed_by_their_files(tmp_path):
    events = [
        iteration(50, 2.0),
        *(evaluation(0, 0.1), evaluation(0, 0.2)),
        iteration(100, 1.0),
        evaluation(0, 0.3),
    ]
    folder = write_start(tmp_path / "a", events)
    for i, ap in ((60, 0.25), (90, 0.5), (120, 0.75)):
        figures_file(folder, i, None, ap)
    (folder / "ap_by_size_val_iter_7.json").write_text("[]")
    (folder / "ap_by_size_val.json").write_text(
        (folder / "ap_by_size_val_iter_60.json").read_text().replace('"iter": 60', '"iter": null')
    )
    run = curves.read_run(tmp_path / "a")
    assert shown(run, "AP", "iteration") == [[60, 90, 120], [25, 50, 75]]
    (note,) = run.notes
    assert "ap_by_size_val_iter_7.json is not a file of CocoSizeMetric" in note


def test_an_evaluation_before_any_iteration_is_logged(tmp_path):
    folder = write_start(tmp_path / "a", [evaluation(4)])
    figures_file(folder, 4, None, 0.25)
    run = curves.read_run(tmp_path / "a")
    assert curves.choose_axis([run]) == "iteration"
    assert shown(run, "AP", "iteration") == [[4], [25]]


def test_a_file_belongs_to_the_evaluation_of_its_iteration(tmp_path):
    events = [
        *(iteration(100, 1.0), evaluation(0, 0.1)),
        *(iteration(200, 1.0), iteration(300, 1.0), evaluation(0, 0.1)),
    ]
    folder = write_start(tmp_path / "a", events)
    figures_file(folder, 50, None, 0.25)
    figures_file(folder, 300, None, 0.5)
    run = curves.read_run(tmp_path / "a")
    assert shown(run, "AP", "iteration") == [[50, 100, 300], pytest.approx([25, 4, 50])]


def test_a_resumed_training_is_one_run(tmp_path):
    write_start(tmp_path / "a", by_epochs(3), "20260101_000000")
    # goes on from epoch 2; its evaluation of epoch 3 replaces the first one
    write_start(tmp_path / "a", by_epochs(4, first=3, factor=2.0), "20260102_000000")
    write_start(tmp_path / "a", [], "20260103_000000")
    run = curves.read_run(tmp_path / "a")
    assert shown(run, "AP") == [[1, 2, 3, 4], pytest.approx([4, 8, 24, 32])]
    expected = [1 / 40, 1 / 80, 1 / 140, 1 / 180, 2 / 240, 2 / 280, 2 / 340, 2 / 380]
    assert shown(run, "loss")[1] == expected
    assert run.notes == []


def test_what_was_logged_after_the_checkpoint_is_gone_when_resumed(tmp_path):
    first = [iteration(i, 1.0) for i in (10, 20, 30)]
    write_start(tmp_path / "a", first, "20260101_000000")
    write_start(tmp_path / "a", [iteration(15, 2.0)], "20260101_000001")
    run = curves.read_run(tmp_path / "a")
    assert shown(run, "loss", "iteration") == [[10, 15], [1, 2]]


def test_a_training_that_begins_anew(tmp_path):
    old = write_start(tmp_path / "a", by_epochs(3), "20260101_000000")
    write_start(tmp_path / "a", by_epochs(1, factor=2.0), "20260102_000000")
    run = curves.read_run(tmp_path / "a")
    assert shown(run, "AP") == [[1], pytest.approx([8])]
    assert "20260102_000000 begins the training anew" in run.notes[0]
    run = curves.read_run(old)
    assert run.name == "a/20260101_000000"
    assert len(shown(run, "AP")[0]) == 3


@pytest.mark.parametrize("end", ['{"lr": 0.01, "lo', '{"lr": 0.01, "loss": 1.5', "\n"])
def test_a_line_that_is_being_written(tmp_path, end):
    write_start(tmp_path / "a", by_epochs(), end=end)
    run = curves.read_run(tmp_path / "a")
    assert run.notes == []
    assert len(shown(run, "loss")[0]) == 6


def test_what_the_gate_log_writes_is_not_read(tmp_path):
    """It comes ahead of the loss of the same iteration, and where no loss is logged."""
    gates = {"gates/layer1.0.sge/mask/mean": 0.5, "gates/iteration": 40, "step": 40}
    mixed = []
    for event in by_epochs():
        mixed += [{**gates, "step": event["step"], "gates/iteration": event["step"]}, event]
    for name, events in ("without", by_epochs()), ("with", [gates, *mixed, gates]):
        write_start(tmp_path / name, events)
    without, found = (curves.read_run(tmp_path / name, "a") for name in ("without", "with"))
    assert found == without


def test_a_broken_line_is_said(tmp_path):
    folder = write_start(tmp_path / "a", [iteration(1, 1.0), [], iteration(2, 1.0)])
    run = curves.read_run(tmp_path / "a")
    assert len(run.training) == 2
    assert run.notes == [
        f"{folder / 'vis_data/scalars.json'}: 1 of 4 lines are no log lines and left out, the "
        "first is line 2"
    ]


def test_evaluations_that_have_no_place_are_said(tmp_path):
    write_start(tmp_path / "a", [evaluation(1), evaluation(2)])
    run = curves.read_run(tmp_path / "a")
    assert shown(run, "AP") == [[1, 2], [40, 40]]
    assert shown(run, "AP", "iteration") == [[], []]
    said = [curves.comparison_notes([run], axis)[-1] for axis in ("epoch", "iteration")]
    assert ["evaluations are left out" in note for note in said] == [False, True]


def test_mmdets_coco_metric(tmp_path):
    """Rounded, -1 for n/a, no files."""
    events = [iteration(100, 1.0, 1), evaluation(1), iteration(200, 1.0, 2), evaluation(2, 0.5)]
    events[1]["coco/bbox_mAP_l"] = events[3]["coco/bbox_mAP_l"] = -1.0
    write_start(tmp_path / "a", events)
    run = curves.read_run(tmp_path / "a")
    assert "mmdet's CocoMetric" in run.notes[0]
    panels = curves.choose_panels([run])
    assert np.isnan(panels[-1].of(run, "epoch")[1]).all()
    last, best = curves.table([run], panels, "epoch").splitlines()[2:]
    assert [x.strip() for x in last.split("|")[1:-1]] == [
        *("a", "last", "2", "1", "20.0", "10.0", "22.5", "n/a"),
    ]
    assert [x.strip() for x in best.split("|")[1:-1]] == [
        *("", "best", "", "", "40.0 (1)", "20.0 (1)", "45.0 (1)", "n/a"),
    ]


def test_names_with_the_stage(tmp_path):
    """LogProcessor(log_with_hierarchy=True)."""
    train = {"train/lr": 0.1, "train/loss": 2.0, "epoch": 1, "iter": 10, "step": 10}
    val = {f"val/{k}": v for k, v in evaluation(1).items() if k != "step"}
    write_start(tmp_path / "a", [train, {**val, "step": 1}])
    run = curves.read_run(tmp_path / "a")
    assert shown(run, "loss", "iteration") == [[10], [2]]
    assert shown(run, "AP") == [[1], [40]]


def test_a_prefix_of_ones_own_and_none(tmp_path):
    for prefix in ("", "val/", "my/own/"):
        folder = tmp_path / (prefix.replace("/", "_") or "none")
        write_start(folder, [iteration(10, 1.0, 1), evaluation(1, prefix=prefix)])
        assert shown(curves.read_run(folder), "small") == [[1], [20]]


def test_losses_that_are_not_finite(tmp_path):
    losses = [1.0, 2.0, NAN, math.inf, 3.0]
    write_start(tmp_path / "a", [iteration(i, x) for i, x in enumerate(losses, 1)])
    run = curves.read_run(tmp_path / "a")
    assert run.notes == [
        "the loss is not a finite number in 2 of 5 logged values, the first at iteration 3"
    ]


def test_names():
    paths = ["w/sge", "w/sge/", "x/y/scalars.json", "w/a/20260101_000000/vis_data"]
    assert curves.run_names(paths[1:]) == ["sge", "y", "a/20260101_000000"]
    assert curves.run_names(["one/w/sge", "two/w/sge", "w/gc"]) == ["one/w/sge", "two/w/sge", "gc"]


# --- bad input -----------------------------------------------------------------------------


def test_no_work_dir(tmp_path):
    def message(path):
        with pytest.raises(curves.WorkDirError) as error:
            curves.read_run(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert message(tmp_path / "no") == f"work dir {tmp_path / 'no'} does not exist"
    (tmp_path / "empty").mkdir()
    assert "is empty: no training has logged there" in message(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    for i in range(7):
        (tmp_path / f"other/{i}.txt").touch()
    assert message(tmp_path / "other").endswith(
        "it has 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more"
    )
    assert "is a file; expected a work dir" in message(tmp_path / "other/1.txt")
    test = tmp_path / "test/20260101_000000"
    test.mkdir(parents=True)
    (test / "ap_by_size_test.json").touch()
    assert "tests were run there, no training" in message(tmp_path / "test")
    write_start(tmp_path / "all/sge", by_epochs())
    assert "has work dirs in it; name them: sge" in message(tmp_path / "all")


def test_a_metric_that_no_run_has(tmp_path):
    write_start(tmp_path / "a", [iteration(1, 1.0)])
    run = curves.read_run(tmp_path / "a")
    assert [p.name for p in curves.choose_panels([run])] == ["loss"]
    with pytest.raises(curves.WorkDirError, match="--metric AP: no run has it; they have lr, loss"):
        curves.choose_panels([run], ["AP"])
    with pytest.raises(curves.WorkDirError, match="--metric los: no run has it; nearest: loss"):
        curves.choose_panels([run], ["los"])
    write_start(tmp_path / "b", [{"acc": 0.5, "iter": 1, "step": 1}])
    with pytest.raises(curves.WorkDirError, match="no run has a loss or an AP; .* acc"):
        curves.choose_panels([curves.read_run(tmp_path / "b")])


@pytest.mark.parametrize(
    ("bins", "objects", "size_by", "match"),
    [
        ({"small": (0, 500)}, 7, "area", "'small' is 0 to 1024 .*, 0 to 500"),
        (None, 8, "area", "on 7 small objects, the second on 8"),
        (None, 7, "bbox", r"'small' is 0 to 1024 \(area\) .* 0 to 1024 \(bbox\)"),
        (None, 7, "area", None),
    ],
)
def test_runs_that_are_not_comparable(tmp_path, bins, objects, size_by, match):
    for name in ("a", "b"):
        folder = write_start(tmp_path / name, [iteration(10, 1.0, 1)])
        more = (bins, objects, size_by) if name == "b" else ()
        figures_file(folder, 10, 1, 0.5, *more)
    notes = curves.comparison_notes([curves.read_run(tmp_path / n) for n in ("a", "b")])
    if match is None:
        assert notes == []
    else:
        (note,) = notes
        assert note.startswith("a and b are not comparable")
        assert re.search(match, note)


def test_mmdets_coco_metric_has_cocos_limits(tmp_path):
    write_start(tmp_path / "mmdet", [iteration(10, 1.0, 1), evaluation(1, 0.5)])
    for name in ("other", "another"):
        folder = write_start(tmp_path / name, [iteration(10, 1.0, 1)])
        figures_file(folder, 10, 1, 0.5, {"small": (576, 1600), "rest": (1600, 1e10)})
    runs = [curves.read_run(tmp_path / name) for name in ("mmdet", "other", "another")]
    runs[0].name = r"$\no$ formula"
    notes = curves.not_comparable(runs)
    said = "are not comparable: 'small' is 0 to 1024 (area) in the first, 576 to 1600 (area) in "
    assert notes == [rf"$\no$ formula and {name} {said}the second" for name in ("other", "another")]
    assert curves.not_comparable(runs[1:]) == []
    assert all(note in curves.comparison_notes(runs) for note in notes)
    panels = curves.choose_panels(runs, ["AP"])
    assert [p.title for p in panels] == [
        *("AP", "AP small", "AP medium (32² to 96² px²)", "AP large (96² px² or more)"),
        "AP rest (40² px² or more)",
    ]
    assert "small (0 to 32² px²)" in curves.choose_panels(runs[:1], ["AP"])[1].title
    figure = curves.draw(runs, panels, "epoch")
    figure.draw_without_rendering()
    text = " ".join(figure.get_supxlabel().split())
    assert all(note in text for note in notes)
    for i in range(5):
        runs.append(curves.Run(f"run {i}", [], runs[1].evaluations, runs[1].bins, "area"))
    text = curves.draw(runs, panels, "epoch").get_supxlabel()
    assert text.endswith("\n4 more runs are not comparable, see the notes")
    losses = curves.draw(runs, curves.choose_panels(runs, ["loss"]), "epoch")
    assert "comparable" not in losses.get_supxlabel()


def test_bins_are_those_of_what_is_shown(tmp_path):
    for time, high in (("20260101_000000", 256), ("20260102_000000", 400)):
        folder = write_start(tmp_path / "a", [iteration(10, 1.0, 1)], time)
        figures_file(folder, 10, 1, 0.5, {"tiny": (0, high)})
        (folder / "ap_by_size_val_iter_7.json").write_text("[]")
    run = curves.read_run(tmp_path / "a")
    assert curves.choose_panels([run], ["AP_tiny"])[0].title == "AP tiny (0 to 20² px²)"
    # without those on the start that was discarded
    assert len(run.notes) == 2
    assert all("20260102_000000" in note for note in run.notes)
    # where it was resumed with others, it is said
    folder = write_start(tmp_path / "a", [iteration(20, 1.0, 2)], "20260103_000000")
    figures_file(folder, 20, 2, 0.5, {"tiny": (0, 900)})
    run = curves.read_run(tmp_path / "a")
    assert curves.choose_panels([run], ["AP_tiny"])[0].title == "AP tiny (0 to 30² px²)"
    assert "bins were changed when it was resumed" in run.notes[-1]


# --- what to show --------------------------------------------------------------------------


def boxes_and_masks(tmp_path, name="both"):
    """Boxes 0.5 and masks 0.25, as CocoSizeMetric names them, in scalars.json and the file."""
    both = {
        "coco/bbox_mAP": 0.5,
        "coco/bbox_cat_precision": 0.5,
        "coco/bbox_cat_precision_s": 0.5,
        "coco/segm_mAP": 0.25,
        "coco/segm_cat_precision": 0.25,
        "coco/segm_cat_precision_s": 0.25,
    }
    write_start(tmp_path / name, [iteration(10, 1.0, 1), {**both, "step": 1}])
    return tmp_path / name


@pytest.mark.parametrize("file", [True, False])
def test_classes_of_boxes_and_masks(tmp_path, file):
    path = boxes_and_masks(tmp_path)
    if file:
        figures_file(path / "20260101_000000", 10, 1, 0.5)
        (name,) = path.glob("*/ap_by_size_val_epoch_1.json")
        content = json.loads(name.read_text())
        masks = json.dumps(content["results"]["bbox"]).replace("0.5", "0.25")
        content["results"]["segm"] = json.loads(masks)
        name.write_text(json.dumps(content))
    run = curves.read_run(path)
    assert not any(k == "coco/cat_precision" for k in run.evaluations[0].values)
    for metric, name, value in [
        ("cat_precision", "bbox_cat_precision", 50),
        ("cat_precision_s", "bbox_cat_precision_s", 50),
        ("bbox_cat_precision", "bbox_cat_precision", 50),
        ("segm_cat_precision", "segm_cat_precision", 25),
        ("coco/segm_cat_precision", "coco/segm_cat_precision", 25),
        ("AP", "AP", 50),
        ("segm_AP", "segm AP", 25),
    ]:
        panel = curves.choose_panels([run], [metric])[0]
        assert (panel.name, panel.title) == (name, name)
        assert panel.of(run, "epoch")[1].tolist() == [value]


def test_classes_beside_runs_with_one_metric(tmp_path):
    boxes_and_masks(tmp_path)
    for name in ("bbox", "segm"):
        values = {f"coco/{name}_mAP": 0.125, "coco/cat_precision": 0.125}
        write_start(tmp_path / name, [iteration(10, 1.0, 1), {**values, "step": 1}])
    runs = [curves.read_run(tmp_path / name) for name in ("both", "bbox", "segm")]

    def values(runs, metric):
        (panel,) = curves.choose_panels(runs, [metric])
        return panel.name, [panel.of(run, "epoch")[1].tolist() for run in runs]

    assert values(runs, "cat_precision") == ("bbox_cat_precision", [[50], [12.5], []])
    assert values(runs, "segm_cat_precision") == ("segm_cat_precision", [[25], [], [12.5]])
    for run in runs[1:]:
        assert values([run], "cat_precision") == ("cat_precision", [[12.5]])
    with pytest.raises(curves.WorkDirError, match="--metric segm_cat_precision: no run has it"):
        values(runs[1:2], "segm_cat_precision")


def test_one_size(tmp_path):
    write_start(tmp_path / "a", by_epochs())
    run = curves.read_run(tmp_path / "a")
    for metric in ("AP_small", "AP_s", "bbox_AP_small"):
        assert shown(run, "AP small", metrics=[metric])[1] == pytest.approx([2, 4, 6])
    names = [p.name for p in curves.choose_panels([run], ["AP_small", "AP"])]
    assert names == ["AP small", "AP", "medium", "large"]  # once each
    with pytest.raises(curves.WorkDirError, match="nearest: AP_small, AP_medium, AP_large"):
        curves.choose_panels([run], ["AP_huge"])


# --- several seeds -------------------------------------------------------------------------


def test_seeds_are_one_run(tmp_path):
    write_start(tmp_path / "sge/seed0", by_epochs(3, factor=1.0))
    write_start(tmp_path / "sge/seed1", by_epochs(2, factor=3.0))
    write_start(tmp_path / "sge/seed2", [])
    run = curves.read_run(tmp_path / "sge")
    assert run.label == "sge (2 seeds)"
    assert run.notes == ["sge/seed2 has logged nothing yet"]
    assert curves.choose_axis([run]) == "epoch"
    # as far as both are
    assert shown(run, "AP") == [[1, 2], pytest.approx([8, 16])]
    x, y = shown(run, "loss", "iteration")
    assert x == [40, 80, 140, 180]
    assert y == pytest.approx([2 / i for i in x])
    panels = curves.choose_panels([run])
    figure = curves.draw([run], panels, "epoch")
    ap = [line.get_ydata().tolist() for line in figure.axes[1].lines]
    assert ap[0] == pytest.approx([4, 8, 12])
    assert ap[1] == pytest.approx([12, 24])
    assert ap[2] == pytest.approx([8, 16])
    faint = [line.get_alpha() for line in figure.axes[0].lines]
    assert [alpha is None for alpha in faint] == [False, False, True]
    (legend,) = [ax.legend_ for ax in figure.axes if ax.legend_]
    assert [text.get_text() for text in legend.get_texts()] == ["sge (2 seeds)"]
    assert "of several seeds: thick the mean, faint each" in figure.get_supxlabel()


def test_seeds_that_are_not_comparable(tmp_path):
    for i in range(3):
        folder = write_start(tmp_path / f"a/seed{i}", [iteration(10, 1.0, 1)])
        figures_file(folder, 10, 1, 0.5, objects=7 + (i == 2))
    folder = write_start(tmp_path / "b", [iteration(10, 1.0, 1)])
    figures_file(folder, 10, 1, 0.5, objects=9)
    notes = curves.not_comparable([curves.read_run(tmp_path / name) for name in "ab"])
    assert [note.split(":")[0] for note in notes] == [
        "a/seed0 and a/seed2 are not comparable",
        "a and b are not comparable",
    ]


@pytest.mark.parametrize("names", [("r50", "r101"), ("plain", "sge"), ("a_seed0", "b_seed0")])
def test_other_folders_of_work_dirs_are_no_seeds(tmp_path, names):
    for name in names:
        write_start(tmp_path / "all" / name, by_epochs())
    with pytest.raises(curves.WorkDirError, match=f"name them: {sorted(names)[0]}"):
        curves.read_run(tmp_path / "all")


# --- tables and pictures -------------------------------------------------------------------


def test_smoothing():
    x, y = np.arange(6.0), np.array([1.0, 3.0, NAN, 1e30, 2.0, 4.0])
    result = curves.smoothed(x, y, 2)
    assert result.tolist() == pytest.approx([2, 2, NAN, 5e29, 1e30 / 3, 3], nan_ok=True)

    result = curves.smoothed(x[:3], np.array([1.0, math.inf, 3.0]), 2)
    assert result.tolist() == pytest.approx([1, NAN, 3], nan_ok=True)


def test_losses_are_averaged_over_five_values_at_least(tmp_path):
    losses = [float(i % 5 == 0) for i in range(12)]
    write_start(tmp_path / "a", [iteration(5 * i, x) for i, x in enumerate(losses, 1)])
    runs = [curves.read_run(tmp_path / "a")]
    figure = curves.draw(runs, curves.choose_panels(runs), "iteration")
    assert "mean over 25 iterations" in figure.get_supxlabel()
    _, thick = figure.axes[0].lines
    assert thick.get_ydata()[2:-2].tolist() == [0.2] * 8  # each mean is of five values


@pytest.mark.parametrize("end", [24, 60, 240])
def test_the_picture_is_easy_to_read(tmp_path, end):
    events = [iteration(i, 1.0, i) for i in range(1, end + 1)]
    write_start(tmp_path / "a", [*events, evaluation(end)])
    runs = [curves.read_run(tmp_path / "a")]
    figure = curves.draw(runs, curves.choose_panels(runs), "epoch")
    figure.draw_without_rendering()
    ticks = np.diff(figure.axes[0].get_xticks())
    assert f"{ticks[0]:g}".rstrip("0") in ("1", "2", "5")
    title = figure.axes[3].title.get_window_extent()
    above = figure.axes[0].xaxis.label.get_window_extent()
    assert above.y0 - title.y1 > title.height


def test_the_example_in_the_docs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "sge"):
        folder = write_start(tmp_path / "work_dirs" / name, by_epochs())
        figures_file(folder, 300, 3, 0.5)
    text = (Path(__file__).parents[2] / "docs/training-curves.md").read_text()
    names = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1], names)
    assert names["values"].tolist() == pytest.approx([4, 8, 50])
    assert (tmp_path / "curves.svg").exists()


def test_runs_of_different_kinds_in_one_picture(tmp_path):
    write_start(tmp_path / "epochs", by_epochs())
    write_start(tmp_path / "_iterations $x$", [iteration(50, 1.0), evaluation(50)])
    write_start(tmp_path / "loss", [iteration(i, NAN if i == 20 else 1.0) for i in (10, 20, 30)])
    names = ("epochs", "_iterations $x$", "loss")
    runs = [curves.read_run(tmp_path / name) for name in names]
    axis = curves.choose_axis(runs)
    assert axis == "iteration"
    panels = curves.choose_panels(runs)
    table = curves.table(runs, panels, axis)
    assert "| loss            | last |        30 |" in table
    figure = curves.draw(runs, panels, axis)
    axes = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title() for ax in axes] == ["loss", "AP", "AP small", "AP medium", "AP large"]
    assert [ax.get_ylabel() for ax in axes] == ["loss", *["%"] * 4]
    assert {ax.get_xlabel() for ax in axes} == {"iteration"}
    legend = [
        text.get_text() for ax in figure.axes if ax.legend_ for text in ax.legend_.get_texts()
    ]
    assert legend == list(names)
    lines = [line for line in axes[2].lines if line.get_linestyle() != "None"]
    assert lines[0].get_ydata().tolist() == pytest.approx([2, 4, 6])
    assert lines[1].get_xdata().tolist() == [50]
    # colour, marker and line tell runs apart in every panel
    assert len({to_hex(line.get_color()) for line in lines[:2]}) == 2
    assert len({line.get_marker() for line in lines[:2]}) == 2
    (cross,) = [line for line in axes[0].lines if line.get_marker() == "x"]
    assert cross.get_xdata().tolist() == [20]
    assert to_hex(cross.get_color()) == to_hex(curves.COLOURS[2].lower())


def test_one_high_value_does_not_hide_the_others(tmp_path):
    losses = [2 - i / 100 + (i == 50) * 1e6 for i in range(100)]
    write_start(tmp_path / "a", [iteration(i + 1, x) for i, x in enumerate(losses)])
    runs = [curves.read_run(tmp_path / "a")]
    figure = curves.draw(runs, curves.choose_panels(runs), "iteration")
    low, high = figure.axes[0].get_ylim()
    assert 0.8 < low < 1.01
    assert 2 < high < 4
    (mark,) = [line for line in figure.axes[0].lines if line.get_marker() == "^"]
    assert mark.get_xdata().tolist() == [51]
    assert "▲: above the scale" in figure.get_supxlabel()


def test_twenty_runs_look_different(tmp_path):
    runs = [curves.Run(f"run {i}", [iteration(1, 1.0), iteration(2, 1.0)]) for i in range(20)]
    for run in runs:
        run.evaluations = [curves.Evaluation({"bbox_mAP": 0.5}, 1, 1)]
    figure = curves.draw(runs, curves.choose_panels(runs), "iteration")
    (legend,) = figure.legends
    looks = {(h.get_color(), h.get_linestyle(), h.get_marker()) for h in legend.get_lines()}
    assert len(looks) == 20


@pytest.mark.parametrize("suffix", curves.SUFFIXES)
def test_files_are_whole_or_not_there(tmp_path, suffix, monkeypatch):
    write_start(tmp_path / "a", by_epochs())
    runs = [curves.read_run(tmp_path / "a", "größer <b> 時計")]
    panels = curves.choose_panels(runs, ["loss"])
    (tmp_path / "new").mkdir()
    path = tmp_path / f"new/out{suffix}"
    curves.save(curves.draw(runs, panels, "epoch"), path, "a table <b>")
    content = path.read_bytes()
    assert len(content) > 5000
    if suffix == ".svg":
        assert ElementTree.fromstring(content).tag.endswith("svg")
    if suffix == ".html":
        assert b"a table &lt;b&gt;" in content
        assert b"http" not in content
    assert os.listdir(path.parent) == [path.name]
    again = tmp_path / f"again{suffix}"
    curves.save(curves.draw(runs, panels, "epoch"), again, "a table <b>")
    assert again.read_bytes() == content  # no date in it

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(curves.WorkDirError, match="cannot be written: No space left"):
        curves.save(curves.draw(runs, panels, "epoch"), path)
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == content


def test_outputs_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "readonly.svg").touch(0o444)
    (tmp_path / "folder.png").mkdir()
    for name, match in [
        ("a.jpg", r"--out ends in .png, .svg, .pdf, .html, got .*a.jpg"),
        ("folder.png", "is a folder"),
        ("file/a.png", "there is no folder .*file"),
        ("no/a.png", "there is no folder .*no$"),
        ("readonly.svg", "readonly.svg is there already, and read-only"),
    ]:
        with pytest.raises(curves.WorkDirError, match=match):
            curves.check_output(tmp_path / name)


# --- what mmengine writes ------------------------------------------------------------------


@pytest.fixture
def _resumable(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # so that it is undone
    allow_training_state()


@pytest.fixture
def _no_runner():
    yield
    for manager in (MMLogger, MessageHub):
        manager._instance_dict.clear()
    init_default_scope("mmengine")


@pytest.mark.usefixtures("_no_runner", "_resumable")
@pytest.mark.parametrize("metric", ["mmattn.CocoSizeMetric", "mmdet.CocoMetric"])
def test_epochs_of_mmengine_resumed(tmp_path, metric):
    ann_file = tmp_path / "truth.json"
    ann_file.write_text(json.dumps(tiny.TRUTH))
    better = {1: tiny.FOUND[1]}  # without the false alarm: AP of cats 2/3 -> 1
    found = {2: (tiny.FOUND, better), 4: (tiny.FOUND, better)}
    for epochs in (2, 4):
        tiny.runner(
            str(ann_file),
            tmp_path / "run",
            {"by_epoch": True, "max_epochs": epochs},
            tiny.Model(*found[epochs]),
            {"type": metric},
            default_hooks={"logger": {"type": "LoggerHook", "interval": 1}},
            resume=epochs == 4,
        ).train()
        for manager in (MMLogger, MessageHub):
            manager._instance_dict.clear()
    run = curves.read_run(tmp_path / "run")
    assert shown(run, "AP") == [[1, 2, 3, 4], pytest.approx([100 / 3, 50] * 2, abs=0.05)]
    assert shown(run, "small")[1] == pytest.approx([50] * 4)
    x, y = shown(run, "loss")
    assert x == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert len(y) == 8
    assert bool(run.notes) == (metric == "mmdet.CocoMetric")


@pytest.mark.usefixtures("_no_runner")
def test_iterations_of_mmengine(tmp_path):
    ann_file = tmp_path / "truth.json"
    ann_file.write_text(json.dumps(tiny.TRUTH))
    cfg = {"by_epoch": False, "max_iters": 2, "val_interval": 1}
    tiny.runner(
        str(ann_file),
        tmp_path / "run",
        cfg,
        tiny.Model(tiny.FOUND, {1: tiny.FOUND[1]}),
        {"classwise": True},
        default_hooks={"logger": {"type": "LoggerHook", "interval": 5}},
        log_processor={"by_epoch": False},
    ).train()
    run = curves.read_run(tmp_path / "run")
    assert curves.choose_axis([run]) == "iteration"
    assert shown(run, "cat_precision", "iteration", ["cat_precision"]) == [
        *([1, 2], pytest.approx([200 / 3, 100])),
    ]
    assert shown(run, "loss", "iteration")[0] == [2]
