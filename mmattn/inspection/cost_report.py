"""What do the modules of a config cost, beside the same model without them?"""

from __future__ import annotations

import contextlib
import csv
import inspect
import json
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from mmengine.analysis import parameter_count
from mmengine.config import ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import InstanceData
from rich import box
from rich.table import Table
from rich.text import Text
from torch import nn

from mmattn.evaluation.table import NOT_AVAILABLE, render
from mmattn.inspection import build, modules
from mmattn.inspection._console import PreflightError
from mmattn.inspection.cost import Stopwatch, activation_bytes, flops
from mmattn.inspection.hardware import cpu_name

DETECTOR, BACKBONE = "detector", "backbone"


@dataclass(frozen=True)
class Cost:
    """What a part of a model costs.

    Args:
        parameters: All of them, frozen ones too; buffers are none.
        multiply_adds: See :class:`mmattn.inspection.cost.Flops`, like ``elementwise``.
        elementwise: See there.
        activation_bytes: See :func:`mmattn.inspection.cost.activation_bytes`.
        forward_ms: Median time of a forward pass without gradients; None: not measured.
    """

    parameters: int
    multiply_adds: int
    elementwise: int
    activation_bytes: int
    forward_ms: float | None

    def shown(self) -> tuple:
        """Parameters, GFLOPs, MiB and ms."""
        gflops = (self.multiply_adds + self.elementwise) / 1e9
        return self.parameters, gflops, self.activation_bytes / 2**20, self.forward_ms


@dataclass(frozen=True)
class Row:
    """A part of a model.

    Args:
        model: The label of a config, or one that says that it is plain.
        part: ``'detector'``, ``'backbone'``, or the class of inserted modules.
        modules: How many modules it is.
        cost: Of all of them.
        plain: Of what has the same names in the plain model; None where nothing has.
        plain_model: The label of that model.
        with_losses: The activations are those of a forward pass up to the losses, for a model
            that cannot train without.
        image: Height x width of the image as the model got it.
    """

    model: str
    part: str
    modules: int
    cost: Cost
    plain: Cost | None
    plain_model: str | None
    with_losses: bool
    image: str


@dataclass(frozen=True)
class Report:
    """The costs of models, and the conditions under which they were found."""

    conditions: dict[str, str | int]
    rows: list[Row]

    def flat(self) -> list[dict]:
        """A flat dict for each row."""
        return [
            {
                **{"model": row.model, "part": row.part, "modules": row.modules},
                **{"with_losses": row.with_losses, "image": row.image},
                **asdict(row.cost),
                "plain_model": row.plain_model,
                **{f"plain_{f.name}": getattr(row.plain, f.name, None) for f in fields(Cost)},
            }
            for row in self.rows
        ]

    def write(self, path: str | Path) -> None:
        """Writes a .json file, or a .csv file for any other suffix."""
        with Path(path).open("w", newline="", encoding="utf-8") as stream:
            if Path(path).suffix == ".json":
                content = {"conditions": self.conditions, "rows": self.flat()}
                stream.write(json.dumps(content, indent=2) + "\n")
            else:
                rows = [self.conditions | row for row in self.flat()]
                writer = csv.DictWriter(stream, rows[0])
                writer.writeheader()
                writer.writerows(rows)

    def table(self) -> str:
        """Markdown, with the difference to the plain model in parentheses."""
        timed = any(row.cost.forward_ms is not None for row in self.rows)
        forms = {"parameters": ",d", "GFLOPs": ",.3f", "activations (MiB)": ",.1f"}
        forms |= {"forward (ms)": ",.1f"} if timed else {}
        table = Table(box=box.MARKDOWN)
        for header in ("part", "model"):
            table.add_column(header, no_wrap=True)
        for header in forms:
            table.add_column(header, justify="right", no_wrap=True)
        order = [DETECTOR, BACKBONE]
        order += [row.part for row in self.rows]
        for row in sorted(self.rows, key=lambda row: order.index(row.part)):
            part = row.part if row.part in (DETECTOR, BACKBONE) else f"{row.part} x {row.modules}"
            plain = row.plain.shown() if row.plain else [None] * 4
            cells = map(_cell, forms.values(), row.cost.shown(), plain)
            table.add_row(part, row.model, *cells)
        return render(table, *map(Text, self._notes()))

    def _notes(self) -> list[str]:
        """What a reader of the table could mistake."""
        notes = [
            f"{name}: the image is padded to {image}"
            for name, image in {row.model: row.image for row in self.rows}.items()
            if image != "{height}x{width}".format(**self.conditions)
        ]
        if len({row.image for row in self.rows}) == 1:
            notes = [f"the image is padded to {self.rows[0].image}"] * bool(notes)
        pairs = {row.model: row.plain_model for row in self.rows if row.plain_model}
        if len(set(pairs.values())) > 1:
            notes += [f"{name}: the difference is to {plain}" for name, plain in pairs.items()]
        whole = dict.fromkeys(row.model for row in self.rows if row.with_losses)
        return notes + [f"{name}: the activations include those of its losses" for name in whole]


