"""What goes wrong, silently, with the modules in a model?

Each hazard is a generator over a :class:`Subject`: for what it finds, one sentence of what happens
and the line that ends it when it is put into the config. :data:`HAZARDS` has them by name, in the
order in which they are reported.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmattn.convs
from mmattn.checkpoints.model_config import Expression
from mmattn.insertion import insertions
from mmattn.inspection import fixes, modules
from mmattn.inspection.build import lost_imports
from mmattn.inspection.fixes import Fixes
from mmattn.inspection.modules import Inserted, Slot
from mmattn.inspection.weights import Source
from mmattn.plugins import GCT, AttentionModule
from mmattn.registry import MODELS


class Finding(NamedTuple):
    """A hazard that was found: its name, what happens, and the line for the config."""

    name: str
    sentence: str
    line: str


@dataclass
class Subject:
    """What is looked at.

    Args:
        cfg: The whole config.
        model: Its model, not wrapped and not yet initialised, in the mode of a training.
        found: What is inserted.
        sources: The checkpoints that it starts from.
        gpus: On how many a training runs; None: not known.
    """

    cfg: dict
    model: nn.Module
    found: list[Inserted]
    sources: list[Source]
    gpus: int | None = None

    @cached_property
    def fixes(self) -> Fixes:
        """Lines for the config."""
        return Fixes(self.cfg)

    @cached_property
    def slots(self) -> list[Slot]:
        """The slots of the model's config that are in use."""
        return list(modules.slots(self.cfg["model"]))


HAZARDS: dict[str, Callable[[Subject], Iterator[tuple[str, str]]]] = {}


def hazard(function):
    """Lists a hazard under its function's name."""
    HAZARDS[function.__name__.replace("_", "-")] = function
    return function


def look_for(subject: Subject) -> tuple[list[Finding], list[str]]:
    """Every hazard that the subject has, and which could not be looked for, with the reason."""
    found, skipped = [], []
    for name, function in HAZARDS.items():
        try:
            found += [Finding(name, *one) for one in function(subject)]
        except Exception as error:  # the other hazards do not depend on it
            skipped.append(f"{name} ({type(error).__name__}: {' '.join(str(error).split())[:120]})")
    return found, skipped


# what is in the config and not in the model


@hazard
def not_built(s: Subject):
    """A module that the config asks for is not in the model."""
    seen = set()
    for slot in s.slots:
        ours = slot.key == "plugins" or slot.cls in MODELS.module_dict.values()
        place = (slot.path, slot.key, slot.index)
        if not (slot.cls and (ours or slot.key == "dcn")) or place in seen:
            continue
        seen.add(place)
        if any(isinstance(module, slot.cls) for module in s.model.modules()):
            continue
        model, node = s.cfg["model"], fixes.at(s.cfg["model"], slot.path)
        where = ".".join(map(str, ("model", *slot.path, slot.key)))
        kind, stages = _name(slot.cfg["type"]), _stages(node)
        if slot.key == "dcn" and not any(node.get("stage_with_dcn") or ()):
            wanted = tuple(i > 0 for i in range(stages))
            yield (
                f"{where} builds no {kind}: without stage_with_dcn mmdet puts it nowhere",
                s.fixes.model(slot.path, stage_with_dcn=wanted),
            )
        elif slot.key == "plugins" and not any(node["plugins"][slot.index].get("stages") or [True]):
            yield (
                f"{where} builds no {kind}: its stages are all False",
                s.fixes.plugin(slot, stages=(True,) * stages),
            )
        elif slot.key != "plugins":
            yield (
                f"{where} asks for {kind}, and {_name(node.get('type'))} has built none",
                s.fixes.model(slot.path, **{slot.key: None}),
            )
        else:
            part = "".join(f"{key}." for key in slot.path)
            attached = dict(cfg=dict(slot.cfg), after=re.escape(part) + r"layer\d")
            yield (
                f"{where} asks for {kind}, and {_name(node.get('type'))} has built none",
                s.fixes.line(
                    "model",
                    dict(type="mmattn.Attach", module=model["type"], plugins=[attached]),
                ),
            )


