"""The metric as mmengine's evaluators and hooks use it."""

import json
import logging
import subprocess
import sys
import types

import mmattn  # noqa: F401  before any mm* package: it offers the operators that mmcv may lack

# isort: split
import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmattn.checkpoints.files import allow_training_state
from mmattn.evaluation import CocoSizeMetric
from mmattn.evaluation import evaluate as evaluate_files

COCO_KEYS = [
    *("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"),
    *("AR@100", "AR_s@100", "AR_m@100", "AR_l@100"),
]

# Two images of 200 x 200 and two classes, "cat" and "dog" (ids 3 and 8): a small and a large cat
# in image 1, both found; a small dog in image 2, missed, and a cat of 50 x 50 found that is not
# there, with the best score of all cats.
#   cat, small:  1 object, hit                                        AP 1
#   cat, all:    miss (0.9), hit (0.8), hit (0.7): precision 2/3      AP 2/3
#   cat, large:  1 object, hit                                        AP 1
#   dog, small:  1 object, missed                                     AP 0
TRUTH = {
    "images": [{"id": n, "height": 200, "width": 200} for n in (1, 2)],
    "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    "annotations": [
        {
            "id": n,
            "image_id": i,
            "category_id": c,
            "bbox": [x, y, w, w],
            "area": w * w,
            "iscrowd": 0,
        }
        for n, i, c, x, y, w in [(1, 1, 3, 0, 0, 20), (2, 1, 3, 80, 80, 100), (3, 2, 8, 0, 0, 20)]
    ],
}
for _x in TRUTH["annotations"]:
    _left, _top, _w, _h = _x["bbox"]
    _x["segmentation"] = [[_left, _top, _left, _top + _h, _left + _w, _top + _h, _left + _w, _top]]
FOUND = {
    1: [((0, 0, 20, 20), 0.8, 0), ((80, 80, 180, 180), 0.7, 0)],
    2: [((50, 50, 100, 100), 0.9, 0)],
}
EXPECTED = {
    **{f"bbox_{name}": 1 / 3 for name in ("mAP", "mAP_50", "mAP_75")},
    **{"bbox_mAP_s": 1 / 2, "bbox_mAP_l": 1, "bbox_AR@100": 1 / 2},
    **{"bbox_AR_s@100": 1 / 2, "bbox_AR_l@100": 1},
}


