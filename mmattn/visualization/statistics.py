"""What inserted modules do over a dataset, and what their parameters say without one.

:func:`gate_statistics` runs a model and keeps running moments and histograms, so that 500 images
take no more memory than one. :func:`parameter_statistics` runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from mmattn.plugins.base import AttentionModule
from mmattn.plugins.gct import GCT
from mmattn.plugins.maps import AttentionMap
from mmattn.plugins.sge import SGE
from mmattn.visualization import names
from mmattn.visualization.distance import query_distance
from mmattn.visualization.record import (
    NONE_FOUND,
    Call,
    attention_modules,
    evaluating,
    listening,
)

SCHEMA = 1  # of to_dict
BINS = 128
TOLERANCE = 0.01  # of the distance between a gate's bounds: what counts as the same value
ALL = "all"
STATES = ("low", "high", "neutral", "constant")
SWING = (-2.0, 0.0, 2.0)  # where SGE's factor is given, in standard deviations of its map
CONTENT = ("backbone", "neck")  # parts that run without the heads


@dataclass(frozen=True)
class Statistics:
    """What was found.

    Args:
        parameters: A dict for each module whose parameters speak for themselves.
        layers: A dict for each module (and each of its calls in a forward pass) that ran.
        images: How many images ran; 0: none were asked for.
        classes: How many of them show each class.
        needs_data: Types of modules in the model of which parameters alone say nothing.
        conditions: Versions, files and the like.

    The dicts are described in ``docs/module-stats.md``.
    """

    parameters: list[dict]
    layers: list[dict] = field(default_factory=list)
    images: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    needs_data: list[str] = field(default_factory=list)
    conditions: dict = field(default_factory=dict)

    def maps(self, *kinds: str) -> Iterator[tuple[dict, dict]]:
        """Each map of these kinds, behind its layer."""
        return ((layer, m) for layer in self.layers for m in layer["maps"] if m["kind"] in kinds)

    def to_dict(self) -> dict:
        """Plain lists, dicts and numbers, as the JSON file holds them; None for what is not."""
        return _plain({"schema": SCHEMA, "tolerance": TOLERANCE, **asdict(self)})


class Moments:
    """Count, mean, variance and range of arrays of one shape, in float64, without keeping them."""

    def __init__(self):
        self.count = 0
        self.mean = self._squares = np.float64(0)
        self.low, self.high = np.float64(np.inf), np.float64(-np.inf)

    def add(self, values, low=None, high=None) -> None:
        """Takes values (N, ...): N more arrays; ``low`` and ``high`` where they are means."""
        values = _array(values)
        if not len(values):
            return
        mean, n = values.mean(0), len(values)
        total = self.count + n
        shift = mean - self.mean
        self._squares = (
            self._squares
            + np.square(values - mean).sum(0)
            + np.square(shift) * (self.count * n / total)
        )
        self.mean = self.mean + shift * (n / total)
        self.count = total
        self.low = np.minimum(self.low, (values if low is None else _array(low)).min(0))
        self.high = np.maximum(self.high, (values if high is None else _array(high)).max(0))

    @property
    def variance(self):
        """That of a sample, over n - 1; NaN for fewer than two."""
        return self._squares / (self.count - 1) if self.count > 1 else self._squares * np.nan

    @property
    def sd(self):
        """The root of the variance."""
        return np.sqrt(self.variance)


class Histogram:
    """Counts in bins of one width.

    Between bounds the bins are fixed. Where an end is open, they begin with the first values, and
    are joined two by two whenever a value falls outside: no value is lost or moved, and the bins
    are at most twice as wide as they had to be.
    """

    def __init__(self, bounds: tuple[float | None, float | None] = (None, None), bins: int = BINS):
        self.bounds = bounds
        self.counts = np.zeros(bins, np.int64)
        self.low = self.high = None

    def add(self, values: Tensor) -> None:
        """Takes all values of a tensor."""
        values = values.detach().flatten()
        values = values[values.isfinite()].double()
        if not values.numel():
            return
        self._reach(float(values.min()), float(values.max()))
        n = len(self.counts)
        at = ((values - self.low) * (n / (self.high - self.low))).long().clamp_(0, n - 1)
        self.counts += torch.bincount(at, minlength=n).cpu().numpy()

    def _reach(self, low: float, high: float) -> None:
        if self.low is None:
            closed = [bound is not None for bound in self.bounds]
            self.low = self.bounds[0] if closed[0] else low
            self.high = self.bounds[1] if closed[1] else high
            least = 1e-6 * max(1.0, abs(self.low), abs(self.high))
            # no value lies on an open end, where joined bins would have it on their other side
            beyond = max((self.high - self.low) / len(self.counts), least)
            self.low -= 0 if closed[0] else beyond
            self.high += 0 if closed[1] else beyond
        if all(bound is not None for bound in self.bounds):
            return
        while low < self.low:
            self.counts = np.concatenate([np.zeros_like(self.counts), self.counts])
            self.low -= self.high - self.low
            self.counts = self.counts.reshape(-1, 2).sum(1)
        while high > self.high:
            self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
            self.high += self.high - self.low
            self.counts = self.counts.reshape(-1, 2).sum(1)

    def to_dict(self) -> dict:
        """``edges`` (bins + 1) and ``counts``."""
        if self.low is None:
            return {"edges": [], "counts": []}
        edges = np.linspace(self.low, self.high, len(self.counts) + 1)
        return {"edges": edges.tolist(), "counts": self.counts.tolist()}


def parameter_statistics(model: nn.Module) -> Statistics:
    """What the parameters of inserted modules say, without an image.

    - GCT: gamma, alpha and beta by channel. y = x (1 + tanh(gamma s + beta)), where
      s = alpha ||x_c|| / rms(alpha ||x||) grows with the norm of the channel for alpha > 0. So
      for gamma alpha > 0 a channel is raised the more the larger its norm is among the others:
      they compete. For gamma alpha < 0 it is lowered the more: they cooperate.
    - SGE: weight and bias by group, and the factor sigmoid(w t + b) for maps t two standard
      deviations below the mean, at it, and two above.

    Args:
        model: Any model.

    Returns:
        Its ``parameters`` and ``needs_data``.
    """
    found, others = [], []
    for name, module in model.named_modules():
        if isinstance(module, GCT):
            found.append({**_who(name, module), **_gct(module)})
        elif isinstance(module, SGE):
            found.append({**_who(name, module), **_sge(module)})
        elif getattr(getattr(type(module), "attention", None), "describes", False):
            others.append(type(module).__name__)
    spoken = {one["type"] for one in found}
    return Statistics(found, needs_data=[x for x in dict.fromkeys(others) if x not in spoken])


def _gct(module: GCT) -> dict:
    gamma, alpha = _array(module.gamma).ravel(), _array(module.alpha).ravel()
    leaning = np.sign(gamma) * np.sign(alpha)
    values = {"gamma": gamma, "alpha": alpha, "beta": _array(module.beta).ravel()}
    return {
        "gate": module.gate,
        **{name: _summary(value) for name, value in values.items()},
        "competing": float((leaning > 0).mean()),
        "cooperating": float((leaning < 0).mean()),
    }


def _sge(module: SGE) -> dict:
    weight, bias = _array(module.weight).ravel(), _array(module.bias).ravel()
    found = {"weight": _summary(weight), "bias": _summary(bias)}
    scale = 1.0 if module.gate_scale is None else float(module.gate_scale)
    if module.normalize:  # else t has no unit
        at = np.array(SWING)
        factor = 1 / (1 + np.exp(-(weight[:, None] * at + bias[:, None]))) / scale
        found["factor"] = {"at": at.tolist(), "values": factor.tolist()}
        found["swing"] = _summary(np.abs(factor[:, -1] - factor[:, 0]))
    return found


def _summary(values: np.ndarray) -> dict:
    return {
        "mean": float(values.mean()),
        "variance": float(values.var()),
        "min": float(values.min()),
        "max": float(values.max()),
        "values": values.tolist(),
    }


def _who(name: str, module: nn.Module) -> dict:
    found = {"name": name, "type": type(module).__name__}
    return {
        **found,
        "stage": names.stage(name),
        "label": names.label(name, getattr(module, "_abbr_", "")),
    }


def gate_statistics(
    model: nn.Module,
    batches: Iterable,
    classes: Mapping[str, int] | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> Statistics:
    """Runs a model over images, and counts what its inserted modules decide.

    The model runs in evaluation mode and without gradients; where all inserted modules are in the
    backbone or the neck, only these run. Positions that the data preprocessor has padded do not
    count: a cell of a map does where its middle lies inside the image, as if the map covered the
    network's input evenly.

    Args:
        model: A model of mmengine, or any model if the batches are tensors.
        batches: What a data loader gives, ``dict(inputs=[...], data_samples=[...])``, or tensors
            (N, 3, H, W).
        classes: Label by name. For each, the mean gates over the images that show an object of
            it; images come from ``gt_instances`` (or ``gt_label``) of the data samples.
        progress: Is told the number of images after each batch.

    Returns:
        ``layers`` in the order in which they ran, with ``parameters`` as
        :func:`parameter_statistics` finds them.

    Raises:
        ValueError: The model has no module that says what it decides, no batch came, or classes
            are asked for and the data samples have no ground truth.
    """
    modules = attention_modules(model)
    if not modules:
        raise ValueError(NONE_FOUND)
    classes = dict(classes or {})
    if ALL in classes:
        raise ValueError(
            f"statistics by class call the mean over all images {ALL!r}: leave the class of that "
            "name out of classes"
        )
    only_features = hasattr(model, "extract_feat") and all(
        name.split(".")[0] in CONTENT for name in modules
    )
    layers: dict[tuple[str, int], _Layer] = {}
    images, shown = 0, {ALL: 0, **dict.fromkeys(classes, 0)}
    with evaluating(model), torch.no_grad():
        for batch in batches:
            inputs, samples = _prepared(model, batch)
            context = _Batch(inputs, samples, classes)

            def heard(call: Call, context=context):
                key = (call.name, call.index)
                if key not in layers:
                    layers[key] = _Layer(call, list(shown))
                layers[key].add(call, context)

            with listening(modules, heard):  # anew, so that calls are counted by forward
                if samples is None:
                    model(inputs)
                elif only_features:
                    model.extract_feat(inputs)
                else:
                    model(inputs, samples, mode="predict")
            images += len(inputs)
            for name, members in context.members.items():
                shown[name] += int(members.sum())
            progress(images)
    if not images:
        raise ValueError("gate_statistics expects at least one batch of images, got none")
    spoken = parameter_statistics(model)
    return Statistics(
        spoken.parameters,
        [layer.to_dict() for layer in layers.values()],
        images,
        shown,
        spoken.needs_data,
    )


def _prepared(model: nn.Module, batch) -> tuple[Tensor, list | None]:
    """The network's input and the data samples."""
    if isinstance(batch, Tensor):
        return batch, None
    data = model.data_preprocessor(batch, False)
    return data["inputs"], data["data_samples"]


