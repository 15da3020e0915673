"""The benchmark of whole detectors times equal work, and nothing that is wrong."""

import importlib
import math
import subprocess
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# a quarter of the width; most of its step are heads
TINY = """
_base_ = "mmattn::demo/faster-rcnn_r50w16_fpn_600it_shapes.py"
model = dict(
    roi_head=dict(bbox_head=dict(fc_out_channels=16)),
    train_cfg=dict(rpn_proposal=dict(max_per_img=30), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(max_per_img=30)),
)
"""
SGE = "sge:groups=16@c3-c5"


@pytest.fixture
def detector(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools/benchmarks")
    return importlib.import_module("detector")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(TINY)
    return str(path)


@pytest.fixture
def run(detector, tiny, tmp_path):
    def call(*arguments: str):
        common = ["--config", tiny, "--size", "64", "80", "--batch", "1", "--no-memory"]
        detector.main([*common, "--runs", "2", "--out", str(tmp_path), *arguments])
        (path,) = tmp_path.glob("*.csv")
        return path, detector.harness.read(path)

    return call


@pytest.fixture
def pair(detector, tiny):
    """A plain detector, and one that computes something else."""

    def build(module="sge:groups=16,identity_init=False"):
        args = types.SimpleNamespace(device="cpu", size=[64, 80], batch=1)
        first, second = detector.plan(tiny, [module])
        plain = detector.Detector(first, args)
        plain.standardize()
        return plain, detector.Detector(second, args, plain.weights())

    return build


def failure(detector, capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as error:
        detector.main(list(arguments))
    assert error.value.code == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("detector.py:")]
    return line


def test_a_run(run, capsys, detector):
    path, rows = run("--modules", SGE, "--amp", "off", "on")
    assert path.name.startswith("detector-cpu-")
    shown = capsys.readouterr().out
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        assert row["note"] == ""
        assert 0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        ratio = 1 + float(row["extra_percent"]) / 100
        assert float(row["ratio"]) == pytest.approx(ratio, abs=2e-4)
        assert (row["saved_mib"] != "") == (row["mode"] == "train")
        assert row["mmdet"].split()[-1][0].isdecimal()
    groups = [rows[i : i + 3] for i in range(0, 12, 3)]
    for (plain, auto, reference), mode, amp in zip(
        groups,
        ["train", "train", "inference", "inference"],
        ["off", "bfloat16"] * 2,
        strict=True,
    ):
        assert {row["mode"] for row in (plain, auto, reference)} == {mode}
        assert {row["amp"] for row in (plain, auto, reference)} == {amp}
        assert [r["backend"] for r in (plain, auto, reference)] == ["", "auto", "reference"]
        assert auto["module"] == "SGE:groups=16@c3-c5"
        assert auto["modules"] == "13"  # 4, 6 and 3 blocks
        assert int(auto["parameters"]) - int(plain["parameters"]) == 13 * 2 * 16
        assert f"{float(auto['median_ms']):.1f} ({float(auto['p20_ms']):.1f} to" in shown
        extra = f"| {float(reference['extra_percent']):+.1f} %"
        assert extra in shown
    saved = [float(row["saved_mib"]) for row in groups[0]]
    assert saved[0] < saved[1]
    assert "**train, float32**: tiny, 1 x 64x80" in shown
    assert "**inference, AMP in bfloat16**" in shown
    assert detector.table(path) in shown
    some = detector.table(path, mode="train", backend="auto")
    assert some.count("SGE:groups=16@c3-c5") == 2
    assert "+416 |" in some  # against a plain row that is not shown


def test_measured_again(run):
    _, before = run("--modules", SGE, "--modes", "inference")
    _, after = run("--modules", "se", "--modes", "inference", "--runs", "1")
    names = [(row["module"], row["backend"], row["runs"]) for row in after]
    assert names == [
        ("plain", "", "1"),
        ("SGE:groups=16@c3-c5", "auto", "2"),
        ("SGE:groups=16@c3-c5", "reference", "2"),
        ("SE", "auto", "1"),
        ("SE", "reference", "1"),
    ]
    assert after[1] == before[1]


def test_each_module_has_a_plain_detector_with_its_frozen_stages(detector):
    found = detector.plan(detector.CONFIG, ["SGE", "gc@c3-c5", "gct@paper"])
    assert [(one.label, one.frozen_stages) for one in found] == [
        ("plain", 0),
        ("plain", 1),
        ("SGE", 0),
        ("GC@c3-c5", 1),
        ("GCT@paper", 0),
    ]
    assert [found.index(one.plain) for one in found[2:]] == [0, 1, 0]
    backbone = found[2].cfg.model.backbone
    assert backbone.plugins == [
        dict(
            cfg=dict(type="mmattn.SGE", identity_init=True),
            stages=(True, True, True, True),
            position="after_conv3",
        )
    ]
    assert found[4].cfg.model.backbone.conv_cfg.type == "mmattn.GCTConv2d"
    assert all(one.cfg.model.backbone.init_cfg is None for one in found)  # no download


def test_extra_is_paired(detector):
    """A slow round that hits both is no cost of the module."""
    subject = types.SimpleNamespace(plain=None, label="plain", frozen_stages=0)
    frozen = types.SimpleNamespace(plain=None, label="plain", frozen_stages=1)
    other = types.SimpleNamespace(plain=subject, label="SE", frozen_stages=0)
    common = dict(mode="train", amp="on", inserted={}, parameters=3)
    first, plain, variant = (
        detector.Variant(types.SimpleNamespace(subject=s, **common), b, saved=2**20)
        for s, b in ((frozen, ""), (subject, ""), (other, "auto"))
    )
    args = types.SimpleNamespace(device="cpu", config="c", size=[1, 2], batch=1, runs=4)
    times = {first.name: [1, 1, 1, 1], plain.name: [10, 90, 20, 10], variant.name: [11, 92, 21, 13]}
    row = detector._row(args, variant, [first, plain, variant], times)
    assert (row["median_ms"], row["extra_ms"], row["ratio"]) == ("17.000", "1.500", "1.1000")
    assert (row["extra_percent"], row["saved_mib"], row["peak_mib"]) == ("10.000", "1.0", "")


@pytest.mark.parametrize("mode", ["train", "inference"])
def test_all_work_on_the_same_boxes(pair, detector, mode):
    seen = []
    models = pair()
    for one in models:
        one.ready(mode, "off")
        head = one.model.roi_head.bbox_roi_extractor
        head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
        for key, other in (models[0].model.state_dict()).items():
            assert torch.equal(one.model.state_dict()[key], other)
    plain, module = models
    same = detector.SameBoxes()
    with same.record(plain):
        plain.step()
    with same.replay(module):
        module.step()
    assert torch.equal(seen[0], seen[1])
    module.step()
    assert seen[0].shape != seen[2].shape or not torch.equal(seen[0], seen[2])  # it can fail


def test_steps_do_not_drift(pair):
    for one in pair():
        one.ready("train", "off")
        before = one.weights()
        assert one.model.backbone.bn1.training  # in the config of the demo
        losses = []
        parse = one.model.parse_losses

        def noted(given, losses=losses, parse=parse):
            losses.append(parse(given)[0].item())
            return parse(given)

        one.model.parse_losses = noted
        assert one.check() == ""
        for _ in range(2):
            one.step()
        learnt = dict(one.model.named_parameters())
        assert all(torch.equal(before[name], p) for name, p in learnt.items())
        assert losses == [losses[0]] * 3
        one.ready("inference", "off")
        after = one.weights()
        assert all(torch.equal(before[k], after[k]) for k in before)


def test_maps_have_the_size_of_trained_ones(pair):
    plain, _ = pair()
    plain.ready("inference", "off")
    image = plain.model.data_preprocessor(plain.batch, False)["inputs"]
    with torch.no_grad():
        for value in plain.model.backbone(image):
            assert 0.3 < value.std() < 5
    assert plain.model.backbone.layer1[0].bn3.weight.all()


class Scaled:
    """A gradient scaler on a CPU that begins far too high."""

    def __new__(cls, base):
        class Wrapper(base):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.loss_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)

            def backward(self, loss, **kwargs):
                self.loss_scaler.scale(1e6 * loss).backward(**kwargs)

            def step(self, **kwargs):
                self.loss_scaler.step(self.optimizer, **kwargs)
                self.loss_scaler.update()

        return Wrapper


