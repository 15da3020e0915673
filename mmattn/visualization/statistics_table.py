"""Tables of :class:`mmattn.visualization.statistics.Statistics` for a terminal, in Markdown."""

from __future__ import annotations

import textwrap

from rich import box
from rich.table import Table
from rich.text import Text

from mmattn.evaluation.table import NOT_AVAILABLE, render
from mmattn.visualization.shares import number
from mmattn.visualization.statistics import ALL, Statistics

GATES = ["layer", "map", "units", "neutral", "mean", "sd units", "sd images", "sd positions"]
GATES += ["dead", "saturated"]
ACTIVATION = ["layer", "module", "variance in", "out", "ratio", "at mean factor"]
ACTIVATION += ["norm spread ratio", "term to input"]


def tables(statistics: Statistics) -> str:
    """All tables that there is something for, each with a line that says what it shows."""
    parts = [
        _gct(statistics),
        _sge(statistics),
        _gates(statistics),
        _activation(statistics),
        _classes(statistics),
        _regions(statistics),
        _shares(statistics),
        _weights(statistics),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(title: str, headers: list[str], rows: list[list[str]], notes: str = "") -> str:
    if not rows:
        return ""
    table = Table(box=box.MARKDOWN)
    for column, header in enumerate(headers):
        justify = "left" if column < 2 else "right"
        table.add_column(header, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return "\n".join(filter(None, [render(Text(title), table), textwrap.fill(notes, 100)]))


def _percent(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{100 * value:.1f} %"


def _where(layer: dict) -> str:
    again = f" (call {layer['call'] + 1})" if layer.get("call") else ""
    return f"{layer['label']}{again}"


def _gct(statistics: Statistics) -> str:
    rows = [
        [
            _where(one),
            str(len(one["gamma"]["values"])),
            number(one["gamma"]["mean"]),
            number(one["gamma"]["variance"]),
            _percent(one["competing"]),
            _percent(one["cooperating"]),
        ]
        for one in statistics.parameters
        if one["type"] == "GCT"
    ]
    return _table(
        "GCT: gamma by layer (no images needed)",
        ["layer", "channels", "mean", "variance", "competing", "cooperating"],
        rows,
        "Competing: gamma alpha > 0, a large norm raises the channel further; cooperating: < 0.",
    )


def _sge(statistics: Statistics) -> str:
    rows = [
        [
            _where(one),
            str(len(one["weight"]["values"])),
            number(one["weight"]["mean"]),
            number(one["bias"]["mean"]),
            number(one["swing"]["mean"] if "swing" in one else None),
        ]
        for one in statistics.parameters
        if one["type"] == "SGE"
    ]
    return _table(
        "SGE: weight, bias and swing by layer (no images needed), means over the groups",
        ["layer", "groups", "weight", "bias", "swing"],
        rows,
        "Swing: how much the factor differs between positions two standard deviations above and "
        "below the mean.",
    )


def _gates(statistics: Statistics) -> str:
    rows = []
    for layer, one in statistics.maps("channel", "spatial"):
        states = one.get("states")
        rows.append(
            [
                _where(layer),
                f"{layer['type']} {one['name']}",
                str(one["units"]),
                number(one["neutral"]),
                number(one["mean"]),
                number(one["sd_units"]),
                number(one["sd_images"]),
                number(one.get("sd_positions")),
                _percent(states and states["dead"]),
                _percent(states and states["saturated"]),
            ]
        )
    images = statistics.images
    return _table(
        f"Gates and added terms over {images} image{'' if images == 1 else 's'}",
        GATES,
        rows,
        "Units: channels, or groups of channels. Dead: within 1 % of one value for every image and "
        "position; saturated: within 1 % of a bound.",
    )


def _activation(statistics: Statistics) -> str:
    rows = []
    for layer in statistics.layers:
        found = layer.get("activation")
        if not found:
            continue
        rows.append(
            [
                _where(layer),
                layer["type"],
                *(number(found[name]["mean"]) for name in ("variance_in", "variance_out")),
                number(found.get("variance_ratio")),
                number(found.get("variance_ratio_at_mean_factor")),
                number(found.get("norm_spread_ratio")),
                number(found.get("term_to_input", {}).get("mean")),
            ]
        )
    return _table(
        "Activations into and out of the modules",
        ACTIVATION,
        rows,
        "Variance over positions, mean over channels and images; at mean factor: the ratio if each "
        "mask were its own mean. Norm spread: sd over mean of the channels' norms. Term to "
        "input: root mean square of what is added, over that of the activations.",
    )


def _classes(statistics: Statistics) -> str:
    rows = [
        [
            _where(layer),
            f"{layer['type']} {one['name']}",
            number(one["class_spread"], 4),
            number(one.get("class_spread_by_chance"), 4),
        ]
        for layer, one in statistics.maps("channel")
        if "class_spread" in one
    ]
    shown = ", ".join(f"{name} {n}" for name, n in statistics.classes.items() if name != ALL)
    return _table(
        f"Spread of the mean gates of classes (images: {shown})",
        ["layer", "map", "spread", "by chance"],
        rows,
        "Sd over the classes, root mean square over the channels; by chance: what is to expect if "
        "the gates of an image have nothing to do with its classes.",
    )


def _regions(statistics: Statistics) -> str:
    rows = [
        [
            _where(layer),
            layer["type"],
            str(one["count"]),
            number(one["entropy_bits"]["mean"]),
            number(one["entropy_bits_of_mean"]),
            number(one["uniform_bits"]),
            _percent(max(one["share"]["mean"])),
            ", ".join(map(str, one["never_used"])) or "none",
        ]
        for layer, one in statistics.maps("regions")
    ]
    return _table(
        "Regions",
        [
            "layer",
            "module",
            "regions",
            "bits an image",
            "bits of all",
            "log2 m",
            "largest",
            "never",
        ],
        rows,
        "Bits: entropy of the regions' shares of the pixels; largest: mean share of the most used.",
    )


def _shares(statistics: Statistics) -> str:
    rows = [
        [
            _where(layer),
            f"{layer['type']} {one['name']}",
            " ".join(number(x) for x in one["share"]["mean"]),
            " ".join(number(x) for x in one["share"]["sd"]),
        ]
        for layer, one in statistics.maps("shares")
    ]
    return _table("Experts and branches", ["layer", "map", "mean shares", "sd images"], rows)


def _weights(statistics: Statistics) -> str:
    rows = []
    for layer, one in statistics.maps("weights"):
        bits, uniform = one["entropy_bits"], one.get("uniform_bits")
        distances = one.get("query_distance", {})
        rows.append(
            [
                _where(layer),
                f"{layer['type']} {one['name']}",
                number(bits and bits["mean"]),
                number(uniform),
                number(bits and uniform - bits["mean"]),
                ", ".join(f"{n} {number(x['mean'], 4)}" for n, x in distances.items())
                or NOT_AVAILABLE,
            ]
        )
    return _table(
        "Where queries look: entropy over positions",
        ["layer", "map", "bits", "uniform", "below uniform", "query distance"],
        rows,
    )
