"""Which config is meant, and do the options on the command line do what they say?"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
import re
from pathlib import Path
from typing import Any

from mmattn.inspection._console import PreflightError, warn

SUFFIXES = (".py", ".json", ".yaml", ".yml")
# what mmengine, mmdet and the tools read from a config beside the arguments of Runner
OTHER_KEYS = {
    "activation_checkpointing",
    "auto_scale_lr",
    "compile",
    "corrupt_images",
    "custom_imports",
    "data_root",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "runner_type",
    "tta_model",
    "tta_pipeline",
}


def load(name: str, options: dict | None = None):
    """The config behind ``name`` with ``options`` merged in, as mmengine's ``Config``.

    Args:
        name: A path, or ``package::path`` for a config that comes with a package, such as
            ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py`` or ``mmattn::demo/...``.
        options: Dotted keys and values, from ``--cfg-options``. ``data_root`` moves every
            dataset and annotation file below the config's data root; where it is not given, the
            environment variable ``MMDET_DATASETS`` does.

    Raises:
        PreflightError: There is no such config, it cannot be read, or an option names a part of
            the config that does not exist.
    """
    from mmengine.config import Config
    from mmengine.config.utils import MODULE2PACKAGE

    # Lets a config inherit by _base_ = 'mmattn::...': mmengine takes no package it does not know.
    # Named by a module, the package is found where it lies, an editable install too.
    MODULE2PACKAGE.setdefault("mmattn", "mmattn._version")
    options = dict(options or {})
    path = find(name)
    try:
        config = Config.fromfile(path)
    except (FileNotFoundError, SyntaxError, ImportError) as error:
        reason = " ".join(str(error).split())
        if "mmpretrain" in reason:
            _require_mmpretrain(name)
        raise PreflightError(f"config {name} cannot be read: {reason}") from error
    if config.get("default_scope") == "mmpretrain":
        _require_mmpretrain(name)
    _drop_own_scope(config._cfg_dict)
    check_options(config, options)
    root = options.get("data_root")
    if not root and config.get("default_scope", "mmdet") == "mmdet":
        root = os.environ.get("MMDET_DATASETS")
    if root:
        move_data_root(config, str(root))
        options.pop("data_root", None)
    try:
        config.merge_from_dict(options)  # after the move: a more specific option wins
    except (KeyError, TypeError) as error:
        raise PreflightError(f"--cfg-options do not fit config {name}: {error}") from error
    return config


def _require_mmpretrain(name: str) -> None:
    try:
        found = importlib.util.find_spec("mmpretrain")
    except ImportError:
        found = None
    if found is None:
        raise PreflightError(
            f"config {name} is one of a classifier and needs mmpretrain, which is not installed: "
            "pip install 'mmattn[pretrain]'"
        )


def _drop_own_scope(part: Any) -> None:
    """Removes the scope that mmengine gives to what comes from a base of ours.

    The types in our configs are mmdet's, as the default scope says; ``mmattn.`` has none of them.
    """
    if isinstance(part, dict):
        if part.get("_scope_") == "mmattn":
            del part["_scope_"]
        part = part.values()
    elif not isinstance(part, (list, tuple)):
        return
    for value in part:
        _drop_own_scope(value)


def find(name: str) -> Path:
    """The file behind a path or ``package::path``."""
    package, _, inner = name.rpartition("::")
    if package:
        folders = _config_folders(package)
        if not folders:
            if package == "mmpretrain":
                _require_mmpretrain(name)
            raise PreflightError(f"config {name}: no package {package!r} with configs is installed")
        paths = [folder / inner for folder in folders]
    else:
        paths = [Path(name).expanduser()]
    for path in paths:
        if path.is_file():
            if path.suffix not in SUFFIXES:
                raise PreflightError(
                    f"config {name} is expected to end in {', '.join(SUFFIXES)}; "
                    "the config comes before the checkpoint"
                )
            return path
    near = _near(name, package, paths[0])
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise PreflightError(f"config {name} does not exist{hint}")


def _config_folders(package: str) -> list[Path]:
    """Where a package keeps its configs: as mim installs them, or beside it in a checkout."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    roots = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    folders = [Path(root, sub, "configs") for root in roots for sub in (".mim", "..")]
    return [folder.resolve() for folder in folders if folder.is_dir()]


