"""``--attention sge``: a module into the backbone of any config, from the command line.

It edits the config as a user would and prints the lines, so that they can be kept in a file.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mmattn.inspection._console import PreflightError, say

# the stages that the paper uses, where they are not all four
PAPER_STAGES = {"BAM": (2, 4), "GC": (3, 5), "SNL": (3, 5), "NonLocal": (4, 4)}
SYNTAX = "NAME[:ARGUMENT=VALUE,...][@cA-cB], such as sge, gc:ratio=4@c3-c5 or se@c5"


@dataclass
class Wish:
    """What ``--attention`` asks for: ``gc:ratio=4@c3-c5``.

    Args:
        name: The class, ``'GC'``.
        arguments: Those of the module.
        first: First stage; 2 has stride 4.
        last: Last stage.
        given: Whether the stages were given.
    """

    name: str
    arguments: dict
    first: int
    last: int
    given: bool

    @property
    def cfg(self) -> dict:
        """The module's config."""
        return dict(type=f"mmattn.{self.name}", **self.arguments)

    @property
    def stages(self) -> tuple[bool, ...]:
        """Whether each of c2 to c5 gets modules."""
        return tuple(self.first <= stage <= self.last for stage in range(2, 6))


def slug(text: str) -> str:
    """The wish as a part of a folder's name."""
    return re.sub(r"[^\w.-]+", "-", text.lower()).strip("-")


def parse(text: str) -> Wish:
    """Reads ``sge`` or ``gc:ratio=4@c3-c5``; raises PreflightError for anything else."""
    match = re.fullmatch(r"(?:mmattn\.)?(\w+)(?::(.*?))?(?:@c(\d)(?:-c?(\d))?)?", text.strip())
    if not match:
        raise PreflightError(f"--attention expects {SYNTAX}; got {text!r}")
    name = _class_name(match[1])
    arguments = {"identity_init": True, **_arguments(match[2] or "", text)}
    if name == "SimAM" and arguments["identity_init"]:
        raise PreflightError(
            "--attention starts modules as identity, which SimAM cannot be: write "
            "simam:identity_init=False if the backbone was trained with it"
        )
    first, last = PAPER_STAGES.get(name, (2, 5))
    if match[3]:
        first, last = int(match[3]), int(match[4] or match[3])
    _check_arguments(name, arguments)
    if not 2 <= first <= last <= 5:
        raise PreflightError(
            f"--attention expects stages from c2 to c5, the first one first, got {text!r}"
        )
    return Wish(name, arguments, first, last, bool(match[3]))


