"""Data sets: are they whole, how large are their objects, smaller ones, other formats.

Importing this package loads neither torch nor any mm* package; every name is imported at first
use.
"""

import importlib
from typing import Any

# name -> module
_NAMES = {"CorruptImagesHook": "corrupt_images_hook", "LoadImageFromFile": "loading"}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'mmattn.datasets' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mmattn.datasets.{_NAMES[name]}"), name)
