"""A finished run, as its ``result.json`` tells of it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mmattn._version import __version__

if TYPE_CHECKING:
    pass


FORMAT = 1


class _Data(msgspec.Struct):
    annotations: str
    val_sha256: str
    train_sha256: str | None = None
    images: int | None = None
    train_images: int | None = None


class _Hardware(msgspec.Struct):
    device: str
    processes: int = 1
    images_per_update: int | None = None

    def __str__(self) -> str:
        return self.device if self.processes == 1 else f"{self.processes} x {self.device}"


class _Cost(msgspec.Struct):
    params: int | None = None
    flops: float | None = None
    shape: list[int] | None = None


class Outcome(msgspec.Struct):
    """The content of a ``result.json``; other keys may be there and are not read."""

    format: int
    table: str
    row: str
    seed: int
    config: str
    code: str
    versions: dict[str, str | None]
    data: _Data
    hardware: _Hardware
    predictions: dict[str, str]
    figures: dict[str, dict[str, dict[str, float | None]]]
    options: dict[str, Any] = {}
    git_commit: str | None = None
    git_dirty: bool | None = None
    started: str | None = None
    finished: str | None = None
    train_seconds: float | None = None
    attempts: int = 1
    checkpoint: str | None = None
    cost: _Cost = msgspec.field(default_factory=_Cost)

    @property
    def checksums(self) -> tuple[str | None, str]:
        """What the data are known by."""
        return self.data.train_sha256, self.data.val_sha256

    @property
    def images_per_second(self) -> float:
        """Trained images a second, nan where the result does not say how many there were."""
        last = re.search(r"(iter|epoch)_(\d+)\.pth$", self.checkpoint or "")
        of_each = last and {
            "iter": self.hardware.images_per_update,
            "epoch": self.data.train_images,
        }.get(last[1])
        # what a run that was interrupted did again is in its time
        if not of_each or not self.train_seconds or self.attempts > 1:
            return math.nan
        return int(last[2]) * of_each / self.train_seconds


class _Kind(msgspec.Struct):
    format: Any = None


def read_outcome(path: Path) -> Outcome:
    """Reads a ``result.json``.

    Raises:
        ValueError: It is not there, is cut off, or is of another format.
    """
    again = "remove it and run the table again"
    try:
        content = Path(path).read_bytes()
        kind = msgspec.json.decode(content, type=_Kind)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ValueError(f"{path} is no result of a run, or is cut off: {again}") from None
    if kind.format != FORMAT:
        raise ValueError(
            f"{path} has the format {kind.format!r}, and mmattn {__version__} reads {FORMAT}: "
            f"report with the version that ran it, or {again}"
        )
    try:
        return msgspec.json.decode(content, type=Outcome)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is no whole result of a run ({error}): {again}") from None