def _class_name(given: str) -> str:
    import mmattn.registry
    from mmattn.plugins import AttentionModule

    mmattn.registry.MODELS.import_from_location()
    classes = [
        cls
        for cls in mmattn.registry.MODELS.module_dict.values()
        if inspect.isclass(cls) and issubclass(cls, AttentionModule)
    ]
    names = {cls.__name__.lower(): cls.__name__ for cls in classes}
    # coord_attention, and coord_att as in a state dict
    others = {cls._abbr_.replace("_", ""): cls.__name__ for cls in classes}
    plain = given.lower().replace("_", "")
    if plain not in names | others:
        near = difflib.get_close_matches(plain, names, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise PreflightError(
            f"--attention knows no module {given!r}{hint} There are {', '.join(sorted(names))}; "
            "convolutions such as DRConv2d go into the config, see docs/insertion.md"
        )
    return (others | names)[plain]


def _check_arguments(name: str, arguments: dict) -> None:
    import mmattn.plugins

    known = list(inspect.signature(getattr(mmattn.plugins, name)).parameters)[1:]
    for argument in arguments:
        if argument not in known:
            near = difflib.get_close_matches(argument, known, 1)
            raise PreflightError(
                f"--attention: {name} has no argument {argument!r}"
                + (f"; did you mean {near[0]}?" if near else f", only {', '.join(known)}")
            )


def _arguments(text: str, whole: str) -> dict:
    """``ratio=4,pooling=avg`` as keywords; a bare word is a string."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise SyntaxError
        return {
            keyword.arg: keyword.value.id
            if isinstance(keyword.value, ast.Name)
            else ast.literal_eval(keyword.value)
            for keyword in call.keywords
        }
    except (SyntaxError, ValueError) as error:
        raise PreflightError(f"--attention expects {SYNTAX}; got {whole!r}") from error


def apply(cfg, text: str) -> None:
    """Puts the module into the backbone of a config and says how.

    A ResNet gets it where its paper has it: in the slot of every bottleneck, before the addition
    of every basic block, GCT before every convolution, BAM after stages, NonLocal once in c4. Any
    other backbone gets one for each map that it hands on.

    Args:
        cfg: The config; changed in place.
        text: As typed, ``'gc:ratio=4@c3-c5'``.

    Raises:
        PreflightError: The text cannot be read, or there is no place for the module.
    """
    wish = parse(text)
    model, path = _with_backbone(cfg.model)
    cls = _class_of(model["backbone"])
    put = _into_resnet if _is_resnet(cls) else _after_outputs
    lines = put(model, path, wish, model["backbone"], cls)
    if wish.name == "GCT":
        lines += _without_decay_of_beta(cfg)
    say(f"--attention {text} stands for these lines of a config:")
    for line in lines:
        say(f"    {line}")


def _with_backbone(model):
    """The part of a model config that has the backbone, and its path."""
    for path, node in (("model", model), ("model.detector", model.get("detector"))):
        if isinstance(node, Mapping) and isinstance(node.get("backbone"), Mapping):
            return node, path
    raise PreflightError(
        "--attention needs a model with a backbone= in the config; use mmattn.Attach instead "
        "(docs/insertion.md)"
    )


def _class_of(backbone):
    from mmengine.registry import MODELS

    with MODELS.switch_scope_and_registry("mmdet") as registry:
        cls = registry.get(backbone["type"])
    if cls is None:
        raise PreflightError(f"the backbone {backbone['type']!r} is not registered")
    return cls


def _is_resnet(cls) -> bool:
    from mmdet.models.backbones import RegNet, ResNet

    # a RegNet has stages of its own number, which the slot cannot name
    return issubclass(cls, ResNet) and not issubclass(cls, RegNet)


def _into_resnet(model, path: str, wish: Wish, backbone, cls) -> list[str]:
    from mmcv.cnn import build_norm_layer

    lines = []
    first, last = wish.first - 1, wish.last - 1
    layers = rf"backbone\.layer{first if first == last else f'[{first}-{last}]'}"
    block = cls.arch_settings[backbone["depth"]][0] if "depth" in backbone else None
    frozen = backbone.get("frozen_stages", -1)
    if wish.name == "GCT" and not wish.given and "conv_cfg" not in backbone:
        backbone["conv_cfg"] = dict(wish.cfg, type="mmattn.GCTConv2d")
        lines.append(f"{path}.backbone.conv_cfg = {_source(backbone['conv_cfg'])}")
    elif wish.name == "NonLocal" and not wish.given and "depth" in backbone:
        blocks = cls.arch_settings[backbone["depth"]][1][2]
        after = rf"backbone\.layer3\.{blocks - 2}"  # in front of the last one
        lines += _attach(model, path, [dict(cfg=wish.cfg, after=after)])
    elif wish.name == "BAM":
        lines += _attach(model, path, [dict(cfg=wish.cfg, after=layers)])
    elif getattr(block, "expansion", 4) == 1:  # mmdet's basic blocks refuse plug-ins
        norm = build_norm_layer(backbone.get("norm_cfg") or dict(type="BN"), 32, postfix=2)[0]
        lines += _attach(model, path, [dict(cfg=wish.cfg, after=rf"{layers}\.\d+\.{norm}")])
    else:
        plugin = dict(cfg=wish.cfg, stages=wish.stages, position="after_conv3")
        present = list(backbone.get("plugins") or ())
        if any(p["cfg"]["type"] == plugin["cfg"]["type"] for p in present):
            raise PreflightError(
                f"--attention: {path}.backbone.plugins has a {plugin['cfg']['type']} already"
            )
        backbone["plugins"] = [*present, plugin]
        line = f"{path}.backbone.plugins = {_source(backbone['plugins'])}"
        if wish.name == "GCT":
            line += "  # once a block; without stages it stands before every convolution"
        lines.append(line)
    if frozen >= wish.first - 1:
        backbone["frozen_stages"] = wish.first - 2
        lines.append(
            f"{path}.backbone.frozen_stages = {wish.first - 2}  # so that the modules learn"
        )
    return lines


def _after_outputs(model, path: str, wish: Wish, backbone, _cls) -> list[str]:
    """One module for each map of the backbone whose stride is that of a stage asked for."""
    maps = _maps(backbone)
    wanted = [2**stage for stage in range(wish.first, wish.last + 1)]
    chosen = [i for i, (stride, _) in enumerate(maps) if stride in wanted]
    if not chosen:
        raise PreflightError(
            f"--attention: the backbone {backbone['type']} hands on maps of stride "
            f"{', '.join(f'{stride:g}' for stride, _ in maps)}; none of them is one of "
            f"c{wish.first}-c{wish.last} ({', '.join(map(str, wanted))})"
        )
    if wish.name == "SGE" and "groups" not in wish.arguments:
        # the paper's 64, or the next lower number that divides them all
        common = math.gcd(*(maps[i][1] for i in chosen))
        wish.arguments["groups"] = max(g for g in range(1, 65) if common % g == 0)
    plugins = [dict(cfg=wish.cfg, after="backbone", index=index) for index in chosen]
    return _attach(model, path, plugins)


def _maps(backbone) -> list[tuple[float, int]]:
    """Stride and channels of a backbone's outputs, from one forward pass of a small image."""
    import torch
    from mmengine.registry import MODELS, DefaultScope

    size = 128
    plain = {key: value for key, value in backbone.items() if key not in ("init_cfg", "pretrained")}
    with DefaultScope.overwrite_default_scope("mmdet"), torch.random.fork_rng():
        net = MODELS.build(plain)
        net.eval()
        with torch.no_grad():
            outputs = net(torch.zeros(1, 3, size, size))
    maps = isinstance(outputs, (tuple, list)) and all(
        isinstance(o, torch.Tensor) and o.dim() == 4 for o in outputs
    )
    if not maps:
        raise PreflightError(
            f"--attention: the backbone {backbone['type']} does not hand on a tuple of maps "
            "(N, C, H, W); use mmattn.Attach instead (docs/insertion.md)"
        )
    return [(size / o.shape[2], o.shape[1]) for o in outputs]


def _attach(model, path: str, plugins: list[dict]) -> list[str]:
    if model["type"] == "mmattn.Attach":
        model["plugins"] = [*model["plugins"], *plugins]
    else:
        model["module"], model["type"] = model["type"], "mmattn.Attach"
        model["plugins"] = plugins
    return [
        f"{path}.type = 'mmattn.Attach'",
        f"{path}.module = {model['module']!r}",
        f"{path}.plugins = {_source(model['plugins'])}",
    ]


def _without_decay_of_beta(cfg) -> list[str]:
    """As its authors train it."""
    if "optim_wrapper" not in cfg:
        return []
    paramwise = cfg.optim_wrapper.get("paramwise_cfg") or {}
    keys = dict(paramwise.get("custom_keys") or {})
    keys.setdefault(".beta", dict(decay_mult=0.0))
    cfg.optim_wrapper["paramwise_cfg"] = dict(paramwise, custom_keys=keys)
    return [f"optim_wrapper.paramwise_cfg = {_source(cfg.optim_wrapper['paramwise_cfg'])}"]


def _source(value) -> str:
    """A config's value as one writes it."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key.isidentifier() for key in value):
            return f"dict({', '.join(f'{k}={_source(v)}' for k, v in value.items())})"
        return f"{{{', '.join(f'{k!r}: {_source(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_source, value))}]"
    if isinstance(value, str) and "\\" in value and "'" not in value:
        return f"r'{value}'"
    return repr(value)
