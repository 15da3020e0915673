"""What have the papers' authors and model zoos published of our configs?"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["FIGURES", "Published", "Source", "read"]

FIGURES = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "mask_ap")
COST = ("params_m", "gflops")
NEEDED = ("config", "source", "figures")
ROW = (*NEEDED, "baseline", "cost", "note")


@dataclass(frozen=True)
class Source:
    """Where figures were published.

    Attributes:
        key: What rows call it, such as 'PI'.
        name: What readers call it.
        url: Its page.
    """

    key: str
    name: str
    url: str


@dataclass(frozen=True)
class Published:
    """One row that a source has published.

    Attributes:
        config: The config here with that recipe: below configs/, without .py.
        source: Who published it.
        figures: AP in percent, by the names in :data:`FIGURES`.
        cost: ``params_m`` and ``gflops``, where given; the note says of what.
        baseline: The same source's row without the module; None where it has none.
        note: What differs from the other rows, or ''.
    """

    config: str
    source: Source
    figures: dict[str, float]
    cost: dict[str, float]
    baseline: Published | None
    note: str


def read(configs: Path) -> list[Published]:
    """The rows of published.yml, in its order.

    Args:
        configs: The folder with the configs and with published.yml.

    Raises:
        ValueError: The file is missing or not valid: the sentence names the part.
    """
    path = configs / "published.yml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    content = _map(content, str(path), ("sources", "rows"), ("sources", "rows"))
    sources = {}
    for key, value in _map(content["sources"], f"{path}: sources").items():
        keys = ("name", "url")
        given = _map(value, f"{path}: source {key}", keys, keys)
        sources[str(key)] = Source(str(key), str(given["name"]), str(given["url"]))
    if not isinstance(content["rows"], list):
        raise ValueError(f"{path}: rows is expected to be a list, got {content['rows']!r}")
    rows: dict[tuple[str, str], dict] = {}
    for number, row in enumerate(content["rows"], 1):
        row = _row(row, f"{path}: row {number}", sources, configs)
        if (row["config"], row["source"]) in rows:
            raise ValueError(
                f"{path}: row {number}: {row['source']} has a row of {row['config']} already"
            )
        rows[row["config"], row["source"]] = row

    def published(row: dict) -> Published:
        baseline = None
        if row.get("baseline"):
            own = rows.get((str(row["baseline"]), row["source"]))
            if own is None or own.get("baseline"):
                raise ValueError(
                    f"{path}: row {row['config']}: its baseline {row['baseline']} is no plain row "
                    f"of source {row['source']}"
                )
            baseline = published(own)
        return Published(
            config=row["config"],
            source=sources[row["source"]],
            figures=row["figures"],
            cost=row["cost"],
            baseline=baseline,
            note=str(row.get("note", "")),
        )

    return [published(row) for row in rows.values()]


def _row(row: Any, where: str, sources: Collection[str], configs: Path) -> dict:
    if isinstance(row, Mapping) and "config" in row:
        where = f"{where} ({row['config']})"
    row = _map(row, where, ROW, NEEDED)
    config, source = str(row["config"]), str(row["source"])
    if config.endswith(".py") or not (configs / f"{config}.py").is_file():
        near = config.removesuffix(".py")
        hint = "write it without .py" if near != config else f"there is no configs/{config}.py"
        raise ValueError(f"{where}: its config does not exist: {hint}")
    if source not in sources:
        raise ValueError(
            f"{where}: source {source!r} is not among the sources {', '.join(sources)}"
        )
    figures = _numbers(row["figures"], f"{where}: figures", FIGURES)
    if not figures or not all(0 <= value <= 100 for value in figures.values()):
        raise ValueError(f"{where}: figures are expected in percent, got {figures}")
    cost = _numbers(row.get("cost", {}), f"{where}: cost", COST)
    return row | dict(config=config, source=source, figures=figures, cost=cost)


def _numbers(value: Any, where: str, known: tuple[str, ...]) -> dict[str, float]:
    numbers = _map(value, where, known)
    for key, number in numbers.items():
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise ValueError(f"{where}: {key} is expected to be a number, got {number!r}")
    return {key: float(number) for key, number in numbers.items()}


def _map(value: Any, where: str, known: tuple[str, ...] = (), needed: tuple[str, ...] = ()) -> dict:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is expected to be a map of keys and values, got {value!r}")
    for key in value if known else ():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{where} has the unknown key {key!r}; {hint}")
    if missing := [key for key in needed if key not in value]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return dict(value)
