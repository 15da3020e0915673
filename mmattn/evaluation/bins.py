"""Size bins: which objects are small, medium and large."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

SIZE_BY = ("area", "bbox", "sqrt-relative")
MAX_SIZE = 1e10  # (1e5)^2, pycocotools' upper limit for "all" and "large"


class SizeBin(NamedTuple):
    """A named range of object sizes; both limits belong to the bin."""

    name: str
    low: float
    high: float


ALL = SizeBin("all", 0.0, MAX_SIZE)
COCO_BINS = (
    SizeBin("small", 0.0, 32.0**2),
    SizeBin("medium", 32.0**2, 96.0**2),
    SizeBin("large", 96.0**2, MAX_SIZE),
)
# each of COCO's bins in two
COCO_FINE_BINS = (
    SizeBin("tiny", 0.0, 16.0**2),
    SizeBin("small", 16.0**2, 32.0**2),
    SizeBin("medium-small", 32.0**2, 64.0**2),
    SizeBin("medium-large", 64.0**2, 96.0**2),
    SizeBin("large", 96.0**2, 192.0**2),
    SizeBin("huge", 192.0**2, MAX_SIZE),
)
# COCO's limits as shares of an image of 640 x 480, the usual size in COCO
RELATIVE_BINS = (
    SizeBin("small", 0.0, 0.06),
    SizeBin("medium", 0.06, 0.17),
    SizeBin("large", 0.17, MAX_SIZE),
)

SizeBins = str | Mapping[str, Sequence[Any]] | Sequence[Sequence[Any]] | None

_EXPECTED = (
    "expected 'coco', 'coco-fine', a text such as 'tiny:0-16^2,small:16^2-32^2,rest:32^2-', "
    "a list of (name, low, high) or a dict of name: (low, high)"
)
_NUMBER = r"(\d+\.?\d*|\.\d+)(?:e([+-]?\d+))?(?:\^(\d+))?"


def parse_bins(bins: SizeBins = None, size_by: str = "area") -> tuple[SizeBin, ...]:
    """Checks size bins and brings them into one form.

    Args:
        bins: ``'coco'`` for COCO's small, medium and large; ``'coco-fine'`` for each of them in
            two (limits 16, 32, 64, 96 and 192 squared); a text ``'name:low-high,...'`` where
            ``16^2`` is 256 and a missing ``high`` is no limit; a list of ``(name, low, high)``
            or a dict of ``name: (low, high)``, where ``high`` may be ``None``. Limits are px^2,
            or for 'sqrt-relative' shares. Both limits belong to the bin, as in COCO, where an
            area of 1024 is small and medium. Bins may leave gaps; an object in a gap counts in
            the overall figures alone. ``None`` is 'coco', or for 'sqrt-relative' COCO's limits
            as shares of a 640 x 480 image (0.06 and 0.17).
        size_by: What the limits are compared with, see :func:`mmattn.evaluation.evaluate`.

    Returns:
        The bins, in the order given.

    Raises:
        TypeError: A bin is not a name and two numbers.
        ValueError: No bins, a name that cannot be a metric's name or comes twice, limits that
            are negative, not finite, or not in order, or bins that overlap.
    """
    if size_by not in SIZE_BY:
        raise ValueError(f"size_by must be one of {', '.join(SIZE_BY)}, got {size_by!r}")
    if bins is None:
        return RELATIVE_BINS if size_by == "sqrt-relative" else COCO_BINS
    if isinstance(bins, str):
        if bins in ("coco", "coco-fine"):
            if size_by == "sqrt-relative":
                raise ValueError(
                    f"bins {bins!r} are in px^2, but size_by 'sqrt-relative' measures shares of "
                    "the image's side; leave the bins out, or write 'small:0-0.06,large:0.06-'"
                )
            return COCO_BINS if bins == "coco" else COCO_FINE_BINS
        entries = [_parse_text(text) for text in bins.split(",")]
    elif isinstance(bins, Mapping):
        entries = [(name, *_as_sequence(limits, name)) for name, limits in bins.items()]
    elif isinstance(bins, Sequence) and bins and all(isinstance(x, str) for x in bins):
        return parse_bins(",".join(bins), size_by)  # as --cfg-options splits a text
    elif isinstance(bins, Sequence):
        entries = [_as_sequence(entry, f"bins[{i}]") for i, entry in enumerate(bins)]
    else:
        raise TypeError(f"bins: {_EXPECTED}, got {bins!r}")
    if not entries:
        raise ValueError(f"there are no bins: {_EXPECTED}")
    parsed = [_parse_bin(entry, size_by) for entry in entries]
    names = [size_bin.name for size_bin in parsed]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"bins: the name {twice[0]!r} comes twice; give each bin its own name")
    for lower, upper in itertools.pairwise(sorted(parsed, key=lambda x: (x.low, x.high))):
        if upper.low < lower.high:
            raise ValueError(
                f"bins: {lower.name!r} ({lower.low:g} to {_limit(lower.high)}) and "
                f"{upper.name!r} ({upper.low:g} to {_limit(upper.high)}) overlap; "
                "let one end where the next begins"
            )
    return tuple(parsed)


def _limit(high: float) -> str:
    return "no limit" if high >= MAX_SIZE else f"{high:g}"


def _as_sequence(value: Any, where: str) -> Sequence[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    raise TypeError(f"bins: expected a name and two limits at {where}, got {value!r}")


def _parse_text(text: str) -> tuple[str, float, float | None]:
    match = re.fullmatch(rf"\s*([^:]*?)\s*:\s*{_NUMBER}\s*-\s*(?:{_NUMBER}|inf)?\s*", text)
    if match is None:
        raise ValueError(f"bins: cannot read {text!r}; {_EXPECTED}")
    name, *numbers = match.groups()
    low, high = (
        None if mantissa is None else (float(mantissa) * 10.0 ** int(ten or 0)) ** int(power or 1)
        for mantissa, ten, power in (numbers[:3], numbers[3:])
    )
    return name, low, high


def _parse_bin(entry: Sequence[Any], size_by: str) -> SizeBin:
    if len(entry) != 3:
        raise TypeError(f"bins: expected (name, low, high), got {list(entry)!r}")
    name, low, high = entry
    # a letter first, or mAP_50 could be a bin; no spaces or slashes, for TensorBoard's tags
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", name):
        raise ValueError(
            f"bins: {name!r} cannot name a bin; use letters, digits, '_', '-' and '.', "
            "beginning with a letter"
        )
    if name == "all":
        raise ValueError("bins: 'all' is the name of the overall figures; choose another")
    high = MAX_SIZE if high is None else high
    for limit in (low, high):
        if isinstance(limit, bool) or not isinstance(limit, Real):
            raise TypeError(f"bins: the limits of {name!r} must be numbers, got {limit!r}")
    if high == math.inf:
        high = MAX_SIZE
    if not 0 <= low < high < math.inf:
        unit = "shares of the image's side" if size_by == "sqrt-relative" else "areas in px^2"
        raise ValueError(
            f"bins: the limits of {name!r} must be {unit} with 0 <= low < high, "
            f"got low={low!r}, high={high!r}"
        )
    if size_by == "sqrt-relative" and (low >= 1 or 1 < high < MAX_SIZE):
        raise ValueError(
            f"bins: {name!r} is {low:g} to {_limit(high)}, but size_by 'sqrt-relative' measures "
            "shares of the image's side, 0 to 1"
        )
    return SizeBin(name, float(low), float(high))
