"""tools/convert_checkpoint.py as a user runs it: what it says, writes and refuses."""

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.models import ResNet

from mmattn.checkpoints import files
from mmattn.inspection import checkpoint_file, config_file
from mmattn.inspection.build import build_model
from tests.official_resnet import container
from tests.zoo import scramble

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"
spec = importlib.util.spec_from_file_location("convert_checkpoint", TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

CONFIG = """
_base_ = "BASE"
model = dict(
    backbone=dict(base_channels=8, init_cfg=None, plugins=[
        dict(cfg=dict(type="mmattn.SE", ratio=4), position="after_conv3")]),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=8),
    rpn_head=dict(in_channels=8, feat_channels=8),
)
""".replace("BASE", str(config_file.find("mmdet::rpn/rpn_r50_fpn_1x_coco.py")))
SE = [dict(cfg=dict(type="mmattn.SE", ratio=4), position="after_conv3")]


@pytest.fixture(scope="module")
def weights():
    net = scramble(ResNet(50, base_channels=8, plugins=SE))
    fc = {"fc.weight": torch.ones(5, 256), "fc.bias": torch.ones(5)}
    return {**net.state_dict(), **fc}


@pytest.fixture
def folder(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    torch.save(container(weights), "official.pth.tar")
    Path("config.py").write_text(CONFIG)
    return tmp_path


def refused(argv, said, capsys, status=1):
    before = sorted(os.listdir())
    with pytest.raises(SystemExit) as info:
        tool.main(argv)
    err = capsys.readouterr().err
    assert info.value.code == status
    assert re.search(said, err.splitlines()[-1]), err
    if status == 1:
        assert err.count("\n") == 1
        assert err.startswith("convert_checkpoint.py: ")
    assert sorted(os.listdir()) == before


@pytest.mark.once  # in this process, on both stacks: the tests below
def test_from_the_command_line(folder, weights):
    """The whole way, into a file of the other format."""
    done = subprocess.run(
        [sys.executable, TOOL, "official.pth.tar", "new.safetensors", "--config", "config.py"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        f"read:       official.pth.tar, {len(weights)} weights under 'state_dict'",
        "not taken:  epoch, arch, best_acc1, optimizer",
        "recognised: PytorchInsight: ResNet-50 with SE",
        f"kept:       {len(weights) - 2}",
        "renamed:    0",
        "dropped:    2",
        "            the classifier: fc.weight",
        "left over:  0",
        f"compared:   with the backbone of config.py, {len(weights) - 2} weights",
        "missing:    0",
        "unexpected: 0",
        "use it:     model.backbone.init_cfg=dict(type='Pretrained', checkpoint='new.safetensors')",
    ):
        assert f"\n{line}\n" in f"\n{done.stdout}", done.stdout
    assert "The names fit already, no conversion is needed: model.backbone" in done.stdout

    start = dict(type="Pretrained", checkpoint="new.safetensors")
    net = ResNet(50, base_channels=8, plugins=SE, init_cfg=start)
    net.init_weights()
    for name, value in net.state_dict().items():
        assert torch.equal(value, weights[name]), name
    meta = files.read("new.safetensors")["meta"]
    assert meta["converted_from"] == "official.pth.tar"
    assert set(meta) == {"mmattn_version", "converted_from", "recognised"}


def test_without_a_target_nothing_is_written(folder, capsys):
    tool.main(["official.pth.tar"])
    assert "written:    nothing; name a file as DST" in capsys.readouterr().out
    assert sorted(os.listdir()) == ["config.py", "official.pth.tar"]


def test_as_a_detector(folder, capsys, weights):
    tool.main(["official.pth.tar", "new.pth", "--as", "detector"])
    assert "load_from=new.pth" in capsys.readouterr().out
    content = files.read("new.pth")
    assert set(content["state_dict"]) == {f"backbone.{n}" for n in weights if "fc." not in n[:3]}
    # what tools/train.py checks before it starts
    model = build_model(config_file.load("config.py"))
    checkpoint_file.check_fit(model, content, "new.pth", partly=True)


def test_what_is_left_over(folder, capsys, weights):
    odd = {"layer1.0.odd.weight": torch.ones(2), "layer1.1.odd.weight": torch.ones(2)}
    torch.save({**weights, **odd}, "odd.pth")
    refused(
        ["odd.pth", "new.pth"], "^.*2 of the weights in odd.pth have no place.*leftover", capsys
    )
    tool.main(["odd.pth", "new.pth", "--allow-leftover"])
    out = capsys.readouterr().out
    assert "left over:  2\n            layer1.0.odd.weight (2 such)\n" in out
    assert not [n for n in files.read("new.pth")["state_dict"] if "odd" in n]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("model.backbone.plugins=[]", "64 weights have no place there, layer1.0.se.fc.0.weight"),
        (
            "model.backbone.base_channels=16",
            r"weights have another shape there, conv1.weight is \(8, 3, 7, 7\), there \(16, 3",
        ),
        ("model.backbone.depth=101", "weights of that model are not in it, layer3.6.conv1.weight"),
    ],
)
def test_a_config_that_does_not_fit(folder, capsys, option, said):
    argv = ["official.pth.tar", "new.pth", "--config", "config.py", "--cfg-options", option]
    refused(argv, f"does not fit the backbone of config.py, .*{said}", capsys)


def test_what_a_config_has_no_place_for_is_left_out_when_told(folder, capsys):
    argv = ["official.pth.tar", "new.pth", "--config", "config.py", "--allow-leftover"]
    tool.main([*argv, "--cfg-options", "model.backbone.plugins=[]"])
    assert "unexpected: 64" in capsys.readouterr().out
    assert not [n for n in files.read("new.pth")["state_dict"] if ".se." in n]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--config", "gone.py"], "config gone.py does not exist"),
        (["--config", "config.py", "--cfg-options", "model.neck.odd=1"], "cannot be built: .*odd"),
        (
            [
                "--config",
                "config.py",
                "--cfg-options",
                "model.backbone.plugins.0.cfg.type=mmattn.E",
            ],
            "'mmattn.E', which is not registered|'mmattn.E' is not registered",
        ),
    ],
)
def test_a_config_that_cannot_be_built(folder, capsys, argv, said):
    refused(["official.pth.tar", *argv], said, capsys)


