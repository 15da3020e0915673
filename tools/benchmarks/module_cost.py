"""What each module costs in a ResNet-50 at its paper's place, and what papers say, as Markdown.

    python tools/benchmarks/module_cost.py [--shape 800 1333]

The backbone alone, without the classifier, for one image that is not padded. The models are on the
meta device: nothing is computed, and the figures are the same on every machine. The activations of
NonLocal alone are found on the CPU, where PyTorch's attention runs as one operator (2 GiB).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from mmengine.registry import MODELS, DefaultScope

import mmattn
from mmattn.inspection.cost import activation_bytes, flops

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # blocks of the stages c2 to c5


@dataclass(frozen=True)
class Place:
    """Where a module stands: in words, in the config of a ResNet, or attached."""

    words: str
    backbone: dict
    plugins: tuple = ()
    fused: bool = False  # on the meta device PyTorch's attention makes the whole matrix


def in_blocks(name: str, first: int = 2, **arguments) -> Place:
    """Before the residual of every block from the stage ``first`` on is added."""
    stages = tuple(stage >= first for stage in (2, 3, 4, 5))
    cfg = dict(type=f"mmattn.{name}", **arguments)
    plugin = dict(cfg=cfg, stages=stages, position="after_conv3")
    return Place(f"blocks of c{first}-c5", dict(plugins=[plugin]))


def for_conv2(name: str, **arguments) -> Place:
    """In place of the 3x3 convolutions of the last two stages."""
    conv = dict(type=f"mmattn.{name}", **arguments)
    return Place("conv2 of c4-c5", dict(dcn=conv, stage_with_dcn=(False, False, True, True)))


def attached(name: str, after: str, words: str, fused: bool = False) -> Place:
    """Where a ResNet has no slot."""
    return Place(words, {}, (dict(cfg=dict(type=f"mmattn.{name}"), after=after),), fused)


def places(depth: int) -> dict[str, Place]:
    """Each module at the place of its paper; the convolutions in the last two stages."""
    last_but_one = rf"layer3\.{DEPTHS[depth][2] - 2}"
    gct_conv = dict(conv_cfg=dict(type="mmattn.GCTConv2d"))
    return {
        "plain": Place("", {}),
        "SE": in_blocks("SE"),
        "SGE": in_blocks("SGE"),
        "GC, ratio 16": in_blocks("GC", 3),
        "GC, ratio 4": in_blocks("GC", 3, ratio=4),
        "GCT": Place("before every convolution", gct_conv),
        "NonLocal": attached("NonLocal", last_but_one, "before the last block of c4", fused=True),
        "SNL": in_blocks("SNL", 3),
        "CBAM": in_blocks("CBAM"),
        "BAM": attached("BAM", "layer[123]", "after c2, c3 and c4"),
        "ECA": in_blocks("ECA"),
        "SRM": in_blocks("SRM"),
        "SimAM": attached("SimAM", r"layer\d\.\d+\.conv2", "after every conv2"),
        "CoordAttention": in_blocks("CoordAttention"),
        "TripletAttention": in_blocks("TripletAttention"),
        "SKResNet": Place("conv2 of c2-c5", dict(type="mmattn.SKResNet")),
        "SKConv2d": for_conv2("SKConv2d"),
        "CondConv2d, 8 experts": for_conv2("CondConv2d", experts=8),
        "DRConv2d, 8 regions": for_conv2("DRConv2d", regions=8),
    }


# https://github.com/implus/PytorchInsight: millions of parameters and GFLOPs at 1333x800
PUBLISHED = {
    50: {
        "plain": (23.51, 88.032),
        "SE": (26.04, 88.152),
        "SKResNet": (24.11, 89.414),
        "BAM": (23.87, 89.804),
        "CBAM": (26.04, 88.302),
        "SGE": (23.51, 88.149),
    },
    101: {"plain": (42.50, 167.908), "SE": (47.28, 168.3), "SGE": (42.50, 168.099)},
}


@dataclass(frozen=True)
class Figures:
    """Of one backbone."""

    parameters: int
    multiply_adds: int
    elementwise: int
    activations: int | None = None

    @property
    def gflops(self) -> float:
        return (self.multiply_adds + self.elementwise) / 1e9


def measure(place: Place, depth: int, shape: tuple[int, int], activations=True) -> Figures:
    """Builds a backbone and counts."""
    with torch.device("meta"), DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build({"type": "mmdet.ResNet", "depth": depth, **place.backbone})
        if place.plugins:
            mmattn.attach(model, place.plugins)
        image = torch.empty(1, 3, *shape)
    model.eval()
    counted = flops(model, image)[""]
    kept = None
    if activations:
        model.train()
        if place.fused:
            model.to_empty(device="cpu")
            image = torch.zeros(image.shape)
        kept = activation_bytes(model, image)[""]
    parameters = sum(p.numel() for p in model.parameters())
    return Figures(parameters, counted.multiply_adds, counted.elementwise, kept)


def modules_table(shape: tuple[int, int]) -> str:
    """Every module in a ResNet-50."""
    found = {name: measure(place, 50, shape) for name, place in places(50).items()}
    plain = found.pop("plain")
    lines = [
        "| module | where in ResNet-50 | parameters | multiply-adds (10^9) | elementwise (10^9) "
        "| FLOPs | activations (MiB) |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        f"| none | | {plain.parameters:,} | {plain.multiply_adds / 1e9:.3f} "
        f"| {plain.elementwise / 1e9:.3f} | {plain.gflops:.2f} G "
        f"| {plain.activations / 2**20:.0f} |",
    ]
    for name, one in found.items():
        more = one.gflops - plain.gflops
        lines.append(
            f"| {name} | {places(50)[name].words} | {one.parameters - plain.parameters:+,} "
            f"| {(one.multiply_adds - plain.multiply_adds) / 1e9:+.3f} "
            f"| {(one.elementwise - plain.elementwise) / 1e9:+.3f} "
            f"| {100 * more / plain.gflops:+.2f} % "
            f"| {(one.activations - plain.activations) / 2**20:+.0f} |"
        )
    return "\n".join(lines)


def published_table() -> str:
    """The backbones of PytorchInsight."""
    lines = [
        "| backbone | parameters (10^6) | published | GFLOPs | published | difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for depth, rows in PUBLISHED.items():
        for name, (millions, gflops) in rows.items():
            one = measure(places(depth)[name], depth, (800, 1333), activations=False)
            lines.append(
                f"| ResNet-{depth}, {name} | {one.parameters / 1e6:.2f} | {millions:.2f} "
                f"| {one.gflops:.3f} | {gflops:.3f} | {100 * (one.gflops / gflops - 1):+.2f} % |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", nargs=2, type=int, default=[800, 1333], metavar=("HEIGHT", "WIDTH")
    )
    args = parser.parse_args()
    print(modules_table(tuple(args.shape)))
    print()
    print(published_table())


if __name__ == "__main__":
    main()
