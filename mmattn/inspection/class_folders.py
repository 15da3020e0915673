"""Are the folders of a classification dataset those that the config speaks of?"""

from __future__ import annotations

import os
from collections.abc import Mapping

from mmattn.inspection._console import PreflightError

# mmpretrain's datasets whose labels are the names of folders
TYPES = ("CustomDataset", "ImageNet")
IMAGENET_CLASSES = 1000


def folder(dataset: Mapping) -> str | None:
    """Where a dataset of mmpretrain keeps its images; None for other datasets.

    Raises:
        PreflightError: It names no place at all.
    """
    kind = _kind(dataset)
    if kind not in TYPES:
        return None
    root, prefix = dataset.get("data_root") or "", dataset.get("data_prefix") or ""
    if isinstance(prefix, Mapping):
        prefix = prefix.get("img_path") or ""
    if kind == "ImageNet":
        prefix = prefix or dataset.get("split") or ""
    if not root and not prefix:
        raise PreflightError(
            f"a dataset of type {kind} has no data_root: give --cfg-options data_root=/path/to/it/ "
            "or set data_root in each dataset of the config"
        )
    return os.path.join(root, prefix)


def check(cfg, datasets: list[tuple[str, Mapping]]) -> None:
    """Raises PreflightError where class folders do not fit the head, or one another.

    Labels are positions among the sorted names of folders: other names are other labels, and
    nothing would say so.

    Args:
        cfg: The whole config.
        datasets: Pairs of the part of the config that has a dataset, and the dataset. Their
            folders exist.
    """
    head = (cfg.get("model") or {}).get("head")
    expected = head.get("num_classes") if isinstance(head, Mapping) else None
    first = None
    for owner, dataset in datasets:
        place = folder(dataset)
        if place is None or not os.path.isdir(place) or _labels_from_file(dataset):
            continue
        names = _class_names(place, owner)
        fixed = _kind(dataset) == "ImageNet" and not dataset.get("metainfo")
        if fixed and len(names) != IMAGENET_CLASSES:
            raise PreflightError(
                f"image folder {place} of {owner} has {len(names)} class folders, and "
                f"type='ImageNet' expects {IMAGENET_CLASSES}; a set of other classes is "
                "type='CustomDataset', see docs/pretraining.md"
            )
        if expected and len(names) != expected:
            raise PreflightError(
                f"image folder {place} of {owner} has {len(names)} class folders, and "
                f"model.head.num_classes is {expected}: give --cfg-options "
                f"model.head.num_classes={len(names)}, or the folder of the other dataset"
            )
        if first and names != first[1]:
            odd = sorted(set(names) ^ set(first[1]))[0]
            raise PreflightError(
                f"image folders {first[0]} and {place} have different class folders, {odd} is in "
                "one of them alone: labels are positions among the names, so both need the same"
            )
        first = first or (place, names)


def _kind(dataset: Mapping) -> str:
    kind = dataset.get("type")
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def _labels_from_file(dataset: Mapping) -> bool:
    """Whether labels come from a list, or there are none."""
    if dataset.get("ann_file") or dataset.get("with_label") is False:
        return True
    root, split = dataset.get("data_root") or "", dataset.get("split") or ""
    listed = os.path.join(root, "meta", f"{split}.txt")
    return split == "test" or (_kind(dataset) == "ImageNet" and os.path.isfile(listed))


def _class_names(place: str, owner: str) -> list[str]:
    folders = sorted(entry.name for entry in os.scandir(place) if entry.is_dir())
    if folders and folders[0].startswith("."):
        raise PreflightError(
            f"image folder {place} of {owner} has a hidden folder {folders[0]}, which mmpretrain "
            "takes for a class: remove it"
        )
    if not folders:
        raise PreflightError(
            f"image folder {place} of {owner} has no class folders: expected one folder a class, "
            f"{os.path.join(place, 'CLASS', 'IMAGE')}"
        )
    if not any(next(os.scandir(os.path.join(place, name)), None) for name in folders):
        raise PreflightError(
            f"the {len(folders)} class folders of image folder {place} of {owner} are empty"
        )
    return folders
