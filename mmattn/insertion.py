"""How does a module get into a model that has no slot for it?

:func:`attach` puts modules before or after named parts of any PyTorch model, ``mmattn.Attach``
does so from a config. A module becomes a child of the part it follows, and a forward hook calls
it: no class is replaced and no part is wrapped, so that every existing name in the state dict
stays what it was.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmattn.registry import MODELS, unknown_type

__all__ = ["Attach", "Insertion", "attach", "insertions"]

LAYOUTS = ("NCHW", "NHWC", "NLC")
KEYS = ("cfg", "before", "after", "in_channels", "layout", "hw", "index", "name")
TRACE_SIZE = 128  # height and width of the image of the traced forward


def attach(
    model: nn.Module, plugins: Sequence[Mapping], example: Tensor | Sequence | None = None
) -> nn.Module:
    r"""Inserts modules before or after named parts of any model, in place.

    ::

        model = torchvision.models.detection.fasterrcnn_resnet50_fpn()
        mmattn.attach(model, [dict(cfg=dict(type='mmattn.SGE', identity_init=True),
                                   after=r'backbone\\.body\.layer[1-4]')])

    Everything is checked and built before the first module goes in: after an error the model is
    as it was. The inserted module is a child of its target (``backbone.layer1.2.sge`` below
    ``backbone.layer1.2``) on the target's device and of its dtype. A target that is an
    ``nn.Sequential`` stands for its last part (``after``) or its first (``before``), which
    computes the same and leaves the sequence as long as it was.

    Args:
        model: Any PyTorch model. It is changed, and returned.
        plugins: A list of dicts, each with

            - ``cfg``: the module, ``dict(type='mmattn.SGE', groups=8)``: any registered type, or
              a class, that takes ``in_channels``.
            - ``after`` or ``before``: a regular expression that must match the whole name of a
              part as ``model.named_modules()`` gives it, or a list of names that parts are
              called or end in (``['conv2', 'neck.lateral_convs.0']``).
            - ``in_channels``: C. Left out: that of the convolution or norm layer, else what one
              traced forward of a 128 x 128 image shows there.
            - ``layout``: of the map at that place, ``'NCHW'``; ``'NHWC'``; ``'NLC'``, the tokens
              of a transformer.
            - ``hw``: with ``'NLC'``, where height and width come from. None: from a pair of
              integers among the part's arguments or outputs, as Swin passes them;
              ``'square'``; or ``(H, W)``.
            - ``index``: which of several inputs or outputs, a position or a key.
            - ``name``: of the new child; left out: the module's ``_abbr_``, with ``index`` added
              if there is one.
        example: The model's input, or a tuple of its arguments, for the traced forward.

    Returns:
        The same model.

    Raises:
        ValueError: A pattern matches nothing, two insertions meet at one place under one name, a
            part is never called, or the channels cannot be found.
        TypeError: A wrong key or a value of a wrong type.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"attach expects a model, then plugins; got a {type(model).__name__}")
    if not isinstance(plugins, (list, tuple)) or not plugins:
        raise TypeError(
            "attach expects plugins as a list of dict(cfg=..., after=...), "
            f"got {'an empty' if plugins in ([], ()) else 'a'} {type(plugins).__name__}"
        )
    plan: list[_Planned] = []
    for plugin in plugins:
        plan += _planned(model, _checked(plugin))
    _check_names(plan)
    _look_at_places(model, plan, example)
    for one in plan:
        one.module = _build(one, model)
    for one in plan:
        one.insert()
    _repeat_train(model, {one.target_name for one in plan})
    return model


