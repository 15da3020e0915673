"""Checks of what a comparison is asked to compare; light to import."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from mmattn.evaluation.data import Detections


def check_resampling(replicates: int, seed: int, level: float) -> None:
    """Checks the arguments of a bootstrap."""
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, got {level!r}")
    # as many that one lies beyond each end of the interval
    least = math.ceil(2 / (1 - level) - 1e-9)
    for key, value, low in (("replicates", replicates, least), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
            why = (
                f" for a {100 * level:g} % interval; 1000 are usual" if key == "replicates" else ""
            )
            raise ValueError(f"{key} must be a whole number from {low} on{why}, got {value!r}")


def check_different(found: Detections, seen: dict[bytes, str], name: str) -> None:
    """Raises where a seed is a copy of another, which would make chance look small."""
    if not len(found):
        return
    digest = hashlib.sha256(found.scores.tobytes() + found.boxes.tobytes()).digest()
    if digest in seen:
        raise ValueError(
            f"{name} has the same detections as {seen[digest]}; seeds must be results of "
            "different trainings"
        )
    seen[digest] = name
