"""Which files does the command line name? ``RESULTS...`` into runs, each of one or more seeds.

Files are told apart by their first bytes, never by reading a whole file of results.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mmattn.evaluation.data import IOU_TYPES
from mmattn.evaluation.mmdet_pickle import SUFFIXES as PICKLES

_HEAD = 2**16
_LONGEST_RECORD = 2**22
_DEPTH = 6
# what a file is called that does not say of which run it is
_PLAIN = re.compile(
    r"(coco_?)?(instances?_?)?(best_?)?(results?|predictions?|preds?|detections?|dets?|dt|out|output)?"
)
# before the number in the names of seeds; 'epoch', 'r' or 'v' before it tell other models apart
_SEED = r"|seed|seeds|run|rep|repeat|replicate|trial|try|s|n|no|rng|results?|predictions?|preds?"
_SEED += r"|detections?|dets?|dt|bbox|segm|out|output"
_EXPECTED = (
    "expected a COCO results file (a JSON list of dicts with image_id and score), the pickle of "
    "mmdet's tools/test.py --out, mmdet's outfile_prefix, or a folder of these"
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Results of one model: a file for every seed.

    Attributes:
        name: What tables call it.
        files: The results files, JSON or pickles, in the order of the seeds.
        seed_names: What tells the files apart, one for each.
        notes: What a reader should know.
    """

    name: str
    files: tuple[Path, ...]
    seed_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def find_runs(arguments: Sequence[str | os.PathLike], iou_type: str = "bbox") -> list[Source]:
    """Finds the files that arguments name.

    Args:
        arguments: Each ``path`` or ``name=path``. The path is a COCO results file, the pickle of
            mmdet's ``tools/test.py --out``, an ``outfile_prefix`` of mmdet's (``work_dirs/x/res``
            for ``work_dirs/x/res.bbox.json``), or a folder with one results file, or with
            one for each seed: files in it, or one in each sub-folder, whose names differ by a
            number alone (``seed0``, ``seed1``). Several paths with commas between are seeds, too.
        iou_type: 'bbox' or 'segm': which is taken where a folder or prefix has both.

    Returns:
        The runs, in the order given. Without ``name=``, a run is called by its file or folder,
        with as much of the path in front as makes the name unique.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: It has no results, or it is not clear which are meant; a name or a file comes
            twice.
    """
    if isinstance(arguments, (str, os.PathLike)):
        raise TypeError(f"arguments must be a list of paths, got {arguments!r}")
    if iou_type not in IOU_TYPES:
        raise ValueError(f"iou_type must be one of {', '.join(IOU_TYPES)}, got {iou_type!r}")
    if not arguments:
        raise ValueError(f"no results are given: {_EXPECTED}")
    names, found = [], []
    for argument in arguments:
        name, path = _split(os.fspath(argument))
        names.append(name)
        found.append((path, *_find(path, iou_type)))
    given = [x for x in names if x is not None]
    if twice := [x for x in given if given.count(x) > 1]:
        raise ValueError(f"the name {twice[0]!r} is given twice; give each run its own")
    origin = {}
    for argument, (_, files, *_) in zip(arguments, found, strict=True):
        for file in files:
            if (key := file.resolve()) in origin:
                both = dict.fromkeys(map(repr, map(os.fspath, (origin[key], argument))))
                raise ValueError(f"{file} is given twice, by {' and '.join(both)}")
            origin[key] = argument
    names = _unique(names, [_labels(path, files) for path, files, *_ in found])
    return [Source(name, *rest) for name, (_, *rest) in zip(names, found, strict=True)]


def find_files(path: str | os.PathLike, iou_type: str = "bbox") -> tuple[Path, ...]:
    """Results files of one argument of :func:`find_runs` without a name, one for each seed."""
    return _find(Path(path).expanduser(), iou_type)[0]


