"""Draws the flow of data through every module, as docs/images/modules/*.svg.

    python docs/drawings.py [--check]

A drawing is rows of nodes with the shapes between them, without the batch. Everything is placed by
hand and measured: words that do not fit their place are an error.
"""
# ruff: noqa: RUF001  (the signs of multiplication are meant)

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent / "images" / "modules"
WIDTH = 720
FONT = 14
SMALL = 12.5
# fill and line of a node, by what it is
COLORS = {
    "map": ("#dbeafe", "#1d4ed8"),
    "plain": ("#f3f4f6", "#6b7280"),
    "learned": ("#ffedd5", "#c2410c"),
    "op": ("#ffffff", "#111827"),
}
LEGEND = {"map": "feature map", "learned": "has parameters", "plain": "has none"}


def width_of(text: str, size: float) -> float:
    """About as wide as sans-serif letters are, rather more than less."""
    narrow = sum(letter in "ijl.,:;()[]|' fIt-/" for letter in text)
    wide = sum(letter in "mwMW@×→∑" for letter in text)
    return size * (0.575 * len(text) - 0.2 * narrow + 0.25 * wide)


@dataclass(frozen=True)
class Node:
    """A box or a circle, around its middle."""

    lines: tuple[str, ...]
    kind: str
    x: float = 0
    y: float = 0

    @property
    def w(self) -> float:
        """Its width."""
        if self.kind == "op":
            return 28
        sizes = (FONT, SMALL, SMALL)
        return max(width_of(t, s) for t, s in zip(self.lines, sizes, strict=False)) + 18

    @property
    def h(self) -> float:
        """Its height."""
        return 28 if self.kind == "op" else 16 + 18 * len(self.lines)

    def at(self, x: float, y: float) -> Node:
        """The same node elsewhere."""
        return Node(self.lines, self.kind, x, y)


def tensor(*lines: str) -> Node:
    """A feature map."""
    return Node(lines, "map")


def plain(*lines: str) -> Node:
    """A step without parameters."""
    return Node(lines, "plain")


def learned(*lines: str) -> Node:
    """A step with parameters."""
    return Node(lines, "learned")


def op(sign: str) -> Node:
    """A product or a sum, for each element; shapes are expanded."""
    return Node((sign,), "op")


