"""What the modules of a config cost, beside the same model without them.

For the whole detector, its backbone, and each kind of inserted module:

parameters   all of them, frozen ones too.
GFLOPs       10^9 operations of a forward pass as PyTorch runs it: a multiply-add of a
             convolution or matrix product is one, as in papers; any other operator is one for
             each element it reads or writes, whichever are more (BatchNorm 2, LayerNorm 5,
             bilinear sampling 4; moving values, integers, RoIAlign and NMS 0).
activations  MiB that a training keeps for the backward pass: the memory of all tensors that
             autograd saves in a forward pass in training mode, with the layers that the config
             freezes. No parameters, gradients or states of an optimizer, no losses.
forward      median milliseconds of a forward pass without gradients, from the normalized image
             to the outputs of the heads, before the post-processing.

One random image, float32, random weights: no data, no checkpoint, no network. An RoI head works on
as many proposals as test_cfg.rpn.max_per_img says (1000), a mask head on 100 of them. Numbers in
parentheses are the difference to the same config without modules of mmattn, which is measured
alongside.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mmattn  # noqa: F401  before mmdet, for an mmcv without compiled operators
from mmattn.inspection import attention_option, config_file, preflight
from mmattn.inspection._console import PreflightError, say, warn
from mmattn.inspection.arguments import ConfigOptions


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "configs",
        nargs="+",
        metavar="CONFIG",
        help="paths, or package::path for configs that come with a package, such as "
        "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py; several come side by side",
    )
    parser.add_argument(
        "--shape",
        nargs=2,
        type=_positive,
        default=[800, 1333],
        metavar=("HEIGHT", "WIDTH"),
        help="size of the image; default: 800 1333",
    )
    parser.add_argument(
        "--no-padding",
        action="store_true",
        help="take the image as it is, not padded to a multiple of 32 as the config says; papers "
        "count that way, but not every model can run so",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where times and activations are measured; default: cpu",
    )
    parser.add_argument(
        "--repeats",
        type=_natural,
        default=5,
        help="timed forward passes of each model, after one to warm up; 0: no times; default: 5",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="also write all figures to this file, .json or .csv"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help="override parts of every config: model.backbone.depth=101",
    )
    parser.add_argument(
        "--attention",
        metavar="MODULE",
        help="put an attention module into every config, as in tools/train.py: sge, "
        "gc:ratio=4@c3-c5",
    )
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith((".json", ".csv")):
        parser.error(f"--out is expected to end in .json or .csv, got {args.out}")
    return args


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer from 0 on, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not _natural(text):
        raise argparse.ArgumentTypeError(f"expected an integer above 0, got {text!r}")
    return int(text)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with preflight.guard("model_cost.py"):
        configs = {}
        for name in args.configs:
            # what follows the last / names a config well enough, unless two share it
            stem = Path(name.rpartition("::")[2]).stem
            label = name if stem in configs else stem
            configs[label] = config_file.load(name, args.cfg_options)
            if args.attention:
                attention_option.apply(configs[label], args.attention)
        if args.out and not Path(args.out).absolute().parent.is_dir():
            raise PreflightError(f"--out {args.out}: that folder does not exist")
        print_costs(configs, args)


def print_costs(configs: dict, args: argparse.Namespace) -> None:
    import torch

    from mmattn.inspection.cost_report import compare

    if args.device == "cuda" and not torch.cuda.is_available():
        raise PreflightError("--device cuda: PyTorch finds no CUDA device")
    report = compare(
        configs, tuple(args.shape), args.device, args.repeats, not args.no_padding, warn
    )
    of = report.conditions
    say(
        f"{of['height']}x{of['width']}, batch 1, float32, {of['hardware']}, "
        f"{of['threads']} threads, torch {of['torch']}\n\n{report.table().strip()}"
    )
    if args.out:
        report.write(args.out)
        say(f"written to {args.out}")


if __name__ == "__main__":
    main()
