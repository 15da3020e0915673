"""What is to be reproduced: a table of rows, each a config, its seeds and its baseline."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmattn.reproduction.published import Published, read

__all__ = ["Row", "Table", "find", "load", "shipped"]

NAME = re.compile(r"[\w.+-]+")
DEFAULTS = {"seeds", "gpus", "options", "group"}
ROW = DEFAULTS | {"name", "label", "config", "baseline", "note", "published"}
TABLE = {"title", "about", "paper", "prepare", "defaults", "rows", "quick"}
QUICK = {"seeds", "options"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: a config, trained once for each seed.

    Attributes:
        name: Its name in the table and in paths.
        label: What the report calls it.
        group: The heading it stands under, or ''.
        config: Path of the config, or ``package::path``.
        baseline: Name of the row that it is compared with.
        seeds: One training each.
        gpus: GPUs of the recipe; fewer accumulate gradients over as many images. 0: as many as
            make the batch that the config's learning rate is for.
        options: Dotted keys and values over the config, as of ``--cfg-options``.
        published: What was published of this config.
        note: Stands below the report's table.
    """

    name: str
    label: str
    group: str
    config: str
    baseline: str | None
    seeds: tuple[int, ...]
    gpus: int
    options: dict[str, Any]
    published: tuple[Published, ...]
    note: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows, in the order in which they are run and shown.

    Attributes:
        name: The file's name without suffix; ``-quick`` is added for the quick variant.
        title: Heading of the report.
        about: A sentence or more below it.
        paper: Where the paper is, or ''.
        prepare: A script of the repository with its arguments that makes the data, or ().
        rows: The rows.
        path: The file.
        quick: Whether this is its quick variant.
    """

    name: str
    title: str
    about: str
    paper: str
    prepare: tuple[str, ...]
    rows: tuple[Row, ...]
    path: Path
    quick: bool

    def choose(
        self, patterns: Sequence[str] | None, seeds: Sequence[int] | None
    ) -> set[tuple[str, int]]:
        """Rows, with seeds, whose name or label contains one of ``patterns``, and their baselines.

        Args:
            patterns: Names or labels, or parts of names; None: all rows.
            seeds: Seeds; None: all of a row.

        Raises:
            ValueError: A pattern fits no row, or no row has one of the seeds.
        """
        names = {row.name for row in self.rows}
        if patterns:
            names = set()
            for pattern in patterns:
                # a whole name or label before a part of one
                fitting = (
                    [row for row in self.rows if row.name == pattern]
                    or [row for row in self.rows if row.label.lower() == pattern.lower()]
                    or [row for row in self.rows if pattern.lower() in row.name.lower()]
                )
                if not fitting:
                    every = [row.name for row in self.rows]
                    near = difflib.get_close_matches(pattern, every, 1)
                    raise ValueError(
                        f"table {self.name} has no row with {pattern!r} in its name; "
                        + (f"did you mean {near[0]}?" if near else f"its rows: {', '.join(every)}")
                    )
                names |= {row.name for row in fitting}
                names |= {row.baseline for row in fitting if row.baseline}
        chosen = {
            (row.name, seed)
            for row in self.rows
            if row.name in names
            for seed in row.seeds
            if seeds is None or seed in seeds
        }
        if not chosen:
            raise ValueError(
                f"no chosen row of table {self.name} has one of the seeds "
                f"{', '.join(map(str, seeds or ()))}"
            )
        return chosen


def root() -> Path:
    """The folder that holds configs/ and tools/: a checkout, or what mim installed."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent, package / ".mim"):
        if (folder / "configs" / "tables").is_dir() and (folder / "tools").is_dir():
            return folder
    raise ValueError(f"mmattn was installed without its configs: none beside or below {package}")


def shipped() -> list[Path]:
    """The tables that come with mmattn."""
    return sorted((root() / "configs" / "tables").glob("*.yml"))


