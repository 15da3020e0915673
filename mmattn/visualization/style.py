"""Colours, scales and files that all pictures share.

Colours are told apart by people who see red and green alike: Okabe and Ito's for things that have
names, cividis for amounts, purple to orange for what lies below and above a neutral value.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import Colormap, ListedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

# Okabe and Ito's, without black and with a grey
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
# after the first seven: Okabe and Ito's pink is a grey to who sees no green
MORE_COLOURS = (
    "#5A2A00", "#0000FF", "#87FFA5", "#3C2D3C", "#001E96", "#6969FF", "#F0E1F0", "#0F2D69",
    "#E11E4B", "#E1A55A", "#6996FF", "#784B78", "#87D2A5", "#0F0FC3", "#E1F078", "#2D5AC3",
    "#A53C00", "#5A693C", "#1E4BFF", "#5A1E1E", "#3CC3D2", "#FF4B78", "#784B5A", "#FFE1D2",
    "#A50096",
)  # fmt: skip
RAISED, LOWERED = "#E66101", "#5E3C99"  # the ends of the diverging colours
NOWHERE = (0.8, 0.8, 0.8)  # where there is no value
SIZES = {"small": "#56B4E9", "medium": "#E69F00", "large": "#009E73"}
AMOUNT, DIVERGING = "cividis", "PuOr_r"
DPI = 150
RC = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mmattn",  # the same picture gives the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "image.interpolation": "nearest",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Scale:
    """From values to colours, the same for all things that are compared.

    Args:
        low: The value of the first colour.
        high: The value of the last.
        centre: The value of the middle colour; None where amounts have no neutral value.
        label: What the values are, with their unit.
    """

    low: float
    high: float
    centre: float | None = None
    label: str = ""

    @classmethod
    def of(
        cls,
        values: Iterable,
        centre: float | None = None,
        label: str = "",
        bounds: tuple[float | None, float | None] = (None, None),
        quantile: float = 0.995,
        least: float = 0.0,
    ) -> Scale:
        """A scale for all of ``values``, arrays or tensors that are compared.

        It leaves out the outermost values of each array beyond ``quantile``, so that small maps
        count as much as large ones; with a ``centre`` it reaches as far to one side as to the
        other, ``least`` at least, but not past ``bounds``.
        """
        arrays = [np.asarray(v, np.float64).ravel() for v in values]
        arrays = [v[np.isfinite(v)] for v in arrays]
        arrays = [v for v in arrays if v.size] or [np.arange(2.0)]
        least = max(least, 1e-6 * max(1.0, *(float(np.abs(v).max()) for v in arrays)))
        if centre is None:
            ends = np.array([np.quantile(v, [1 - quantile, quantile]) for v in arrays])
            low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
            return cls(low, max(high, low + least), None, label)
        reach = max(float(np.quantile(np.abs(v - centre), quantile)) for v in arrays)
        reach = max(reach, least)
        low, high = centre - reach, centre + reach
        low = low if bounds[0] is None else max(low, bounds[0])
        high = high if bounds[1] is None else min(high, bounds[1])
        return cls(min(low, centre - least), max(high, centre + least), centre, label)

    @property
    def cmap(self) -> Colormap:
        """Matplotlib's colours."""
        return matplotlib.colormaps[AMOUNT if self.centre is None else DIVERGING]

    @property
    def norm(self) -> Normalize:
        """Matplotlib's mapping to them."""
        if self.centre is None:
            return Normalize(self.low, self.high)
        return TwoSlopeNorm(self.centre, self.low, self.high)

    def colours(self, values: np.ndarray) -> np.ndarray:
        """RGB between 0 and 1, (..., 3); NaN is grey."""
        values = np.asarray(values, np.float64)
        colours = self.cmap(self.norm(values))[..., :3]
        return np.where(np.isnan(values)[..., None], NOWHERE, colours)


def palette(count: int) -> ListedColormap:
    """One colour for each of ``count`` things with a number, the same in every picture.

    The first colours of a long palette are those of a short one. Each was taken as far as can be
    from those before it, for people who see all colours and for those who see no red or no green
    (CIELAB, Machado et al. 2009): 17 apart with 8 colours, 14 with 32. Beyond 32 they come from
    a rainbow, and only numbers and borders tell them apart.
    """
    colours = [*COLOURS[:7], *MORE_COLOURS][:count]
    if count > len(colours):
        colours += [
            matplotlib.colormaps["turbo"](x)[:3] for x in np.linspace(0, 1, count - len(colours))
        ]
    return ListedColormap(colours)


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's settings for a picture of mmattn; the process keeps its own."""
    with matplotlib.rc_context(RC):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, which no window knows of."""
    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure, dpi: int | None = None) -> bytes:
    """The figure as a PNG file, of ``DPI`` pixels an inch."""
    with styled(), io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=dpi or DPI, metadata={"Software": None})
        figure.set_layout_engine("none")  # it is laid out, and would be for each further file
        return file.getvalue()


def save_svg(figure: Figure, path: Path) -> None:
    """Writes the figure as an SVG file, the same bytes each time."""
    with styled():
        figure.savefig(path, format="svg", dpi=DPI, metadata={"Date": None})


def save(figure: Figure, path: Path) -> list[Path]:
    """Writes ``path``.png and ``path``.svg, and returns both."""
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    files[0].write_bytes(png(figure))
    save_svg(figure, files[1])
    return files
