"""Time and memory of the attention modules, by who computes their operators, into a CSV file.

    python tools/benchmarks/run.py --op sge --providers reference eager compile triton
    python tools/benchmarks/run.py --op all --device cuda --dtype float32 bfloat16
    python tools/benchmarks/run.py --table tools/benchmarks/results/ops-cpu-...csv

`--op` takes modules by name (SGE, sge, NonLocal, non_local, ...); `all` are those of which the
least traffic is known. The maps are those of a ResNet-50 for images of 800x1333 in a batch of two.
Providers:

    reference      the authors' formulation, which the others are compared with if it comes first
    eager          mmattn's PyTorch operators, for any device
    triton         the kernels, on CUDA
    auto           what a user gets who chooses nothing
    compile        torch.compile of the reference
    compile-eager  torch.compile of what eager computes

One that cannot run here is named and left out. Before anything is timed, the tests of the module
and its operator have to pass, and every provider has to give the values and gradients of the
reference in float64 on this very map, with random parameters and a random upstream gradient. If
not, nothing of the module is shown or written, and the exit status is 1. (In half precision the
reference's own error, which is that of the authors' formulation, is a column and no failure.)
The gradient of a maximum jumps where two channels are equal but for rounding: the map of such a
module is one on which the largest channel of every pixel is ahead by more than a 1e-5th.

Columns: `implementation` is who computed it, which may be `plain` (one PyTorch operator after the
other) for eager and auto on small maps. Milliseconds of a call, its parameters' gradients
included, as median, p20 and p80 of calls that took turns; `ratio` is the median over that of the
first provider. `first_call_ms` is the provider's first call of a case, before the check, with what
is compiled in it; a mode or map before it may have left its kernels. `peak_mib` is the most memory
that a call held beside x and dy, its results included. `least_maps` is the least traffic of the
operator, in maps read or written; `gb_per_s` is that traffic over the median, and `share_of_copy`
its share of what a large copy reads and writes a second, measured before and after, into a tensor
that is there already. (On a CPU the system gives a new tensor page by page, which costs more than
a pass: no call that returns a new map gets near the copy. A map that fits in the caches is read a
second time from there: a small one's share can be more than 1.) `error` is the largest relative
error of the result and of all gradients.

The rows of a case replace its earlier ones in the file; all others stay. The caches are full of
other data before every call. On CUDA, inputs are several and take turns, and the time is the
device's; `host_ms` is what Python takes to launch the call, which small maps may wait for.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import harness
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import mmattn.plugins
from mmattn.ops import _backend, _operator, use_backend

SHAPES = [(2, 256, 200, 334), (2, 512, 100, 167), (2, 1024, 50, 84), (2, 2048, 25, 42)]
MODES = ("forward", "forward+backward")
LAYOUTS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
# the backend of each, and whether it is compiled
PROVIDERS = {
    "reference": ("reference", False),
    "eager": ("eager", False),
    "triton": ("triton", False),
    "auto": ("auto", False),
    "compile": ("reference", True),
    "compile-eager": ("eager", True),
}
COMPILER = "inductor"

# Maps read or written at least, forward and backward, whatever the implementation: what follows
# from the data alone, if no map stays on chip between two passes over it.
LEAST = {
    "SE": (3, 4),  # x for the means, x, y; x and dy for the gate's gradient, dy, dx
    # x for q and its channels' covariance S, of which t has mean |q|^2 and variance q'Sq, x, y; x
    # and dy, dy, dx. mmattn reads x once more for the spread of t: S is (C/G)^2 sums that cancel
    "SGE": (3, 4),
    "GC": (3, 4),  # x for the context, x, y; dy for its sums, x, dy, dx (with 'mul': 3, 5)
    "GCT": (3, 5),  # x for the norms, x, y; x and dy for the gate's gradient, x, dy, dx
    "CBAM": (4, 6),  # x, x, x, y; x and dy, x, x and dy, dx
}
# A group of SGE's that fits on chip, with its dy in the backward pass, is read once.
LEAST_ON_CHIP = {"SGE": (2, 3)}
# Modules with a maximum over channels of what is rounded on the way, and by how much of itself
# the largest has to be ahead for all who round to agree on which it is.
MAXIMA, AHEAD = {"CBAM"}, 1e-5
# bytes: the shared memory of an SM of an H100; a core's second cache and a little of the third
ON_CHIP = {"cuda": 227 << 10, "cpu": 2 << 20}

# of the value or gradient's norm
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# what sums over all pixels rounds more often, and cancels
TOLERANCE_OF_PARAMETERS = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}


class WrongError(Exception):
    """What a provider computes is not what it should."""


class CannotRunError(Exception):
    """A provider does not work here; the text says why."""


# --- what is measured ----------------------------------------------------------------------------


def modules() -> dict[str, type]:
    """The plug-ins by name."""
    names = (name for name in mmattn.plugins.__all__ if name != "AttentionModule")
    return {name: getattr(mmattn.plugins, name) for name in names}


def module_name(text: str) -> str:
    """The plug-in that is meant by ``sge``, ``SGE``, ``non_local``, ...

    Raises:
        argparse.ArgumentTypeError: None is.
    """
    by_plain = {name.lower(): name for name in modules()}
    found = by_plain.get(text.lower().replace("_", ""))
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no module; there are {', '.join(modules())}, and all"
        )
    return found


def least_maps(op: str, shape: tuple, dtype: torch.dtype, mode: str, device: str) -> int | None:
    """Maps that are read or written at least; None where nobody worked it out."""
    if op not in LEAST:
        return None
    _, channels, height, width = shape
    group = channels // min(64, channels) * height * width * dtype.itemsize
    total = 0
    for part, tensors in ((0, 1), (1, 2))[: 2 if mode == "forward+backward" else 1]:
        on_chip = op in LEAST_ON_CHIP and tensors * group <= ON_CHIP[device]
        total += (LEAST_ON_CHIP if on_chip else LEAST)[op][part]
    return total


class Case:
    """A module with random parameters and its inputs: one shape, dtype, layout and mode.

    Args:
        op: Name of a plug-in.
        shape: (N, C, H, W).
        dtype: Of the map and the parameters.
        layout: One of ``LAYOUTS``.
        mode: One of ``MODES``.
        device: ``'cpu'`` or ``'cuda'``.
    """

    def __init__(self, op, shape, dtype, layout, mode, device):
        torch.manual_seed(0)
        self.op, self.shape, self.dtype = op, shape, dtype
        self.layout, self.mode, self.device = layout, mode, device
        self.backward = mode == "forward+backward"
        module = modules()[op](shape[1])
        with torch.no_grad():  # off their initial values, which hide mistakes
            for p in module.parameters():
                p += torch.randn_like(p) * max(p[0].numel(), 4) ** -0.5
        self.module = module.to(device, dtype).train(self.backward)
        self.inputs = [self._draw() for _ in range(self._sets())]
        if op in MAXIMA and self.backward:
            self._make_clear()
        self.turn = 0

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op} {_times(self.shape)} {dtype} {self.layout} {self.mode}"

    @property
    def map_bytes(self) -> int:
        return self.inputs[0][0].nbytes

    def _sets(self) -> int:
        """So many that they do not all lie in the second cache of a GPU."""
        if self.device != "cuda":
            return 1
        size = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 << 20
        one = 2 * torch.Size(self.shape).numel() * self.dtype.itemsize
        return min(8, 1 + 2 * size // max(one, 1))

    def _draw(self) -> tuple[Tensor, Tensor]:
        # some of it skewed, as activations are
        x, dy = (torch.randn(self.shape) for _ in range(2))
        make = dict(device=self.device, dtype=self.dtype, memory_format=LAYOUTS[self.layout])
        x = (x + 0.1).to(**make)
        return x.requires_grad_(self.backward), dy.to(**make)

    def _make_clear(self) -> None:
        """Raises the largest channel of each pixel of the first map where another is near it."""
        module, x = copy.deepcopy(self.module).double(), self.inputs[0][0].detach()
        for _ in range(5):  # what is raised moves the gates a little
            with use_backend("reference"), torch.no_grad(), _ChannelMaxima() as maxima:
                module(x.double())
            close = []
            for wide in maxima.of:
                top, channel = wide.max(1, keepdim=True)
                near = (wide >= top - AHEAD * top.abs()).sum(1, keepdim=True) > 1
                close.append(torch.zeros_like(wide, dtype=torch.bool).scatter_(1, channel, near))
            raised = torch.stack(close).any(0)
            if not raised.any():
                return
            x[raised] += x[raised].abs() / 16  # also in bfloat16
        raise WrongError(f"no map of {_times(self.shape)} was found whose maxima are clear")

    def call(self, function: Callable, backend: str, first: bool = False) -> list[Tensor]:
        """Returns y, or the gradients of x and of the parameters.

        Args:
            function: The module, or what a compiler made of it.
            backend: As for :func:`use_backend`.
            first: Return y and the gradients, of the first inputs.
        """
        x, dy = self.inputs[0 if first else self.turn % len(self.inputs)]
        self.turn += 1
        with use_backend(backend), torch.set_grad_enabled(self.backward):
            y = function(x)
            if not self.backward:
                return [y]
            gradients = torch.autograd.grad(y, [x, *self.module.parameters()], dy)
        return [y, *gradients] if first else gradients

    def expected(self) -> list[Tensor]:
        """The same as ``call(first=True)``, by the reference in float64."""
        other = copy.copy(self)
        other.module = copy.deepcopy(self.module).double()
        x, dy = (t.detach().double() for t in self.inputs[0])
        other.inputs = [(x.requires_grad_(self.backward), dy)]
        return [t.detach() for t in other.call(other.module, "reference", first=True)]

    def allowed(self, expected: list[Tensor]) -> list[float]:
        """How far each of what a provider computes may be from what is expected.

        In float32 up to ten times the tolerance if the reference's own rounding is a quarter of
        that: a few pixels through a BatchNorm are badly conditioned.
        """
        tolerances = [TOLERANCE[self.dtype]] * 2
        tolerances += [TOLERANCE_OF_PARAMETERS[self.dtype]] * (len(expected) - 2)
        tolerances = tolerances[: len(expected)]
        if self.dtype != torch.float32:
            return tolerances
        own = self.errors(self.call(self.module, "reference", first=True), expected)
        return [max(a, min(4 * b, 10 * a)) for a, b in zip(tolerances, own, strict=True)]

    def errors(self, found: list[Tensor], expected: list[Tensor]) -> list[float]:
        """Relative errors of y, and of the gradients of x and of every parameter."""
        scales = [_rms(b) for b in expected]
        # a gradient that is zero by the equation has the rounding of the others
        least = [1e-30] * 2 + [1e-2 * max(scales[2:], default=0)] * (len(scales) - 2)
        return [
            _rms(a.double() - b) / max(scale, floor, 1e-30)
            for a, b, scale, floor in zip(found, expected, scales, least)  # noqa: B905
        ]

    def check(self, found: list[Tensor], expected: list[Tensor], allowed=None) -> float:
        """The largest relative error.

        Args:
            found: What a provider computed.
            expected: What :meth:`expected` did.
            allowed: What :meth:`allowed` says; None allows any rounding.

        Raises:
            WrongError: One is larger than allowed, or of another shape or dtype.
        """
        names = ["y", "dx", *(f"gradient of {n}" for n, _ in self.module.named_parameters())]
        for name, a, b in zip(names, found, expected):  # noqa: B905
            if a.shape != b.shape or a.dtype != self.dtype:
                raise WrongError(
                    f"{name} is {tuple(a.shape)} in {a.dtype}, not {tuple(b.shape)} in {self.dtype}"
                )
        errors = self.errors(found, expected)
        for name, error, most in zip(names, errors, allowed or ()):  # noqa: B905
            if not error <= most:
                raise WrongError(
                    f"{name} differs from the reference in float64 by {error:.2g} (relative), "
                    f"where {most:.2g} is allowed"
                )
        return float("nan") if any(e != e for e in errors) else max(errors)


class _ChannelMaxima(TorchFunctionMode):
    """Collects the maps of which the maximum over channels is taken."""

    def __init__(self):
        super().__init__()
        self.of: list[Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.amax and args[1:] == (1,):
            self.of.append(args[0])
        return function(*args, **(kwargs or {}))


def _rms(t: Tensor) -> float:
    return t.square().mean().sqrt().item() if t.numel() else 0.0


def _times(shape: tuple) -> str:
    return "x".join(map(str, shape))


# --- who computes it -----------------------------------------------------------------------------


class Watch:
    """Who computes each operator within a block, and what is said about a fallback.

    Attributes:
        computed: (operator, implementation) of every call.
        said: Lines of the log.
    """

    def __init__(self):
        self.computed: list[tuple[str, str]] = []
        self.said: list[str] = []

    def __enter__(self) -> Watch:
        watch = self
        self._patches = contextlib.ExitStack()
        real_implementation = _operator.Operator.implementation
        real_select = _backend.select

        def implementation(self, *args, **kwargs):
            found = real_implementation(self, *args, **kwargs)
            watch.computed.append((self.name, found))
            return found

        def select(op, implementations):
            function = real_select(op, implementations)
            names = (name for name, one in implementations.items() if one is function)
            watch.computed.append((op, next(names)))
            return function

        enter = self._patches.enter_context
        enter(mock.patch.object(_operator.Operator, "implementation", implementation))
        enter(mock.patch.object(_backend, "_say_once", lambda _, line: watch.said.append(line)))
        for name, module in list(sys.modules.items()):
            if name.startswith("mmattn.") and getattr(module, "select", None) is real_select:
                enter(mock.patch.object(module, "select", select))
        return self

    def __exit__(self, *_) -> None:
        self._patches.close()


@functools.cache
def why_not(provider: str, device: str) -> str:
    """Why a provider cannot run on a device at all; '' if it can."""
    if provider == "triton" and device != "cuda":
        return "its kernels are for CUDA (Triton's interpreter is for tests)"
    if PROVIDERS[provider][1]:
        try:
            # a graph of its own, to find a missing compiler before a module is blamed
            torch.compile(lambda x: x.sin() + 1, backend=COMPILER)(torch.ones(64, device=device))
        except Exception as error:
            return f"torch.compile does not work here: {_first_line(error)}"
    return ""


def prepare(case: Case, provider: str) -> tuple[Callable, str, float, list[Tensor]]:
    """Makes the first call: (function, implementation, milliseconds, results).

    Raises:
        CannotRunError: It does not fit, or something else would take its place.
    """
    backend, compiled = PROVIDERS[provider]
    function, results = case.module, []

    def call():
        results[:] = case.call(function, backend, first=True)

    # a compiler cannot see through the watch
    with contextlib.nullcontext(Watch()) if compiled else Watch() as watch:
        try:
            if compiled:
                torch._dynamo.reset()
                # in one graph, or not at all
                function = torch.compile(case.module, backend=COMPILER, fullgraph=True)
            taken = harness.milliseconds(call, case.device)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise CannotRunError(f"out of memory: {_first_line(error)}") from None
        except Exception as error:
            if "can't allocate memory" in str(error):  # PyTorch's own, on a CPU
                raise CannotRunError(f"out of memory: {_first_line(error)}") from None
            if compiled:  # not the fault of what it compiles
                raise CannotRunError(f"torch.compile fails: {_first_line(error)}") from error
            raise
    if not compiled and not watch.computed and provider != "reference":
        raise CannotRunError("it calls no operator that has implementations to choose from")
    if backend in ("eager", "triton") and watch.said:
        raise CannotRunError(watch.said[0])
    if backend == "triton" and (other := [f"{o}: {i}" for o, i in watch.computed if i != "triton"]):
        raise CannotRunError(f"other implementations would take its place ({other[0]})")
    who = "+".join(dict.fromkeys(who for _, who in watch.computed))
    return function, who, taken, results


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    # a compiler's ends with a colon before it says what happened
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- measuring -----------------------------------------------------------------------------------


def measure(case: Case, providers: list[str], runs: int, bandwidth: harness.Copy) -> list[dict]:
    """Checks every provider, then times those that work here; one row each.

    Raises:
        WrongError: A provider fails, or is wrong.
    """
    prepared, functions, facts = {}, {}, {}
    for provider in providers:  # all first calls, before the check makes any
        progress(f"checking {case.name}, {provider}")
        try:
            prepared[provider] = prepare(case, provider)
        except CannotRunError as reason:
            print(f"{case.name}: {provider} is left out: {reason}", flush=True)
        except Exception as broken:
            raise WrongError(f"{case.name}, {provider}: {_first_line(broken)}") from broken
    if not prepared:
        return []
    expected = case.expected()
    allowed = case.allowed(expected)
    for provider in list(prepared):
        function, who, first, found = prepared.pop(provider)
        # half precision is not what the authors' formulation was made for
        lenient = PROVIDERS[provider][0] == "reference" and case.dtype != torch.float32
        try:
            error = case.check(found, expected, None if lenient else allowed)
        except WrongError as wrong:
            raise WrongError(f"{case.name}, {provider}: {wrong}") from None
        functions[provider] = functools.partial(case.call, function, PROVIDERS[provider][0])
        facts[provider] = {
            "implementation": who,
            "first_call_ms": harness.digits(first, 4),
            "error": f"{error:.1e}",
        }
    del expected, found
    progress(f"timing {case.name}: {', '.join(functions)}")
    copies = bandwidth.bytes_per_second()
    times = harness.in_turns(functions, runs, case.device, flush=True)
    copies += bandwidth.bytes_per_second()
    copied = statistics.median(copies)
    memory = {
        name: statistics.median(harness.peak_memory(call, case.device) for _ in range(3))
        for name, call in functions.items()
    }
    for name, call in functions.items() if case.device == "cuda" else ():
        facts[name]["host_ms"] = harness.digits(harness.host_milliseconds(call), 4)
    against = next(iter(functions))
    least = least_maps(case.op, case.shape, case.dtype, case.mode, case.device)
    rows = []
    for name, taken in times.items():
        median = statistics.median(taken)
        speed = None if least is None else least * case.map_bytes / (1e-3 * median)
        rows.append(
            {
                "op": case.op,
                "shape": _times(case.shape),
                "dtype": str(case.dtype).removeprefix("torch."),
                "layout": case.layout,
                "mode": case.mode,
                "provider": name,
                "implementation": facts[name]["implementation"],
                "median_ms": harness.digits(median, 4),
                "p20_ms": harness.digits(harness.percentile(taken, 20), 4),
                "p80_ms": harness.digits(harness.percentile(taken, 80), 4),
                "runs": runs,
                "against": against,
                "ratio": f"{median / statistics.median(times[against]):.3f}",
                "host_ms": facts[name].get("host_ms", ""),
                "first_call_ms": facts[name]["first_call_ms"],
                "peak_mib": "" if memory[name] != memory[name] else f"{memory[name] / 2**20:.1f}",
                "map_mib": harness.digits(case.map_bytes / 2**20, 4),
                "least_maps": "" if least is None else least,
                "gb_per_s": "" if speed is None else f"{speed / 1e9:.2f}",
                "copy_gb_per_s": f"{copied / 1e9:.2f}",
                "share_of_copy": "" if speed is None else f"{speed / copied:.3f}",
                "error": facts[name]["error"],
            }
        )
    return rows


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


TESTS = ("tests/ops", "tests/plugins")
# what tests the kernels that operators share
SHARED_TESTS = {"SE": ("test_channel_passes",), "GCT": ("test_channel_passes",)}
# of everything collected, what names the module or its operator
_RUN_TESTS = """
import re, sys, pytest
class Only:
    def pytest_collection_modifyitems(self, items):
        word = re.compile(sys.argv[1], re.I)
        items[:] = [x for x in items if word.search(x.nodeid)]
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *sys.argv[2:]], plugins=[Only()]))
"""


@functools.cache
def tests_of(op: str) -> str:
    """``'passed'``, or ``'not run'`` and why.

    Raises:
        WrongError: One failed.
    """
    folders = [folder for folder in TESTS if (harness.ROOT / folder).is_dir()]
    if not folders:
        return "not run (they are not there)"
    if not harness.version("pytest"):
        return "not run (pytest is not installed)"
    snake = "".join("_" * (a.islower() and b.isupper()) + b for a, b in zip(" " + op, op))  # noqa: B905
    names = "|".join([op.lower(), snake.lower(), *SHARED_TESTS.get(op, ())])
    word = rf"(?<![a-z])({names})(?![a-z])"
    progress(f"running the tests of {op}")
    done = subprocess.run(
        [sys.executable, "-c", _RUN_TESTS, word, *folders],
        cwd=harness.ROOT,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "MMATTN_BACKEND"} | {"COLUMNS": "200"},
    )
    if done.returncode == 5:
        return "not run (there are none)"
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        failed = [x for x in lines if x.startswith(("FAILED", "ERROR"))]
        raise WrongError(f"the tests of {op} fail: {(failed or lines[-1:] or ['?'])[0]}")
    if not re.search(r"\b[1-9]\d* passed", done.stdout):
        return "not run (all are skipped here)"
    return "passed"


# --- files and tables ----------------------------------------------------------------------------

CASE = ("op", "shape", "dtype", "layout", "mode")


def table(path: Path, **wanted) -> str:
    """The file as Markdown, or its rows with the wanted values; see :func:`harness.read`."""
    rows = harness.read(path, **wanted)
    return _tables(rows) if rows else f"{Path(path).name} has no such rows."


def _tables(rows: list[dict]) -> str:
    """A table for each dtype, layout and mode, with a line for each provider of a case."""
    text = [_conditions(rows)]
    for dtype, layout, mode in dict.fromkeys((r["dtype"], r["layout"], r["mode"]) for r in rows):
        chosen = [r for r in rows if (r["dtype"], r["layout"], r["mode"]) == (dtype, layout, mode)]
        cases: dict[tuple, dict] = {}
        for row in chosen:
            cases.setdefault((row["op"], row["shape"]), {})[row["provider"]] = row
        used = {row["provider"] for row in chosen}
        names = [p for p in PROVIDERS if p in used]
        text += [f"**{dtype}, {layout}, {mode}**", _table(cases, names)]
    return "\n\n".join(text)


def _conditions(rows: list[dict]) -> str:
    def each(column: str) -> str:
        return ", ".join(dict.fromkeys(str(row[column] or "unknown") for row in rows))

    copies = sorted(float(row["copy_gb_per_s"]) for row in rows)
    triton = f", Triton {each('triton')}" if any(row["triton"] for row in rows) else ""
    against = {row["against"] for row in rows}
    ratio = f"Ratios are against {against.pop()}. " if len(against) == 1 else ""
    untested = [f"{r['op']}: {r['tests']}" for r in rows if r.get("tests", "passed") != "passed"]
    tests = f" Tests of {', '.join(dict.fromkeys(untested))}." if untested else ""
    brackets = ""
    if any(row.get("implementation") not in (None, "", row["provider"]) for row in rows):
        brackets = " In brackets behind a provider: who computed it in its place or on its behalf."
    return (
        f"{each('hardware')}, {each('threads')} CPU threads, PyTorch {each('torch')}{triton}, "
        f"Python {each('python')}; {each('date')}, commit {each('commit')}. {ratio}"
        f"The copy: {_span(copies)} GB/s, read and written.{brackets}{tests}"
    )


def _span(values: list[float]) -> str:
    low, high = (harness.digits(value, 3) for value in (values[0], values[-1]))
    return low if low == high else f"{low} to {high}"


def _table(cases: dict, names: list[str]) -> str:
    header = ["op, map", "provider", "median (p20-p80)", "ratio", "GB/s", "of the copy"]
    header += ["peak memory", "first call"]
    launched = any(row.get("host_ms") for found in cases.values() for row in found.values())
    header += ["launch"] * launched
    lines = []
    for (op, shape), found in cases.items():
        size = f"{harness.digits(float(next(iter(found.values()))['map_mib']), 3)} MiB"
        for name in names:
            cells = _cells(found[name]) if name in found else [name, "not run", *[""] * 6]
            lines.append([f"{op}, {shape}, {size}", *cells][: len(header)])
    return harness.markdown(header, lines, numbers=len(header) - 2)


def _cells(row: dict) -> list[str]:
    """Provider, time, ratio, speed, share, memory, first call and launch."""
    provider, who = row["provider"], row.get("implementation")
    ms, low, high = (harness.digits(float(row[f"{k}_ms"]), 3) for k in ("median", "p20", "p80"))
    return [
        provider if who in (None, "", provider) else f"{provider} ({who})",
        f"{ms} ms ({low}-{high})",
        f"{float(row['ratio']):.2f}",
        harness.digits(float(row["gb_per_s"]), 3) if row["gb_per_s"] else "",
        f"{100 * float(row['share_of_copy']):.0f} %" if row["share_of_copy"] else "",
        f"{float(row['peak_mib']):.0f} MiB" if row["peak_mib"] else "?",
        f"{harness.digits(float(row['first_call_ms']), 3)} ms",
        f"{row['host_ms']} ms" if row.get("host_ms") else "",
    ]


# --- the command line ----------------------------------------------------------------------------


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split("x"))
    except ValueError:
        shape = ()
    if len(shape) != 4 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected NxCxHxW, such as 2x256x200x334, got {text!r}")
    return shape


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of 1 or more, got {text!r}")
    return int(text)


def _op(text: str) -> str:
    return "all" if text == "all" else module_name(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = dict(nargs="+", metavar="NAME")
    parser.add_argument("--op", **several, type=_op, help="modules, or all")
    parser.add_argument(
        "--providers",
        **several,
        choices=PROVIDERS,
        default=["reference", "eager", "compile", "triton"],
        help=f"of {', '.join(PROVIDERS)}; default: reference eager compile triton",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    dtypes = [str(d).removeprefix("torch.") for d in TOLERANCE]
    parser.add_argument(
        "--dtype", **several, choices=dtypes, default=["float32"], help=f"of {', '.join(dtypes)}"
    )
    parser.add_argument(
        "--layout", **several, choices=LAYOUTS, default=["contiguous"], help=" or ".join(LAYOUTS)
    )
    parser.add_argument(
        "--mode", **several, choices=MODES, default=list(MODES), help=f"{' or '.join(MODES)}; both"
    )
    shapes = " ".join(map(_times, SHAPES))
    parser.add_argument(
        "--shapes", nargs="+", type=_shape, default=SHAPES, metavar="NxCxHxW", help=shapes
    )
    parser.add_argument("--threads", type=_positive, help="CPU threads; default: PyTorch's")
    parser.add_argument("--runs", type=_positive, help="timed calls; default 15, on CUDA 100")
    parser.add_argument(
        "--out", type=Path, default=harness.RESULTS, help="folder of the CSV; default: results/"
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="print it, measure nothing")
    args = parser.parse_args(arguments)
    if args.table is None and not args.op:
        parser.error("--op is missing: what is to be measured?")
    if args.table is not None and not args.table.is_file():
        parser.error(f"--table: there is no file {args.table}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device")
    if not args.out.is_dir():
        args.out.mkdir(parents=True)
    if args.op and "all" in args.op:
        args.op = list(LEAST)
    for op in args.op or ():
        for shape in args.shapes:
            try:
                with torch.device("meta"):
                    modules()[op](shape[1])
            except ValueError as error:
                parser.error(f"--shapes {_times(shape)}: {error}")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.table is not None:
        try:
            print(table(args.table))
        except KeyError as missing:
            print(
                f"--table {args.table}: no file of this tool, no column {missing}", file=sys.stderr
            )
            return 2
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        # nothing compiled at first
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            os.environ[name] = str(Path(scratch) / name)
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Measures every module; returns the exit status."""
    about = harness.conditions(args.device)
    path = args.out / harness.file_name("ops", args.device, about)
    runs = args.runs or (100 if args.device == "cuda" else 15)
    providers = []
    for provider in dict.fromkeys(args.providers):
        if reason := why_not(provider, args.device):
            print(f"{provider} is left out: {reason}", flush=True)
        else:
            providers.append(provider)
    if not providers:
        print("nothing to measure: no provider can run here", file=sys.stderr)
        return 1
    bandwidth = harness.Copy(args.device)
    failed = False
    for op in dict.fromkeys(args.op):
        rows = []
        try:
            tested = tests_of(op)
            if tested != "passed":
                print(f"{op}: its tests were {tested}", flush=True)
            for dtype in args.dtype:
                for layout in args.layout:
                    for shape in args.shapes:
                        for mode in args.mode:
                            case = Case(op, shape, getattr(torch, dtype), layout, mode, args.device)
                            rows += measure(case, providers, runs, bandwidth)
        except WrongError as wrong:
            print(f"{wrong}\n{op} is left out", file=sys.stderr, flush=True)
            failed = True
            continue
        if not rows:
            print(f"{op}: none of {', '.join(args.providers)} can run here", file=sys.stderr)
            failed = True
            continue
        rows = [{**row, "tests": tested, **about} for row in rows]
        earlier = harness.read(path) if path.exists() else []
        harness.write(path, harness.merged(earlier, rows, CASE))
        print(f"\n{_tables(rows)}\n", flush=True)
    if path.exists():
        progress(f"written: {path}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
