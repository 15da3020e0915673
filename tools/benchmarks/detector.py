"""What attention costs a whole detector: the training step and inference, with and without it.

    python tools/benchmarks/detector.py [--device cuda] [--amp off on] [--modules SE SGE ...]
    python tools/benchmarks/detector.py --table tools/benchmarks/results/detector-....csv

By default mmdet's Faster R-CNN R50 FPN with each module in every block of all four stages, after
conv3, as this repository's configs have it: ``identity_init``, ``frozen_stages=0``. Another
detector by --config, other places by --modules: ``gc:ratio=4@c3-c5``, or ``gct@paper`` for what
``tools/train.py --attention gct`` does (GCT before every convolution).

train       the step of a training: pre-processing on the device, forward pass, losses, backward
            pass, the config's optimizer; with --amp on by mmengine's AmpOptimWrapper (CUDA,
            float16 with a scaled loss) or in bfloat16 (CPU). No data loader.
inference   pre-processing, forward pass and post-processing, without gradients; --amp on autocasts.

Each module runs as mmattn computes it (auto) and in the authors' formulation (reference). Every
variant is compared with ``plain``, the same model without the modules and with the same
frozen_stages; a plain model with the config's own frozen_stages stands beside it. In inference the
two do the same work: what lies between them is noise.

So that all do the same work:

- All have the same weights, random ones from a fixed seed, with the statistics of the batch in the
  BatchNorms and factors of 1 where mmdet starts at 0, so that maps have the size of trained ones.
- Modules start as identity: in evaluation all compute the same maps, which is checked.
- What a head picks its boxes from (scores and offsets in the RPN, and before the final
  suppression) is computed by each variant, and then replaced by what the plain detector computed:
  the numbers of proposals, of boxes in a suppression and of regions are the same.
- The learning rate is 0, and the random samplers start from one seed in every step: a step is the
  same however many went before.

No variant is timed whose maps differ from the plain detector's, whose loss is not finite, or whose
modules get no gradient: its row says so. The variants take turns in every round, in a random
order. ``extra_ms`` is the median over the rounds of the difference to plain in the same round,
``extra_percent`` that over the median of plain, ``ratio`` one plus it. Memory is the peak in two
steps of a fresh process for each variant: weights, optimizer, gradients and activations, by
PyTorch's count on CUDA and by the system's on the CPU (VmHWM, above what the process held before).
``saved_mib`` is what autograd keeps of one forward pass up to the losses.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import harness

import mmattn  # noqa: F401  before mmdet, for an mmcv without compiled operators
from mmattn._stack import installed
from mmattn.inspection import attention_option, config_file, preflight
from mmattn.inspection._console import PreflightError, say, warn

CONFIG = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
MODULES = ("SE", "SGE", "GC", "GCT", "CBAM")
TRAIN, INFERENCE = "train", "inference"
BOXES = 8  # in an image
# how far the maps of a variant may be from those of the plain detector; TF32 moves them. With AMP
# they may be further by twice what it makes of the plain detector's own.
TOLERANCE = 1e-2
ATTEMPTS = 30  # until the scale of the loss is one that float16 can hold


# --- which models --------------------------------------------------------------------------------


@dataclass(eq=False)
class Subject:
    """A detector.

    Args:
        label: The module as asked for, ``'plain'`` without.
        cfg: The whole config.
        plain: The same detector without the module; None for one that is plain.
    """

    label: str
    cfg: Mapping
    plain: Subject | None = None

    @property
    def frozen_stages(self) -> int:
        return self.cfg["model"].get("backbone", {}).get("frozen_stages", -1)


def plan(config: str, modules: list[str]) -> list[Subject]:
    """The plain detectors, then those with a module."""
    from mmattn.inspection.cost_report import plain_model

    base = config_file.load(config)
    if not isinstance(base.get("model"), Mapping):
        raise PreflightError(f"--config {config} has no model: is it a part of others?")
    if base.get("optim_wrapper") is None:
        raise PreflightError(f"--config {config} has no optim_wrapper, which a training step needs")
    if plain_model(base.model) is not None:
        raise PreflightError(
            f"--config {config} has modules of mmattn already: give the plain one, and --modules"
        )
    _without_download(base)
    with_module = [insert(base, text) for text in modules]
    plain = []
    for model in [*(plain_model(cfg.model) for _, cfg in with_module), base.model.to_dict()]:
        if model not in [one.cfg.model.to_dict() for one in plain]:
            plain.append(Subject("plain", _with_model(base, model)))
    found = []
    for label, cfg in with_module:
        if label not in [one.label for one in found]:
            model = plain_model(cfg.model)
            own = next(one for one in plain if one.cfg.model.to_dict() == model)
            found.append(Subject(label, cfg, own))
    return plain + found


def _without_download(cfg) -> None:
    for node in config_file.maps(cfg.model):
        given = node.get("init_cfg")
        entries = given if isinstance(given, (list, tuple)) else [given]
        if any(map(config_file.is_pretrained, entries)):
            node["init_cfg"] = None
        if node.get("pretrained"):
            node["pretrained"] = None


def _with_model(cfg, model: dict):
    cfg = copy.deepcopy(cfg)
    cfg.model = model
    return cfg


def insert(base, text: str):
    """The label and the config of a detector with a module: ``'SGE'``, ``'gc:ratio=4@c3-c5'``."""
    cfg = copy.deepcopy(base)
    as_in_paper = text.lower().endswith("@paper")
    bare = text[: -len("@paper")] if as_in_paper else text
    try:
        wish = attention_option.parse(bare)
        with contextlib.redirect_stdout(io.StringIO()):  # the lines of a config it stands for
            attention_option.apply(cfg, bare if as_in_paper or wish.given else f"{bare}@c2-c5")
    except PreflightError as error:
        raise PreflightError(str(error).replace("--attention", "--modules")) from error
    name, rest = bare.partition(":")[0], bare.partition(":")[2]
    place = name.partition("@")[2]
    label = wish.name + (f":{rest}" if rest else "") + (f"@{place}" if place else "")
    return label + ("@paper" if as_in_paper else ""), cfg


# --- one model -----------------------------------------------------------------------------------


class Detector:
    """A model that runs steps on one batch."""

    def __init__(self, subject: Subject, args, weights: dict | None = None):
        import torch
        from mmengine.config import ConfigDict
        from mmengine.model import revert_sync_batchnorm

        from mmattn.inspection import build, modules

        self.subject, self.device = subject, args.device
        torch.manual_seed(0)
        cfg = {**subject.cfg, "model": ConfigDict(subject.cfg["model"])}
        try:
            with _quiet():
                self.model = revert_sync_batchnorm(build.build_model(cfg))
                self.model.init_weights()
        except PreflightError as error:
            raise PreflightError(f"{subject.label}: {error}") from error
        if weights is not None:
            unknown = self.model.load_state_dict(weights, strict=False).unexpected_keys
            if unknown:
                raise PreflightError(
                    f"{subject.label} has no place for {unknown[0]} of the plain detector: "
                    "the two cannot have the same weights"
                )
        self.model.to(args.device)
        self.batch = make_batch(subject.cfg["model"], args.size, args.batch)
        self.inserted = {
            one.name: one.module for one in modules.find(self.model, subject.cfg["model"])
        }
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.optimizer = None
        self._buffers: dict = {}

    def standardize(self) -> None:
        """Gives the BatchNorms statistics of the batch, and factors of 1 in place of 0."""
        import torch

        self.model.eval()
        norms = [
            m for m in self.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
        ]
        before = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # the mean of all it sees: of one batch
            if norm.track_running_stats:
                norm.reset_running_stats()
            if norm.affine and not norm.weight.any():
                torch.nn.init.ones_(norm.weight)
            norm.train()
        with torch.no_grad():
            self.model.extract_feat(self.model.data_preprocessor(self.batch, False)["inputs"])
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum

    def weights(self) -> dict:
        """A copy of the state dict, on the CPU."""
        return {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}

    def ready(self, mode: str, amp: str) -> None:
        """Prepares for steps of one kind."""
        self.mode, self.amp = mode, amp
        self._restore()
        self.model.train(mode == TRAIN)
        self.optimizer = self._new_optimizer() if mode == TRAIN else None

    def _restore(self) -> None:
        """Takes back what BatchNorms have learnt of the statistics."""
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self._buffers.setdefault(name, buffer.clone()))

    def _new_optimizer(self):
        from mmengine.optim import build_optim_wrapper

        wrapper = copy.deepcopy(self.subject.cfg["optim_wrapper"])
        wrapper["optimizer"]["lr"] = 0.0
        if self.amp == "on":
            cuda = self.device == "cuda"
            wrapper["type"] = "AmpOptimWrapper" if cuda else _amp_on_cpu()
            if cuda:
                wrapper["loss_scale"] = "dynamic"
        with _quiet():
            return build_optim_wrapper(self.model, wrapper)

    def step(self) -> None:
        """One step."""
        import torch

        torch.manual_seed(0)  # of the samplers
        if self.mode == TRAIN:
            self.model.train_step(self.batch, self.optimizer)
            return
        with torch.no_grad(), self._autocast(self.amp):
            self.model.test_step(self.batch)

    def _autocast(self, amp: str):
        import torch

        dtype = torch.float16 if self.device == "cuda" else torch.bfloat16
        return torch.autocast(self.device, dtype=dtype, enabled=amp == "on")

    def maps(self, amp: str) -> list:
        """What the heads get, in evaluation mode."""
        import torch

        self._restore()
        self.model.eval()
        with torch.no_grad(), self._autocast(amp):
            data = self.model.data_preprocessor(self.batch, False)
            found = [m.float() for m in self.model.extract_feat(data["inputs"])]
        self.model.train(self.mode == TRAIN)
        return found

    def check(self) -> str:
        """Runs a step; why this variant should not be timed, ``''`` if nothing is wrong."""
        import torch

        if self.mode == INFERENCE:
            self.step()
            return ""
        scaler = getattr(self.optimizer, "loss_scaler", None)
        for _ in range(ATTEMPTS if scaler else 1):
            torch.manual_seed(0)
            with self.optimizer.optim_context(self.model):
                data = self.model.data_preprocessor(self.batch, True)
                losses = self.model(**data, mode="loss")
            loss, _ = self.model.parse_losses(losses)
            if not loss.isfinite():
                return "the loss is not finite"
            self.optimizer.backward(loss)
            problem, finite = self._gradients()
            if finite or scaler:
                self.optimizer.step()  # the scaler leaves a step out that is not finite
            self.optimizer.zero_grad()
            if finite:
                return problem
        return "a gradient is not finite"

    def _gradients(self) -> tuple[str, bool]:
        """Which module learns nothing, and whether all gradients are finite."""
        problem = ""
        for name, module in self.inserted.items():
            learning = [p for p in module.parameters() if p.requires_grad]
            # none has to in a frozen stage
            if learning and not any(p.grad is not None and p.grad.any() for p in learning):
                problem = problem or f"{name} gets no gradient"
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return problem, all(bool(g.isfinite().all()) for g in gradients)

    def saved_bytes(self) -> int:
        """Of a training step."""
        import torch

        from mmattn.inspection.cost import activation_bytes

        torch.manual_seed(0)
        with self.optimizer.optim_context(self.model):
            data = self.model.data_preprocessor(self.batch, True)
            inputs = data["inputs"], data["data_samples"]
            return activation_bytes(self.model, *inputs, mode="loss")[""]

    @property
    def starts_as_identity(self) -> bool:
        return all(getattr(m, "identity_at_init", False) for m in self.inserted.values())


def _amp_on_cpu() -> type:
    """mmengine's own asks for an accelerator."""
    import torch
    from mmengine.optim import OptimWrapper

    class Bfloat16OptimWrapper(OptimWrapper):
        @contextlib.contextmanager
        def optim_context(self, model):
            with super().optim_context(model), torch.autocast("cpu", dtype=torch.bfloat16):
                yield

    return Bfloat16OptimWrapper


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what mmengine logs about every layer that it initialises."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel("ERROR")  # nor of each that is frozen
    try:
        yield
    finally:
        logger.setLevel(before)


