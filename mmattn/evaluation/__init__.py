"""AP by object size: evaluation, tables and the metric for mmengine's evaluators.

Importing this package loads neither torch nor any mm* package; ``CocoSizeMetric``, which needs
them, is imported at first use.
"""

from mmattn.evaluation.coco import (
    COCO_BINS,
    ClassFigures,
    CocoResult,
    Conditions,
    Figures,
    SizeBin,
    evaluate_coco,
    parse_size_bins,
    write_json,
)
from mmattn.evaluation.table import class_table, render, size_table

__all__ = [
    "COCO_BINS",
    "ClassFigures",
    "CocoResult",
    "CocoSizeMetric",
    "Conditions",
    "Figures",
    "SizeBin",
    "class_table",
    "evaluate_coco",
    "parse_size_bins",
    "render",
    "size_table",
    "write_json",
]


def __getattr__(name: str):
    if name == "CocoSizeMetric":
        from mmattn.evaluation.coco_size_metric import CocoSizeMetric

        return CocoSizeMetric
    raise AttributeError(f"module 'mmattn.evaluation' has no attribute {name!r}")
