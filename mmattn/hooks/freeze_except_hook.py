"""Training that starts with the inserted modules alone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.model.wrappers import MMSeparateDistributedDataParallel
from mmengine.optim import OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

import mmattn.convs
from mmattn.insertion import insertions, matching
from mmattn.plugins.base import AttentionModule, check_positive_int
from mmattn.registry import HOOKS


@HOOKS.register_module()
class FreezeExceptHook(Hook):
    """Trains only the inserted modules at first, then everything.

    ::

        custom_hooks = [dict(type='mmattn.FreezeExceptHook', epochs=1)]

    Until the switch all other parameters get no gradient, hence no weight decay and no momentum,
    and the running statistics of their BatchNorms stand still; the optimizer keeps its parameter
    groups as they are. At the switch the parameters that come in start with a fresh optimizer
    state, those that trained keep theirs, and what the config itself had frozen stays frozen.
    With gradient accumulation the switch waits until the gradients at hand are used. Which phase
    it is follows from the epoch or the iteration alone, so that a run can be resumed in either.
    See ``docs/freezing.md``.

    Args:
        epochs: Length of the first phase, in epochs; either this or ``iters``.
        iters: Length of the first phase, in iterations.
        modules: What trains in the first phase. None: every attention module, DRConv2d and other
            convolution of mmattn (of GCTConv2d its GCT), and what :func:`mmattn.attach` has
            inserted. Or a regular expression for whole names of modules, or a list of names that
            modules are called or end in.

    Raises:
        ValueError: Neither or both of ``epochs`` and ``iters``, or not an integer above 0. When
            training starts: nothing matches ``modules``, or nothing that matches can train.
        TypeError: When training starts: the model's wrapper or the optimizer is of a kind that
            cannot be changed while it trains, or ``epochs`` in a loop that counts none.
    """

    priority = "HIGH"  # ahead of hooks that read requires_grad or the mode of a layer

    def __init__(
        self,
        epochs: int | None = None,
        iters: int | None = None,
        modules: str | Sequence[str] | None = None,
    ):
        if (epochs is None) == (iters is None):
            raise ValueError(
                "FreezeExceptHook expects either epochs or iters, got "
                + ("neither" if epochs is None else f"epochs={epochs!r} and iters={iters!r}")
            )
        self.unit = "iter" if epochs is None else "epoch"
        name = "iters" if epochs is None else "epochs"
        value = iters if epochs is None else epochs
        self.length = check_positive_int("FreezeExceptHook", name, value)
        self.modules = modules
        self._active = False
        self._frozen: list[nn.Parameter] = []  # those that come in at the switch
        self._norms: list[nn.Module] = []
        self._feeds: list[RemovableHandle] = []
        self._watches: list[RemovableHandle] = []
        self._silent: dict[nn.Parameter, str] = {}  # trained, but without a gradient so far

    def find(self, model: nn.Module) -> tuple[dict[str, nn.Module], dict[nn.Parameter, str]]:
        """What trains in the first phase: the outermost modules by name, and their parameters.

        Args:
            model: The model, not wrapped.

        Raises:
            ValueError: Nothing matches ``modules``, or nothing that matches can train.
            TypeError: ``modules`` is neither a string nor a list of strings.
        """
        if self.modules is None:
            found = _inserted(model)
        else:
            try:
                found = matching(model, self.modules)
            except (TypeError, ValueError) as error:
                raise type(error)(
                    f"FreezeExceptHook cannot use modules={self.modules!r}: {error}"
                ) from error
        if not found:
            raise ValueError(
                "FreezeExceptHook found no module of mmattn in the model; insert one, or say with "
                "modules= what trains first"
            )
        outermost = {
            name: module
            for name, module in found.items()
            if not any(name[:i] in found for i, letter in enumerate(name) if letter == ".")
        }
        trained = {
            parameter: f"{name}.{own}"
            for name, module in outermost.items()
            for own, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        if not trained:
            raise ValueError(
                "FreezeExceptHook expects parameters that train in "
                f"{', '.join(list(outermost)[:3])}{', ...' if len(outermost) > 3 else ''}, got "
                "none: the modules have none, or the config has frozen them (frozen_stages); give "
                "modules= to train others first, or leave out the hook"
            )
        return outermost, trained

    def before_train(self, runner: Runner) -> None:
        """Freezes, after weights and optimizer have been loaded."""
        self._check(runner)
        if self._is_over(runner):
            self._say(runner, f"{self._end()} is over: training everything")
            return
        model = _unwrapped(runner.model)
        chosen, trained = self.find(model)
        inside = {part for module in chosen.values() for part in module.modules()}
        self._frozen = [p for p in model.parameters() if p.requires_grad and p not in trained]
        for parameter in self._frozen:
            parameter.requires_grad_(False).grad = None
        self._norms = [
            part
            for part in model.modules()
            if part not in inside and getattr(part, "running_mean", None) is not None
        ]
        self._feeds = [
            part.register_forward_pre_hook(_with_gradient)
            for part in _checkpointed(runner)
            if not trained.keys().isdisjoint(part.parameters())
        ]
        self._watches = [p.register_post_accumulate_grad_hook(self._note) for p in trained]
        self._active = True
        self._announce(runner, chosen, trained)
        self._silent = trained
        _follow_requires_grad(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Holds the statistics, which a loop sets free again and again, or lets everything go."""
        if not self._active:
            return
        if not self._is_over(runner):
            for norm in self._norms:
                norm.eval()
            return
        for parameter in self._frozen:
            runner.optim_wrapper.optimizer.state.pop(parameter, None)
        self._restore()
        runner.model.train()
        _follow_requires_grad(runner)
        self._say(runner, f"{self._end()} is over: training everything now")

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        """After the first iteration: does everything learn that should?"""
        if self._silent:
            names = list(self._silent.values())
            self._say(
                runner,
                f"{len(names)} of the parameters that train alone got no gradient in the first "
                f"iteration and did not learn ({', '.join(names[:3])}"
                f"{', ...' if names[3:] else ''}): the loss does not depend on them, or they are "
                "inside an activation checkpoint of the kind that needs an input with gradient "
                "(use_reentrant=True)",
                logging.WARNING,
            )
        for watch in self._watches:
            watch.remove()
        self._silent, self._watches = {}, []

    def after_train(self, runner: Runner) -> None:
        """Leaves the model as it was if the training ends first."""
        self._restore()

    def _check(self, runner: Runner) -> None:
        model, optimizer = runner.model, runner.optim_wrapper
        if is_model_wrapper(model) and (
            not isinstance(model, DistributedDataParallel)
            or isinstance(model, MMSeparateDistributedDataParallel)
        ):
            raise TypeError(
                "FreezeExceptHook expects a model that is not wrapped, or is by "
                f"MMDistributedDataParallel, got {type(model).__name__}, where parameters cannot "
                "come in later; leave out the hook, or change model_wrapper_cfg"
            )
        if isinstance(optimizer, OptimWrapperDict):
            raise TypeError(
                f"FreezeExceptHook expects one optimizer, got {', '.join(optimizer.keys())}; "
                "leave out the hook"
            )
        if self.unit == "epoch" and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise TypeError(
                f"FreezeExceptHook got epochs={self.length} in a training by iterations, which "
                "counts no epochs; give iters"
            )

    def _is_over(self, runner: Runner) -> bool:
        # within an accumulation, parameters that come in would get a part of a gradient
        return getattr(runner, self.unit) >= self.length and runner.optim_wrapper.should_update()

    def _note(self, parameter: nn.Parameter) -> None:
        self._silent.pop(parameter, None)

    def _restore(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        for feed in self._feeds:
            feed.remove()
        self._active, self._frozen, self._norms, self._feeds = False, [], [], []

    def _announce(self, runner: Runner, chosen: dict, trained: dict) -> None:
        live = [m for m in chosen.values() if not trained.keys().isdisjoint(m.parameters())]
        kinds = Counter(type(module).__name__ for module in live).most_common()
        rest = len(chosen) - len(live)
        self._say(
            runner,
            f"training only {_size(trained):,} parameters in {len(live)} modules "
            f"({', '.join(f'{n} {kind}' for kind, n in kinds)}"
            f"{f'; {rest} more have none that train' if rest else ''}) until {self._end()} is "
            f"over; {_size(self._frozen):,} others and their BatchNorm statistics stand still",
        )
        last = runner.max_iters if self.unit == "iter" else runner.max_epochs
        if self.length >= last:
            self._say(
                runner, f"the others never train: {self._end(last)} is the last", logging.WARNING
            )

    def _end(self, number: int | None = None) -> str:
        return f"{'iteration' if self.unit == 'iter' else 'epoch'} {number or self.length}"

    @staticmethod
    def _say(runner: Runner, sentence: str, level: int = logging.INFO) -> None:
        runner.logger.log(level, f"mmattn: {sentence}")


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _checkpointed(runner: Runner) -> list[nn.Module]:
    """The parts that mmengine checkpoints: with ``use_reentrant``, so an input needs a gradient."""
    names = runner.cfg.get("activation_checkpointing") or []
    names = [names] if isinstance(names, str) else names
    return [attrgetter(name)(_unwrapped(runner.model)) for name in names]


def _size(parameters) -> int:
    return sum(parameter.numel() for parameter in parameters)


# what the blocks of mmattn's backbones have beyond a plain one's
_NEW_PARTS = ("masknet", "conv2g", "bn2g", "conv_fc1", "bn_fc1", "conv_fc2")


def _inserted(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of mmattn, and those that it has inserted, by name."""
    convs = tuple(getattr(mmattn.convs, name) for name in mmattn.convs.__all__)
    attached = {insertion.name for insertion in insertions(model)}
    found = {}
    for name, part in model.named_modules():
        if isinstance(part, AttentionModule) or name in attached:
            found[name] = part
        elif isinstance(part, convs):
            # a convolution behind an attention module is the model's own
            if not any(isinstance(inner, AttentionModule) for inner in part.modules()):
                found[name] = part
        elif type(part).__module__.startswith("mmattn.backbones."):
            new = ((child, getattr(part, child, None)) for child in _NEW_PARTS)
            found |= {f"{name}.{child}": inner for child, inner in new if inner is not None}
    return found


def _with_gradient(_part: nn.Module, arguments: tuple) -> tuple | None:
    """The arguments, one of them with a gradient."""
    places = [i for i, a in enumerate(arguments) if isinstance(a, Tensor) and a.is_floating_point()]
    if not places or any(arguments[i].requires_grad for i in places):
        return None
    first = places[0]
    fed = arguments[first].detach().requires_grad_()
    return (*arguments[:first], fed, *arguments[first + 1 :])


def _follow_requires_grad(runner: Runner) -> None:
    """Tells DDP and torch.compile, which look only once, which parameters train from now on."""
    model = runner.model
    if isinstance(model, DistributedDataParallel):
        hooks, model._comm_hooks = model._comm_hooks, []
        # what unpickling does: a new reducer, for the parameters that require a gradient now
        model.__setstate__(model.__getstate__())
        model._static_graph_delay_allreduce_enqueued = False
        for hook, state in hooks:
            model.register_comm_hook(state, hook)
    if runner.cfg.get("compile"):
        torch.compiler.reset()
