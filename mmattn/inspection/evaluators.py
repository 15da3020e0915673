"""Are the metrics of a config given arguments that they take? Told before a training starts."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from typing import Any

from mmattn.inspection._console import PreflightError

NAME = "mmattn.CocoSizeMetric"


def check_evaluators(cfg) -> None:
    """Raises PreflightError for a wrong argument of ``mmattn.CocoSizeMetric``.

    mmengine builds metrics when the first evaluation begins, after an epoch of training.
    """
    from mmattn.evaluation import CocoSizeMetric

    known = set(inspect.signature(CocoSizeMetric).parameters)
    for key in ("val_evaluator", "test_evaluator"):
        for node in _metrics(cfg.get(key)):
            if node.get("type") != NAME:
                continue
            arguments = {k: v for k, v in node.items() if k not in ("type", "_scope_", "ann_file")}
            for name in arguments.keys() - known:
                near = difflib.get_close_matches(name, known, 1)
                hint = (
                    f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(known))}"
                )
                raise PreflightError(f"{key}: {NAME} takes no argument {name!r}; {hint}")
            try:
                CocoSizeMetric(**arguments)
            except (TypeError, ValueError) as error:
                raise PreflightError(f"{key}: {error}") from error


def _metrics(node: Any) -> Iterator[dict]:
    """The dicts that say which metrics an evaluator has."""
    if isinstance(node, (list, tuple)):
        for one in node:
            yield from _metrics(one)
    elif isinstance(node, dict):
        yield node
        yield from _metrics(node.get("metrics"))
