"""Which trainings does a table stand for on this machine, and where do their results lie?

A run, one row with one seed, has a folder whose name holds the fingerprints of its settings
(config, options, seed, data, initial weights) and of the code. Another config or other code is
another folder, so that nothing is ever mixed, and what is done is found again.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmattn.evaluation.files import write_text
from mmattn.reproduction import fingerprint
from mmattn.reproduction.table import Row, Table, root

ITERATIONS = ("begin", "end", "T_max", "milestones", "step_size", "total_iters")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where and with what runs are done.

    Attributes:
        devices: GPUs that may be taken, none for a CPU.
        gpus: At most so many of them for one run on this machine; 0: all.
        share: Runs that share a GPU.
        threads: CPU threads of each process.
        nodes: Machines that do one run together.
        address: Host and port where they meet.
    """

    devices: tuple[str, ...] = ()
    gpus: int = 0
    share: int = 1
    threads: int = 1
    nodes: int = 1
    address: str = ""

    @property
    def most_processes(self) -> int:
        """As many as one run may have, over all machines."""
        return (min(self.gpus or len(self.devices), len(self.devices)) or 1) * self.nodes


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One training: a row with one seed.

    Attributes:
        row: Name of the row.
        seed: The seed.
        folder: Where everything of it lies.
        setting: Fingerprint of config, options, seed and data.
        code: Fingerprint of the code.
        gpus: GPUs of the recipe.
        processes: Processes that train it, one a GPU, over all machines.
        images_per_update: Images that one step of the optimizer sees.
        baseline: Name of the row that it is compared with.
        total: Epochs or iterations, with ``unit``.
        unit: ``epoch`` or ``iter``.
        missing: Files with initial weights that are not there, or ''.
        record: What ``result.json`` says of it beside what is measured.
    """

    row: str
    seed: int
    folder: Path
    setting: str
    code: str
    gpus: int
    processes: int
    images_per_update: int
    baseline: str | None
    total: int
    unit: str
    missing: str
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """Row and seed."""
        return f"{self.row} seed {self.seed}"

    @property
    def config(self) -> Path:
        """The config as it is run."""
        return self.folder / "config.py"

    @property
    def result(self) -> Path:
        """The file that says that it is done."""
        return self.folder / "result.json"

    def results_of_other_code(self) -> list[Path]:
        """Results with the same settings and other code, the newest last."""
        same = self.folder.parent.glob(f"{self.setting[:12]}-*/result.json")
        return sorted((p for p in same if p != self.result), key=lambda p: p.stat().st_mtime)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs of a table on a machine.

    Attributes:
        table: Name of the table.
        path_of_table: Its file.
        quick: Whether it is the quick variant.
        folder: Where the runs have their folders, and the report its own.
        start: Where relative paths of the configs begin.
        tools: The folder of train.py and test.py.
        machine: What runs may take.
        any_code: Whether results of other code count as done.
        targets: Folders of the runs that are asked for.
        runs: All runs of the table.
    """

    table: str
    path_of_table: Path
    quick: bool
    folder: Path
    start: Path
    tools: Path
    machine: Machine
    any_code: bool
    targets: tuple[str, ...]
    runs: tuple[Run, ...]

    @property
    def path(self) -> Path:
        """Where the plan is kept."""
        return self.folder / "plan.json"

    @property
    def chosen(self) -> list[Run]:
        """The runs that are asked for and can be done."""
        return [run for run in self.runs if str(run.folder) in self.targets]

    def write(self) -> None:
        """Writes plan.json."""
        write_text(self.path, json.dumps(dataclasses.asdict(self), indent=1, default=str))

    def result_of(self, run: Run) -> Path | None:
        """The result file of a run, or None; of other code only where that was asked for."""
        if run.result.exists():
            return run.result
        others = run.results_of_other_code() if self.any_code else []
        return others[-1] if others else None


def read(path: str | Path) -> Plan:
    """Reads a plan.json."""
    content = json.loads(Path(path).read_text())
    runs = [Run(**{**run, "folder": Path(run["folder"])}) for run in content.pop("runs")]
    machine = content.pop("machine")
    machine["devices"] = tuple(machine["devices"])
    for key in ("folder", "start", "tools", "path_of_table"):
        content[key] = Path(content[key])
    content["targets"] = tuple(content["targets"])
    return Plan(**content, machine=Machine(**machine), runs=tuple(runs))


