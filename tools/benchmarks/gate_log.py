"""What mmattn.GateLogHook costs a training step, into a CSV file.

    python tools/benchmarks/gate_log.py [--device cuda] [--threads 2]
    python tools/benchmarks/gate_log.py --table tools/benchmarks/results/gate_log-....csv

By default four detectors: mmdet's Faster R-CNN R50 FPN with SGE in every block, and the Faster
R-CNN of the demo, a quarter as wide, with SE, SGE or GCT. A step is what a training does with a
batch: pre-processing, forward pass, losses, backward pass, the config's optimizer. There is no data
loader, which would only make the shares smaller. Scalars are written as in a training, to the local
file and, where it is installed, to TensorBoard. Every step is the same: the learning rate is 0 and
the samplers of boxes start from one seed.

Two measurements, on one model, in one run:

listening   One iteration in which the hook listens (interval=1) against one without the hook. The
            two take turns in an order that is drawn anew for each round. ``extra_ms`` is the median
            over the rounds of the difference within a round, with p20 and p80, ``extra_percent``
            that over the median without the hook. Any interval follows: ``average_percent`` is
            ``extra_percent`` over ``interval``.
blocks      As many iterations as ``interval``, with the hook as a user has it, against as many
            without, one after the other, the first of the two in turns. ``block_ratio`` is the
            median of the ratios of neighbours, beside the lowest and the highest. This is the
            direct measurement, and as noisy as the machine.

All times are by the clock on the wall, to the end of the device's work. ``scalars`` is how many
curves the hook writes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path

import detector
import harness

import mmattn  # noqa: F401  before mmdet, for an mmcv without compiled operators
from mmattn.inspection import config_file, preflight
from mmattn.inspection._console import PreflightError, say, warn

DEMO = "mmattn::demo/faster-rcnn_r50w16_fpn_600it_shapes.py"
KEY = ("config", "module", "height", "width", "batch", "interval")


@dataclass(frozen=True)
class Case:
    """A detector and what it gets."""

    config: str
    module: str
    size: tuple[int, int]
    batch: int


CASES = {
    "r50-sge": Case(detector.CONFIG, "sge", (256, 320), 1),
    "demo-se": Case(DEMO, "se", (256, 256), 2),
    "demo-sge": Case(DEMO, "sge:groups=16", (256, 256), 2),
    "demo-gct": Case(DEMO, "gct@paper", (256, 256), 2),
}


class Training:
    """Steps of one detector, with and without the hook."""

    def __init__(self, case: Case, device: str, folder: str):
        from mmengine.logging import MMLogger
        from mmengine.visualization import Visualizer

        base = config_file.load(case.config)
        detector._without_download(base)
        self.label, cfg = detector.insert(base, case.module)
        asked = types.SimpleNamespace(device=device, size=case.size, batch=case.batch)
        self.detector = detector.Detector(detector.Subject(self.label, cfg), asked)
        self.detector.standardize()
        self.detector.ready(detector.TRAIN, "off")
        if problem := self.detector.check():
            raise PreflightError(f"{self.label}: {problem}")
        self.device, self.scalars = device, 0
        backends = [dict(type="LocalVisBackend")]
        if harness.version("tensorboard"):
            backends.append(dict(type="TensorboardVisBackend"))
        visualizer = Visualizer(vis_backends=backends, save_dir=folder)
        self.runner = types.SimpleNamespace(
            model=self.detector.model, hooks=[], iter=0, max_iters=10**9,
            visualizer=types.SimpleNamespace(add_scalars=self._write, close=visualizer.close),
            logger=MMLogger.get_current_instance(),
        )  # fmt: skip
        self._visualizer = visualizer

    def _write(self, scalars: dict, step: int) -> None:
        self.scalars = len(scalars) - 1  # beside the iteration
        self._visualizer.add_scalars(scalars, step=step)

    def hook(self, interval: int):
        """A hook of its own, ready."""
        from mmattn.hooks import GateLogHook

        made = GateLogHook(interval=interval)
        made.before_train(self.runner)
        return made

    def step(self, hook=None) -> None:
        """One iteration, to the end of the device's work."""
        if hook is not None:
            hook.before_train_iter(self.runner, self.runner.iter)
        self.detector.step()
        if hook is not None:
            hook.after_train_iter(self.runner, self.runner.iter)
            self.runner.iter += 1
        harness.synchronize(self.device)


def measure(case: Case, args) -> dict:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        warn(f"building {case.module} in {case.config}")
        training = Training(case, args.device, folder)
        every, rare = training.hook(1), training.hook(args.interval)
        warn(f"{training.label}: one iteration each, {args.rounds} rounds")
        steps = {"without": training.step, "listening": lambda: training.step(every)}
        # a step ends with its device's work: the clock on the wall is right everywhere
        times = harness.in_turns(steps, args.rounds, "cpu")
        ratios = []
        for number in range(args.blocks):
            warn(f"{training.label}: {args.interval} iterations each, {number + 1}/{args.blocks}")
            training.runner.iter = 0
            calls = {"without": None, "with": rare}
            order = list(calls.items())[:: 1 if number % 2 == 0 else -1]
            taken = {
                name: harness.milliseconds(
                    lambda hook=hook: [training.step(hook) for _ in range(args.interval)], "cpu"
                )
                for name, hook in order
            }
            ratios.append(taken["with"] / taken["without"])
        training.runner.visualizer.close()
    return row(case, args, training, times, ratios)


