"""Trains a detector, as MMDetection's tools/train.py does.

What would stop it (paths, options, data, checkpoints) is said in one line before it starts.
"""

from __future__ import annotations

import argparse

import mmattn  # noqa: F401  before mmdet, for an mmcv without compiled operators
from mmattn.inspection import preflight
from mmattn.inspection.arguments import add_common


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser)
    parser.add_argument(
        "--amp", action="store_true", help="train in mixed precision with dynamic loss scaling"
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by the batch size over all GPUs / auto_scale_lr."
        "base_batch_size of the config",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on with a training: from its newest whole checkpoint in the work dir, or from "
        "this one; without a checkpoint yet, start",
    )
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    with preflight.guard("train.py", resumable=True):
        cfg = preflight.training_config(args)
        if cfg is None:
            return
        runner = preflight.build_runner(cfg)
        preflight.check_hooks(runner)
        preflight.report(runner, preflight.check_weights(runner, training=True))
        runner.train()
        preflight.print_outcome(runner)


if __name__ == "__main__":
    main()
