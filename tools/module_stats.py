"""What the inserted modules of a model do, over a dataset.

Without --data, what the parameters alone say: GCT's gamma by layer, SGE's weight and bias. With it,
the model runs over images of that part of the config's data, and gates, masks, regions and shares
are counted by layer. Tables are printed; DIR gets module_stats.json and plots as PNG and SVG. What
every number means is written in docs/module-stats.md.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path

import mmattn  # before mmdet, for an mmcv without compiled operators
from mmattn.inspection import preflight
from mmattn.inspection._console import PreflightError, say, warn
from mmattn.inspection.arguments import ConfigOptions

SPLITS = ("train", "val", "test")
FEW = 8  # classes that are all shown
NAME = "module_stats.json"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="path, or package::path")
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a file, or the work dir of a training"
    )
    parser.add_argument(
        "--data",
        choices=SPLITS,
        help="run over the images of this dataloader of the config, as the test pipeline gives "
        "them; left out: no image is read",
    )
    parser.add_argument(
        "--images",
        type=_positive,
        metavar="N",
        help="so many images, evenly spaced over the dataset; default: 500, or all if it has fewer",
    )
    parser.add_argument(
        "--out", default="module_stats", metavar="DIR", help="default: module_stats"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="mean gates over the images that show an object of each; default: all classes of the "
        f"dataset if they are at most {FEW}, else none",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1; default: cpu")
    parser.add_argument(
        "--attention",
        metavar="MODULE",
        help="put an attention module into the config, as in tools/train.py: sge",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help="override parts of the config: data_root=/path/to/it/",
    )
    args = parser.parse_args(argv)
    for option in ("classes", "images"):
        if getattr(args, option) and not args.data:
            parser.error(f"--{option} is expected together with --data, of whose images it speaks")
    args.images = args.images or 500
    return args


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected an integer above 0, got {text!r}")
    return int(text)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with preflight.guard("module_stats.py"):
        check_out(Path(args.out))
        write(count(args), Path(args.out))


def check_out(out: Path) -> None:
    """Raises unless the folder is new, empty or that of an earlier run, whose files go."""
    import json

    if out.exists() and not out.is_dir():
        raise PreflightError(f"--out {out} is expected to be a folder, and is a file")
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        ours = {"schema", "layers", "parameters"} <= set(json.loads((out / NAME).read_text()))
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise PreflightError(
            f"--out {out} has files that are not of an earlier run, and pictures among them could "
            "be lost: name another folder"
        )


def count(args: argparse.Namespace):
    """The statistics that the command line asks for."""
    from dataclasses import replace

    from mmengine.runner import set_random_seed

    from mmattn.visualization.loading import load_model
    from mmattn.visualization.record import NONE_FOUND, attention_modules
    from mmattn.visualization.statistics import gate_statistics, parameter_statistics

    set_random_seed(0)
    model = load_model(
        args.config, args.checkpoint, args.cfg_options, args.device, attention=args.attention
    )
    if not attention_modules(model):
        raise PreflightError(NONE_FOUND)
    conditions = _conditions(args)
    if not args.data:
        return replace(parameter_statistics(model), conditions=conditions)

    from mmattn.evaluation.progress import Progress

    dataset = build_dataset(model.cfg, args.data)
    classes = _chosen(args.classes, dataset.metainfo.get("classes") or ())
    chosen = spaced(len(dataset), args.images)
    if len(chosen) < args.images:
        warn(f"{args.data} has {len(chosen)} images: all are taken")
    done = 0
    with Progress() as progress:
        advance = progress.stage("running", total=len(chosen))

        def report(images: int) -> None:
            nonlocal done
            advance(images - done)
            done = images

        try:
            found = gate_statistics(model, _batches(dataset, chosen, args.data), classes, report)
        except ValueError as error:
            raise PreflightError(str(error)) from error
    if absent := [name for name, images in found.classes.items() if not images]:
        warn(f"none of these images shows {' or '.join(absent)}: no gates for that class")
    conditions["data"] = {
        "split": args.data,
        "dataset_size": len(dataset),
        "images": len(chosen),
        "chosen": "evenly spaced",
        "batch_size": 1,
    }
    return replace(found, conditions=conditions)


def _conditions(args: argparse.Namespace) -> dict:
    import mmdet
    import mmengine
    import torch

    from mmattn.inspection.hardware import cpu_name

    cuda = args.device.startswith("cuda")
    return {
        "config": args.config,
        "checkpoint": args.checkpoint,
        "cfg_options": args.cfg_options or {},
        "attention": args.attention,
        "data": None,
        "seed": 0,
        "hardware": torch.cuda.get_device_name(args.device) if cuda else cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": {one.__name__: one.__version__ for one in (mmattn, torch, mmengine, mmdet)},
    }


def build_dataset(cfg, split: str):
    """The dataset of a split, without what repeats or mixes it, with the test pipeline."""
    import copy

    from mmengine.registry import DATASETS, DefaultScope

    from mmattn.inspection import build, config_file

    there = [name for name in SPLITS if cfg.get(f"{name}_dataloader")]
    if split not in there:
        raise PreflightError(
            f"--data {split}: the config has no {split}_dataloader; it has "
            + (" and ".join(there) or "no data at all")
        )
    preflight.check_data(cfg, (split,))
    node = copy.deepcopy(cfg[f"{split}_dataloader"]["dataset"])
    while "dataset" in node:
        node = node["dataset"]
    if split == "train":
        pipeline = _test_pipeline(cfg)
        for part in config_file.maps(node):
            if "pipeline" in part:
                part["pipeline"] = copy.deepcopy(pipeline)
    for part in config_file.maps(node):
        if "pipeline" in part:
            part["test_mode"] = True  # every image, in order
    scope = cfg.get("default_scope") or "mmdet"
    with build.explained(cfg), DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build(node)


def _test_pipeline(cfg):
    for name in ("val", "test"):
        node = (cfg.get(f"{name}_dataloader") or {}).get("dataset") or {}
        while "pipeline" not in node and "dataset" in node:
            node = node["dataset"]
        if "pipeline" in node:
            return node["pipeline"]
    raise PreflightError(
        "--data train: the config has neither val_dataloader nor test_dataloader, whose pipeline "
        "the images would take"
    )


def _chosen(wanted: list[str] | None, known) -> dict[str, int]:
    """Label by name."""
    labels = {name: label for label, name in enumerate(known)}
    if wanted is None:
        return labels if 1 < len(labels) <= FEW else {}
    for name in wanted:
        if name not in labels:
            near = difflib.get_close_matches(name, labels, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(labels)}"
            raise PreflightError(f"--classes: the dataset has no class {name!r}{hint}")
    return {name: labels[name] for name in wanted}


def spaced(size: int, count: int) -> list[int]:
    """``count`` numbers below ``size``, evenly spaced; all if there are fewer."""
    count = min(size, count)
    return [(2 * i + 1) * size // (2 * count) for i in range(count)]


def _batches(dataset, chosen: list[int], split: str):
    from mmengine.dataset import pseudo_collate

    for index in chosen:
        try:
            one = dataset[index]
        except Exception as error:  # whatever a reader of images raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise PreflightError(f"image {index} of {split} cannot be loaded: {reason}") from error
        yield pseudo_collate([one])


def write(statistics, out: Path) -> None:
    """Prints the tables, then writes the plots, and the JSON file last."""
    import json

    from mmattn.evaluation.files import write_bytes, write_text
    from mmattn.visualization.statistics_plots import NAMES, figures
    from mmattn.visualization.statistics_table import tables

    say(tables(statistics) or "the parameters of these modules say nothing without images")
    if statistics.needs_data and not statistics.images:
        say(f"\nwithout --data nothing is known of {', '.join(statistics.needs_data)}")
    files = {
        f"{name}.{kind}": content
        for name, figure in figures(statistics).items()
        for kind, content in _rendered(figure).items()
    }
    try:
        for name, content in files.items():
            write_bytes(out / name, content)
        for name in NAMES:  # of an earlier run, which would not belong to this JSON file
            for kind in ("png", "svg"):
                if f"{name}.{kind}" not in files:
                    (out / f"{name}.{kind}").unlink(missing_ok=True)
        text = json.dumps(statistics.to_dict(), allow_nan=False)
        write_text(out / NAME, text + "\n")
    except OSError as error:
        raise PreflightError(f"--out {out}: {error}") from error
    plots = f" and {len(files)} pictures" if files else ""
    say(f"\nwritten to {out}: module_stats.json{plots}")


def _rendered(figure) -> dict[str, bytes]:
    import tempfile

    from mmattn.visualization import style

    with tempfile.TemporaryDirectory() as folder:
        return {
            path.suffix[1:]: path.read_bytes() for path in style.save(figure, Path(folder, "a"))
        }


if __name__ == "__main__":
    main()