def _near(name: str, package: str, path: Path) -> list[str]:
    """Up to three existing configs whose names resemble ``name``."""
    known = {}
    if not package:
        known = {str(near): near for near in path.parent.glob("*.py")}
    for owner in [package] if package else ["mmattn", "mmdet"]:
        for folder in _config_folders(owner):
            for near in folder.rglob("*.py"):
                known[f"{owner}::{near.relative_to(folder).as_posix()}"] = near
    by_file: dict[str, str] = {}
    for label, near in known.items():
        by_file.setdefault(near.stem, label)
    return [by_file[stem] for stem in difflib.get_close_matches(path.stem, by_file, 3, 0.75)]


def check_options(config, options: dict) -> None:
    """Raises on an option for a part that nothing reads, warns of a probable typo.

    New keys are legitimate (``model.backbone.plugins`` of a plain ResNet), but only below what
    mmengine reads: it ignores an unknown top-level key without a word.
    """
    for option in options:
        first, *rest = option.split(".")
        _check_top_level(config, option, first)
        node = config.get(first)
        for depth, key in enumerate(rest, 1):
            if not isinstance(node, dict):
                break
            if key not in node:
                near = difflib.get_close_matches(key, node, 1, 0.85)
                if near:
                    parent = ".".join([first, *rest][:depth])
                    warn(
                        f"warning: {option} is new in this config; did you mean {parent}.{near[0]}?"
                    )
                break
            node = node[key]


def _top_level_keys() -> set[str]:
    from mmengine.runner import Runner

    return set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"} | OTHER_KEYS


def _check_top_level(config, option: str, first: str) -> None:
    if first in OTHER_KEYS or first in (known := _top_level_keys()):
        return
    if first in config:
        warn(
            f"warning: {option} may have no effect: {first} is a variable of the config file, "
            "and its value is in place already; set the keys that hold it"
        )
        return
    near = difflib.get_close_matches(first, known, 1, 0.75)
    if near:
        raise PreflightError(
            f"--cfg-options {option}: a config has no part {first!r}; "
            f"did you mean {'.'.join([near[0], *option.split('.')[1:]])}?"
        )
    warn(f"warning: {option} may have no effect: nothing in mmengine reads {first!r}")


def move_data_root(config, root: str) -> None:
    """Puts ``root`` in place of the config's data root in every dataset and evaluator.

    A config's ``data_root`` is a variable that was copied into each dataset and annotation path
    when the file was read, so that setting it alone changes nothing.
    """
    parts = [config[key] for key in config if re.search("_(dataloader|evaluator)$", key)]
    nodes = list({id(node): node for node in maps(parts)}.values())  # parts may share some
    old = config.get("data_root")
    if not old:
        roots = {node["data_root"] for node in nodes if node.get("data_root")}
        if len(roots) != 1:
            raise PreflightError(
                f"data_root={root} cannot be placed: the datasets of this config have "
                f"{'different data roots' if roots else 'none'} ({', '.join(sorted(roots))}); "
                "set train_dataloader.dataset.data_root and its like"
            )
        (old,) = roots
    old = old.rstrip("/")
    new = os.path.expanduser(root).rstrip("/")

    def moved(value):
        if isinstance(value, str) and (value == old or value.startswith(old + "/")):
            return new + (value[len(old) :] or "/")
        if isinstance(value, (list, tuple)):
            return type(value)(moved(item) for item in value)
        return value

    for node in nodes:
        for key, value in list(node.items()):
            node[key] = moved(value)
    config["data_root"] = new + "/"


def pretrained(init_cfg):
    """The checkpoints in an ``init_cfg``, with the prefix of the names that count."""
    for one in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
        if is_pretrained(one) and one.get("checkpoint"):
            prefix = one.get("prefix") or ""
            # mmengine takes it with the dot or without
            yield one["checkpoint"], prefix and prefix.rstrip(".") + "."


def is_pretrained(one) -> bool:
    """Whether one entry of an ``init_cfg`` loads a checkpoint."""
    kind = one.get("type") if isinstance(one, dict) else None
    return getattr(kind, "__name__", kind) in ("Pretrained", "PretrainedInit")


def maps(node):
    """Every dict in a tree of dicts and lists."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from maps(child)