def sample(image_id, found, masks=False, instances=None, name=lambda image_id: image_id):
    """What a detector gives an evaluator for an image; found is a list of (xyxy, score, label)."""
    boxes = torch.tensor([x[0] for x in found], dtype=torch.float32).reshape(-1, 4)
    prediction = {
        "bboxes": boxes,
        "scores": torch.tensor([x[1] for x in found]),
        "labels": torch.tensor([x[2] for x in found], dtype=torch.long),
    }
    if masks:
        prediction["masks"] = torch.zeros(len(found), 200, 200, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(prediction["masks"], boxes.long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
    data = {"img_id": name(image_id), "ori_shape": (200, 200), "pred_instances": prediction}
    return data if instances is None else {**data, "instances": instances}


def samples(found=FOUND, **kwargs):
    return [sample(image_id, found.get(image_id, []), **kwargs) for image_id in (1, 2)]


def evaluate(metric, data=None, classes=("cat", "dog")):
    metric.dataset_meta = {"classes": classes}
    data = samples() if data is None else data
    for x in data:
        metric.process({}, [x])
    return metric.evaluate(len(data))


@pytest.fixture
def ann_file(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(TRUTH))
    return str(path)


@pytest.fixture(autouse=True)
def _no_runner(request):
    """Every test has its own logger and message hub, without a log file unless it makes one."""
    MMLogger.get_instance(request.node.name)
    MessageHub.get_instance(request.node.name)
    yield
    for manager in (MMLogger, MessageHub):
        manager._instance_dict.clear()


@pytest.fixture
def log(tmp_path):
    """A function that reads the log file of a run."""
    path = tmp_path / "run/20260101_000000/20260101_000000.log"
    path.parent.mkdir(parents=True)
    logger = MMLogger.get_instance("run", log_file=str(path))

    def read():
        for handler in logger.handlers:
            handler.flush()
        return path.read_text()

    read.folder = path.parent
    return read


def files(folder):
    return sorted(path.name for path in folder.glob("*.json"))


# --- values --------------------------------------------------------------------------------


def test_values(ann_file):
    values = evaluate(CocoSizeMetric(ann_file))
    assert values == {f"coco/{k}": pytest.approx(v, abs=1e-12) for k, v in EXPECTED.items()}
    assert next(iter(values)) == "coco/bbox_mAP"  # what save_best='auto' takes
    assert values["coco/bbox_mAP"] != round(values["coco/bbox_mAP"], 3)


def test_values_are_those_of_the_results_files(ann_file, tmp_path):
    prefix = str(tmp_path / "out/results")
    metric = CocoSizeMetric(ann_file, metric=["bbox", "segm"], outfile_prefix=prefix)
    values = evaluate(metric, samples(masks=True))
    for name in ("bbox", "segm"):
        result = evaluate_files(ann_file, f"{prefix}.{name}.json", iou_type=name)
        logged, expected = metric.size_results[name].to_dict(), result.to_dict()
        assert logged.pop("name") != expected.pop("name")
        notes = expected["conditions"].pop("notes")
        assert logged["conditions"].pop("notes") == []
        assert logged == expected
        # mmdet writes masks with boxes, which is worth a word only outside mmdet
        assert ("pycocotools would take that of the results' boxes" in str(notes)) == (
            name == "segm"
        )
        assert values[f"coco/{name}_mAP"] == result.ap
        assert values[f"coco/{name}_mAP_l"] == result.by_size["large"].ap == pytest.approx(1)


def instances(image_id):
    """The objects of an image as a dataset gives them."""
    return [
        {
            "bbox": [
                x["bbox"][0],
                x["bbox"][1],
                x["bbox"][0] + x["bbox"][2],
                x["bbox"][1] + x["bbox"][3],
            ],
            "bbox_label": {3: 0, 8: 1}[x["category_id"]],
            "ignore_flag": 0,
            "mask": x["segmentation"],
        }
        for x in TRUTH["annotations"]
        if x["image_id"] == image_id
    ]


def test_ground_truth_from_the_data_samples():
    metric = CocoSizeMetric(metric=["bbox", "segm"])
    for _ in range(2):  # a metric is used once an epoch
        data = [sample(n, FOUND[n], True, instances(n), name="img{}".format) for n in (1, 2)]
        values = evaluate(metric, data)
        for key, value in EXPECTED.items():
            assert values[f"coco/{key}"] == pytest.approx(value)
            assert values[f"coco/{key.replace('bbox', 'segm')}"] == pytest.approx(value)


def test_images_without_objects(log):
    values = evaluate(CocoSizeMetric(), [sample(n, FOUND[n], instances=[]) for n in (1, 2)])
    assert values == {}
    assert "n/a" in log()


@pytest.mark.parametrize("metric", ["bbox", "segm"])
def test_no_detections(ann_file, log, metric):
    values = evaluate(CocoSizeMetric(ann_file, metric=metric), samples({}, masks=True))
    assert values == {f"coco/{k.replace('bbox', metric)}": 0 for k in EXPECTED}
    assert "| small  | 0 to 1024    |       2 | 0.0 |  0.0 |  0.0 | 0.0 |" in log()


def test_custom_bins(ann_file):
    bins = [["tiny", 0, 256], ["rest", 256, None]]
    values = evaluate(CocoSizeMetric(ann_file, size_bins=bins))
    assert "coco/bbox_mAP_tiny" not in values  # no object is that small
    assert values["coco/bbox_mAP_rest"] == values["coco/bbox_mAP"]
    assert values["coco/bbox_AR_rest@100"] == values["coco/bbox_AR@100"]
    assert "coco/bbox_mAP_s" not in values


def test_bins_as_text(ann_file):
    text = CocoSizeMetric(ann_file, size_bins="tiny:0-16^2,rest:16^2-")
    values = evaluate(text)
    assert values == evaluate(
        CocoSizeMetric(ann_file, size_bins={"tiny": (0, 256), "rest": (256, None)})
    )
    assert values["coco/bbox_AR_rest@100"] == pytest.approx(1 / 2)
    fine = evaluate(CocoSizeMetric(ann_file, size_bins="coco-fine"))
    assert fine["coco/bbox_mAP_small"] == pytest.approx(1 / 2)  # 16^2 to 32^2
    assert fine["coco/bbox_mAP_large"] == pytest.approx(1)
    assert "coco/bbox_mAP_tiny" not in fine
    assert "coco/bbox_mAP_s" not in fine
    coco = CocoSizeMetric(ann_file, size_bins="coco")
    assert evaluate(coco) == evaluate(CocoSizeMetric(ann_file))


def test_size_by(tmp_path):
    # the areas of the annotations are those of thin masks: all of them small
    thin = [{**x, "area": x["area"] / 20} for x in TRUTH["annotations"]]
    path = tmp_path / "thin.json"
    path.write_text(json.dumps({**TRUTH, "annotations": thin}))
    by_area = evaluate(CocoSizeMetric(str(path)))
    assert "coco/bbox_mAP_l" not in by_area
    by_box = evaluate(CocoSizeMetric(str(path), size_by="bbox"))
    assert by_box == {f"coco/{k}": pytest.approx(v, abs=1e-12) for k, v in EXPECTED.items()}
    # squares of 20 and 100 px in an image of 200 px: 0.1 and 0.5 of its side
    metric = CocoSizeMetric(None, size_by="sqrt-relative", size_bins="low:0-0.2,high:0.3-")
    shares = evaluate(metric, [sample(n, FOUND[n], instances=instances(n)) for n in (1, 2)])
    assert shares["coco/bbox_mAP_low"] == pytest.approx(1 / 2)
    assert shares["coco/bbox_mAP_high"] == pytest.approx(1)
    assert evaluate(CocoSizeMetric(str(path), size_by="sqrt-relative"))["coco/bbox_mAP_small"] >= 0


def test_classwise(ann_file, log):
    values = evaluate(CocoSizeMetric(ann_file, classwise=True))
    per_class = {k.split("/")[1]: v for k, v in values.items() if "precision" in k}
    assert per_class == {
        "cat_precision": pytest.approx(2 / 3),
        "cat_precision_s": pytest.approx(1),
        "cat_precision_l": pytest.approx(1),
        "dog_precision": 0,
        "dog_precision_s": 0,
    }
    assert "| cat   | 66.7 (2) | 100.0 (1) | n/a (0) | 100.0 (1) |" in log()
    both = CocoSizeMetric(ann_file, metric=["bbox", "segm"], classwise=True)
    values = evaluate(both, samples(masks=True))
    assert {"coco/bbox_cat_precision_s", "coco/segm_dog_precision"} <= values.keys()


def test_only_the_classes_of_the_dataset_count(ann_file):
    metric = CocoSizeMetric(ann_file)
    values = evaluate(metric, samples({2: [((0, 0, 20, 20), 0.5, 0)]}), classes=("dog",))
    assert values["coco/bbox_mAP"] == pytest.approx(1)
    assert list(metric.size_results["bbox"].per_class) == ["dog"]


def test_metric_items_and_max_dets(ann_file):
    items = ["mAP_s", "mAP_50_s", "mAP_m", "AR@1"]
    values = evaluate(CocoSizeMetric(ann_file, metric_items=items, max_dets=1, prefix="val"))
    # one detection of an image and class: the large cat is not found any more
    assert values == {
        "val/bbox_mAP_s": pytest.approx(1 / 2),
        "val/bbox_mAP_50_s": pytest.approx(1 / 2),
        "val/bbox_AR@1": pytest.approx(1 / 4),
    }


def test_format_only(ann_file, tmp_path):
    metric = CocoSizeMetric(ann_file, format_only=True, outfile_prefix=str(tmp_path / "out/a"))
    assert evaluate(metric) == {}
    assert files(tmp_path / "out") == ["a.bbox.json"]


@pytest.mark.parametrize("name", ["iou_thrs", "backend_args", "sort_categories", "use_mp_eval"])
def test_other_arguments_of_coco_metric(ann_file, name):
    value = {"iou_thrs": 0.5, "backend_args": {"backend": "local"}}.get(name, True)
    values = evaluate(CocoSizeMetric(ann_file, **{name: value}))
    assert values["coco/bbox_mAP"] == pytest.approx(1 / 3)
    assert ("coco/bbox_mAP_75" in values) == (name != "iou_thrs")


def test_every_argument_of_coco_metric_is_taken():
    from inspect import signature

    from mmdet.evaluation.metrics import CocoMetric

    ours, theirs = signature(CocoSizeMetric).parameters, signature(CocoMetric).parameters
    assert list(ours)[: len(theirs)] == list(theirs)  # by position too
    assert all(ours[name].default == theirs[name].default for name in theirs)


def test_some_images_are_not_evaluated(ann_file, log):
    evaluate(CocoSizeMetric(ann_file), samples()[:1])
    assert "1 of the 2 images of the ground truth were evaluated" in log()


def test_proposal_nums_have_no_effect(ann_file, log):
    values = evaluate(CocoSizeMetric(ann_file, proposal_nums=(100, 1, 10)))
    assert "proposal_nums=" not in log()
    assert values == evaluate(CocoSizeMetric(ann_file, proposal_nums=[300]))
    assert "proposal_nums=[300] has no effect; max_dets=100" in log()


# --- the file and the log ------------------------------------------------------------------


def test_file_beside_the_log(ann_file, log):
    metric = CocoSizeMetric(ann_file)
    values = evaluate(metric)
    assert files(log.folder) == ["ap_by_size.json"]
    path = log.folder / "ap_by_size.json"
    assert MessageHub.get_current_instance().get_info("mmattn/ap_by_size_file") == str(path)
    assert str(path) in log()
    data = json.loads(path.read_text())
    assert data["ann_file"] == ann_file
    result = data["results"]["bbox"]
    assert result["AP"] == values["coco/bbox_mAP"]  # every digit
    assert result["by_size"]["medium"]["AP"] is None
    assert [x["name"] for x in result["classes"]] == ["cat", "dog"]
    assert [x["by_size"]["small"]["num_objects"] for x in result["classes"]] == [1, 1]
    assert result["conditions"]["max_dets"] == 100

    evaluate(metric)  # does not replace the first
    assert files(log.folder) == ["ap_by_size.json", "ap_by_size_2.json"]
    assert not list(log.folder.glob(".*"))


def test_table_in_the_log(ann_file, log):
    evaluate(CocoSizeMetric(ann_file))
    table = """
| size   | area (px^2)  | objects |    AP |  AP50 |  AP75 |    AR |
|--------|--------------|---------|-------|-------|-------|-------|
| all    | any          |       3 |  33.3 |  33.3 |  33.3 |  50.0 |
| small  | 0 to 1024    |       2 |  50.0 |  50.0 |  50.0 |  50.0 |
| medium | 1024 to 9216 |       0 |   n/a |   n/a |   n/a |   n/a |
| large  | 9216 or more |       1 | 100.0 | 100.0 | 100.0 | 100.0 |
"""
    assert table in log()


def test_without_a_log_file(ann_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate(CocoSizeMetric(ann_file))
    assert files(tmp_path) == ["truth.json"]
    evaluate(CocoSizeMetric(ann_file, outfile_prefix="out/a"))
    assert files(tmp_path / "out") == ["a.ap_by_size.json", "a.bbox.json"]


# --- in a Runner ---------------------------------------------------------------------------


class Model(BaseModel):
    """Learns nothing and predicts FOUND, or what it is given for each evaluation in turn."""

    def __init__(self, *found):
        super().__init__()
        self.found = [x for x in found for _ in range(2)]
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, inputs, data_samples=None, mode="tensor"):
        if mode == "loss":
            return {"loss": self.weight**2}
        found = self.found.pop(0) if self.found else FOUND
        return [sample(int(n), found.get(int(n), [])) for n in inputs]


class Images(torch.utils.data.Dataset):
    def __init__(self, classes=("cat", "dog")):
        self.metainfo = {"classes": classes}

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return {"inputs": torch.tensor(i + 1)}


def runner(
    ann_file, work_dir, train_cfg, model=None, metric=None, classes=("cat", "dog"), **kwargs
):
    loader = {
        "dataset": Images(classes),
        "batch_size": 1,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
    }
    # by name, as a config writes it over mmdet's base config
    evaluator = {"type": "mmattn.CocoSizeMetric", "ann_file": ann_file, **(metric or {})}
    return Runner(
        model=model or Model(),
        work_dir=str(work_dir),
        default_scope="mmdet",
        experiment_name=work_dir.parent.name,
        train_dataloader=loader,
        val_dataloader=loader,
        test_dataloader=loader,
        train_cfg=train_cfg,
        val_cfg={},
        test_cfg={},
        val_evaluator=evaluator,
        test_evaluator=evaluator,
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        **kwargs,
    )


@pytest.fixture
def _restore_scope():
    yield
    init_default_scope("mmengine")


@pytest.mark.usefixtures("_restore_scope")
@pytest.mark.parametrize(
    ("train_cfg", "names"),
    [
        ({"by_epoch": True, "max_epochs": 2}, ["val_epoch_1", "val_epoch_2", "test_epoch_2"]),
        (
            {"by_epoch": False, "max_iters": 4, "val_interval": 2},
            ["val_iter_2", "val_iter_4", "test_iter_4"],
        ),
    ],
    ids=["epochs", "iterations"],
)
def test_training(ann_file, tmp_path, train_cfg, names):
    by_epoch = train_cfg["by_epoch"]
    hooks = {
        "checkpoint": {"type": "CheckpointHook", "save_best": "coco/bbox_mAP", "by_epoch": by_epoch}
    }
    run = runner(ann_file, tmp_path / "run", train_cfg, default_hooks=hooks)
    run.train()
    run.test()
    folder = tmp_path / "run" / run.timestamp
    assert {x for x in files(folder) if x.startswith("ap")} == {
        f"ap_by_size_{name}.json" for name in names
    }
    last = json.loads((folder / f"ap_by_size_{names[-1]}.json").read_text())
    assert (last["stage"], last["iter"], last["epoch"]) == ("test", 4, 2 if by_epoch else None)
    assert run.message_hub.get_info("mmattn/ap_by_size_file").endswith(f"{names[-1]}.json")
    assert list((tmp_path / "run").glob("best_coco_bbox_mAP_*.pth"))
    # what LoggerHook gave to the visualizer is strict JSON with the same figures
    (scalars,) = folder.glob("vis_data/scalars.json")

    def reject(constant):
        raise AssertionError(constant)

    lines = [json.loads(x, parse_constant=reject) for x in scalars.read_text().splitlines()]
    validated = [x for x in lines if "coco/bbox_mAP" in x]
    assert len(validated) == 2
    assert validated[-1]["coco/bbox_mAP"] == last["results"]["bbox"]["AP"]
    assert "coco/bbox_mAP_m" not in validated[-1]


ODD_NAMES = ("timer / loss", "Größe, 時計@2")


class Wandb(types.ModuleType):
    """Records what wandb would get."""

    def __init__(self):
        super().__init__("wandb")
        self.logged = []
        self.config = types.SimpleNamespace(update=lambda *args, **kwargs: None)
        self.run = types.SimpleNamespace(log_code=lambda **kwargs: None)

    def init(self, **kwargs):
        pass

    def log(self, values, commit):
        self.logged.append(dict(values))

    def join(self):
        pass


@pytest.mark.usefixtures("_restore_scope")
@pytest.mark.parametrize(
    ("size_bins", "suffixes"),
    [("coco", ["_s", "_m", "_l"]), ("tiny:0-16^2,losses:16^2-50^2,wide-1.5:50^2-", None)],
    ids=["coco", "own"],
)
def test_every_figure_arrives_in_the_loggers(tmp_path, monkeypatch, size_bins, suffixes):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    suffixes = suffixes or ["_tiny", "_losses", "_wide-1.5"]
    truth = dict(TRUTH)
    truth["categories"] = [{"id": i, "name": n} for i, n in zip((3, 8), ODD_NAMES, strict=True)]
    ann_file = tmp_path / "truth.json"
    ann_file.write_text(json.dumps(truth))
    monkeypatch.setitem(sys.modules, "wandb", wandb := Wandb())
    kinds = ("LocalVisBackend", "TensorboardVisBackend", "WandbVisBackend")
    run = runner(
        str(ann_file),
        tmp_path / "run",
        {"by_epoch": True, "max_epochs": 3},
        Model({}, FOUND, {1: FOUND[1]}),  # AP goes up, and up again without the false alarm
        {"size_bins": size_bins, "classwise": True},
        ODD_NAMES,
        visualizer={
            "type": "Visualizer",
            "name": tmp_path.name,
            "vis_backends": [{"type": kind} for kind in kinds],
        },
    )
    run.train()
    vis_data = tmp_path / "run" / run.timestamp / "vis_data"
    lines = [json.loads(x) for x in (vis_data / "scalars.json").read_text().splitlines()]
    local = [x for x in lines if "coco/bbox_mAP" in x]
    board = EventAccumulator(str(next(vis_data.glob("events.out.*")).parent)).Reload()
    recorded = [x for x in wandb.logged if "coco/bbox_mAP" in x]
    assert [x["step"] for x in local] == [1, 2, 3]
    wanted = {}
    for epoch in (1, 2, 3):
        path = vis_data.parent / f"ap_by_size_val_epoch_{epoch}.json"
        result = json.loads(path.read_text())["results"]["bbox"]
        rows = zip(["", *suffixes], [result, *result["by_size"].values()], strict=True)
        for suffix, row in rows:
            wanted[f"coco/bbox_mAP{suffix}", epoch] = row["AP"]
            wanted[f"coco/bbox_AR{suffix}@100", epoch] = row["AR"]
        for x in result["classes"]:
            rows = zip(["", *suffixes], [x, *x["by_size"].values()], strict=True)
            for suffix, row in rows:
                wanted[f"coco/{x['name']}_precision{suffix}", epoch] = row["AP"]
    assert {key for key, _ in wanted} >= {
        f"coco/{name}_precision{suffix}" for name in ODD_NAMES for suffix in suffixes
    }
    name = f"coco/{ODD_NAMES[0]}_precision"
    assert [wanted[name, n] for n in (1, 2, 3)] == pytest.approx([0, 2 / 3, 1])
    tags = board.Tags()["scalars"]
    for (key, epoch), value in wanted.items():
        if value is None:
            assert key not in local[epoch - 1]
            assert key not in tags
            assert key not in recorded[epoch - 1]
            continue
        assert local[epoch - 1][key] == value
        assert recorded[epoch - 1][key] == value
        # mmengine hands on numpy's float64, which is a float
        assert isinstance(recorded[epoch - 1][key], float)
        (event,) = [x for x in board.Scalars(key) if x.step == epoch]
        assert event.value == pytest.approx(value)


@pytest.mark.usefixtures("_restore_scope")
def test_a_resumed_training_with_other_bins_logs_no_old_figure(ann_file, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # so that it is undone
    allow_training_state()
    cfg = {"by_epoch": True, "max_epochs": 1}
    runner(ann_file, tmp_path / "run", cfg).train()
    cfg, metric = {"by_epoch": True, "max_epochs": 2}, {"size_bins": "tiny:0-500,rest:5000-"}
    run = runner(ann_file, tmp_path / "run", cfg, metric=metric, resume=True)
    run.train()
    scalars = (tmp_path / "run" / run.timestamp / "vis_data/scalars.json").read_text()
    last = json.loads(scalars.splitlines()[-1])
    assert last["step"] == 2
    assert last["coco/bbox_mAP_rest"] == pytest.approx(1)
    assert "coco/bbox_mAP_l" not in last


@pytest.mark.usefixtures("_restore_scope")
def test_validation_without_training(ann_file, tmp_path):
    run = runner(ann_file, tmp_path / "run", {"by_epoch": True, "max_epochs": 2})
    run.val()
    run.val()
    names = files(tmp_path / "run" / run.timestamp)
    assert [x for x in names if x.startswith("ap")] == [
        "ap_by_size_val.json",
        "ap_by_size_val_2.json",
    ]


@pytest.mark.usefixtures("_restore_scope")
def test_saving_the_best_by_an_empty_bin_fails_at_once(ann_file, tmp_path):
    hooks = {
        "checkpoint": {"type": "CheckpointHook", "save_best": "coco/bbox_mAP_m", "rule": "greater"}
    }
    cfg = {"by_epoch": True, "max_epochs": 2}
    with pytest.raises(KeyError, match="coco/bbox_mAP_m"):
        runner(ann_file, tmp_path / "run", cfg, default_hooks=hooks).train()


def test_rank_0_evaluates_and_all_ranks_return(tmp_path, ann_file):
    script = tmp_path / "ranks.py"
    script.write_text(
        "import sys, json, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "import mmattn, torch\n"
        "from test_coco_size_metric import CocoSizeMetric, evaluate, samples\n"
        "from mmengine.logging import MMLogger\n"
        "def work(rank, folder, ann_file):\n"
        "    store = torch.distributed.FileStore(folder + '/store', 2)\n"
        "    torch.distributed.init_process_group('gloo', store=store, rank=rank, world_size=2)\n"
        "    MMLogger.get_instance('run', log_file=folder + '/run.log')\n"
        "    metric = CocoSizeMetric(ann_file)\n"
        "    metric.dataset_meta = {'classes': ('cat', 'dog')}\n"
        "    metric.process({}, [samples()[rank]])\n"
        "    values = metric.evaluate(2)\n"
        "    pathlib.Path(folder, f'rank{rank}').write_text(json.dumps(values))\n"
        "if __name__ == '__main__':\n"
        "    args = {'args': sys.argv[2:], 'nprocs': 2, 'start_method': 'fork'}\n"
        "    torch.multiprocessing.start_processes(work, **args)\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    here = str(__file__).rpartition("/")[0]
    subprocess.run([sys.executable, script, here, str(out), ann_file], check=True, timeout=240)
    ranks = [json.loads((out / f"rank{rank}").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert ranks[0] == {f"coco/{k}": pytest.approx(v) for k, v in EXPECTED.items()}
    assert files(out) == ["ap_by_size.json"]


# --- bad input -----------------------------------------------------------------------------


def test_registered_by_name():
    metric = Evaluator({"type": "mmattn.CocoSizeMetric"}).metrics[0]
    assert type(metric) is CocoSizeMetric
    assert isinstance(metric, BaseMetric)
    assert ROOT_METRICS.get("mmattn.CocoSizeMetric") is CocoSizeMetric


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"metric": "proposal_fast"}, ValueError, "got 'proposal_fast'; for proposals use mmdet's"),
        ({"metric": ["bbox", "keypoints"]}, ValueError, "got 'keypoints'"),
        ({"metric": []}, ValueError, "metric must be"),
        ({"metric": ["bbox", "bbox"]}, ValueError, "list of both"),
        ({"metric": None}, ValueError, "got None"),
        ({"format_only": True}, ValueError, "format_only=True needs outfile_prefix"),
        ({"size_bins": []}, ValueError, "there are no bins"),
        ({"size_bins": "tiny:0-40^2,small:32^2-"}, ValueError, "'tiny' .* and 'small' .* overlap"),
        ({"size_by": "pixels"}, ValueError, "size_by must be one of area, .* got 'pixels'"),
        ({"max_dets": 0}, ValueError, "max_dets must be"),
        ({"iou_thrs": [50]}, ValueError, "iou_thrs must be"),
        ({"metric_items": ["mAP_tiny"]}, ValueError, "'mAP_tiny' is not a figure .* mAP, mAP_50"),
        ({"metric_items": ["AR@1000"]}, ValueError, "'AR@1000' is not .* max_dets=100 .* AR@100"),
        ({"file_client_args": {}}, RuntimeError, "backend_args"),
        ({"size_bin": []}, TypeError, "unexpected keyword argument 'size_bin'"),
        ({"ann_file": "no/such.json"}, FileNotFoundError, "ann_file 'no/such.json' does not exist"),
    ],
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        CocoSizeMetric(**kwargs)


def test_broken_ann_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"ann_file '.*a.json' is not JSON"):
        CocoSizeMetric(str(tmp_path / "a.json"))


def test_ann_file_is_checked_before_inference(ann_file, tmp_path):
    metric = CocoSizeMetric(ann_file)
    with pytest.raises(ValueError, match="has no category 'horse', which is among the 2 classes"):
        metric.dataset_meta = {"classes": ("cat", "horse")}
    with pytest.raises(ValueError, match="metainfo has no 'classes'"):
        metric.dataset_meta = {}
    boxes = [{k: v for k, v in x.items() if k != "segmentation"} for x in TRUTH["annotations"]]
    (tmp_path / "boxes.json").write_text(json.dumps({**TRUTH, "annotations": boxes}))
    metric = CocoSizeMetric(str(tmp_path / "boxes.json"), metric=["bbox", "segm"])
    with pytest.raises(ValueError, match=r"annotations\[0\] has no 'segmentation'"):
        metric.dataset_meta = {"classes": ("cat", "dog")}


def test_bad_predictions(ann_file):
    with pytest.raises(ValueError, match="metric='segm', but the model predicts no masks"):
        evaluate(CocoSizeMetric(ann_file, metric="segm"))
    with pytest.raises(ValueError, match="predicts label 5, but the dataset has 2 classes"):
        evaluate(CocoSizeMetric(ann_file), samples({1: [((0, 0, 9, 9), 0.5, 5)]}))
    with pytest.raises(ValueError, match="with image_id 7, and the ground truth has 1, 2"):
        evaluate(CocoSizeMetric(ann_file), [sample(7, FOUND[1])])
    with pytest.raises(ValueError, match="no image was evaluated"):
        evaluate(CocoSizeMetric(ann_file), [])


def test_logging_level_is_info(ann_file, log):
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    evaluate(CocoSizeMetric(ann_file))
    assert "AP by size" not in log()
