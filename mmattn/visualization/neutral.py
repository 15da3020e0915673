"""A model without the effect of its modules, for a block of code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn

from mmattn.visualization.record import attention_modules, chosen


@contextlib.contextmanager
def neutralized(model: nn.Module, layers: Iterable[str] | None = None) -> Iterator[nn.Module]:
    """Sets the gates of a model to neutral in the block, and back after it.

    A gate becomes what changes nothing: 1 in a module with ``identity_init``, else the factor that
    the module started training with, so that what follows it finds the scale it knows. What GC,
    SNL and NonLocal add is left out. DRConv2d takes the mean filter of its regions everywhere,
    CondConv2d equal shares of its experts, SK equal shares of its branches. Everything else of the
    model stays as it was trained: this is not the model that was trained without the module.

    Args:
        model: The model.
        layers: Names of modules, or regular expressions that must match whole names; None: all.

    Yields:
        The same model.

    Raises:
        ValueError: The model has no such module.
    """
    modules = chosen(attention_modules(model), layers)

    def hook(module, args, kwargs, output):
        return module.without_attention(*args, **kwargs)

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules.values()]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()
