"""How far is a run? Told from its files alone, on any machine that sees them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from pathlib import Path

from mmattn.reproduction.job import HEARTBEAT
from mmattn.reproduction.plan import Run

DEAD = 12 * HEARTBEAT  # seconds without a sign of life


@dataclasses.dataclass(frozen=True)
class State:
    """What is known of a run.

    Attributes:
        kind: ``done``, ``running``, ``failed``, ``interrupted``, ``missing`` (initial weights),
            ``other code`` or ``waiting``.
        text: The same in words.
        fraction: Of the training that is done, 0 to 1.
    """

    kind: str
    text: str
    fraction: float


def of(run: Run) -> State:
    """The state of a run."""
    if run.result.exists():
        return State("done", "done", 1.0)
    step = _step(run)
    trained = (run.folder / "train.json").exists()
    fraction = 1.0 if trained else min(1.0, step / run.total)
    where = f"{run.unit} {step} of {run.total}" if step else ""
    sign = _json(run.folder / "running.json")
    if sign and _age(run.folder / "running.json") < DEAD:
        what = {"train": "training", "test": "testing"}[sign["what"]]
        return State(
            "running", " ".join([what, *([where] if what == "training" else [])]), fraction
        )
    if failed := _json(run.folder / "failed.json"):
        return State("failed", f"{failed['what']} failed: {failed['reason']}", fraction)
    if run.missing:
        return State("missing", f"needs {run.missing}", 0.0)
    if run.results_of_other_code():
        return State("other code", "done with other code (--any-code takes it)", fraction)
    if trained:
        return State("interrupted", "trained, not evaluated", 1.0)
    if step:
        return State("interrupted", f"interrupted at {where}", fraction)
    # options and data are part of what a run is
    others = len(list(run.folder.parent.glob("*/result.json")))
    noted = f" ({others} done with other options or data)" if others else ""
    return State("waiting", f"waiting{noted}", 0.0)


def _step(run: Run) -> int:
    """Epochs or iterations: those in the newest log, or the last that was saved."""
    pointer = run.folder / "work" / "last_checkpoint"
    saved = 0
    with contextlib.suppress(OSError):
        number = re.search(r"(\d+)\.pth\s*$", pointer.read_text())
        saved = int(number[1]) if number else 0
    logs = sorted((run.folder / "work").glob("*/vis_data/scalars.json"))
    for log in reversed(logs):
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(log, "rb") as file:
                # the lines of mmattn.GateLogHook have many kilobytes
                file.seek(max(0, log.stat().st_size - 2**18))
                lines = file.read().decode(errors="replace").splitlines()
            for line in reversed(lines):
                with contextlib.suppress(ValueError):
                    last = json.loads(line)
                    if any(key.startswith("gates/") for key in last):
                        continue
                    return max(saved, int(last.get(run.unit, last["step"])))
    return saved


def _json(path: Path) -> dict:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return {}


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return float("inf")
