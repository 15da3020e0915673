"""Which release is a file from, and what are its weights called in mmdet and mmattn?

A file is recognised by the names in it. Consulted for names and orders of rows:
https://github.com/implus/PytorchInsight, https://github.com/xvjiarui/GCNet,
https://github.com/z-x-yang/GCT, https://github.com/BangguWu/ECANet,
https://github.com/huggingface/pytorch-image-models and MMDetection's notes on compatibility.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmattn.checkpoints.files import CheckpointError, some

if TYPE_CHECKING:
    from torch import Tensor

RECOGNISED = (
    "ResNets of PytorchInsight (plain, SE, SGE, GC, SK, BAM, CBAM), GCT, ECA-Net, timm (plain, SE, "
    "ECA) and torchvision; Faster, Mask and Cascade R-CNN and RetinaNet with such a ResNet of "
    "MMDetection 0.x and 1.x (PytorchInsight, GCNet); detectors of MMDetection 2.x and 3.x"
)

LEGACY = (
    "before version 2.0, MMDetection computed anchors, boxes and RoI features a little "
    "differently; docs/weights.md has the settings for detectors trained then"
)

STATE = r"(?:weight|bias|running_mean|running_var|num_batches_tracked)"
PARAMETERS = r"(?:weight|bias)"
# attribute name: the module, and its weights
MODULES = {
    "se": ("SE", rf"fc\.[02]\.{PARAMETERS}"),
    "sge": ("SGE", PARAMETERS),
    "context_block": ("GC", rf"(?:conv_mask|channel_(?:add|mul)_conv\.[013])\.{PARAMETERS}"),
    "cbam": (
        "CBAM",
        rf"ChannelGate\.mlp\.[13]\.{PARAMETERS}|SpatialGate\.spatial\.(?:conv\.weight|bn\.{STATE})",
    ),
    "eca": ("ECA", r"conv\.weight"),
    "bam": ("BAM", rf"(?:channel_att\.gate_c|spatial_att\.gate_s)\.\w+\.{STATE}"),
}
MODULE = "|".join(rf"{attribute}\.(?:{rest})" for attribute, (_, rest) in MODULES.items())
SK = rf"(?:conv2g|conv_fc[12])\.weight|(?:bn2g|bn_fc1)\.{STATE}"
CONV = r"(?:weight|0\.(?:alpha|gamma|beta)|1\.weight)"  # a convolution, or GCT with one
# what mmdet and mmattn call the weights of a ResNet
RESNET = re.compile(
    rf"conv1\.{CONV}|(?:bn|gn)1\.{STATE}|stem\.[013467]\.{STATE}"
    rf"|layer[1-4]\.\d+\.(?:conv[123]\.{CONV}|(?:bn|gn)[123]\.{STATE}"
    rf"|downsample\.(?:[012]\.{STATE}|0\.{CONV})|conv2\.conv_offset\.{PARAMETERS}"
    rf"|{SK}|(?:bn2\.)?(?:{MODULE}))"
)
# what releases call the same: timm has every kind of module under "se"
RENAMED = [
    (r"\.gc\.", ".context_block."),
    (r"\.se\.fc1\.", ".se.fc.0."),
    (r"\.se\.fc2\.", ".se.fc.2."),
    (r"\.se\.conv\.", ".eca.conv."),
    (r"\.conv2_offset\.", ".conv2.conv_offset."),
]
# the official branch is GCT, convolution, norm; mmdet's is (GCT, convolution), norm
RENAMED_GCT = [
    (r"^stem\.", ""),
    (r"\.downsample\.([01])\.", r".downsample.0.\1."),
    (r"\.downsample\.2\.", ".downsample.1."),
]
RENAMED_DEEP = [(r"^conv1\.(\d)\.", r"stem.\1."), (r"^bn1\.", "stem.7.")]
BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(.+)")
# (blocks have three convolutions, blocks of each stage)
DEPTHS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}

LAYER = rf"(?:conv|bn|gn)\.{STATE}"
NECK = re.compile(rf"neck\.(?:lateral_convs|fpn_convs)\.\d+\.{LAYER}")
RPN = re.compile(rf"rpn_head\.rpn_(?:conv|cls|reg)\.{PARAMETERS}")
ROI = re.compile(
    rf"bbox_head\.(?:\d+\.)?(?:fc_(?:cls|reg)\.{PARAMETERS}"
    rf"|(?:shared|cls|reg)_(?:fcs\.\d+\.{PARAMETERS}|convs\.\d+\.{LAYER}))"
    rf"|mask_head\.(?:\d+\.)?(?:convs\.\d+\.{LAYER}|(?:upsample|conv_logits)\.{PARAMETERS})"
)
RETINA = re.compile(
    rf"bbox_head\.(?:retina_(?:cls|reg)\.{PARAMETERS}|(?:cls|reg)_convs\.\d+\.{LAYER})"
)


@dataclass
class Conversion:
    """What became of a file's weights.

    Args:
        family: Where the file is from.
        model: What it is, such as ``'ResNet-50 with SGE'``.
        kind: ``'backbone'`` or ``'detector'``: what ``weights`` are for.
        names: The old name of each weight that was taken over, with the new one.
        weights: New name to tensor.
        changed: New names of weights whose values were rearranged, with what was done.
        dropped: Old names of what no detector needs, with the reason.
        left_over: Old names that have no place.
        net: The ResNet in it; None where there is none.
        note: What names and values cannot put right.
    """

    family: str
    model: str
    kind: str
    names: dict[str, str] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)
    net: Net | None = None
    note: str = ""

    @property
    def renamed(self) -> dict[str, str]:
        """Old and new name where they differ by more than the ``backbone.`` in front."""
        prefix = "backbone."
        return {
            old: new
            for old, new in self.names.items()
            if old.removeprefix(prefix) != new.removeprefix(prefix)
        }


def convert(weights: dict, kind: str | None = None, modern: bool = False) -> Conversion:
    """Recognises a file's weights and gives them the names they have in mmdet and mmattn.

    Args:
        weights: Name to tensor.
        kind: ``'backbone'`` or ``'detector'``: what the result is for. A detector's heads are
            dropped for a backbone; a backbone gets its prefix for a detector. None: as the file.
        modern: The file says that MMDetection 2.x or later, or mmengine, wrote it.

    Raises:
        CheckpointError: It is none of the known files, or its heads do not fit one another.
    """
    ema = {n: "an EMA copy" for n in weights if n.startswith("ema_")}  # as mmcv 1.x saved them
    weights = {name: value for name, value in weights.items() if name not in ema}
    body = {n.removeprefix("backbone."): w for n, w in weights.items() if n.startswith("backbone.")}
    heads = {name: w for name, w in weights.items() if not name.startswith("backbone.")}
    bare = body and not heads
    if _is_resnet(heads):
        result = _classifier(heads, "")
    elif _is_resnet(body) and all(name.startswith("head.") for name in heads):
        result = _classifier(body, "backbone.")
        result.dropped |= dict.fromkeys(heads, "the classifier")
    elif body and heads:
        result = _detector(body, heads, modern)
    else:
        raise _unknown(weights)
    result.dropped |= ema
    return _for_kind(result, kind or ("detector" if bare else result.kind))


def _unknown(weights: dict) -> CheckpointError:
    return CheckpointError(
        f"expected one of the known releases, got {len(weights)} weights, the first of them "
        f"{some(list(weights))}; known are {RECOGNISED}"
    )


def _for_kind(result: Conversion, kind: str) -> Conversion:
    """Drops the heads, or adds the prefix."""
    if kind == result.kind:
        return result
    prefix = "backbone."

    def moved(name: str) -> str:
        return name.removeprefix(prefix) if kind == "backbone" else prefix + name

    if kind == "backbone":
        heads = {old: new for old, new in result.names.items() if not new.startswith(prefix)}
        for old, new in heads.items():
            result.dropped[old] = "not of the backbone"
            del result.names[old], result.weights[new]
            result.changed.pop(new, None)
        result.note = ""
    result.names = {old: moved(new) for old, new in result.names.items()}
    result.weights = {moved(name): value for name, value in result.weights.items()}
    result.changed = {moved(name): how for name, how in result.changed.items()}
    result.kind = kind
    return result


def _is_resnet(names) -> bool:
    stems = r"(?:stem\.)?conv1\.(?:[01]\.)?weight|stem\.0\.weight"
    firsts = {"layer1.0.conv1.weight", "layer1.0.conv1.1.weight"}
    return any(re.fullmatch(stems, n) for n in names) and not firsts.isdisjoint(names)


class Net:
    """A ResNet as the names of its weights show it.

    Args:
        weights: Official names without ``backbone.``, and tensors.
    """

    def __init__(self, weights: dict):
        blocks = [match for match in map(BLOCK.fullmatch, weights) if match]
        self.parts = {match[3] for match in blocks}
        self.blocks = [
            max((int(match[2]) + 1 for match in blocks if int(match[1]) == stage), default=0)
            for stage in (1, 2, 3, 4)
        ]
        self.bottleneck = any(part.startswith("conv3.") for part in self.parts)
        self.depth = DEPTHS.get((self.bottleneck, tuple(self.blocks)))
        rules = list(RENAMED)
        # mmattn.Attach puts what follows a stage into the stage's last block
        rules += [(rf"^bam{i}\.", f"layer{i}.{n - 1}.bam.") for i, n in enumerate(self.blocks, 1)]
        if "stem.conv1.1.weight" in weights:
            rules = RENAMED_GCT
        elif "conv1.3.weight" in weights:
            rules += RENAMED_DEEP
        self.names: dict[str, str] = {}  # official name to name here
        self.weights: dict[str, Tensor] = {}  # by name here
        self.changed: dict[str, str] = {}
        for name, value in weights.items():
            new = self._renamed(name, rules)
            if RESNET.fullmatch(new):
                self.names[name], self.weights[new] = new, _with_rows(name, value)
                if re.search(r"\.se\.fc\.[02]\.weight$", new) and value.dim() == 4:
                    self.weights[new] = value.flatten(1)
                    self.changed[new] = "the 1x1 convolution as a matrix"
        self.deep = "stem.0.weight" in self.weights
        self.avg_down = "layer2.0.downsample.2.weight" in self.weights
        self.modules = self._modules()
        self._check_stem()

    def _renamed(self, name: str, rules: list[tuple[str, str]]) -> str:
        for pattern, replacement in rules:
            new, found = re.subn(pattern, replacement, name)
            if found:
                name = new
                break
        if not self.bottleneck:
            # a basic block has no slot for plug-ins; mmattn.Attach puts them behind its bn2
            name = re.sub(rf"^(layer\d\.\d+)\.(?!bam)({MODULE})$", r"\1.bn2.\2", name)
        return name

    def _modules(self) -> list[str]:
        parts = {m[3].removeprefix("bn2.") for m in map(BLOCK.fullmatch, self.weights) if m}
        attributes = {part.partition(".")[0] for part in parts}
        found = [module for attribute, (module, _) in MODULES.items() if attribute in attributes]
        return found + ["SK"] * ("conv2g" in attributes) + ["GCT"] * ("conv1.0.alpha" in parts)

    def _check_stem(self) -> None:
        convolutions = [self.weights.get(f"stem.{i}.weight") for i in (0, 3, 6)]
        widths = [len(weight) for weight in convolutions if weight is not None]
        if len(widths) == 3 and not widths[0] == widths[1] == widths[2] / 2:
            raise CheckpointError(
                f"the stem has convolutions of {', '.join(map(str, widths))} channels; MMDetection "
                "has stems of c, c, 2c only, so this network cannot be built there"
            )

    @property
    def groups(self) -> int:
        """Groups of the 3x3 convolutions: above 1 in a ResNeXt."""
        before = self.weights.get("layer1.0.conv1.weight")
        conv = self.weights.get("layer1.0.conv2.weight")
        if conv is None or before is None or conv.dim() != 4 or not self.bottleneck:
            return 1
        return max(1, len(before) // conv.shape[1])

    @property
    def title(self) -> str:
        """``'ResNet-50 with SGE'``."""
        kind = "ResNeXt" if self.groups > 1 else "ResNet"
        if self.deep:
            kind += "V1d" if self.avg_down else "V1c"
        blocks = "-".join(map(str, self.blocks))
        size = f"-{self.depth}" if self.depth else f" of {blocks} blocks"
        modules = " and ".join(self.modules)
        return kind + size + (f" with {modules}" if modules else "")


def _take(result: Conversion, net: Net, names, old_prefix: str, new_prefix: str) -> None:
    """Takes the backbone's weights over."""
    for name in names:
        if name in net.names:
            new = net.names[name]
            result.names[old_prefix + name] = new_prefix + new
            result.weights[new_prefix + new] = net.weights[new]
        elif re.fullmatch(rf"fc\.{PARAMETERS}", name):
            result.dropped[old_prefix + name] = "the classifier"
        else:
            result.left_over.append(old_prefix + name)
    result.changed |= {new_prefix + name: how for name, how in net.changed.items()}


