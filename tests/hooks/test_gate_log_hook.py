"""The statistics of gates: what is logged is what happened, and the training does not notice."""

import copy
import json
import math
import os
import random
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook, LoggerHook
from mmengine.model import BaseModel
from torch import nn
from torch._dynamo import register_backend
from torch.utils.checkpoint import checkpoint

import mmattn
from mmattn.checkpoints.files import allow_training_state
from mmattn.hooks import GateLogHook, gate_log_hook
from mmattn.plugins.maps import AttentionMap, describes
from tests.hooks.frozen_training import Net, train

ITERATIONS = dict(by_epoch=False, length=4)
REPO = Path(mmattn.__file__).parents[1]
GATE = [f"gates/{layer}/channel_gate/" for layer in ("layer.3", "conv.0")]


@pytest.fixture(autouse=True)
def readable_checkpoints():
    allow_training_state()


class Says(nn.Module):
    """Says the same whatever comes in; counts how often it is asked."""

    def __init__(self, *maps, factor=1.0):
        super().__init__()
        self.maps, self.asked, self.dtypes = maps, 0, []
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return x * self.factor.to(x.dtype)

    @describes
    def attention(self, x):
        self.asked += 1
        self.dtypes.append(x.dtype)
        return list(self.maps)


class Mean(Says):
    """Its gate is the mean of what comes in."""

    @describes
    def attention(self, x):
        super().attention(x)
        return [AttentionMap("gate", "channel", x.mean((2, 3)), bounds=(None, None))]


class Chain(BaseModel):
    """Modules one after the other, on maps of four channels."""

    def __init__(self, run=None, amp=False, **modules):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3)
        self.stem.weight.data.copy_(torch.randn(4, 3, 3, 3, generator=generator))
        self.stem.bias.data.zero_()
        self.backbone = nn.ModuleDict(modules)
        self.run = run or (lambda module, x: module(x))
        self.amp = amp

    def init_weights(self):
        """They are as given."""

    def forward(self, images, mode="loss"):
        amp = torch.autocast("cpu", torch.bfloat16) if self.amp else nullcontext()
        with amp:
            x = self.stem(images.to(self.stem.weight.dtype))
            for module in self.backbone.values():
                x = self.run(module, x)
        return dict(loss=x.float().square().mean())


def logged(folder):
    """The hook's lines, by step, without the iteration that each has."""
    found = {}
    for path in sorted(Path(folder).glob("*/vis_data/scalars.json")):
        for line in map(json.loads, path.read_text().splitlines()):
            if any(key.startswith("gates/") for key in line):
                step = line.pop("step")
                assert line.pop("gates/iteration") == step
                assert step not in found
                found[step] = line
    return found


def text(folder):
    (path,) = Path(folder).rglob("*.log")
    return path.read_text()


def warnings_of(folder):
    return [
        line.partition("mmattn: ")[2] for line in text(folder).splitlines() if "mmattn: G" in line
    ]


def watch(folder, model=None, hook=None, **keywords):
    """Trains with the hook; returns what it has logged."""
    hook = hook or GateLogHook(interval=2)
    train(folder, model=model or Net(), extra=hook, **(ITERATIONS | keywords))
    return logged(folder)


# --- what is logged ------------------------------------------------------------------------------


class Spy(Hook):
    """What the gates are in every iteration, by the equations of the papers."""

    priority = "HIGHEST"

    def __init__(self):
        self.gates = {}

    def before_train(self, runner):
        model = runner.model

        def of_se(module, args, _):
            (x,) = args
            squeezed = x.mean((2, 3))
            weights = [p.detach() for p in module.parameters()]
            hidden = (squeezed @ weights[0].flatten(1).T + weights[1]).relu()
            gate = (hidden @ weights[2].flatten(1).T + weights[3]).sigmoid()
            self.gates[runner.iter + 1, GATE[0]] = gate.detach()

        def of_gct(module, args, _):
            (x,) = args
            s = (x.square().sum((2, 3), keepdim=True) + module.eps).sqrt() * module.alpha
            s = s / (s.square().mean(1, keepdim=True) + module.eps).sqrt() * module.gamma
            self.gates[runner.iter + 1, GATE[1]] = (1 + (s + module.beta).tanh()).detach()

        model.layer[3].register_forward_hook(of_se)
        model.conv[0].register_forward_hook(of_gct)


