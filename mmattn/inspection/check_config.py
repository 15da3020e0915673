"""What is inserted in the model of a config, and what goes silently wrong with it?"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from mmengine.logging import MMLogger
from rich import box
from rich.table import Table
from rich.text import Text

from mmattn.evaluation.table import render
from mmattn.inspection import build, checkpoint_file, evaluators, hazards, modules, weights
from mmattn.inspection._console import PreflightError
from mmattn.inspection.hazards import Finding, Subject, places, start_of
from mmattn.inspection.modules import Inserted
from mmattn.inspection.weights import Source

HINT_METRIC = (
    "AP by size of CocoMetric is rounded to three decimals, and -1 where there are no objects; "
    "exact: val_evaluator = dict(type='mmattn.CocoSizeMetric')"
)


@dataclass
class Report:
    """What was found.

    Args:
        facts: What is known of the model and the run, a line each.
        found: What is inserted.
        findings: The hazards.
        hints: What is no hazard, and worth knowing.
        skipped: Hazards that could not be looked for, with the reason.
    """

    facts: list[str]
    found: list[Inserted]
    findings: list[Finding]
    hints: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def text(self, every: bool = False) -> str:
        """The whole report; ``every`` lists each module on a line of its own."""
        blocks = ["\n".join(self.facts)]
        if self.found:
            blocks.append(render(_table(self.found, every)).strip("\n"))
        else:
            blocks.append("No module is inserted.")
        blocks += [f"warning: {name}: {said}\n    {line}" for name, said, line in self.findings]
        blocks += [f"hint: {hint}" for hint in self.hints]
        if self.skipped:
            blocks.append("not checked: " + "; ".join(self.skipped))
        if not self.findings and not self.skipped:
            blocks.append(f"No hazard found, of {len(hazards.HAZARDS)} that are known.")
        return "\n\n".join(blocks)

    def short(self) -> list[str]:
        """What is inserted, a line for each kind of module."""
        kinds: dict[str, list[Inserted]] = {}
        for one in self.found:
            kinds.setdefault(one.type, []).append(one)
        lines = []
        for kind, several in kinds.items():
            added = f"{sum(one.added for one in several):,} parameters more"
            learning = _learning(several)
            state = [added, *([] if learning == "yes" else [learning]), start_of(several)]
            lines.append(f"{len(several)} {kind} in {places(several)}: {', '.join(state)}")
        return lines


def check(cfg, checkpoint: str | None = None, gpus: int | None = None) -> Report:
    """Builds the model of a config on the CPU and looks at it.

    Nothing is downloaded, and no data are needed.

    Args:
        cfg: The whole config, as ``config_file.load`` returns it.
        checkpoint: Weights that a training starts from, in place of ``load_from``.
        gpus: On how many a training runs; None: not known.

    Raises:
        PreflightError: The model cannot be built or run, or a local checkpoint is none, or does
            not fit.
    """
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(0)
        evaluators.check_evaluators(cfg)
        if isinstance(cfg.get("model"), dict):
            checkpoint_file.take_backbones(cfg["model"])
        model = build.build_model(cfg)
        load_from = checkpoint or cfg.get("load_from")
        given = weights.sources(model, load_from, bool(cfg.get("resume") and load_from))
    report = look_at(cfg, model, given, gpus)
    with torch.random.fork_rng(devices=[]), _quiet():
        _try_out(model, report.found)
    return report


def look_at(cfg, model, given: list[Source], gpus: int | None = None) -> Report:
    """Looks at a built model, which stays as it is.

    Args:
        cfg: The whole config.
        model: Its model, not wrapped and not yet initialised.
        given: The checkpoints that it starts from, as :func:`weights.sources` returns them.
        gpus: On how many a training runs; None: not known.
    """
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(0)
        found = modules.find(model, cfg["model"])
        weights.assign(found, given)
        modules.measure(found, model)
        with modules.as_trained(model):
            for one in found:
                one.trained = sum(p.numel() for p in one.new.parameters() if p.requires_grad)
            subject = Subject(cfg, model, found, given, gpus)
            findings, skipped = hazards.look_for(subject)
            return Report(_facts(subject), found, findings, _hints(cfg), skipped)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the log lines of initialisation and loading, which are not the run's own."""
    # logging.disable does not reach a logger of mmengine that has logged before
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _try_out(model, found: list[Inserted]) -> None:
    """Raises PreflightError if an inserted module fails in the first pass of an image."""
    running: list[Inserted] = []
    handles = []
    for one in found:
        enter = one.module.register_forward_pre_hook(lambda *_, one=one: running.append(one))
        leave = one.module.register_forward_hook(lambda *_: running.pop() and None)
        handles += [enter, leave]
    try:
        with torch.no_grad():
            model.eval()
            model.extract_feat(torch.zeros(1, 3, 64, 64))
    except Exception as error:  # a model may need what is not at hand here: that tells nothing
        if running:
            one, reason = running[-1], " ".join(str(error).split())
            where = f"; position in the config: {_position(one)}" if one.slot else ""
            raise PreflightError(f"{one.name} does not run: {reason}{where}") from error
    finally:
        for handle in handles:
            handle.remove()


