"""AP by object size of COCO-format results, and whether a difference is more than chance.

Each RESULTS is a COCO results file (bbox or segm), the pickle of mmdet's tools/test.py --out, an
outfile_prefix of mmdet's, or a folder with one of these for each seed of a run (seed0, seed1, ...;
or list them: a.json,b.json); 'name=path' gives it a name. Several are compared with the first:
every figure's difference gets an interval and a p-value from a paired bootstrap over the images.
No model, no GPU, no framework is needed.

    python tools/ap_by_size.py instances_val2017.json baseline.bbox.json sge.bbox.json
    python tools/ap_by_size.py GT plain=work_dirs/plain sge=work_dirs/sge --out report.html
"""

from __future__ import annotations

import argparse
import os
import sys


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ground_truth", metavar="GT", help="COCO annotation file")
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="[name=]path, see above")
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--iou-type",
        choices=("bbox", "segm"),
        default="bbox",
        help="boxes or masks; default: bbox",
    )
    what.add_argument(
        "--bins",
        metavar="BINS",
        help="coco (small, medium, large; the default), coco-fine (each in two), or for example "
        "tiny:0-16^2,small:16^2-32^2,rest:32^2-",
    )
    what.add_argument(
        "--size-by",
        choices=("area", "bbox", "sqrt-relative"),
        default="area",
        help="what is an object's size: its annotation's area (px^2, as in COCO; the default), its "
        "box's area (px^2), or the root of its share of the image's area (0 to 1)",
    )
    what.add_argument("--per-class", action="store_true", help="AP of each class, too")
    what.add_argument(
        "--classes", type=_names, metavar="A,B", help="evaluate only these classes (names)"
    )
    what.add_argument(
        "--max-dets",
        type=int,
        default=100,
        metavar="N",
        help="detections of an image and class that count; default: 100",
    )
    what.add_argument(
        "--iou",
        type=_thresholds,
        metavar="IOU",
        help="thresholds that AP is averaged over: 0.5, or 0.5,0.75, or 0.5:0.95:0.05 (default)",
    )
    what.add_argument(
        "--model-classes",
        type=_names,
        metavar="A,B",
        help="for pickles of a model that knows only these classes of the file: their names",
    )
    what.add_argument(
        "--drop-unknown",
        action="store_true",
        help="leave out detections of images or categories that GT does not have (else an error)",
    )
    compared = parser.add_argument_group("comparison with the first RESULTS")
    compared.add_argument(
        "--replicates",
        type=int,
        default=1000,
        metavar="N",
        help="resamples of the images; 0: no intervals; default: 1000",
    )
    compared.add_argument("--seed", type=int, default=0, help="of the resamples; default: 0")
    compared.add_argument("--level", type=float, default=0.95, help="of the intervals; 0.95")
    output = parser.add_argument_group("output, besides the tables on the console")
    output.add_argument(
        "--out",
        nargs="+",
        default=[],
        metavar="FILE",
        help="write a page with pictures (.html), tables (.md), or all figures (.csv, .json)",
    )
    output.add_argument("--pictures", metavar="DIR", help="write the pictures as PNG and SVG")
    output.add_argument(
        "--images",
        metavar="DIR",
        help="folder of the image files, to draw those where the runs differ most",
    )
    output.add_argument(
        "--num-images",
        type=int,
        default=12,
        metavar="N",
        help="how many of them for each comparison; default: 12",
    )
    output.add_argument(
        "--image-bin",
        metavar="BIN",
        help="choose them by the objects of this bin, such as small; default: by all",
    )
    args = parser.parse_args(argv)
    for name in ("replicates", "num_images"):
        if getattr(args, name) < 0:
            parser.error(f"--{name.replace('_', '-')} must be 0 or more")
    return args


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _thresholds(text: str) -> list[float]:
    try:
        if ":" not in text:
            return [float(x) for x in text.split(",")]
        first, last, step = (float(x) for x in text.split(":"))
        number = round((last - first) / step)
        if number < 0 or number > 1000:
            raise ValueError
        import numpy as np

        return np.linspace(first, first + number * step, number + 1).tolist()
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"expected 0.5, or 0.5,0.75, or first:last:step, got {text!r}"
        ) from None


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # names that the console cannot write
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    from mmattn.evaluation.report import Options, run

    options = Options(
        ground_truth=args.ground_truth,
        results=args.results,
        iou_type=args.iou_type,
        bins=args.bins,
        size_by=args.size_by,
        per_class=args.per_class,
        max_dets=args.max_dets,
        iou_thrs=args.iou,
        classes=args.classes,
        model_classes=args.model_classes,
        unknown="drop" if args.drop_unknown else "error",
        replicates=args.replicates,
        seed=args.seed,
        level=args.level,
        out=args.out,
        pictures=args.pictures,
        images_dir=args.images,
        num_images=args.num_images,
        image_bin=args.image_bin,
    )
    try:
        run(options, lambda text: print(text, flush=True))
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f"ap_by_size.py: {error}")
    except KeyboardInterrupt:
        sys.exit("ap_by_size.py: interrupted; nothing was half-written")


if __name__ == "__main__":
    main()
