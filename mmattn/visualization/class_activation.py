"""Which places of a feature map speak for a box? Grad-CAM of a detector, for any layer.

The arithmetic of the maps is that of the library pytorch-grad-cam, an extra:
``pip install 'mmattn[cam]'``. It is made for classifiers; this module shows it the detector as a
classifier of its own detections, and reads each map at the cells of its layer.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from mmattn.visualization import overlay, style
from mmattn.visualization.collected import Collected
from mmattn.visualization.follow import Following, following
from mmattn.visualization.geometry import Grid, Placement, to_image
from mmattn.visualization.images import Prepared, prepare
from mmattn.visualization.record import evaluating

# those of the library that use the gradient, so that the map is about the box and nothing else;
# and that need no decomposition of all cells, which c2 of a large image has no memory for
METHODS = {
    "hirescam": ("HiResCAM", "HiResCAM"),
    "layercam": ("LayerCAM", "LayerCAM"),
    "gradcam": ("Grad-CAM", "GradCAM"),
    "gradcam++": ("Grad-CAM++", "GradCAMPlusPlus"),
    "xgradcam": ("XGrad-CAM", "XGradCAM"),
    "elementwise": ("Grad-CAM, element-wise", "GradCAMElementWise"),
}
# below this distance of a score from 1 float32 keeps less than two digits of its gradient
NEAR_ONE = 1e-5
SURE = 1 - 1e-12  # above it not even float64 does


@dataclass(frozen=True)
class CamMap:
    """What of one layer speaks for one box.

    Args:
        layer: The layer's name in the model; with the output of several, ``'neck[1]'``.
        values: (H, W), at the layer's own cells, between 0 and 1: what the method gives where it
            is positive, over its maximum.
        maximum: What 1 stands for, in the method's own unit; 0 where nothing speaks for the box.
        depends: Whether the box's score depends on the layer at all.
        grid: Of the cells.
        call: Which call of the layer in one forward pass, from 0; heads run once a level.
        calls: How many there were.
    """

    layer: str
    values: Tensor
    maximum: float
    depends: bool
    grid: Grid
    call: int = 0
    calls: int = 1

    @property
    def title(self) -> str:
        """``'neck[1]'``, or ``'bbox_head.cls_convs.0, call 2'`` of a layer that ran often."""
        return self.layer + (f", call {self.call + 1}" if self.calls > 1 else "")


@dataclass(frozen=True)
class BoxCam:
    """One detection and the maps that explain its score.

    Args:
        index: Of the detection, from 0, the highest score first.
        box: Left, top, right and bottom in px of the image.
        score: Between 0 and 1.
        label: Its class.
        class_name: The name of that.
        method: Key of :data:`METHODS`.
        maps: One a layer, in the order in which the layers were asked for.
        name: Of the image.
        image: (H, W, 3), 8 bits, RGB.
        placement: How the network's input was made from it.
    """

    index: int
    box: tuple[float, float, float, float]
    score: float
    label: int
    class_name: str
    method: str
    maps: tuple[CamMap, ...]
    name: str
    image: np.ndarray
    placement: Placement

    @property
    def title(self) -> str:
        """``'circle, score 0.97'``."""
        return f"{self.class_name}, score {_score(self.score)}"

    def __getitem__(self, layer: str) -> CamMap:
        """The first map of that layer.

        Raises:
            KeyError: There is none.
        """
        for one in self.maps:
            if layer in (one.layer, one.title):
                return one
        raise KeyError(f"no map of {layer!r}; there are {', '.join(m.title for m in self.maps)}")

    def on_image(self, one: CamMap) -> np.ndarray:
        """A map at the pixels of the image, (image height, image width)."""
        return to_image(one.values, one.grid, self.placement).numpy()


def grad_cam(
    model: nn.Module,
    image: Any,
    layers: str | Iterable[str],
    *,
    boxes: int | Sequence[int] | None = None,
    score: float = 0.3,
    limit: int = 5,
    method: str = "hirescam",
) -> list[BoxCam]:
    """Shows, for detections of a model, which places of a layer's map their scores come from.

    ::

        model = mmdet.apis.init_detector('config.py', 'checkpoint.pth', device='cpu')
        for found in grad_cam(model, 'street.jpg', ['backbone.layer3', 'backbone.layer4']):
            figure = draw_grad_cam(found)

    What is explained is the log-odds ``y = log(s / (1 - s))`` of the score s that the detector
    itself gives the box, after its own selection and suppression of boxes; its gradient has the
    direction of the score's, and does not vanish where the score is near 1. With the layer's map
    ``A`` (C, H, W) and ``G = dy / dA``, HiResCAM is ``relu(sum_c G_c A_c)``: how much y grows
    when a cell grows by its own size. Grad-CAM is ``relu(sum_c mean_hw(G_c) A_c)``; its weights
    know no place, so that it also shows other objects with like features.

    Paper: R. L. Draelos, L. Carin, Use HiResCAM instead of Grad-CAM for faithful explanations of
    convolutional neural networks, arXiv:2011.08891; R. R. Selvaraju et al., Grad-CAM: Visual
    Explanations from Deep Networks via Gradient-based Localization, ICCV 2017. The other methods
    are named in the documentation.
    Reference: the classes of pytorch-grad-cam compute the maps. Deviations from that library: no
    map is scaled to the image before it is drawn, and its minimum is not drawn to 0; the maps of
    several layers stay apart; and the model is left as it was.

    Args:
        model: A detector of mmdet with its config (``model.cfg``).
        image: A file, or an array (H, W, 3) in BGR with 8 bits as OpenCV reads it; it goes
            through the test pipeline of the model's config.
        layers: Names of any modules of the model whose output is a map (1, C, H, W) or a tuple or
            list of such; ``'neck[1]'`` is the second output. Ends of names and regular
            expressions will do. Of a layer that ran several times or gives several maps, a box
            gets those that its score depends on.
        boxes: Which detections, counted from 0 for the highest score; None: the best ``limit``
            with a score of at least ``score``.
        score: Between 0 and 1, where ``boxes`` is None.
        limit: How many boxes at most, where ``boxes`` is None.
        method: ``'hirescam'``, ``'layercam'``, ``'gradcam'``, ``'gradcam++'``, ``'xgradcam'`` or
            ``'elementwise'``.

    Returns:
        One :class:`BoxCam` a detection, highest score first or in the order of ``boxes``.

    Raises:
        ImportError: pytorch-grad-cam is not installed.
        TypeError: The model is no detector of mmdet with its config, or ``image`` is no image.
        ValueError: A layer does not exist, did not run, gives no map of the image, or has no
            influence on any of the boxes; there is no such detection; its score has no gradient;
            ``method`` is unknown.
    """
    library = _library()
    if method not in METHODS:
        known = ", ".join(map(repr, METHODS))
        raise ValueError(f"method must be one of {known}, got {method!r}.")
    if not hasattr(model, "predict") or not hasattr(model, "data_preprocessor"):
        raise TypeError(
            f"grad_cam needs a detector of mmdet, with predict and a data_preprocessor, got "
            f"{type(model).__name__}."
        )
    if not isinstance(image, (str, os.PathLike, np.ndarray)):
        raise TypeError(
            f"grad_cam expects one image, a file or an array (H, W, 3) in BGR, got "
            f"{type(image).__name__}."
        )
    asked = _asked(model, layers)
    [prepared] = prepare(model, image)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_only_layers_have_gradients(model))
        if _dtype(model).itemsize < 4:  # its gradients would vanish
            stack.enter_context(_in_float64(model))
        run = _run(model, prepared, asked)
        chosen = own = _chosen(run, boxes, score, limit)
        if run.scores.dtype != torch.float64 and (run.scores[chosen] > 1 - NEAR_ONE).any():
            stack.enter_context(_in_float64(model))  # the way back too
            precise = _run(model, prepared, asked)
            own = [_same(precise, run, index) for index in chosen]
            run = precise
        cam = getattr(library, METHODS[method][1])(model=run.scorer, target_layers=[])
        maps = [_maps(cam, run, index, asked, method) for index in own]
    names = tuple((getattr(model, "dataset_meta", None) or {}).get("classes", ()))
    for number, layer in enumerate(asked):
        if not any(one.depends for of_box in maps for one in of_box[number]):
            which = " and ".join(map(str, chosen))
            raise ValueError(
                f"the score of detection {which} does not depend on layer {layer}: choose one on "
                "the way to the class score, such as a stage of the backbone (scores of a few rare "
                "heads have no gradient at all, see docs/grad-cam.md)."
            )
    return [
        BoxCam(
            index=index,
            box=_to_image(run.boxes[here], prepared.placement),
            score=float(run.scores[here]),
            label=int(run.labels[here]),
            class_name=_name(names, run.labels[here]),
            method=method,
            maps=tuple(one for of_layer in of_box for one in of_layer),
            name=prepared.name,
            image=prepared.pixels,
            placement=prepared.placement,
        )
        for index, here, of_box in zip(chosen, own, maps, strict=True)
    ]


class Scorer(nn.Module):
    """A detector of mmdet as a classifier of its own detections: what pytorch-grad-cam takes.

    Args:
        detector: The detector.
        samples: What its ``predict`` is told of the image.

    Shape:
        (1, 3, H, W) to (1, D), the scores of the D final detections, highest first, with their
        gradients. The detections are then in ``found``, with boxes in px of the input.
    """

    def __init__(self, detector: nn.Module, samples: list):
        super().__init__()
        self.detector = detector
        self.samples = samples
        self.found = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Detects."""
        with _without_masks(self.detector), _undetached():
            # predict writes into the samples
            samples = copy.deepcopy(self.samples)
            found = self.detector.predict(inputs, samples, rescale=False)[0].pred_instances
        self.found = found[found.scores.detach().argsort(descending=True, stable=True)]
        return self.found.scores[None]


