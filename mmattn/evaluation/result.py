"""What an evaluation gives: figures overall, by size, by class, and by class and size."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mmattn.evaluation.files import write_text

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

FIGURES = ("AP", "AP50", "AP75", "AR")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """AP and AR of a set of objects, as fractions; nan where there is nothing to find.

    Attributes:
        ap: Average precision, mean over IoU thresholds and over the classes with objects.
        ap50: That at IoU 0.50; nan if it is not among the thresholds.
        ap75: That at IoU 0.75; nan if it is not among the thresholds.
        ar: Average recall, mean over IoU thresholds and over the classes with objects.
        num_objects: Number of objects, crowds left out.
    """

    ap: float
    ap50: float
    ap75: float
    ar: float
    num_objects: int

    def __getitem__(self, figure: str) -> float:
        """A figure by its usual name: 'AP', 'AP50', 'AP75' or 'AR'."""
        if figure not in FIGURES:
            raise KeyError(f"expected one of {', '.join(FIGURES)}, got {figure!r}")
        return getattr(self, figure.lower())

    def to_dict(self) -> dict[str, Any]:
        """The figures under their usual names; ``None`` is n/a."""
        values = {x: None if math.isnan(self[x]) else self[x] for x in FIGURES}
        return {**values, "num_objects": self.num_objects}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassFigures(Figures):
    """The figures of one class, overall and by size."""

    id: int | str
    name: str
    by_size: dict[str, Figures]

    def to_dict(self) -> dict[str, Any]:
        """The figures under their usual names; ``None`` is n/a."""
        by_size = {name: figures.to_dict() for name, figures in self.by_size.items()}
        return {"id": self.id, "name": self.name, **super().to_dict(), "by_size": by_size}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a result was measured on, and how."""

    iou_type: str
    iou_thrs: list[float]
    max_dets: int
    size_by: str
    size_bins: dict[str, tuple[float, float]]
    num_images: int
    num_crowds: int
    num_detections: int
    notes: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result(Figures):
    """AP and AR overall, by size, by class, and by class and size.

    ``result.ap``, ``result.by_size['small'].ap50``, ``result.per_class['cat'].by_size``:
    fractions, nan where there is nothing to find. ``str(result)`` is the table.

    Attributes:
        name: Name of the detections.
        by_size: Bin -> its figures.
        per_class: Class name -> its figures; a name that two classes share is followed by the id.
        covered: (I,) bool, which images have a detection.
        precision: 'all' or bin -> (T, 101) precision at recall 0.00, 0.01, ..., 1.00 for each IoU
            threshold, mean over the classes with objects.
        conditions: What was measured, and how.
    """

    name: str
    by_size: dict[str, Figures]
    per_class: dict[str, ClassFigures]
    covered: np.ndarray
    precision: dict[str, np.ndarray]
    conditions: Conditions

    def rows(self) -> Iterator[tuple[str, Figures]]:
        """'all' and each bin, with its figures."""
        yield "all", self
        yield from self.by_size.items()

    def table(self) -> str:
        """The figures by size as text, in percent; valid Markdown."""
        from mmattn.evaluation.table import render, size_table

        return render(size_table(self))

    def class_table(self) -> str:
        """AP of each class by size as text, in percent; valid Markdown."""
        from mmattn.evaluation.table import class_table, render

        return render(class_table(self))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curves, in full precision, as JSON knows it; ``None`` is n/a."""
        return {
            "name": self.name,
            "conditions": dataclasses.asdict(self.conditions),
            **super().to_dict(),
            "by_size": {name: figures.to_dict() for name, figures in self.by_size.items()},
            "classes": [figures.to_dict() for figures in self.per_class.values()],
        }

    def to_json(self, path: str | os.PathLike | None = None) -> str | None:
        """:meth:`to_dict` as JSON text, or written to ``path``, whole or not at all."""
        return write_or_return(to_json(self.to_dict()), path)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per class ('all' first) and size, with its figures as fractions.

        Raises:
            ImportError: pandas is not installed.
        """
        rows = [("all", *row) for row in self.rows()]
        for name, x in self.per_class.items():
            rows += [(name, "all", x), *((name, size, y) for size, y in x.by_size.items())]
        return data_frame(
            [
                {
                    "name": self.name,
                    "class": class_name,
                    "size": size,
                    "objects": x.num_objects,
                    **{figure: x[figure] for figure in FIGURES},
                }
                for class_name, size, x in rows
            ]
        )

    def plot(self) -> Figure:
        """The figures by size as a matplotlib figure."""
        from mmattn.evaluation.plots import plot_result
        from mmattn.evaluation.run import Run

        return plot_result(Run(name=self.name, results=(self,)))

    def __repr__(self) -> str:
        return self.table()

    __str__ = __repr__


def to_json(data: Any) -> str:
    """Strict JSON, for people and programs."""
    return json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write_or_return(text: str, path: str | os.PathLike | None) -> str | None:
    """The text, or None where it was written to a file."""
    if path is None:
        return text
    write_text(path, text)
    return None


def data_frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    """Rows as a pandas table, or one sentence where there is no pandas."""
    try:
        import pandas
    except ImportError:
        raise ImportError("to_pandas() needs pandas: pip install pandas") from None
    return pandas.DataFrame(rows)
