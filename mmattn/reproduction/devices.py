"""Which GPU does a job take? The workflow engine counts them; a file lock claims one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCKS = Path(tempfile.gettempdir(), f"mmattn-devices-{os.getuid()}-{socket.gethostname()}")


def visible() -> list[str]:
    """The GPUs of this machine that a job may take, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    try:
        # PyTorch would take seconds to load, and memory on each GPU
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listed.splitlines() if line.strip()]


@contextlib.contextmanager
def claim(
    number: int,
    devices: list[str],
    share: int = 1,
    folder: Path = LOCKS,
    wait: Callable[[], None] = lambda: time.sleep(1),
) -> Iterator[list[str]]:
    """Holds ``number`` different devices until the block ends, or the process dies.

    Args:
        number: How many.
        devices: Which ones exist.
        share: How many claims one device takes at a time.
        folder: Where the lock files lie, the same for all who share the machine.
        wait: Called while too few are free.

    Raises:
        ValueError: There are not as many devices.
    """
    if number > len(devices):
        raise ValueError(f"{number} GPUs are needed at once; there are {len(devices)}")
    folder.mkdir(parents=True, exist_ok=True)
    held: dict[str, FileLock] = {}
    # one at a time takes its devices: two that hold a part each would wait for ever
    turn = FileLock(folder / "turn.lock")
    try:
        while True:
            with turn:
                # emptiest first, so that shared devices fill evenly
                for slot in range(share):
                    for device in devices:
                        if len(held) == number or device in held:
                            continue
                        lock = FileLock(folder / f"gpu-{device.replace('/', '_')}.{slot}.lock")
                        with contextlib.suppress(Timeout):
                            lock.acquire(timeout=0)
                            held[device] = lock
                if len(held) == number:
                    break
                for lock in held.values():
                    lock.release()
                held.clear()
            wait()
        yield sorted(held, key=devices.index)
    finally:
        for lock in held.values():
            lock.release()