@dataclass(frozen=True)
class LogOdds:
    """The target that is explained, for pytorch-grad-cam: ``log(s / (1 - s))`` of one score.

    Args:
        index: Of the detection.
    """

    index: int

    def __call__(self, scores: Tensor) -> Tensor:
        """Of the scores (D) of an image."""
        return torch.logit(scores[self.index])


@dataclass(frozen=True)
class _Asked:
    """A layer that was asked for, and which of its outputs."""

    name: str
    output: int | None = None

    def __str__(self) -> str:
        return self.name if self.output is None else f"{self.name}[{self.output}]"


@dataclass(frozen=True)
class _Tap:
    """A map that a layer gave; the gradient is taken at ``tensor``."""

    layer: str
    output: int | None
    call: int
    tensor: Tensor
    grid: Grid


@dataclass(frozen=True)
class _Run:
    """One forward pass, its graph kept."""

    scorer: Scorer
    inputs: Tensor
    output: Tensor
    taps: list[_Tap]

    @property
    def scores(self) -> Tensor:
        return self.output.detach()[0]

    @property
    def labels(self) -> Tensor:
        return self.scorer.found.labels

    @property
    def boxes(self) -> Tensor:
        boxes = self.scorer.found.bboxes
        return getattr(boxes, "tensor", boxes).detach()


