"""Tests a detector, as MMDetection's tools/test.py does.

What would stop it (paths, options, data, the checkpoint) is said in one line before it starts.
"""

from __future__ import annotations

import argparse
import os

import mmattn  # noqa: F401  before mmdet, for an mmcv without compiled operators
from mmattn.inspection import preflight
from mmattn.inspection.arguments import add_common


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser, checkpoint=True)
    parser.add_argument(
        "--out", metavar="FILE.pkl", help="also write the predictions, pickled, to this file"
    )
    parser.add_argument("--show", action="store_true", help="show predictions in a window")
    parser.add_argument(
        "--show-dir",
        metavar="NAME",
        help="draw predictions into this folder below <work dir>/<time>/",
    )
    parser.add_argument(
        "--wait-time", type=float, default=2, help="seconds for each shown image (default: 2)"
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: tta_model and tta_pipeline of the config, else flips",
    )
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith((".pkl", ".pickle")):
        parser.error(f"--out is expected to end in .pkl or .pickle, got {args.out}")
    return args


def main() -> None:
    args = parse_args()
    with preflight.guard("test.py"):
        cfg = preflight.testing_config(args)
        runner = preflight.build_runner(cfg)
        preflight.check_weights(runner, training=False)
        if args.out:
            from mmdet.evaluation import DumpDetResults

            runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
        runner.test()
        pictures = args.show_dir and os.path.join(runner.work_dir, runner.timestamp, args.show_dir)
        preflight.print_outcome(runner, predictions=args.out, pictures=pictures)


if __name__ == "__main__":
    main()