@MODELS.register_module()
def Attach(module, plugins, **model):  # noqa: N802  (a type name in configs)
    r"""The detector ``module`` with modules inserted: ``type='mmattn.Attach'`` in a config.

    ::

        _base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
        model = dict(type='mmattn.Attach', module=_base_.model.type,
                     plugins=[dict(cfg=dict(type='mmattn.SGE', groups=8, identity_init=True),
                                   after=r'neck\.lateral_convs\.\d+')])

    The model keeps its own keys, so that ``--cfg-options model.backbone.depth=101``, child
    configs and ``init_detector`` go on working. What is returned is the detector itself.

    Args:
        module: The type of the model, or a whole model dict; then no other key is allowed.
        plugins: As in :func:`attach`.
        **model: The model's own keys.

    Raises:
        TypeError: ``module`` is a dict and other keys are given, or it is neither dict nor type.
        ValueError: As :func:`attach`.
    """
    if module in ("mmattn.Attach", "Attach"):
        raise ValueError(
            "the base config is attached already (its type is mmattn.Attach): leave type and "
            "module out of the child, and give plugins whole, as a list replaces the base's"
        )
    if isinstance(module, Mapping):
        # the Runner hands a data_preprocessor of the config's top level to the model
        preprocessor = model.pop("data_preprocessor", None)
        if model:
            raise TypeError(
                "mmattn.Attach with a whole model dict as module expects no keys but plugins, got "
                f"{', '.join(model)}; put them into module, or give module as a type name"
            )
        model = dict(module)
        if preprocessor is not None:
            model.setdefault("data_preprocessor", preprocessor)
    elif isinstance(module, str) or inspect.isclass(module):
        model["type"] = module
    else:
        raise TypeError(
            f"mmattn.Attach expects module as a type name or a model dict, got {module!r}"
        )
    # a name without scope is mmdet's where nobody has said otherwise
    scope = None if DefaultScope.get_current_instance() else "mmdet"
    with DefaultScope.overwrite_default_scope(scope):
        return attach(MMENGINE_MODELS.build(model), plugins)


@dataclass(frozen=True)
class Insertion:
    """One inserted module, as :func:`insertions` lists it.

    Args:
        target: Name of the part.
        position: ``'before'`` or ``'after'`` it.
        name: Name of the module, ``<target>.<its own name>``.
        module: The module.
        called: Whether the hook that calls it is there. A part that was replaced, as
            ``nn.SyncBatchNorm.convert_sync_batchnorm`` does with norm layers, has lost it.
    """

    target: str
    position: str
    name: str
    module: nn.Module
    called: bool


def insertions(model: nn.Module) -> list[Insertion]:
    """What :func:`attach` has inserted into a model, in the order of its parts."""
    found = []
    for target_name, target in model.named_modules():
        hooks = [*target._forward_pre_hooks.values(), *target._forward_hooks.values()]
        live = {hook.child for hook in hooks if isinstance(hook, _Hook)}
        for child, module in target.named_children():
            position = module.__dict__.get("_attached")
            if position:
                name = f"{target_name}.{child}" if target_name else child
                found.append(Insertion(target_name, position, name, module, child in live))
    return found


class _Hook:
    """Calls the child of that name; a class, so that models with it can be copied and pickled."""

    def __init__(self, child: str, layout: str, hw, index: int | str | None):
        self.child, self.layout, self.hw, self.index = child, layout, hw, index

    def apply(self, target: nn.Module, value, arguments: tuple):
        """``value``, or its part ``index``, through the child."""
        if self.index is None:
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"mmattn cannot insert {self.child!r} at {type(target).__name__}: expected one "
                    f"tensor there, got {_described(value)}; say which with index="
                )
            return self._through(target, value, arguments)
        if isinstance(value, Tensor):
            raise ValueError(
                f"mmattn cannot insert {self.child!r} at {type(target).__name__}: there is one "
                f"tensor, leave out index={self.index!r}"
            )
        parts = dict(value) if isinstance(value, Mapping) else _as_list(value)
        try:
            part = parts[self.index]
        except (LookupError, TypeError):
            part = None
        if not isinstance(part, Tensor):
            raise ValueError(
                f"mmattn cannot insert {self.child!r} at {type(target).__name__}: "
                f"index={self.index!r} is no tensor in {_described(value)}"
            )
        parts[self.index] = self._through(target, part, (*arguments, *_values(value)))
        if isinstance(value, Mapping) or not isinstance(value, tuple):
            return type(value)(parts)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)

    def _through(self, target: nn.Module, x: Tensor, arguments: tuple) -> Tensor:
        module = getattr(target, self.child)
        if self.layout == "NCHW":
            return module(x)
        if self.layout == "NHWC":
            return module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        height, width = _height_and_width(self.child, self.hw, x, arguments)
        # the tokens of a map are its channels_last memory: no copy
        y = module(x.reshape(len(x), height, width, -1).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1).reshape(x.shape)