class Drawing:
    """What is drawn so far."""

    def __init__(self, title: str, height: int):
        self.title, self.height = title, height
        self.parts: list[str] = []
        self.boxes: list[Node] = []

    def put(self, node: Node, x: float, y: float) -> Node:
        """Draws a node around (x, y)."""
        node = node.at(x, y)
        left, right, top, low = x - node.w / 2, x + node.w / 2, y - node.h / 2, y + node.h / 2
        if left < 4 or right > WIDTH - 4 or top < 4 or low > self.height - 4:
            raise ValueError(f"{self.title}: {node.lines} leaves the drawing at {x}, {y}")
        for other in self.boxes:
            if abs(other.x - x) < (other.w + node.w) / 2 + 4 and (
                abs(other.y - y) < (other.h + node.h) / 2 + 4
            ):
                raise ValueError(f"{self.title}: {node.lines} lies on {other.lines}")
        self.boxes.append(node)
        fill, line = COLORS[node.kind]
        style = f'fill="{fill}" stroke="{line}" stroke-width="1.4"'
        if node.kind == "op":
            self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="14" {style}/>')
            self.text(x, y + 5.5, node.lines[0], 18)
            return node
        self.parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{node.w:.1f}" height="{node.h:g}" '
            f'rx="6" {style}/>'
        )
        for i, line in enumerate(node.lines):
            base = top + 8 + 18 * i + 13.5
            weight = "bold" if node.kind == "map" and i == 0 else "normal"
            self.text(x, base, line, FONT if i == 0 else SMALL, weight=weight)
        return node

    def text(
        self, x: float, y: float, said: str, size: float = SMALL, anchor="middle", weight="normal"
    ) -> None:
        """Words; ``y`` is their base line."""
        more = "" if weight == "normal" else f' font-weight="{weight}"'
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}"{more}>'
            f"{escape(said)}</text>"
        )

    def line(self, *points: tuple[float, float], label: str = "", side: str = "right") -> None:
        """An arrow along points, its label beside the longest part."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" class="a" marker-end="url(#h)"/>')
        if not label:
            return
        pairs = pairwise(points)
        (ax, ay), (bx, by) = max(
            pairs, key=lambda p: abs(p[0][0] - p[1][0]) + abs(p[0][1] - p[1][1])
        )
        if ay == by:
            self.text((ax + bx) / 2, ay - 6, label)
        elif side == "right":
            self.text(ax + 6, (ay + by) / 2 + 4, label, anchor="start")
        else:
            self.text(ax - 6, (ay + by) / 2 + 4, label, anchor="end")

    def row(self, y: float, x0: float, x1: float, *items: Node | str) -> list[Node]:
        """Nodes from left to right between x0 and x1, with the shapes (texts) on the arrows."""
        nodes = [item for item in items if isinstance(item, Node)]
        labels: list[str] = []
        for before, after in pairwise(items):
            if isinstance(before, Node):
                labels.append(after if isinstance(after, str) else "")
        labels = labels[: len(nodes) - 1]
        needs = [max(width_of(label, SMALL) + 16, 22) for label in labels]
        left = x1 - x0 - sum(node.w for node in nodes) - sum(needs)
        if left < 0:
            raise ValueError(f"{self.title}: the row at {y} is {-left:.0f} too wide")
        more = left / len(needs) if needs else 0
        x, placed = x0, []
        for i, node in enumerate(nodes):
            placed.append(self.put(node, x + node.w / 2, y))
            x += node.w + (needs[i] + more if i < len(needs) else 0)
        for a, b, label in zip(placed, placed[1:], labels, strict=False):
            self.link(a, b, label)
        return placed

    def link(self, a: Node, b: Node, label: str = "") -> None:
        """An arrow to the next node of a row."""
        self.line((a.x + a.w / 2, a.y), (b.x - b.w / 2 - 1, b.y), label=label)

    def down(self, a: Node, b: Node, label: str = "", side: str = "right") -> None:
        """An arrow from the foot of one to the head of the other (or up), or into its side."""
        way = 1 if b.y > a.y else -1
        start = (a.x, a.y + way * a.h / 2)
        if abs(a.x - b.x) < 1:
            self.line(start, (b.x, b.y - way * (b.h / 2 + 1)), label=label, side=side)
        else:
            end = b.x - (b.w / 2 + 1 if b.x > a.x else -b.w / 2 - 1)
            self.line(start, (a.x, b.y), (end, b.y), label=label, side=side)

    def turn(self, a: Node, b: Node, label: str = "", side: str = "right") -> None:
        """An arrow out of the side of one, then up or down into the other."""
        start = a.x + (a.w / 2 if b.x > a.x else -a.w / 2)
        way = 1 if b.y > a.y else -1
        end = b.y - way * (b.h / 2 + 1)
        self.line((start, a.y), (b.x, a.y), (b.x, end), label=label, side=side)

    def tap(self, x: float, y: float, b: Node, label: str = "", side: str = "right") -> None:
        """An arrow from a point of another arrow to the head or foot of a node, or its side."""
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="#111827"/>')
        way = 1 if b.y > y else -1
        if abs(x - b.x) < 1:
            self.line((x, y), (b.x, b.y - way * (b.h / 2 + 1)), label=label, side=side)
        else:
            end = b.x - (b.w / 2 + 1 if b.x > x else -b.w / 2 - 1)
            self.line((x, y), (x, b.y), (end, b.y), label=label, side=side)

    def svg(self) -> str:
        """The whole file."""
        legend, x = [], 14.0
        y = self.height - 14
        for kind, said in LEGEND.items():
            fill, line = COLORS[kind]
            legend.append(
                f'<rect x="{x:g}" y="{y - 10:g}" width="14" height="12" rx="2" fill="{fill}" '
                f'stroke="{line}"/><text x="{x + 20:g}" y="{y:g}" font-size="12">{said}</text>'
            )
            x += 140
        legend.append(
            f'<text x="{WIDTH - 12}" y="{y:g}" font-size="12" text-anchor="end">'
            "shapes without the batch</text>"
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" '
                f'width="{WIDTH}" height="{self.height}" role="img" '
                'font-family="Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif" '
                'fill="#111827">',
                f"<title>{escape(self.title)}</title>",
                "<style>.a{fill:none;stroke:#111827;stroke-width:1.4}</style>",
                '<defs><marker id="h" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
                'markerHeight="7" orient="auto"><path d="M0 0.5L8 4L0 7.5z"/></marker></defs>',
                f'<rect width="{WIDTH}" height="{self.height}" fill="#ffffff"/>',
                *self.parts,
                f'<line x1="10" x2="{WIDTH - 10}" y1="{y - 20:g}" y2="{y - 20:g}" '
                'stroke="#e5e7eb"/>',
                *legend,
                "</svg>\n",
            ]
        )


MAP = "C × H × W"
X, Y = tensor("x", MAP), tensor("y", MAP)


def frame(name: str, height: int, sign: str = "×", back: float = 110) -> tuple[Drawing, Node, Node]:
    """x, a sign and y in the upper row: the drawing, x, and the sign."""
    d = Drawing(name, height)
    x = d.put(X, 14 + X.w / 2, 50)
    y = d.put(Y, WIDTH - 14 - Y.w / 2, 50)
    sign = d.put(op(sign), y.x - back, 50)
    d.link(x, sign)
    d.link(sign, y)
    return d, x, sign


def gate(name: str, *chain: Node | str, last: str = "C × 1 × 1") -> Drawing:
    """A map times what one row of steps makes of it."""
    d, x, times = frame(name, 200)
    end = [item for item in chain if isinstance(item, Node)][-1]
    steps = d.row(126, 90, times.x + end.w / 2, *chain)
    d.down(x, steps[0])
    d.down(steps[-1], times, last)
    return d


def se() -> Drawing:
    """The gate of all channels' means."""
    return gate(
        "SE: squeeze-and-excitation",
        plain("mean", "over h, w"),
        "C",
        learned("W1, relu"),
        "P",
        learned("W2"),
        "C",
        plain("sigmoid"),
    )


