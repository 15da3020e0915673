"""Figures laid out by hand, in px: for pictures whose parts must keep their size."""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import lru_cache

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from mmattn.visualization.style import new_figure

UNIT = 150  # lengths are in 1/150 inch, the pixels of a PNG
LINE = 22  # height of a line of text
TEXT = 7.5  # pt
HEADING = 11  # pt, of a figure's title


class Sheet:
    """A figure whose places are given in px, from the top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = new_figure(width / UNIT, height / UNIT)
        self.figure.set_layout_engine("none")

    def axes(self, left: float, top: float, width: float, height: float, **options) -> Axes:
        """Axes at that place."""
        place = (
            left / self.width,
            1 - (top + height) / self.height,
            width / self.width,
            height / self.height,
        )
        return self.figure.add_axes(place, **options)

    def text(self, left: float, top: float, text: str, width: float, size: float = 8.5, **options):
        """A line of text, cut off where it is wider than ``width``."""
        text = fit(text, size, width, options.get("weight", "normal"))
        x, y = left / self.width, 1 - top / self.height
        self.figure.text(x, y, text, size=size, va="top", parse_math=False, **options)


@lru_cache(maxsize=4096)
def text_width(text: str, size: float = TEXT, weight: str = "normal") -> float:
    """Width of a line in px of 1/150 inch."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] * UNIT / 72


def wrapped(text: str, size: float, width: float, most: int = 3) -> str:
    """Each line in at most ``most`` lines of ``width`` px, the last cut off where that is too few.

    Lines break behind spaces, and names of modules at their dots.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        parts = re.split(r"(?<= )|(?<=\.)(?=[a-z_])", line)
        own = [parts[0]]
        for part in parts[1:]:
            if len(own) < most and text_width(own[-1] + part.rstrip(), size) > width:
                own.append(part)
            else:
                own[-1] += part
        lines += (fit(x.rstrip(), size, width) for x in own)
    return "\n".join(lines)


def heading(figure: Figure, text: str) -> None:
    """The title of a figure, in as many lines as it needs to stay inside."""
    room = figure.get_figwidth() * UNIT - 20
    figure.suptitle(wrapped(text, HEADING, room), size=HEADING, parse_math=False)


def fit(text: str, size: float, width: float, weight: str = "normal") -> str:
    """The line, cut off where it is wider than ``width`` px."""
    if text_width(text, size, weight) <= width:
        return text
    lengths = range(len(text) + 1)
    first = bisect_right(lengths, width, key=lambda n: text_width(f"{text[:n]}...", size, weight))
    return f"{text[: max(first - 1, 0)]}..."
