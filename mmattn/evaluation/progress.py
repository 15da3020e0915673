"""A progress bar for what takes more than two seconds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from rich.console import Console

DELAY = 2.0  # seconds


class Progress:
    """Shows the stages of a computation on a terminal's stderr, once it takes long.

    Used as a context manager. Where stderr is no terminal, nothing is shown.
    """

    def __init__(self) -> None:
        self._timer = None
        self._bar = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            # rich's bar takes 0.05 s to import, which the thread hides
            self._timer = threading.Timer(DELAY, self._show)
            self._timer.daemon = True
            self._lock = threading.Lock()
            self._stage, self._done, self._total, self._closed = "", 0, None, False
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bar is not None:
                self._bar.stop()

    def stage(self, description: str, total: int | None = None) -> Callable[[int], None]:
        """Begins a stage; what is returned takes the number of steps just done."""
        if self._timer is not None:
            with self._lock:
                self._stage, self._done, self._total = description, 0, total
                if self._bar is not None:
                    self._bar.reset(self._task, total=total, description=description)
        return self._advance

    def _advance(self, steps: int) -> None:
        if self._timer is None:
            return
        with self._lock:
            self._done += steps
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done)

    def _show(self) -> None:
        from rich import progress

        with self._lock:
            if self._closed:
                return
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._stage, total=self._total, completed=self._done)
            self._bar.start()
