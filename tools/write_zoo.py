"""Writes what follows from the configs and from configs/published.yml.

That is the list of models in each folder's metafile.yml, model-index.yml, and the tables between
<!-- table --> and <!-- end --> in the READMEs of configs/ and in docs/configs.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmattn.reproduction import zoo

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing, and end with status 1 if a file is not up to date",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        paths = (zoo.outdated if args.check else zoo.write)(ROOT)
    except ValueError as error:
        sys.exit(f"write_zoo.py: {error}")
    for path in paths:
        print(f"{'not up to date' if args.check else 'written'}: {path.relative_to(ROOT)}")
    if args.check and paths:
        sys.exit("write_zoo.py: run tools/write_zoo.py and commit what it writes")
    if not paths:
        print("everything is up to date")


if __name__ == "__main__":
    main()