class _After(_Hook):
    def __call__(self, target, args, kwargs, output):
        return self.apply(target, output, (*args, *kwargs.values()))


class _Before(_Hook):
    def __call__(self, target, args, kwargs):
        given = (*args, *kwargs.values())
        if self.index is not None:
            if isinstance(self.index, str):
                return args, self.apply(target, kwargs, given)
            return self.apply(target, args, given), kwargs
        if args:
            return (self.apply(target, args[0], given), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: self.apply(target, kwargs[first], given)}


def _as_list(value) -> list:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _values(value) -> tuple:
    return tuple(value.values()) if isinstance(value, Mapping) else tuple(_as_list(value))


def _described(value) -> str:
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(repr, value))}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: " + ", ".join(
            f"{tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in value
        )
    return f"{type(value).__name__}"


def _height_and_width(child: str, hw, x: Tensor, arguments: Iterable) -> tuple[int, int]:
    """The size of the map whose tokens ``x`` (N, L, C) holds."""
    if x.dim() != 3:
        raise ValueError(
            f"mmattn: {child!r} was inserted with layout='NLC' and expects tokens (N, L, C), "
            f"got shape {tuple(x.shape)}"
        )
    length = x.shape[1]
    if hw is None:
        for pair in arguments:
            if (
                isinstance(pair, (tuple, list))
                and len(pair) == 2
                and all(isinstance(side, (int, torch.SymInt)) for side in pair)
                and pair[0] * pair[1] == length
            ):
                return tuple(pair)
        raise ValueError(
            f"mmattn: {child!r} gets {length} tokens, and no pair (H, W) among the arguments and "
            "outputs of the part it is at has that product; give hw=(H, W) or hw='square'"
        )
    height, width = (round(length**0.5),) * 2 if hw == "square" else hw
    if height * width != length:
        raise ValueError(f"mmattn: {child!r} gets {length} tokens, which is not hw={hw!r}")
    return height, width


def _checked(plugin) -> dict:
    """The plug-in's dict with defaults, or an error that names the key."""
    if not isinstance(plugin, Mapping) or "cfg" not in plugin:
        mapping = isinstance(plugin, Mapping)
        got = ", ".join(map(str, plugin)) if mapping else type(plugin).__name__
        raise TypeError(f"attach expects each plug-in as dict(cfg=..., after=...), got {got}")
    for key in plugin:
        if key not in KEYS:
            hint = " (that is mmdet's own slot: model.backbone.plugins)" * (key == "position")
            near = difflib.get_close_matches(str(key), KEYS, 1)
            raise TypeError(
                f"attach expects the keys {', '.join(KEYS)}, got {key!r}{hint}"
                + (f"; did you mean {near[0]}?" if near else "")
            )
    if ("before" in plugin) == ("after" in plugin):
        raise TypeError(f"attach expects after= or before=, one of them, got {dict(plugin)}")
    layout = plugin.get("layout", "NCHW")
    if layout not in LAYOUTS:
        raise ValueError(f"attach expects layout to be one of {', '.join(LAYOUTS)}, got {layout!r}")
    hw = plugin.get("hw")
    pair = isinstance(hw, Sequence) and not isinstance(hw, str) and len(hw) == 2
    if not (hw is None or hw == "square" or (pair and all(_is_int(v, 1) for v in hw))):
        raise ValueError(f"attach expects hw to be None, 'square' or (H, W), got {hw!r}")
    if hw is not None and layout != "NLC":
        raise ValueError(f"attach uses hw with layout='NLC' only, got layout={layout!r}")
    channels = plugin.get("in_channels")
    if channels is not None and not _is_int(channels, 1):
        raise ValueError(f"attach expects in_channels as an integer above 0, got {channels!r}")
    index = plugin.get("index")
    if index is not None and not (isinstance(index, str) or _is_int(index, 0)):
        raise TypeError(f"attach expects index as a position from 0 or a key, got {index!r}")
    name = plugin.get("name")
    if name is not None and not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"attach expects name to be an identifier, got {name!r}")
    cfg = plugin["cfg"]
    if not isinstance(cfg, Mapping) or "type" not in cfg:
        raise TypeError(
            f"attach expects cfg as dict(type=...), got {type(cfg).__name__}: a module is built "
            "for each place, with its channels"
        )
    if isinstance(cfg["type"], str) and (problem := unknown_type(cfg["type"])):
        raise ValueError(f"attach was asked for {problem}")
    if "in_channels" in cfg:
        raise ValueError("attach sets the module's in_channels: give it beside cfg, not inside")
    return dict(
        cfg=dict(cfg),
        position="after" if "after" in plugin else "before",
        pattern=plugin.get("after", plugin.get("before")),
        in_channels=channels,
        layout=layout,
        hw=hw if hw is None or hw == "square" else tuple(hw),
        index=index,
        name=name,
    )


