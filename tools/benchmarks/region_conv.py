"""Speed and memory of the region-wise convolution beside the plain one, into a CSV file.

    python tools/benchmarks/region_conv.py out.csv [--device cuda] [--regions 8] [--runs 7]

Shapes are those of conv2 in a ResNet-50 and of the 1x1 convolutions in a ShuffleNetV2 1.0x, for
images of 800x1333, batch 2. Every implementation is compared with the reference before it is
timed, and all of one row take turns, so that a busy moment hits them all.

Columns: median of the runs in ms, its ratio to the plain convolution, and the peak memory of
one call in MiB, its input, output and gradients included. `floor_ms` is the plain convolution's
time and that of reading (and, backward, writing) the filters of every sample once, at the rate of
a large copy.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from pathlib import Path

import harness
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


def measure_memory(case, name, mode, device) -> float:
    """Peak MiB of one call and its inputs."""
    peak = harness.peak_memory(lambda: case.call(name, mode), device)
    return (peak + case.input_bytes(name, mode)) / 2**20


def rows(args):
    """One dict for each implementation of each case."""
    device = args.device
    about = harness.conditions(device)
    environment = {key: about[key] for key in ("hardware", "threads", "torch")}
    environment["torchvision"] = torchvision.__version__
    environment |= {key: about[key] for key in ("python", "date", "commit")}
    speed = statistics.median(harness.Copy(device).bytes_per_second())
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
                        calls = {n: functools.partial(case.call, n, mode) for n in names}
                        # the reference is slow, steady, and warmed up by the comparison
                        times = harness.in_turns(calls, args.runs, device, {REFERENCE: 2})
                        times = {n: statistics.median(taken) for n, taken in times.items()}
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


def table(path: Path, **wanted) -> str:
    """The file's wanted rows, see :func:`harness.read`: times against plain, and memory."""
    found = harness.read(path, **wanted)
    if not found:
        return f"{Path(path).name} has no such rows."
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
        header = ["map", "m", "regions", "plain", "floor", *used, "memory: plain", *used]
        lines = []
        for (channels, height, width, kernel, m, kind), case in chosen.items():
            plain = case[PLAIN]
            floor = float(case[EAGER]["floor_ms"]) / float(plain["median_ms"])
            lines.append(
                [
                    f"{channels} ch {height}x{width}, {kernel}x{kernel}",
                    *(m, kind, f"{float(plain['median_ms']):.1f} ms", f"{floor:.2f} x"),
                    *(f"{case[n]['ratio']} x" if n in case else "" for n in used),
                    f"{float(plain['peak_mib']):.0f} MiB",
                    *(f"{float(case[n]['peak_mib']):.0f}" if n in case else "" for n in used),
                ]
            )
        text += [f"\n**{dtype}, {mode}**\n", harness.markdown(header, lines)]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path, help="the file to write, or with --table to read")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--regions", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument(
        "--runs", type=int, default=7, help="timed calls of each, 2 of the reference; default 7"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's")
    parser.add_argument("--table", action="store_true", help="print the file, measure nothing")
    args = parser.parse_args()
    if args.table:
        print(table(args.csv, m=map(str, args.regions)))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device")
    written = []
    for row in rows(args):
        written.append(row)
        harness.write(args.csv, written)
        print(
            f"{row['dtype']:8} {row['channels']:>3} {row['height']:>3}x{row['width']:<3} "
            f"k{row['kernel']} m{row['m']:<2} {row['regions']:6} {row['mode']:22} "
            f"{row['implementation']:12} {row['median_ms']:>9} ms  {row['ratio']:>5} x  "
            f"{row['peak_mib']:>7} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
