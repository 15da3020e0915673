"""Converts published weights into a file for mmattn's models, and says what became of them.

The file is recognised by the names in it: ResNets of PytorchInsight, GCT, ECA-Net, timm and
torchvision, and detectors of MMDetection 0.x to 3.x (see docs/weights.md). It is read without
running code of its own.
"""

from __future__ import annotations

import argparse

import mmattn  # noqa: F401  before mmdet, for an mmcv without compiled operators
from mmattn.inspection import preflight
from mmattn.inspection.arguments import ConfigOptions


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", metavar="SRC", help="the published file: .pth, .tar, .safetensors")
    parser.add_argument(
        "dst",
        metavar="DST",
        nargs="?",
        help="the file to write, .pth or .safetensors; left out, only the report is printed",
    )
    parser.add_argument(
        "--as",
        dest="kind",
        choices=["backbone", "detector"],
        help="write a bare backbone, for its init_cfg, or a detector's weights, for load_from "
        "(default: what the file is)",
    )
    parser.add_argument(
        "--config", help="refuse to write what does not fit this config's model, name by name"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help="override parts of that config",
    )
    parser.add_argument(
        "--allow-leftover",
        action="store_true",
        help="leave out weights that have no place, in place of refusing to write",
    )
    parser.add_argument("--force", action="store_true", help="overwrite DST")
    args = parser.parse_args(argv)
    if args.cfg_options and not args.config:
        parser.error("--cfg-options belongs to --config")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with preflight.guard("convert_checkpoint.py"):
        from mmattn.inspection import conversion

        conversion.convert(
            args.src,
            args.dst,
            args.kind,
            args.config,
            args.cfg_options,
            args.allow_leftover,
            args.force,
        )


if __name__ == "__main__":
    main()
