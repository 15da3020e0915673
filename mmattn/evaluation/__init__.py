"""AP by object size: evaluation, comparison, tables, pictures, and mmengine's metric.

Importing this package loads neither torch nor any mm* package; every name is imported at first
use.
"""

import importlib
from typing import Any

# name -> module
_NAMES = {
    "ClassFigures": "result",
    "CocoSizeMetric": "coco_size_metric",
    "Comparison": "comparison",
    "Difference": "statistics",
    "Figures": "result",
    "Result": "result",
    "SizeBin": "bins",
    "compare": "comparison",
    "evaluate": "evaluator",
    "parse_bins": "bins",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'mmattn.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mmattn.evaluation.{_NAMES[name]}"), name)
