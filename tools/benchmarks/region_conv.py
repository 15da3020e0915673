"""Speed and memory of the region-wise convolution beside the plain one, into a CSV file.

    python tools/benchmarks/region_conv.py out.csv [--device cuda] [--regions 8] [--runs 7]

Shapes are those of conv2 in a ResNet-50 and of the 1x1 convolutions in a ShuffleNetV2 1.0x, for
images of 800x1333, batch 2. Every implementation is compared with the reference before it is
timed, and all of one row take turns, so that a busy moment hits them all.

Columns: median of the runs in ms, its ratio to the plain convolution, and the peak memory of
one call in MiB, its input, output and gradients included. `floor_ms` is the plain convolution's
time and that of reading (and, backward, writing) the filters of every sample once.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import platform
import statistics
import time
from pathlib import Path

import torch
import torchvision
from torch.nn import functional as F

from mmattn.ops import region_conv2d, use_backend

# channels, height, width, kernel
SHAPES = [
    (128, 100, 167, 3),
    (256, 50, 84, 3),
    (512, 25, 42, 3),
    (58, 100, 167, 1),
    (116, 50, 84, 1),
    (232, 25, 42, 1),
]
BATCH = 2
MODES = ("forward", "forward+backward", "forward+backward+guide")
PLAIN, REFERENCE, EAGER, TOP2, TRITON = "plain", "reference", "eager", "eager, top 2", "triton"


def region_map(kind: str, m: int, height: int, width: int) -> torch.Tensor:
    """Scores (N, m, H, W): smooth blobs of a fifth of the map, or noise."""
    size = (5, 8) if kind == "smooth" else (height, width)
    return F.interpolate(torch.randn(BATCH, m, *size), (height, width), mode="bicubic")


class Case:
    """One shape, number of regions, map and dtype: a call of every implementation."""

    def __init__(self, shape, m, kind, dtype, device):
        channels, height, width, kernel = shape
        self.padding = kernel // 2
        make = dict(device=device, dtype=dtype)
        self.x = torch.randn(BATCH, channels, height, width).to(**make).requires_grad_()
        size = (channels, channels, kernel, kernel)
        scale = (channels * kernel**2) ** -0.5
        self.weight = (scale * torch.randn(size)).to(**make).requires_grad_()
        self.filters = (scale * torch.randn(BATCH, m, *size)).to(**make).requires_grad_()
        self.guide = region_map(kind, m, height, width).to(**make).requires_grad_()
        self.region = self.guide.detach().argmax(1)
        self.dy = torch.randn(self.x.shape).to(**make)
        self.inputs = [self.x, self.weight, self.filters, self.guide]

    def call(self, implementation: str, mode: str):
        """Returns y, or the gradients."""
        with torch.set_grad_enabled(mode != "forward"):
            if implementation == PLAIN:
                y, wanted = F.conv2d(self.x, self.weight, padding=self.padding), [self.weight]
            else:
                guided = mode.endswith("guide")
                with use_backend(implementation.partition(",")[0]):
                    y = region_conv2d(
                        self.x,
                        self.filters,
                        self.region,
                        padding=self.padding,
                        guide=self.guide if guided else None,
                        candidates=2 if implementation == TOP2 else None,
                    )
                wanted = [self.filters, self.guide] if guided else [self.filters]
            if mode == "forward":
                return [y]
            return torch.autograd.grad(y, [self.x, *wanted], self.dy)

    def input_bytes(self, implementation: str, mode: str) -> int:
        """What a call reads, of the tensors that were there before."""
        used = [self.x, self.weight if implementation == PLAIN else self.filters]
        used += [self.dy] if mode != "forward" else []
        return sum(t.numel() * t.element_size() for t in used)


def check(case: Case, implementations, mode: str) -> None:
    """Raises unless all agree with the reference."""
    expected = case.call(REFERENCE, mode)
    tolerance = 1e-4 if case.x.dtype == torch.float32 else 5e-2
    for name in implementations:
        if name in (PLAIN, TOP2, REFERENCE):
            continue
        for a, b in zip(case.call(name, mode), expected, strict=True):
            error = ((a - b).double().norm() / b.double().norm()).item()
            if not error < tolerance:
                raise SystemExit(f"{name} differs from the reference by {error:.3g}: not timed")


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_time(case, implementations, mode, device, runs) -> dict[str, float]:
    """Median milliseconds of each, taken in turns."""
    times = {name: [] for name in implementations}
    for i in range(runs + 1):
        for name, taken in times.items():
            if name == REFERENCE and (i == 0 or len(taken) == 2):
                continue  # slow, steady, and warmed up by the comparison
            synchronize(device)
            start = time.perf_counter()
            case.call(name, mode)
            synchronize(device)
            if i:  # the first is a warm-up
                taken.append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(taken) for name, taken in times.items()}


def measure_memory(case, name, mode, device) -> float:
    """Peak MiB of one call and its inputs."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case.call(name, mode)
        peak = torch.cuda.max_memory_allocated() - before
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        case.call(name, mode)
        peak = _status("VmHWM") - before
    return (peak + case.input_bytes(name, mode)) / 2**20