def make_batch(model: Mapping, size, batch: int) -> dict:
    """What a data loader gives: random images with boxes from 16 pixels to the whole."""
    import torch
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    height, width = size
    classes = [node["num_classes"] for node in config_file.maps(model) if "num_classes" in node]
    generator = torch.Generator().manual_seed(0)
    images, samples = [], []
    for number in range(batch):
        shape = (3, height, width)
        images.append(torch.randint(256, shape, generator=generator, dtype=torch.uint8))
        u = torch.rand(4, BOXES, generator=generator)
        w, h = (
            16 * (max(side, 16) / 16) ** v for side, v in zip((width, height), u[:2], strict=True)
        )
        x, y = (width - w) * u[2], (height - h) * u[3]
        sizes = dict(img_shape=tuple(size), ori_shape=tuple(size), scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=dict(img_id=number, flip=False, **sizes))
        labels = torch.randint(min(classes, default=1), (BOXES,), generator=generator)
        boxes = torch.stack([x, y, x + w, y + h], 1)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        samples.append(sample)
    return {"inputs": images, "data_samples": samples}


class SameBoxes:
    """Has every detector pick boxes from what the plain one computed.

    Args:
        inputs: For each head the arguments from which it picked boxes; empty: none is known yet.
    """

    def __init__(self, inputs: dict | None = None):
        self.inputs = {} if inputs is None else inputs

    @contextlib.contextmanager
    def record(self, detector: Detector) -> Iterator[None]:
        """Takes the inputs of the heads."""
        with self._heads(detector, self._taken):
            yield

    @contextlib.contextmanager
    def replay(self, detector: Detector) -> Iterator[None]:
        """Hands them to the heads."""
        with self._heads(detector, self._given):
            yield

    @contextlib.contextmanager
    def _heads(self, detector: Detector, function) -> Iterator[None]:
        heads = {
            name: head
            for name, head in detector.model.named_modules()
            if hasattr(head, "predict_by_feat")
        }
        for name, head in heads.items():
            head.predict_by_feat = functools.partial(function, name, head.predict_by_feat)
        try:
            yield
        finally:
            for head in heads.values():
                del head.predict_by_feat

    def _taken(self, name, pick, *args, **kwargs):
        from torch.utils._pytree import tree_map

        def detached(value):
            return value.detach() if hasattr(value, "detach") else value

        self.inputs[name] = tree_map(detached, args), tree_map(detached, kwargs)
        return pick(*args, **kwargs)

    def _given(self, name, pick, *args, **kwargs):
        args, kwargs = self.inputs.get(name, (args, kwargs))
        return pick(*args, **kwargs)