@hazard
def imports_lost(s: Subject):
    """``custom_imports`` of a config replaces that of its base."""
    lost, kept = lost_imports(s.cfg)
    if lost:
        yield (
            "custom_imports replaces that of the config's base, which imports "
            f"{_and(lost)}: what is registered there is not found",
            s.fixes.line(
                "custom_imports", dict(imports=[*lost, *kept], allow_failed_imports=False)
            ),
        )


@hazard
def conv_everywhere(s: Subject):
    """``conv_cfg`` puts a convolution made for conv2 in place of every one."""
    ours = [getattr(mmattn.convs, name) for name in mmattn.convs.__all__]
    for slot in s.slots:
        node = fixes.at(s.cfg["model"], slot.path)
        owner = modules.class_of(node.get("type"))
        if (
            slot.key != "conv_cfg"
            or slot.cls not in ours
            or slot.cls is mmattn.convs.GCTConv2d  # is meant for every one
            or node.get("depth") in (18, 34)  # mmdet has no other place there
            or "stage_with_dcn" not in inspect.signature(owner).parameters
        ):
            continue
        there = [one for one in s.found if one.slot is not None and one.slot == slot]
        stages = _stages(node)
        yield (
            f"conv_cfg puts {_name(slot.cfg['type'])} in place of {len(there)} convolutions, the "
            "stem, the 1x1s and the downsample branches among them "
            f"({sum(one.parameters for one in there):,} parameters)",
            s.fixes.model(
                slot.path,
                conv_cfg=None,
                dcn=dict(slot.cfg),
                stage_with_dcn=tuple(i >= stages - 2 for i in range(stages)),
            ),
        )


@hazard
def fallback_on_stride(s: Subject):
    """``fallback_on_stride`` holds for one block alone."""
    for slot in s.slots:
        if slot.key == "dcn" and slot.cfg.get("fallback_on_stride"):
            yield (
                "fallback_on_stride=True keeps one convolution plain and no other, because mmdet "
                "takes the key out of dcn when it reads it first: the others become "
                f"{_name(slot.cfg['type'])} also where they have a stride",
                s.fixes.model(slot.path, dcn=dict(fallback_on_stride=False)),
            )


@hazard
def hook_lost(s: Subject):
    """A module that was attached to a norm layer is not called when that layer is converted."""
    sync = s.cfg.get("sync_bn")
    attached = [
        (insertion, s.model.get_submodule(insertion.target)) for insertion in insertions(s.model)
    ]
    on_norms = [(i, norm) for i, norm in attached if isinstance(norm, _BatchNorm)]
    if sync and on_norms:
        yield (
            f"{_some(i.name for i, _ in on_norms)}: not called in a distributed training, where "
            f"sync_bn={sync!r} makes new norm layers without the hooks of the old ones",
            s.fixes.line("sync_bn", None),
        )
        return
    lost = [i for i, norm in on_norms if isinstance(norm, nn.SyncBatchNorm) or not i.called]
    for path, node in modules.nodes(s.cfg["model"]):
        norm_cfg = node.get("norm_cfg")
        if lost and isinstance(norm_cfg, dict) and "SyncBN" in str(norm_cfg.get("type")):
            yield (
                f"{_some(i.name for i in lost)}: not called without distributed training, in "
                "DetInferencer for one, where mmengine turns SyncBN into BN and the hooks on it "
                "are lost; or attach to a part that is no norm layer",
                s.fixes.model(path, norm_cfg=dict(type="BN")),
            )
            return


# what the model starts from


@hazard
def init_wiped(s: Subject):
    """The model's initialisation takes a module's own away."""
    for several in _alike(s.found):
        first = several[0]
        built = first.constructed
        if first.from_checkpoint or not (built and built.same) or first.start.same:
            continue
        ours = fixes.equivalent(first)
        yield (
            f"{_count(several)}: built as identity, but the model's own initialisation draws the "
            f"weights anew ({start_of(several)})",
            s.fixes.plugin(first.slot, cfg=ours)
            if ours
            else s.fixes.pretrained(first, "torchvision://resnet50"),
        )