def test_files_that_are_no_weights(folder, capsys):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, ("harm",)

    torch.save(dict(state_dict=Hostile()), "hostile.pth")
    torch.save([1], "list.pth")
    torch.save({"features.0.weight": torch.ones(1)}, "vgg.pth")
    Path("page.pth").write_text("<html>Sign in</html>")
    whole = Path("official.pth.tar").read_bytes()
    Path("cut.pth").write_bytes(whole[: len(whole) // 2])
    for name, said in {
        "gone.pth": "checkpoint gone.pth does not exist; in that folder: ",
        "https://host/a.pth": "checkpoint https://host/a.pth is not a local file: download it",
        "hostile.pth": r"holds \w+\.mkdir, which is no weight and could run code, so it is not",
        "list.pth": "is expected to hold a dict of weights, but holds list",
        "vgg.pth": "vgg.pth: expected one of the known releases, got 1 weights.*features.0",
        "page.pth": "is not a checkpoint: expected a file written by torch.save, got 20 bytes",
        "cut.pth": "is incomplete",
    }.items():
        refused([name, "new.pth"], said, capsys)
    assert not os.path.exists("harm")


def test_a_target_that_exists(folder, capsys):
    Path("new.pth").write_text("precious")
    # said before the file is read: it does not exist
    refused(["gone.pth", "new.pth"], "new.pth exists: name another file, or give --force", capsys)
    assert Path("new.pth").read_text() == "precious"
    tool.main(["official.pth.tar", "new.pth", "--force"])
    assert files.read("new.pth")["state_dict"]
    refused(["new.pth", "new.pth", "--force"], "is the file to convert itself", capsys)
    refused(["official.pth.tar", "new.bin"], r"expected to end in \.pth or \.safetensors", capsys)


def test_when_no_conversion_is_needed(folder, capsys, weights):
    """mmengine reads a file as it is, or its state_dict; and nothing in it may be left over."""
    for content, fits in [
        (weights, True),
        (dict(state_dict=weights), True),
        (dict(model=weights), False),
        ({**weights, "layer1.0.odd.weight": torch.ones(1)}, False),
    ]:
        torch.save(content, "a.pth")
        with contextlib.suppress(SystemExit):
            tool.main(["a.pth"])
        assert ("The names fit already" in capsys.readouterr().out) == fits


def test_an_ema_copy_is_named(folder, capsys, weights):
    torch.save(dict(state_dict=weights, state_dict_ema=weights), "timm.pth")
    tool.main(["timm.pth"])
    assert "not taken:  state_dict_ema; state_dict_ema: an EMA copy" in capsys.readouterr().out


def test_class_names_travel_with_a_detector(folder, capsys, weights):
    model = build_model(config_file.load("config.py"))
    state = {f"roi_head.{n}" if "rpn" in n else n: v for n, v in model.state_dict().items()}
    torch.save(dict(state_dict=state, meta=dict(CLASSES=("cat", "dog"), config="1")), "old.pth")
    tool.main(["old.pth", "new.pth"])
    assert files.read("new.pth")["meta"]["dataset_meta"] == {"classes": ("cat", "dog")}
    assert "config" not in files.read("new.pth")["meta"]
    assert "note:" not in capsys.readouterr().out
    tool.main(["old.pth", "backbone.pth", "--as", "backbone"])
    assert "dataset_meta" not in files.read("backbone.pth")["meta"]


def test_an_old_detector(folder, capsys):
    """Its names in groups, what was done to values, and what no renaming can do."""
    model = build_model(config_file.load("config.py"))
    heads = {
        "bbox_head.fc_cls.weight": torch.arange(3.0)[:, None],
        "bbox_head.fc_cls.bias": torch.arange(3.0),
        "bbox_head.fc_reg.weight": torch.arange(12.0)[:, None],
        "bbox_head.fc_reg.bias": torch.arange(12.0),
    }
    state = {n.replace("bbox_head.rpn", "rpn_head.rpn"): v for n, v in model.state_dict().items()}
    torch.save(dict(state_dict={**state, **heads}), "old.pth")
    tool.main(["old.pth", "new.pth"])
    out = capsys.readouterr().out
    assert "recognised: PytorchInsight on MMDetection 0.x: Faster R-CNN, ResNet-50 with SE" in out
    assert "renamed:    4\n            bbox_head.* -> roi_head.bbox_head.* (4 such)\n" in out
    assert "changed:    4\n            the background's row from first to last: roi_head." in out
    assert "note:       before version 2.0" in out
    written = files.read("new.pth")["state_dict"]
    assert written["roi_head.bbox_head.fc_cls.bias"].tolist() == [1, 2, 0]
    assert written["roi_head.bbox_head.fc_reg.bias"].tolist() == [*range(4, 12)]


def test_usage(folder, capsys):
    refused(["a.pth", "--cfg-options", "a=1"], "--cfg-options belongs to --config", capsys, 2)
    refused(["a.pth", "--as", "neck"], "invalid choice: 'neck'", capsys, 2)
    refused([], "the following arguments are required: SRC", capsys, 2)
