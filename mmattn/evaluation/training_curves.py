"""Loss and AP by size over a training, from the work dirs that mmengine writes.

A work dir has a folder for every start of the training. In it, ``vis_data/scalars.json`` has a
line for every logged iteration and every evaluation, and ``ap_by_size_val_*.json`` are the
evaluations of :class:`mmattn.CocoSizeMetric`. Folders of one work dir are one run: a start that
goes on from a checkpoint replaces what had been logged from there on. A folder of work dirs named
seed0, seed1, ... is one run, too: its curves are means over the seeds.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import html
import io
import json
import math
import os
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from mmattn.evaluation.bins import COCO_BINS, MAX_SIZE
from mmattn.evaluation.files import write_bytes
from mmattn.evaluation.table import NOT_AVAILABLE, render

SCALARS = "scalars.json"
GATES = "gates/"  # begins what GateLogHook writes there, which is neither loss nor AP
SUFFIXES = (".png", ".svg", ".pdf", ".html")
DEFAULT_METRICS = ("loss", "AP")
FIGURES = {"AP": "mAP", "AP50": "mAP_50", "AP75": "mAP_75", "AR": "AR"}
COCO_SUFFIXES = {"s": "small", "m": "medium", "l": "large"}
COCO_LIMITS = {name: (low, high) for name, low, high in COCO_BINS}

# Okabe and Ito's colours, legible on white ones only
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINE_STYLES = ("-", "--", "-.", ":")

_KEY = re.compile(
    r"(?:(?P<prefix>.+)/)?(?P<iou_type>bbox|segm)_"
    r"(?:(?P<map>mAP(?:_50|_75)?)(?:_(?P<bin>[A-Za-z].*))?|AR(?:_(?P<ar_bin>[A-Za-z].*))?@\d+)"
)
_FRACTION = re.compile(r"(^|[/_])(mAP|AP\d*|AR)([_@]|$)|_precision(_|$)")


class WorkDirError(ValueError):
    """A work dir, or what was asked of it, that cannot be shown: one sentence."""


@dataclass
class Evaluation:
    """One evaluation during a training.

    Attributes:
        values: Figure by the name that loggers have, such as ``coco/bbox_mAP_s``.
        after: The last iteration that was logged before it.
        iteration: After which iteration it was; None where only the epoch is known.
        epoch: After which epoch it was; None where only the iteration is known.
        bins: Limits of the size bins and number of objects, by name; empty where not known. The
            number is None where only the limits are known.
        size_by: What the limits are compared with; None where not known.
    """

    values: dict[str, float]
    after: int
    iteration: int | None = None
    epoch: int | None = None
    bins: dict[str, tuple[float, float, int | None]] = field(default_factory=dict)
    size_by: str | None = None


@dataclass
class Run:
    """What a training has logged.

    Attributes:
        name: What it is called in pictures and tables.
        training: Lines of training iterations, in order; each has ``iter``.
        evaluations: In order.
        bins: Those of its last evaluation that says them.
        size_by: As ``bins``.
        notes: What a reader of its curves should know.
        seeds: The trainings that it is the mean of, with different seeds. All else but name and
            notes is theirs, and empty here.
    """

    name: str
    training: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    bins: dict[str, tuple[float, float, int | None]] = field(default_factory=dict)
    size_by: str | None = None
    notes: list[str] = field(default_factory=list)
    seeds: list[Run] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Its name, and how many seeds it is the mean of."""
        if not self.seeds:
            return self.name
        return f"{self.name} ({len(self.seeds)} seed{'s' * (len(self.seeds) > 1)})"

    @property
    def has_logged(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.training or self.evaluations or self.seeds)

    @property
    def iou_types(self) -> set[str]:
        """Of what AP and AR were evaluated: 'bbox', 'segm'."""
        keys = {key for line in lines(self, False) for key in line}
        return {m["iou_type"] for m in map(_KEY.fullmatch, keys) if m}

    @property
    def iterations_per_epoch(self) -> float | None:
        """Iterations of an epoch; None for a training by iterations."""
        exact = [e for e in self.evaluations if e.iteration and e.epoch]
        if exact:
            return exact[-1].iteration / exact[-1].epoch
        # the last iteration of an epoch need not be logged: of all epochs, the nearest to it
        logged = [math.ceil(x["iter"] / x["epoch"]) for x in self.training if x.get("epoch")]
        return max(logged, default=None)

    @property
    def by_epoch(self) -> bool:
        """Whether epochs are its natural unit: it has more than one."""
        if self.seeds:
            return all(seed.by_epoch for seed in self.seeds)
        epochs = [x.get("epoch") or 0 for x in self.training]
        return max([*epochs, *(e.epoch or 0 for e in self.evaluations)], default=0) > 1


