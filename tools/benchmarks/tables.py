"""Puts the tables of the measured CSV files into Markdown pages.

    python tools/benchmarks/tables.py docs/benchmarks.md ...           # writes them
    python tools/benchmarks/tables.py docs/benchmarks.md ... --check   # fails if one is outdated

What stands in a page between these two lines is replaced by the table of the file, which lies in
tools/benchmarks/results/ and whose name's beginning says which benchmark wrote it; `column=value`
(or `column=value,value`) behind the name chooses rows:

    <!-- table: region_conv-cpu-amd-epyc-2threads-torch2.11.csv m=8 -->
    <!-- end -->
"""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import harness

# of which module ``table(path, **wanted)`` makes Markdown of a file that begins so
MODULES = {"ops": "run"}
MARKED = re.compile(r"(<!-- table: ([^\n]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
BEGIN = re.compile(r"^<!-- table:", re.MULTILINE)


def table(line: str) -> str:
    """The table that a marker asks for: a file's name and perhaps columns with values.

    Raises:
        ValueError: There is no such file or column.
    """
    name, *conditions = line.split()
    path = harness.RESULTS / name
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    wanted = {}
    for condition in conditions:
        column, equals, values = condition.partition("=")
        if not equals:
            raise ValueError(f"expected column=value behind {name}, got {condition!r}")
        wanted[column] = values.split(",")
    what = name.partition("-")[0]
    rows = harness.read(path, **wanted)
    if not rows:
        raise ValueError(f"{name} has no rows with {' '.join(conditions)}")
    return importlib.import_module(MODULES.get(what, what)).table(path, **wanted)


def updated(text: str) -> str:
    """A page with all its tables as the files are now.

    Raises:
        ValueError: A marker has no end, or asks for what is not there.
    """
    if len(BEGIN.findall(text)) != len(MARKED.findall(text)):
        raise ValueError("a line '<!-- table: ... -->' has no '<!-- end -->' of its own")
    return MARKED.sub(lambda m: f"{m[1]}\n{table(m[2])}\n\n{m[4]}", text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if outdated")
    args = parser.parse_args(arguments)
    outdated = []
    for page in args.pages:
        try:
            text = page.read_text(encoding="utf-8")
            new = updated(text)
        except (OSError, ValueError) as error:
            raise SystemExit(f"{page}: {error}") from None
        if new == text:
            continue
        outdated.append(page)
        if not args.check:
            page.write_text(new, encoding="utf-8")
            print(f"updated: {page}")
    if args.check and outdated:
        print("outdated:", *outdated)
    return int(args.check and bool(outdated))


if __name__ == "__main__":
    raise SystemExit(main())
