"""Where the files of a COCO data set are."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmattn.evaluation.reading import reading_file

SPLITS = ("train2017", "val2017")


class Split(NamedTuple):
    """An annotation file and the folder that its file names are in.

    Attributes:
        name: What reports call it.
        annotations: The COCO file.
        images: The folder.
    """

    name: str
    annotations: Path
    images: Path


def find(folder: Path | str, names: Sequence[str] | None = None) -> list[Split]:
    """The splits of a folder in COCO's layout.

    Args:
        folder: It has ``annotations/instances_NAME.json`` and images in ``NAME/``.
        names: Which; if None train2017, val2017 and what else is there.

    Raises:
        ValueError: There is no such folder, or it has another layout.
    """
    folder = Path(folder)
    if not folder.is_dir():
        state = "is no folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {state}; expected a folder in COCO's layout")
    there = [
        path.stem.removeprefix("instances_")
        for path in sorted(folder.glob("annotations/instances_*.json"))
    ]
    if not there:
        hint = "expected annotations/instances_train2017.json and train2017/ in it"
        if others := sorted(folder.glob("annotations/*.json")) + sorted(folder.glob("*.json")):
            hint += f"; name files of another layout: --ann {others[0]} --image-dir FOLDER"
        raise ValueError(f"{folder} has no annotations/instances_*.json; {hint}")
    wanted = list(names) if names else list(dict.fromkeys((*SPLITS, *there)))
    return [
        Split(name, folder / "annotations" / f"instances_{name}.json", folder / name)
        for name in wanted
    ]


def pairs(annotations: Sequence[str], folders: Sequence[str]) -> list[Split]:
    """Splits of any layout, from their annotation files and one folder of images for each or all.

    Raises:
        ValueError: There are neither as many folders as files nor one for all, or two files have
            the same name.
    """
    if len(folders) not in (1, len(annotations)):
        raise ValueError(
            f"expected one --image-dir for all, or one for each of the {len(annotations)} --ann, "
            f"got {len(folders)}"
        )
    folders = list(folders) * (len(annotations) if len(folders) == 1 else 1)
    splits = [
        Split(Path(file).stem.removeprefix("instances_"), Path(file), Path(folder))
        for file, folder in zip(annotations, folders, strict=True)
    ]
    names = [split.name for split in splits]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two annotation files are called {twice[0]}: check them one by one")
    return splits


def read(path: Path) -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError, ValueError: One sentence that names it.
    """
    with reading_file(f"annotation file {path}"):
        return path.read_bytes()


def is_complete_coco(split: Split) -> bool:
    """Whether a split is called as one of COCO 2017."""
    return bool(re.fullmatch(r"instances_(train|val)2017\.json", split.annotations.name))


def place(old: Path, new: Path, link: str) -> None:
    """Puts a file where another data set expects it, unless it is there.

    Args:
        old: The file.
        new: Where it is expected; missing folders are made.
        link: 'hard' for a hard link (a copy where the file system cannot), 'symbolic' or 'copy'.
    """
    if new.exists():
        return
    new.parent.mkdir(parents=True, exist_ok=True)
    if link == "symbolic":
        new.symlink_to(old.resolve())
        return
    if link == "hard":
        try:
            os.link(old.resolve(), new)
            return
        except OSError as error:
            # another file system, one without links, or a file of another user
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
    shutil.copyfile(old, new)
