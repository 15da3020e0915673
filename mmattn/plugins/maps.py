"""What a module decides about an input, in a form that can be drawn and counted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmattn.ops._backend import statistics_dtype, without_autocast
from mmattn.plugins._statistics import running_statistics_kept

KINDS = ("channel", "spatial", "weights", "regions", "shares", "distances")
ROLES = ("factor", "term", "detail")


@dataclass(frozen=True)
class AttentionMap:
    """One thing that a module decided about the input x (N, C, H, W).

    ``kind`` says what the values are:

    - ``'channel'``: one for each channel, (N, C).
    - ``'spatial'``: one for each position and group of channels, (N, G, H, W). G divides C;
      group g holds the channels from g C/G on.
    - ``'weights'``: what each of Q queries gathers from every position, (N, Q, H', W'). Q is 1
      where all positions gather the same. They sum to 1 over the positions where they come from a
      softmax.
    - ``'regions'``: the region of each position, integers (N, H', W') below ``count``.
    - ``'shares'``: the share of each of B branches or experts, (N, B) or (N, B, O) for O channels.
    - ``'distances'``: between the filters of any two of m regions, (N, m, m).

    What the module computes is x times all maps of the role ``'factor'``, plus all of the role
    ``'term'``; a ``'detail'`` is a part of how it came to them. Not every module can be said so: a
    NonLocal gives its weights, but not the term.

    Args:
        name: In the words of the paper: ``'channel gate'``.
        kind: See above.
        values: See above; in float32 or float64, without a gradient.
        role: See above.
        neutral: The value that changes nothing, if there is one; 1 for a factor over its
            ``gate_scale``, and where a module starts without one.
        bounds: Between which values they can lie; None for an end that is open.
        count: How many regions there can be.
        queries: Of weights, the cells (Q, 2) that ask, as row and column of x.
        stride: Cells of x from one cell of the map to the next, down and across.
        offset: The cell of x in the middle of the map's first cell, down and across.
    """

    name: str
    kind: str
    values: Tensor
    role: str = "factor"
    neutral: float | None = None
    bounds: tuple[float | None, float | None] = (None, None)
    count: int | None = None
    queries: Tensor | None = None
    stride: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        if self.kind not in KINDS or self.role not in ROLES:
            raise ValueError(
                f"AttentionMap expects kind among {', '.join(KINDS)} and role among "
                f"{', '.join(ROLES)}, got {self.kind!r} and {self.role!r}"
            )

    @property
    def span(self) -> float:
        """What a share of the range is taken of: the distance between the bounds.

        Where one is open it is the neutral value, and 1 where that is 0 or there is none.
        """
        low, high = self.bounds
        if low is not None and high is not None:
            return high - low
        return abs(self.neutral or 1.0)


def describes(method: Callable[..., list[AttentionMap]]):
    """For methods ``attention(self, x)``: x comes wide, and nothing of the module moves.

    No gradient is recorded, the statistics of norm layers stay what they were, and the arithmetic
    is that of a forward pass in the module's own mode.
    """

    @functools.wraps(method)
    @without_autocast
    def wrapped(x: Tensor, module, *args, **kwargs):
        with torch.no_grad(), running_statistics_kept(module):
            return method(module, x.detach().to(statistics_dtype(x)), *args, **kwargs)

    @functools.wraps(method)
    def attention(self, x: Tensor, *args, **kwargs):
        return wrapped(x, self, *args, **kwargs)

    attention.describes = True  # other libraries have attributes of that name, too
    return attention
