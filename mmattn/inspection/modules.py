"""What is inserted in a model, and how does it start?"""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

import mmattn.convs
from mmattn.backbones.sk_resnet import SKBottleneck
from mmattn.insertion import insertions
from mmattn.inspection import config_file
from mmattn.inspection._console import PreflightError
from mmattn.ops import use_backend
from mmattn.plugins.base import AttentionModule
from mmattn.registry import MODELS

# in what a layer says of itself: '64, 128, kernel_size=...' and 'in_features=64, ...'
WIDTHS = re.compile(r"(?<![=(\w])\d+, |(?:in|out)_features=\d+")
DRAWS = 8  # of a module that starts at random: the factor is their mean
# what SKResNet adds to a plain block
SK_PARTS = ("conv2g", "bn2g", "conv_fc1", "bn_fc1", "conv_fc2")


@dataclass(frozen=True)
class Slot:
    """A place in the config of a model that asks for a module.

    Args:
        path: Keys that lead from the model's config to the dict with ``key``.
        key: ``'plugins'``, ``'dcn'`` or ``'conv_cfg'``.
        index: Which of the plug-ins.
        cfg: The module's config.
        cls: The class behind its type, or None where no registry knows it.
        entry: The entry of a list of plug-ins, with ``stages``, ``after`` and the like.
    """

    path: tuple
    key: str
    index: int
    cfg: dict
    cls: type | None
    entry: dict = field(default_factory=dict)

    def asks_for(self, name: str) -> bool:
        """Whether a module of that name can be what this slot asks for, by its place."""
        layer = re.search(r"(?:^|\.)layer(\d)\.", name)
        stages = self.entry.get("stages")
        if stages and layer and int(layer[1]) <= len(stages) and not stages[int(layer[1]) - 1]:
            return False
        if "postfix" in self.cfg and not name.endswith(str(self.cfg["postfix"])):
            return False
        pattern = self.entry.get("after", self.entry.get("before"))
        steps = name.split(".")
        # a pattern for a sequence stands for its last part, so that names go on after a match
        above = (".".join(steps[:i]) for i in range(1, len(steps)))
        return not isinstance(pattern, str) or any(re.fullmatch(pattern, part) for part in above)


def slots(model_cfg) -> Iterator[Slot]:
    """Every slot of a model's config that is in use."""
    for path, node in nodes(model_cfg):
        plugins = node.get("plugins")
        for index, plugin in enumerate(plugins if isinstance(plugins, (list, tuple)) else ()):
            cfg = plugin.get("cfg") if isinstance(plugin, dict) else None
            if isinstance(cfg, dict) and "type" in cfg:
                yield Slot(path, "plugins", index, cfg, class_of(cfg["type"]), plugin)
        for key in ("dcn", "conv_cfg"):
            cfg = node.get(key)
            if isinstance(cfg, dict) and "type" in cfg:
                yield Slot(path, key, 0, cfg, class_of(cfg["type"]))


def nodes(tree, path: tuple = ()) -> Iterator[tuple[tuple, dict]]:
    """Every dict in a tree of dicts and lists, with the keys that lead to it."""
    if isinstance(tree, dict):
        yield path, tree
        children = list(tree.items())
    else:
        children = list(enumerate(tree)) if isinstance(tree, (list, tuple)) else []
    for key, child in children:
        yield from nodes(child, (*path, key))


def class_of(kind) -> type | None:
    """The class behind a ``type`` of a config, mmdet's where it has no scope."""
    if inspect.isclass(kind) or not isinstance(kind, str):
        return kind if inspect.isclass(kind) else None
    with MMENGINE_MODELS.switch_scope_and_registry("mmdet") as registry:
        found = registry.get(kind)
    return found if inspect.isclass(found) else None


def takes(cls: type, key: str) -> bool:
    """Whether a class has an argument, handing on what it does not know to its base."""
    for one in cls.__mro__:
        if "__init__" not in vars(one):
            continue
        parameters = inspect.signature(one.__init__).parameters
        if key in parameters:
            return True
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return False
    return False


@dataclass(frozen=True)
class Start:
    """What a freshly initialised module makes of random maps.

    Args:
        same: The map itself comes out; of a convolution, what the plain one makes of it that it
            has taken the weights of.
        factor: sum(x y) / sum(x x) for the map x and what came out, y.
        refusal: Why a convolution does not take the weights of a plain one.
        unknown: Why it could not be measured.
    """

    same: bool = False
    factor: float | None = None
    refusal: str = ""
    unknown: str = ""


