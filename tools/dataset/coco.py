"""COCO data sets: checks them, makes smaller ones, counts objects by size.

    python tools/dataset/coco.py check data/coco
    python tools/dataset/coco.py subset data/coco data/coco-small --images 2000 500
    python tools/dataset/coco.py stats data/coco --out sizes.svg

A data set has annotations/instances_NAME.json and images in NAME/ (train2017, val2017 and others).
For another layout, name the files: --ann FILE --image-dir FOLDER, several times if wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    check = commands.add_parser(
        "check", help="files, counts, images that cannot be read, boxes outside of their image"
    )
    _add_source(check)
    check.add_argument(
        "--complete",
        action="store_true",
        help="expect the whole of COCO 2017: 118,287 and 5,000 images, 80 categories",
    )
    check.add_argument(
        "--no-decode", action="store_true", help="look only whether images are there"
    )
    check.add_argument(
        "--tolerance",
        type=float,
        default=1.0,
        metavar="PX",
        help="how far a box may reach out of its image (default: 1)",
    )
    check.add_argument(
        "--ignore", action="append", default=[], metavar="KIND", help="a kind of problem to accept"
    )
    check.add_argument("--jobs", type=int, help="processes that decode (default: up to 8)")
    check.add_argument(
        "--show", type=int, default=10, metavar="N", help="problems of a kind to name (default: 10)"
    )
    check.add_argument("--json", metavar="FILE", help="write everything that was found")

    subset = commands.add_parser("subset", help="a smaller data set with the same shares of sizes")
    _add_source(subset)
    subset.add_argument("out", metavar="OUT", help="the folder to make")
    subset.add_argument(
        "--images",
        nargs="+",
        type=int,
        required=True,
        metavar="N",
        help="images of each split, or one number for all",
    )
    subset.add_argument(
        "--stratify",
        choices=("size", "none"),
        default="size",
        help="keep the shares of small, medium and large objects (the default), or draw at random",
    )
    subset.add_argument("--seed", type=int, default=0, help="of the choice (default: 0)")
    subset.add_argument(
        "--link",
        choices=("hard", "symbolic", "copy"),
        default="hard",
        help="how images get there; hard links (the default) take no space, and become copies "
        "where OUT is on another file system",
    )

    stats = commands.add_parser("stats", help="objects by size, class and image")
    _add_source(stats)
    stats.add_argument(
        "--bins",
        default="coco-fine",
        metavar="BINS",
        help="finer bins beside COCO's, as in tools/ap_by_size.py; default: coco-fine",
    )
    stats.add_argument(
        "--classes", type=int, default=10, metavar="N", help="classes to list (default: 10)"
    )
    stats.add_argument(
        "--out",
        nargs="+",
        default=[],
        metavar="FILE",
        help="write the numbers (.json, .csv) or draw them (.png, .svg)",
    )
    args = parser.parse_args(argv)
    if args.command == "subset" and args.ann and args.dir is not None:
        commands.choices["subset"].error("expected either DIR or --ann, got both")
    if bool(args.dir) == bool(args.ann):
        commands.choices[args.command].error("expected either DIR or --ann FILE")
    if args.ann and not args.image_dir and args.command != "stats":
        commands.choices[args.command].error("--ann needs --image-dir FOLDER")
    return args


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", nargs="?", help="the data set's folder")
    parser.add_argument("--splits", nargs="+", metavar="NAME", help="only these of DIR")
    parser.add_argument("--ann", action="append", metavar="FILE", help="a COCO annotation file")
    parser.add_argument(
        "--image-dir",
        action="append",
        metavar="FOLDER",
        help="the folder of the images of --ann",
    )


def run(args: argparse.Namespace) -> int:
    from mmattn.datasets import coco_files

    if args.ann:
        splits = coco_files.pairs(args.ann, args.image_dir or [os.curdir])
    else:
        splits = coco_files.find(args.dir, args.splits)
    if args.command == "check":
        from mmattn.datasets import check
        from mmattn.evaluation.files import write_text

        report = check.check(
            splits,
            complete=args.complete,
            decode=not args.no_decode,
            tolerance=args.tolerance,
            ignore=args.ignore,
            jobs=args.jobs,
        )
        if args.json:
            write_text(args.json, json.dumps(report.to_dict(), indent=1) + "\n")
        print(check.render(report, args.show))
        return 1 if report.problems else 0
    if args.command == "subset":
        from mmattn.datasets import subset

        parts = subset.subset(
            splits,
            args.out,
            args.images,
            stratify=args.stratify,
            seed=args.seed,
            link=args.link,
        )
        print(subset.render(parts))
        print(f"written to {args.out}")
        return 0
    from mmattn.datasets import stats

    for path in args.out:
        stats.check_suffix(path)
    if not (args.ann or args.splits):  # a data set may have but one of COCO's two
        splits = [split for split in splits if split.annotations.is_file()]
    found = [stats.stats(split, args.bins) for split in splits]
    print(stats.render(found, args.classes))
    for path in args.out:
        stats.write(found, path)
        print(f"written to {path}")
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # names that the console cannot write
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return run(args)
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"coco.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("coco.py: interrupted, nothing was left behind", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