def test_the_values(tmp_path):
    spy = Spy()
    train(tmp_path, extra=[spy, GateLogHook(interval=2)], **ITERATIONS)
    found = logged(tmp_path)
    assert list(found) == [2, 4]
    tags = {f"{gate}{stat}" for gate in GATE for stat in ("mean", "std", "saturated", "neutral")}
    for step, line in found.items():
        assert set(line) == tags
        for gate, highest, neutral in (GATE[0], 1, 0.5), (GATE[1], 2, 1):
            values = spy.gates[step, gate].flatten().tolist()
            mean = sum(values) / len(values)
            assert line[f"{gate}mean"] == pytest.approx(mean, rel=1e-6)
            variance = sum((v - mean) ** 2 for v in values) / len(values)
            assert line[f"{gate}std"] == pytest.approx(variance**0.5, rel=1e-6)
            ends = sum(v <= 0.01 * highest or v >= 0.99 * highest for v in values)
            assert line[f"{gate}saturated"] == pytest.approx(ends / len(values))
            near = sum(abs(v - neutral) <= 0.01 * highest for v in values)
            assert line[f"{gate}neutral"] == pytest.approx(near / len(values))
    assert found[2] != found[4]
    assert "gates/" not in text(tmp_path)


def gate(values, kind="channel", **about):
    values = torch.tensor(values)
    values = values.view(1, -1) if kind == "channel" else values.view(1, 1, 1, -1)
    return AttentionMap("gate", kind, values, **about)


def weights(*rows, bounds=(0, 1)):
    return AttentionMap(
        "mask", "weights", torch.tensor(rows)[None, :, None], "detail", bounds=bounds
    )


def regions(*numbers, count=4):
    return AttentionMap(
        "regions", "regions", torch.tensor(numbers).view(1, 2, -1), "detail", count=count
    )


NAN = math.nan
OF_MAPS = {
    "ends of the range": (
        gate([0.0, 0.02, 0.03, 1.97, 1.98, 1.0, 1.01, 1.02], bounds=(0, 2), neutral=1),
        dict(mean=0.87875, saturated=3 / 8, neutral=3 / 8),
    ),
    "a neutral 0": (
        gate([0.0, -0.009, 0.02, 5.0], "spatial", role="term", neutral=0),
        dict(mean=1.25275, neutral=2 / 4),
    ),
    "an open end": (gate([0.0, 1.0], bounds=(0, None)), dict(mean=0.5, std=0.5)),
    "not a number": (
        gate([NAN, 1.0], bounds=(0, 2), neutral=1),
        dict(mean=NAN, std=NAN, saturated=0, neutral=0.5),
    ),
    "weights": (
        weights([0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]), dict(entropy=0.75),
    ),
    "one position": (weights([1.0]), {}),
    "weights that are no shares": (
        weights([-1.0, 3.0], bounds=(None, None)), dict(mean=1, std=2),
    ),
    "regions": (regions(0, 0, 3, 3), dict(entropy=0.5, used=2)),
    "all in one region": (regions(1, 1, 1, 1), dict(entropy=0, used=1)),
    "a single region": (regions(0, 0, count=1), {}),
    "shares": (
        AttentionMap("shares", "shares", torch.tensor([[0.2, 0.8], [0.4, 0.6]]), "detail"),
        dict(mean_0=0.3, mean_1=0.7),
    ),
    "shares of channels": (
        AttentionMap("shares", "shares", torch.tensor([[[0.2, 0.6], [0.8, 0.4]]]), "detail"),
        dict(mean_0=0.4, mean_1=0.6),
    ),
    "distances": (
        AttentionMap("apart", "distances", torch.tensor([[[0.0, 2.0], [4.0, 0.0]]]), "detail"),
        dict(mean=3),
    ),
    "a part of a gate": (gate([0.5], role="detail"), {}),
}  # fmt: skip


