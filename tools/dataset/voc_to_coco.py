"""Converts a data set with Pascal VOC annotations (XML) to COCO's format.

ROOT has Annotations/, JPEGImages/ and ImageSets/Main/SPLIT.txt; OUT gets annotations/SPLIT.json and
images/. Example, with https://github.com/Shenggan/BCCD_Dataset in BCCD_Dataset/:

    python tools/dataset/voc_to_coco.py BCCD_Dataset/BCCD data/bccd --splits train val test \\
        --classes RBC WBC Platelets
"""

from __future__ import annotations

import argparse
import sys


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", metavar="ROOT", help="the folder with Annotations/ in it")
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument(
        "--splits",
        nargs="+",
        metavar="NAME",
        help="lists in ImageSets/Main (default: train, val, trainval and test, where they exist)",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="the classes in the order of their ids (default: all, by alphabet)",
    )
    parser.add_argument(
        "--difficult",
        choices=("crowd", "keep", "drop"),
        default="crowd",
        help="difficult objects become crowds, which are ignored (the default), are kept as any "
        "other, or left out",
    )
    parser.add_argument(
        "--origin",
        type=int,
        choices=(0, 1),
        default=1,
        help="the number of an image's first pixel in the XML (default: 1, as in VOC)",
    )
    parser.add_argument(
        "--link",
        choices=("hard", "symbolic", "copy", "none"),
        default="hard",
        help="how images get to OUT (default: hard links); none: only the annotations",
    )
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out images whose files cannot be used"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # names that the console cannot write
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    from mmattn.datasets import voc

    try:
        options = {key: value for key, value in vars(args).items() if key not in ("root", "out")}
        print(voc.render(voc.convert(args.root, args.out, **options)))
        print(f"written to {args.out}")
    except (OSError, ValueError) as error:
        print(f"voc_to_coco.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("voc_to_coco.py: interrupted, nothing was left behind", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