def sge() -> Drawing:
    """One group."""
    d, x, times = frame("SGE: spatial group-wise enhance, in each of the G groups", 258)
    q = d.put(plain("q = mean", "over h, w"), 190, 112)
    t = d.put(plain("t = ∑ q x", "over c"), 190, 186)
    norm = d.put(plain("(t − mean) / (std + eps)", "over h, w"), 375, 186)
    scale = d.put(learned("w t + b"), times.x, 186)
    sigmoid = d.put(plain("sigmoid"), times.x, 120)
    d.tap(x.x, 112, q)
    d.down(x, t)
    d.down(q, t, "C/G")
    d.link(t, norm, "H × W")
    d.link(norm, scale, "H × W")
    d.down(scale, sigmoid)
    d.down(sigmoid, times, "1 × H × W")
    d.text((x.x + times.x) / 2, 44, "x: the group's C/G × H × W")
    return d


def context(name: str, *chain: Node | str) -> Drawing:
    """One context of the whole map, added everywhere."""
    d, x, plus = frame(name, 252, "+")
    mask = d.put(learned("Wk, softmax", "over h, w"), 190, 112)
    ctx = plain("weighted sum", "over h, w")
    end = chain[-1]
    ctx, *steps = d.row(186, 190 - ctx.w / 2, plus.x + end.w / 2, ctx, "ctx: C", *chain)
    d.down(x, ctx)
    d.tap(x.x, 112, mask)
    d.down(mask, ctx, "H × W")
    d.down(steps[-1], plus, "C × 1 × 1")
    return d


def gc() -> Drawing:
    """With the default arguments."""
    return context(
        "GC: global context, with fusion 'add'", learned("W1, LN, relu"), "P", learned("W2")
    )


def snl() -> Drawing:
    """One matrix in place of GC's bottleneck."""
    return context("SNL: simplified non-local block", learned("Wv"))


