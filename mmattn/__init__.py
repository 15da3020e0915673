"""Attention modules and region-aware convolution for MMDetection, with AP by object size.

Importing this package is light: neither torch nor any mm* package is loaded, so that the
evaluation tools answer at once. It does two things: it says which stack is missing, if one
is, and it offers operators for an mmcv that was installed without compiled ones
(:mod:`mmattn.compat`). Do it before ``import mmdet`` when mmcv has no compiled operators.
"""

import difflib
import importlib
import warnings

from mmattn import _stack, compat
from mmattn._version import __version__

__all__ = ["__version__"]

compat.install()
if _problem := _stack.problem():
    warnings.warn(_problem, stacklevel=2)


_NAMESPACES = (
    "mmattn.plugins",
    "mmattn.convs",
    "mmattn.backbones",
    "mmattn.insertion",
    "mmattn.hooks",
    "mmattn.datasets",
    "mmattn.evaluation",
)


def _public() -> list[str]:
    return [name for module in _NAMESPACES for name in importlib.import_module(module).__all__]


def __getattr__(name: str):
    """``mmattn.SGE`` and the other public classes, imported at first use."""
    near = ""
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"mmattn.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"mmattn.{name}":
                raise
        _stack.require()
        for module in map(importlib.import_module, _NAMESPACES):
            if name in module.__all__:
                return getattr(module, name)
        if match := difflib.get_close_matches(name, _public(), 1):
            near = f"; did you mean {match[0]}?"
    raise AttributeError(f"module 'mmattn' has no attribute {name!r}{near}")


def __dir__() -> list[str]:
    return sorted({*globals(), *([] if _problem else _public())})
