"""Is a file a checkpoint, may it be read, and does it fit the model?

Files are read with ``torch.load(weights_only=True)``, which runs no code of theirs.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import zipfile
from pathlib import Path

from mmattn.inspection._console import PreflightError, warn

HARDLY_ANY = 0.1  # of a model's weights; a checkpoint with fewer of them is for another model


def allow_training_state() -> None:
    """Lets checkpoints of mmengine be read safely, by torch.load here and in mmengine.

    They hold more than weights: the log, as ``HistoryBuffer`` and numpy arrays. Upstream
    mmengine 0.10.7 leaves torch.load at its default, which refuses that since PyTorch 2.6; the
    OneDL fork allows it, but falls back to full unpickling for anything else. With this, both
    read what mmengine writes and nothing that could run code. Who trusts a file all the same
    sets ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1``, an option of PyTorch.
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

    Raises:
        PreflightError: There is no such file, or it is not a whole checkpoint, or it holds
            objects that could run code.
    """
    import torch

    file = Path(path).expanduser()
    if not file.is_file():
        others = sorted(file.parent.glob("*.pth"), key=lambda p: p.stat().st_mtime)
        hint = f"; in that folder: {', '.join(p.name for p in others[-3:])}" if others else ""
        raise PreflightError(f"{purpose} {path} does not exist{hint}")
    allow_training_state()
    zipped = zipfile.is_zipfile(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        raise PreflightError(f"{purpose} {path} {_reason(file, zipped, error)}") from error
    if not isinstance(content, dict):
        raise PreflightError(
            f"{purpose} {path} is expected to hold a dict of weights, but holds "
            f"{type(content).__name__}"
        )
    return content


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
            "not read; set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 if you trust it"
        )
    if zipped:
        return f"is damaged ({type(error).__name__}): save or download it again"
    return (
        f"is not a checkpoint: expected a file written by torch.save, got {size} bytes that "
        f"start with {start!r}"
    )


def state_dict(content: dict) -> dict:
    """The weights in a checkpoint, named as mmengine looks for them."""
    weights = content.get("state_dict", content)
    return {re.sub(r"^module\.", "", name): value for name, value in weights.items()}


def check_fit(model, content: dict, path: str, partly: bool = False, prefix: str = "") -> None:
    """Loads the weights to see whether they fit; the run loads them again when it starts.

    Loading, not a comparison of names, is what tells: modules convert the names of older files.

    Args:
        model: The model, wrapped or not, or a part of it.
        content: What :func:`read` returned.
        path: Names the checkpoint in messages.
        partly: Weights may be missing, or differ in shape in a head, as when fine-tuning on
            other classes. Otherwise the checkpoint must be one of this very model.
        prefix: Only weights with this prefix count, and without it.

    Raises:
        PreflightError: The checkpoint does not fit.
    """
    import torch

    while hasattr(model, "module"):
        model = model.module
    weights = {
        name[len(prefix) :]: value
        for name, value in state_dict(content).items()
        if isinstance(value, torch.Tensor) and name.startswith(prefix)
    }
    own = {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    reshaped: list[str] = []
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # modules report conversions when the weights count
    try:
        try:
            result = model.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            # all that no module converts, as DRConv2d does with a plain convolution's weight
            reshaped = re.findall(r"size mismatch for (\S+):", str(error))
            if not reshaped:
                raise
            fitting = {name: value for name, value in weights.items() if name not in reshaped}
            result = model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise PreflightError(f"checkpoint {path} does not fit: {reason}") from error
    finally:
        logging.disable(previous)
    missing = [name for name in result.missing_keys if name in own and name not in reshaped]
    extra = [name for name in result.unexpected_keys if _in_body(name)]

    name = (content.get("meta") or {}).get("experiment_name", "")
    trained_as = re.sub(r"_\d{8}_\d{6}$", "", name)
    head = f"checkpoint {path} does not fit the model: "
    advice = f"take the config it was trained with{trained_as and f', {trained_as}'}"
    found = len(own) - len(missing) - len(reshaped)
    if found <= HARDLY_ANY * len(own):
        raise PreflightError(
            f"{head}only {found} of the model's {len(own)} weights are in it; it has "
            f"{_some(list(shapes))}{_prefix_hint(own, shapes)}"
        )
    if reshaped and not (partly and not any(map(_in_body, reshaped))):
        listed = _some(
            [f"{k} is {shapes[k]} in the file and {own[k]} in the model" for k in reshaped]
        )
        what = "backbone or module" if any(map(_in_body, reshaped)) else "number of classes"
        raise PreflightError(f"{head}{listed}; it was trained with another {what}: {advice}")
    for keys, what in ((missing, "it lacks"), (extra, "the model has no place for its")):
        if keys and not partly:
            raise PreflightError(
                f"{head}{what} {_some(keys)}; it was trained with other modules: {advice}"
            )


def _prefix_hint(own: dict, shapes: dict) -> str:
    """What to write where names differ by the prefix of the backbone only."""
    if any(f"backbone.{name}" in own for name in shapes):
        return (
            ": a bare backbone belongs into "
            "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    if any(f"backbone.{name}" in shapes for name in own):
        return ": add prefix='backbone.' to the init_cfg"
    return ""


def _in_body(name: str) -> bool:
    return name.startswith(("backbone.", "neck."))


def _some(items: list[str], shown: int = 2) -> str:
    """The first items and how many more there are."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def latest(work_dir: str) -> tuple[str, dict] | None:
    """The newest whole checkpoint of a training as (path, content), or None.

    ``last_checkpoint`` names the newest one. Its path goes stale when the folder moves, and its
    file may be damaged, so older checkpoints of the folder come next.
    """
    folder = Path(work_dir)
    candidates = []
    pointer = folder / "last_checkpoint"
    if pointer.is_file():
        last = Path(pointer.read_text().strip())
        candidates += [last, folder / last.name]
    numbered = {p: re.fullmatch(r"(?:iter|epoch)_(\d+)", p.stem) for p in folder.glob("*.pth")}
    numbered = {p: int(match[1]) for p, match in numbered.items() if match}
    candidates += sorted(numbered, key=numbered.get, reverse=True)
    for path in dict.fromkeys(p.resolve() for p in candidates if p.is_file()):
        try:
            content = read(str(path))
            check_resumable(content, str(path))
        except PreflightError as error:
            warn(f"warning: passed over: {error}")
        else:
            return os.path.relpath(path), content
    return None


def check_resumable(content: dict, path: str) -> None:
    """Raises PreflightError for a checkpoint that holds no state of a training."""
    meta = content.get("meta") or {}
    # Runner.resume would execute the text under 'config'; only MMDetection 2 wrote it
    if "config" in meta or not {"epoch", "iter"} <= set(meta) or "message_hub" not in content:
        raise PreflightError(
            f"checkpoint {path} holds no training to go on with, only weights: "
            "start from them with --cfg-options load_from=..."
        )