def find(name: str) -> Path:
    """The file of a table: a path, or the name of one that comes with mmattn.

    Raises:
        FileNotFoundError: There is none.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    tables = {table.stem: table for table in shipped()}
    if name.removesuffix(".yml") in tables:
        return tables[name.removesuffix(".yml")]
    near = difflib.get_close_matches(path.stem, tables, 1, 0.5)
    raise FileNotFoundError(
        f"table {name} does not exist; "
        + (f"did you mean {near[0]}? " if near else "")
        + f"mmattn comes with {', '.join(tables)}"
    )


def load(path: Path, quick: bool = False) -> Table:
    """Reads a table.

    Args:
        path: The YAML file; ``configs/tables/README.md`` describes it.
        quick: The short variant, for those that have one.

    Raises:
        ValueError: It is not a valid table: the sentence names the part.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"table {path} is not YAML: {' '.join(str(error).split())}") from None
    content = _map(content, f"table {path}", TABLE, {"title", "rows"})
    defaults = _map(content.get("defaults", {}), f"table {path}: defaults", DEFAULTS)
    short: dict[str, Any] = {}
    if quick:
        if "quick" not in content:
            raise ValueError(f"table {path} has no quick variant: leave out --quick")
        short = _map(content["quick"], f"table {path}: quick", QUICK)
    if not isinstance(content["rows"], list) or not content["rows"]:
        raise ValueError(f"table {path}: rows is expected to be a list of rows")
    published = read(root() / "configs")
    rows = [_row(row, defaults, short, published, path) for row in content["rows"]]
    _check_baselines(rows, path)
    return Table(
        name=path.stem + ("-quick" if quick else ""),
        title=str(content["title"]) + (" (quick)" if quick else ""),
        about=" ".join(str(content.get("about", "")).split()),
        paper=str(content.get("paper", "")),
        prepare=tuple(str(content.get("prepare", "")).split()),
        rows=tuple(rows),
        path=path,
        quick=quick,
    )


def _row(row: Any, defaults: dict, short: dict, published: list[Published], path: Path) -> Row:
    name = isinstance(row, Mapping) and (row.get("name") or Path(str(row.get("config"))).stem)
    where = f"table {path}: row {name or repr(row)}"
    row = _map(row, where, ROW, {"config"})
    if not NAME.fullmatch(str(name)):
        raise ValueError(f"{where}: a name has letters, digits and . _ + - only")
    config = str(row["config"])
    file = root() / config
    if "::" not in config:
        # ours are in the repository; those of one's own are where one stands, or by the table
        places = [file, Path(config), path.parent / config]
        there = [place for place in places if place.is_file()]
        if not there:
            looked = dict.fromkeys(map(str, (root(), Path.cwd(), path.resolve().parent)))
            raise ValueError(f"{where}: config {config} does not exist in {' or '.join(looked)}")
        config = str(there[0].resolve())
    of_config = [p for p in published if f"configs/{p.config}.py" == str(row["config"])]
    # figures of the config are not those of another model
    changed = any(key.split(".")[0] == "model" for key in row.get("options") or ())
    wanted = row.get("published", [] if changed else [p.source.key for p in of_config])
    missing = set(wanted) - {p.source.key for p in of_config}
    if missing:
        raise ValueError(
            f"{where}: configs/published.yml has nothing of {', '.join(sorted(missing))}"
        )
    seeds = short.get("seeds", row.get("seeds", defaults.get("seeds", [0])))
    if not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) != len(seeds):
        raise ValueError(f"{where}: seeds is expected to be a list of integers, got {seeds!r}")
    gpus = row.get("gpus", defaults.get("gpus"))
    for number in (*seeds, *([] if gpus is None else [gpus])):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"{where}: expected integers for seeds and gpus, got {number!r}")
    if gpus == 0:
        raise ValueError(f"{where}: gpus is expected to be 1 or more, got 0")
    options: dict[str, Any] = {}
    for more in (defaults, row, short):
        options |= _map(more.get("options", {}), f"{where}: options")
    return Row(
        name=str(name),
        label=str(row.get("label", name)),
        group=str(row.get("group", defaults.get("group", ""))),
        config=config,
        baseline=row.get("baseline"),
        seeds=tuple(seeds),
        gpus=gpus or 0,
        options=options,
        published=tuple(p for p in of_config if p.source.key in wanted),
        note=str(row.get("note", "")),
    )


def _map(value: Any, where: str, known: set | None = None, needed: set = frozenset()) -> dict:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is expected to be a map of keys and values, got {value!r}")
    for key in value if known else ():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            raise ValueError(f"{where} has the unknown key {key!r}; {hint}")
    if needed - set(value):
        raise ValueError(f"{where} lacks {', '.join(sorted(needed - set(value)))}")
    return dict(value)


def _check_baselines(rows: list[Row], path: Path) -> None:
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"table {path} has two rows {name!r}: give them a name: each")
    for row in rows:
        if row.baseline is not None and (row.baseline == row.name or row.baseline not in names):
            raise ValueError(
                f"table {path}: row {row.name}: baseline {row.baseline!r} is no other row; "
                f"rows: {', '.join(names)}"
            )