def _library():
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise ImportError(
            f"grad_cam needs the package grad-cam ({error}): pip install 'mmattn[cam]'."
        ) from error
    return pytorch_grad_cam


def _asked(model: nn.Module, layers: str | Iterable[str]) -> list[_Asked]:
    """The layers, by name, end of a name or regular expression."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    found: dict[_Asked, None] = {}
    for layer in [layers] if isinstance(layers, str) else layers:
        plain, output = layer, None
        if match := re.fullmatch(r"(.+)\[(\d+)\]", layer):
            plain, output = match[1], int(match[2])
        here = [name for name in names if name == plain]
        here = here or [name for name in names if name.endswith(f".{plain}")]
        if not here:
            output = None
            with contextlib.suppress(re.error):
                here = [name for name in names if re.fullmatch(layer, name)]
        if not here:
            raise ValueError(f"the model has no layer {layer!r}{_near(plain, names)}")
        found |= dict.fromkeys(_Asked(name, output) for name in here)
    if not found:
        raise ValueError("no layer was named: give one at least, such as 'backbone.layer4'.")
    return list(found)


def _near(layer: str, names: list[str]) -> str:
    # the same last step further up or down is nearer than a name of like letters
    last = layer.rpartition(".")[2]
    alike = [name for name in names if name.rpartition(".")[2] == last]
    near = difflib.get_close_matches(layer, alike, 3, 0.5)
    near += [n for n in difflib.get_close_matches(layer, names, 3, 0.5) if n not in near]
    if near:
        return f"; did you mean {' or '.join(near[:3])}?"
    return f"; its parts are {', '.join(dict.fromkeys(n.partition('.')[0] for n in names))}."


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters()), torch.float32)


def _run(model: nn.Module, image: Prepared, asked: list[_Asked]) -> _Run:
    """Runs the detector, with a graph from the layers to the scores."""
    inputs = image.inputs.detach().to(_dtype(model))
    scorer = Scorer(model, image.samples)
    taps: list[_Tap] = []
    others: dict[str, str] = {}
    with following(model) as followed:
        followed.place(inputs, Grid((1.0, 1.0), (0.0, 0.0)))
        with _tapped(model, asked, taps, others, followed, inputs.shape[2:]):
            output = scorer(inputs)
    for layer in asked:
        own = [tap for tap in taps if tap.layer == layer.name]
        if not own:
            what = others.get(layer.name)
            raise ValueError(
                f"layer {layer.name!r} did not run in the prediction of this model."
                if what is None
                else f"layer {layer.name!r} gives no map of the image: expected (1, C, H, W) or a "
                f"tuple or list of such, got {what}."
            )
        if layer.output is not None and all(tap.output != layer.output for tap in own):
            there = [f"{tap.layer}[{tap.output}]" for tap in own if tap.output is not None]
            raise ValueError(
                f"layer {layer.name!r} gives no map of number {layer.output}; "
                + (f"it has {', '.join(dict.fromkeys(there))}." if there else "it gives one map.")
            )
    return _Run(scorer, inputs, output, taps)


@contextlib.contextmanager
def _tapped(
    model: nn.Module,
    asked: list[_Asked],
    taps: list[_Tap],
    others: dict[str, str],
    followed: Following,
    input_size: Sequence[int],
) -> Iterator[None]:
    """Writes down what the layers give: maps to ``taps``, of anything else the kind."""
    calls: dict[str, int] = {}

    def take(name: str, call: int, output: int | None, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
            others.setdefault(name, _kind(x))
            return x
        if x.shape[0] != 1:
            others.setdefault(name, f"{_kind(x)}: one for each region of interest, or for others")
            return x
        grid = followed.grid(x) or Grid.even(tuple(x.shape[2:]), tuple(input_size))
        # frozen or not, from here on there is a gradient
        tap = x if x.requires_grad else x.detach().requires_grad_()
        taps.append(_Tap(name, output, call, tap, grid))
        return tap.clone()  # a layer behind may change it in place

    def hook_of(name: str):
        def hook(module, args, output):
            call = calls.get(name, 0)
            calls[name] = call + 1
            if type(output) in (tuple, list):
                return type(output)(take(name, call, i, x) for i, x in enumerate(output))
            return take(name, call, None, output)

        return hook

    modules = dict(model.named_modules(remove_duplicate=False))
    handles = []
    try:
        for name in dict.fromkeys(layer.name for layer in asked):
            handles.append(modules[name].register_forward_hook(hook_of(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kind(x: Any) -> str:
    return f"({', '.join(map(str, x.shape))})" if isinstance(x, Tensor) else type(x).__name__


def _chosen(run: _Run, boxes: int | Sequence[int] | None, score: float, limit: int) -> list[int]:
    count = len(run.scores)
    highest = ""
    if count:
        best, below = float(run.scores[0]), 1.0 if boxes is not None else score
        # never rounded up to the limit
        digits = next((n for n in range(3, 12) if round(best, n) < below), 12)
        highest = f"; the highest score is {best:.{digits}f}"
    if boxes is None:
        found = [i for i in range(count) if run.scores[i] >= score][:limit]
        if not found:
            raise ValueError(
                f"the model found nothing with a score of at least {score:.10g}"
                + (highest or ", nor anything else in this image")
                + "."
            )
        return found
    wanted = [boxes] if isinstance(boxes, int) else [int(i) for i in boxes]
    for index in wanted:
        if not 0 <= index < count:
            there = f"they are 0 to {count - 1}{highest}" if count else "there are none"
            raise ValueError(f"there is no detection {index} in this image: {there}.")
    if not wanted:
        raise ValueError("boxes names no detection: give a number, or None for the best ones.")
    return wanted


def _same(run: _Run, other: _Run, index: int) -> int:
    """Which detection of a more precise run is that of the other."""
    from torchvision.ops import box_iou

    overlap = box_iou(run.boxes, other.boxes[index : index + 1].to(run.boxes))[:, 0]
    overlap = overlap * (run.labels == other.labels[index])
    if not len(overlap) or overlap.max() < 0.5:
        raise ValueError(
            f"detection {index} has a score of {float(other.scores[index]):.7f}, whose gradient "
            "needs float64, and the model does not find it again in float64: choose another."
        )
    return int(overlap.argmax())


def _maps(cam: Any, run: _Run, index: int, asked: list[_Asked], method: str) -> list[list[CamMap]]:
    """The maps of one detection, by layer."""
    target = LogOdds(index)
    y = target(run.output[0])
    if not y.isfinite() or (run.scores[index] > SURE):
        raise ValueError(
            f"the score of detection {index} is {float(run.scores[index]):g} to twelve digits, "
            "and has no gradient left: choose another."
        )
    gradients: Sequence[Tensor | None] = [None] * len(run.taps)
    if y.requires_grad:
        tensors = [tap.tensor for tap in run.taps]
        try:
            gradients = torch.autograd.grad(y, tensors, retain_graph=True, allow_unused=True)
        except NotImplementedError as error:
            raise ValueError(
                f"the score of detection {index} has no gradient, since an operator of the "
                "detector has none: soft NMS is one, use type='nms' in its test_cfg."
            ) from error
    found = []
    for layer in asked:
        own = [
            (tap, gradient)
            for tap, gradient in zip(run.taps, gradients, strict=True)
            if tap.layer == layer.name and layer.output in (None, tap.output)
        ]
        reached = [pair for pair in own if pair[1] is not None and bool(pair[1].any())]
        calls = 1 + max(tap.call for tap, _ in own)
        found.append([_map(cam, run, target, *pair, calls, method) for pair in reached or own[:1]])
    return found


def _map(
    cam: Any,
    run: _Run,
    target: LogOdds,
    tap: _Tap,
    gradient: Tensor | None,
    calls: int,
    method: str,
) -> CamMap:
    name = tap.layer if tap.output is None else f"{tap.layer}[{tap.output}]"
    depends = gradient is not None and bool(gradient.any())
    values, maximum = torch.zeros(tap.tensor.shape[2:]), 0.0
    if depends:
        module = run.scorer.detector.get_submodule(tap.layer)
        arrays = [x.detach().cpu().numpy() for x in (tap.tensor, gradient)]
        raw = cam.get_cam_image(run.inputs, module, [target], *arrays, False)[0]
        if not np.isfinite(raw).all():
            raise ValueError(
                f"{METHODS[method][0]} of layer {name} is not finite: choose another method."
            )
        positive = torch.from_numpy(np.maximum(raw, 0))
        maximum = float(positive.max())
        values = (positive / maximum if maximum > 0 else positive).float()
    return CamMap(name, values, maximum, depends, tap.grid, tap.call, calls)


@contextlib.contextmanager
def _only_layers_have_gradients(model: nn.Module) -> Iterator[None]:
    """No parameter takes a gradient, nothing is computed twice; all is as before afterwards."""
    learn = {parameter: parameter.requires_grad for parameter in model.parameters()}
    # what is recomputed in the backward pass has no graph to its inner layers
    recompute = [module for module in model.modules() if getattr(module, "with_cp", False)]
    try:
        model.requires_grad_(False)
        for module in recompute:
            module.with_cp = False
        with evaluating(model):
            yield
    finally:
        for module in recompute:
            module.with_cp = True
        for parameter, learns in learn.items():
            parameter.requires_grad_(learns)


@contextlib.contextmanager
def _in_float64(model: nn.Module) -> Iterator[None]:
    """The model computes in float64; afterwards it has its own tensors back."""
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        model.double()
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, own in buffers:
            module._buffers.update(own)


@contextlib.contextmanager
def _without_masks(detector: nn.Module) -> Iterator[None]:
    """Masks take most of the time and memory, and boxes and scores do not depend on them."""
    head = getattr(detector, "roi_head", None)
    skip = hasattr(head, "predict_mask") and not hasattr(head, "mask_iou_head")
    if skip:  # the instance's attribute comes before the method of its class
        head.predict_mask = lambda x, metas, results, *args, **kwargs: results
    try:
        yield
    finally:
        if skip:
            del head.predict_mask


@contextlib.contextmanager
def _undetached() -> Iterator[None]:
    """Dense heads predict with gradients, which mmdet cuts where it takes the maps of an image."""
    from mmdet.models.utils import misc

    cut = misc.select_single_mlvl
    # each head has the function under its own name
    users = [
        module
        for module in list(sys.modules.values())
        if getattr(module, "__dict__", {}).get(cut.__name__) is cut
    ]

    @functools.wraps(cut)
    def whole(tensors, batch_id, detach=True):
        return cut(tensors, batch_id, detach=False)

    try:
        for user in users:
            user.select_single_mlvl = whole
        yield
    finally:
        for user in users:
            user.select_single_mlvl = cut


def _to_image(box: Tensor, placement: Placement) -> tuple[float, float, float, float]:
    """A box of the input, in px of the image."""
    edges = box.double().cpu().reshape(2, 2).flip(1)  # (top, left), (bottom, right)
    found = torch.empty(2, 2, dtype=torch.float64)
    for axis in (0, 1):
        at = edges[:, axis] - placement.start[axis]
        if placement.mirrored[axis]:
            whole = placement.image_size[axis] * placement.scale[axis]
            at = (placement.content_size[axis] if placement.content_size else whole) - at.flip(0)
        found[:, 1 - axis] = at / placement.scale[axis]
    return tuple(found.flatten().tolist())


def _name(classes: Sequence[str], label: Tensor) -> str:
    return classes[int(label)] if int(label) < len(classes) else f"class {int(label)}"


def _score(score: float) -> str:
    return f"{score:.2f}" if score < 0.995 else f"{math.floor(score * 1000) / 1000:.3f}"


def draw_grad_cam(found: BoxCam) -> Figure:
    """The image with the box, and beside it the map of each layer over the image.

    Each map has the colours of its own maximum, as the colour bar says, so that maps are compared
    by where they are high, not by how high.

    Args:
        found: One of what :func:`grad_cam` returns.

    Returns:
        The figure.
    """
    size = found.image.shape[:2]
    small = overlay.shown(Collected(found.name, found.image, found.placement, ()))
    scale = style.Scale(0.0, 1.0, label="relative to each map's maximum")
    maps = [
        small.on_image(one.values, one.grid)
        if one.depends
        else np.full(small.image.shape[:2], np.nan)
        for one in found.maps
    ]
    panels = [overlay.image_panel(small)]
    for one, values in zip(found.maps, maps, strict=True):
        height, width = one.values.shape
        cells = f"{one.title}\n{height} {overlay.TIMES} {width} cells"
        panels.append(overlay.Panel(cells, overlay.over_image(small, values, scale)))
    title = f"{METHODS[found.method][0]} of {found.title}"
    with style.styled():
        figure = overlay.draw_panels(title, panels, size, scale, maps)
        left, top, right, bottom = found.box
        corner, sides = (left, top), (right - left, bottom - top)
        for axis, one in zip(figure.axes, (None, *found.maps), strict=False):
            # white on dark ground, black on light
            for colour, line in (("black", 2.6), ("white", 1.2)):
                axis.add_patch(
                    Rectangle(*(corner, *sides), fill=False, edgecolor=colour, linewidth=line)
                )
            if one is not None and one.maximum == 0:
                note = (
                    "nothing here\nraises the score"
                    if one.depends
                    else "no influence\non the score"
                )
                axis.text(
                    *(0.5, 0.5, note),
                    transform=axis.transAxes,
                    ha="center",
                    va="center",
                    fontsize=8,
                    bbox=dict(facecolor="white", edgecolor="none", alpha=0.85, pad=2),
                )
    return figure