def _classifier(weights: dict, prefix: str) -> Conversion:
    net = Net(weights)
    result = Conversion(_classifier_family(net, weights), net.title, "backbone", net=net)
    _take(result, net, weights, prefix, "")
    return result


def _classifier_family(net: Net, names) -> str:
    modules = set(net.modules)
    if net.deep or any(re.search(r"\.se\.(?:fc[12]|conv)\.", name) for name in names):
        return "timm"
    if modules & {"CBAM", "BAM"}:
        return "PytorchInsight or the release of CBAM and BAM"
    for family, own in (("GCT", {"GCT"}), ("ECA-Net", {"ECA"}), ("PytorchInsight", modules)):
        if modules & own:
            return family
    return "torchvision, timm or PytorchInsight"


def _detector(body: dict, heads: dict, modern: bool) -> Conversion:
    old_roi = any(re.match(r"bbox_head\.(\d+\.)?fc_cls\.", name) for name in heads)
    if any(name.startswith("roi_head.") for name in heads) or (modern and not old_roi):
        net = _known_net(body)
        title = net.title if net else "a backbone of its own"
        result = Conversion("MMDetection 2.x/3.x", f"detector, {title}", "detector", net=net)
        everything = {**{f"backbone.{name}": w for name, w in body.items()}, **heads}
        result.names = {name: name for name in everything}
        result.weights = everything
        return result
    if not _is_resnet(body) or not (old_roi or "bbox_head.retina_cls.weight" in heads):
        raise _unknown({**heads, **{f"backbone.{name}": w for name, w in body.items()}})
    net = Net(body)
    kind, rename = ("RetinaNet", _retina_name)
    if old_roi:
        kind, rename = _roi_kind(heads), _roi_name
    family = _detector_family(net, body) if old_roi else "PytorchInsight or MMDetection"
    result = Conversion(family, f"{kind}, {net.title}", "detector", net=net, note=LEGACY)
    _take(result, net, body, "backbone.", "backbone.")
    for name, value in heads.items():
        new = rename(name)
        if new is None:
            result.left_over.append(name)
            continue
        how = None
        if old_roi:
            value, how = _background_last(name, _with_rows(name, value), heads)
        result.names[name] = new
        result.weights[new] = value
        if how:
            result.changed[new] = how
    return result


