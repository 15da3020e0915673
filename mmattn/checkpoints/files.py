"""Is a file one of weights, and what is in it? Reading runs no code of the file's.

``.pth`` is read with ``torch.load(weights_only=True)``; ``.safetensors`` holds tensors only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".pth", ".safetensors")
# where a checkpoint keeps its weights: PyTorch's own convention, and torchvision's and timm's
CONTAINERS = ("state_dict", "model")


class CheckpointError(ValueError):
    """What is wrong with a file of weights, in one sentence."""


def allow_training_state() -> None:
    """Lets checkpoints of mmengine be read safely, by torch.load here and in mmengine.

    They hold more than weights: the log, as ``HistoryBuffer`` and numpy arrays. Upstream
    mmengine 0.10.7 leaves torch.load at its default, which refuses that since PyTorch 2.6; the
    OneDL fork allows it, but falls back to full unpickling for anything else. With this, both
    read what mmengine writes and nothing that could run code.
    """
    import torch

    # each time: leaving a torch.serialization.safe_globals block forgets what was added inside
    torch.serialization.add_safe_globals(_training_state())
    if not os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")


@functools.cache
def _training_state() -> list:
    """The classes and functions in a checkpoint of mmengine that are not weights."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    def history_method(owner, name):
        # pickle writes a HistoryBuffer's methods as getattr(HistoryBuffer, 'min')
        if owner is not HistoryBuffer or name.startswith("_"):
            raise ValueError(f"a checkpoint asks for the attribute {name!r} of {owner!r}")
        return getattr(owner, name)

    multiarray = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray
    allowed = [HistoryBuffer, np.ndarray, np.dtype, _named(history_method, "builtins.getattr")]
    for name in ("_reconstruct", "scalar"):
        # numpy 2 moved them; a checkpoint has the name of the numpy it was written with
        for home in ("numpy.core.multiarray", "numpy._core.multiarray"):
            allowed.append(_named(getattr(multiarray, name), f"{home}.{name}"))
    allowed += {type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u4", "u1", "?")}
    return allowed


def _named(function, path: str):
    """The function under the import path by which a pickle asks for it."""

    def call(*args):
        return function(*args)

    call.__module__, _, call.__qualname__ = path.rpartition(".")
    call.__name__ = call.__qualname__
    return call


def is_local(path: str) -> bool:
    """Whether a checkpoint is named by a path, not by a URL or ``torchvision://`` and the like."""
    return re.match(r"[\w-]+:(//|s3:)", path) is None


def read(path: str, purpose: str = "checkpoint") -> dict:
    """The content of a checkpoint file, its tensors mapped from disk where the format allows.

    A ``.safetensors`` file gives ``dict(state_dict=..., meta=...)``.

    Raises:
        CheckpointError: There is no such file, or it is not a whole checkpoint, or it holds
            objects that could run code.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise CheckpointError(f"{purpose} {path} is a folder: name a file in it")
    if not file.is_file():
        others = [p for suffix in (*SUFFIXES, ".pth.tar") for p in file.parent.glob(f"*{suffix}")]
        others = sorted(others, key=lambda p: p.stat().st_mtime)
        hint = f"; in that folder: {', '.join(p.name for p in others[-3:])}" if others else ""
        raise CheckpointError(f"{purpose} {path} does not exist{hint}")
    if file.suffix == ".safetensors":
        return _read_safetensors(file, f"{purpose} {path}")
    import torch

    allow_training_state()
    zipped = zipfile.is_zipfile(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        raise CheckpointError(f"{purpose} {path} {_reason(file, zipped, error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{purpose} {path} is expected to hold a dict of weights, but holds "
            f"{type(content).__name__}"
        )
    return content


def _read_safetensors(file: Path, label: str) -> dict:
    safetensors = _safetensors(label)
    try:
        with safetensors.safe_open(file, framework="pt", device="cpu") as opened:
            meta = dict(opened.metadata() or {})
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{label} is not a whole .safetensors file ({' '.join(str(error).split())}): "
            "save or download it again"
        ) from error
    with contextlib.suppress(KeyError, ValueError):  # other writers may mean something else by it
        classes = json.loads(meta["classes"])
        if isinstance(classes, list):
            meta["dataset_meta"] = dict(classes=tuple(classes))
            del meta["classes"]
    return dict(state_dict=weights, meta=meta)


def _safetensors(label: str):
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{label} needs the package safetensors: pip install safetensors"
        ) from error
    return safetensors


def _reason(file: Path, zipped: bool, error: Exception) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(16)
    if start[:2] == b"PK" and not zipped:
        return f"is incomplete ({size} bytes, its end is missing): save or download it again"
    refused = re.search(r"GLOBAL ([\w.]+)|asks for the attribute ('\w+')", str(error))
    if refused:
        return (
            f"holds {refused[1] or refused[2]}, which is no weight and could run code, so it is "
            "not read; if you trust it, save its weights alone: "
            "torch.save(torch.load(path, weights_only=False)['state_dict'], new_path)"
        )
    if zipped:
        return f"is damaged ({type(error).__name__}): save or download it again"
    return (
        f"is not a checkpoint: expected a file written by torch.save, got {size} bytes that "
        f"start with {start!r}"
    )


@dataclass
class Source:
    """The weights of a file, and what else it holds.

    Args:
        weights: Name to tensor, without the ``module.`` of a parallel model.
        container: The key that the weights stood under; None if they were the whole file.
        others: The file's other entries, which are no weights.
        meta: The strings under ``meta`` that say what wrote the file.
        classes: The class names of a detector; empty where the file does not say.
    """

    weights: dict
    container: str | None
    others: list[str]
    meta: dict[str, str]
    classes: tuple[str, ...]


def source(path: str) -> Source:
    """The weights of a file in any of the forms that releases have.

    Raises:
        CheckpointError: As :func:`read`, or the file holds no weights.
    """
    import torch

    if not is_local(path):
        raise CheckpointError(f"checkpoint {path} is not a local file: download it first")
    content = read(path)
    container = next((key for key in CONTAINERS if isinstance(content.get(key), dict)), None)
    inside = content if container is None else content[container]
    weights = {
        re.sub(r"^(module\.)+", "", name): value.detach()
        for name, value in inside.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not weights:
        raise CheckpointError(
            f"checkpoint {path} holds no weights: expected tensors by name, or a dict of them "
            f"under {' or '.join(map(repr, CONTAINERS))}, got {some(list(map(str, content)))}"
        )
    beside = [key for key in content if key != container and key not in inside]
    no_tensors = [key for key, value in inside.items() if not isinstance(value, torch.Tensor)]
    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    known = meta.get("dataset_meta")
    classes = (known if isinstance(known, dict) else {}).get("classes", meta.get("CLASSES"))
    named = isinstance(classes, (list, tuple)) and all(isinstance(c, str) for c in classes)
    return Source(
        weights,
        container,
        [str(key) for key in beside + no_tensors],
        {key: value for key, value in meta.items() if isinstance(value, str)},
        tuple(classes) if named else (),
    )


def check_target(path: str, origin: str, force: bool = False) -> None:
    """Raises CheckpointError unless ``path`` is a file that :func:`write` may write."""
    target = Path(path).expanduser()
    if target.suffix not in SUFFIXES:
        raise CheckpointError(f"{path} is expected to end in {' or '.join(SUFFIXES)}")
    if target.suffix == ".safetensors":
        _safetensors(path)
    if target.is_dir() or not target.parent.is_dir():
        what = f"{path} is" if target.is_dir() else f"{target.parent} is not"
        raise CheckpointError(f"{what} a folder: name a file in a folder that exists")
    if target.exists():
        if Path(origin).expanduser().exists() and target.samefile(Path(origin).expanduser()):
            raise CheckpointError(f"{path} is the file to convert itself: name another")
        if not force:
            raise CheckpointError(f"{path} exists: name another file, or give --force")


def write(path: str, weights: dict, meta: dict[str, str], classes: tuple[str, ...] = ()) -> None:
    """Writes weights, strings that say where they are from, and the names of the classes.

    The file is there whole or not at all. It holds tensors and text: mmengine and
    ``torch.load(weights_only=True)`` read the ``.pth``, any reader of safetensors the other.

    Raises:
        CheckpointError: It cannot be written.
    """
    target = Path(path).expanduser()
    # a view would be saved with all that it is a view of, and safetensors takes none
    weights = {name: value.detach().clone().contiguous() for name, value in weights.items()}
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            if target.suffix == ".safetensors":
                from safetensors.torch import save

                text = {**meta, "classes": json.dumps(classes)} if classes else meta
                stream.write(save(weights, metadata=text))
            else:
                import torch

                named = {"dataset_meta": {"classes": tuple(classes)}} if classes else {}
                torch.save(dict(state_dict=weights, meta={**meta, **named}), stream)
        os.replace(part, target)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError for a full disk
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be written: {reason}") from error
    finally:
        part.unlink(missing_ok=True)


def some(items: list[str], shown: int = 5) -> str:
    """The first items and how many more there are."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