def gct() -> Drawing:
    """With the default arguments."""
    return gate(
        "GCT: gated channel transformation, with norm 'l2'",
        learned("e = alpha |x|₂", "over h, w"),
        "C",
        learned("n = gamma / RMS(e)", "over c"),
        "C",
        learned("1 + tanh(e n + beta)"),
    )


def non_local() -> Drawing:
    """With the default arguments."""
    d, x, plus = frame("NonLocal: non-local block, mode 'embedded_gaussian'", 330, "+")
    theta = d.put(learned("theta", "1×1 conv"), 180, 114)
    phi = d.put(learned("phi", "1×1 conv"), 180, 184)
    g = d.put(learned("g", "1×1 conv"), 180, 256)
    soft = d.put(plain("softmax over j", "theta · phi / √P"), 390, 149)
    total = d.put(plain("∑ f g", "over j"), 390, 256)
    out = d.put(learned("Wz", "1×1 conv"), plus.x, 256)
    d.down(x, g)
    d.tap(x.x, 114, theta)
    d.tap(x.x, 184, phi)
    for one, label, end in ((theta, "HW × P", 139), (phi, "P × M", 159)):
        right, left = one.x + one.w / 2, soft.x - soft.w / 2 - 1
        d.line((right, one.y), (left - 24, one.y), (left - 24, end), (left, end), label=label)
    d.down(soft, total, "f: HW × M")
    d.link(g, total, "M × P")
    d.link(total, out, "HW × P")
    d.down(out, plus, MAP)
    return d


def cbam() -> Drawing:
    """A gate for each channel, and one for each position."""
    d = Drawing("CBAM: convolutional block attention module", 262)
    x, y = d.put(X, 14 + X.w / 2, 50), d.put(Y, WIDTH - 14 - Y.w / 2, 50)
    one, two = d.put(op("×"), 325, 50), d.put(op("×"), 585, 50)
    d.link(x, one)
    d.link(one, two, "x′")
    d.link(two, y)
    mlp = d.put(learned("mlp", "shared"), 225, 156)
    total = d.put(plain("sum,", "sigmoid"), 325, 156)
    conv = d.put(learned("conv k×k,", "BN"), 525, 156)
    sigmoid = d.put(plain("sigmoid"), two.x, 108)
    for name, level, end in (("mean", 120, 147), ("max", 192, 165)):
        a = d.put(plain(name, "over h, w"), 122, level)
        b = d.put(plain(name, "over c"), 428, level)
        if name == "mean":
            d.tap(x.x, level, a)
            d.tap(366, level, b)
        else:
            d.down(x, a)
            d.tap(366, 50, b)
        for start, to in ((a, mlp), (b, conv)):
            right, left = start.x + start.w / 2, to.x - to.w / 2 - 1
            middle = (right + left) / 2 - 3
            d.line((right, level), (middle, level), (middle, end), (left, end))
    d.link(mlp, total, "C")
    d.down(total, one, "C × 1 × 1", "left")
    d.turn(conv, sigmoid)
    d.down(sigmoid, two, "1 × H × W", "left")
    return d


def bam() -> Drawing:
    """A value for each channel times one for each position."""
    d, x, times = frame("BAM: bottleneck attention module", 262)
    upper = d.row(
        116, 96, 400, plain("mean", "over h, w"), "C", learned("W1, BN, relu"), "P", learned("W2")
    )
    lower = d.row(
        190,
        96,
        470,
        learned("1×1,", "BN, relu"),
        "P × H × W",
        learned("2 × dilated 3×3,", "each BN, relu"),
        "",
        learned("1×1"),
    )
    d.tap(x.x, 116, upper[0])
    d.down(x, lower[0])
    product = d.put(op("×"), 498, 154)
    sigmoid = d.put(plain("1 + sigmoid"), times.x + 14, 110)
    d.turn(upper[-1], product, "c: C × 1 × 1")
    d.turn(lower[-1], product)
    d.text(product.x + 8, 190, "s: 1 × H × W", anchor="start")
    d.line((product.x + 14, 154), (sigmoid.x, 154), (sigmoid.x, sigmoid.y + 18))
    d.line((times.x, sigmoid.y - 17), (times.x, 65), label=MAP)
    return d


