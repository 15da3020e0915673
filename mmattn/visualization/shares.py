"""How a map is shared out: among regions, and around a neutral value; numbers as text."""

from __future__ import annotations

import numpy as np
import torch

from mmattn.evaluation.table import NOT_AVAILABLE
from mmattn.visualization.collected import Map
from mmattn.visualization.geometry import Placement, to_image


def region_shares(one: Map, placement: Placement | None = None) -> np.ndarray:
    """Which share of the positions each region has.

    Args:
        one: Of the kind ``'regions'``, (H, W).
        placement: Of the image: count its pixels, and not what pads it. None: count the cells of
            the map, padding included.

    Returns:
        (m), float64, 0 for a region that is used nowhere; they sum to 1.

    Raises:
        ValueError: It is no map of regions, or does not lie on the image.
    """
    if one.kind != "regions":
        raise ValueError(f"expected a map of the kind 'regions', got {one.name!r} ({one.kind}).")
    regions = one.values
    if placement is not None:
        if one.grid is None:
            raise ValueError(
                f"{one.name!r} does not lie on the image; leave the placement out to count cells."
            )
        regions = to_image(regions, one.grid, placement)
    counts = torch.bincount(regions.reshape(-1).long(), minlength=one.count or 0)
    return counts.double().numpy() / max(regions.numel(), 1)


def entropy(shares: np.ndarray) -> float:
    """How evenly, in bits: ``-sum_k s_k log2 s_k``.

    Args:
        shares: (m), summing to 1.

    Returns:
        0 if one region has all, log2 m if all have the same.
    """
    used = np.asarray(shares, np.float64)
    used = used[used > 0]
    return float(abs((used * np.log2(used)).sum()))


def around(values: np.ndarray, neutral: float, tolerance: float) -> tuple[float, float, float]:
    """The shares of values below, within and above ``neutral`` +- ``tolerance``.

    Args:
        values: Of any shape.
        neutral: In their unit.
        tolerance: In their unit; its ends count as within.

    Returns:
        Three numbers that sum to 1.
    """
    values = np.asarray(values, np.float64)
    below = float((values < neutral - tolerance).mean())
    above = float((values > neutral + tolerance).mean())
    within = float(((values >= neutral - tolerance) & (values <= neutral + tolerance)).mean())
    return below, within, above


def number(value: float | None, digits: int = 3) -> str:
    """``'0.125'``, ``'0.0012'``: a small number keeps two digits; None and NaN are not available.

    Args:
        value: Of any size.
        digits: Behind the point.
    """
    if value is None or value != value:
        return NOT_AVAILABLE
    return f"{value:#.2g}" if 0 < abs(value) < 10 ** (1 - digits) else f"{value:.{digits}f}"


def percent(share: float) -> str:
    """``'0.4 %'``, ``'12 %'``; ``'0 %'`` for nothing only, and ``'100 %'`` for all only.

    Args:
        share: Between 0 and 1.
    """
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    if share < 0.0005:
        return "< 0.1 %"
    if share >= 0.9995:
        return "> 99.9 %"
    return f"{100 * share:.{0 if 0.0995 <= share < 0.99 else 1}f} %"
