"""First the inserted modules alone, then everything: in mmengine's Runner, step by step."""

import json
import re
import subprocess
import sys
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMSeparateDistributedDataParallel
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODELS
from torch import nn

import mmattn
from mmattn.inspection import checkpoint_file
from tests.hooks.frozen_training import BATCH, Images, Net, train
from tests.zoo import assert_close

REPO = Path(mmattn.__file__).parents[1]
NET = Net()
LEARNS = {name for name, parameter in NET.named_parameters() if parameter.requires_grad}
INSIDE = {n for n in LEARNS if n.startswith(("layer.3.", "conv.0."))}
# all but what the model itself has frozen
EVERYTHING = {name for name in NET.state_dict() if not name.startswith("stem.")}
LOOPS = {  # the switch, and what leads to it in twelve iterations
    "epochs": (6, dict(hook=dict(epochs=2))),
    "iters in an epoch": (4, dict(hook=dict(iters=4))),
    "iters": (6, dict(hook=dict(iters=6), by_epoch=False, length=12)),
}


def changed(before, after):
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def log(folder):
    (path,) = Path(folder).rglob("*.log")
    return [line for line in path.read_text().splitlines() if "mmattn: " in line]


@pytest.fixture(autouse=True)
def readable_checkpoints():
    checkpoint_file.allow_training_state()


@pytest.mark.parametrize("val", [False, True])
@pytest.mark.parametrize("loop", LOOPS)
def test_what_moves_in_each_phase(loop, val, tmp_path):
    """Evaluations in between change nothing."""
    switch, keywords = LOOPS[loop]
    runner, record = train(tmp_path, val=val, **keywords)
    for i, (before, after) in enumerate(pairwise(record.weights)):
        first = i < switch
        assert changed(before, after) == (INSIDE if first else EVERYTHING), i
        assert record.learning[i] == (INSIDE if first else LEARNS), i
        norms = {"stem.1", "layer.1", "adapter.1"} & record.training[i]
        assert norms == (set() if first else {"layer.1", "adapter.1"}), i
        assert {"layer.3", "conv.0", "layer", ""} <= record.training[i]
        # those that come in have no momentum from anywhere
        assert record.states[i] == (set() if i == 0 else INSIDE if i <= switch else LEARNS), i
    groups = runner.optim_wrapper.state_dict()["param_groups"]
    assert sum(len(group["params"]) for group in groups) == len(list(NET.parameters()))
    first, last = log(tmp_path)
    inside, outside = (
        sum(NET.state_dict()[name].numel() for name in names) for names in (INSIDE, LEARNS - INSIDE)
    )
    end = "epoch 2" if loop == "epochs" else f"iteration {switch}"
    assert first.endswith(
        f"mmattn: training only {inside} parameters in 2 modules (1 SE, 1 GCT) until {end} "
        f"is over; {outside} others and their BatchNorm statistics stand still"
    )
    assert last.endswith(f"mmattn: {end} is over: training everything now")


def reference(optimizer, settings, switch, steps, accumulate=1, max_norm=None):
    """Two plain optimizers, the second of which starts at the switch; nothing is frozen."""
    net = Net()
    halves = [INSIDE, LEARNS - INSIDE]
    optimizers = [
        optimizer([dict(params=[p], **settings(n)) for n, p in net.named_parameters() if n in half])
        for half in halves
    ]
    batches = [torch.stack([Images()[i]["images"] for i in range(j, j + BATCH)]) for j in (0, 4, 8)]
    for i in range(steps):
        net.train()
        active = optimizers[: 1 + (i >= switch)]
        if i < switch:
            for norm in (net.layer[1], net.adapter[1]):
                norm.eval()
        (net(batches[i % 3])["loss"] / accumulate).backward()
        if (i + 1) % accumulate == 0:
            if max_norm:
                groups = [g for o in active for g in o.param_groups]
                nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], max_norm)
            for one in active:
                one.step()
            net.zero_grad()
    return net.state_dict()