def eca() -> Drawing:
    """A filter over the channels."""
    return gate(
        "ECA: efficient channel attention",
        plain("mean", "over h, w"),
        "C",
        learned("conv1d over c", "k weights"),
        "C",
        plain("sigmoid"),
    )


def srm() -> Drawing:
    """Each channel for itself."""
    return gate(
        "SRM: style-based recalibration module",
        plain("mean, std", "over h, w"),
        "t: C × 2",
        learned("cfc_c · t_c", "two weights a channel"),
        "C",
        learned("BN"),
        "C",
        plain("sigmoid"),
    )


def simam() -> Drawing:
    """Each value for itself."""
    d, x, times = frame("SimAM", 216)
    square, var, ratio, sigmoid = d.row(
        122,
        90,
        times.x + plain("sigmoid").w / 2,
        plain("d = (x − mean)²", "over h, w"),
        "d",
        plain("v: variance", "∑ d / (HW − 1)"),
        "v",
        plain("d / (4 (v + λ))", "+ 1/2"),
        "",
        plain("sigmoid"),
    )
    d.down(x, square)
    low = square.y + square.h / 2
    foot = ratio.y + ratio.h / 2 + 1
    d.line((square.x, low), (square.x, 166), (ratio.x, 166), (ratio.x, foot), label="d: " + MAP)
    del var
    d.down(sigmoid, times, MAP)
    return d


def coord_attention() -> Drawing:
    """A gate for each row and one for each column."""
    d = Drawing("CoordAttention: coordinate attention", 250)
    x, y = d.put(X, 14 + X.w / 2, 50), d.put(Y, WIDTH - 14 - Y.w / 2, 50)
    one, two = d.put(op("×"), 475, 50), d.put(op("×"), 588, 50)
    d.link(x, one)
    d.link(one, two)
    d.link(two, y)
    rows = d.put(plain("mean over w"), 146, 120)
    columns = d.put(plain("mean over h"), 146, 184)
    join = d.put(learned("W1, BN, hswish", "on H + W vectors"), 322, 152)
    d.tap(x.x, 120, rows)
    d.down(x, columns)
    for pool, label, end in ((rows, "C × H", 143), (columns, "C × W", 161)):
        right, left = pool.x + pool.w / 2, join.x - join.w / 2 - 1
        d.line((right, pool.y), (left - 9, pool.y), (left - 9, end), (left, end))
        d.text(right + 6, pool.y - 6, label, anchor="start")
    wh = d.put(learned("Wh, sigmoid"), one.x + 10, 120)
    ww = d.put(learned("Ww, sigmoid"), two.x + 8, 184)
    edge = join.x + join.w / 2
    for layer, label, start in ((wh, "P × H", 143), (ww, "P × W", 161)):
        end = layer.x - layer.w / 2 - 1
        d.line((edge, start), (edge + 10, start), (edge + 10, layer.y), (end, layer.y))
        d.text(end - 8, layer.y - 6, label, anchor="end")
    d.line((one.x, 103), (one.x, 65), label="C × H × 1")
    d.line((two.x, 167), (two.x, 65), label="C × 1 × W")
    return d


def triplet_attention() -> Drawing:
    """The gate of CBAM in three planes."""
    d, x, times = frame("TripletAttention", 322, back=70)
    mean = d.put(plain("mean", "of three"), 520, 182)
    rows = (
        (114, "h", "2 × C × W", "C × 1 × W"),
        (182, "w", "2 × H × C", "C × H × 1"),
        (250, "c", "2 × H × W", "1 × H × W"),
    )
    for level, axis, pooled, made in rows:
        pool, gates = d.row(
            level,
            96,
            388,
            plain("max, mean", f"over {axis}"),
            pooled,
            learned("conv k×k, BN,", "sigmoid"),
        )
        if level == 250:
            d.down(x, pool)
        else:
            d.tap(x.x, level, pool)
        if level == 182:
            d.link(gates, mean, made)
        else:
            d.turn(gates, mean, made)
    d.turn(mean, times, MAP)
    return d