def _position(one: Inserted) -> str:
    return f"model.{'.'.join(map(str, one.slot.path))}.{one.slot.key}"


def _facts(s: Subject) -> list[str]:
    parameters = list(s.model.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    name = type(s.model).__name__
    backbone = getattr(s.model, "backbone", None)
    kind = f"{name} on {type(backbone).__name__}" if backbone is not None else name
    facts = [f"model: {kind}, {total:,} parameters, {trained:,} of them trained"]
    for source in s.sources:
        part = source.part or "whole model"
        facts.append(f"weights: {part} from {source.path}: {_content(source)}")
    if not s.sources:
        facts.append("weights: none, from random values")
    return facts + _batch(s)


def _content(source: Source) -> str:
    if source.fit is None:
        return "plain" if source.plain else "not read"
    fit = source.fit
    parts = [f"{fit.total - len(fit.missing) - len(fit.reshaped)} of {fit.total} weights"]
    for names, what in (
        (fit.missing, "missing"),
        (fit.reshaped, "of another shape"),
        (fit.left_over, "left over"),
    ):
        if names:
            more = ", ..." if len(names) > 1 else ""
            parts.append(f"{len(names)} {what} ({names[0]}{more})")
    return ", ".join(parts)


def _batch(s: Subject) -> list[str]:
    batch = hazards.batch_size(s.cfg)
    if not batch:
        return []
    auto = s.cfg.get("auto_scale_lr") or {}
    base = auto.get("base_batch_size")
    here = f", here {s.gpus} x {batch}" if s.gpus else ""
    if auto.get("enable"):
        return [f"batch: {batch} images a GPU{here}; the learning rate is scaled to it"]
    if not base:
        return [f"batch: {batch} images a GPU{here}; for how many GPUs the config does not say"]
    made = f"{base // batch} GPUs x {batch} images" if base % batch == 0 else f"{base} images"
    return [f"batch: made for {made}{here or '; --gpus N says whether yours fits'}"]


def _hints(cfg) -> list[str]:
    evaluators = cfg.get("val_evaluator") or []
    evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    kinds = [str(e.get("type")).rpartition(".")[2] for e in evaluators if isinstance(e, dict)]
    return [HINT_METRIC] if "CocoMetric" in kinds else []


def _table(found: list[Inserted], every: bool) -> Table:
    table = Table(box=box.MARKDOWN, show_edge=True)
    for header in ("module", "in"):
        table.add_column(header, no_wrap=True)
    for header in ("modules", "channels", "added parameters"):
        table.add_column(header, justify="right", no_wrap=True)
    for header in ("trained", "at the start"):
        table.add_column(header, no_wrap=True)
    groups: dict[tuple, list[Inserted]] = {}
    for one in found:
        place = one.name if every else one.stage
        key = (one.type, place, _learning([one]), start_of([one]) if every else one.start.same)
        groups.setdefault((*key, one.from_checkpoint), []).append(one)
    for (kind, place, learning, *_), several in groups.items():
        size = sum(one.added for one in several)
        cells = (kind, place, len(several), _channels(several), f"{size:,}", learning)
        table.add_row(*(Text(str(cell)) for cell in (*cells, start_of(several))))
    if len(groups) > 1:
        size = sum(one.added for one in found)
        table.add_row("all", "", str(len(found)), "", f"{size:,}")
    return table


def _channels(several: list[Inserted]) -> str:
    values = sorted({channels for one in several for channels in one.channels})
    ways = {one.channels for one in several}
    if len(ways) == 1:
        return " -> ".join(map(str, next(iter(ways))))
    return f"{values[0]} ... {values[-1]}"


def _learning(several: list[Inserted]) -> str:
    """'yes', 'frozen', or how many are, where the modules differ."""
    if not any(one.parameters for one in several):
        return "no parameters"
    frozen = [one for one in several if one.frozen]
    if frozen:
        return (
            "frozen" if len(frozen) == len(several) else f"{len(frozen)} of {len(several)} frozen"
        )
    whole = all(one.trained == one.parameters for one in several)
    return "yes" if whole else "partly frozen"