def test_of_each_kind_of_map(tmp_path):
    modules = {name.replace(" ", "-"): Says(one) for name, (one, _) in OF_MAPS.items()}
    line = watch(tmp_path, Chain(**modules))[4]
    for name, (one, expected) in OF_MAPS.items():
        start = f"gates/{name.replace(' ', '-')}/{one.name}/"
        found = {k.removeprefix(start): v for k, v in line.items() if k.startswith(start)}
        if "std" not in expected and "mean" in expected and one.kind in ("channel", "spatial"):
            assert found.pop("std") > 0
        assert found == pytest.approx(expected, nan_ok=True), name
    (said,) = warnings_of(tmp_path)
    silent = [n.replace(" ", "-") for n, (_, expected) in OF_MAPS.items() if not expected]
    assert f"heard nothing of 3 of {len(OF_MAPS)} modules (backbone.{silent[0]}, " in said
    assert all(f"backbone.{name}" in said for name in silent)


def test_which_are_logged(tmp_path):
    def model():
        maps = [gate([v], bounds=(0, 1)) for v in (0.1, 0.2, 0.6, 0.9)]
        layer1 = nn.Sequential(
            nn.Sequential(nn.Identity(), Says(maps[0])), nn.Sequential(nn.Identity(), Says(maps[1]))
        )
        return Chain(layer1=layer1, layer2=nn.Sequential(Says(maps[2])), stem=Says(maps[3]))

    cases = [
        (dict(layers=".*layer2.*"), {"layer2.0": 0.6}),
        (dict(layers=["layer1.0.1", "stem"]), {"layer1.0.1": 0.1, "stem": 0.9}),
        (dict(per="stage"), {"layer1.1": 0.15, "layer2.0": 0.6, "stem": 0.9}),
        (
            dict(per="both"),
            {"layer1.0.1": 0.1, "layer1.1.1": 0.2, "layer1.1": 0.15, "layer2.0": 0.6, "stem": 0.9},
        ),
    ]
    for number, (keywords, expected) in enumerate(cases):
        hook = GateLogHook(interval=4, stats=["mean"], **keywords)
        found = watch(tmp_path / str(number), model(), hook)
        means = {f"gates/{name}/gate/mean": value for name, value in expected.items()}
        assert found[4] == pytest.approx(means), keywords


def test_names_and_stages_as_in_detectors():
    stage = gate_log_hook._stage
    assert stage("layer1.0.conv1.gct") == "layer1.gct"
    assert stage("neck.fpn_convs.0.attention") == "neck.fpn_convs.0.attention"
    assert stage("stages.2.blocks.1.se") == "stages.2.se"
    assert stage("bbox_head.attention") == "bbox_head.attention"


def test_the_batch_is_the_whole_and_as_in_the_step(tmp_path):
    """A BatchNorm in a gate: of one image, or in evaluation, the gate would be another."""
    torch.manual_seed(0)
    module = mmattn.SRM(4)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    means = []

    def note(module, args, y):
        ratio = (y / args[0]).detach().mean((2, 3))  # the gate itself
        means.append(ratio.mean().item())

    module.register_forward_hook(note)
    found = watch(tmp_path, Chain(srm=module), GateLogHook(interval=1, stats=["mean"]))
    values = [line["gates/srm/channel_gate/mean"] for line in found.values()]
    assert values == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_an_activation_checkpoint_is_counted_once(reentrant, tmp_path):
    module = Mean(factor=2.0)

    def run(part, x):
        if reentrant is None:
            return part(part(x))
        again = checkpoint(part, x, use_reentrant=reentrant)
        return checkpoint(part, again, use_reentrant=reentrant)

    plain = watch(tmp_path / "plain", Chain(run=lambda m, x: m(m(x)), module=Mean(factor=2.0)))
    found = watch(tmp_path / "kept", Chain(run=run, module=module))
    # in two of four iterations, two calls of one module
    assert module.asked == 4
    assert found == plain


def test_a_module_of_several_levels_has_their_mean(tmp_path):
    module, seen = Mean(factor=0.5), []
    module.register_forward_hook(lambda m, args, y: seen.append(args[0].mean().item()))
    model = Chain(run=lambda part, x: part(part(x)), module=module)
    found = watch(tmp_path, model, GateLogHook(interval=4))
    assert found[4]["gates/module/gate/mean"] == pytest.approx(sum(seen[-2:]) / 2, rel=1e-5)


