"""Which config builds the network that a ResNet's weights are for?"""

from __future__ import annotations

from mmattn.checkpoints.names import MODULES, Net

WIDTH = 64  # of layer1's convolutions in every published ResNet
ALL = (True, True, True, True)


def model_config(net: Net) -> dict | None:
    """The keys of a detector's ``model`` that build the network; the rest is its base config's.

    None where mmdet has no such network, or the weights do not tell.

    Args:
        net: The network.
    """
    shapes = {name: tuple(value.shape) for name, value in net.weights.items()}
    conv = "conv1.1.weight" if "GCT" in net.modules else "conv1.weight"
    width = shapes.get(f"layer1.0.{conv}", (0,))[0]
    if not net.depth or "layer1.0.bn1.weight" not in shapes:
        return None
    backbone = dict(type="ResNet", depth=net.depth)
    if net.groups > 1:
        backbone |= dict(type="ResNeXt", groups=net.groups, base_width=width // net.groups)
    elif width != WIDTH:
        return None  # a wide ResNet, or a pruned one
    if net.deep and net.groups > 1:
        backbone |= dict(deep_stem=True, avg_down=net.avg_down)
    elif net.deep:
        backbone["type"] = "ResNetV1d" if net.avg_down else "ResNetV1c"
    if net.deep and (stem := shapes["stem.6.weight"][0]) != WIDTH:
        backbone["stem_channels"] = stem
    if "GCT" in net.modules:
        backbone |= dict(style="caffe", conv_cfg=dict(type="mmattn.GCTConv2d"))
    if "SK" in net.modules:
        backbone["type"] = "mmattn.SKResNet"
    _add_deformable(backbone, shapes)
    attached = []
    if "BAM" in net.modules:
        attached.append(dict(cfg=dict(type="mmattn.BAM"), after=r"backbone\.layer[123]"))
    for attribute, (name, _) in MODULES.items():
        if name not in net.modules or name == "BAM":
            continue
        plugins = _plugins(net, attribute, shapes)
        if plugins is None:
            return None
        if net.bottleneck:
            backbone.setdefault("plugins", []).extend(plugins)
        else:
            attached += map(_after_bn2, plugins)
    model = dict(backbone=backbone)
    if not net.bottleneck:
        model["neck"] = dict(in_channels=[64, 128, 256, 512])
    if not attached:
        return model
    # the type of the base config's model, under a name that a config can read
    return dict(
        type="mmattn.Attach", module=Expression("_base_.model.type"), plugins=attached, **model
    )


class Expression(str):
    """Text that is written into a config as it is, without quotes."""

    __repr__ = str.__str__


def as_python(value) -> str:
    """A value as a config would have it: ``dict(a=1)``."""
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={as_python(item)}' for key, item in value.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(as_python, value))}]"
    if isinstance(value, str) and "\\" in value:
        return f"r'{value}'"
    return repr(value)


def _add_deformable(backbone: dict, shapes: dict) -> None:
    """The slot for deformable convolutions, where conv2 has offsets."""
    offsets = [shapes.get(f"layer{s}.0.conv2.conv_offset.weight") for s in range(1, 5)]
    channels = {shape[0] for shape in offsets if shape}
    if channels:
        kind = "DCN" if channels == {18} else "DCNv2"
        backbone |= dict(
            dcn=dict(type=kind, deform_groups=1), stage_with_dcn=tuple(map(bool, offsets))
        )


def _plugins(net: Net, attribute: str, shapes: dict) -> list[dict] | None:
    """The plug-ins of one kind: one for all stages whose modules have the same arguments."""
    stages: dict[str, list[int]] = {}
    arguments: dict[str, dict] = {}
    inside = "" if net.bottleneck else "bn2."
    for stage, blocks in enumerate(net.blocks, 1):
        found = []
        for block in range(blocks):
            start = f"layer{stage}.{block}.{inside}{attribute}."
            found.append({k[len(start) :]: v for k, v in shapes.items() if k.startswith(start)})
        if not any(found):
            continue
        if any(one != found[0] for one in found):
            return None
        try:
            arguments_here = _ARGUMENTS[attribute](found[0])
        except (LookupError, ValueError):  # a part of the module is missing
            return None
        one = dict(type=f"mmattn.{MODULES[attribute][0]}", **arguments_here)
        stages.setdefault(repr(one), []).append(stage - 1)
        arguments[repr(one)] = one
    result = []
    for key, cfg in arguments.items():
        there = tuple(i in stages[key] for i in range(4))
        plugin = dict(cfg=cfg, position="after_conv3")
        result.append(plugin if there == ALL else plugin | dict(stages=there))
    return result


def _after_bn2(plugin: dict) -> dict:
    """The same module behind the last norm of a basic block, which has no slot for plug-ins."""
    stages = "".join(str(i + 1) for i, there in enumerate(plugin.get("stages", ALL)) if there)
    return dict(cfg=plugin["cfg"], after=rf"backbone\.layer[{stages}]\.\d+\.bn2")


def _se(shapes: dict) -> dict:
    hidden, channels = shapes["fc.0.weight"]
    bias = {} if "fc.0.bias" in shapes else dict(bias=False)
    return dict(ratio=channels // hidden, **bias)


def _gc(shapes: dict) -> dict:
    fusion = tuple(name for name in ("add", "mul") if f"channel_{name}_conv.0.weight" in shapes)
    hidden, channels = shapes[f"channel_{fusion[0]}_conv.0.weight"][:2]
    pooling = {} if "conv_mask.weight" in shapes else dict(pooling="avg")
    return dict(
        ratio=channels // hidden, **pooling, **({} if fusion == ("add",) else dict(fusion=fusion))
    )


def _cbam(shapes: dict) -> dict:
    hidden, channels = shapes["ChannelGate.mlp.1.weight"]
    return dict(
        ratio=channels // hidden,
        **({} if any("Spatial" in k for k in shapes) else dict(spatial=False)),
    )


_ARGUMENTS = {
    "se": _se,
    "sge": lambda shapes: dict(groups=shapes["weight"][1]),
    "context_block": _gc,
    "cbam": _cbam,
    "eca": lambda shapes: dict(kernel_size=shapes["conv.weight"][-1]),
}
