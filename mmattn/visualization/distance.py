"""Do the queries of a non-local block attend to different places?

That they hardly do is the argument of GCNet: Cao et al., 2019, https://arxiv.org/abs/1904.11492,
section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from mmattn.evaluation.table import render
from mmattn.visualization.collected import Collected
from mmattn.visualization.shares import number

COSINE, JSD = "query distance (cosine)", "query distance (JSD)"  # in Layer.measures


def is_distribution(weights: Tensor) -> bool:
    """Whether the weights of every query (Q, H, W) are at least 0 and sum to 1."""
    sums = weights.double().flatten(1).sum(1)
    return bool((weights >= 0).all() and (sums - 1).abs().max() < 1e-2) if len(sums) else False


def query_distance(weights: Tensor) -> dict[str, float]:
    """How much the weights of the queries differ, the mean over all pairs of two queries.

    ::

        cosine  1 - p . q / (|p| |q|)                 0: in proportion, 1: nowhere in common
        JSD     (KL(p, m) + KL(q, m)) / 2, m = (p + q) / 2    0: the same, ln 2: nowhere in common

    The Jensen-Shannon divergence is in nats. Near 0 every query attends to the same places.

    Args:
        weights: Of Q queries, (Q, H, W).

    Returns:
        ``'cosine'`` and ``'JSD'``. NaN of fewer than two queries; JSD also of weights that are no
        distribution (the modes 'dot_product' and 'concatenation'), cosine also where all weights
        of a query are 0.

    Raises:
        ValueError: The weights do not have three dimensions.
    """
    if weights.dim() != 3:
        raise ValueError(
            f"query_distance expects weights (Q, H, W), got the shape {tuple(weights.shape)}"
        )
    p = weights.detach().double().flatten(1)
    count = len(p)
    if count < 2:
        return {"cosine": math.nan, "JSD": math.nan}
    unit = p / p.norm(dim=1, keepdim=True)  # NaN of zeros
    pairs = torch.triu_indices(count, count, 1)
    cosine = (1 - (unit @ unit.T)[pairs[0], pairs[1]]).clamp_min(0).mean()
    if not is_distribution(weights):
        return {"cosine": float(cosine), "JSD": math.nan}
    p = p / p.sum(1, keepdim=True)
    total = 0.0
    for n in range(count - 1):  # one query with all later ones: the memory of Q maps
        q, rest = p[n], p[n + 1 :]
        middle = (q + rest) / 2
        log_middle = torch.where(middle > 0, middle, 1.0).log()
        both = torch.xlogy(q, q) - q * log_middle + torch.xlogy(rest, rest) - rest * log_middle
        total += float((both.sum(1) / 2).clamp_min(0).sum())
    return {"cosine": float(cosine), "JSD": total / pairs.shape[1]}


def distance_table(images: Sequence[Collected]) -> list[dict]:
    """The distance between queries in each layer that has it, the mean over images.

    Args:
        images: As :func:`mmattn.visualization.collect` gives them.

    Returns:
        A dict for each layer, in their order: ``layer`` (its name), ``title``, ``call``,
        ``images`` (how many), ``cosine`` and ``JSD`` (nats), NaN where there is none.
    """
    found: dict[tuple[str, int], list] = {}
    for collected in images:
        for layer in collected:
            if COSINE in layer.measures:
                found.setdefault((layer.name, layer.call), []).append(layer)
    return [
        {
            "layer": name,
            "title": layers[0].title,
            "call": call,
            "images": len(layers),
            "cosine": _mean([layer.measures[COSINE] for layer in layers]),
            "JSD": _mean([layer.measures.get(JSD, math.nan) for layer in layers]),
        }
        for (name, call), layers in found.items()
    ]


def distance_markdown(rows: Sequence[Mapping]) -> str:
    """The table of :func:`distance_table` for people, valid Markdown; empty without rows."""
    if not rows:
        return ""
    table = Table(box=box.MARKDOWN)
    for header in ("module", "layer"):
        table.add_column(header, no_wrap=True)
    for header in ("images", "cosine distance", "JSD (nats)"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        cells = (Text(row["title"]), Text(row["layer"]), str(row["images"]))
        table.add_row(*cells, number(row["cosine"]), number(row["JSD"]))
    note = (
        "Mean over all pairs of queries, then over images; 0: every query attends to the same "
        "places, at most 1 (cosine, weights of at least 0) and 0.693 (JSD, ln 2)."
    )
    return render(table, Text(note))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