SGD = dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=0.1)
ADAMW = dict(type="AdamW", lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize(
    ("wrapper", "arguments"),
    [
        (dict(optimizer=SGD), {}),
        (dict(optimizer=SGD, clip_grad=dict(max_norm=0.1)), dict(max_norm=0.1)),
        (dict(optimizer=SGD, accumulative_counts=2), dict(accumulate=2)),
        (dict(optimizer=ADAMW), {}),
        (
            dict(optimizer=ADAMW, paramwise_cfg=dict(custom_keys={"conv": dict(decay_mult=0.0)})),
            dict(settings=lambda name: dict(weight_decay=0.0 if "conv" in name else 0.1)),
        ),
    ],
    ids=["SGD", "clip_grad", "accumulative_counts", "AdamW", "paramwise_cfg"],
)
def test_equals_a_second_optimizer_from_the_switch_on(wrapper, arguments, tmp_path):
    """Fresh state for those that come in, the old one for those that trained."""
    # an odd number of iterations, within an accumulation of two
    switch = 6 if "accumulate" in arguments else 5
    _, record = train(tmp_path, dict(iters=5), by_epoch=False, length=12, optim_wrapper=wrapper)
    assert [learning == LEARNS for learning in record.learning].index(True) == switch
    kind = dict(wrapper["optimizer"])
    cls = getattr(torch.optim, kind.pop("type"))
    settings = arguments.pop("settings", lambda name: {})
    expected = reference(lambda groups: cls(groups, **kind), settings, switch, 12, **arguments)
    for name, value in expected.items():
        assert_close(record.weights[-1][name], value, 1e-13, name)


SCHEDULE = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=8)]


@pytest.fixture(scope="module", params=["epochs", "iters"])
def uninterrupted(request, tmp_path_factory):
    """A training of four units, two of them with the modules alone, and its folder."""
    checkpoint_file.allow_training_state()
    folder = tmp_path_factory.mktemp("uninterrupted")
    unit = dict(hook={request.param: 2}, by_epoch=request.param == "epochs", ema=True)
    train(folder, param_scheduler=SCHEDULE, **unit)
    return folder, unit, "epoch_{}.pth" if unit["by_epoch"] else "iter_{}.pth"


@pytest.mark.parametrize("at", [1, 2, 3], ids=["before", "at the switch", "after"])
def test_resumes_in_either_phase(uninterrupted, at, tmp_path):
    """Weights, averaged weights and optimizer end as without the interruption, bit by bit."""
    folder, unit, name = uninterrupted
    start = str(folder / name.format(at))
    train(tmp_path, param_scheduler=SCHEDULE, load_from=start, resume=True, **unit)
    one, two = (checkpoint_file.read(str(f / name.format(4))) for f in (folder, tmp_path))
    for part in ("state_dict", "ema_state_dict"):
        assert not changed(one[part], two[part])
    assert one["optimizer"]["param_groups"] == two["optimizer"]["param_groups"]
    states = (checkpoint["optimizer"]["state"] for checkpoint in (one, two))
    for mine, other in zip(*(s.items() for s in states), strict=True):
        assert mine[0] == other[0]
        assert not changed(mine[1], other[1])
    assert ("training only" in log(tmp_path)[0]) == (at == 1)
    assert "is over: training everything" in log(tmp_path)[-1]


def test_momentum_of_an_earlier_training_is_dropped(tmp_path):
    """The hook came into the config later: what stood still does not jump at the switch."""
    train(tmp_path / "plain", length=1)
    resume = dict(load_from=str(tmp_path / "plain" / "epoch_1.pth"), resume=True)
    _, record = train(tmp_path / "hook", dict(epochs=2), length=3, **resume)
    assert record.states == [LEARNS] * 3 + [INSIDE] + [LEARNS] * 2
    assert changed(record.weights[0], record.weights[3]) == INSIDE