def row(case: Case, args, training: Training, times: dict, ratios: list[float]) -> dict:
    """What is written of one detector."""
    without, listening = times["without"], times["listening"]
    extra = [a - b for a, b in zip(listening, without, strict=True)]
    median, more = statistics.median(without), statistics.median(extra)
    spread = [harness.percentile(extra, percent) for percent in (20, 80)]
    percent = 100 * more / median
    return {
        **harness.conditions(args.device),
        **detector._stack(),
        "device": args.device,
        "config": case.config,
        "module": training.label,
        "modules": len(training.detector.inserted),
        "scalars": training.scalars,
        "height": case.size[0],
        "width": case.size[1],
        "batch": case.batch,
        "interval": args.interval,
        "rounds": args.rounds,
        "median_ms": f"{median:.3f}",
        "listening_ms": f"{statistics.median(listening):.3f}",
        "extra_ms": f"{more:.3f}",
        "extra_p20_ms": f"{spread[0]:.3f}",
        "extra_p80_ms": f"{spread[1]:.3f}",
        "extra_percent": f"{percent:.3f}",
        "average_percent": f"{percent / args.interval:.4f}",
        "blocks": args.blocks,
        "block_ratio": f"{statistics.median(ratios):.4f}" if ratios else "",
        "block_lowest": f"{min(ratios):.4f}" if ratios else "",
        "block_highest": f"{max(ratios):.4f}" if ratios else "",
    }


def table(path: str | Path, **wanted) -> str:
    """The file as Markdown.

    Args:
        path: The file.
        **wanted: Values of columns, of the rows that are shown.
    """
    try:
        rows = harness.read(path, **wanted)
        if not rows:
            return ""
        first, lines = rows[0], []
        for one in rows:
            blocks = ""
            if one["block_ratio"]:
                blocks = "{block_ratio} ({block_lowest} to {block_highest}), {blocks}".format(**one)
            stem = Path(one["config"].rpartition("::")[2]).stem
            extra = "{:+.1f} ({:+.1f} to {:+.1f})".format(
                *(float(one[k]) for k in ("extra_ms", "extra_p20_ms", "extra_p80_ms"))
            )
            lines.append(
                [
                    f"{one['module']}, {stem}, {one['batch']} x {one['height']}x{one['width']}",
                    f"{one['modules']}, {one['scalars']}",
                    f"{float(one['median_ms']):.1f}",
                    extra,
                    f"{float(one['extra_percent']):+.1f} %",
                    f"{float(one['average_percent']):+.2f} %",
                    blocks,
                ]
            )
        threads = f", {first['threads']} threads" if first["device"] == "cpu" else ""
        title = (
            f"{first['hardware']}{threads}, PyTorch {first['torch']}, {first['mmengine']}, "
            f"{first['mmdet']}, {first['date']}, commit {first['commit'] or 'unknown'}, "
            f"{first['rounds']} rounds."
        )
        header = ["detector", "modules, curves", "step (ms)", "listening: extra ms (p20 to p80)"]
        header += [
            "of the step",
            f"interval {first['interval']}: average",
            "ratio of blocks, pairs",
        ]
        return f"{title}\n\n{harness.markdown(header, lines, 5)}"
    except OSError as error:
        raise PreflightError(f"--table {path} cannot be read: {error.strerror}") from error
    except KeyError as error:
        raise PreflightError(
            f"--table {path} is no file of this tool: no column {error}"
        ) from error


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    positive = detector._positive
    parser.add_argument("--interval", type=positive, default=50, help="of the hook; default: 50")
    parser.add_argument("--rounds", type=positive, default=15, help="of listening; default: 15")
    parser.add_argument("--blocks", type=int, default=2, help="pairs of blocks; default: 2")
    parser.add_argument("--threads", type=positive, help="of the CPU; default: PyTorch's")
    parser.add_argument(
        "--out",
        default=str(harness.RESULTS),
        metavar="DIR",
        help="where the CSV file lies, which is named after the conditions; rows of an earlier "
        "run stay, unless they are measured again; default: tools/benchmarks/results",
    )
    parser.add_argument("--table", metavar="FILE", help="print that file, measure nothing")
    args = parser.parse_args(argv)
    if args.blocks < 0:
        parser.error(f"argument --blocks: expected 0 or more, got {args.blocks}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with preflight.guard("gate_log.py"):
        if args.table:
            say(table(args.table))
        else:
            run(args)


def run(args) -> None:
    """Measures into the file, and prints its table."""
    import torch

    if not Path(args.out).is_dir():
        raise PreflightError(f"--out {args.out}: that folder does not exist")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise PreflightError("--device cuda: PyTorch finds no CUDA device")
    if args.threads:
        torch.set_num_threads(args.threads)
    path = Path(
        args.out, harness.file_name("gate_log", args.device, harness.conditions(args.device))
    )
    for name in dict.fromkeys(args.cases):
        rows = [measure(CASES[name], args)]
        harness.write(path, harness.merged(harness.read(path) if path.exists() else [], rows, KEY))
    say(f"{table(path)}\n\nwritten to {path}")


if __name__ == "__main__":
    main()