def _split(argument: str) -> tuple[str | None, Path]:
    """A name, if there is one, and a path; '=' may be in either."""
    path = Path(argument).expanduser()
    places = [i for i, character in enumerate(argument) if character == "="]
    if not places or _exists(path):
        return None, path
    choices = [(argument[:i].strip(), Path(argument[i + 1 :]).expanduser()) for i in places]
    existing = [
        x for x, i in zip(choices, places, strict=True) if argument[i + 1 :] and _exists(x[1])
    ]
    name, rest = (existing or choices)[0]
    folders = [x for x in (Path(name).expanduser(), path) if len(x.parts) > 1]
    if not existing and any(x.parent.is_dir() for x in folders):
        return None, path  # a file that is not in work_dirs/lr=0.1, or no such folder there
    if not name:
        raise ValueError(f"expected name=path, got {argument!r} without a name")
    if not argument[places[0] + 1 :]:
        raise ValueError(f"expected name=path, got {argument!r} without a path")
    return name, rest


def _exists(path: Path) -> bool:
    return path.exists() or any(_with_prefix(path, x).exists() for x in IOU_TYPES)


def _with_prefix(prefix: Path, iou_type: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{iou_type}.json") if prefix.name else prefix


def _find(path: Path, iou_type: str) -> tuple[tuple[Path, ...], tuple[str, ...], tuple[str, ...]]:
    """Files of a path, what tells them apart, and notes."""
    if path.is_dir():
        return _seeds(path, iou_type)
    if "," in os.fspath(path) and not path.exists():
        parts = [_find(Path(x).expanduser(), iou_type) for x in os.fspath(path).split(",")]
        files = [file for x in parts for file in x[0]]
        return (
            tuple(files),
            tuple(map(str, range(len(files)))),
            tuple(n for x in parts for n in x[2]),
        )
    if not path.exists():
        path = _of_prefix(path, iou_type)
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder: {_EXPECTED}")
    kind = _kind(path)
    if kind.problem and not kind.plausible:
        raise ValueError(f"{path} {kind.problem}: {_EXPECTED}")
    notes = ()
    if iou_type == "bbox" and _shape(path) == "segm":
        notes = (f"{path} is called segm, but boxes are evaluated; --iou-type segm takes masks.",)
    return (path,), (_stem(path) or path.stem,), notes


def _of_prefix(prefix: Path, iou_type: str) -> Path:
    files = {x: _with_prefix(prefix, x) for x in IOU_TYPES}
    if files[iou_type].exists():
        return files[iou_type]
    for other, file in files.items():
        if file.exists():
            raise ValueError(
                f"{files[iou_type]} does not exist, only {file.name}: evaluate {other!r}, or write "
                f"the results of {iou_type!r}"
            )
    folder, missing = prefix.parent, prefix
    while not folder.is_dir() and folder != folder.parent:
        folder, missing = folder.parent, folder
    there = [x.name for x in _entries(folder)]
    stems = {name.split(".")[0]: name for name in reversed(there)}  # as in mmdet's prefixes
    near = difflib.get_close_matches(missing.name, {*there, *stems}, n=4, cutoff=0.6)
    near = dict.fromkeys(stems.get(x, x) if x not in there else x for x in near)
    hint = f"; {folder} has {_some(list(near) or there) or 'nothing'}"
    what = "" if missing == prefix else f": there is no {missing}"
    raise FileNotFoundError(f"results {str(prefix)!r} do not exist{what}{hint}")


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What the first bytes of a file say.

    Attributes:
        problem: Why it is not a file of results; empty if it is one.
        plausible: Whether it could yet be meant as results: what is wrong with its records, the
            reader of the whole file tells better.
        shapes: Which of 'bbox' and 'segm' its first record has; both if that cannot be told.
    """

    problem: str = ""
    plausible: bool = False
    shapes: tuple[str, ...] = IOU_TYPES


def _kind(path: Path) -> _Kind:
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
            if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
                return _kind_of_list(head, stream)
    except OSError as error:
        return _Kind(f"cannot be read ({error.strerror})")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start:
        return _Kind("is empty" if not head else "holds blanks only")
    if path.suffix.lower() in PICKLES:
        is_mmdet = b"pred_instances" in head
        return _Kind("" if is_mmdet else "has no 'pred_instances'", plausible=True)
    if not start.startswith(b"{"):
        return _Kind("is not JSON")
    if re.search(rb'"(images|annotations|categories)"\s*:\s*\[', start):
        return _Kind("is a ground truth (a dict with annotations), not results")
    if re.match(rb'\{\s*"mmattn"\s*:', start):
        return _Kind("holds figures that mmattn computed, not results")
    return _Kind("holds a dict, not results")


def _kind_of_list(head: bytes, stream) -> _Kind:
    """What the first record of a JSON list is; only as much is read as that takes."""
    while True:
        text = head.decode("utf-8-sig", errors="replace")
        start = re.match(r"\s*\[\s*", text)
        if text[start.end() : start.end() + 1] == "]":
            return _Kind(plausible=True)
        try:
            record, _ = json.JSONDecoder().raw_decode(text, start.end())
            break
        except (ValueError, RecursionError):
            more = stream.read(len(head)) if len(head) < _LONGEST_RECORD else b""
            if not more:
                return _Kind("is not whole JSON", plausible=True)
            head += more
    if not isinstance(record, dict) or not {"image_id", "score"} <= record.keys():
        return _Kind("has records without image_id and score", plausible=True)
    shapes = {"bbox": "bbox" in record, "segm": "segmentation" in record}
    if not any(shapes.values()):
        return _Kind("has records without bbox or segmentation", plausible=True)
    return _Kind(plausible=True, shapes=tuple(x for x, there in shapes.items() if there))


def _seeds(
    folder: Path, iou_type: str
) -> tuple[tuple[Path, ...], tuple[str, ...], tuple[str, ...]]:
    """Results of a folder: one file, or one for each seed."""
    results = _results(folder)
    if not results:
        there = [x.name for x in _entries(folder)]
        has = f"it has {_some(there)}" if there else "it is empty"
        raise ValueError(
            f"{folder} has no results; {has}; {_EXPECTED}; mmdet writes them where "
            "tools/test.py is given test_evaluator.outfile_prefix or --out"
        )
    fitting = [x for x in results if iou_type in x.kind.shapes]
    if not fitting:
        raise ValueError(
            f"{folder} has no results of {iou_type!r}; it has {_some(_names(results, folder))}, of "
            f"{_other(iou_type)!r}"
        )
    while len(parts := {_below(x.path, folder).parts[0] for x in fitting}) == 1:
        if not (folder / min(parts)).is_dir():
            break
        folder /= min(parts)  # down to where they part
    direct = [x for x in fitting if x.path.parent == folder]
    if direct and len(direct) < len(fitting):
        deeper = [x for x in fitting if x not in direct]
        raise ValueError(
            f"{folder} has results, {_some(_names(direct, folder))}, and others in sub-folders, "
            f"{_some(_names(deeper, folder))}, and it is not clear which are meant; name one"
        )
    groups = {}
    for x in fitting:
        seed = _stem(x.path) if direct else _below(x.path, folder).parts[0]
        groups.setdefault(seed, []).append(x)
    order = _seed_order(list(groups))
    if order is None:
        which = _some(_names(direct, folder)) if direct else f"in {_some(sorted(groups))}"
        raise ValueError(
            f"{folder} has several results, {which}, whose names do not say that they are seeds of "
            "one run; name one of them, list the seeds (name=a.json,b.json), or call them seed0, "
            "seed1"
        )
    files = [_one(groups[x], iou_type, folder if direct else folder / x) for x in order]
    rest = [] if direct else [x.name for x in _entries(folder) if x.is_dir()]
    # a seed that crashed must not be missed without a word
    missing = [x for x in rest if x not in groups and _seed_order([*groups, x]) is not None]
    notes = tuple(f"{folder / x} has no results of {iou_type!r}: left out." for x in missing)
    return tuple(files), tuple(x or "results" for x in order), notes


@dataclasses.dataclass(frozen=True)
class _File:
    path: Path
    kind: _Kind


def _results(folder: Path) -> list[_File]:
    """Results files in a folder and below it."""
    found, seen, level = [], set(), [folder]
    for _ in range(_DEPTH):
        below = []
        for current in level:
            if (key := current.resolve()) in seen:
                continue  # a link to a folder above
            seen.add(key)
            for entry in _entries(current):
                if entry.is_dir():
                    below.append(Path(entry.path))
                elif entry.name.lower().endswith((".json", *PICKLES)) and entry.is_file():
                    kind = _kind(Path(entry.path))
                    if not kind.problem:
                        found.append(_File(Path(entry.path), kind))
        level = below
    return found


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        entries = [x for x in os.scandir(folder) if not x.name.startswith(".")]
    except PermissionError:
        return []
    return sorted(entries, key=lambda x: x.name)


def _one(files: list[_File], iou_type: str, folder: Path) -> Path:
    """The file that is meant among those of one seed."""
    if len({(x.path.parent, _stem(x.path)) for x in files}) == 1:
        # results.bbox.json, results.segm.json and results.pkl of one run
        named = [x for x in files if _shape(x.path) == iou_type]
        unnamed = [x for x in files if _shape(x.path) is None]
        files = named or unnamed or files
        files = [x for x in files if x.path.suffix.lower() not in PICKLES] or files
    if len(files) > 1:
        raise ValueError(
            f"{folder} has {len(files)} results of {iou_type!r}, {_some(_names(files, folder))}, "
            "and it is not clear which is meant; name one of them"
        )
    return files[0].path


def _seed_order(names: list[str]) -> list[str] | None:
    """Names in the order of their numbers; None unless they differ by a seed's number alone."""
    if len(names) == 1:
        return names
    split = {name: re.split(r"(\d+)", name) for name in names}
    first = split[names[0]]
    if any(len(x) != len(first) or x[::2] != first[::2] for x in split.values()):
        return None
    differing = [i for i in range(1, len(first), 2) if len({x[i] for x in split.values()}) > 1]
    if len(differing) != 1:
        return None
    (place,) = differing
    word = re.search(r"(^|[a-z]+)[^a-z0-9]*$", "".join(first[:place]).lower())
    if not word or not re.fullmatch(_SEED, word[1]):
        return None
    if max(len(x[place]) for x in split.values()) > 6:
        return None  # 8 digits and more are dates
    return sorted(names, key=lambda name: (int(split[name][place]), name))


def _stem(path: Path) -> str:
    """A file's name without its suffix and without .bbox or .segm."""
    return re.sub(r"(^|[._-])(bbox|segm|mask)$", "", path.stem)


def _shape(path: Path) -> str | None:
    found = re.search(r"(?:^|[._-])(bbox|segm|mask)$", path.stem)
    return found and found[1].replace("mask", "segm")


def _labels(path: Path, files: tuple[Path, ...]) -> list[str]:
    """Names for a run, from the shortest that says something to the whole path."""
    path = Path(os.path.abspath(path if path.is_dir() else files[0]))
    parts = list(path.parts[1:])
    if not path.is_dir():
        parts[-1:] = [_stem(path)] if _stem(path) else []
    told = [i for i, part in enumerate(parts) if not _PLAIN.fullmatch(part.lower())] or [0]
    longer = ("/".join(parts[i:]) for i in range(told[-1], -1, -1))
    return list(dict.fromkeys([*parts[told[-1] : told[-1] + 1], *longer, str(path)]))


def _unique(names: list[str | None], labels: list[list[str]]) -> list[str]:
    """Given names as they are, the others from their labels, longer where two are equal."""
    step = [0] * len(names)

    def name(i: int) -> str:
        return labels[i][min(step[i], len(labels[i]) - 1)] if names[i] is None else names[i]

    for _ in range(max(map(len, labels))):
        now = [name(i) for i in range(len(names))]
        for i, x in enumerate(now):
            step[i] += now.count(x) > 1
    return [name(i) for i in range(len(names))]


def _other(iou_type: str) -> str:
    return IOU_TYPES[1 - IOU_TYPES.index(iou_type)]


def _names(files: list[_File], folder: Path) -> list[str]:
    return sorted(str(_below(x.path, folder)) for x in files)


def _below(path: Path, folder: Path) -> Path:
    return path.relative_to(folder)


def _some(items: Sequence[str], shown: int = 6) -> str:
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