def _is_int(value, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def matching(model: nn.Module, pattern: str | Sequence[str]) -> dict[str, nn.Module]:
    """The parts of a model that a regular expression or a list of suffixes names.

    Args:
        model: Any model.
        pattern: A regular expression for the whole name, or names that a part's name is or ends
            in after a dot.

    Returns:
        Parts by name; one that has several names, by its first.

    Raises:
        ValueError: Nothing matches, or not every suffix does; near names are listed.
        TypeError: ``pattern`` is neither a string nor a list of strings.
    """
    # a shared part answers to each of its names, and is inserted at once
    parts = {name: m for name, m in model.named_modules(remove_duplicate=False) if name}
    if isinstance(pattern, str):
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        found = {name: part for name, part in parts.items() if regex.fullmatch(name)}
        if not found:
            raise ValueError(f"{pattern!r} matches no part of the model{_near(pattern, parts)}")
    elif isinstance(pattern, Sequence) and pattern and all(isinstance(p, str) for p in pattern):
        found = {}
        for suffix in pattern:
            ends = {n: p for n, p in parts.items() if n == suffix or n.endswith(f".{suffix}")}
            if not ends:
                raise ValueError(
                    f"no part of the model is called or ends in {suffix!r}{_near(suffix, parts)}"
                )
            found |= ends
    else:
        raise TypeError(f"expected a regular expression or a list of names' ends, got {pattern!r}")
    unique = {id(part): name for name, part in reversed(found.items())}
    return {name: part for name, part in found.items() if unique[id(part)] == name}


def _near(pattern: str, names: Iterable[str]) -> str:
    """Names like the pattern, with numbers written as the expression that matches them."""
    general = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name) for name in names)
    literal = re.sub(r"\\?\.?\\d[+*]?|\[\d-?\d\][+*]?", ".#", pattern.replace(r"\.", "."))
    literal = re.sub(r"(?<=\.)\d+(?=\.|$)", "#", literal).replace("..", ".")
    near = difflib.get_close_matches(literal, general, 3, 0.5)
    last = literal.rpartition(".")[2]
    near += [n for n in general if n.endswith(f".{last}") and n not in near][: 3 - len(near)]
    if not near:
        near = [name for name in general if "." not in name]
        return f"; its parts are {', '.join(near)}"
    shown = [n.replace(".", r"\.").replace("#", r"\d+") for n in near]
    return f"; near ones: {', '.join(shown)}"