def _known_net(body: dict) -> Net | None:
    """The backbone of a newer detector, if it is a ResNet with known modules and nothing else."""
    # mmattn's own buffer, of modules that started as identity
    names = {name: value for name, value in body.items() if not name.endswith(".gate_scale")}
    net = Net(names) if _is_resnet(names) else None
    return net if net and net.names == {name: name for name in names} else None


def _with_rows(name: str, value: Tensor) -> Tensor:
    """The tensor, which must not be a single number if it is a weight or bias."""
    if name.endswith(("weight", "bias")) and not value.dim():
        raise CheckpointError(f"{name} is expected to have rows, got a single number")
    return value


def _detector_family(net: Net, names) -> str:
    if any(".context_block." in name for name in names):
        return "GCNet or MMDetection 0.x/1.x"
    return "PytorchInsight on MMDetection 0.x" if net.modules else "MMDetection 0.x/1.x"


def _roi_kind(heads: dict) -> str:
    cascade = "Cascade " * any(name.startswith("bbox_head.0.") for name in heads)
    mask = any(name.startswith("mask_head.") for name in heads)
    return f"{cascade}{'Mask' if mask else '' if cascade else 'Faster'} R-CNN".replace("  ", " ")


def _roi_name(name: str) -> str | None:
    if NECK.fullmatch(name) or RPN.fullmatch(name):
        return name
    return f"roi_head.{name}" if ROI.fullmatch(name) else None


