"""What the benchmarks here share: conditions in words, times in turns, memory, CSV files."""

from __future__ import annotations

import csv
import ctypes
import gc
import importlib.metadata
import math
import os
import platform
import random
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

# torch is imported where it is needed: a process counts the memory of the one that started it as
# its own, and evaluation.py measures processes.

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
# of each of the two tensors of a measured copy; more than the caches hold
COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
# of what is written between two calls to empty a CPU's caches
FLUSH_BYTES = 128 << 20
# milliseconds that the device is kept busy before a call, so that its launch is not waited for
SLEEP_MS = (1, 50)


# --- conditions ----------------------------------------------------------------------------------


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def commit() -> str:
    """The short hash, with ``-dirty`` if the code is not as committed; '' outside a repository."""
    changed = _git("status", "--porcelain", "--", "mmattn", "tools", ":!tools/benchmarks/results")
    return _git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def date() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def version(package: str) -> str:
    """Of an installed package; '' if it is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def conditions(device: str) -> dict:
    """On what, with what, when and of what PyTorch code is measured."""
    import torch

    return {
        "hardware": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
        "date": date(),
        "commit": commit(),
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def file_name(what: str, device: str, about: Mapping) -> str:
    """A CSV file's name after its conditions, such as ops-cpu-amd-epyc-2threads-torch2.11.csv."""
    hardware = re.sub(r"[^a-z0-9]+", "-", about["hardware"].lower()).strip("-")
    threads = f"-{about['threads']}threads" if device == "cpu" else ""
    torch_version = ".".join(str(about["torch"]).split(".")[:2])
    return f"{what}-{device}-{hardware}{threads}-torch{torch_version}.csv"


# --- measures ------------------------------------------------------------------------------------


def synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def milliseconds(call: Callable[[], object], device: str) -> float:
    """Of one call by the clock on the wall, to the end of its work on the device."""
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    taken = 1e3 * (time.perf_counter() - start)
    del result  # giving pages back is not the call's work
    return taken


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    runs: int,
    device: str,
    at_most: Mapping[str, int] | None = None,
    flush: bool = False,
) -> dict[str, list[float]]:
    """Milliseconds of every call, each once a round, so that a busy moment hits them all.

    The order is drawn anew for each round, always the same ones: nobody always follows the same
    neighbour. The first round is a warm-up.

    On CUDA, the time is that between two events around the call, after a write of twice the second
    cache, which leaves it full of other data as the layers of a network do. The device is kept
    busy first for twice as long as Python takes to launch the call (:func:`host_milliseconds`; 50
    ms at most), so that it is launched as a whole before it starts, as in a training where Python
    is ahead.

    Args:
        calls: By name.
        runs: Rounds that count.
        device: ``'cpu'`` or ``'cuda'``.
        at_most: Rounds of those that are slow, steady and warm: fewer, without a warm-up.
        flush: On a CPU, too, fill the caches with other data before every call.
    """
    at_most = at_most or {}
    times = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0)
    measure = milliseconds
    if device == "cuda":
        measure = _Events()
    elif flush:
        measure = _flushed()
    for number in range(runs + 1):
        shuffle.shuffle(order)
        for name in order:
            if name in at_most and (number == 0 or len(times[name]) == at_most[name]):
                continue
            taken = measure(calls[name], device)
            if number:
                times[name].append(taken)
    return times


