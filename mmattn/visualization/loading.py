"""A trained model, and images to run it on, from a command line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from mmattn.inspection import attention_option, checkpoint_file, config_file
from mmattn.inspection._console import PreflightError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def load_model(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike,
    options: Mapping | None = None,
    device: str = "cpu",
    attention: str | None = None,
):
    """The model of a config with the weights of a checkpoint, in evaluation mode.

    Args:
        config: A path or ``package::path``.
        checkpoint: A file, or the work dir of a training for its newest checkpoint.
        options: Dotted keys and values that override parts of the config.
        device: ``'cpu'``, ``'cuda'``, ``'cuda:1'``.
        attention: As ``--attention`` of tools/train.py: ``'sge'``.

    Returns:
        The model, with ``cfg`` (the whole config) and ``dataset_meta`` (its ``classes``).

    Raises:
        PreflightError: The config cannot be built, the checkpoint is not one or is another
            model's, or there is no such device.
    """
    import torch

    from mmattn.inspection.build import build_model

    cfg = config_file.load(str(config), dict(options or {}))
    if attention is not None:
        attention_option.apply(cfg, attention)
    try:
        torch.device(device)
    except RuntimeError as error:
        raise PreflightError(
            f"--device is expected to be cpu, cuda or cuda:N, got {device}"
        ) from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise PreflightError(f"--device {device}: PyTorch finds no CUDA device")
    path = os.fspath(checkpoint)
    if os.path.isdir(path):
        latest = checkpoint_file.latest(path)
        if latest is None:
            raise PreflightError(f"folder {path} has no whole checkpoint of a training")
        path = latest[0]
    if not checkpoint_file.is_local(path):
        raise PreflightError(f"checkpoint {path} is expected to be a file: download it first")
    content = checkpoint_file.read(path)
    model = build_model(cfg)
    checkpoint_file.check_fit(model, content, path)  # loads it
    model.cfg = cfg
    meta = (content.get("meta") or {}).get("dataset_meta") or {}
    model.dataset_meta = {str(key).lower(): value for key, value in dict(meta).items()}
    if not model.dataset_meta.get("classes"):
        model.dataset_meta["classes"] = _classes(cfg)
    model.to(device)
    model.eval()
    return model


def _classes(cfg) -> tuple[str, ...]:
    """Names of the classes as the test data's config, or its class, gives them."""
    from mmengine.registry import DATASETS, DefaultScope

    for node in config_file.maps(cfg.get("test_dataloader") or {}):
        if "type" not in node or not ({"ann_file", "metainfo", "data_prefix"} & set(node)):
            continue
        named = (node.get("metainfo") or {}).get("classes")
        if named:
            return tuple(named)
        with DefaultScope.overwrite_default_scope(cfg.get("default_scope") or "mmdet"):
            cls = DATASETS.get(node["type"]) if isinstance(node["type"], str) else node["type"]
        classes = (getattr(cls, "METAINFO", None) or {}).get("classes")
        if classes:
            return tuple(classes)
    return ()


def image_files(paths: Iterable[str]) -> list[Path]:
    """Files, and those in folders, in the order of their names.

    Raises:
        PreflightError: A path does not exist, or a folder has no images.
    """
    found: list[Path] = []
    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise PreflightError(
                    f"folder {name} has no images: expected files that end in {', '.join(SUFFIXES)}"
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise PreflightError(f"image {name} does not exist")
    return found