def make(
    table: Table,
    out: Path,
    machine: Machine,
    data_root: str | None = None,
    options: dict[str, Any] | None = None,
    any_code: bool = False,
    targets: Callable[[Run], bool] = lambda run: True,
    write: bool = False,
    skip_missing: bool = True,
    progress: Callable[[str], None] = lambda sentence: None,
) -> Plan:
    """The runs of a table.

    Args:
        table: The table.
        out: Folder of all results.
        machine: What runs may take.
        data_root: Where the data lie, if not where the configs say.
        options: Over those of the table, for every row.
        any_code: Whether results of other code count as done.
        targets: Which of the runs are asked for.
        write: Whether their configs are written to their folders, and the plan.
        skip_missing: Whether runs whose initial weights are not there are left out, or an error.
        progress: Is told what is being done.

    Raises:
        ValueError, PreflightError: A config cannot be read, its data are not there, or the
            machine does not fit its batch; the sentence names the row.
    """
    from mmattn.inspection._console import PreflightError

    checksums = fingerprint.Checksums(out / "checksums.json")
    code = fingerprint.code()
    commit, dirty = fingerprint.commit(root())
    shared = {
        "code": code,
        "git_commit": commit,
        "git_dirty": dirty,
        "versions": fingerprint.versions(),
    }
    runs: dict[Run, str] = {}
    said: set[str] = set()
    for row in table.rows:
        progress(f"reading {row.name}")
        try:
            # what it warns of is the same for many rows
            with contextlib.redirect_stderr(io.StringIO()) as warned:
                runs |= _runs(row, table, out, machine, data_root, options or {}, checksums, shared)
        except (PreflightError, ValueError) as error:
            reason = str(error).replace("--cfg-options data_root=", "--data-root ")
            made = f"; 'reproduce.py run {table.path.stem}' makes it" if table.prepare else ""
            missing = "does not exist" in reason and not data_root
            raise ValueError(f"row {row.name}: {reason}{made if missing else ''}") from None
        for line in warned.getvalue().splitlines():
            # the table's own options are meant
            if line not in said and any(key in line for key in options or ()):
                said.add(line)
                print(line, file=sys.stderr)
    plan = Plan(
        table=table.name,
        path_of_table=table.path.resolve(),
        quick=table.quick,
        folder=(out / table.name).resolve(),
        start=Path.cwd(),
        tools=root() / "tools",
        machine=machine,
        any_code=any_code,
        targets=(),
        runs=tuple(runs),
    )
    missing = [run for run in runs if targets(run) and run.missing]
    if missing and not skip_missing:
        names = ", ".join(dict.fromkeys(f"{run.row} ({run.missing})" for run in missing))
        raise ValueError(
            f"pre-trained weights are not there: {names}. The README beside a config says where "
            "they come from; --skip-missing leaves these rows out"
        )
    chosen = [run for run in runs if targets(run) and not run.missing]
    left = [run for run in chosen if run.result.exists() or plan.result_of(run) is None]
    plan = dataclasses.replace(plan, targets=tuple(str(run.folder) for run in left))
    if write:
        for run in left:
            # that of a result stays the one that it was made with
            if not (run.result.exists() and run.config.exists()):
                write_text(run.config, runs[run])
        plan.write()
    return plan


def _runs(
    row: Row,
    table: Table,
    out: Path,
    machine: Machine,
    data_root: str | None,
    options: dict[str, Any],
    checksums: fingerprint.Checksums,
    shared: dict[str, Any],
) -> Iterator[tuple[Run, str]]:
    from mmattn.inspection import checkpoint_file, config_file, preflight

    options = {**row.options, **options}
    placed = {"data_root": data_root} if data_root else {}
    config = config_file.load(row.config, {**options, **placed})
    preflight.check_data(config, ("train", "test"))
    processes, accumulate = _split(row, config, machine)
    config.default_hooks.checkpoint.setdefault("max_keep_ckpts", 1)
    data = _data(config, checksums)
    weights = {
        name: checksums.of(name) if Path(name).is_file() else ""
        for node in config_file.maps([config.model, {"init_cfg": _load_from(config)}])
        for name, _ in config_file.pretrained(node.get("init_cfg"))
        if checkpoint_file.is_local(name)
    }
    missing = [name for name, checksum in weights.items() if not checksum]
    unit = "epoch" if "max_epochs" in config.train_cfg else "iter"
    for seed in row.seeds:
        config.randomness = {**config.get("randomness", {}), "seed": seed}
        # before gradients accumulate: a look from a machine with fewer GPUs finds the same runs
        setting = fingerprint.of_text(
            fingerprint.settings(config._cfg_dict.to_dict(), config.get("data_root")),
            json.dumps([data["train_sha256"], data["val_sha256"], sorted(weights.values())]),
        )
        key = f"{setting[:12]}-{shared['code'][:8]}"
        folder = (out / table.name / row.name / f"seed{seed}" / key).resolve()
        as_run = copy.deepcopy(config)
        as_run.work_dir = str(folder / "work")
        _accumulate(as_run, accumulate)
        run = Run(
            row=row.name,
            seed=seed,
            folder=folder,
            setting=setting,
            code=shared["code"],
            gpus=processes * accumulate,
            processes=processes,
            images_per_update=_batch(config) * processes * accumulate,
            baseline=row.baseline,
            total=as_run.train_cfg[f"max_{unit}s"],
            unit=unit,
            missing=", ".join(missing),
            record={
                "format": 1,
                "table": table.name,
                "row": row.name,
                "seed": seed,
                "config": _shown(row.config),
                "options": options,
                "setting": setting,
                **shared,
                "data": data,
            },
        )
        yield run, _text(as_run)