def sk() -> Drawing:
    """The layer in place of conv2."""
    d = Drawing("SK: selective kernel convolution", 296)
    x = d.put(X, 14 + X.w / 2, 130)
    y = d.put(tensor("y", "O × H′ × W′"), WIDTH - 60, 130)
    first = d.put(learned("conv", "BN, relu"), 165, 50)
    second = d.put(learned("convg, 32 groups", "BN, relu"), 165, 210)
    one, two = d.put(op("×"), 495, 50), d.put(op("×"), 495, 210)
    plus = d.put(op("+"), 575, 130)
    pool = d.put(plain("mean, sum", "over h, w"), 270, 130)
    fc1 = d.put(learned("conv_fc1,", "BN, relu"), 388, 130)
    fc2 = d.put(learned("conv_fc2,", "softmax"), 495, 130)
    d.down(x, first)
    d.down(x, second)
    d.link(first, one, "d1: O × H′ × W′")
    d.link(second, two, "d2: O × H′ × W′")
    d.tap(270, 50, pool)
    d.tap(270, 210, pool)
    d.link(pool, fc1, "O")
    d.link(fc1, fc2, "P")
    d.down(fc2, one, "a1: O")
    d.down(fc2, two, "a2: O")
    d.turn(one, plus)
    d.turn(two, plus)
    d.link(plus, y)
    return d


def cond_conv() -> Drawing:
    """Kernels are mixed, then there is one convolution."""
    d = Drawing("CondConv: conditionally parameterized convolution", 200)
    x = d.put(X, 14 + X.w / 2, 50)
    y = d.put(tensor("y", "O × H′ × W′"), WIDTH - 62, 50)
    conv = d.put(plain("convolution", "one kernel an image"), 510, 50)
    d.link(x, conv)
    d.link(conv, y)
    mix = learned("∑ r_e W_e", "E kernels")
    steps = d.row(
        130,
        110,
        conv.x + mix.w / 2,
        plain("mean", "over h, w"),
        "C",
        learned("fc, sigmoid"),
        "r: E",
        mix,
    )
    d.down(x, steps[0])
    d.down(steps[-1], conv, "O × C × kh × kw")
    return d


def drconv() -> Drawing:
    """With the default generator."""
    d = Drawing("DRConv: dynamic region-aware convolution, generator 'template'", 268)
    x = d.put(X, 14 + X.w / 2, 50)
    y = d.put(tensor("y", "O × H′ × W′"), WIDTH - 62, 50)
    conv = d.put(plain("convolution", "each pixel with its region's filter"), 465, 50)
    d.link(x, conv)
    d.link(conv, y)
    guide, best = d.row(
        126, 96, 425, learned("guide", "1×1 conv"), "F: m × H′ × W′", plain("argmax", "over m")
    )
    d.tap(x.x, 126, guide)
    end = learned("∑ r_tk T_k", "K templates")
    steps = d.row(
        200,
        96,
        545 + end.w / 2,
        plain("mean", "over h, w"),
        "C",
        learned("fc, 2 sigmoid / K"),
        "r: m × K",
        end,
    )
    d.down(x, steps[0])
    foot = conv.y + conv.h / 2 + 1
    d.line((best.x, best.y - best.h / 2), (best.x, foot), label="regions: H′ × W′", side="left")
    d.line((545, 200 - end.h / 2), (545, foot), label="m × O × C × kh × kw")
    return d


DRAWINGS = {
    function.__name__: function
    for function in (
        bam,
        cbam,
        cond_conv,
        coord_attention,
        drconv,
        eca,
        gc,
        gct,
        non_local,
        se,
        sge,
        simam,
        sk,
        snl,
        srm,
        triplet_attention,
    )
}


def main(argv: list[str]) -> int:
    """Writes the files, or says with ``--check`` which of them are old."""
    old = []
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, function in DRAWINGS.items():
        path, svg = FOLDER / f"{name}.svg", function().svg()
        if path.exists() and path.read_text(encoding="utf-8") == svg:
            continue
        old.append(path.name)
        if "--check" not in argv:
            path.write_text(svg, encoding="utf-8")
    print(f"{len(DRAWINGS)} drawings, {len(old)} changed{': ' if old else ''}{', '.join(old)}")
    return int(bool(old) and "--check" in argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
