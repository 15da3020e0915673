"""A run: one result, or those of several seeds."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property

import numpy as np

from mmattn.evaluation.result import FIGURES, Conditions, Result


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """The results of one model, of one or several seeds.

    Attributes:
        name: What tables and pictures call it.
        results: One result a seed, all on the same ground truth and bins.
    """

    name: str
    results: tuple[Result, ...]

    @property
    def seeds(self) -> int:
        """Number of results."""
        return len(self.results)

    @property
    def conditions(self) -> Conditions:
        """What the first result was measured on, and how."""
        return self.results[0].conditions

    @cached_property
    def figures(self) -> dict[str, dict[str, float]]:
        """'all' or bin -> figure -> mean over seeds, a fraction; nan is n/a."""
        return self._each(lambda values: float(np.mean(values)))

    @cached_property
    def std(self) -> dict[str, dict[str, float]] | None:
        """'all' or bin -> figure -> standard deviation over seeds (n - 1); None with one seed."""
        return self._each(lambda values: float(np.std(values, ddof=1))) if self.seeds > 1 else None

    @property
    def num_objects(self) -> dict[str, int]:
        """'all' or bin -> number of objects."""
        return {size: x.num_objects for size, x in self.results[0].rows()}

    @cached_property
    def class_ap(self) -> dict[str, dict[str, float]]:
        """Class name -> 'all' or bin -> AP, mean over seeds."""
        return self._each_class(lambda values: float(np.mean(values)))

    @cached_property
    def class_std(self) -> dict[str, dict[str, float]] | None:
        """Class name -> 'all' or bin -> standard deviation of AP over seeds; None with one seed."""
        several = self.seeds > 1
        return self._each_class(lambda x: float(np.std(x, ddof=1))) if several else None

    @cached_property
    def precision_at_50(self) -> dict[str, np.ndarray]:
        """'all' or bin -> (101,) precision at IoU 0.50 by recall, mean over seeds."""
        thresholds = self.conditions.iou_thrs
        place = next(
            (i for i, x in enumerate(thresholds) if math.isclose(x, 0.5, rel_tol=0, abs_tol=1e-9)),
            None,
        )
        if place is None:
            return {}
        return {
            size: np.mean([x.precision[size][place] for x in self.results], axis=0)
            for size in self.results[0].precision
        }

    def _each_class(self, of) -> dict[str, dict[str, float]]:
        ap = {}
        for name, first in self.results[0].per_class.items():
            rows = [x.per_class[name] for x in self.results]
            ap[name] = {"all": of([x.ap for x in rows])} | {
                size: of([x.by_size[size].ap for x in rows]) for size in first.by_size
            }
        return ap

    def _each(self, of) -> dict[str, dict[str, float]]:
        rows = [dict(x.rows()) for x in self.results]
        return {
            size: {figure: of([row[size][figure] for row in rows]) for figure in FIGURES}
            for size in rows[0]
        }

    def to_dict(self) -> dict:
        """Mean, standard deviation and every seed's result, as JSON knows it."""
        return {
            "name": self.name,
            "seeds": self.seeds,
            "mean": _without_nan(self.figures),
            "std": self.std and _without_nan(self.std),
            "results": [x.to_dict() for x in self.results],
        }


def _without_nan(figures: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    return {
        size: {key: None if math.isnan(value) else value for key, value in row.items()}
        for size, row in figures.items()
    }
