"""What does each inserted module do to an image?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmattn.plugins.base import AttentionModule
from mmattn.plugins.maps import AttentionMap
from mmattn.visualization import names
from mmattn.visualization.collected import Channels, Collected, Detections, Layer, Map
from mmattn.visualization.follow import Following, following
from mmattn.visualization.geometry import Grid, Placement
from mmattn.visualization.images import Prepared, prepare
from mmattn.visualization.neutral import neutralized
from mmattn.visualization.record import Call, attention_modules, chosen, evaluating, listening

QUERIES = 4  # points whose attention is shown where none are named
QUERY_GRID = 8  # cells a side of those that the distance is measured between
CONFIDENT = 0.3  # score of detections at whose centres attention is asked


def collect(
    model: nn.Module,
    images: Any,
    *,
    layers: str | Iterable[str] | None = None,
    groups: int | Sequence[int] = 8,
    queries: Sequence[tuple[float, float]] | None = None,
    channels: int = 4,
    neutral: bool = False,
) -> list[Collected]:
    """Runs a model on images and returns what each inserted module decided.

    ::

        model = mmdet.apis.init_detector('config.py', 'checkpoint.pth', device='cpu')
        [image] = mmattn.visualization.collect(model, ['street.jpg'])
        mask = image['backbone.layer3.5.sge']['mask']
        mask.values, mask.groups, mask.grid.stride   # (8, H, W), (3, 60, ...), (16.0, 16.0)
        image.on_image(mask.values, mask.grid)       # (8, image height, image width)

    Args:
        model: A detector of mmdet with its config (``model.cfg``), as ``init_detector`` or
            :func:`mmattn.visualization.load_model` give it; or any PyTorch model, which then takes
            ``images`` as it is.
        images: Files, or arrays (H, W, 3) in BGR with 8 bits as OpenCV reads them, or one of them;
            they go through the test pipeline of the model's config. For a model without a config:
            a batch (N, 3, H, W), normalised as the model wants it.
        layers: Names of modules, ends of names, or regular expressions; None: all.
        groups: How many groups of channels of a spatial gate are kept, those that vary most over
            the image; or their numbers. The mean over all groups is always there.
        queries: Points (x, y) of the image, in px, whose attention is kept for a NonLocal. None:
            the centres of the best detections that lie apart and the point farthest from all, or
            else four points.
        channels: How many of the most raised channels, and of the most lowered, are kept.
        neutral: Detect once more with all gates neutral (of the chosen layers only, if some are
            chosen), see :func:`mmattn.visualization.neutralized`.

    Returns:
        One :class:`Collected` an image, all tensors on the CPU.

    Raises:
        ValueError: The model has no inserted modules, a layer is not among them, an image cannot
            be read, or the pipeline of the config crops images.
        TypeError: ``images`` is none of these.
    """
    model = model.module if is_model_wrapper(model) else model
    model = getattr(model, "_orig_mod", model)  # of torch.compile, which hears no listeners
    modules = chosen(attention_modules(model), layers)
    how = _How(groups, queries, channels)
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if hasattr(model, "data_preprocessor") and kind not in (None, torch.float32):
        raise TypeError(
            "collect expects a detector in float32, as its data preprocessor gives images, got "
            f"one in {kind}: give model.float()"
        )
    with evaluating(model):
        return [
            _collect_one(model, modules, prepared, how, neutral)
            for prepared in prepare(model, images)
        ]


@dataclass(frozen=True)
class _How:
    groups: int | Sequence[int]
    queries: Sequence[tuple[float, float]] | None
    channels: int


def _collect_one(
    model: nn.Module, modules: dict[str, nn.Module], image: Prepared, how: _How, neutral: bool
) -> Collected:
    heard: list[_Heard] = []
    with torch.no_grad(), following(model) as followed:

        def listen(call: Call) -> None:
            heard.append(_hear(call, followed, image))

        with listening(modules, listen):
            detections = image.detect(followed)
        # an attention to chosen points needs the detections, which come last
        points = how.queries or _points(image.placement, detections)
        layers = tuple(_layer(one, image, how, points) for one in heard)
    without = None
    if neutral and detections is not None:
        with torch.no_grad(), neutralized(model, list(modules)):
            without = image.detect()
        # classes without names are known by what was found
        classes = max(detections.classes, without.classes, key=len)
        detections, without = (replace(one, classes=classes) for one in (detections, without))
    return Collected(
        image.name,
        image.pixels,
        image.placement,
        _numbered(layers),
        detections,
        without,
        image.path,
    )


@dataclass(frozen=True)
class _Heard:
    """A call, with what has to be taken before the model goes on."""

    call: Call
    maps: list[AttentionMap] | None
    grid: Grid | None
    before: Tensor | None
    after: Tensor | None


def _hear(call: Call, followed: Following, image: Prepared) -> _Heard:
    x = call.x
    grid = followed.grid(x) if x.shape[0] == image.batch else None
    if grid is None and x.shape[0] == image.batch and "roi_head" not in call.name.split("."):
        grid = Grid.even(tuple(x.shape[2:]), image.input_size)
    on_image = grid is not None  # not a region of interest, even if there is one alone
    gate = isinstance(call.module, AttentionModule)
    before = _norm(x) if gate and on_image else None
    after = _norm(call.y) if gate and on_image and call.y.shape == x.shape else None
    # what the layers behind do in place must not be seen
    return _Heard(replace(call, x=x.detach().clone(), y=None), None, grid, before, after)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x[0].float(), dim=0).cpu()


def _layer(heard: _Heard, image: Prepared, how: _How, points) -> Layer:
    call, grid = heard.call, heard.grid
    x = call.x
    measures: dict[str, float] = {}
    maps: list[Map] = []
    for one in call.maps():
        if one.queries is not None:
            if grid is None:
                continue
            one, asked, measured = _attention(call, one, grid, image.placement, points)
            measures |= measured
            maps.append(_map(one, grid, x, how, asked))
        elif grid is not None or one.kind in ("channel", "shares"):
            maps.append(_map(one, grid, x, how))
    raised, lowered = _extremes(maps, x, grid, how.channels)
    return Layer(
        name=call.name,
        type=type(call.module).__name__,
        stage=names.stage(call.name),
        label=names.label(call.name, getattr(call.module, "_abbr_", "")),
        maps=tuple(maps),
        grid=grid,
        before=heard.before,
        after=heard.after,
        raised=raised,
        lowered=lowered,
        call=call.index,
        measures=measures,
    )


def _attention(call: Call, one: AttentionMap, grid: Grid, placement: Placement, points):
    """The attention of the points, and how much that of evenly spread cells differs."""
    from mmattn.visualization.distance import query_distance

    measured = {
        f"query distance ({name})": value
        for name, value in query_distance(one.values[0]).items()
        if value is not None
    }
    height, width = call.x.shape[2:]
    cells, asked = [], []
    rows, columns = placement.image_size
    for x, y in points:
        if not (0 <= x <= columns and 0 <= y <= rows):
            raise ValueError(
                f"the query point {x:g},{y:g} lies outside the image: expected x from 0 to "
                f"{columns} and y from 0 to {rows}"
            )
        at = placement.to_input(x, y)
        cells.append(
            [
                min(max(round((at[i] - grid.offset[i]) / grid.stride[i]), 0), extent - 1)
                for i, extent in enumerate((height, width))
            ]
        )
        asked.append((float(x), float(y)))
    cells = torch.tensor(cells, device=call.x.device)
    [shown] = [m for m in call.maps(queries=cells) if m.name == one.name]
    return shown, torch.tensor(asked), measured


def _map(one: AttentionMap, grid: Grid | None, x: Tensor, how: _How, asked=None) -> Map:
    # regions of interest: the mean over them
    values = one.values[0] if grid is not None else one.values.mean(0)
    chosen_groups: tuple[int, ...] = ()
    count, mean = 1, None
    if one.kind == "spatial":
        count = len(values)
        values = values.expand(count, *x.shape[2:])
        mean = values.mean(0).cpu()
        chosen_groups = _groups(values, how.groups)
        values = values[list(chosen_groups)]
    lies = grid is not None and one.kind in ("spatial", "weights", "regions")
    return Map(
        name=one.name,
        kind=one.kind,
        values=values.detach().cpu(),
        role=one.role,
        neutral=one.neutral,
        bounds=one.bounds,
        count=one.count,
        groups=chosen_groups,
        group_count=count,
        mean=mean,
        queries=asked,
        grid=grid.inner(one.stride, one.offset) if lies else None,
    )


def _groups(values: Tensor, wanted: int | Sequence[int]) -> tuple[int, ...]:
    """Numbers of groups: those that vary most, or those that were named and exist."""
    if not isinstance(wanted, int):
        found = tuple(g for g in wanted if g < len(values))
        if not found and len(values) > 1:
            raise ValueError(
                f"groups {', '.join(map(str, wanted))}: a map has {len(values)} groups, numbered "
                f"from 0 to {len(values) - 1}"
            )
        return found or (0,)
    spread = values.flatten(1).std(1, correction=0)
    return tuple(spread.argsort(descending=True, stable=True)[:wanted].tolist())


def _extremes(maps: list[Map], x: Tensor, grid: Grid | None, count: int):
    gate = next((m for m in maps if m.kind == "channel" and m.role == "factor"), None)
    if gate is None or grid is None or not count:
        return None, None
    order = gate.values.argsort(descending=True, stable=True)
    count = min(count, max(len(order) // 2, 1))
    found = []
    for indices in (order[:count], order.flip(0)[:count]):
        indices = tuple(indices.tolist())
        found.append(Channels(indices, x[0, list(indices)].float().cpu(), grid))
    return tuple(found)


def _numbered(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The calls of a module are told apart by the strides of its maps, or else by number."""
    strides: dict[str, list] = {}
    for layer in layers:
        strides.setdefault(layer.name, []).append(layer.grid and layer.grid.stride[0])
    out = []
    for layer in layers:
        own = strides[layer.name]
        if len(own) > 1:
            tells = None not in own and len(set(own)) == len(own)
            where = f"stride {layer.grid.stride[0]:g}" if tells else f"call {layer.call + 1}"
            layer = replace(layer, label=f"{layer.label}, {where}")
        out.append(layer)
    return tuple(out)


def _points(placement: Placement, detections: Detections | None) -> list[tuple[float, float]]:
    """Where attention is asked: in the best detections, and far from them."""
    height, width = placement.image_size
    even = [(x * width, y * height) for y in (0.25, 0.75) for x in (0.25, 0.75)]
    if detections is None or not len(found := detections.above(CONFIDENT)):
        return even
    centres: list[tuple[float, float]] = []
    near = 0.1 * math.hypot(height, width)
    for left, top, right, bottom in found.boxes:
        point = (
            float(np.clip((left + right) / 2, 0, width - 1)),
            float(np.clip((top + bottom) / 2, 0, height - 1)),
        )
        if all(math.dist(point, other) > near for other in centres):
            centres.append(point)
        if len(centres) == QUERIES - 1:
            break
    grid = [(i * width / 17, j * height / 17) for j in range(1, 17) for i in range(1, 17)]

    def clearance(point):
        x, y = point
        gaps = [
            math.hypot(max(left - x, 0, x - right), max(top - y, 0, y - bottom))
            for left, top, right, bottom in found.boxes
        ]
        # inside boxes everywhere: far from the other points at least
        return min(gaps), min(math.dist(point, other) for other in centres)

    return [*centres, max(grid, key=clearance)]