def _status(key: str) -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def bandwidth(device: str) -> float:
    """Bytes a second that a copy reads and writes."""
    a = torch.zeros(64 << 20, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    times = []
    for _ in range(9):
        synchronize(device)
        start = time.perf_counter()
        b.copy_(a)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * a.numel() / statistics.median(times)


def rows(args):
    """One dict for each implementation of each case."""
    device = args.device
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    environment = {
        "hardware": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
    speed = bandwidth(device)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            for m in args.regions:
                for kind in ("smooth", "noise"):
                    torch.manual_seed(0)
                    case = Case(shape, m, kind, dtype, device)
                    # the work of the reference, and of the guide, is the same for any map
                    whole = kind == "smooth" or m == 8
                    for mode in MODES if whole else MODES[:2]:
                        names = [PLAIN, REFERENCE, EAGER] if whole else [PLAIN, EAGER]
                        names += [TOP2] if mode.endswith("guide") and m > 2 else []
                        names += [TRITON] if device == "cuda" else []
                        check(case, names, mode)
                        times = measure_time(case, names, mode, device, args.runs)
                        memory = {n: measure_memory(case, n, mode, device) for n in names}
                        filters = case.filters.numel() * case.filters.element_size()
                        traffic = filters - filters / (BATCH * m)
                        traffic *= 1 if mode == "forward" else 3  # read twice, written once
                        floor = times[PLAIN] + 1e3 * traffic / speed
                        for n in names:
                            yield {
                                **environment,
                                "dtype": str(dtype).removeprefix("torch."),
                                "channels": shape[0],
                                "height": shape[1],
                                "width": shape[2],
                                "kernel": shape[3],
                                "batch": BATCH,
                                "m": m,
                                "regions": kind,
                                "mode": mode,
                                "implementation": n,
                                "median_ms": f"{times[n]:.2f}",
                                "ratio": f"{times[n] / times[PLAIN]:.2f}",
                                "floor_ms": f"{times[PLAIN] if n == PLAIN else floor:.2f}",
                                "gflop": f"{_operations(shape, mode):.2f}",
                                "peak_mib": f"{memory[n]:.1f}",
                                "filters_mib": f"{filters / 2**20:.1f}",
                            }


def _operations(shape, mode) -> float:
    channels, height, width, kernel = shape
    once = 2 * BATCH * height * width * channels**2 * kernel**2 / 1e9
    return once if mode == "forward" else 3 * once


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def tables(path: Path, regions: list[int]) -> str:
    """The file's rows of so many regions as Markdown: times against plain, and memory."""
    with path.open(newline="") as stream:
        found = [row for row in csv.DictReader(stream) if int(row["m"]) in regions]
    first = found[0]
    text = [
        f"{first['hardware']}, {first['threads']} threads, PyTorch {first['torch']}, "
        f"Python {first['python']}, batch {first['batch']}."
    ]
    cases: dict[tuple, dict] = {}
    for row in found:
        key = tuple(row[k] for k in ("dtype", "mode", "channels", "height", "width", "kernel"))
        cases.setdefault((*key, row["m"], row["regions"]), {})[row["implementation"]] = row
    names = [n for n in (REFERENCE, EAGER, TOP2, TRITON) if any(n in c for c in cases.values())]
    for dtype, mode in dict.fromkeys(key[:2] for key in cases):
        chosen = {k[2:]: c for k, c in cases.items() if k[:2] == (dtype, mode)}
        used = [n for n in names if any(n in c for c in chosen.values())]
        text += [
            f"\n**{dtype}, {mode}**\n",
            f"| map | m | regions | plain | floor | {' | '.join(used)} | memory: plain | "
            f"{' | '.join(used)} |",
            "| --- " * (6 + 2 * len(used)) + "|",
        ]
        for (channels, height, width, kernel, m, kind), case in chosen.items():
            plain = case[PLAIN]
            floor = float(case[EAGER]["floor_ms"]) / float(plain["median_ms"])
            text.append(
                f"| {channels} ch {height}x{width}, {kernel}x{kernel} | {m} | {kind} | "
                f"{float(plain['median_ms']):.1f} ms | {floor:.2f} x | "
                + " | ".join(f"{case[n]['ratio']} x" if n in case else "" for n in used)
                + f" | {float(plain['peak_mib']):.0f} MiB | "
                + " | ".join(f"{float(case[n]['peak_mib']):.0f}" if n in case else "" for n in used)
                + " |"
            )
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", help="the file to write, or with --table to read")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--regions", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument(
        "--runs", type=int, default=7, help="timed calls of each, 2 of the reference; default 7"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's")
    parser.add_argument("--table", action="store_true", help="print the file, measure nothing")
    args = parser.parse_args()
    if args.table:
        print(tables(Path(args.csv), args.regions))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device")
    path = Path(args.csv)
    with path.open("w", newline="") as stream:
        writer = None
        for row in rows(args):
            if writer is None:
                writer = csv.DictWriter(stream, row)
                writer.writeheader()
            writer.writerow(row)
            stream.flush()
            print(
                f"{row['dtype']:8} {row['channels']:>3} {row['height']:>3}x{row['width']:<3} "
                f"k{row['kernel']} m{row['m']:<2} {row['regions']:6} {row['mode']:22} "
                f"{row['implementation']:12} {row['median_ms']:>9} ms  {row['ratio']:>5} x  "
                f"{row['peak_mib']:>7} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