def _load_from(config: Any) -> dict[str, Any]:
    path = config.get("load_from")
    return dict(type="Pretrained", checkpoint=path) if path else {}


def _text(config: Any) -> str:
    """A config file with the content of a config, as mmengine reads it again."""
    content = config._cfg_dict.to_dict()
    return "".join(f"{key} = {value!r}\n" for key, value in content.items())


def _shown(config: str) -> str:
    path = Path(config)
    with contextlib.suppress(ValueError):
        return path.relative_to(root()).as_posix()
    return config


def _batch(config: Any) -> int:
    loader = config.train_dataloader
    return int(loader.get("batch_size") or loader.batch_sampler.batch_size)


def _split(row: Row, config: Any, machine: Machine) -> tuple[int, int]:
    """Processes, and the steps that each adds up, for the batch of the recipe."""
    batch = _batch(config)
    for_rate = (config.get("auto_scale_lr") or {}).get("base_batch_size")
    gpus = row.gpus or max(1, (for_rate or batch) // batch)
    wanted = batch * gpus
    if for_rate and wanted != for_rate:
        raise ValueError(
            f"{gpus} GPUs x {batch} images are {wanted}, but its learning rate is for {for_rate} "
            "(auto_scale_lr.base_batch_size): change gpus in the table, or set both in options"
        )
    for processes in range(min(gpus, machine.most_processes), 0, -1):
        if wanted % (batch * processes) == 0 and processes % machine.nodes == 0:
            return processes, wanted // (batch * processes)
    raise ValueError(
        f"its {gpus} x {batch} images cannot be split over {machine.nodes} machines with "
        f"{machine.most_processes} GPUs in all"
    )


def _accumulate(config: Any, steps: int) -> None:
    """Adds up gradients over ``steps`` iterations, and stretches what counts iterations."""
    if steps == 1:
        return
    wrapper = config.optim_wrapper
    wrapper.accumulative_counts = steps * wrapper.get("accumulative_counts", 1)

    def stretch(node: Any, keys: Sequence[str]) -> None:
        for key in keys:
            if isinstance(node.get(key), (list, tuple)):
                node[key] = [value * steps for value in node[key]]
            elif node.get(key) is not None:
                node[key] *= steps

    schedulers = config.get("param_scheduler") or []
    for scheduler in schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]:
        if not scheduler.get("by_epoch", True):
            stretch(scheduler, ITERATIONS)
    if "max_iters" in config.train_cfg:
        stretch(config.train_cfg, ("max_iters", "val_interval", "val_begin"))
        checkpoint = config.default_hooks.checkpoint
        if not checkpoint.get("by_epoch", True):
            stretch(checkpoint, ("interval",))


def _data(config: Any, checksums: fingerprint.Checksums) -> dict[str, Any]:
    """What is recorded of the data: the annotation files, by content."""
    from mmattn.inspection import config_file

    def files(part: str) -> list[str]:
        found = []
        for dataset in config_file.maps(config[part]["dataset"]):
            if dataset.get("ann_file"):
                found.append(str(Path(dataset.get("data_root") or "", dataset["ann_file"])))
        return list(dict.fromkeys(found))

    train, test = files("train_dataloader"), files("test_dataloader")
    if not train or len(test) != 1:
        raise ValueError(
            "the suite expects datasets with annotation files in COCO format, one to test on; "
            f"found {len(train)} to train on and {len(test)} to test on"
        )
    evaluators = [m for m in config_file.maps(config.test_evaluator) if m.get("type")]
    if len(evaluators) != 1 or evaluators[0].type != "mmattn.CocoSizeMetric":
        raise ValueError(
            "its test_evaluator is expected to be one dict(type='mmattn.CocoSizeMetric'): set "
            "test_evaluator.type: mmattn.CocoSizeMetric in the table's options"
        )
    return {
        "annotations": str(Path(test[0]).resolve()),
        "train_sha256": fingerprint.of_text(*map(checksums.of, train)),
        "val_sha256": checksums.of(test[0]),
        "images": checksums.images(test[0]),
        "train_images": sum(checksums.images(path) or 0 for path in train),
    }
