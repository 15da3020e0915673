"""A table's rows and what became of each."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmattn.evaluation.comparison import (
    Comparison,
    Settings,
)
from mmattn.evaluation.data import Detections
from mmattn.evaluation.run import Run
from mmattn.reproduction.report.outcome import Outcome

if TYPE_CHECKING:
    from mmattn.reproduction.table import Row, Table


LEVEL = 0.95


@dataclasses.dataclass(eq=False)
class Entry:
    """A row of the table and what became of it.

    ``figures``, ``stds`` and ``of_seeds`` are by IoU type, then by 'all' or bin; those of a row
    without prediction files are what its results say, and ``why`` says why it is not compared.
    """

    row: Row
    name: str
    state: str
    outcomes: dict[int, Outcome]
    folders: dict[int, Path]
    base: Entry | None = None
    figures: dict[str, dict] = dataclasses.field(default_factory=dict)
    stds: dict[str, dict] = dataclasses.field(default_factory=dict)
    of_seeds: dict[str, list[dict]] = dataclasses.field(default_factory=dict)
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    samples: dict[str, list] = dataclasses.field(default_factory=dict)
    found: dict[str, Detections] = dataclasses.field(default_factory=dict)
    comparisons: dict[str, Comparison] = dataclasses.field(default_factory=dict)
    adjusted: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    gone: dict[str, str] = dataclasses.field(default_factory=dict)
    why: str = ""
    mixed: bool = False

    @property
    def first(self) -> Outcome | None:
        """The result of the first seed."""
        return next(iter(self.outcomes.values()), None)

    @property
    def checksums(self) -> tuple[str | None, str] | None:
        """Of the training and test annotations, None where its seeds differ."""
        return self.first.checksums if self.outcomes and not self.mixed else None

    def mean(self, of: Callable[[Outcome], float | None]) -> float:
        """Mean over the seeds, nan where one does not say."""
        values = [of(x) for x in self.outcomes.values()]
        return float(np.mean(values)) if values and None not in values else math.nan


@dataclasses.dataclass(eq=False)
class Gathered:
    """A table with the figures of all its rows, and how they were compared."""

    table: Table
    entries: list[Entry]
    settings: Settings
    replicates: int
    seed: int
    notes: list[str] = dataclasses.field(default_factory=list)
    truths: dict[tuple[str, str], Any] = dataclasses.field(default_factory=dict)

    @property
    def done(self) -> list[Entry]:
        """Rows with a result."""
        return [x for x in self.entries if x.outcomes]

    @property
    def compared(self) -> list[Entry]:
        """Rows with a difference to their baseline."""
        return [x for x in self.entries if "bbox" in x.comparisons]

    @property
    def masks(self) -> bool:
        """Whether there are masks, or will be: a source has published them."""
        published = (y.figures for x in self.entries for y in x.row.published)
        return any("segm" in x.figures for x in self.entries) or any(
            "mask_ap" in figures for figures in published
        )

    @property
    def labels(self) -> list[str]:
        """All methods, in the order that gives them their colours."""
        return list(dict.fromkeys(x.row.label for x in self.entries))

    @functools.cached_property
    def warnings(self) -> list[str]:
        """What must be known before anything else."""
        from mmattn.reproduction.report.words import warnings_of

        return list(warnings_of(self))

    @functools.cached_property
    def answer(self) -> list[str]:
        """What was found."""
        from mmattn.reproduction.report.words import answer_of

        return list(answer_of(self))


def pairs(entry: Entry) -> tuple[int, int]:
    """Seeds of the row and of its baseline."""
    return len(entry.outcomes), len(entry.base.outcomes)
