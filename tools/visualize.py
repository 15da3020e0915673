"""Shows what each inserted module of a trained detector does to images.

Writes figures (PNG and SVG), one page with a slider over the layers (index.html) and the numbers
behind them (summary.json) into a folder: masks and gates over the image, the channels that are
raised and lowered, what queries attend to, regions, and the detections with and without the
modules' effect.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from urllib.error import URLError

import mmattn  # noqa: F401  before mmdet, for an mmcv without compiled operators
from mmattn.evaluation.progress import Progress
from mmattn.inspection import preflight
from mmattn.inspection._console import PreflightError, say, warn
from mmattn.inspection.arguments import ConfigOptions

CAM_METHODS = ("hirescam", "layercam", "gradcam", "gradcam++", "xgradcam", "elementwise")


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
        "checkpoint", help="a checkpoint, or the work dir of a training for its newest one"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, or folders of images")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder for all of it")
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="only these modules: names, parts of names (layer3, layer3.5.sge) or regular "
        "expressions that match whole names; their gates alone are then set to neutral",
    )
    parser.add_argument(
        "--groups",
        nargs="+",
        type=_natural,
        metavar="N",
        help="show these groups of channels of a spatial gate, numbered from 0 (default: the 8 "
        "that vary most over the image)",
    )
    parser.add_argument(
        "--queries",
        nargs="+",
        type=_point,
        metavar="X,Y",
        help="points of the image, in px, whose attention a NonLocal shows (default: in the best "
        "detections, and far from them)",
    )
    parser.add_argument(
        "--score", type=_share, default=0.3, help="of detections that are shown (default: 0.3)"
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        help="COCO annotations of the images, to say which objects are found with and without",
    )
    parser.add_argument(
        "--sheet",
        nargs="+",
        metavar="NAME",
        help="modules with a contact sheet of all images (default: the last of each stage)",
    )
    parser.add_argument(
        "--detail",
        type=_positive,
        default=8,
        metavar="N",
        help="draw the first N images layer by layer (default: 8); all are in the contact sheets "
        "and in the numbers",
    )
    parser.add_argument(
        "--grad-cam",
        nargs="+",
        metavar="LAYER",
        help="class activation maps of the best detections for these layers, inserted or not: "
        "backbone.layer4 (needs pip install 'mmattn[cam]')",
    )
    parser.add_argument(
        "--cam-method", choices=CAM_METHODS, help="of --grad-cam (default: hirescam)"
    )
    parser.add_argument(
        "--cam-boxes",
        nargs="+",
        type=_natural,
        metavar="N",
        help="of which detections, the best being 0 (default: the three best)",
    )
    parser.add_argument(
        "--format",
        nargs="+",
        choices=("png", "svg"),
        default=("png", "svg"),
        help="of the single figures (default: png svg)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument(
        "--attention",
        metavar="MODULE",
        help="the module that the model was trained with, as in tools/train.py: sge, "
        "gc:ratio=4@c3-c5",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        metavar="KEY=VALUE",
        help="override parts of the config, as in tools/train.py",
    )
    args = parser.parse_intermixed_args(argv)  # images may stand behind --out, too
    if not args.grad_cam and (args.cam_method or args.cam_boxes):
        parser.error("--cam-method and --cam-boxes go with --grad-cam LAYER")
    return args


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer from 0 on, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected an integer above 0, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def _point(text: str) -> tuple[float, float]:
    parts = text.split(",")
    try:
        x, y = map(float, parts)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected X,Y in px, such as 120,85, got {text!r}"
        ) from None
    return x, y


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with preflight.guard("visualize.py"):
        try:
            run(args)
        except (TypeError, ValueError, OSError, ImportError) as error:
            if os.environ.get("MMATTN_TRACEBACK") == "1" or isinstance(error, URLError):
                raise
            raise PreflightError(str(error)) from error


def run(args: argparse.Namespace) -> None:
    from mmattn.visualization.loading import image_files, load_model

    files = image_files(args.images)
    out = Path(args.out).expanduser()

    from mmattn.visualization import attention_modules, collect, gallery
    from mmattn.visualization.record import chosen

    gallery.check_out(out)
    model = load_model(args.config, args.checkpoint, args.cfg_options, args.device, args.attention)
    layers, modules = args.layers, attention_modules(model)
    if args.grad_cam and not layers and not modules:
        layers = []  # of a plain model the activation maps alone
    elif args.sheet:
        chosen(chosen(modules, layers), args.sheet)  # for its error
    if args.queries and not any(type(one).__name__ == "NonLocal" for one in modules.values()):
        warn("--queries has no effect: the model has no NonLocal")
    images = []
    with Progress() as progress:
        step = progress.stage("running the model", len(files))
        for file in files:
            images += collect(
                model,
                [file],
                layers=layers,
                groups=args.groups or 8,
                queries=args.queries,
                neutral=bool(modules),
            )
            step(1)
    images = gallery.with_unique_names(images)
    truth = gallery.objects_of(images, args.annotations) if args.annotations else {}
    if truth and (lacking := [image.name for image in images if image.name not in truth]):
        warn(f"{args.annotations} lacks {len(lacking)} of the images: {', '.join(lacking[:3])}")
    extra = activation_maps(model, images, files, args) if args.grad_cam else {}
    shown = gallery.Gallery(images, args.score, truth, extra)
    title = f"What attention does in {Path(args.config).stem}"
    conditions = gallery.conditions(args.config, args.checkpoint, model, args.layers)
    with Progress() as progress:
        detailed = images[: args.detail]
        step = progress.stage("drawing", sum(len(image.layers) + 1 for image in detailed))
        written = gallery.write(
            shown,
            out,
            title=title,
            conditions=conditions,
            formats=args.format,
            sheets=args.sheet,
            detail=args.detail,
            progress=lambda: step(1),
        )
    say(gallery.report(shown))
    say(f"{len(written)} files in {out}; the page: {out / 'index.html'}")


def activation_maps(model, images, files, args: argparse.Namespace) -> dict:
    """Pictures by the name of the image; an image without such boxes has none."""
    from mmattn.visualization.class_activation import grad_cam
    from mmattn.visualization.gallery import cam_pictures

    extra = {}
    for image, file in zip(images[: args.detail], files, strict=False):
        count = len(image.detections or ())
        boxes = args.cam_boxes and [box for box in args.cam_boxes if box < count]
        if args.cam_boxes is None and count:
            count = len(image.detections.above(args.score))
        if not count or boxes == []:
            of = f"numbered {args.cam_boxes}" if args.cam_boxes else f"of score {args.score:g}"
            warn(f"{image.name}: no activation maps, there is no detection {of} or more")
            continue
        found = grad_cam(
            model,
            file,
            args.grad_cam,
            boxes=boxes,
            score=args.score,
            limit=3,
            method=args.cam_method or "hirescam",
        )
        extra[image.name] = cam_pictures(found)
    if not extra:
        raise PreflightError(
            "--grad-cam: no image has such a detection; give a lower --score, or other --cam-boxes"
        )
    return extra


if __name__ == "__main__":
    main()