class _Planned:
    """One module for one place, from the pattern to the insertion."""

    def __init__(self, target_name: str, target: nn.Module, plugin: dict):
        self.target_name, self.target = target_name, target
        self.cfg, self.position = plugin["cfg"], plugin["position"]
        self.layout, self.hw, self.index = plugin["layout"], plugin["hw"], plugin["index"]
        self.in_channels = plugin["in_channels"] or self._own_channels()
        self.name = plugin["name"] or self._default_name()
        self.module: nn.Module | None = None

    def _default_name(self) -> str:
        kind = self.cfg["type"]
        cls = MMENGINE_MODELS.get(kind) if isinstance(kind, str) else kind
        abbr = getattr(cls, "_abbr_", None) or re.sub(
            r"(?<=[a-z\d])(?=[A-Z])", "_", getattr(cls, "__name__", str(kind))
        )
        return abbr.lower() + ("" if self.index is None else f"_{self.index}")

    def _own_channels(self) -> int | None:
        """The channels of a target that is a single layer and says so itself."""
        part = self.target
        before = self.position == "before"
        if isinstance(part, (nn.Conv2d, ConvModule)):
            return part.in_channels if before else part.out_channels
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            return part.num_features
        return None

    def hook(self) -> _Hook:
        kind = _After if self.position == "after" else _Before
        return kind(self.name, self.layout, self.hw, self.index)

    def register(self, hook) -> torch.utils.hooks.RemovableHandle:
        if self.position == "after":
            return self.target.register_forward_hook(hook, with_kwargs=True)
        return self.target.register_forward_pre_hook(hook, with_kwargs=True)

    def insert(self) -> None:
        self.module._attached = self.position
        self.target.add_module(self.name, self.module)
        self.register(self.hook())


def _planned(model: nn.Module, plugin: dict) -> Iterator[_Planned]:
    for name, part in matching(model, plugin["pattern"]).items():
        yield _Planned(*_callable_part(name, part, plugin["position"]), plugin)


