"""Plans whose trainings take no time: tools that only do what the suite relies on."""

import json
from pathlib import Path

from mmattn.evaluation.files import write_text
from mmattn.reproduction import fingerprint
from mmattn.reproduction.job import cost_file
from mmattn.reproduction.plan import Machine, Plan, Run

CONFIG = "configs/_base_/faster-rcnn_r50_fpn_1x_coco.py"  # any that exists
# a training of three epochs: it goes on from its work dir, notes what it was given, and dies where
# a file 'die' says so
TRAIN = """
import json, os, pathlib, signal, sys, time

config, work = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[sys.argv.index("--work-dir") + 1])
settings = json.loads(config.with_name("fake.json").read_text())
rank = int(os.environ.get("RANK", 0))
if rank:
    (work.parent / f"rank{rank}.json").write_text(json.dumps(dict(
        world=os.environ["WORLD_SIZE"], group=os.environ["GROUP_RANK"], argv=sys.argv)))
    sys.exit()
work.mkdir(parents=True, exist_ok=True)
begun = time.time()
last = work / "last_checkpoint"
epoch = int(last.read_text().split("_")[-1].removesuffix(".pth")) if last.exists() else 0
with open(work.parent / "epochs.txt", "a") as log:
    log.write(f"resumed at {epoch}\\n")
while epoch < 3:
    time.sleep(settings.get("seconds", 0))
    die = settings.get("die", [])
    if epoch in die and not (work / f"died{epoch}").exists():
        (work / f"died{epoch}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if epoch in settings.get("fail", []):
        sys.exit("train.py: the learning rate is a banana")
    epoch += 1
    (work / f"epoch_{epoch}.pth").write_text("weights")
    last.write_text(str(work / f"epoch_{epoch}.pth"))
    log = work / "20260101_000000" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        file.write(json.dumps(dict(epoch=epoch, step=10 * epoch)) + "\\n")
        # as mmattn.GateLogHook does, which knows iterations alone
        gates = {f"gates/layer{i}/mask/mean": 0.5 for i in range(200)}
        file.write(json.dumps(dict(gates, step=10 * epoch)) + "\\n")
(work / "seen.json").write_text(json.dumps(dict(
    begun=begun, ended=time.time(), devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
    threads=os.environ["OMP_NUM_THREADS"], argv=sys.argv, world=os.environ.get("WORLD_SIZE"))))
"""
TEST = """
import json, pathlib, sys

prefix = sys.argv[-1].split("=", 1)[1]
config = pathlib.Path(sys.argv[1])
assert [one for one in sys.argv if one.endswith("epoch_3.pth")], sys.argv
found = json.loads(config.with_name("fake.json").read_text())["found"]
pathlib.Path(prefix + ".bbox.json").write_text(json.dumps(found))
"""


def objects(images=20, shift=0):
    """Ground truth of one object an image, and detections that lie ``shift`` px beside it."""
    truth = {
        "images": [{"id": i, "width": 100, "height": 100} for i in range(images)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [20, 20, 40, 40],
             "area": 1600, "iscrowd": 0}
            for i in range(images)
        ],
    }  # fmt: skip
    found = [
        {"image_id": i, "category_id": 1, "bbox": [20 + shift, 20, 40, 40], "score": 0.9 - i / 100}
        for i in range(images)
    ]
    return truth, found


def make_plan(folder: Path, runs: dict[str, dict], machine: Machine | None = None) -> Plan:
    """A plan of runs named by row, each with what the fake tools read (fake.json)."""
    machine = machine or Machine()
    for name, text in (("train.py", TRAIN), ("test.py", TEST)):
        write_text(folder / "tools" / name, text)
    truth, _ = objects()
    write_text(folder / "val.json", json.dumps(truth))
    names = dict.fromkeys(name.partition(":")[0] for name in runs)
    rows = [f"- {{name: {name}, config: {CONFIG}}}\n" for name in names]
    write_text(folder / "made.yml", "title: made\nrows:\n" + "".join(rows))
    made, code = [], fingerprint.code()
    for number, (name, settings) in enumerate(runs.items()):
        row, _, seed = name.partition(":")
        where = folder / "made" / row / f"seed{seed or 0}" / "aaaaaaaaaaaa-bbbbbbbb"
        write_text(where / "config.py", f"model = dict(type='Made', number={number})\n")
        settings = {"found": objects(shift=settings.pop("shift", 4))[1], **settings}
        write_text(where / "fake.json", json.dumps(settings))
        data = {
            "annotations": str(folder / "val.json"),
            "train_sha256": "0" * 64,
            "val_sha256": fingerprint.of_file(folder / "val.json"),
            "images": 20,
            "train_images": 40,
        }
        record = {"format": 1, "table": "made", "row": row, "seed": int(seed or 0), "data": data,
                  "config": "made.py", "options": {}, "setting": "a" * 64, "code": code,
                  "git_commit": None, "git_dirty": False, "versions": {}}  # fmt: skip
        made.append(
            Run(row=row, seed=int(seed or 0), folder=where, setting="a" * 64, code=code,
                gpus=1, processes=settings.get("processes", 1), images_per_update=16,
                baseline=None, total=3, unit="epoch", missing="", record=record)
        )  # fmt: skip
    plan = Plan(
        table="made", path_of_table=folder / "made.yml", quick=False, folder=folder / "made",
        start=folder, tools=folder / "tools", machine=machine, any_code=False,
        targets=tuple(str(run.folder) for run in made), runs=tuple(made),
    )  # fmt: skip
    for run in made:
        # counting needs a model
        write_text(cost_file(plan, run), json.dumps({"params": 1, "flops": 2, "shape": [1, 1]}))
    plan.write()
    return plan


def seen(run: Run) -> dict:
    """What the fake training noted."""
    return json.loads((run.folder / "work" / "seen.json").read_text())


def epochs(run: Run) -> list[str]:
    """Where each attempt began."""
    return (run.folder / "epochs.txt").read_text().split("\n")[:-1]