def _cell(form: str, value, plain) -> str:
    if value is None:
        return NOT_AVAILABLE
    return f"{value:{form}}" + ("" if plain is None else f" ({value - plain:+{form}})")


def compare(
    configs: Mapping[str, Mapping],
    shape: tuple[int, int] = (800, 1333),
    device: str = "cpu",
    repeats: int = 5,
    pad: bool = True,
    progress: Callable[[str], None] = lambda sentence: None,
) -> Report:
    """Measures the models of configs, and the plain model of each, on one random image.

    FLOPs are counted on the CPU. The models take turns in the timed forward passes, so that a
    busy moment hits them all.

    Args:
        configs: Whole configs (``config_file.load``) by label.
        shape: Height and width of the image.
        device: ``'cpu'`` or ``'cuda'``.
        repeats: Timed forward passes of each model, after one that is not; 0: none.
        pad: Pad the image as the config's data preprocessor does, to a multiple of 32 mostly.
        progress: Is told what is being done.

    Raises:
        PreflightError: A model cannot be built, or cannot run on such an image.
    """
    subjects: list[_Subject] = []
    for label, cfg in configs.items():
        if not isinstance(cfg.get("model"), Mapping):
            raise PreflightError(f"config {label} is expected to have model = dict(...)")
        progress(f"building {label}")
        subjects.append(_Subject(label, cfg, shape, pad))
    added: list[_Subject] = []
    for subject in tuple(subjects):
        config = plain_model(subject.config)
        if config is None:
            continue
        # a plain model that several share, or that is among the configs, is measured once
        plain = next((other for other in subjects if other.config == config), None)
        if plain is None:
            plain = _Subject("plain", {**configs[subject.label], "model": config}, shape, pad)
            subjects.insert(subjects.index(subject), plain)
            added.append(plain)
        subject.compare_with(plain)
    for number, plain in enumerate(added if len(added) > 1 else (), 1):
        plain.label = f"plain {number}"
    for subject in subjects:
        progress(f"counting {subject.label}")
        with _explained(subject.label, shape):
            subject.count(device)
    for i in range(repeats + 1 if repeats else 0):
        progress(f"timing, {i} of {repeats}" if i else "warming up")
        for subject in subjects:
            with _explained(subject.label, shape):
                subject.time(warm_up=i == 0)
    conditions = {
        "height": shape[0],
        "width": shape[1],
        "batch": 1,
        "dtype": "float32",
        "hardware": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeats": repeats,
    }
    return Report(conditions, [row for subject in subjects for row in subject.rows()])


def count(config: Mapping, shape: tuple[int, int]) -> dict[str, int]:
    """Parameters and FLOPs of a config's detector on one image, without those of a plain one.

    Args:
        config: A whole config (``config_file.load``).
        shape: Height and width of the image.

    Raises:
        PreflightError: The model cannot be built, or cannot run on such an image.
    """
    subject = _Subject("model", config, shape, pad=True)
    subject.model.eval()
    with _explained("model", shape):
        counted = subject._call(flops, parts={DETECTOR: [""]})
    return {"params": parameter_count(subject.model)[""], "flops": counted[DETECTOR].total}