def test_a_module_that_is_given_more_than_a_map(tmp_path):
    """As DRShuffleNetV2 does it: one guide for two convolutions."""
    conv = mmattn.DRConv2d(4, 4, 1, regions=2, shared_guide=True)
    calls = []

    def run(part, x):
        guide = torch.zeros(len(x), 2, *x.shape[2:])
        guide[:, 1, :, : x.shape[3] // 2] = 1
        calls.append(guide)
        return part(x, guide=guide) if len(calls) % 2 else part(x, guide)

    found = watch(tmp_path, Chain(run=run, conv=conv), GateLogHook(interval=1, stats=["used"]))
    assert [line["gates/conv/regions/used"] for line in found.values()] == [2] * 4


def test_mixed_precision(tmp_path):
    torch.manual_seed(0)
    says, se, seen = Says(), mmattn.SE(4, ratio=2), []
    for parameter in se.parameters():
        nn.init.normal_(parameter)

    def note(module, args, y):
        (x,) = args
        assert x.dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            seen.append((module(x.detach().float()) / x.detach().float()).mean().item())

    model = Chain(amp=True, says=says, se=se)
    handle = se.register_forward_hook(lambda *args: handle.remove() or note(*args))
    found = watch(tmp_path, model, GateLogHook(interval=1, stats=["mean"]))
    assert says.dtypes == [torch.float32] * 4
    assert found[1]["gates/se/channel_gate/mean"] == pytest.approx(seen[0], rel=1e-5)


# --- the training does not notice ----------------------------------------------------------------


class Draws(Hook):
    """The state of all random number generators after each iteration, and the gradients."""

    priority = "LOWEST"

    def __init__(self):
        self.states = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        numpy = np.random.get_state()[1].tobytes()
        self.states.append((random.getstate(), numpy, torch.get_rng_state().tolist()))
        self.listening = [n for n, m in runner.model.named_modules() if m._forward_hooks]


def everything():
    torch.manual_seed(0)
    modules = {}
    for name in ("SE", "ECA", "SRM", "GCT", "CBAM", "BAM", "SimAM", "TripletAttention", "SNL"):
        small = dict(ratio=2) if name in ("SE", "CBAM", "BAM") else {}
        modules[name.lower()] = getattr(mmattn, name)(4, **small)
    modules |= {
        "sge": mmattn.SGE(4, groups=2),
        "gc": mmattn.GC(4, ratio=2),
        "nonlocal": mmattn.NonLocal(4, ratio=2),
        "drconv": mmattn.DRConv2d(4, 4, 3, padding=1, regions=2),
        "condconv": mmattn.CondConv2d(4, 4, 3, padding=1),
        "dropout": nn.Dropout(0.5),
    }
    for module in modules.values():
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    return modules


def test_the_same_training_bit_for_bit(tmp_path):
    runs = {}
    for name, hooks in ("without", []), ("with", [GateLogHook(interval=1, per="both")]):
        draws = Draws()
        _, recorder = train(
            tmp_path / name, model=Chain(**everything()), extra=[draws, *hooks], **ITERATIONS
        )
        runs[name] = recorder.weights, draws.states
        assert draws.listening == []
    (before, random_before), (after, random_after) = runs.values()
    assert random_before == random_after
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert not all(torch.equal(after[0][key], after[-1][key]) for key in old)
    heard = {tag.split("/")[1] for tag in logged(tmp_path / "with")[1]}
    assert heard >= {*everything()} - {"dropout"}


def test_listeners_are_there_only_when_it_is_time(tmp_path):
    counts = []

    class Look(Hook):
        priority = "LOWEST"

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            counts.append(len(runner.model.layer[3]._forward_hooks))

    train(tmp_path, extra=[Look(), GateLogHook(interval=2)], **ITERATIONS)
    assert counts == [0, 1, 0, 1]


# --- when ----------------------------------------------------------------------------------------


def test_the_iterations_of_the_logger(tmp_path):
    """It counts within an epoch of three iterations."""

    class Often(Hook):
        def before_run(self, runner):
            (logger,) = (h for h in runner.hooks if isinstance(h, LoggerHook))
            logger.interval, logger.ignore_last = 2, False

    train(tmp_path, extra=[Often(), GateLogHook(interval=None)], length=2)
    losses = [
        line["step"]
        for path in tmp_path.rglob("scalars.json")
        for line in map(json.loads, path.read_text().splitlines())
        if "loss" in line
    ]
    assert list(logged(tmp_path)) == losses == [2, 3, 5, 6]


def test_a_resumed_training(tmp_path):
    whole = watch(tmp_path / "whole", length=8)
    checkpoint = str(tmp_path / "whole/iter_4.pth")
    resumed = watch(tmp_path / "resumed", length=8, load_from=checkpoint, resume=True)
    assert list(whole) == [2, 4, 6, 8]
    assert resumed == {step: whole[step] for step in (6, 8)}


def test_accumulated_gradients(tmp_path):
    keywords = dict(optim_wrapper=dict(accumulative_counts=2))
    assert list(watch(tmp_path, **keywords)) == [2, 4]


def test_a_training_that_is_too_short(tmp_path):
    assert watch(tmp_path, hook=GateLogHook()) == {}
    (said,) = warnings_of(tmp_path)
    assert said == "GateLogHook logs nothing: interval=50, and the training ends after iteration 4"


# --- where ---------------------------------------------------------------------------------------


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    backends = [dict(type="TensorboardVisBackend"), dict(type="LocalVisBackend")]
    found = watch(tmp_path, visualizer=dict(type="Visualizer", vis_backends=backends))
    (path,) = tmp_path.rglob("events.out.*")
    events = EventAccumulator(str(path))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("gates/")]
    assert set(tags) == {*found[4], "gates/iteration"}
    for tag in found[4]:
        points = {event.step: event.value for event in events.Scalars(tag)}
        assert points == pytest.approx({step: line[tag] for step, line in found.items()})


