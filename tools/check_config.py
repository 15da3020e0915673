"""Lists the attention modules in the model of a config, and what goes silently wrong with them.

Each warning ends with the line to put into the config. Nothing is downloaded, no data are needed,
and no GPU: the model is built on the CPU.
"""

from __future__ import annotations

import argparse
import os

import mmattn  # noqa: F401  before mmdet, for an mmcv without compiled operators
from mmattn.inspection import attention_option, checkpoint_file, config_file, preflight
from mmattn.inspection.arguments import ConfigOptions


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "config",
        help="a path, or package::path for a config that comes with a package, such as "
        "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="weights that a training would start from: a file, or the work dir of a training "
        "for its newest checkpoint (default: load_from of the config)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="end with status 1 if there is a warning"
    )
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="on how many GPUs it would be trained: does the learning rate fit the batch?",
    )
    parser.add_argument(
        "--all", action="store_true", help="list each module, not one line for each stage"
    )
    parser.add_argument(
        "--attention", metavar="MODULE", help="as in tools/train.py: sge, gc:ratio=4@c3-c5"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help="override parts of the config, as in tools/train.py",
    )
    args = parser.parse_args(argv)
    if args.gpus is not None and args.gpus < 1:
        parser.error(f"--gpus is expected to be an integer above 0, got {args.gpus}")
    return args


def main() -> None:
    args = parse_args()
    with preflight.guard("check_config.py"):
        cfg = config_file.load(args.config, args.cfg_options)
        if args.attention:
            attention_option.apply(cfg, args.attention)
        checkpoint = args.checkpoint
        if checkpoint and os.path.isdir(checkpoint):
            latest = checkpoint_file.latest(checkpoint)
            if latest is None:
                raise preflight.PreflightError(f"folder {checkpoint} has no whole checkpoint")
            checkpoint = latest[0]
        from mmattn.inspection.check_config import check

        report = check(cfg, checkpoint, args.gpus)
        print(report.text(args.all))
        if args.strict and report.findings:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