def _callable_part(name: str, part: nn.Module, position: str) -> tuple[str, nn.Module]:
    """The part that runs last (or first) in a sequence; an error for one that never runs."""
    forward = type(part).forward
    while forward is nn.Sequential.forward and len(part):
        child = list(part._modules)[-1 if position == "after" else 0]
        name, part = f"{name}.{child}", part._modules[child]
        forward = type(part).forward
    if forward is nn.Module.forward or forward is nn.Sequential.forward:
        inside = rf"{re.escape(name)}\.\d+"
        raise ValueError(
            f"{name} is {'an empty' if not len(list(part.children())) else 'a'} "
            f"{type(part).__name__}, which is never called itself; for its items write {inside!r}"
        )
    if isinstance(part, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        children = ", ".join(f"{name}.{child}" for child, _ in part.named_children())
        raise ValueError(
            f"{name} is a {type(part).__name__}, which runs through its own children, and a new "
            f"one would be among them; insert at one of {children}"
        )
    return name, part


def _check_names(plan: list[_Planned]) -> None:
    taken: dict[tuple[int, str], str] = {}
    for one in plan:
        key = (id(one.target), one.name)
        if key in taken:
            raise ValueError(
                f"two insertions at {one.target_name} have the name {one.name!r} "
                f"({taken[key]} and {one.position}); give one of them another name="
            )
        if hasattr(one.target, one.name):
            raise ValueError(
                f"{one.target_name} has a {one.name!r} already; give the insertion another name="
            )
        taken[key] = one.position


class _Seen(BaseException):  # no error, and not for a model's own handlers
    """Every channel count that was asked for is known."""


class _Misplaced(BaseException):  # as above
    """There is no such map at the place."""


def _look_at_places(model: nn.Module, plan: list[_Planned], example) -> None:
    """Fills ``in_channels`` and compares what was stated with one forward pass."""
    waiting = set(map(id, plan))
    handles = []
    for one in plan:
        handles.append(one.register(_recorder(one, waiting)))
    failure = "none of them was called"
    try:
        with _undisturbed(model):
            _forward(model, example)
    except _Seen:
        pass
    except _Misplaced as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # whatever a model raises at an input that is not its own
        failure = f"it ended in {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        for handle in handles:
            handle.remove()
    blind = [one.target_name for one in plan if one.in_channels is None]
    if blind:
        raise ValueError(
            f"the channels at {', '.join(blind[:3])}{' ...' * (len(blind) > 3)} could not be found "
            f"by a forward pass of a {TRACE_SIZE} x {TRACE_SIZE} image ({failure}): "
            "give in_channels"
        )


def _recorder(one: _Planned, waiting: set[int]) -> _Hook:
    """A hook like that of the insertion, which looks at the map and lets it pass."""
    hook = one.hook()
    axis = 1 if one.layout == "NCHW" else -1

    def look(_module, x, arguments):
        if x.dim() != len(one.layout):
            tokens = "; for tokens (N, L, C) give layout='NLC'" if x.dim() == 3 else ""
            raise ValueError(
                f"expected a map {one.layout} at {one.target_name}, got shape "
                f"{tuple(x.shape)}{tokens}"
            )
        if one.in_channels not in (None, x.shape[axis]):
            raise ValueError(
                f"expected {one.in_channels} channels in a map {one.layout} at {one.target_name}, "
                f"got shape {tuple(x.shape)}; leave in_channels out, or give another layout"
            )
        if one.layout == "NLC" and one.hw is None:
            _height_and_width(one.name, None, x, arguments)
        one.in_channels = x.shape[axis]
        waiting.discard(id(one))
        if not waiting:
            raise _Seen
        return x

    through = type(hook).apply

    def apply(*args):
        try:
            return through(hook, *args)
        except ValueError as error:
            raise _Misplaced(str(error)) from None

    hook._through, hook.apply = look, apply
    return hook


@contextlib.contextmanager
def _undisturbed(model: nn.Module):
    """Evaluation mode without gradients, after which modes and the random state are as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng(), torch.no_grad():
            for module, _ in modes:
                module.training = False
            yield
    finally:
        for module, training in modes:
            module.training = training


def _forward(model: nn.Module, example) -> None:
    if example is not None:
        model(*(example if isinstance(example, (tuple, list)) else (example,)))
        return
    first = next(model.parameters(), torch.zeros(()))
    image = torch.zeros(1, 3, TRACE_SIZE, TRACE_SIZE, device=first.device, dtype=first.dtype)
    named = inspect.signature(model.forward).parameters
    options = {"mode": "tensor"} if "mode" in named else {}
    with contextlib.suppress(ImportError):
        from mmdet.models.detectors import BaseDetector
        from mmdet.structures import DetDataSample

        # other frameworks on mmengine take none in this mode
        if isinstance(model, BaseDetector):
            size = (TRACE_SIZE, TRACE_SIZE)
            sizes = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
            sample = DetDataSample(metainfo=dict(sizes, scale_factor=(1.0, 1.0)))
            # some heads take the number of objects from here, even without a loss
            boxes, labels = image.new_zeros(0, 4), image.new_zeros(0, dtype=torch.long)
            sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
            options["data_samples"] = [sample]
    model(image, **options)


def _build(one: _Planned, model: nn.Module) -> nn.Module:
    try:
        module = MMENGINE_MODELS.build(dict(one.cfg, in_channels=one.in_channels))
    except (TypeError, ValueError, AssertionError) as error:
        reason = error.args[0] if error.args else error
        if "missing" in str(reason) and "out_channels" in str(reason):
            reason = (
                f"{one.cfg['type']} is a convolution, not a module that follows one; it goes into "
                "conv_cfg= or dcn= (docs/insertion.md)"
            )
        raise type(error)(f"at {one.target_name}: {reason}") from error
    near = chain(one.target.parameters(), model.parameters())
    like = next((p for p in near if p.is_floating_point()), None)
    if like is not None:
        module.to(like.device, like.dtype)
    return module.train(one.target.training)


def _repeat_train(model: nn.Module, targets: Iterable[str]) -> None:
    """Lets parts that freeze or fix layers in ``train()`` do so with the new modules, too."""
    ancestors = {""}
    for name in targets:
        steps = name.split(".")
        ancestors |= {".".join(steps[:i]) for i in range(1, len(steps) + 1)}
    for name, part in model.named_modules():
        if name in ancestors and type(part).train is not nn.Module.train:
            part.train(part.training)