@contextlib.contextmanager
def _explained(label: str, shape: tuple[int, int]):
    """Turns an error of a model's forward pass into a sentence."""
    try:
        yield
    except Exception as error:  # whatever a model raises at an image that does not suit it
        if os.environ.get("MMATTN_TRACEBACK") == "1" or isinstance(error, PreflightError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise PreflightError(
            f"{label} cannot run on an image of {shape[0]}x{shape[1]}: {reason} "
            "(MMATTN_TRACEBACK=1 shows where)"
        ) from error


class _Subject:
    """A model that is measured, and its input."""

    def __init__(self, label: str, cfg: Mapping, shape: tuple[int, int], pad: bool):
        self.label, self.config = label, _as_dicts(cfg["model"])
        # detectors read it by attribute
        cfg = {**cfg, "model": ConfigDict(self.config)}
        torch.manual_seed(0)
        self.model = revert_sync_batchnorm(build.build_model(cfg))
        self.kinds: dict[str, list[str]] = {}
        for one in modules.find(self.model, cfg["model"]):
            self.kinds.setdefault(one.type.removeprefix("mmattn."), []).append(one.name)
        self.parts: dict[Hashable, list[str]] = {DETECTOR: [""]}
        if isinstance(getattr(self.model, BACKBONE, None), nn.Module):
            self.parts[BACKBONE] = [BACKBONE]
        self.parts |= self.kinds
        self.plain: _Subject | None = None
        self.with_losses = False
        self.data = _random_image(shape)
        if not pad:
            self.model.data_preprocessor.pad_size_divisor = 1
        with _explained(label, shape):
            self.image = "{}x{}".format(*self._inputs()[0].shape[-2:])

    def _inputs(self) -> tuple:
        """Image and sample, on the device of the model."""
        data = self.model.data_preprocessor(self.data, False)
        return data["inputs"], data["data_samples"]

    def compare_with(self, plain: _Subject) -> None:
        """Has the plain model measure what stands in place of the inserted modules."""
        self.plain = plain
        there = {name for name, _ in plain.model.named_modules()}
        for kind, names in self.kinds.items():
            if common := [name for name in names if name in there]:
                plain.parts[self.label, kind] = common

    def count(self, device: str) -> None:
        """Operations on the CPU, then activations on the device."""
        self.model.eval()
        self.flops = self._call(flops, parts=self.parts)
        self.model.to(device)
        self.model.train()
        try:
            self.bytes = self._call(activation_bytes, parts=self.parts)
        except TypeError:
            # mmdet's detectors of the DINO family, which take no such call in training
            self.with_losses = True
            self.bytes = self._call(activation_bytes, "loss", parts=self.parts)
        self.model.eval()
        self.stopwatch = Stopwatch(self.model, self.parts, device)

    def time(self, warm_up: bool) -> None:
        """One forward pass."""
        self._call(lambda _, *args, **kw: self.stopwatch.run(*args, **kw), warm_up=warm_up)

    def _call(self, function: Callable, mode: str = "tensor", **kwargs):
        """``function`` of the model and its arguments, as mmdet's own count of FLOPs calls it."""
        with _fixed_proposals(self.model):
            return function(self.model, *self._inputs(), mode=mode, **kwargs)

    def cost(self, part: Hashable) -> Cost | None:
        """Of a part, None if the model does not have it."""
        if part not in self.parts:
            return None
        sizes = parameter_count(self.model)
        return Cost(
            parameters=sum(sizes[name] for name in self.parts[part]),
            multiply_adds=self.flops[part].multiply_adds,
            elementwise=self.flops[part].elementwise,
            activation_bytes=self.bytes[part],
            forward_ms=self.stopwatch.medians()[part],
        )

    def rows(self) -> Iterator[Row]:
        """The model's own parts."""
        for part, names in self.parts.items():
            if not isinstance(part, str):
                continue  # measured for a model with modules
            same = (self.label, part) if part in self.kinds else part
            plain = self.plain.cost(same) if self.plain else None
            label = self.plain and self.plain.label
            yield Row(
                self.label,
                part,
                len(names),
                self.cost(part),
                plain,
                label,
                self.with_losses,
                self.image,
            )


def _random_image(shape: tuple[int, int]) -> dict:
    """What a data loader gives: an image with one object, for models that ask in training."""
    from mmdet.structures import DetDataSample

    height, width = shape
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, *shape), generator=generator, dtype=torch.uint8)
    sizes = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    sample = DetDataSample(metainfo=dict(img_id=0, flip=False, **sizes))
    box = torch.tensor([[0.2 * width, 0.2 * height, 0.7 * width, 0.7 * height]])
    sample.gt_instances = InstanceData(bboxes=box, labels=torch.zeros(1, dtype=torch.long))
    return {"inputs": [image], "data_samples": [sample]}