def test_gradients_that_are_there_already_are_not_used(tmp_path):
    class Leave(Hook):
        priority = "VERY_HIGH"

        def before_train(self, runner):
            for parameter in runner.optim_wrapper.optimizer.param_groups[0]["params"]:
                if parameter.requires_grad:
                    parameter.grad = torch.ones_like(parameter)

    _, record = train(tmp_path, dict(epochs=1), length=1, extra=Leave())
    assert changed(record.weights[0], record.weights[1]) == INSIDE


def test_averaged_weights_of_what_is_frozen_stand_still(tmp_path):
    _, record = train(tmp_path, dict(epochs=2), length=2, ema=True, val=True)
    checkpoint = checkpoint_file.read(str(tmp_path / "epoch_2.pth"))
    # EMAHook saves the averages as the weights
    assert changed(record.weights[0], checkpoint["state_dict"]) == INSIDE
    assert changed(record.weights[-1], checkpoint["state_dict"]) == INSIDE


@pytest.mark.parametrize("modules", [["adapter"], r"adapter.*"])
def test_chosen_modules_and_their_batchnorm(modules, tmp_path):
    _, record = train(tmp_path, dict(epochs=2, modules=modules), length=2)
    adapter = {name for name in NET.state_dict() if name.startswith("adapter.")}
    for before, after in pairwise(record.weights):
        assert changed(before, after) == adapter
    assert "in 1 modules (1 Sequential)" in log(tmp_path)[0]


def test_norm_eval_stays_the_configs_choice(tmp_path):
    _, record = train(tmp_path, dict(epochs=1), dict(norm_eval=True), length=2)
    assert not any({"layer.1", "adapter.1"} & training for training in record.training)
    assert changed(record.weights[3], record.weights[-1]) == LEARNS


def test_mixed_precision(tmp_path, monkeypatch):
    """AmpOptimWrapper, which mmengine keeps for GPUs, with the CPU's scaler and autocast."""
    amp = "mmengine.optim.optimizer.amp_optimizer_wrapper."
    monkeypatch.setattr(amp + "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp + "GradScaler", lambda **kwargs: torch.amp.GradScaler("cpu", **kwargs))
    wrapper = dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=dict(init_scale=256.0))
    wrapper["clip_grad"] = dict(max_norm=1.0)
    _, record = train(tmp_path, dict(epochs=2), dict(dtype=torch.float32), optim_wrapper=wrapper)
    assert changed(record.weights[0], record.weights[6]) == INSIDE
    assert changed(record.weights[6], record.weights[12]) == EVERYTHING


def test_the_training_ends_first(tmp_path):
    runner, record = train(tmp_path, dict(epochs=3), length=2)
    assert changed(record.weights[0], record.weights[-1]) == INSIDE
    assert {n for n, p in runner.model.named_parameters() if p.requires_grad} == LEARNS
    assert log(tmp_path)[-1].endswith("the others never train: epoch 2 is the last")


class Wrapped(BaseModel):
    """Any part that takes images."""

    def __init__(self, part):
        super().__init__()
        self.part = (MODELS.build(part) if isinstance(part, dict) else part).double()

    def forward(self, images, mode="loss"):
        out = self.part(images)
        return dict(loss=sum(x.square().mean() for x in (out if isinstance(out, tuple) else [out])))


def attached():
    plugin = dict(cfg=dict(type="ContextBlock", ratio=0.5), after=r"2")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    return mmattn.attach(net, [plugin])


def plugin(name, **arguments):
    return [dict(cfg=dict(type=f"mmattn.{name}", **arguments), position="after_conv3")]


RESNET = dict(type="mmdet.ResNet", depth=50, base_channels=16)


