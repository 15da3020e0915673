"""One self-contained HTML page with every picture, and a slider over the layers."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from mmattn.evaluation.table import NOT_AVAILABLE
from mmattn.visualization.detections import DETECTED, FOUND, FOUND_BY, limits


@dataclass(frozen=True)
class Shown:
    """A picture as the page holds it.

    Args:
        tab: What it is.
        webp: The file.
        width: In px.
        height: In px.
    """

    tab: str
    webp: bytes
    width: int
    height: int

    @property
    def source(self) -> str:
        """For an img element."""
        return data_uri(self.webp)


@dataclass(frozen=True)
class Layer:
    """One stop of the slider.

    Args:
        title: ``'SGE, c4, block 2'``.
        name: In the model.
        stage: ``'c4'``.
        pictures: Of this layer.
    """

    title: str
    name: str
    stage: str
    pictures: Sequence[Shown]


@dataclass(frozen=True)
class Image:
    """An image and its pictures.

    Args:
        name: Of it.
        thumbnail: A WebP file.
        whole: Pictures of all layers together.
        layers: Pictures of each.
    """

    name: str
    thumbnail: bytes
    whole: Sequence[Shown]
    layers: Sequence[Layer]


@dataclass(frozen=True)
class Page:
    """What the page shows.

    Args:
        title: Its heading.
        conditions: Name -> value: model, checkpoint, versions.
        images: Those that are drawn one by one, at least one.
        more: How many more there are.
        together: Pictures of all images.
        numbers: What ``Gallery.numbers`` returns.
    """

    title: str
    conditions: Mapping[str, str]
    images: Sequence[Image]
    more: int
    together: Sequence[Shown]
    numbers: Mapping[str, Any]


def render(page: Page) -> str:
    """The page as HTML, with everything in it."""
    return _template().render(
        page=page,
        tables=_tables(page.numbers),
        data={
            "images": [
                {
                    "name": image.name,
                    "whole": [_picture(one) for one in image.whole],
                    "layers": [
                        {
                            "title": layer.title,
                            "name": layer.name,
                            "pictures": [_picture(one) for one in layer.pictures],
                        }
                        for layer in image.layers
                    ],
                }
                for image in page.images
            ]
        },
    )


def data_uri(webp: bytes) -> str:
    """A WebP file for an img element."""
    return "data:image/webp;base64," + base64.b64encode(webp).decode()


def _picture(one: Shown) -> dict[str, Any]:
    return {"tab": one.tab, "source": one.source, "width": one.width, "height": one.height}


@dataclass(frozen=True)
class _Table:
    heading: str
    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def _tables(numbers: Mapping[str, Any]) -> list[_Table]:
    tables = []
    if rows := numbers.get("detections by size"):
        objects = ("objects", *FOUND) if "objects" in rows[0] else ()
        found = [FOUND_BY.get(x, x) for x in objects]
        columns = ("size", "area (px²)", *DETECTED, "score change", *found)
        text = (
            f"With the modules' effect and with their gates neutral, of a score of "
            f"{numbers['score']:g} or more, over {rows[0]['images']} "
            f"image{'s' if rows[0]['images'] > 1 else ''}. The score change is the mean over those "
            "kept. Sizes are those of the boxes"
            + (", of found objects those of the annotations." if objects else ".")
        )
        cells = [
            [
                row["size"],
                "any" if row["size"] == "all" else limits(row["low"], row["high"]),
                *(str(row[key]) for key in DETECTED),
                _change(row["score change"]),
                *(str(row[key]) for key in objects),
            ]
            for row in rows
        ]
        tables.append(_Table("Detections by object size", text, columns, cells))
    if rows := numbers.get("query distances"):
        columns = ("module", "layer", "images", "cosine distance", "JSD (nats)")
        cells = [
            [row["title"], row["layer"], str(row["images"]), _number(row["cosine"]),
             _number(row["JSD"])]
            for row in rows
        ]  # fmt: skip
        text = (
            "Mean over all pairs of 64 queries spread over the image, then over images. Near 0: "
            "every query attends to the same places. At most 1 (cosine) and 0.693 (JSD, ln 2)."
        )
        tables.append(_Table("Distance between the attention of queries", text, columns, cells))
    if cells := list(_regions(numbers["images"])):
        columns = ("image", "layer", "regions in use", "entropy of use (bits)", "shares (%)")
        text = (
            "How much of the image each region of a DRConv2d covers, region 0 first. A region's "
            "number means something within its layer only."
        )
        tables.append(_Table("Regions", text, columns, cells))
    return tables


def _regions(images: Sequence[Mapping]):
    for image in images:
        for layer in image["layers"]:
            for one in layer["maps"]:
                if one["kind"] == "regions":
                    shares = one["shares"]
                    used = sum(share > 0 for share in shares)
                    bits = f"{one['entropy (bits)']:.2f} of {math.log2(len(shares)):.2f}"
                    listed = " ".join(f"{100 * share:.0f}" for share in shares)
                    where = f"{layer['type']}, {layer['label']}"
                    yield [image["name"], where, f"{used} of {len(shares)}", bits, listed]


def _change(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _number(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.2g}" if value < 0.01 else f"{value:.3f}"


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["hash"] = _hash
    environment.filters["uri"] = data_uri
    source = importlib.resources.files(__package__).joinpath("page.html.jinja")
    return environment.from_string(source.read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    """What a content security policy knows an inline script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