# --- measuring -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Variant:
    """A detector in one implementation of its module.

    Args:
        detector: It.
        backend: Of mmattn.ops, ``''`` for a plain detector.
        note: Why it is not timed.
        saved: Bytes that autograd saves.
        peak: Bytes of memory.
    """

    detector: Detector
    backend: str = ""
    note: str = ""
    saved: int | None = None
    peak: float = math.nan

    @property
    def name(self) -> str:
        subject = self.detector.subject
        if not subject.plain:
            return f"{subject.label}, frozen_stages={subject.frozen_stages}"
        return f"{subject.label}, {self.backend}"

    def chosen(self):
        from mmattn.ops import use_backend

        return use_backend(self.backend) if self.backend else contextlib.nullcontext()

    def step(self) -> None:
        with self.chosen():
            self.detector.step()

    def check(self, wanted: list | None = None, tolerance: float = TOLERANCE) -> list:
        """Notes why the variant should not be timed; returns its maps.

        Args:
            wanted: The maps of the plain detector.
            tolerance: How far its own may be from them.
        """
        detector = self.detector
        with self.chosen():
            maps = detector.maps(detector.amp)
            if not all(m.isfinite().all() for m in maps):
                self.note = "the maps are not finite"
            elif wanted and detector.starts_as_identity:
                error = _distance(maps, wanted)
                if not error < tolerance:
                    self.note = f"the maps differ from those of the plain detector by {error:.2g}"
            self.note = self.note or detector.check()
            if not self.note and detector.mode == TRAIN:
                self.saved = detector.saved_bytes()
        return maps


