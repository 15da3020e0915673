"""Can the model of a config be built, and if not, why?"""

from __future__ import annotations

import ast
import contextlib
import copy
import os
import re
import warnings

from mmattn.inspection import modules
from mmattn.inspection._console import PreflightError
from mmattn.inspection.fixes import Fixes, at, bare
from mmattn.inspection.modules import Slot

POSITIONS = ("after_conv1", "after_conv2", "after_conv3")
# what a registry, a class or one of mmdet's asserts raises
ERRORS = (TypeError, ValueError, KeyError, AssertionError, AttributeError, PreflightError)


def build_model(cfg):
    """The model of a config, on the CPU and without any checkpoint.

    Raises:
        PreflightError: It cannot be built.
    """
    from mmengine.registry import MODELS, DefaultScope

    from mmattn.inspection.preflight import check_types

    if not isinstance(cfg.get("model"), dict):
        raise PreflightError(f"config {cfg.filename} has no model: is it a part of others?")
    model_cfg = copy.deepcopy(cfg["model"])
    if cfg.get("data_preprocessor") is not None:  # as the Runner does
        model_cfg.setdefault("data_preprocessor", cfg["data_preprocessor"])
    for _, node in modules.nodes(model_cfg):
        # timm's backbones and mmdet's distillation would download while they are built
        if node.get("pretrained") is True:
            node["pretrained"] = False
        if "teacher_ckpt" in node:
            node["teacher_ckpt"] = None
    scope = cfg.get("default_scope") or "mmdet"
    try:
        with explained(cfg), warnings.catch_warnings(), DefaultScope.overwrite_default_scope(scope):
            warnings.simplefilter("ignore")
            check_types(model_cfg)
            return MODELS.build(model_cfg)
    except (RuntimeError, ImportError, OSError) as error:  # a package or a file is missing, say
        reason = " ".join(str(error).split())
        raise PreflightError(f"the config cannot be built: {reason}") from error


@contextlib.contextmanager
def explained(cfg):
    """Turns what building a config raises into one sentence."""
    try:
        yield
    except ERRORS as error:
        told = failure(cfg, error)
        if told is error:
            raise
        raise told from error


def failure(cfg, error: Exception) -> Exception:
    """The error in one sentence, with what to put into the config where that is known.

    Args:
        cfg: The whole config.
        error: What building it raised. It is returned itself where ``MMATTN_TRACEBACK=1`` asks
            for it.
    """
    if os.environ.get("MMATTN_TRACEBACK") == "1":
        return error
    lost, kept = lost_imports(cfg)
    missing = isinstance(error, (KeyError, PreflightError))
    hint = ""
    if missing and lost:
        imports = Fixes(cfg).line(
            "custom_imports", dict(imports=[*lost, *kept], allow_failed_imports=False)
        )
        hint = f"; custom_imports has replaced that of the config's base: {imports}"
    if isinstance(error, PreflightError):
        return PreflightError(f"{error}{hint}")
    reason = None if isinstance(error, ValueError) else explain(cfg, str(error))
    if reason:
        return PreflightError(f"the config cannot be built: {reason}{hint}")
    reason = " ".join(str(error).split()) or type(error).__name__
    return PreflightError(
        f"the config cannot be built: {reason}{hint} (MMATTN_TRACEBACK=1 shows where)"
    )


def explain(cfg, error: str) -> str | None:
    """Why mmdet does not take the plug-ins or convolutions of a config, and what to write.

    Args:
        cfg: The whole config.
        error: What mmdet says, which often names neither the part nor the reason.
    """
    model_cfg = cfg["model"]
    for _, node in modules.nodes(model_cfg):
        if isinstance(node.get("plugins"), dict):
            return f"plugins of {node.get('type')} is expected to be a list of dicts, got a dict"
    used = list(modules.slots(model_cfg))
    for slot in used:
        if sentence := _unfit(cfg, slot, error):
            return sentence
    if twice := re.search(r"duplicate plugin (\w+)", error):
        return _without_postfix(cfg, used, twice[1])
    return None