def test_the_scale_of_the_loss_settles_first(pair, detector, monkeypatch):
    wrapper = Scaled(detector._amp_on_cpu())
    monkeypatch.setattr(detector, "_amp_on_cpu", lambda: wrapper)
    one = pair()[1]
    one.ready("train", "on")
    assert one.check() == ""
    scale = one.optimizer.loss_scaler.get_scale()
    assert scale < 2.0**127
    one.step()
    assert one.optimizer.loss_scaler.get_scale() == scale  # no step is left out any more


@pytest.fixture
def spoil(monkeypatch):
    """Has SGE compute something else in one implementation."""
    from mmattn.plugins import SGE

    forward = SGE.forward

    def patch(backend, function):
        from mmattn.ops import get_backend

        def spoilt(module, x):
            y = forward(module, x)
            return function(y) if get_backend() == backend else y

        monkeypatch.setattr(SGE, "forward", spoilt)

    return patch


@pytest.mark.parametrize("mode", ["train", "inference"])
@pytest.mark.parametrize(
    ("function", "note"),
    [
        (lambda y: y * math.nan, "not finite"),
        (lambda y: 2 * y, "the maps differ from those of the plain detector by"),
    ],
)
def test_wrong_results_are_not_timed(run, spoil, capsys, mode, function, note):
    spoil("reference", function)
    _, rows = run("--modules", SGE, "--modes", mode)
    assert note in rows[2]["note"]
    assert rows[2]["median_ms"] == ""
    assert rows[1]["note"] == ""
    assert rows[1]["median_ms"]
    assert f"| {rows[2]['note']} |" in capsys.readouterr().out