@dataclass
class Inserted:
    """One inserted module.

    Args:
        name: In the model.
        module: In the model.
        type: As a config names it.
        slot: The place in the config that asks for it, if it was found.
        parts: Children that are new, where the module as a whole is not.
        conv: It stands in place of a convolution.
        start: See :class:`Start`.
        constructed: The same, before the model was initialised; third-party modules only.
        trained: How many of its parameters get a gradient.
        from_checkpoint: A checkpoint that the model starts from has its weights.
        from_plain: Where the weights come from that it is among, if they lack it.
    """

    name: str
    module: nn.Module
    type: str
    slot: Slot | None = None
    parts: tuple[str, ...] = ()
    conv: bool = False
    start: Start = field(default_factory=Start)
    constructed: Start | None = None
    trained: int = 0
    from_checkpoint: bool = False
    from_plain: str = ""

    @property
    def third_party(self) -> bool:
        """Whether it is no module of mmattn."""
        return not self.type.startswith("mmattn.")

    @property
    def new(self) -> nn.Module:
        """The module, or its new parts."""
        if not self.parts:
            return self.module
        return nn.ModuleDict({part: getattr(self.module, part) for part in self.parts})

    @cached_property
    def parameters(self) -> int:
        """How many there are."""
        return sum(parameter.numel() for parameter in self.new.parameters())

    @property
    def added(self) -> int:
        """Parameters beyond those of the convolution in whose place it stands."""
        if not self.conv or self.parts:
            return self.parameters
        bias = getattr(self.module, "bias", None)
        return self.parameters - plain_size(self.module) - (0 if bias is None else bias.numel())

    @property
    def channels(self) -> tuple[int, ...]:
        """C, or (C, O) of a convolution that changes it."""
        owner = self.module.conv2g if self.parts else self.module
        numbers = [getattr(owner, f"{side}_channels", None) for side in ("in", "out")]
        if not self.conv:
            numbers = numbers[:1]
        return tuple(dict.fromkeys(n for n in numbers if isinstance(n, int)))

    @property
    def frozen(self) -> bool:
        """Whether it has parameters, and none gets a gradient."""
        return self.parameters > 0 and not self.trained

    @property
    def harmless(self) -> bool:
        """Whether the model computes at the start what it computes without the module."""
        return self.start.same and (not self.conv or self.gate or bool(self.from_plain))

    @property
    def gate(self) -> bool:
        """Whether it says that it starts as identity."""
        return bool(getattr(self.module, "identity_at_init", False))

    @property
    def stage(self) -> str:
        """The part of the model that is one line in a table: a stage, a list of layers."""
        steps = self.name.split(".")
        for i, step in enumerate(steps):
            if step.isdigit():
                # stages.0.blocks.1 is in stages.0, layer1.0 in layer1
                numbered = i > 0 and steps[i - 1] in ("stages", "layers", "features")
                return ".".join(steps[: i + numbered]) or self.name
        return ".".join(steps[:-1]) if len(steps) > 2 and not self.conv else self.name


def plain_size(conv: nn.Module) -> int:
    """How many weights a plain convolution in the place of this one has."""
    height, width = conv.kernel_size
    return conv.in_channels * conv.out_channels * height * width // conv.groups


def find(model: nn.Module, model_cfg) -> list[Inserted]:
    """What is inserted in a model, the outermost modules.

    These are mmattn's modules and convolutions, what :func:`mmattn.attach` has inserted, and
    modules of others that the config asks for as plug-ins.

    Args:
        model: The model, not wrapped.
        model_cfg: Its config.
    """
    used = list(slots(model_cfg))
    plugins = tuple({slot.cls for slot in used if slot.key == "plugins" and slot.cls})
    convs = tuple(getattr(mmattn.convs, name) for name in mmattn.convs.__all__)
    attached = {insertion.name for insertion in insertions(model)}
    names = {cls: f"mmattn.{name}" for name, cls in reversed(MODELS.module_dict.items())}
    found: list[Inserted] = []

    def walk(name: str, module: nn.Module, seen: set) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        conv = isinstance(module, convs)
        if conv or isinstance(module, (AttentionModule, *plugins)) or name in attached:
            slot = _slot(name, type(module), used)
            own = names.get(type(module))
            kind = own or (str(slot.cfg["type"]) if slot else type(module).__name__)
            if slot and inspect.isclass(slot.cfg["type"]):
                kind = own or slot.cfg["type"].__name__
            found.append(Inserted(name, module, kind, slot, conv=conv))
            return
        if isinstance(module, SKBottleneck):
            found.append(Inserted(name, module, "mmattn.SKResNet", parts=SK_PARTS, conv=True))
        for child, part in module.named_children():
            walk(f"{name}.{child}" if name else child, part, seen)

    walk("", model, set())
    return found


def _slot(name: str, cls: type, used: list[Slot]) -> Slot | None:
    """The slot that a module came from: of its type, if possible in the part it is in."""
    fitting = [slot for slot in used if slot.cls is cls and slot.asks_for(name)]
    steps = name.split(".")
    near = [slot for slot in fitting if slot.path and slot.path[-1] in steps]
    return next(iter(near + fitting), None)


@contextlib.contextmanager
def as_trained(model: nn.Module) -> Iterator[None]:
    """Puts a model into training, where parts freeze and norms go back to evaluation, and back."""
    modes = [(module, module.training) for module in model.modules()]
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.train()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, learns in learning:
            parameter.requires_grad_(learns)