def _unfit(cfg, slot: Slot, error: str) -> str | None:
    """Why a part of the model does not take what is in one of its slots."""
    from mmattn.registry import unknown_type

    node = at(cfg["model"], slot.path)
    kind, owner = slot.cfg["type"], modules.class_of(node.get("type"))
    name = kind if isinstance(kind, str) else kind.__name__
    if slot.cls is None and isinstance(kind, str) and (problem := unknown_type(kind)):
        return f"{slot.key} asks for {problem}"
    if owner is None:
        return None
    if not modules.takes(owner, slot.key):
        instead = f" and attach them: {_attach_line(cfg, slot)}" if slot.key == "plugins" else ""
        return f"{owner.__name__} takes no {slot.key}: leave it out{instead}"
    if "Not implemented yet" in error and node.get("depth") in (18, 34):
        blocks = f"{owner.__name__} with depth={node['depth']}"
        if slot.key == "plugins":
            line = _attach_line(cfg, slot, plugins=None)
            return f"{blocks} takes no plugins: attach them: {line}"
        if slot.key == "dcn":
            conv = Fixes(cfg).model(slot.path, dcn=None, conv_cfg=dict(slot.cfg))
            return f"{blocks} takes no dcn: it can replace every convolution, {conv}"
    if slot.key == "dcn" and node.get("conv_cfg") and "conv_cfg must be None" in error:
        conv = Fixes(cfg).model(slot.path, conv_cfg=None)
        return f"{owner.__name__} takes either dcn or conv_cfg: {conv}"
    return _unfit_plugin(cfg, slot, node, name) if slot.key == "plugins" else None


def _unfit_plugin(cfg, slot: Slot, node: dict, name: str) -> str | None:
    plugin = node["plugins"][slot.index]
    if slot.cls and not modules.takes(slot.cls, "in_channels"):
        ours = "mmattn.SE" if name.rpartition(".")[2] == "SELayer" else "a module that does"
        line = ""
        if ours == "mmattn.SE":
            module = dict(
                type=ours, **({"ratio": slot.cfg["ratio"]} if "ratio" in slot.cfg else {})
            )
            line = f", {Fixes(cfg).plugin(slot, cfg=module)}"
        return f"{name} does not take in_channels, and cannot be a plug-in: use {ours}{line}"
    if plugin.get("position") not in POSITIONS:
        return (
            f"position of the plug-in {name} is expected to be one of {', '.join(POSITIONS)}, got "
            f"{plugin.get('position')!r}"
        )
    stages = node.get("num_stages", 4)
    if plugin.get("stages") is not None and len(plugin["stages"]) != stages:
        return (
            f"stages of the plug-in {name} is expected to have {stages} values, one for each "
            f"stage, got {tuple(plugin['stages'])}"
        )
    return None


def _without_postfix(cfg, used: list[Slot], name: str) -> str | None:
    """What to write where two plug-ins of one type would have one name."""
    for slot in used:
        like = [o for o in used if (o.path, o.key, o.cls) == (slot.path, "plugins", slot.cls)]
        if len(like) > 1 and slot.cls is not None:
            plugins = bare(at(cfg["model"], slot.path)["plugins"])
            for number, other in enumerate(like[1:], 2):
                plugins[other.index]["cfg"]["postfix"] = f"_{number}"
            line = Fixes(cfg).model(slot.path, plugins=plugins)
            return f"two plug-ins have the name {name}, and one needs a postfix: {line}"
    return None


def _attach_line(cfg, slot: Slot, **changes) -> str:
    """The line that attaches what a slot does not take, and changes the part with the slot."""
    part = "".join(rf"{key}\." for key in slot.path)
    neck = str((cfg["model"].get("neck") or {}).get("type"))
    if "depth" in at(cfg["model"], slot.path):
        where = part + r"layer\d\.\d+\.bn2"  # of a basic block, the authors' place
    elif neck.endswith("FPN"):
        where = r"neck\.lateral_convs\.\d+"
    else:
        where = "<the names of parts of the model>"
    value = changes
    for key in reversed(slot.path if changes else ()):
        value = {key: value}
    attached = dict(cfg=bare(slot.cfg), after=where)
    attach = dict(type="mmattn.Attach", module=cfg["model"]["type"], plugins=[attached])
    return Fixes(cfg).line("model", attach | value)


def lost_imports(cfg) -> tuple[list[str], list[str]]:
    """What the bases of a config import and the config itself does not; and what it does."""
    kept = _listed((cfg.get("custom_imports") or {}).get("imports"))
    text = getattr(cfg, "text", None) or ""  # of the config and its bases
    pattern = r"^custom_imports\s*=.*?\bimports\s*=\s*(\[[^\]]*\]|\([^)]*\)|'[^']*'|\"[^\"]*\")"
    named: list[str] = []
    for value in re.findall(pattern, text, re.MULTILINE | re.DOTALL):
        try:
            named += _listed(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            continue  # a variable among them: not to be read from the text
    own = [name for name in dict.fromkeys(named) if name not in kept]
    # the scope mmattn is found without
    return [name for name in own if name.split(".")[0] != "mmattn"], kept


def _listed(imports) -> list[str]:
    return [imports] if isinstance(imports, str) else list(imports or ())
