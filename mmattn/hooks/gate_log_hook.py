"""What the gates do while a model trains, as curves."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import statistics
import sys
from collections.abc import Iterator, Sequence

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook, LoggerHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmattn.plugins.base import check_choice, check_positive_int
from mmattn.plugins.maps import AttentionMap
from mmattn.registry import HOOKS
from mmattn.visualization.record import Call, attention_modules, chosen, listening

PREFIX = "gates"
STATS = ("mean", "std", "saturated", "neutral", "entropy", "used")
PER = ("layer", "stage", "both")
NEAR = 0.01  # of the range: how close counts as at a bound, or as neutral
# what FSDP, torch.compile and activation checkpoints of torch put into names
WRAPPERS = re.compile(r"\b(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")


@HOOKS.register_module()
class GateLogHook(Hook):
    """Logs statistics of the gates, to TensorBoard, W&B or whatever else the visualizer writes.

    ::

        custom_hooks = [dict(type='mmattn.GateLogHook', interval=50)]

    In every ``interval``-th iteration each inserted module is asked what it decided about the
    whole batch that it was given, in its training mode. The scalars are called
    ``gates/<layer>/<map>/<statistic>``, as in ``gates/layer1.0.sge/mask/mean``; their step is the
    iteration, from 1. They are in no line of the terminal.

    - Gates and added terms: ``mean``, ``std``; ``saturated``, the share of values within 1 % of
      the range from one of its ends; ``neutral``, the share of those within 1 % of the range from
      what changes nothing (within 0.01 of 0 in what is added).
    - Weights of positions: ``entropy``, over that of equal weights: 1 is the mean over all
      positions, 0 a single one. Where they do not sum to 1, ``mean`` and ``std``.
    - Regions: ``entropy`` of their use in the batch, 1 if all are used equally, and ``used``, the
      number of those that are.
    - Shares of branches or experts: ``mean_0``, ``mean_1``, ... Distances of filters: ``mean``.

    A module that is called several times in an iteration, as in a head, has the mean over its
    calls; what an activation checkpoint computes again is not counted.

    The training is the same, bit for bit, as without the hook: neither random numbers nor running
    statistics nor gradients move. With ``compile`` in the config it is so up to rounding:
    compiled code hears no listener, so the iterations that are logged run uncompiled. In a
    training by several processes the first one computes the statistics, of its part of the batch;
    the others join in only where a module has a SyncBatchNorm. See ``docs/gate-log.md``.

    Args:
        interval: Iterations from one to the next that is logged. None: those in which mmengine's
            LoggerHook logs the loss.
        layers: Which modules: a name, the end of one (``'layer2.0.sge'``), a regular expression
            that matches whole names (``r'.*layer[34].*'``), or a list of these. None: all.
        stats: Which statistics, of those above: a name or a list of names; ``'mean'`` includes
            ``mean_0`` and others.
        per: ``'layer'``; ``'stage'`` for fewer curves: the mean over all modules of the same name
            in a stage, ``gates/layer1.sge/mask/mean``; or ``'both'``.

    Raises:
        ValueError: ``interval`` is not an integer above 0, ``stats`` has an unknown name, or
            ``per`` is none of the three. When training starts: the model has no module that
            says what it decides, or ``layers`` matches none.
        TypeError: ``stats`` or ``layers`` is of another type, or empty.
    """

    def __init__(
        self,
        interval: int | None = 50,
        layers: str | Sequence[str] | None = None,
        stats: str | Sequence[str] = STATS,
        per: str = "layer",
    ):
        if interval is not None:
            check_positive_int("GateLogHook", "interval", interval)
        wanted = [stats] if isinstance(stats, str) else stats
        if not isinstance(wanted, Sequence) or not wanted:
            raise TypeError(
                f"GateLogHook expects stats as one of {', '.join(map(repr, STATS))} or a list of "
                f"these, got {stats!r}"
            )
        for stat in wanted:
            check_choice("GateLogHook", "each of stats", stat, STATS)
        check_choice("GateLogHook", "per", per, PER)
        names = [layers] if isinstance(layers, str) else layers
        if names is not None and not (
            isinstance(names, Sequence) and names and all(isinstance(n, str) for n in names)
        ):
            raise TypeError(
                "GateLogHook expects layers as a name, a regular expression or a list of these, "
                f"got {layers!r}"
            )
        self.interval, self.layers, self.stats, self.per = interval, layers, tuple(wanted), per
        self._modules: dict[str, nn.Module] = {}
        self._labels: dict[str, str] = {}
        self._logger: LoggerHook | None = None
        self._ears: contextlib.ExitStack | None = None
        # module, map and statistic -> its value in each call
        self._values: dict[tuple[str, str, str], list[Tensor]] = {}
        self._has_told = False

    def find(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules that are listened to, by name.

        Args:
            model: The model, not wrapped.

        Raises:
            ValueError: There is none, or ``layers`` matches none.
        """
        try:
            return chosen(
                {WRAPPERS.sub("", name): one for name, one in attention_modules(model).items()},
                self.layers,
            )
        except ValueError as error:
            raise ValueError(f"GateLogHook: {error}") from error

    def before_train(self, runner: Runner) -> None:
        """Looks for the modules."""
        self._stop()
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        found = self.find(model)
        short = {name: _short(name) for name in found}
        self._labels = short if len(set(short.values())) == len(short) else {n: n for n in short}
        # all processes have to join in where they talk to each other
        self._modules = {n: m for n, m in found.items() if get_rank() == 0 or _talks(m)}
        self._logger = next((h for h in runner.hooks if isinstance(h, LoggerHook)), None)
        self._has_told = False
        left = runner.max_iters - runner.iter
        if self.interval is not None and runner.iter % self.interval + left < self.interval:
            self._say(
                runner,
                f"GateLogHook logs nothing: interval={self.interval}, and the training ends after "
                f"iteration {runner.max_iters}",
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Listens, if it is time."""
        if not self._is_due(runner, batch_idx):
            return
        self._ears = contextlib.ExitStack()
        # in all processes, so that they run the same code
        self._ears.enter_context(_uncompiled(runner.model))
        self._ears.enter_context(listening(self._modules, self._hear))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        """Writes what was heard."""
        if self._ears is None:
            return
        values = self._stop()
        if get_rank() != 0:
            return
        layers = _on_host(values)
        if not self._has_told:
            self._has_told = True
            self._tell(runner, {name for name, _, _ in layers})
        if not layers:
            return
        scalars = {}
        if self.per != "stage":
            scalars |= {self._tag(self._labels[n], *rest): v for (n, *rest), v in layers.items()}
        if self.per != "layer":
            stages: dict[str, list[float]] = {}
            for (name, *rest), value in layers.items():
                stages.setdefault(self._tag(_stage(self._labels[name]), *rest), []).append(value)
            scalars |= {tag: statistics.fmean(found) for tag, found in stages.items()}
        step = runner.iter + 1
        # W&B counts steps of its own: this can be its axis
        scalars[f"{PREFIX}/iteration"] = step
        runner.visualizer.add_scalars(scalars, step=step)

    def after_train(self, runner: Runner) -> None:
        """Leaves the model without listeners if the last iteration was not finished."""
        self._stop()

    def _is_due(self, runner: Runner, batch_idx: int) -> bool:
        if self.interval is not None:
            return self.every_n_train_iters(runner, self.interval)
        if self._logger is None:
            return self.every_n_train_iters(runner, 50)
        every, loader = self._logger.interval, runner.train_dataloader
        # as the LoggerHook counts, within each epoch
        return self.every_n_inner_iters(batch_idx, every) or (
            self.end_of_epoch(loader, batch_idx)
            and (not self._logger.ignore_last or len(loader) <= every)
        )

    def _hear(self, call: Call) -> None:
        # in a backward pass: an activation checkpoint computes what was heard already
        if torch._C._current_graph_task_id() != -1:
            return
        for one in call.maps():
            for stat, value in _measured(one, self.stats):
                key = (call.name, re.sub(r"[^\w.-]", "_", one.name), stat)
                self._values.setdefault(key, []).append(value)

    def _stop(self) -> dict[tuple[str, str, str], list[Tensor]]:
        if self._ears is not None:
            self._ears.close()
        values, self._values, self._ears = self._values, {}, None
        return values

    def _tell(self, runner: Runner, heard: set[str]) -> None:
        """Once: which modules gave nothing."""
        silent = [name for name in self._modules if name not in heard]
        if silent:
            self._say(
                runner,
                f"GateLogHook heard nothing of {len(silent)} of {len(self._modules)} modules "
                f"({', '.join(silent[:4])}{', ...' if silent[4:] else ''}): they were not called "
                "in the iteration, say nothing of what they decide, or have none of stats="
                f"{self.stats}",
            )

    @staticmethod
    def _tag(*parts: str) -> str:
        return "/".join((PREFIX, *parts))

    @staticmethod
    def _say(runner: Runner, sentence: str) -> None:
        runner.logger.log(logging.WARNING, f"mmattn: {sentence}")


def _measured(one: AttentionMap, stats: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """The statistics of a map, on its device: nothing waits for them here."""
    values = one.values
    if one.kind == "regions":
        if one.count > 1:
            use = torch.stack([(values == i).float().mean() for i in range(one.count)])
            if "entropy" in stats:
                yield "entropy", torch.special.entr(use).sum() / math.log(one.count)
            if "used" in stats:
                yield "used", (use > 0).float().sum()
    elif one.kind == "shares":
        if "mean" in stats:
            shares = values.transpose(0, 1).flatten(1).mean(1)
            yield from ((f"mean_{i}", share) for i, share in enumerate(shares.unbind()))
    elif one.kind == "distances":
        m = values.shape[-1]
        if "mean" in stats and m > 1:  # none from a filter to itself
            yield "mean", values.sum() / (len(values) * m * (m - 1))
    elif one.kind == "weights" and one.bounds == (0, 1):
        if "entropy" in stats and values[0, 0].numel() > 1:
            entropy = torch.special.entr(values).sum((2, 3)).mean()
            yield "entropy", entropy / math.log(values[0, 0].numel())
    elif one.kind == "weights" or one.role != "detail":
        yield from _of_gate(one, stats)


def _of_gate(one: AttentionMap, stats: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    values, (low, high), neutral = one.values, one.bounds, one.neutral
    if "mean" in stats:
        yield "mean", values.mean()
    if "std" in stats:
        yield "std", values.std(correction=0)
    if "saturated" in stats and low is not None and high is not None:
        near = NEAR * one.span
        yield "saturated", ((values <= low + near) | (values >= high - near)).float().mean()
    if "neutral" in stats and neutral is not None:
        near = NEAR * one.span
        yield "neutral", ((values - neutral).abs() <= near).float().mean()


def _on_host(values: dict[tuple, list[Tensor]]) -> dict[tuple, float]:
    """Means over the calls; the device is waited for once."""
    flat = [value for calls in values.values() for value in calls]
    if not flat:
        return {}
    device = flat[0].device
    numbers = iter(torch.stack([v.float().to(device) for v in flat]).tolist())
    return {key: statistics.fmean([next(numbers) for _ in calls]) for key, calls in values.items()}


def _short(name: str) -> str:
    return name.removeprefix("backbone.")


def _stage(name: str) -> str:
    """``'layer1.0.conv1.gct'`` -> ``'layer1.gct'``: what comes to the first number, and the end."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if re.search(r"\d", part)), len(parts) - 1)
    return ".".join([*parts[: number + 1], *parts[number + 1 :][-1:]])


def _talks(module: nn.Module) -> bool:
    """Whether what it computes needs the other processes: PyTorch's SyncBatchNorm, mmcv's."""
    return any("SyncBatchNorm" in type(part).__name__ for part in module.modules())


@contextlib.contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Runs as written what torch.compile has compiled, which would not call the listeners."""
    if "torch._dynamo" not in sys.modules:  # nothing is
        yield
    elif hasattr(torch.compiler, "set_stance"):  # from PyTorch 2.6 on
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        # what mmengine's `compile` has put over the method
        compiled = model.__dict__.pop("train_step", None)
        try:
            yield
        finally:
            if compiled is not None:
                model.train_step = compiled
