"""Is a file a checkpoint, may it be read, and does it fit the model?

Files are read by :mod:`mmattn.checkpoints`, which runs no code of theirs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmattn.checkpoints import files
from mmattn.checkpoints.files import allow_training_state, is_local  # noqa: F401  (for callers)
from mmattn.inspection import config_file
from mmattn.inspection._console import PreflightError, warn

HARDLY_ANY = 0.1  # of a model's weights; a checkpoint with fewer of them is for another model


def read(path: str, purpose: str = "checkpoint") -> dict:
    """The content of a checkpoint file, its tensors mapped from disk where the format allows.

    Raises:
        PreflightError: There is no such file, or it is not a whole checkpoint, or it holds
            objects that could run code.
    """
    try:
        return files.read(path, purpose)
    except files.CheckpointError as error:
        raise PreflightError(str(error)) from error


def state_dict(content: dict) -> dict:
    """The weights in a checkpoint, named as mmengine looks for them."""
    weights = content.get("state_dict", content)
    return {re.sub(r"^module\.", "", name): value for name, value in weights.items()}


def trial_load(model, weights: dict, path: str) -> tuple[list[str], list[str], list[str]]:
    """Loads weights into a model, and says what it lacks, has no place for, and has otherwise.

    Loading, not a comparison of names, is what tells: modules convert the names of older files.

    Args:
        model: The model, or a part of it.
        weights: Name to tensor.
        path: Names the checkpoint in messages.

    Returns:
        Missing names, unexpected names, and names whose shape is another one.

    Raises:
        PreflightError: A module refuses the weights.
    """
    from mmengine.logging import MMLogger

    reshaped: list[str] = []
    logger = MMLogger.get_current_instance()
    previous, logger.disabled = logger.disabled, True  # modules report when the weights count
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
        logger.disabled = previous
    missing = [
        name
        for name in result.missing_keys
        if name not in reshaped and not name.endswith("num_batches_tracked")
    ]
    return missing, result.unexpected_keys, reshaped


@dataclass(frozen=True)
class Fit:
    """What became of the weights of a file in a model.

    Args:
        shapes: The shape of each weight in the file.
        missing: Weights of the model that are not in it.
        left_over: Weights in it that the model has no place for.
        reshaped: Weights of another shape in the model.
        total: How many weights the model has.
    """

    shapes: dict[str, tuple[int, ...]]
    missing: list[str]
    left_over: list[str]
    reshaped: list[str]
    total: int

    def has(self, names: Iterable[str]) -> bool:
        """Whether the model has got all of these weights."""
        return not {*self.missing, *self.reshaped}.intersection(names)


def check_fit(model, content: dict, path: str, partly: bool = False, prefix: str = "") -> Fit:
    """Loads the weights to see whether they fit; the run loads them again when it starts.

    Args:
        model: The model, wrapped or not, or a part of it.
        content: What :func:`read` returned.
        path: Names the checkpoint in messages.
        partly: Weights may be missing, or differ in shape in a head, as when fine-tuning on
            other classes. Otherwise the checkpoint must be one of this very model.
        prefix: Only weights with this prefix count, and without it.

    Returns:
        What fits.

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
    missing, left_over, reshaped = trial_load(model, weights, path)
    extra = [name for name in left_over if _in_body(name)]

    name = (content.get("meta") or {}).get("experiment_name", "")
    trained_as = re.sub(r"_\d{8}_\d{6}$", "", name)
    head = f"checkpoint {path} does not fit the model: "
    # beside it lies the whole config, with what --attention and --cfg-options made of it
    beside = Path(path).expanduser().with_name(f"{trained_as}.py")
    config = str(beside) if trained_as and beside.is_file() else trained_as
    advice = f"take the config it was trained with{config and f', {config}'}"
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
    return Fit(shapes, missing, left_over, reshaped, len(own))


def take_backbones(model_cfg) -> list[str]:
    """Gives ``prefix='backbone.'`` to backbones that start from the file of a whole model.

    So a classifier's checkpoint, or a detector's, goes where a bare backbone's does; mmengine
    alone would find none of its names. Only local files are looked at.

    Returns:
        The paths of those files.
    """
    whole = []
    for node in config_file.maps(model_cfg):
        backbone = node.get("backbone")
        init_cfg = backbone.get("init_cfg") if isinstance(backbone, dict) else None
        for one in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
            if not any(config_file.pretrained(one)) or one.get("prefix"):
                continue
            path = one["checkpoint"]
            if not is_local(path):
                continue
            content = read(path, "pretrained checkpoint")
            if any(name.startswith("backbone.") for name in content.get("state_dict", content)):
                one["prefix"] = "backbone."
                whole.append(path)
    return whole


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
