"""Plots loss and AP by size over the epochs of one or several trainings, and prints a table.

A run is a work dir of mmengine: vis_data/scalars.json of each start of the training and, where the
metric was mmattn.CocoSizeMetric, ap_by_size_val_*.json. A training that was resumed is one run, one
that is still going on is shown as far as it is. A folder of work dirs seed0, seed1, ... is one
run: the mean over the seeds.

Example: python tools/analyze_training.py work_dirs/plain SGE=work_dirs/sge --out curves.png
"""

from __future__ import annotations

import argparse
import os
import sys

from mmattn.inspection import preflight
from mmattn.inspection._console import PreflightError, say, warn


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "work_dirs",
        nargs="+",
        metavar="WORK_DIR",
        help="a work dir, or NAME=WORK_DIR to give it a name of its own; also the folder of one "
        "start in a work dir, such as work_dirs/sge/20260131_120000",
    )
    parser.add_argument(
        "--name", nargs="+", metavar="NAME", help="names of all runs, in their order"
    )
    parser.add_argument(
        "--out",
        nargs="+",
        default=[],
        metavar="FILE",
        help="draw the curves: .png, .svg, .pdf, or .html with the table; several if wanted",
    )
    parser.add_argument(
        "--metric",
        nargs="+",
        metavar="NAME",
        help="what to show: AP, AP50, AP75, AR (segm_AP for masks) overall and by size, AP_small "
        "of one size; or names from scalars.json, such as loss_cls, lr, cat_precision_s; "
        "default: loss AP",
    )
    parser.add_argument(
        "--axis",
        choices=("epoch", "iteration"),
        help="default: epochs if every run counts them, else iterations",
    )
    args = parser.parse_args(argv)
    if args.name and len(args.name) != len(args.work_dirs):
        parser.error(f"--name: expected {len(args.work_dirs)} names, got {len(args.name)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # names that the console cannot write
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with preflight.guard("analyze_training.py"):
        # matplotlib and numpy wait until the options are known to be right
        from mmattn.evaluation import training_curves

        try:
            show(args, training_curves)
        except training_curves.WorkDirError as error:
            raise PreflightError(error) from None


def show(args: argparse.Namespace, curves) -> None:
    for out in args.out:
        curves.check_output(out)
    paths, names = [], []
    for i, text in enumerate(args.work_dirs):
        name, separator, path = text.partition("=")
        if not separator or os.path.exists(text):
            name, path = "", text
        paths.append(path)
        names.append(args.name[i] if args.name else name)
    real = [os.path.realpath(path) for path in paths]
    if twice := [path for path, x in zip(paths, real, strict=True) if real.count(x) > 1]:
        raise PreflightError(f"{twice[0]} is given twice; name every run once")
    names = [n or own for n, own in zip(names, curves.run_names(paths), strict=True)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise PreflightError(f"two runs are called {twice[0]}; give each a name: NAME=WORK_DIR")
    runs = []
    for path, name in zip(paths, names, strict=True):
        run = curves.read_run(path, name)
        if run.has_logged:
            runs.append(run)
        else:
            warn(f"{name}: nothing is logged in {path} yet, left out")
    if not runs:
        raise PreflightError("no run has logged anything yet")
    axis = curves.choose_axis(runs, args.axis)
    panels = curves.choose_panels(runs, args.metric)
    text = curves.table(runs, panels, axis)
    notes = "".join(f"\nnote: {note}" for note in curves.comparison_notes(runs, axis))
    say(text + notes)
    if args.out:
        figure = curves.draw(runs, panels, axis)
        for out in args.out:
            curves.save(figure, out, text + notes)
        say(f"written to {', '.join(args.out)}")


if __name__ == "__main__":
    main()