def _distance(maps: list, wanted: list) -> float:
    """The largest relative error."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(maps, wanted, strict=True))


def measure(args) -> Iterator[list[dict]]:
    """The rows of one mode with or without AMP after the other."""
    from mmattn.inspection.cost_report import _explained

    subjects = plan(args.config, args.modules)
    detectors: list[Detector] = []
    with _explained("the plain detector", tuple(args.size)):
        for subject in subjects:
            warn(f"building {subject.label}")
            weights = detectors[0].weights() if detectors else None
            detectors.append(Detector(subject, args, weights))
            if weights is None:
                detectors[0].standardize()
    for mode in args.modes:
        for amp in args.amp:
            yield _rows(args, detectors, mode, amp)


def _rows(args, detectors: list[Detector], mode: str, amp: str) -> list[dict]:
    from mmattn.inspection.cost_report import _explained

    variants = []
    for detector in detectors:
        backends = args.backends if detector.subject.plain else [""]
        variants += [Variant(detector, backend) for backend in backends]
    same, plain = SameBoxes(), variants[0]
    with contextlib.ExitStack() as stack:
        for detector in detectors:
            detector.ready(mode, amp)
        for variant in variants:
            warn(f"{mode}, amp {amp}: checking {variant.name}")
            with _explained(variant.name, tuple(args.size)):
                if variant is plain:
                    with same.record(plain.detector):
                        maps = plain.check()
                    tolerance = TOLERANCE
                    if amp == "on":
                        tolerance += 2 * _distance(maps, plain.detector.maps("off"))
                    for detector in detectors:
                        stack.enter_context(same.replay(detector))
                else:
                    variant.check(maps, tolerance)
            if variant.note:
                if not variant.detector.subject.plain:
                    raise PreflightError(f"{variant.name}: {variant.note}")
                warn(f"{variant.name} is not timed: {variant.note}")
        del maps
        timed = {v.name: v for v in variants if not v.note}
        warn(f"{mode}, amp {amp}: timing {len(timed)} variants, {args.runs} rounds")
        for variant in timed.values() if args.device == "cuda" else ():
            for _ in range(2):  # the first round of the harness is one more
                variant.step()
        times = harness.in_turns({n: v.step for n, v in timed.items()}, args.runs, args.device)
    if args.memory:
        with tempfile.TemporaryDirectory() as folder:
            _share(folder, detectors[0], same)
            for variant in timed.values():
                warn(f"{mode}, amp {amp}: memory of {variant.name}")
                variant.peak = _peak_of(variant, args, detectors.index(variant.detector), folder)
    for detector in detectors:
        detector.optimizer = None
    return [_row(args, v, variants, times) for v in variants]


def _row(args, variant: Variant, variants: list[Variant], times: dict[str, list[float]]) -> dict:
    detector, subject = variant.detector, variant.detector.subject
    own = subject.plain or variants[0].detector.subject
    plain = next(v for v in variants if v.detector.subject is own)
    dtype = "float16" if args.device == "cuda" else "bfloat16"
    row = {
        **harness.conditions(args.device),
        **_stack(),
        "device": args.device,
        "config": args.config,
        "height": args.size[0],
        "width": args.size[1],
        "batch": args.batch,
        "mode": detector.mode,
        "amp": dtype if detector.amp == "on" else "off",
        "module": subject.label,
        "frozen_stages": subject.frozen_stages,
        "backend": variant.backend,
        "modules": len(detector.inserted),
        "parameters": detector.parameters,
        "runs": args.runs,
        **dict.fromkeys(TIMES, ""),
        "peak_mib": _mib(variant.peak),
        "saved_mib": _mib(variant.saved),
        "note": variant.note,
    }
    if not variant.note:
        taken = times[variant.name]
        median = statistics.median(times[plain.name])
        extra = [a - b for a, b in zip(taken, times[plain.name], strict=True)]
        more = statistics.median(extra)
        found = (
            *(statistics.median(taken), *_spread(taken)),
            *(more, *_spread(extra), 100 * more / median, 1 + more / median),
        )
        row |= {
            k: f"{v:.4f}" if k == "ratio" else f"{v:.3f}" for k, v in zip(TIMES, found, strict=True)
        }
    return row


TIMES = (
    *("median_ms", "p20_ms", "p80_ms"),
    *("extra_ms", "extra_p20_ms", "extra_p80_ms", "extra_percent", "ratio"),
)


def _spread(values: list[float]) -> tuple[float, float]:
    return harness.percentile(values, 20), harness.percentile(values, 80)


def _mib(size: float | None) -> str:
    return "" if size is None or math.isnan(size) else f"{size / 2**20:.1f}"


@functools.cache
def _stack() -> dict[str, str]:
    """The distributions behind the packages under mmattn, with their versions."""
    return {name: " ".join(installed(name)) for name in ("mmengine", "mmcv", "mmdet")}


# --- memory, in a process of its own -------------------------------------------------------------


def _share(folder: str, plain: Detector, same: SameBoxes) -> None:
    import torch

    torch.save({"weights": plain.weights(), "boxes": same.inputs}, Path(folder, "shared.pth"))


def _peak_of(variant: Variant, args, index: int, folder: str) -> float:
    detector = variant.detector
    job = {**vars(args), "index": index, "backend": variant.backend, "folder": folder}
    job |= {"mode": detector.mode, "amp_now": detector.amp}
    command = [sys.executable, __file__, "--peak", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        warn(f"the memory of {variant.name} is not known: {reason}")
        return math.nan
    return float(done.stdout.split()[-1])


def peak(job: dict) -> float:
    """Bytes of a model, its optimizer and two steps."""
    import torch

    args = argparse.Namespace(**job)
    if args.threads:
        torch.set_num_threads(args.threads)
    # written by the process that started this one
    shared = torch.load(
        Path(args.folder, "shared.pth"), map_location=args.device, weights_only=False
    )
    subject = plan(args.config, args.modules)[args.index]
    same = SameBoxes(shared["boxes"])

    def two_steps() -> None:
        detector = Detector(subject, args, shared["weights"])
        detector.ready(args.mode, args.amp_now)
        variant = Variant(detector, args.backend)
        with same.replay(detector):
            variant.step()
            variant.step()

    return harness.peak_memory(two_steps, args.device)


# --- files and tables ----------------------------------------------------------------------------

# rows that agree in these are of the same measurement, and the newer one takes the other's place
GROUP = ("config", "height", "width", "batch", "mode", "amp")
KEY = (*GROUP, "module", "frozen_stages", "backend")


def table(path: str | Path, **wanted) -> str:
    """The rows of a file as Markdown, a table for each mode and kind of AMP.

    Args:
        path: The file.
        **wanted: Values of columns, of the rows that are shown.
    """
    try:
        shown = harness.read(path, **wanted)
        groups: dict[tuple, list[dict]] = {}
        for row in harness.read(path):
            groups.setdefault(tuple(row[k] for k in GROUP), []).append(row)
        tables = [_one_table(rows, [r for r in rows if r in shown]) for rows in groups.values()]
        return "\n\n".join(filter(None, tables))
    except OSError as error:
        raise PreflightError(f"--table {path} cannot be read: {error.strerror}") from error
    except KeyError as error:
        raise PreflightError(
            f"--table {path} is no file of this tool: no column {error}"
        ) from error


def _one_table(rows: list[dict], shown: list[dict]) -> str:
    """Those of one group that are shown."""
    if not shown:
        return ""
    first = shown[0]
    threads = f", {first['threads']} threads" if first["device"] == "cpu" else ""
    amp = "float32" if first["amp"] == "off" else f"AMP in {first['amp']}"
    title = (
        f"**{first['mode']}, {amp}**: {Path(first['config'].rpartition('::')[2]).stem}, "
        f"{first['batch']} x {first['height']}x{first['width']}, {first['hardware']}{threads}, "
        f"PyTorch {first['torch']}, {first['date']}, commit {first['commit']}"
    )
    plain = {row["frozen_stages"]: row for row in rows if not row["backend"]}
    header = ["module", "implementation", "ms (p20 to p80)", "extra ms (p20 to p80)", "extra"]
    header += ["memory (MiB)", "saved (MiB)", "parameters"]
    lines = []
    for row in shown:
        base = plain.get(row["frozen_stages"], {})
        if row is base:  # the other plain ones are compared with the first, and it with none
            base = {} if row is rows[0] else rows[0]
        times = [row["note"], "", ""]
        if not row["note"]:
            ms = "{median_ms:.1f} ({p20_ms:.1f} to {p80_ms:.1f})"
            extra = "{extra_ms:+.2f} ({extra_p20_ms:+.2f} to {extra_p80_ms:+.2f})"
            numbers = {k: float(row[k]) for k in TIMES}
            times = [ms.format(**numbers), "", ""]
            if base:
                times[1:] = extra.format(**numbers), "{extra_percent:+.1f} %".format(**numbers)
        amounts = [_amount(row, base, k) for k in ("peak_mib", "saved_mib", "parameters")]
        kind = row["backend"] or f"frozen_stages={row['frozen_stages']}"
        lines.append([row["module"], kind, *times, *amounts])
    return f"{title}\n\n{harness.markdown(header, lines, 6)}"


def _amount(row: dict, base: Mapping, key: str) -> str:
    """A number, or how much more it is than in the row of the plain detector."""
    if not row[key]:
        return ""
    more = base.get(key)
    return f"{float(row[key]):,.0f}" if not more else f"{float(row[key]) - float(more):+,.0f}"


# --- command line --------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--modules",
        nargs="+",
        default=list(MODULES),
        metavar="MODULE",
        help="any plug-in of mmattn, as in tools/train.py --attention, in every block unless it "
        "says where: gc:ratio=4@c3-c5, gct@paper; default: " + " ".join(MODULES),
    )
    parser.add_argument("--config", default=CONFIG, help=f"a plain detector; default: {CONFIG}")
    parser.add_argument(
        "--size",
        nargs=2,
        type=_positive,
        default=[800, 1333],
        metavar=("HEIGHT", "WIDTH"),
        help="of the images, before they are padded; default: 800 1333",
    )
    parser.add_argument("--batch", type=_positive, default=2, help="images in a step; default: 2")
    parser.add_argument("--amp", nargs="+", choices=("off", "on"), default=["off"])
    parser.add_argument(
        "--modes", nargs="+", choices=(TRAIN, INFERENCE), default=[TRAIN, INFERENCE]
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=("auto", "reference", "eager", "triton"),
        default=["auto", "reference"],
        help="of mmattn.ops; default: auto reference",
    )
    parser.add_argument(
        "--runs", type=_positive, help="timed rounds after a warm-up; default: 5, on CUDA 30"
    )
    parser.add_argument("--threads", type=_positive, help="of the CPU; default: PyTorch's")
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="leave the peak memory out"
    )
    parser.add_argument(
        "--out",
        default=str(harness.RESULTS),
        metavar="DIR",
        help="where the CSV file lies, which is named after the conditions; rows of an earlier "
        "run stay, unless they are measured again; default: tools/benchmarks/results",
    )
    parser.add_argument("--table", metavar="FILE", help="print that file, measure nothing")
    parser.add_argument("--peak", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.runs = args.runs or (30 if args.device == "cuda" else 5)
    for name in ("amp", "modes", "backends"):
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    return args


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected an integer above 0, got {text!r}")
    return int(text)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with preflight.guard("detector.py"):
        if args.peak:
            print(peak(args.peak))
        elif args.table:
            print(table(args.table))
        else:
            run(args)


def run(args) -> None:
    """Measures into the file, and prints its tables."""
    import torch

    if not Path(args.out).is_dir():
        raise PreflightError(f"--out {args.out}: that folder does not exist")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise PreflightError("--device cuda: PyTorch finds no CUDA device")
    if "triton" in args.backends and args.device != "cuda":
        raise PreflightError("--backends triton needs --device cuda")
    if args.threads:
        torch.set_num_threads(args.threads)
    about = harness.conditions(args.device)
    path = Path(args.out, harness.file_name("detector", args.device, about))
    for rows in measure(args):
        harness.write(path, harness.merged(harness.read(path) if path.exists() else [], rows, KEY))
    say(f"{table(path)}\n\nwritten to {path}")


if __name__ == "__main__":
    main()