@contextlib.contextmanager
def _fixed_proposals(model: nn.Module):
    """Has the RoI head work on as many boxes as the config allows.

    How many survive the suppression in an untrained RPN is chance.
    """
    head = getattr(model, "rpn_head", None)
    number = ((getattr(model, "test_cfg", None) or {}).get("rpn") or {}).get("max_per_img")
    if head is None or not number:
        yield
        return

    def predict(x, samples, *args, **kwargs):
        found = type(head).predict(head, x, samples, *args, **kwargs)
        return [
            _proposals(sample, number, like=one) for sample, one in zip(samples, found, strict=True)
        ]

    head.predict = predict
    try:
        yield
    finally:
        del head.predict


def _proposals(sample, number: int, like: InstanceData) -> InstanceData:
    """Boxes all over the image, of sides from 16 pixels to the whole."""
    height, width = sample.img_shape
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(4, number, generator=generator)
    w, h = (16 * (max(side, 16) / 16) ** v for side, v in zip((width, height), u[:2], strict=True))
    x, y = (width - w).clamp(min=0) * u[2], (height - h).clamp(min=0) * u[3]
    boxes = torch.stack([x, y, x + w, y + h], 1).to(like.bboxes)
    return InstanceData(
        bboxes=boxes,
        scores=like.scores.new_full((number,), 0.5),
        labels=like.labels.new_zeros(number),
        metainfo=like.metainfo,
    )


def plain_model(model: Mapping) -> dict | None:
    """The config of the same model without modules of mmattn, None if it has none.

    ``mmattn.Attach`` gives way to its ``module``, plug-ins and convolutions of mmattn are taken
    out, ``mmattn.SKResNet`` becomes mmdet's ResNet and ``mmattn.DRShuffleNetV2`` loses its
    ``drconv``. Everything else stays, ``frozen_stages`` too.

    Args:
        model: ``cfg.model``, which is not changed.
    """
    model = _as_dicts(model)
    plain = _without(model)
    return None if plain == model else plain


def _as_dicts(node):
    """A copy without mmengine's classes."""
    if isinstance(node, Mapping):
        return {key: _as_dicts(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(_as_dicts(item) for item in node)
    return node


def _without(node):
    """``node`` without what is mmattn's."""
    if isinstance(node, (list, tuple)):
        return type(node)(_without(item) for item in node)
    if not isinstance(node, dict):
        return node
    kind = _own_type(node)
    if kind == "Attach":
        rest = {key: v for key, v in node.items() if key not in ("type", "module", "plugins")}
        module = node["module"]
        # beside a whole model dict, only the data_preprocessor of the config's top level
        return _without({**rest, **(module if isinstance(module, dict) else {"type": module})})
    node = dict(node)
    if kind == "SKResNet":
        node = {key: value for key, value in node.items() if key not in _arguments_of_sk()}
        node["type"] = "mmdet.ResNet"
    if kind == "DRShuffleNetV2":
        node.pop("drconv", None)
    if _own_type(node.get("conv_cfg")):
        node.pop("conv_cfg")
    if _own_type(node.get("dcn")):
        node.pop("dcn")
        node.pop("stage_with_dcn", None)
    if isinstance(node.get("plugins"), (list, tuple)) and node["plugins"]:
        rest = [p for p in node["plugins"] if not _own_type((p or {}).get("cfg"))]
        node["plugins"] = rest or None
        if not rest:
            node.pop("plugins")
    return {key: _without(value) for key, value in node.items()}


def _own_type(node) -> str | None:
    """The name of a type of mmattn without its scope; None for other types and other things."""
    kind = node.get("type") if isinstance(node, dict) else None
    if isinstance(kind, str):
        return kind.partition(".")[2] if kind.startswith("mmattn.") else None
    module = getattr(kind, "__module__", None) or ""
    return kind.__name__ if module.startswith("mmattn.") else None


def _arguments_of_sk() -> set[str]:
    """What SKResNet takes and ResNet does not."""
    from mmdet.models.backbones import ResNet

    from mmattn.backbones import SKResNet

    own, plain = (set(inspect.signature(cls.__init__).parameters) for cls in (SKResNet, ResNet))
    return own - plain