def _retina_name(name: str) -> str | None:
    # up to 0.5.3 the towers were plain convolutions
    tower = rf"(bbox_head\.(?:cls|reg)_convs\.\d+)\.({PARAMETERS})"
    name = re.sub(rf"^{tower}$", r"\1.conv.\2", name)
    return name if NECK.fullmatch(name) or RETINA.fullmatch(name) else None


def _background_last(name: str, value: Tensor, heads: dict) -> tuple[Tensor, str | None]:
    """A head's rows in the order of MMDetection 2.x: classes from 0, the background last.

    Before, class 0 was the background. The layers that work class by class had rows for it,
    which were never trained.
    """
    layer = name.split(".")[-2]
    change = _CHANGES.get(layer)
    return change(name, value, heads) if change else (value, None)


def _rows(name: str, heads: dict, other: str) -> int:
    """The rows of another head's layer; of the same stage, in a cascade."""
    stage = re.search(r"\.(\d+\.)\w+\.\w+$", name)
    head, _, layer = other.partition(".")
    other = f"{head}.{stage[1] if stage else ''}{layer}"
    if other not in heads:
        raise CheckpointError(f"there is {name}, but no {other} beside it")
    return len(heads[other])


def _fc_cls(name, value, heads):
    return value.roll(-1, 0), "the background's row from first to last"