@dataclass(frozen=True)
class Panel:
    """A quantity, in a plot of its own.

    Attributes:
        name: Heads the column of the table.
        title: Heads the plot.
        keys: Names of the quantity in the lines of a run, most wanted first.
        percent: Whether a fraction is shown, in percent; the best is the highest.
        training: Whether it is logged with the iterations, not with the evaluations.
        iou_type: Of what it is, 'bbox' or 'segm', where some of the keys do not say it.
        size: The size bin that it is AP or AR of; empty for all sizes, and for anything else.
    """

    name: str
    title: str
    keys: tuple[str, ...]
    percent: bool = False
    training: bool = False
    iou_type: str | None = None
    size: str = ""

    def of(self, run: Run, axis: str) -> tuple[np.ndarray, np.ndarray]:
        """Places on the axis, and values; a fraction in percent, nan where there is none.

        Of several seeds the mean, where all have been logged.
        """
        if run.seeds:
            return _mean([self.of(seed, axis) for seed in run.seeds])
        key = next((key for key in self.keys if self._has(run, key)), None)
        if key is None:
            return np.empty(0), np.empty(0)
        length = run.iterations_per_epoch or math.nan
        if self.training:
            points = [(x["iter"], x[key]) for x in run.training if key in x]
            scale = 1 / length if axis == "epoch" else 1
            points = [(i * scale, y) for i, y in points]
        else:
            points = [
                (_place(e, axis, length), e.values[key]) for e in run.evaluations if key in e.values
            ]
        x, y = np.array([p for p in points if math.isfinite(p[0])], float).reshape(-1, 2).T
        return x, (100 * y if self.percent else y)

    def _has(self, run: Run, key: str) -> bool:
        # where one metric is evaluated, it is not in the names of classes
        says = re.match(r"(?:.*/)?(?:bbox|segm)_", key)
        if self.iou_type and not says and run.iou_types - {self.iou_type}:
            return False
        return any(key in line for line in lines(run, self.training))


def lines(run: Run, training: bool) -> Iterator[Mapping[str, float]]:
    """What was logged with the iterations of a run, or with its evaluations."""
    for one in run.seeds or [run]:
        yield from one.training if training else (e.values for e in one.evaluations)