def test_a_module_without_gradient_is_not_timed(run, spoil):
    spoil("auto", lambda y: y.detach())
    _, rows = run("--modules", SGE, "--modes", "train")
    assert rows[1]["note"] == "backbone.layer2.0.sge gets no gradient"
    assert rows[2]["note"] == ""


def test_memory_is_that_of_a_process_of_its_own(
    pair, detector, tiny, tmp_path, capsys, monkeypatch
):
    arguments = ["--config", tiny, "--size", "64", "80", "--modules", "sge:groups=16"]
    args = detector.parse_args([*arguments, "--threads", "1"])
    plain, module = pair("sge:groups=16")
    module.ready("train", "off")
    detector._share(str(tmp_path), plain, detector.SameBoxes())
    variant = detector.Variant(module, "reference")
    taken = detector._peak_of(variant, args, 1, str(tmp_path))
    # its weights, their gradients and momentum are some of it
    assert 3 * 4 * module.parameters < taken < 2**30
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    assert math.isnan(detector._peak_of(variant, args, 1, str(tmp_path)))
    reason = "the memory of SGE:groups=16, reference is not known: exit status -9"
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modules", "nothing"], "--modules knows no module 'nothing'"),
        (["--modules", "sge:groop=3"], "SGE has no argument 'groop'; did you mean groups?"),
        (["--modules", "sge:groups=48"], "SGE:groups=48: the config cannot be built:"),
        (["--modules", "simam"], "which SimAM cannot be"),
        (["--out", "/nowhere"], "--out /nowhere: that folder does not exist"),
        (["--backends", "triton"], "--backends triton needs --device cuda"),
        (["--table", "/nowhere.csv"], "--table /nowhere.csv cannot be read: No such file"),
        (
            ["--config", "mmattn::sge/faster-rcnn_r50-sge-c2-c5_fpn_1x_coco.py"],
            "has modules of mmattn already",
        ),
        (["--config", "mmdet::_base_/models/faster-rcnn_r50_fpn.py"], "has no optim_wrapper"),
        (["--config", "mmdet::_base_/default_runtime.py"], "has no model"),
        (["--size", "8", "9", "--batch", "1"], "cannot run on an image of 8x9: ValueError"),
    ],
)
def test_what_cannot_be_done(detector, tiny, tmp_path, capsys, arguments, message):
    common = ["--config", tiny, "--out", str(tmp_path), "--no-memory"]
    assert message in failure(detector, capsys, *common, *arguments)
    assert not list(tmp_path.iterdir())


def test_no_gpu(detector, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "PyTorch finds no CUDA device" in failure(detector, capsys, "--device", "cuda")


def test_a_table_of_something_else(detector, capsys, tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    assert "is no file of this tool: no column 'config'" in failure(
        detector, capsys, "--table", str(path)
    )
