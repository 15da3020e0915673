"""The progress bar: on a terminal, and only for what takes long."""

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from mmattn.evaluation import progress as progress_module
from mmattn.evaluation.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    # pytest puts its own stderr back before the test begins
    monkeypatch.setattr(progress_module, "sys", SimpleNamespace(stderr=terminal))
    monkeypatch.setattr(progress_module, "Console", lambda stderr: Console(file=terminal))
    return terminal


def work(until=lambda: True, error=None):
    end = time.monotonic() + 20
    with Progress() as progress:
        progress.stage("reading")
        advance = progress.stage("resampling", 4)
        advance(1)
        advance(2)
        while not until() and time.monotonic() < end:
            time.sleep(0.01)
        if error:
            raise error


def test_what_takes_long_is_shown(terminal, monkeypatch):
    monkeypatch.setattr(progress_module, "DELAY", 0.05)
    work(lambda: "75%" in terminal.getvalue())
    assert "resampling" in terminal.getvalue()
    assert "75%" in terminal.getvalue()


def test_what_is_quick_is_not_shown(terminal):
    work()
    assert terminal.getvalue() == ""


def test_no_terminal_no_bar(monkeypatch):
    monkeypatch.setattr(progress_module, "DELAY", 0)
    stderr = io.StringIO()
    monkeypatch.setattr(progress_module, "sys", SimpleNamespace(stderr=stderr))
    start = time.monotonic()
    work(lambda: time.monotonic() > start + 0.2)
    assert stderr.getvalue() == ""


def test_an_error_passes_and_the_bar_ends(terminal, monkeypatch):
    monkeypatch.setattr(progress_module, "DELAY", 0)
    with pytest.raises(ValueError, match="broken"):
        work(terminal.getvalue, ValueError("broken"))
    shown = terminal.getvalue()
    assert "\x1b[?25h" in shown  # the cursor is back
    time.sleep(0.3)
    assert terminal.getvalue() == shown