@pytest.mark.parametrize(
    ("part", "own", "modules"),
    [
        (
            dict(RESNET, plugins=plugin("SGE", groups=8), frozen_stages=1),
            r"layer[234]\.\d\.sge\..+",
            "13 SGE; 3 more have none that train",
        ),
        (
            dict(RESNET, conv_cfg=dict(type="mmattn.GCTConv2d")),
            r".*\.0\.(alpha|beta|gamma)",
            "53 GCT",
        ),
        (
            dict(
                RESNET, dcn=dict(type="mmattn.DRConv2d"), stage_with_dcn=(False,) * 2 + (True,) * 2
            ),
            r"layer[34]\.\d\.conv2\..+",
            "9 DRConv2d",
        ),
        (
            dict(type="mmattn.DRShuffleNetV2", widen_factor=0.5, drconv=dict(templates=2)),
            r"stage\d\.\d\.(masknet|branch2\.[05])\..+",
            "32 DRConv2d, 16 Conv2d",
        ),
        (
            dict(RESNET, type="mmattn.SKResNet", branch_groups=16),
            r"layer\d\.\d\.(conv2g|bn2g|conv_fc1|bn_fc1|conv_fc2)\..+",
            "48 Conv2d, 32 BatchNorm2d",
        ),
        (attached, r"2\.context_block\..+", "1 ContextBlock"),
    ],
    ids=["plug-in", "GCTConv2d", "DRConv2d", "DRShuffleNetV2", "SKResNet", "attach"],
)
def test_the_new_parameters_are_found(part, own, modules, tmp_path):
    model = Wrapped(part() if callable(part) else part)
    given = {n for n, p in model.named_parameters() if p.requires_grad}
    _, record = train(tmp_path, dict(iters=1), model, by_epoch=False, length=1)
    assert record.learning == [{n for n in given if re.fullmatch(r"part\." + own, n)}]
    assert f"({modules})" in log(tmp_path)[0]


