"""Listening to what the inserted modules decide, while a model runs."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from mmattn.plugins.maps import AttentionMap


@dataclass(frozen=True)
class Call:
    """One module in one forward pass.

    Args:
        name: In the model.
        module: The module.
        x: What came in, (N, C, H, W).
        y: What came out.
        index: Which call of this module while listening, from 0.
        others: What else it was called with, as a DRConv2d with a shared guide is.
    """

    name: str
    module: nn.Module
    x: Tensor
    y: Tensor
    index: int
    others: tuple = ()

    def maps(self, **options) -> list[AttentionMap]:
        """What the module decided; computed now, from x."""
        return self.module.attention(self.x, *self.others, **options)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model that say what they decide, by name.

    These are mmattn's, and others whose ``attention`` is marked with
    :func:`mmattn.plugins.maps.describes`. A module in several places has its first name.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if getattr(getattr(type(module), "attention", None), "describes", False):
            found[name] = module
    return found


NONE_FOUND = (
    "the model has no inserted module that says what it decides: expected one with modules of "
    "mmattn, got a plain model; give the config, or --attention, that it was trained with (class "
    "activation maps need no module: --grad-cam backbone.layer4)"
)


def chosen(modules: dict[str, nn.Module], layers: Iterable[str] | None) -> dict[str, nn.Module]:
    """Those that are asked for, in the model's order.

    Args:
        modules: By name, see :func:`attention_modules`.
        layers: Names, parts of names between dots (``'layer2'``, ``'layer2.0.sge'``) or regular
            expressions that must match whole names; None: all; an empty list: none.

    Raises:
        ValueError: There are none, or one of ``layers`` is none of them.
    """
    layers = [layers] if isinstance(layers, str) else layers
    if layers is not None and not (layers := list(layers)):
        return {}
    if not modules:
        raise ValueError(NONE_FOUND)
    if layers is None:
        return dict(modules)
    wanted: set[str] = set()
    for layer in layers:
        found = {name for name in modules if f".{layer}." in f".{name}."}
        with contextlib.suppress(re.error):
            found = found or {name for name in modules if re.fullmatch(layer, name)}
        if not found:
            near = difflib.get_close_matches(layer, modules, 3, 0.5)
            first, *between, last = modules if len(modules) > 1 else [*modules, ""]
            names = [first, *(between if len(between) < 4 else ["..."]), last]
            hint = f"there are {', '.join(filter(None, names))}"
            if near:
                hint = f"did you mean {' or '.join(near)}?"
            raise ValueError(f"layer {layer!r} is none of the {len(modules)} inserted; {hint}")
        wanted |= found
    return {name: module for name, module in modules.items() if name in wanted}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation for a block; each part is then as it was, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def listening(modules: dict[str, nn.Module], heard: Callable[[Call], None]) -> Iterator[None]:
    """Has ``heard`` called after each call of each of the modules.

    Args:
        modules: By name, see :func:`attention_modules`.
        heard: Gets a :class:`Call`; it must not change the tensors.
    """
    counts = dict.fromkeys(modules, 0)
    handles = []
    telling = False

    def listener(name: str):
        def hook(module, args, kwargs, output):
            nonlocal telling
            if telling:  # a block's maps are asked for, and a module in it runs for them
                return
            x, *others = *args, *kwargs.values()
            index = counts[name]
            counts[name] += 1
            telling = True
            try:
                heard(Call(name, module, x, output, index, tuple(others)))
            finally:
                telling = False

        return hook

    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(listener(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