def initialised(model: nn.Module) -> nn.Module:
    """A copy on the CPU, initialised as a training does it, but without any checkpoint."""
    memo = {
        id(p): nn.Parameter(p.detach().cpu().clone(), p.requires_grad) for p in model.parameters()
    }
    memo |= {id(buffer): buffer.detach().cpu().clone() for buffer in model.buffers()}
    copied = copy.deepcopy(model, memo)
    for part in copied.modules():
        init_cfg = getattr(part, "init_cfg", None)
        if init_cfg:
            many = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
            part.init_cfg = [one for one in many if not config_file.is_pretrained(one)] or None
    if hasattr(copied, "init_weights"):
        copied._dump_init_info = lambda: None  # it would fill the log of the run
        copied.init_weights()
    return copied


def measure(found: Iterable[Inserted], model: nn.Module) -> None:
    """Fills in how each module starts.

    Modules of mmattn restore their initial state by themselves; what a model's initialisation
    leaves of another's is measured on a copy of the whole model.

    Raises:
        PreflightError: A module of mmattn cannot be initialised.
    """
    found = list(found)
    known: dict[tuple, Start] = {}
    copied = initialised(model) if any(one.third_party for one in found) else None
    # like modules start alike, and a small one is measured sooner than a large one
    for one in sorted(found, key=lambda one: one.parameters):
        if one.third_party:
            one.constructed = _start_of_map(copy.deepcopy(one.module), one)
            one.start = _start_of_map(copied.get_submodule(one.name), one)
            continue
        likeness = _likeness(one)
        if likeness not in known:
            known[likeness] = _start(one)
        one.start = known[likeness]


def _likeness(one: Inserted) -> tuple:
    """What modules share that start alike; the width of a convolution does not matter."""
    arguments = [part.extra_repr() for part in one.module.modules()]
    shapes = {name: tuple(value.shape) for name, value in one.module.state_dict().items()}
    if one.conv:
        arguments = [re.sub(WIDTHS, "", text) for text in arguments]
        shapes = dict.fromkeys(shapes)
    gated = getattr(one.module, "identity_at_init", None)
    return type(one.module), gated, tuple(arguments), tuple(shapes.items())


def _start(one: Inserted) -> Start:
    if one.parts:
        return Start()  # two branches where a plain block has one
    module = copy.deepcopy(one.module).cpu().float()
    factors = []
    while len(factors) < DRAWS:
        if hasattr(module, "init_weights"):
            try:
                module.init_weights()
            except Exception as error:
                reason = " ".join(str(error).split())
                raise PreflightError(f"{one.name} cannot be initialised: {reason}") from error
        start = _start_of_conv(module) if one.conv else _start_of_map(module, one)
        if one.conv or start.factor is None or start.same:
            return start
        factors.append(start.factor)
    return Start(factor=sum(factors) / DRAWS)


def _start_of_map(module: nn.Module, one: Inserted) -> Start:
    """Of a module that takes a map and returns one of the same shape."""
    if not one.channels:
        return Start(unknown="its number of channels is not known")
    x = torch.randn(2, one.channels[0], 8, 8)
    module = revert_sync_batchnorm(module.cpu().float())  # it would wait for its peers
    try:
        # eager: what was chosen for the training has nothing to say about this map
        with torch.no_grad(), use_backend("eager"):
            module.train()
            trained = module(x)
            module.eval()
            y = module(x)
    except Exception as error:  # another's module may need anything
        return Start(unknown=f"{type(error).__name__}: {' '.join(str(error).split())[:80]}")
    return _compared(x, y, trained)


def _start_of_conv(module: nn.Module) -> Start:
    """Of a convolution, against a plain one whose weights it is given."""
    plain = nn.Conv2d(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        module.bias is not None,
        module.padding_mode,
    )
    try:
        module.load_state_dict(plain.state_dict(), strict=False)
    except RuntimeError as error:
        return Start(refusal=" ".join(str(error).split()))
    x = torch.randn(2, module.in_channels, 9, 9)
    module = revert_sync_batchnorm(module)
    try:
        with torch.no_grad():
            expected = plain(x)
            # the guide that several layers share
            guide = getattr(module, "shared_guide", False)
            guide = [torch.randn(2, module.regions, *expected.shape[2:])] if guide else []
            module.train()
            trained = module(x, *guide)
            module.eval()
            return _compared(expected, module(x, *guide), trained)
    except Exception as error:
        return Start(unknown=f"{type(error).__name__}: {' '.join(str(error).split())[:80]}")


def _compared(x, y, trained) -> Start:
    if not isinstance(y, torch.Tensor) or y.shape != x.shape:
        return Start(unknown="what comes out is no map of the same shape")
    same = all(torch.allclose(one, x, rtol=1e-4, atol=1e-5) for one in (y, trained))
    return Start(same, ((x * y).sum() / (x * x).sum()).item())
