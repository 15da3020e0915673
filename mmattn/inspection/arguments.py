"""The options that tools/train.py and tools/test.py share."""

from __future__ import annotations

import argparse

from mmengine.config import DictAction


class ConfigOptions(DictAction):
    """``key=value`` pairs; what is none ends in a usage error, not in a traceback."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Parses the pairs."""
        wrong = [value for value in values if not value.partition("=")[0] or "=" not in value]
        if wrong:
            parser.error(f"{option_string} expects key=value pairs, got {wrong[0]!r}")
        super().__call__(parser, namespace, values, option_string)


def add_common(parser: argparse.ArgumentParser, checkpoint: bool = False) -> None:
    """Adds the config, the work dir, the launcher and the overrides to a parser."""
    parser.add_argument(
        "config",
        help="a path, or package::path for a config that comes with a package, such as "
        "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
    )
    if checkpoint:
        parser.add_argument(
            "checkpoint",
            help="a checkpoint: a file, a URL, or the work dir of a training for its newest one",
        )
    parser.add_argument(
        "--work-dir",
        help="folder of logs and checkpoints (default: work_dir of the config, else "
        "./work_dirs/<name of the config>)",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help="override parts of the config: model.backbone.depth=101 'key=[a,b]' key=a,b; "
        "data_root=/path/ moves all datasets and annotation files",
    )
    parser.add_argument(
        "--attention",
        metavar="MODULE",
        help="put an attention module into the backbone, starting as identity: sge, "
        "gc:ratio=4@c3-c5 (NAME:ARGUMENT=VALUE@STAGES); shows what it stands for",
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="how the processes of a distributed run were started (default: none)",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