@pytest.mark.filterwarnings("ignore:.*use_reentrant", "ignore:None of the inputs")
def test_checkpointed_activations(tmp_path):
    """mmengine's reentrant checkpoint, at a part whose input needs no gradient, and mmdet's."""
    two = dict(by_epoch=False, length=2, hook=dict(iters=2))
    _, plain = train(tmp_path / "plain", **two)
    net, needs = Net(), []
    net.stem.register_forward_hook(lambda stem, images, out: needs.append(out.requires_grad))
    parts = dict(activation_checkpointing=["stem", "layer"])
    _, record = train(tmp_path / "saved", model=net, cfg=parts, **two)
    assert needs == [False, False]  # where nothing trains, nothing is computed again
    assert not net.layer._forward_pre_hooks
    assert changed(record.weights[0], record.weights[2]) == INSIDE
    assert not changed(plain.weights[-1], record.weights[-1])
    backbone = Wrapped(dict(RESNET, with_cp=True, plugins=plugin("SE")))
    plain = deepcopy(backbone)
    for block in plain.modules():
        block.with_cp = False
    _, record = train(tmp_path / "with_cp", model=backbone, **two)
    _, plain = train(tmp_path / "without", model=plain, **two)
    assert len(changed(record.weights[0], record.weights[-1])) == 16 * 4
    assert not changed(plain.weights[-1], record.weights[-1])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_gets_no_gradient_is_named(tmp_path):
    class Inside(Net):
        def forward(self, images, mode="loss"):
            x = self.stem(images)
            x = torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=True)
            return dict(loss=self.conv(x).square().mean())

    train(tmp_path, dict(iters=2), Inside(), by_epoch=False, length=3)
    assert "4 of the parameters that train alone got no gradient" in log(tmp_path)[1]
    assert "(layer.3.fc.0.weight, layer.3.fc.0.bias, layer.3.fc.2.weight, ...)" in log(tmp_path)[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "either epochs or iters, got neither"),
        (dict(epochs=1, iters=5), "either epochs or iters, got epochs=1 and iters=5"),
        (dict(epochs=0), "epochs to be an integer above 0, got 0"),
        (dict(iters=1.5), "iters to be an integer above 0, got 1.5"),
        (dict(iters=True), "iters to be an integer above 0, got True"),
    ],
)
def test_bad_arguments(arguments, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        mmattn.FreezeExceptHook(**arguments)


@pytest.mark.parametrize(
    ("keywords", "error", "said"),
    [
        (dict(hook=dict(epochs=1, modules="adaptor")), ValueError, "modules='adaptor': .*adapter"),
        (dict(hook=dict(epochs=1, modules=["adapter", "necks"])), ValueError, "ends in 'necks'"),
        (dict(hook=dict(epochs=1, modules=3)), TypeError, "modules=3"),
        (dict(hook=dict(epochs=1, modules="stem")), ValueError, "in stem, got none.*frozen_stages"),
        (dict(hook=dict(epochs=1), by_epoch=False), TypeError, "by iterations.*give iters"),
        (
            dict(hook=dict(epochs=1), model=Wrapped(nn.Conv2d(3, 3, 1))),
            ValueError,
            "found no module of mmattn in the model",
        ),
    ],
)
def test_what_cannot_be_frozen(keywords, error, said, tmp_path):
    with pytest.raises(error, match=f"FreezeExceptHook.*{said}"):
        train(tmp_path, length=1, **keywords)


def two_processes(cases, folder):
    """The weights after each iteration, in two processes and in one on the joint batch."""
    two = folder / "two"
    two.mkdir()
    # without torchrun, whose start takes as long as the training
    command = [sys.executable, "-m", "tests.hooks.frozen_training", json.dumps(cases), str(two)]
    done = subprocess.run(command, cwd=REPO, stderr=subprocess.PIPE, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for name, (keywords, _) in cases.items():
        keywords.pop("cfg", None)
        _, one = train(folder / "one" / name, **keywords)
        weights = torch.load(two / name / "weights.pth", weights_only=True)
        for i, (mine, other) in enumerate(zip(one.weights, weights, strict=True)):
            for key, value in mine.items():
                assert_close(other[key], value, 1e-12, f"{name}, iteration {i}, {key}")
        switch = [learning == LEARNS for learning in one.learning].index(True)
        assert changed(weights[0], weights[switch]) == INSIDE
        assert changed(weights[switch], weights[-1]) == LEARNS


IN_TWO = dict(model=dict(norm_eval=True))  # batch statistics would be those of half a batch
ITERS = dict(IN_TWO, by_epoch=False, hook=dict(iters=3), length=6)


def test_two_processes_equal_one(tmp_path):
    """Under DDP of each kind: gradients are averaged in both phases."""
    cases = {
        "epochs": (dict(IN_TWO, hook=dict(epochs=2)), {}),
        "unused": (ITERS, dict(find_unused_parameters=True, broadcast_buffers=False)),
        "own communication": (ITERS, {}),
        "static": (ITERS, dict(static_graph=True)),
        "accumulate": (
            dict(ITERS, optim_wrapper=dict(accumulative_counts=2), length=8),
            dict(gradient_as_bucket_view=True),
        ),
    }
    two_processes(cases, tmp_path)


@pytest.mark.slow
def test_two_processes_equal_one_compiled(tmp_path):
    cfg = dict(compile=dict(backend="aot_eager"))
    two_processes({"compile": (dict(ITERS, cfg=cfg), {})}, tmp_path)


def separate(model):
    wrapper = MMSeparateDistributedDataParallel.__new__(MMSeparateDistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model
    return wrapper


@pytest.mark.parametrize("wrapper", [nn.DataParallel, separate])
def test_wrappers_that_cannot_follow(wrapper, tmp_path):
    class Wrap(Hook):
        priority = "VERY_HIGH"

        def before_train(self, runner):
            runner.model = wrapper(runner.model)

    with pytest.raises(TypeError, match=r"not wrapped, or is by MMDist.*got (Data|MMSep)\w+, "):
        train(tmp_path, dict(epochs=1), extra=Wrap())


def test_two_optimizers(tmp_path):
    class Two(Hook):
        priority = "VERY_HIGH"

        def before_train(self, runner):
            runner.optim_wrapper = OptimWrapperDict(a=runner.optim_wrapper, b=runner.optim_wrapper)

    with pytest.raises(TypeError, match="expects one optimizer, got a, b"):
        train(tmp_path, dict(epochs=1), extra=Two())