class _Batch:
    """What is known of the images of a batch."""

    def __init__(self, inputs: Tensor, samples: Sequence | None, classes: Mapping[str, int]):
        self.count = len(inputs)
        self.size = tuple(inputs.shape[-2:])
        self.content = [_content(sample, self.size) for sample in samples or [None] * self.count]
        self.members = {ALL: np.ones(self.count, bool)}
        for name, label in classes.items():
            self.members[name] = np.array([label in _labels(x) for x in samples or [None]])

    def valid(self, height: int, width: int, device) -> Tensor:
        """Which cells (N, H, W) of a map lie inside their images; at least one of each."""
        masks = []
        for content in self.content:
            inside = [
                _inside((torch.arange(n, device=device) + 0.5) * (whole / n), *ends)
                for n, whole, ends in zip((height, width), self.size, content, strict=True)
            ]
            masks.append(inside[0][:, None] & inside[1])
        return torch.stack(masks)


def _content(sample, size: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    """Where the image lies in the network's input: first and last row, first and last column."""
    meta = {} if sample is None else sample.metainfo
    height, width = meta.get("img_shape", size)[:2]
    top, bottom, left, right = meta.get("pad_param", (0, 0, 0, 0))  # of letter boxes
    return (top, height - bottom), (left, width - right)


def _inside(centres: Tensor, start: float, stop: float) -> Tensor:
    found = (centres >= start) & (centres < stop)
    if not found.any():  # a map so coarse that no cell has its middle there
        found[(centres - (start + stop) / 2).abs().argmin()] = True
    return found


def _labels(sample) -> set[int]:
    objects = getattr(sample, "gt_instances", None)
    labels = objects.labels if objects is not None and "labels" in objects else None
    if labels is None:
        labels = getattr(sample, "gt_label", None)
    if labels is None:
        raise ValueError(
            "statistics by class need the objects of each image: let the pipeline load them with "
            "dict(type='LoadAnnotations', with_bbox=True) before PackDetInputs"
        )
    return set(torch.as_tensor(labels).flatten().tolist())


class _Layer:
    """What one module did, in one of its calls in a forward pass."""

    def __init__(self, call: Call, classes: list[str]):
        self.who = {**_who(call.name, call.module), "call": call.index}
        self.classes = classes
        self.per_image = True
        self.samples = 0
        self.maps: dict[str, _Gate | _Weights | _Regions | _Shares | _Distances] = {}
        self.activation: dict[str, Moments] = {}

    def add(self, call: Call, batch: _Batch) -> None:
        # heads run on regions of interest, which are no images
        if len(call.x) != batch.count or "roi_head" in call.name:
            self.per_image = False
        if not len(call.x):
            return
        self.samples += len(call.x)
        members = batch.members if self.per_image else {}
        maps = call.maps()
        for one in maps:
            if one.role == "detail" and one.kind in ("channel", "spatial"):
                continue  # parts of a gate that is counted itself
            if one.name not in self.maps:
                self.maps[one.name] = _KINDS[one.kind](one, self.classes)
            shape = one.values.shape
            valid = None
            if one.kind in ("spatial", "weights", "regions"):
                valid = self._valid(batch, shape, one.values.device)
            self.maps[one.name].add(one, valid, members)
        # of convolutions and blocks, what comes out is not what came in
        if isinstance(call.module, AttentionModule) or any(x.role != "detail" for x in maps):
            inside = self._valid(batch, call.x.shape, call.x.device)
            self._add_activation(call.x, call.y, maps, inside)

    def _valid(self, batch: _Batch, shape, device) -> Tensor:
        if self.per_image and len(shape) > 2:
            return batch.valid(*shape[-2:], device)
        return torch.ones((shape[0], *shape[-2:]), dtype=torch.bool, device=device)

    def _add_activation(self, x: Tensor, y: Tensor, maps: list[AttentionMap], valid: Tensor):
        """Variance over positions, and how unequal the channels' norms are, in and out."""
        variances, norms = [], []
        for value in (x, y):
            mean, variance, square = _over_positions(value.detach(), valid)
            variances.append(variance)
            norms.append((square * valid.sum((1, 2))[:, None]).sqrt())
        found = dict(
            zip(("variance_in", "variance_out"), (v.mean(1) for v in variances), strict=True)
        )
        factors = [one for one in maps if one.role == "factor"]
        spatial = [one for one in factors if one.kind == "spatial"]
        terms = any(one.role == "term" for one in maps)
        if len(spatial) == 1 and not terms:
            factor = torch.ones_like(variances[0])
            for one in factors:
                mean = one.values.double()
                if one.kind == "spatial":
                    mean = _over_positions(mean, valid)[0]
                factor = factor * mean.repeat_interleave(x.shape[1] // mean.shape[1], 1)
            found["variance_at_mean_factor"] = (variances[0] * factor.square()).mean(1)
        for one in maps:
            if one.role == "term" and one.kind == "channel":
                size = one.values.double().square().mean(1).sqrt()
                found["term_to_input"] = size / _over_positions(x, valid)[2].mean(1).sqrt()
        if x.shape[1] > 1:
            for name, norm in zip(("norm_spread_in", "norm_spread_out"), norms, strict=True):
                found[name] = norm.std(1, correction=0) / norm.mean(1)
        for name, values in found.items():
            self.activation.setdefault(name, Moments()).add(values[values.isfinite()])

    def to_dict(self) -> dict:
        found = {
            **self.who,
            "unit": "image" if self.per_image else "region of interest",
            "samples": self.samples,
            "maps": [one.to_dict() for one in self.maps.values()],
        }
        if self.activation:
            means = {name: float(one.mean) for name, one in self.activation.items()}
            found["activation"] = {
                name: {"mean": float(one.mean), "sd": float(one.sd)}
                for name, one in self.activation.items()
            }
            ratios = {"variance_ratio": ("variance_out", "variance_in")}
            ratios["variance_ratio_at_mean_factor"] = ("variance_at_mean_factor", "variance_in")
            ratios["norm_spread_ratio"] = ("norm_spread_out", "norm_spread_in")
            for name, (above, below) in ratios.items():
                if above in means and means[below] > 0:
                    found["activation"][name] = means[above] / means[below]
        return found


def _over_positions(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and mean square over the valid cells of x (N, C, H, W), each (N, C)."""
    x, weight = x.double(), valid[:, None].double()
    count = weight.sum((2, 3))
    mean = (x * weight).sum((2, 3)) / count
    variance = ((x - mean[..., None, None]).square() * weight).sum((2, 3)) / count
    return mean, variance, variance + mean.square()


class _Gate:
    """A 'channel' or 'spatial' map: a factor, or a term that is added."""

    def __init__(self, one: AttentionMap, classes: list[str]):
        self.map = _described(one)
        self.span = one.span
        self.units = Moments()
        self.positions = Moments()
        self.histogram = Histogram(one.bounds)
        self.near = np.zeros(2, np.int64)
        by_class = one.kind == "channel" and one.role == "factor"
        self.classes = {name: Moments() for name in classes} if by_class else {}
        self.shared = np.zeros((len(classes), len(classes)))  # images that two classes have

    def add(self, one: AttentionMap, valid: Tensor | None, members: Mapping) -> None:
        values = one.values
        if valid is None:
            self.units.add(values)
        else:
            mean, variance, _ = _over_positions(values, valid)
            outside = ~valid[:, None]
            low = values.masked_fill(outside, math.inf).amin((2, 3))
            high = values.masked_fill(outside, -math.inf).amax((2, 3))
            self.units.add(mean, low, high)
            self.positions.add(variance)
            values = values.movedim(1, -1)[valid]
        self.histogram.add(values)
        for end, bound in enumerate(one.bounds):
            if bound is not None:
                self.near[end] += int(((values - bound).abs() <= TOLERANCE * self.span).sum())
        if self.classes and members:
            for name, which in members.items():
                self.classes[name].add(_array(one.values)[which])
            shown = np.array(list(members.values()), np.float64)
            self.shared += shown @ shown.T

    def to_dict(self) -> dict:
        units, counted = self.units, max(int(self.histogram.counts.sum()), 1)
        found = {
            **self.map,
            "mean": float(units.mean.mean()),
            "sd_images": _root_mean(units.variance),
            "sd_units": float(units.mean.std()),
            "per_unit": {
                "mean": units.mean,
                "sd": units.sd,
                "min": units.low,
                "max": units.high,
            },
            "histogram": self.histogram.to_dict(),
        }
        if self.positions.count:
            found["sd_positions"] = float(np.sqrt(np.mean(self.positions.mean)))
        if self.map["role"] == "factor":
            low, high = self.map["bounds"]
            found["near_bounds"] = {
                "low": None if low is None else self.near[0] / counted,
                "high": None if high is None else self.near[1] / counted,
            }
            found["states"] = self._states()
        found |= self._by_class()
        return found

    def _states(self) -> dict | None:
        """Units by what their gate does; a unit is in the first that applies."""
        if self.units.count < 2 and not self.positions.count:
            return None  # one image cannot tell
        low, high, near = self.units.low, self.units.high, TOLERANCE * self.span
        ends = {"low": self.map["bounds"][0], "high": self.map["bounds"][1]}
        ends["neutral"] = self.map["neutral"]
        left = np.ones(len(low), bool)
        found = {}
        for name in STATES:
            if name == "constant":
                there = high - low <= near
            elif ends[name] is None:
                there = np.zeros_like(left)
            else:
                there = (low >= ends[name] - near) & (high <= ends[name] + near)
            there &= left
            left &= ~there
            found[name] = np.flatnonzero(there)
        return {
            **{name: at.tolist() for name, at in found.items()},
            "dead": (len(found["neutral"]) + len(found["constant"])) / len(left),
            "saturated": (len(found["low"]) + len(found["high"])) / len(left),
        }

    def _by_class(self) -> dict:
        of = {name: one for name, one in self.classes.items() if one.count}
        chosen = [one for name, one in of.items() if name != ALL]
        if not chosen:
            return {}
        found = {
            "classes": {name: {"images": one.count, "mean": one.mean} for name, one in of.items()}
        }
        if len(chosen) > 1:
            found["class_spread"] = _root_mean(np.var([x.mean for x in chosen], axis=0, ddof=1))
            found["class_spread_by_chance"] = self._by_chance()
        return found

    def _by_chance(self) -> float:
        """The spread to expect if the gates of an image had nothing to do with its classes.

        Means of n_i and n_j images that share n_ij have the covariance var n_ij / (n_i n_j).
        """
        chosen = np.diag(self.shared) > 0
        chosen[list(self.classes).index(ALL)] = False
        shared = self.shared[np.ix_(chosen, chosen)]
        counts = np.diag(shared)
        covariance = shared / np.outer(counts, counts)
        own = np.trace(covariance) / len(counts)
        others = (covariance.sum() - np.trace(covariance)) / (len(counts) * (len(counts) - 1))
        return _root_mean(self.classes[ALL].variance * max(own - others, 0.0))


class _Weights:
    """Where queries look: entropy in bits, against looking everywhere alike."""

    def __init__(self, one: AttentionMap, classes: list[str]):
        self.map = _described(one)
        self.entropy, self.uniform = Moments(), Moments()
        self.padding, self.distance = Moments(), {}
        self.is_share = True

    def add(self, one: AttentionMap, valid: Tensor, members: Mapping) -> None:
        values = one.values.double()
        whole = values.sum((2, 3))
        if bool((values < -1e-6).any()) or bool(((whole - 1).abs() > 1e-2).any()):
            self.is_share = False  # not from a softmax
        inside = values * valid[:, None]
        share = inside.sum((2, 3), keepdim=True)
        p = inside / share
        bits = -torch.special.xlogy(p, p).sum((2, 3)) / math.log(2)
        bits = bits.mean(1)
        self.entropy.add(bits[bits.isfinite()])  # not of one that looks at the padding alone
        self.uniform.add(valid.sum((1, 2)).double().log2())
        self.padding.add(1 - share.flatten(1).mean(1))
        if one.values.shape[1] > 1:
            for name, values in _query_distances(p).items():
                self.distance.setdefault(name, Moments()).add(values[values.isfinite()])

    def to_dict(self) -> dict:
        if not self.is_share:
            return {**self.map, "entropy_bits": None}
        found = {
            **self.map,
            "entropy_bits": {"mean": float(self.entropy.mean), "sd": float(self.entropy.sd)},
            "uniform_bits": float(self.uniform.mean),
            "weight_on_padding": float(self.padding.mean),
        }
        if self.distance:
            found["query_distance"] = {
                name: {"mean": float(one.mean), "sd": float(one.sd)}
                for name, one in self.distance.items()
                if one.count
            }
        return found


def _query_distances(weights: Tensor) -> dict[str, Tensor]:
    """(N, Q, H, W) -> mean distance between queries, by measure (N)."""
    found = [query_distance(one) for one in weights]
    return {name: torch.tensor([one[name] for one in found]) for name in found[0]}


class _Regions:
    """Which of a DRConv's filters are used, and how evenly."""

    def __init__(self, one: AttentionMap, classes: list[str]):
        self.map = {**_described(one), "count": one.count}
        self.shares, self.entropy = Moments(), Moments()
        self.used = np.zeros(one.count, np.int64)

    def add(self, one: AttentionMap, valid: Tensor, members: Mapping) -> None:
        shares = torch.stack(
            [
                torch.bincount(regions[inside].long(), minlength=one.count) / inside.sum()
                for regions, inside in zip(one.values, valid, strict=True)
            ]
        ).double()
        self.shares.add(shares)
        self.used += _array((shares > 0).sum(0)).astype(np.int64)
        self.entropy.add(_bits(shares))

    def to_dict(self) -> dict:
        mean = torch.as_tensor(self.shares.mean)
        return {
            **self.map,
            "share": {"mean": self.shares.mean, "sd": self.shares.sd},
            "images_that_use": self.used,
            "never_used": np.flatnonzero(self.used == 0),
            "entropy_bits": {"mean": float(self.entropy.mean), "sd": float(self.entropy.sd)},
            "entropy_bits_of_mean": float(_bits(mean)),
            "uniform_bits": math.log2(self.map["count"]),
        }


class _Shares:
    """How experts or branches are weighed."""

    def __init__(self, one: AttentionMap, classes: list[str]):
        self.map = _described(one)
        self.units, self.entropy = Moments(), Moments()
        self.histogram = Histogram(one.bounds)
        self.is_share = True

    def add(self, one: AttentionMap, valid: Tensor | None, members: Mapping) -> None:
        values = one.values.double()
        self.histogram.add(values)
        self.is_share &= bool(((values.sum(1) - 1).abs() <= 1e-3).all())
        bits = _bits(values.clamp_min(0).movedim(1, -1))
        self.entropy.add(bits.reshape(len(bits), -1).mean(1))
        self.units.add(values.flatten(2).mean(2) if values.dim() > 2 else values)

    def to_dict(self) -> dict:
        found = {
            **self.map,
            "share": {"mean": self.units.mean, "sd": self.units.sd},
            "histogram": self.histogram.to_dict(),
        }
        if self.is_share:
            found["entropy_bits"] = {
                "mean": float(self.entropy.mean),
                "sd": float(self.entropy.sd),
            }
            found["uniform_bits"] = math.log2(len(self.units.mean))
        return found


class _Distances:
    """How far the filters of regions lie from each other."""

    def __init__(self, one: AttentionMap, classes: list[str]):
        self.map = _described(one)
        self.pairs = Moments()

    def add(self, one: AttentionMap, valid: Tensor | None, members: Mapping) -> None:
        self.pairs.add(one.values)

    def to_dict(self) -> dict:
        matrix = self.pairs.mean
        others = matrix[~np.eye(len(matrix), dtype=bool)]
        return {**self.map, "mean": float(others.mean()), "pairs": matrix}


_KINDS = {
    "channel": _Gate,
    "spatial": _Gate,
    "weights": _Weights,
    "regions": _Regions,
    "shares": _Shares,
    "distances": _Distances,
}


def _described(one: AttentionMap) -> dict:
    found = {"name": one.name, "kind": one.kind, "role": one.role}
    if one.kind in ("channel", "spatial"):
        found |= {"neutral": one.neutral, "bounds": list(one.bounds)}
        found["units"] = one.values.shape[1]
    return found


def _bits(shares: Tensor) -> Tensor:
    """Entropy over the last dimension."""
    return -torch.special.xlogy(shares, shares).sum(-1) / math.log(2)


def _root_mean(variances) -> float:
    return float(np.sqrt(np.mean(variances)))


def _array(values) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, np.float64)


def _plain(value):
    """Lists, dicts, strings and numbers; None for what is not finite, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