def _flushed() -> Callable[[Callable, str], float]:
    """:func:`milliseconds` with other data in the CPU's caches."""
    import torch

    other = torch.zeros(FLUSH_BYTES // 8, dtype=torch.int64)

    def measure(call, device):
        other.add_(1)  # reads, too: a plain write may bypass the caches
        return milliseconds(call, device)

    return measure


class _Events:
    """Milliseconds of a call by the device's own clock, with other data in its cache."""

    def __init__(self):
        import torch

        size = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 << 20
        self.flush = torch.empty(2 * size, dtype=torch.uint8, device="cuda")
        self.event = lambda: torch.cuda.Event(enable_timing=True)
        self.sleep = torch.cuda._sleep  # in cycles
        self.host: dict[int, float] = {}  # of each call
        self._between(lambda: self.sleep(2_000_000))
        self.cycles_per_ms = 20_000_000 / self._between(lambda: self.sleep(20_000_000))

    def _between(self, call) -> float:
        start, end = self.event(), self.event()
        start.record()
        result = call()
        end.record()
        synchronize("cuda")
        del result
        return start.elapsed_time(end)

    def __call__(self, call, device) -> float:
        if id(call) not in self.host:
            call()  # what is compiled is not launched every time
            self.host[id(call)] = host_milliseconds(call, runs=3)
        low, high = SLEEP_MS
        wanted = min(max(low, 2 * self.host[id(call)]), high)
        synchronize(device)
        self.sleep(int(wanted * self.cycles_per_ms))
        self.flush.zero_()
        return self._between(call)


def host_milliseconds(call: Callable[[], object], runs: int = 9) -> float:
    """Median time until a call returns to Python, while the device may still be at work."""
    times = []
    for _ in range(runs):
        synchronize("cuda")
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def percentile(values: list[float], percent: int) -> float:
    """By linear interpolation."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def peak_memory(call: Callable[[], object], device: str) -> float:
    """Bytes at most that a call took beside what was there; NaN where nobody counts them.

    On CUDA those of PyTorch's allocator, on a CPU those of the process: Linux only.
    """
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        return float("nan")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


class Copy:
    """A copy of one large tensor into another that is there already: no page is asked for."""

    def __init__(self, device: str):
        import torch

        self.device = device
        self.tensors = torch.ones(2, COPY_BYTES[device], dtype=torch.uint8, device=device)

    def bytes_per_second(self, runs: int = 7) -> list[float]:
        """Bytes read and written a second, once a run."""
        a, b = self.tensors
        (times,) = in_turns({"copy": lambda: b.copy_(a)}, runs, self.device).values()
        return [2 * a.nbytes / (1e-3 * taken) for taken in times]


# --- files and tables ----------------------------------------------------------------------------


def read(path: Path, **wanted: str | Iterable[str]) -> list[dict[str, str]]:
    """The rows of a CSV file whose columns have the wanted value, or one of several."""
    with Path(path).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    allowed = {k: {v} if isinstance(v, str) else set(v) for k, v in wanted.items()}
    if unknown := [k for k in allowed if rows and k not in rows[0]]:
        raise ValueError(f"{path} has no column {unknown[0]}; it has {', '.join(rows[0])}")
    return [row for row in rows if all(row[k] in v for k, v in allowed.items())]


def write(path: Path, rows: list[dict]) -> None:
    """All rows into a CSV file, which is there as a whole or as it was."""
    path = Path(path)
    columns = dict.fromkeys(key for row in rows for key in row)
    with tempfile.NamedTemporaryFile(
        "w", newline="", dir=path.resolve().parent, prefix=f".{path.name}-", delete=False
    ) as stream:
        try:
            writer = csv.DictWriter(stream, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
            stream.close()
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(stream.name, 0o666 & ~mask)
            os.replace(stream.name, path.resolve())
        except BaseException:
            os.unlink(stream.name)
            raise


def merged(old: list[dict], new: list[dict], columns: Iterable[str]) -> list[dict]:
    """Rows of a file and new ones, which replace all that are the same in these columns."""
    columns, there, here = tuple(columns), {}, {}
    for rows, groups in ((old, there), (new, here)):
        for row in rows:
            groups.setdefault(tuple(str(row.get(k)) for k in columns), []).append(row)
    return [row for group in (there | here).values() for row in group]


def digits(value: float, count: int) -> str:
    """A number with so many significant digits, and never without its whole part."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, count - 1 - math.floor(math.log10(abs(value))))}f}"


def markdown(header: list[str], rows: Iterable[Iterable[object]], numbers: int = 0) -> str:
    """A table; the last so many columns are numbers."""
    texts = len(header) - numbers
    lines = [header, ["---"] * texts + ["---:"] * numbers, *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
