"""Boxes with labels on an image, or enlarged on a part of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mmattn.evaluation import drawing
from mmattn.visualization.overlay import reduced
from mmattn.visualization.sheet import LINE, TEXT, Sheet, text_width

PIXELS = 1280  # greatest width and height of an image in the file
MOST_LABELS = 30  # of pale boxes, in one view


class Style(NamedTuple):
    """How one kind of box is drawn."""

    colour: str
    dash: tuple[float, ...] | None  # lengths drawn and left out, in line widths
    width: float  # pt
    legend: str


STYLES = {
    "gained": Style("#56B4E9", None, 1.8, "gained: only with attention"),
    "lost": Style("#D55E00", (3, 1.6), 1.8, "lost: only without"),
    "kept": Style("#FFFFFF", None, 0.7, "kept: in both"),
    "found": Style("#56B4E9", None, 1.4, "detections"),
    "missed": Style("#F0E442", (0.8, 1.2), 1.5, "annotated, not found"),
}


class Item(NamedTuple):
    """One box as one panel shows it; what :mod:`mmattn.evaluation.drawing` lays out."""

    kind: str  # a key of STYLES
    differs: bool
    box: tuple[float, float, float, float]
    label: str


class View:
    """A region of the image on the sheet; its axes are in px of the image.

    Args:
        sheet: What it is on.
        image: (h, w, 3), the whole image or a smaller picture of it: 8 bits, or between 0 and 1.
        region: Left, top, right and bottom of what is shown, in px of the image.
        place: Left, top, width and height on the sheet.
        size: Width and height of the image; None: of ``image``.
    """

    def __init__(
        self,
        sheet: Sheet,
        image: np.ndarray,
        region: tuple[float, float, float, float],
        place: tuple[float, float, float, float],
        size: tuple[int, int] | None = None,
    ) -> None:
        self.region, self.size = region, place[2:]
        self.scale = self.size[0] / (region[2] - region[0])
        self.limits = size or (image.shape[1], image.shape[0])
        self.axes = sheet.axes(*place)
        self.axes.set_axis_off()
        x0, y0, x1, y1 = 0, 0, *self.limits
        if self.limits == (image.shape[1], image.shape[0]):
            x0, y0 = max(math.floor(region[0]), 0), max(math.floor(region[1]), 0)
            x1, y1 = min(math.ceil(region[2]), x1), min(math.ceil(region[3]), y1)
            image = np.ascontiguousarray(image[y0:y1, x0:x1])
        part = reduced(image, PIXELS) if image.dtype == np.uint8 else image
        self.axes.imshow(part, extent=(x0, x1, y1, y0), interpolation="antialiased")
        self.axes.set(xlim=(region[0], region[2]), ylim=(region[3], region[1]), aspect="auto")

    def to_view(self, box: Sequence[float]) -> np.ndarray:
        """A box of the image in px of the view."""
        return (np.array(box) - np.tile(self.region[:2], 2)) * self.scale

    def to_image(self, box: Sequence[float]) -> np.ndarray:
        """A box of the view in px of the image."""
        return np.array(box) / self.scale + np.tile(self.region[:2], 2)

    def rectangle(self, item: Item) -> np.ndarray:
        """Where a box is drawn, in px of the view: within it, and never too small to see."""
        limits = np.tile(self.limits, 2)
        edges = self.to_view(np.clip(item.box, 0, limits))
        for k in (0, 1):
            if edges[k + 2] - edges[k] < 7:
                middle = (edges[k] + edges[k + 2]) / 2
                edges[k], edges[k + 2] = middle - 3.5, middle + 3.5
            # a line on the edge of the image lies inside
            if item.box[k] <= 0 and -1 < edges[k] < 2:
                edges[k] = 2
            end = self.to_view(limits)[k]
            if item.box[k + 2] >= self.limits[k] and end - 2 < edges[k + 2] < end + 1:
                edges[k + 2] = end - 2
        return edges

    def patch(self, box: Sequence[float], **options) -> Rectangle:
        """A rectangle, given in px of the view."""
        x0, y0, x1, y1 = self.to_image(box)
        options = {"fill": False, "joinstyle": "miter", **options}
        return self.axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **options))

    def draw(self, items: Sequence[Item]) -> None:
        """Draws boxes, without labels."""
        for item in items:
            box, style = self.rectangle(item), STYLES[item.kind]
            thin = not item.differs
            width = min(style.width, 0.9) if thin else style.width
            if min(box[2:] - box[:2]) < 20:
                width *= 0.7
            if thin and min(self.size) < 450:  # a small picture
                width *= 0.7
            # dark beside the pale line: white alone is lost on a bright image
            edge = 0.9 if thin else 1.2
            self.patch(box, ec="black", lw=width + edge, alpha=0.7, gid="edge")
            dash = {"ls": (0, style.dash)} if style.dash else {}
            alpha = 0.85 if thin else 1
            self.patch(box, ec=style.colour, lw=width, alpha=alpha, gid=item.kind, **dash)

    def border(self) -> None:
        """A frame around an enlargement."""
        options = {"transform": self.axes.transAxes, "clip_on": False, "fill": False}
        self.axes.add_patch(Rectangle((0, 0), 1, 1, ec="black", lw=0.8, zorder=5, **options))

    def frame(self, regions: Sequence[tuple]) -> list[tuple]:
        """Shows regions, with letters; gives the places that are taken."""
        taken = []
        for n, region in enumerate(regions):
            box = np.clip(self.to_view(region), 1, np.tile(self.size, 2) - 1)
            self.patch(box, ec="black", lw=1.8, zorder=3)
            self.patch(box, ec="white", lw=0.9, zorder=3)
            side = drawing.TAG
            spots = [(x, y) for x in (box[0], box[2] - side) for y in (box[1] - side, box[3])]
            free = [s for s in spots if self._holds(s, side) and not self._meets(s, side, taken)]
            taken.append(self.letter((free or [(box[0], box[1])])[0], drawing.LETTERS[n]))
        return taken

    def _holds(self, at: tuple, side: float) -> bool:
        return min(at) >= 0 and at[0] + side <= self.size[0] and at[1] + side <= self.size[1]

    @staticmethod
    def _meets(at: tuple, side: float, taken: Sequence[tuple]) -> bool:
        tag = np.array([(*at, at[0] + side, at[1] + side)], float)
        return bool(drawing.intersections(tag, np.array(taken, float).reshape(-1, 4)).any())

    def letter(self, at: tuple[float, float], letter: str) -> tuple:
        """The letter of a region."""
        tag = (*at, at[0] + drawing.TAG, at[1] + drawing.TAG)
        self.patch(tag, fill=True, fc="white", ec="black", lw=0.6, zorder=4)
        self._write(((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2), letter, ha="center", size=8)
        return tag

    def _write(self, at: tuple[float, float], text: str, **options) -> None:
        x, y = self.to_image([*at, *at])[:2]
        options = {"va": "center_baseline", "size": TEXT, "zorder": 6, "clip_on": True, **options}
        self.axes.text(x, y, text, parse_math=False, **options)

    def note(self, text: str) -> None:
        """A sentence in the middle."""
        box = {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 4}
        middle = self.size[0] / 2, self.size[1] / 2
        self._write(middle, text, ha="center", size=9, bbox=box)

    def label(self, items: Sequence[Item], taken: Sequence[tuple]) -> list[Item]:
        """Class and score where there is room: first of what differs, the smallest first.

        Returns:
            Those that have no label.
        """
        boxes = np.array([self.rectangle(x) for x in items]).reshape(-1, 4)
        small = np.sqrt(drawing.box_areas(boxes)) < 64
        strong = np.array([x.differs for x in items], bool)
        hard = [*boxes[small & strong].tolist(), *map(list, taken)]
        order = np.lexsort((drawing.box_areas(boxes), ~strong))
        kept, left_out = 0, []
        for k in order:
            if not strong[k]:
                kept += 1
                if kept > MOST_LABELS:
                    left_out.append(items[k])
                    continue
            size = round(text_width(items[k].label)) + 8, LINE - 2
            spots = boxes if strong[k] else np.concatenate([boxes, boxes])
            place = drawing.free_place(boxes[k], size, self.size, hard, spots)
            if place is None or (not strong[k] and self._apart(place, boxes[k])):
                left_out.append(items[k])
                continue
            hard.append(list(place))
            style = STYLES[items[k].kind]
            self._lead(place, boxes[k], style.colour)
            fill = {"fc": style.colour, "ec": "black", "lw": 0.5}
            if not strong[k]:
                fill = {"fc": "white", "ec": "none", "alpha": 0.75}
            self.patch(place, fill=True, zorder=5, **fill)
            at = place[0] + 4, (place[1] + place[3]) / 2
            self._write(at, items[k].label, color="black" if strong[k] else "#333333")
        return left_out

    @staticmethod
    def _apart(place: Sequence[float], box: Sequence[float]) -> bool:
        gaps = [max(place[k] - box[k + 2], box[k] - place[k + 2]) for k in (0, 1)]
        return max(gaps) > 6

    def _lead(self, place: Sequence[float], box: np.ndarray, colour: str) -> None:
        """A line from a label to its box, where they are apart."""
        if not self._apart(place, box):
            return
        centre = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
        end = [min(max(centre[k], box[k]), box[k + 2]) for k in (0, 1)]
        start = [min(max(end[k], place[k]), place[k + 2]) for k in (0, 1)]
        x0, y0, x1, y1 = self.to_image([*start, *end])
        for width, ink in ((2.0, "black"), (1.0, colour)):
            self.axes.plot([x0, x1], [y0, y1], color=ink, lw=width, zorder=4)


def legend(sheet: Sheet, left: float, top: float, kinds: Sequence[str]) -> None:
    """A line that shows how the kinds of boxes are drawn."""
    axes = sheet.axes(0, top, sheet.width, LINE)
    axes.set_axis_off()
    handles = []
    for kind in kinds:
        style = STYLES[kind]
        dash = (0, style.dash) if style.dash else "-"
        under = Line2D([], [], color="black", lw=style.width + 1.2)
        handles.append(
            ((under, Line2D([], [], color=style.colour, lw=style.width, ls=dash)), style)
        )
    axes.legend(
        [lines for lines, _ in handles],
        [style.legend for _, style in handles],
        ncols=len(handles),
        loc="center left",
        bbox_to_anchor=(left / sheet.width, 0.5),
        borderaxespad=0,
        frameon=False,
        handlelength=3,
    )
