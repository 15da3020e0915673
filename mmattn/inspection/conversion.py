"""What ``tools/convert_checkpoint.py`` does, says and refuses."""

from __future__ import annotations

import os
import re
from pathlib import Path

import mmattn
from mmattn import checkpoints
from mmattn.checkpoints import CheckpointError, Conversion
from mmattn.checkpoints.files import Source, some
from mmattn.inspection import checkpoint_file, config_file
from mmattn.inspection._console import PreflightError, say
from mmattn.inspection.build import build_model


def convert(
    path: str,
    target: str | None = None,
    kind: str | None = None,
    config: str | None = None,
    options: dict | None = None,
    allow_leftover: bool = False,
    force: bool = False,
) -> None:
    """Converts a file of weights, and prints what became of them.

    Args:
        path: The file.
        target: The file to write; None: only say what would be done.
        kind: ``'backbone'`` or ``'detector'``; None: as the file.
        config: A config whose model the result must fit.
        options: Overrides for that config.
        allow_leftover: Leave out weights that have no place, in place of refusing.
        force: Overwrite ``target``.

    Raises:
        PreflightError: The file is none of the known ones, something is left over, it does not
            fit the config, or it cannot be written.
    """
    try:
        if target:
            checkpoints.check_target(target, path, force)
        source = checkpoints.source(path)
        try:
            result = checkpoints.convert(source.weights, kind, _is_modern(source.meta))
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint {path}: {error}") from error
        _report(path, source, result)
        if config:
            _check_fit(result, path, config, options, allow_leftover)
        else:
            say("missing:    not checked; --config CONFIG compares with a model")
        if result.left_over and not allow_leftover:
            raise PreflightError(
                f"{len(result.left_over)} of the weights in {path} have no place, so nothing is "
                "written; --allow-leftover leaves them out"
            )
        if not target:
            say("written:    nothing; name a file as DST")
            return
        meta = dict(
            mmattn_version=mmattn.__version__,
            converted_from=Path(path).name,
            recognised=f"{result.family}: {result.model}",
        )
        classes = source.classes if result.kind == "detector" else ()
        checkpoints.write(target, result.weights, meta, classes)
    except CheckpointError as error:
        raise PreflightError(str(error)) from error
    size = os.path.getsize(os.path.expanduser(target)) / 2**20
    say(f"written:    {target}, {len(result.weights)} weights for a {result.kind}, {size:.1f} MiB")
    say(f"use it:     {_use(target, result.kind)}")


def _is_modern(meta: dict[str, str]) -> bool:
    """Whether MMDetection 2.x or mmengine wrote the file, which the names do not always tell."""
    version = re.match(r"\d+", meta.get("mmdet_version", ""))
    return "mmengine_version" in meta or bool(version and int(version[0]) >= 2)


def _report(path: str, source: Source, result: Conversion) -> None:
    packed = source.container and not path.endswith(".safetensors")
    under = f" under {source.container!r}" if packed else ""
    say(f"read:       {path}, {len(source.weights)} weights{under}")
    if source.others:
        copies = [name for name in source.others if "ema" in name]
        hint = f"; {', '.join(copies)}: an EMA copy of the weights" * bool(copies)
        say(f"not taken:  {some(source.others, 8)}{hint}")
    say(f"recognised: {result.family}: {result.model}")
    say(f"kept:       {len(result.names) - len(result.renamed)}")
    _list("renamed", [_rule(old, new) for old, new in result.renamed.items()])
    if result.changed:
        _list("changed", [f"{how}: {name}" for name, how in result.changed.items()])
    _list("dropped", [f"{why}: {name}" for name, why in result.dropped.items()])
    _list("left over", result.left_over)
    if result.note:
        say(f"note:       {result.note}")
    keys = checkpoints.model_config(result.net) if result.net else None
    if keys:
        say(f"a config:   model = {checkpoints.as_python(keys)}")
    unchanged = not result.changed and all(old == new for old, new in result.names.items())
    if unchanged and not result.left_over and source.container in (None, "state_dict"):
        say(f"The names fit already, no conversion is needed: {_use(path, result.kind)}")


def _rule(old: str, new: str) -> str:
    """``'bam1.* -> layer1.2.bam.*'`` for names that end alike."""
    olds, news = old.split("."), new.split(".")
    # one part of the old name stays
    while len(olds) > 1 and news and olds[-1] == news[-1]:
        olds.pop()
        news.pop()
    return f"{'.'.join([*olds, '*'])} -> {'.'.join([*news, '*'])}"


def _list(what: str, items: list[str], shown: int = 8) -> None:
    """How many there are, with one example of those whose texts differ in numbers only."""
    say(f"{what + ':':<12}{len(items)}")
    examples: dict[str, list[str]] = {}
    for text in items:
        examples.setdefault(re.sub(r"\d+", "", text), []).append(text)
    for texts in list(examples.values())[:shown]:
        say(f"            {texts[0]}" + f" ({len(texts)} such)" * (len(texts) > 1))
    if len(examples) > shown:
        say(f"            and {len(examples) - shown} kinds more")


def _use(path: str, kind: str) -> str:
    if kind == "backbone":
        return f"model.backbone.init_cfg=dict(type='Pretrained', checkpoint={path!r})"
    return f"--cfg-options load_from={path}, or python tools/test.py CONFIG {path}"


def _check_fit(
    result: Conversion, path: str, config: str, options: dict | None, allow_leftover: bool
) -> None:
    """Raises PreflightError unless the weights are those of the config's model."""
    model = build_model(config_file.load(config, options))
    if result.kind == "backbone":
        if not hasattr(model, "backbone"):
            raise PreflightError(f"the model of {config} has no backbone to compare with")
        model = model.backbone
    missing, unexpected, reshaped = checkpoint_file.trial_load(model, result.weights, path)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes = [f"{k} is {tuple(result.weights[k].shape)}, there {own[k]}" for k in reshaped]
    what = f"the {result.kind} of {config}"
    say(f"compared:   with {what}, {len(own)} weights")
    _list("missing", missing)
    _list("unexpected", unexpected)
    if shapes:
        _list("other shape", shapes)
    for names, problem in (
        (shapes, "have another shape there"),
        (missing, "of that model are not in it"),
        ([] if allow_leftover else unexpected, "have no place there"),
    ):
        if names:
            raise PreflightError(
                f"{path} does not fit {what}, so nothing is written: {len(names)} weights "
                f"{problem}, {some(names, 2)}"
            )
    for name in unexpected:
        del result.weights[name]