@hazard
def plain_pretrained(s: Subject):
    """Weights of a plain model meet modules that change what it computes."""
    for several in _alike(s.found):
        first = several[0]
        start = first.start
        if not first.from_plain or first.from_checkpoint or start.same or start.unknown:
            continue
        if not start.refusal:
            yield (
                f"{_count(several)}: {start_of(several)} at the start, which changes what the "
                f"weights of {first.from_plain} compute",
                s.fixes.start(first),
            )


@hazard
def weights_refused(s: Subject):
    """A convolution does not take the weights that it is given."""
    for several in _alike(s.found):
        first = several[0]
        if first.from_plain and not first.from_checkpoint and first.start.refusal:
            yield (
                f"{_count(several)}: the weights of {first.from_plain} do not load into it, and "
                "the training stops there",
                s.fixes.start(first),
            )


@hazard
def weights_left_over(s: Subject):
    """A checkpoint has weights of modules that the model does not have."""
    classes = {
        cls._abbr_: f"mmattn.{name}"
        for name, cls in MODELS.module_dict.items()
        if inspect.isclass(cls) and issubclass(cls, AttentionModule)
    }
    pattern = re.compile(rf"(?:^|\.)(({'|'.join(classes)})\d*)\.")
    for source in s.sources:
        places: dict[str, set] = {}
        for name in source.fit.left_over if source.fit else ():
            if match := pattern.search(name):
                places.setdefault(match[2], set()).add(name[: match.end(1)])
        for abbr, names in places.items():
            said = f"{source.path} has weights of {_some(names)}"
            there = [one for one in s.found if one.type == classes[abbr]]
            if there:
                converted = f"<{source.path}, converted by tools/convert_checkpoint.py>"
                yield (
                    f"{said}, and the {classes[abbr]} here have other names: they are left out",
                    s.fixes.pretrained(there[0], converted),
                )
                continue
            gated = any(f"{name}.gate_scale" in source.fit.shapes for name in names)
            cfg = dict(type=classes[abbr], **(dict(identity_init=True) if gated else {}))
            if abbr == "bam" and s.cfg["model"]["type"] != "mmattn.Attach":  # between the stages
                attached = dict(cfg=cfg, after=r"backbone\.layer[123]")
                wrapped = dict(type="mmattn.Attach", module=s.cfg["model"]["type"])
                yield (
                    f"{said}, and this model has no place for them: they are left out",
                    s.fixes.model((), **wrapped, plugins=[attached]),
                )
                continue
            path, node = _backbone(s)
            plugins = [*(node.get("plugins") or ()), dict(cfg=cfg, position="after_conv3")]
            yield (
                f"{said}, and this model has no place for them: they are left out",
                s.fixes.model(path, plugins=plugins),
            )

        said = f"{source.path} is of a network with %s, and this one is without: "
        left_over = source.fit.left_over if source.fit else ()
        missing = f"{len(source.fit.missing)} weights of it are not there" if left_over else ""
        if any(re.search(r"\.0\.(alpha|gamma|beta)$", name) for name in left_over):
            cfg = dict(type="mmattn.GCTConv2d")
            yield said % "GCT" + missing, s.fixes.model(_backbone(s)[0], conv_cfg=cfg)
        if grouped := [name for name in left_over if name.endswith(".conv2g.weight")]:
            channels, share, *_ = source.fit.shapes[grouped[0]]
            groups = {} if channels == 32 * share else {"branch_groups": channels // share}
            line = s.fixes.model(_backbone(s)[0], type="mmattn.SKResNet", **groups)
            yield said % "SK" + "its weights are left out", line


def _backbone(s: Subject) -> tuple:
    """Where the config has the backbone, or the model itself where it has none."""
    parts = [part for part in modules.nodes(s.cfg["model"]) if "backbone" in part[0]]
    return next(iter(parts), ((), s.cfg["model"]))


# what learns


@hazard
def frozen_module(s: Subject):
    """A module that changes the features is frozen as it was drawn."""
    for several in _alike(one for one in s.found if one.frozen):
        first = several[0]
        if not (first.from_checkpoint or first.harmless or first.start.unknown):
            yield (
                f"{_count(several)}: frozen at the start ({start_of(several)}), and never trained",
                s.fixes.thaw(several),
            )


@hazard
def never_trained(s: Subject):
    """What was inserted stays identity."""
    kinds: dict[str, list[Inserted]] = {}
    for one in s.found:
        kinds.setdefault(one.type, []).append(one)
    for several in kinds.values():
        idle = [one for one in several if one.frozen and one.harmless and not one.from_checkpoint]
        # a convolution that is meant to leave the plain one costs more than that
        heavy = [one for one in idle if one.conv and not one.gate]
        if idle and len(idle) == len(several):
            yield (
                f"{_count(idle)}: all frozen as identity, so that the model stays the plain one",
                s.fixes.thaw(idle),
            )
        elif heavy:
            plain = sum(modules.plain_size(one.module) for one in heavy)
            times = sum(one.parameters for one in heavy) / plain
            yield (
                f"{_count(heavy)}: frozen as plain convolutions, with {times:.1f} times their "
                "parameters",
                s.fixes.thaw(heavy),
            )


@hazard
def norm_eval(s: Subject):
    """A BatchNorm in a module never gets statistics."""
    for several in _alike(one for one in s.found if not one.frozen and not one.from_checkpoint):
        first = several[0]
        norms = [
            norm
            for one in several
            for norm in one.new.modules()
            if isinstance(norm, _BatchNorm) and norm.track_running_stats and not norm.training
        ]
        if not norms:
            continue
        takes_norm = first.slot and modules.takes(type(first.module), "norm_cfg")
        path = s.fixes.owner(first, "norm_eval")
        yield (
            f"{_count(several)}: the BatchNorms inside keep mean 0 and variance 1, since norm_eval "
            "holds the statistics of every BatchNorm in the backbone",
            s.fixes.arguments(first.slot, norm_cfg=dict(type="GN", num_groups=1))
            if takes_norm
            else s.fixes.model(path or (), norm_eval=False),
        )


@hazard
def gct_beta_decayed(s: Subject):
    """Weight decay pulls at GCT's beta."""
    if not s.cfg.get("optim_wrapper") or not any(isinstance(m, GCT) for m in s.model.modules()):
        return
    decays = {
        id(parameter): group.get("weight_decay", 0)
        for group in _parameter_groups(s)
        for parameter in group["params"]
    }
    decayed = [
        f"{name}.beta"
        for name, module in s.model.named_modules()
        if isinstance(module, GCT) and module.beta.requires_grad and decays.get(id(module.beta))
    ]
    if decayed:
        keys = Expression("{'.beta': dict(decay_mult=0)}")
        yield (
            f"weight decay acts on {_some(decayed)}, which the authors of GCT exempt",
            s.fixes.line("optim_wrapper", dict(paramwise_cfg=dict(custom_keys=keys))),
        )


def _parameter_groups(s: Subject) -> Iterator[dict]:
    """The groups that the optimizer of a training will have."""
    from mmengine.optim import OptimWrapperDict, build_optim_wrapper

    cfg = copy.deepcopy(s.cfg["optim_wrapper"])
    for key in set(cfg) - {"optimizer", "paramwise_cfg", "constructor"}:
        del cfg[key]  # AMP, for one, asks for a GPU
    wrapper = build_optim_wrapper(s.model, cfg)
    for one in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
        yield from one.optimizer.param_groups


@hazard
def lr_batch(s: Subject):
    """The learning rate was made for another batch."""
    auto = s.cfg.get("auto_scale_lr") or {}
    base, batch = auto.get("base_batch_size"), batch_size(s.cfg)
    if not base or not batch or not s.gpus or auto.get("enable") or base == batch * s.gpus:
        return
    yield (
        f"the learning rate is made for batches of {base} images, and a step here sees "
        f"{batch * s.gpus}; if it is scaled already, say "
        f"auto_scale_lr = dict(base_batch_size={batch * s.gpus})",
        s.fixes.line("auto_scale_lr", dict(enable=True)),
    )


# what a run makes of it


@hazard
def find_unused_ignored(s: Subject):
    """``find_unused_parameters`` stands where it is not read."""
    wrapper = s.cfg.get("model_wrapper_cfg")
    if wrapper is None or wrapper.get("find_unused_parameters"):
        return
    if s.cfg.get("find_unused_parameters"):
        yield (
            "find_unused_parameters=True has no effect, since mmengine reads it only where there "
            "is no model_wrapper_cfg",
            s.fixes.line("model_wrapper_cfg", dict(find_unused_parameters=True)),
        )


@hazard
def not_deterministic(s: Subject):
    """A module has no deterministic gradient on CUDA."""
    several = [
        one
        for one in s.found
        if any(isinstance(module, nn.AdaptiveMaxPool2d) for module in one.module.modules())
    ]
    if several and (s.cfg.get("randomness") or {}).get("deterministic"):
        yield (
            f"{_count(several)}: AdaptiveMaxPool2d inside has no deterministic gradient on CUDA, "
            "and a deterministic training stops there",
            s.fixes.line("randomness", dict(deterministic=False)),
        )


# words and numbers


def batch_size(cfg) -> int | None:
    """The images that one process sees between two steps of the optimizer."""
    batch = (cfg.get("train_dataloader") or {}).get("batch_size")
    steps = (cfg.get("optim_wrapper") or {}).get("accumulative_counts", 1)
    return batch * steps if isinstance(batch, int) else None


def start_of(several: list[Inserted]) -> str:
    """How modules start: 'identity', 'factor 0.5', 'factor 0.25 to 0.27'."""
    texts = list(dict.fromkeys(map(_start, several)))
    if len(texts) > 1 and all(text.startswith("factor ") for text in texts):
        factors = sorted(float(text.split()[1]) for text in texts)
        return f"factor {factors[0]:g} to {factors[-1]:g}"
    return ", ".join(texts)


def _start(one: Inserted) -> str:
    if one.from_checkpoint:
        return "from a checkpoint"
    if one.start.unknown:
        return f"not measured: {one.start.unknown}"
    if one.conv:
        if one.harmless:
            return "as the plain convolution"
        random = one.start.same or one.start.refusal
        return "random" if random else "not as the plain convolution"
    if one.start.same:
        return "identity"
    factor = f"{one.start.factor:.2g}"
    return "not identity" if factor in ("1", "0.99") else f"factor {factor}"


def places(several: list[Inserted]) -> str:
    """The stages that modules are in: 'backbone.layer1 to layer4'."""
    stages = list(dict.fromkeys(one.stage for one in several))
    if len({stage.rpartition(".")[0] for stage in stages}) == 1:
        stages[1:] = [stage.rpartition(".")[2] for stage in stages[1:]]
    return _and(stages) if len(stages) < 3 else f"{stages[0]} to {stages[-1]}"


def _alike(found: Iterable[Inserted]) -> list[list[Inserted]]:
    """Modules of one slot in one state, in the order of the model."""
    groups: dict[tuple, list[Inserted]] = {}
    for one in found:
        slot = one.slot and (one.slot.path, one.slot.key, one.slot.index)
        state = (one.from_checkpoint, one.from_plain, one.start.same)
        groups.setdefault((one.type, slot, *state, bool(one.start.refusal)), []).append(one)
    return list(groups.values())


def _count(several: list[Inserted]) -> str:
    return f"{len(several)} {several[0].type} in {places(several)}"


def _some(names: Iterable[str]) -> str:
    """The first name and how many more there are."""
    names = sorted(names)
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _and(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _name(kind) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))


def _stages(node) -> int:
    return node["num_stages"] if isinstance(node.get("num_stages"), int) else 4