def _fc_reg(name, value, heads):
    if len(value) == 4:
        return value, None
    classes = _rows(name, heads, "bbox_head.fc_cls.weight")
    if len(value) != 4 * classes:
        raise CheckpointError(
            f"{name} is expected to have 4 rows or 4 for each of the {classes} classes, background "
            f"included, got {len(value)}"
        )
    return value[4:], "without the background's rows"


def _conv_logits(name, value, heads):
    if len(value) == 1:
        return value, None
    classes = _rows(name, heads, "bbox_head.fc_cls.weight")
    if len(value) != classes:
        raise CheckpointError(
            f"{name} is expected to have 1 row or one for each of the {classes} classes, "
            f"background included, got {len(value)}"
        )
    return value[1:], "without the background's row"


def _rpn_cls(name, value, heads):
    anchors = _rows(name, heads, "rpn_head.rpn_reg.weight") // 4
    if len(value) == anchors:
        return value, None
    if len(value) != 2 * anchors:
        raise CheckpointError(
            f"{name} is expected to have 1 or 2 rows for each of the {anchors} anchors, "
            f"got {len(value)}"
        )
    pairs = value.unflatten(0, (anchors, 2)).flip(1).flatten(0, 1)
    return pairs, "the background's rows behind the objects'"


_CHANGES: dict[str, Callable] = {
    "fc_cls": _fc_cls,
    "fc_reg": _fc_reg,
    "conv_logits": _conv_logits,
    "rpn_cls": _rpn_cls,
}