def _mean(series: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean at the places that all have; nan where one is nan."""
    values = [dict(zip(x.round(9).tolist(), y.tolist(), strict=True)) for x, y in series]
    places = sorted(set(values[0]).intersection(*values[1:]))
    means = [np.mean([y[x] for y in values]) for x in places]
    return np.array(places, float), np.array(means, float)


def _place(evaluation: Evaluation, axis: str, length: float) -> float:
    iteration, epoch = evaluation.iteration, evaluation.epoch
    if axis == "epoch":
        return iteration / length if epoch is None else epoch
    return epoch * length if iteration is None else iteration


# --- reading -------------------------------------------------------------------------------


def read_run(path: str | os.PathLike, name: str | None = None) -> Run:
    """Reads a work dir, or one start of a training in it.

    Args:
        path: A work dir, a folder of one start (``20260131_120000``), or a ``scalars.json``.
        name: What to call the run; the folder's name if None.

    Returns:
        What was logged. Half-written last lines are left out. A folder of work dirs that are
        called seed0, seed1, ... is a run with these seeds.

    Raises:
        WorkDirError: There is nothing to read at ``path``.
    """
    path = Path(path)
    run = Run(name or run_names([path])[0])
    if seeds := _seed_folders(path):
        read = [read_run(seed, f"{run.name}/{seed.name}") for seed in seeds]
        run.seeds = [seed for seed in read if seed.has_logged]
        run.notes += [f"{x.name} has logged nothing yet" for x in read if not x.has_logged]
        return run
    for scalars in _scalar_files(path):
        training, evaluations, notes = _read_start(scalars)
        if not training and all(e.epoch is None and e.iteration is None for e in evaluations):
            continue  # an evaluation on its own, or nothing yet
        first = training[0]["iter"] if training else math.inf
        if run.training and first <= run.training[0]["iter"]:
            run.notes = [  # those on what was logged before go with it
                f"{_start_name(scalars)} begins the training anew; what was logged before is left "
                "out (to show it, name its own folder)"
            ]
        run.training = [x for x in run.training if x["iter"] < first] + training
        earlier = [e for e in run.evaluations if max(e.after, e.iteration or 0) < first]
        run.evaluations = _merged(earlier, evaluations)
        run.notes += [note for note in notes if note not in run.notes]
    _take_bins(run)
    _note_losses(run)
    _note_rounding(run)
    return run


def run_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Names of runs from their folders, with as many parents as it takes to tell them apart."""
    parts = []
    for path in paths:
        path = Path(os.path.abspath(path))
        if path.name == SCALARS:
            path = path.parent
        if path.name == "vis_data":
            path = path.parent
        depth = 2 if re.fullmatch(r"\d{8}_\d{6}", path.name) else 1
        parts.append((path.parts[1:], depth))
    names = ["/".join(p[-depth:]) for p, depth in parts]
    longest = max((len(p) for p, _ in parts), default=0)
    for depth in range(2, longest + 1):
        if len(set(names)) == len(names):
            break
        names = [
            "/".join(p[-depth:]) if names.count(name) > 1 else name
            for (p, _), name in zip(parts, names, strict=True)
        ]
    return names


def _seed_folders(path: Path) -> list[Path]:
    """Work dirs in a folder that is none itself, if their names say that they are seeds."""
    if any(path.glob(f"*/vis_data/{SCALARS}")) or any(path.glob(f"vis_data/{SCALARS}")):
        return []
    folders = sorted({p.parents[2] for p in path.glob(f"*/*/vis_data/{SCALARS}")})
    names = [re.fullmatch(r"(.*seed\D?)\d+", x.name, re.IGNORECASE) for x in folders]
    # all else in their names is the same
    return folders if all(names) and len({m[1] for m in names}) == 1 else []


def _scalar_files(path: Path) -> list[Path]:
    if path.is_file():
        if path.name != SCALARS:
            raise WorkDirError(f"{path} is a file; expected a work dir or its {SCALARS}")
        return [path]
    if not path.is_dir():
        raise WorkDirError(f"work dir {path} does not exist")
    for pattern in (SCALARS, f"vis_data/{SCALARS}", f"*/vis_data/{SCALARS}"):
        # folders are named by the time they were made
        if found := sorted(path.glob(pattern)):
            return found
    inner = sorted({p.parents[2].name for p in path.glob(f"*/*/vis_data/{SCALARS}")})
    if inner:
        raise WorkDirError(
            f"{path} is no work dir, it has work dirs in it; name them: {_some(inner)} "
            "(those called seed0, seed1, ... would be one run)"
        )
    if not any(path.iterdir()):
        raise WorkDirError(f"{path} is empty: no training has logged there")
    if any(path.glob("**/ap_by_size_test*.json")):
        raise WorkDirError(
            f"{path} has no {SCALARS}: tests were run there, no training; it has "
            f"{_some(_contents(path))}"
        )
    raise WorkDirError(
        f"{path} has no <time>/vis_data/{SCALARS}, which mmengine's LocalVisBackend writes in a "
        f"training; it has {_some(_contents(path))}"
    )


def _contents(path: Path) -> list[str]:
    return sorted(f"{x.name}/" if x.is_dir() else x.name for x in path.iterdir())


def _some(names: Sequence[str], number: int = 5) -> str:
    more = len(names) - number
    return ", ".join(names[:number]) + (f" and {more} more" if more > 0 else "")


def _start_name(scalars: Path) -> str:
    folder = scalars.parent
    return (folder.parent if folder.name == "vis_data" else folder).name


def _read_start(scalars: Path) -> tuple[list[dict], list[Evaluation], list[str]]:
    """Iterations and evaluations of one start of a training, and notes."""
    events, notes = _read_lines(scalars)
    folder = scalars.parent
    if folder.name == "vis_data":
        folder = folder.parent
    files = _read_figures(folder, notes)
    by_iteration: dict[int, dict] = {}
    evaluations, near = [], False
    numbers = [x["iter"] for x in events if "iter" in x]
    for event in events:
        if "iter" in event:
            by_iteration[event["iter"]] = event
            numbers.pop(0)
            continue
        stepless = not event.get("step")
        evaluation = _place_evaluation(event, next(reversed(by_iteration.values()), None))
        following = numbers[0] if numbers else math.inf
        # the file of the same evaluation, which has every figure, and says when it was
        is_figure = any(_FRACTION.search(key) for key in event)
        while is_figure and files and files[0].iteration < following:
            file = files.pop(0)
            if file.iteration < evaluation.after:
                evaluations.append(file)
                continue
            if evaluation.epoch == file.iteration:  # its step was taken for an epoch
                evaluation.epoch = None
            evaluation.iteration, evaluation.epoch = file.iteration, file.epoch or evaluation.epoch
            evaluation.values.update(file.values)
            if not evaluation.bins:
                evaluation.bins, evaluation.size_by = file.bins, file.size_by
            # several metrics write several files for one evaluation
            if not (files and files[0].iteration == file.iteration):
                stepless = False
                break
        evaluations.append(evaluation)
        near |= stepless and is_figure and evaluation.iteration is not None
    if near:
        notes.append(
            "evaluations without a step stand at the last iteration logged before them; "
            "default_hooks = dict(logger=dict(log_metric_by_epoch=False)) gives them one"
        )
    evaluations += files
    return sorted(by_iteration.values(), key=lambda x: x["iter"]), evaluations, notes


def _place_evaluation(event: dict, last: Mapping | None) -> Evaluation:
    """When an evaluation was, from its step and the training iteration logged before it."""
    step = int(event.pop("step", 0))
    after = last["iter"] if last else 0
    evaluation = Evaluation(event, after)
    epoch = last.get("epoch") if last else None
    if step and (last is None or step == epoch):
        evaluation.epoch = step
    elif step and step >= after:
        evaluation.iteration = step
    elif step and epoch is None:
        evaluation.epoch, evaluation.iteration = step, after
    elif last is not None:
        # by iterations, mmengine's LoggerHook says step 0 unless log_metric_by_epoch is False
        evaluation.iteration = after
    return evaluation


def _read_lines(scalars: Path) -> tuple[list[dict], list[str]]:
    try:
        rows = scalars.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise WorkDirError(f"{scalars} cannot be read: {error.strerror}") from None
    events, broken = [], []
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        try:
            event = json.loads(row)
        except ValueError:
            broken.append(number)
            continue
        if not isinstance(event, dict):
            broken.append(number)
            continue
        if not any(key.startswith(GATES) for key in event):
            events.append(_numbers(event))
    if broken and broken[-1] == len(rows):  # being written
        broken.pop()
    notes = []
    if broken:
        notes.append(
            f"{scalars}: {len(broken)} of {len(rows)} lines are no log lines and left out, the "
            f"first is line {broken[0]}"
        )
    return events, notes


def _numbers(event: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line, without the stage that log_with_hierarchy puts before names."""
    numbers = {}
    for key, value in event.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        key = re.sub(r"^train/|^val/(?=.*/)", "", key)
        # mmdet's CocoMetric says -1 where there is nothing to find
        numbers[key] = math.nan if value == -1 and _FRACTION.search(key) else value
    if "iter" in numbers:
        numbers["iter"] = int(numbers["iter"])
    return numbers


def _read_figures(folder: Path, notes: list[str]) -> list[Evaluation]:
    """What the files of CocoSizeMetric say, in order."""
    found = []
    for path in sorted(folder.glob("ap_by_size_val*.json"), key=lambda p: (len(p.name), p.name)):
        try:
            content = json.loads(path.read_bytes())
            if content["iter"] is None or content["stage"] != "val":
                continue
            iteration = int(content["iter"])
            file = Evaluation({}, iteration, iteration, content["epoch"])
            for iou_type, result in content["results"].items():
                prefix = f"{content['prefix']}/" if content.get("prefix") else ""
                bins = result["conditions"]["size_bins"]
                start = f"{prefix}{iou_type}_"
                of_classes = start if len(content["results"]) > 1 else prefix
                file.values.update(_figure_values(start, result, bins, of_classes))
                if not file.bins:
                    file.size_by = result["conditions"].get("size_by", "area")
                    file.bins = {
                        COCO_SUFFIXES.get(name, name): (
                            *limits,
                            result["by_size"][name]["num_objects"],
                        )
                        for name, limits in bins.items()
                    }
            found.append(file)
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            notes.append(f"{path} is not a file of CocoSizeMetric and left out")
    return sorted(found, key=lambda x: x.iteration)


def _figure_values(start: str, result: Mapping, bins: Mapping, of_classes: str) -> dict[str, float]:
    """The figures of a file under the names that loggers have."""
    dets = result["conditions"]["max_dets"]
    coco = dict(zip(COCO_LIMITS, "sml", strict=True))
    is_coco = {k: tuple(v) for k, v in bins.items()} == COCO_LIMITS
    suffixes = {name: f"_{coco[name] if is_coco else name}" for name in bins}
    values = {}
    for suffix, figures in [
        ("", result),
        *((suffix, result["by_size"][name]) for name, suffix in suffixes.items()),
    ]:
        for figure, name in FIGURES.items():
            at = f"@{dets}" if figure == "AR" else ""
            values[f"{start}{name}{suffix}{at}"] = figures[figure]
    for row in result.get("classes", ()):
        values[f"{of_classes}{row['name']}_precision"] = row["AP"]
        for name, suffix in suffixes.items():
            values[f"{of_classes}{row['name']}_precision{suffix}"] = row["by_size"][name]["AP"]
    return {key: value for key, value in values.items() if value is not None}


def _merged(earlier: list[Evaluation], later: list[Evaluation]) -> list[Evaluation]:
    """Evaluations in order; of two values at one place, the later."""
    places: dict[Any, Evaluation] = {}
    for e in (*earlier, *later):
        place = ("epoch", e.epoch) if e.iteration is None else ("iter", e.iteration)
        if place in places:
            places[place].values.update(e.values)
            if e.bins:
                places[place].bins, places[place].size_by = e.bins, e.size_by
        elif place != ("epoch", None):
            places[place] = e
    return list(places.values())


def _take_bins(run: Run) -> None:
    """The bins of what is shown, and a note where they changed on the way."""
    known = [e for e in run.evaluations if e.bins]
    if not known:
        return
    last = known[-1]
    run.bins, run.size_by = last.bins, last.size_by
    if any(_spans(e) != _spans(last) for e in known):
        run.notes.append(
            "its size bins were changed when it was resumed; the limits are those of its last "
            "evaluation"
        )


def _spans(of: Evaluation | Run) -> dict[str, tuple]:
    """Limits of the bins, and what they are compared with."""
    return {name: (*limits[:2], of.size_by) for name, limits in of.bins.items()}


def _note_losses(run: Run) -> None:
    bad = [x["iter"] for x in run.training if not math.isfinite(x.get("loss", 0))]
    if bad:
        run.notes.append(
            f"the loss is not a finite number in {len(bad)} of {len(run.training)} logged "
            f"values, the first at iteration {bad[0]}"
        )


def _note_rounding(run: Run) -> None:
    found = [(_KEY.fullmatch(k), v) for e in run.evaluations for k, v in e.values.items()]
    values = [v for match, v in found if match]
    rounded = all(math.isnan(v) or v == round(v, 3) for v in values)
    if any(values) and rounded and not run.bins:
        if any(match["bin"] in COCO_SUFFIXES for match, _ in found if match):
            run.bins = {name: (*limits, None) for name, limits in COCO_LIMITS.items()}
            run.size_by = "area"
        run.notes.append(
            "AP rounded to 0.1 %, as mmdet's CocoMetric logs it; it counts 1000 detections an "
            "image for AP by size, mmattn.CocoSizeMetric 100"
        )


# --- what to show --------------------------------------------------------------------------


def choose_axis(runs: Iterable[Run], axis: str | None = None) -> str:
    """'epoch' or 'iteration': the one asked for, else epochs where every run has them.

    Raises:
        WorkDirError: Epochs are asked for, and a run has none.
    """
    if axis == "epoch":
        for run in _singles(runs):
            counts = bool(run.training) or any(e.epoch is None for e in run.evaluations)
            if counts and run.iterations_per_epoch is None:
                raise WorkDirError(
                    f"{run.name} was trained by iterations and does not say how many are an "
                    "epoch; take iterations"
                )
    return axis or ("epoch" if all(run.by_epoch for run in runs) else "iteration")


def _singles(runs: Iterable[Run]) -> list[Run]:
    """Trainings, where a run may be several with different seeds."""
    return [one for run in runs for one in run.seeds or [run]]


def choose_panels(runs: Sequence[Run], metrics: Sequence[str] | None = None) -> list[Panel]:
    """Panels for what is asked for.

    Args:
        runs: The runs.
        metrics: ``AP``, ``AP50``, ``AP75`` or ``AR`` (of boxes where there are both, or
            ``segm_AP``) for the figure overall and by size, ``AP_small`` for one size;
            anything else is a name in ``scalars.json`` (``loss_cls``, ``lr``,
            ``coco/bbox_mAP_s``, ``cat_precision``). ``loss`` and ``AP`` if None.

    Raises:
        WorkDirError: No run has it.
    """
    panels = []
    for metric in metrics or DEFAULT_METRICS:
        found = _figure_panels(runs, metric) or _key_panel(runs, metric)
        if metrics and not found:
            figures = {x: _figure_panels(runs, x) for x in FIGURES}
            known = [x for x in FIGURES if figures[x]] + _known(runs)
            known += [f"{x}_{p.size}" for x in FIGURES for p in figures[x] if p.size]
            near = [x for x in known if metric.lower() in x.lower()]
            near = near or [x for x in known if x.startswith(metric.split("_")[0] + "_")]
            near = near or difflib.get_close_matches(metric, known, 3, 0.5)
            raise WorkDirError(
                f"--metric {metric}: no run has it; "
                f"{'nearest: ' if near else 'they have '}{_some(near or known, 12)}"
            )
        keys = [panel.keys for panel in panels]
        panels += [panel for panel in found if panel.keys not in keys]
    if not panels:
        raise WorkDirError(
            f"no run has a loss or an AP; --metric takes what they have: {_some(_known(runs), 12)}"
        )
    return panels


def _known(runs: Sequence[Run]) -> list[str]:
    """Every name that a run has, without bookkeeping, evaluations first."""
    names = dict.fromkeys(k for run in runs for line in lines(run, False) for k in line)
    names.update(dict.fromkeys(k for run in runs for line in lines(run, True) for k in line))
    return [k for k in names if k not in ("iter", "epoch", "step")]


def _figure_panels(runs: Sequence[Run], metric: str) -> list[Panel]:
    match = re.fullmatch(rf"(?:(bbox|segm)_)?({'|'.join(FIGURES)})(?:_(.+))?", metric)
    if not match:
        return []
    figure, size = match[2], match[3] and COCO_SUFFIXES.get(match[3], match[3])
    parsed = {}
    for run in runs:
        for line in lines(run, False):
            for key in line:
                if key not in parsed and (m := _KEY.fullmatch(key)):
                    parsed[key] = m
    matches = [m for m in parsed.values() if (m["map"] or "AR") == FIGURES[figure]]
    iou_type = match[1] or ("bbox" if any(m["iou_type"] == "bbox" for m in matches) else "segm")
    keys: dict[str, list[str]] = {}
    for m in matches:
        if m["iou_type"] == iou_type:
            suffix = m["bin"] or m["ar_bin"] or ""
            keys.setdefault(COCO_SUFFIXES.get(suffix, suffix), []).append(m.string)
    shown = figure if iou_type != "segm" else f"segm {figure}"
    panels = []
    for name, names in sorted(keys.items(), key=lambda item: item[0] != ""):
        if size and name != size:
            continue
        # beside AP of all sizes, the size says enough
        short = name and shown == "AP" and not size
        title = " ".join(filter(None, (shown, name, _limits(runs, name, names))))
        label = name if short else f"{shown} {name}".strip()
        panels.append(Panel(label, title, tuple(names), percent=True, size=name))
    return panels


def _limits(runs: Sequence[Run], name: str, keys: Sequence[str]) -> str:
    """The limits of a bin, to put behind its name, where they are the same in all runs shown."""
    shown = [run for run in _singles(runs) if any(k in x for x in lines(run, False) for k in keys)]
    found = {_spans(run).get(name) for run in shown}
    if len(found) != 1 or None in found:
        return ""
    ((low, high, size_by),) = found
    if size_by == "sqrt-relative":
        unit, low, high = "of the image's side", f"{low:g}", f"{high:g}" * (high < MAX_SIZE)
    else:
        unit = "px²"
        low, high = (
            "" if x >= MAX_SIZE else f"{x**0.5:g}²" if x and x**0.5 % 1 == 0 else f"{x:g}"
            for x in (low, high)
        )
    return f"({low} to {high} {unit})" if high else f"({low} {unit} or more)"


def _key_panel(runs: Sequence[Run], metric: str) -> list[Panel]:
    if re.search(r"^[^/]+_precision(_|$)", metric) and (found := _class_panel(runs, metric)):
        return [found]
    for training in (True, False):
        keys = dict.fromkeys(
            key
            for run in runs
            for line in lines(run, training)
            for key in line
            if key == metric or key.endswith(f"/{metric}")
        )
        if keys:
            percent = bool(_FRACTION.search(metric))
            names = tuple(sorted(keys, key=lambda key: key != metric))
            return [Panel(metric, metric, names, percent=percent, training=training)]
    return []


def _class_panel(runs: Sequence[Run], metric: str) -> Panel | None:
    """AP of a class: of boxes where there are both, unless the name says masks.

    The names of classes say the metric only where several are evaluated.
    """
    asked, name = re.fullmatch(r"(?:(bbox|segm)_)?(.+)", metric).groups()
    keys: dict[str, str | None] = {}
    types = set()
    for run in _singles(runs):
        for line in lines(run, False):
            for key in line:
                if key not in keys and (
                    m := re.fullmatch(rf"(?:.+/)?(?:(bbox|segm)_)?{re.escape(name)}", key)
                ):
                    keys[key] = m[1]
        if any(key in line for line in lines(run, False) for key in keys):
            types |= run.iou_types
    said = set(keys.values()) - {None}
    if not said and len(types) < 2 and (not asked or types == {asked}):
        iou_type = None  # nothing to tell apart
    else:
        iou_type = asked or ("bbox" if "bbox" in types | said else "segm")
    names = [key for key, of in keys.items() if of in (None, iou_type)]
    names.sort(key=lambda key: keys[key] is None)
    label = f"{iou_type}_{name}" if iou_type else metric
    panel = Panel(label, label, tuple(names), percent=True, iou_type=iou_type)
    return panel if any(len(panel.of(run, "iteration")[0]) for run in runs) else None


def comparison_notes(runs: Sequence[Run], axis: str = "iteration") -> list[str]:
    """What a reader should know before comparing runs."""
    notes = []
    for run in runs:
        found = {run.name: run.notes, **{seed.name: seed.notes for seed in run.seeds}}
        # what holds for every seed is said once
        shared = [x for x in (run.seeds or [run])[0].notes if all(x in y.notes for y in run.seeds)]
        notes += [f"{run.name}: {note}" for note in shared]
        notes += [f"{name}: {x}" for name, own in found.items() for x in own if x not in shared]
    for run in _singles(runs):
        unplaced = any(e.iteration is None for e in run.evaluations)
        if axis == "iteration" and unplaced and run.iterations_per_epoch is None:
            notes.append(
                f"{run.name}: its evaluations are left out; they were after epochs, and how "
                "many iterations an epoch has is not logged"
            )
    return notes + not_comparable(runs)


def not_comparable(runs: Sequence[Run]) -> list[str]:
    """Which runs were evaluated otherwise than one before them, and how."""
    known = [(run, one) for run in runs for one in run.seeds or [run] if one.bins]
    notes = {}
    for i, (run, one) in enumerate(known):
        found = ((other, first, _difference(first, one)) for other, first in known[:i])
        other, first, difference = next((x for x in found if x[2]), (None, None, ""))
        if difference:
            # not for every seed
            names = (first, one) if other is run else (other, run)
            notes[f"{names[0].name} and {names[1].name} are not comparable: {difference}"] = None
    return list(notes)


def _difference(first: Run, second: Run) -> str:
    for name in (name for name in second.bins if name in first.bins):
        a, b = first.bins[name], second.bins[name]
        if (a[:2], first.size_by) != (b[:2], second.size_by):
            return (
                f"'{name}' is {a[0]:g} to {a[1]:g} ({first.size_by}) in the first, "
                f"{b[0]:g} to {b[1]:g} ({second.size_by}) in the second"
            )
        if None not in (a[2], b[2]) and a[2] != b[2]:
            return f"the first was evaluated on {a[2]} {name} objects, the second on {b[2]}"
    return ""


def table(runs: Sequence[Run], panels: Sequence[Panel], axis: str) -> str:
    """Last and best values of every run; the best with the place where it was."""
    result = Table(box=box.MARKDOWN, show_edge=True)
    result.add_column("run", no_wrap=True)
    for header in ("", axis, *(p.name + " (%)" * p.percent for p in panels)):
        result.add_column(Text(header), justify="right" if header else "left", no_wrap=True)
    any_best = any(p.percent for p in panels)
    for run in runs:
        series = [p.of(run, axis) for p in panels]
        end = max((x[-1] for x, _ in series if len(x)), default=math.nan)
        last = [_last(p, *s, end) for p, s in zip(panels, series, strict=True)]
        result.add_row(Text(run.label), "last", _number(end), *last)
        if any_best:
            best = [_best(p, *s) for p, s in zip(panels, series, strict=True)]
            result.add_row("", "best", "", *best)
    return render(result).strip()


def _last(panel: Panel, x: np.ndarray, y: np.ndarray, end: float) -> str:
    if not len(y):
        return NOT_AVAILABLE
    # the last evaluation may be older than the last iteration
    old = "" if panel.training or x[-1] == end else f" ({_number(x[-1])})"
    return _value(panel, y[-1]) + old


def _best(panel: Panel, x: np.ndarray, y: np.ndarray) -> str:
    if not panel.percent:
        return ""
    if not np.isfinite(y).any():
        return NOT_AVAILABLE
    i = int(np.nanargmax(y))
    return f"{_value(panel, y[i])} ({_number(x[i])})"


def _value(panel: Panel, value: float) -> str:
    if panel.percent:
        return NOT_AVAILABLE if math.isnan(value) else f"{value:.1f}"
    return f"{value:.4g}"


def _number(value: float) -> str:
    return NOT_AVAILABLE if math.isnan(value) else f"{round(value, 2):.10g}"


# --- pictures ------------------------------------------------------------------------------


def smoothed(x: np.ndarray, y: np.ndarray, width: float) -> np.ndarray:
    """Mean of the finite values within ``width / 2`` to both sides; nan where y is not finite."""
    y = np.where(np.isfinite(y), y, np.nan)
    begin = np.searchsorted(x, x - width / 2, "left")
    end = np.searchsorted(x, x + width / 2, "right")
    # a running sum would lose small values behind a large one
    means = [
        np.nan if np.isnan(value) else np.nanmean(y[b:e])
        for value, b, e in zip(y, begin, end, strict=True)
    ]
    return np.array(means)


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """The style of matplotlib itself, whatever the user's is."""
    import matplotlib

    default = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        matplotlib.rcParams.update({**default, "svg.hashsalt": "mmattn"})
        yield


def draw(runs: Sequence[Run], panels: Sequence[Panel], axis: str):
    """Draws every panel, all runs in each.

    Args:
        runs: A colour, marker and line style each.
        panels: A plot each.
        axis: 'epoch' or 'iteration'.

    Returns:
        A matplotlib Figure that belongs to no window.
    """
    with _style():
        return _draw(runs, panels, axis)


def _draw(runs: Sequence[Run], panels: Sequence[Panel], axis: str):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    looks = [_look(i) for i in range(len(runs))]
    names = [_shortened(run.label) for run in runs]
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = max(4.2 * columns, 6)
    # the legend takes a free place, or lines above
    free = rows * columns > len(panels) and len(runs) <= 14
    per_line = max(1, min(len(runs), int(12 * width / (max(map(len, names)) + 8))))
    lines_above = 0 if free else math.ceil(len(runs) / per_line)
    warned = [] if all(p.training for p in panels) else not_comparable(runs)
    if len(warned) > 4:
        warned[3:] = [f"{len(warned) - 3} more runs are not comparable, see the notes"]
    warned = [line for note in warned for line in textwrap.wrap(note, int(15 * width))]
    size = (width, 3.3 * rows + 0.3 + 0.25 * lines_above + 0.14 * len(warned))
    figure = Figure(size, dpi=150, layout="constrained")
    figure.get_layout_engine().set(hspace=0.08)  # a title stands off the axis above it
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    explained = {}
    for ax, panel in zip(axes, panels, strict=False):
        series = [panel.of(run, axis) for run in runs]
        seeds = [[panel.of(seed, axis) for seed in run.seeds] for run in runs]
        if any(seeds):
            explained["of several seeds: thick the mean, faint each"] = True
        if not panel.training:
            _draw_seeds(ax, seeds, looks)
            _draw_evaluations(ax, series, looks)
        elif panel.name.endswith("lr"):  # chosen, not measured: nothing to smooth
            _draw_schedule(ax, series, looks)
        else:
            explained.update(_draw_losses(ax, series, seeds, looks, axis))
        if panel.percent:
            explained["ring: best evaluation"] = True
            _draw_best(ax, series, looks)
        ax.set_title(panel.title, parse_math=False, fontsize=10)
        ax.set_xlabel(axis)
        ax.set_ylabel("%" if panel.percent else panel.name, parse_math=False)
        ax.tick_params(labelbottom=True)
        ax.grid(alpha=0.3, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
        if not any(np.isfinite(y).any() for _, y in series):
            ax.text(0.5, 0.5, "nothing to find", transform=ax.transAxes, ha="center")
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    _legend(axes[len(panels)] if free else figure, free, looks, names, per_line)
    small_print = "\n".join(["; ".join(explained), *warned])
    figure.supxlabel(small_print, fontsize=8, color="#444444", parse_math=False)
    return figure


def _look(i: int) -> dict[str, Any]:
    """Colour, line and marker of the i-th run."""
    round_ = i // len(COLOURS)
    return dict(
        color=COLOURS[i % len(COLOURS)],
        linestyle=LINE_STYLES[round_ % len(LINE_STYLES)],
        marker=MARKERS[(i + round_) % len(MARKERS)],
        linewidth=1.6,
        markersize=4,
    )


def _shortened(name: str, limit: int = 46) -> str:
    """The two ends of a name, which are what tells names apart."""
    half = limit // 2 - 1
    return name if len(name) <= limit else f"{name[:half]}...{name[-half:]}"


def _draw_seeds(ax, seeds, looks) -> None:
    for one, look in zip(seeds, looks, strict=True):
        for x, y in one:
            marker = look["marker"] if len(x) == 1 else ""  # a lone value has no line
            faint = {**look, "linewidth": 0.8, "linestyle": "-", "marker": marker}
            ax.plot(x, y, **faint, alpha=0.35)


def _draw_losses(ax, series, seeds, looks, axis: str) -> dict[str, bool]:
    """Draws values as logged, and smoothed; returns what has to be explained."""
    width = _mean_width([x for x, _ in series])
    low, top = _scale([y for _, y in series])
    explained = {f"thick: mean over {width:g} {axis}s": True, "faint: as logged": True}
    _draw_seeds(ax, [own or [one] for own, one in zip(seeds, series, strict=True)], looks)
    for (x, y), look in zip(series, looks, strict=True):
        line = {**look, "marker": ""}
        # a lone value has no line
        ax.plot(x, smoothed(x, y, width), **(look if np.isfinite(y).sum() == 1 else line))
        marks = [
            ("x", 0.02, ~np.isfinite(y), "×: not a finite number"),  # noqa: RUF001
            ("^", 0.98, np.isfinite(y) & (y > top), "▲: above the scale"),
        ]
        for mark, height, there, meaning in marks:
            if there.any():
                explained[meaning] = True
                at, heights = x[there], np.full(there.sum(), height)
                placed = dict(transform=ax.get_xaxis_transform(), markersize=4)
                ax.plot(at, heights, mark, color=look["color"], **placed)
    if math.isfinite(top):
        ax.set_ylim(low - 0.05 * (top - low), top)
    return explained


def _draw_schedule(ax, series, looks) -> None:
    for (x, y), look in zip(series, looks, strict=True):
        ax.plot(x, y, **{**look, "marker": look["marker"] if len(x) == 1 else ""})


def _draw_evaluations(ax, series, looks) -> None:
    for (x, y), look in zip(series, looks, strict=True):
        ax.plot(x, y, **look, markevery=max(1, len(x) // 15))


def _draw_best(ax, series, looks) -> None:
    for (x, y), look in zip(series, looks, strict=True):
        if np.isfinite(y).any():
            i = int(np.nanargmax(y))
            ax.plot(x[i], y[i], "o", markersize=10, markerfacecolor="none", color=look["color"])


def _legend(place, free: bool, looks, names: Sequence[str], per_line: int) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look) for look in looks]
    where = dict(loc="center left") if free else dict(loc="outside upper left", ncols=per_line)
    labels = [str(i) for i in range(len(names))]  # matplotlib leaves out names such as _a
    legend = place.legend(handles, labels, frameon=False, fontsize=9, handlelength=3, **where)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)


def _mean_width(places: Sequence[np.ndarray]) -> float:
    """Over how much of the axis losses are averaged: a twentieth, at least five values."""
    places = [x for x in places if len(x) > 1]
    if not places:
        return 0.0
    steps = [float(np.median(np.diff(x))) for x in places]
    width = max(max(x[-1] - x[0] for x in places) / 20, 5 * max(steps))
    return float(f"{width:.3g}")  # as it is said below the picture


def _scale(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """The lowest value, and where the scale ends if few high values would hide the others."""
    finite = [y[np.isfinite(y)] for y in values if np.isfinite(y).sum() > 1]
    if not finite:
        return 0.0, math.inf
    low = min(float(y.min()) for y in finite)
    high = max(float(np.quantile(y, 0.95)) for y in finite)
    hidden = max(float(y.max()) for y in finite) > high + 4 * (high - low)
    return low, high + (high - low) if hidden and high > low else math.inf


def save(figure, path: str | os.PathLike, text: str = "") -> None:
    """Writes a picture, or a page with the picture and a text, whole or not at all.

    Args:
        figure: From :func:`draw`.
        path: Ends in .png, .svg, .pdf or .html.
        text: Stands below the picture in a page.

    Raises:
        WorkDirError: It cannot be written.
    """
    path = Path(path)
    check_output(path)
    kind = path.suffix.lower()[1:]
    stream = io.BytesIO()
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}}.get(kind, {"Date": None})
    with _style():
        figure.savefig(stream, format="svg" if kind == "html" else kind, metadata=metadata)
    content = stream.getvalue()
    if kind == "html":
        picture = base64.b64encode(content).decode()
        content = (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            "<title>Training curves</title></head>\n"
            f'<body><img style="max-width:100%" alt="Training curves" '
            f'src="data:image/svg+xml;base64,{picture}">\n'
            f"<pre>{html.escape(text)}</pre></body></html>\n"
        ).encode()
    try:
        write_bytes(path, content)
    except OSError as error:
        raise WorkDirError(f"{path} cannot be written: {error.strerror}") from None


def check_output(path: str | os.PathLike) -> None:
    """Says before the work what would keep a picture from being written.

    Raises:
        WorkDirError: The format is not known, or the folder cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise WorkDirError(f"--out ends in {', '.join(SUFFIXES)}, got {path}")
    if path.is_dir():
        raise WorkDirError(f"--out {path} is a folder; name a file in it")
    if path.exists() and not path.stat().st_mode & 0o222:
        raise WorkDirError(f"--out {path} is there already, and read-only")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise WorkDirError(f"--out {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise WorkDirError(f"--out {path} cannot be written: no permission in {folder}")