def test_other_processes_compute_nothing_unless_they_are_asked(tmp_path, monkeypatch):
    class SyncBatchNorm(nn.Identity):
        """Named as those that talk to the other processes."""

    alone, together = Says(gate([0.5])), Says(gate([0.5]))
    together.norm = SyncBatchNorm()
    monkeypatch.setattr(gate_log_hook, "get_rank", lambda: 1)
    assert watch(tmp_path, Chain(alone=alone, together=together)) == {}
    assert (alone.asked, together.asked) == (0, 2)
    assert not warnings_of(tmp_path)


def in_two_processes(rank, folder):
    """Trains under DDP a module that talks to the other process, and one that does not."""
    os.environ["LOCAL_RANK"] = str(rank)
    # mmengine's own start asks for a GPU
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", None, 2, rank)

    class SyncBatchNorm(nn.Identity):
        pass

    class Joint(Mean):
        @describes
        def attention(self, x):
            self.asked += 1
            mean = x.mean((2, 3))
            torch.distributed.all_reduce(mean)
            return [AttentionMap("gate", "channel", mean / 2)]

    parts = dict(joint=Joint(factor=0.5), own=Mean(factor=0.5), se=mmattn.SE(4, ratio=2))
    parts["joint"].norm = SyncBatchNorm()
    cfg = dict(model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None))
    weights = []
    for name, hook in ("without", []), ("with", [GateLogHook(interval=1)]):
        model = Chain(**copy.deepcopy(parts))
        out = f"{folder}/{name}"
        _, record = train(out, model=model, world=2, extra=hook, cfg=cfg, **ITERATIONS)
        weights.append(record.weights)
        assert [part.asked for part in (model.backbone["joint"], model.backbone["own"])] == [
            4 * bool(hook),
            4 * bool(hook) * (rank == 0),
        ]
    for old, new in zip(*weights, strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path):
    code = (
        "import sys, torch; from tests.hooks.test_gate_log_hook import in_two_processes as work;"
        "torch.multiprocessing.start_processes(work, sys.argv[1:], 2, start_method='fork')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(found := logged(tmp_path / "with")) == [1, 2, 3, 4]
    assert {tag.split("/")[1] for tag in found[1]} == {"joint", "own", "se"}


@pytest.fixture
def compilations():
    """The graphs that the backend 'counted' has got, and how often they ran."""
    found = dict(compiled=0, run=0)

    def counted(graph, inputs):
        found["compiled"] += 1

        def run(*arguments):
            found["run"] += 1
            return graph.forward(*arguments)

        return run

    torch.compiler.reset()
    yield counted, found
    torch.compiler.reset()


def test_a_compiled_part(tmp_path, compilations):
    """It would not call a listener: it runs as written while one listens."""
    backend, found = compilations
    part = nn.Sequential(Mean(factor=0.5))
    part.compile(backend=backend)
    line = watch(tmp_path, Chain(part=part))
    assert set(line) == {2, 4}
    assert found == dict(compiled=1, run=2)


def test_a_compiled_step_on_an_older_pytorch(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.compiler, "set_stance")
    model, ran = Chain(module=Mean(factor=0.5)), []

    def compiled(*args, **kwargs):
        ran.append(True)
        return type(model).train_step(model, *args, **kwargs)

    model.train_step = compiled
    assert set(watch(tmp_path, model)) == {2, 4}
    assert len(ran) == 2
    assert model.train_step is compiled


@pytest.mark.slow
def test_a_compiled_training(tmp_path, compilations):
    """It is not compiled more often, and computes the same up to rounding."""
    backend, found = compilations
    register_backend(backend)
    weights = []
    for name, hook in ("without", []), ("with", [GateLogHook(interval=3)]):
        cfg = dict(compile=dict(backend="counted"))
        _, recorder = train(tmp_path / name, extra=hook, cfg=cfg, by_epoch=False, length=6)
        weights.append((recorder.weights, dict(found)))
        found.update(compiled=0, run=0)
        torch.compiler.reset()
    (before, count_before), (after, count) = weights
    assert list(logged(tmp_path / "with")) == [3, 6]
    assert count["compiled"] == count_before["compiled"] > 0
    assert 0 < count["run"] < count_before["run"]
    for old, new in zip(before, after, strict=True):
        for key in old:
            torch.testing.assert_close(old[key], new[key])


# --- what is refused -----------------------------------------------------------------------------


def test_a_model_without_modules(tmp_path):
    with pytest.raises(
        ValueError, match=r"^GateLogHook: .*no inserted module .* got a plain model"
    ):
        watch(tmp_path, Chain(conv=nn.Conv2d(4, 4, 1)))


def test_layers_that_match_none(tmp_path):
    with pytest.raises(ValueError, match=r"GateLogHook: layer 'layer\.4' .* mean layer\.3"):
        watch(tmp_path, hook=GateLogHook(layers="layer.4"))


def test_one_statistic_may_be_a_name():
    assert GateLogHook(stats="mean").stats == ("mean",)


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        (dict(interval=0), ValueError, "interval to be an integer above 0, got 0"),
        (dict(interval=True), ValueError, "interval to be an integer above 0, got True"),
        (dict(stats=["mean", "median"]), ValueError, "one of 'mean', .* got 'median'"),
        (dict(stats="median"), ValueError, "one of 'mean', .* got 'median'"),
        (dict(stats=[]), TypeError, r"stats as one of 'mean', .*'used' or a list .* got \[\]"),
        (dict(stats=3), TypeError, "stats as one of 'mean', .*'used' or a list of these, got 3"),
        (dict(per="block"), ValueError, "per to be one of 'layer', 'stage', 'both', got 'block'"),
        (dict(layers=3), TypeError, "layers as a name, .* got 3"),
        (dict(layers=[]), TypeError, "layers as a name"),
        (dict(layers=["a", None]), TypeError, "layers as a name"),
    ],
)
def test_bad_arguments(keywords, error, words):
    with pytest.raises(error, match=f"^GateLogHook expects .*{words}"):
        GateLogHook(**keywords)


def test_a_module_that_was_not_called_is_named_once(tmp_path):
    model = Chain(used=Says(gate([0.5])))
    model.unused = Says(gate([0.5]))
    assert set(watch(tmp_path, model)) == {2, 4}
    (said,) = warnings_of(tmp_path)
    assert re.match(r"GateLogHook heard nothing of 1 of 2 modules \(unused\): ", said)
