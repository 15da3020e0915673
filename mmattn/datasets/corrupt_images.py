"""What a training does about images that cannot be read: one key for a whole config."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from mmattn.inspection._console import PreflightError

ON_ERROR = ("raise", "skip")
LIST = "corrupt_images.txt"


class CorruptImageError(PreflightError):
    """An image cannot be read: one sentence, also when it comes from a worker of a data loader."""

    def __init__(self, message: str = "") -> None:
        # a loader raises the worker's error again, with the worker's whole traceback as message
        super().__init__(message.rpartition("CorruptImageError: ")[2].strip())


def check_on_error(on_error: Any, limit: Any) -> None:
    """Raises ValueError for what is no answer to an image that cannot be read."""
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise ValueError(f"limit must be a whole number from 0 on, got {limit!r}")


def apply(cfg: Any) -> None:
    """Puts ``corrupt_images`` of a config into force.

    ``corrupt_images='raise'``, ``'skip'`` or ``dict(on_error='skip', limit=100)`` turns every
    ``LoadImageFromFile`` of mmcv in the config into :class:`mmattn.LoadImageFromFile`. What is
    validated and tested is always 'raise': an evaluation leaves out no image. A training that skips
    lists the images in ``corrupt_images.txt`` of its work dir, and says at its end how many.

    Args:
        cfg: mmengine's ``Config``, changed in place; its ``work_dir`` is set.

    Raises:
        PreflightError: The key says something else, or nothing in the training reads images by
            mmcv's transform.
    """
    wish = cfg.get("corrupt_images")
    if wish is None:
        return
    wish = dict(wish) if isinstance(wish, dict) else dict(on_error=wish)
    options = {"on_error": wish.pop("on_error", None), "limit": wish.pop("limit", 100)}
    try:
        check_on_error(**options)
        if wish:
            raise ValueError(f"it has no {', '.join(map(repr, wish))}; expected on_error and limit")
    except ValueError as error:
        raise PreflightError(f"corrupt_images: {error}") from None
    if options["on_error"] == "skip":
        options["list_file"] = os.path.join(cfg.get("work_dir") or ".", LIST)
    found = 0
    # hooks switch to pipelines of their own
    for key in ("train_dataloader", "custom_hooks"):
        for loader in _loaders(cfg.get(key)):
            loader.update(type="mmattn.LoadImageFromFile", **options)
            found += 1
    if cfg.get("train_dataloader") and not found:
        raise PreflightError(
            "corrupt_images: nothing in train_dataloader is a LoadImageFromFile of mmcv; leave the "
            "key out"
        )
    for key in ("val_dataloader", "test_dataloader", "tta_pipeline"):
        for loader in _loaders(cfg.get(key)):
            loader.update(type="mmattn.LoadImageFromFile", on_error="raise")
    if options["on_error"] == "skip":
        hook = dict(type="mmattn.CorruptImagesHook", list_file=options["list_file"])
        cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), hook]


def _loaders(part: Any) -> Iterator[Any]:
    """The dicts of transforms that read images."""
    if isinstance(part, dict):
        kind = part.get("type")
        name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
        scope, _, name = name.rpartition(".")
        if name == "LoadImageFromFile" and scope != "mmattn":
            yield part
            return
        part = part.values()
    elif not isinstance(part, (list, tuple)):
        return
    for inner in list(part):
        yield from _loaders(inner)


def listed(list_file: str) -> dict[str, str]:
    """Path -> what is wrong with it, from the list of a training; empty if there is none."""
    try:
        with open(list_file, encoding="utf-8") as file:
            lines = (line.rstrip("\n").partition("\t") for line in file)
            return {path: why for path, _, why in lines}
    except FileNotFoundError:
        return {}
