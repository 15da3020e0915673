"""Which files are read, what is written, and that nothing is half written or run."""

import json
import os
import stat
import struct
import subprocess
import sys
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

import mmattn
from mmattn.checkpoints import CheckpointError, files

WEIGHTS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "a.half": torch.ones(2, dtype=torch.float16),
    "a.count": torch.tensor(3),
}
META = dict(mmattn_version="1", recognised="a test")


def save(path, thing):
    torch.save(thing, path)
    return str(path)


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_what_is_written_is_read_again(tmp_path, suffix):
    path = str(tmp_path / f"a{suffix}")
    files.write(path, WEIGHTS, META, classes=("cat", "dog"))
    content = files.read(path)
    assert content["meta"] == {**META, "dataset_meta": {"classes": ("cat", "dog")}}
    source = files.source(path)
    assert set(source.weights) == set(WEIGHTS)
    for name, value in WEIGHTS.items():
        assert source.weights[name].dtype == value.dtype
        assert torch.equal(source.weights[name], value)
    assert source.classes == ("cat", "dog")
    assert (source.container, source.others, source.meta) == ("state_dict", ["meta"], META)


def test_a_written_file_holds_plain_objects_only(tmp_path):
    path = tmp_path / "a.pth"
    weights = OrderedDict({"p": nn.Parameter(torch.ones(2)), "view": torch.zeros(1000, 4)[3:5]})
    files.write(str(path), weights, META)
    # without any class allowed beyond PyTorch's own
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    content = torch.load(path, weights_only=True)
    torch.serialization.add_safe_globals(allowed)
    assert type(content["state_dict"]) is dict
    assert {type(value) for value in content["state_dict"].values()} == {torch.Tensor}
    assert not content["state_dict"]["p"].requires_grad
    assert path.stat().st_size < 4000  # the view without what it is a view of


def test_tensors_that_share_memory(tmp_path):
    """safetensors refuses them, unless they are copied."""
    one = torch.arange(4.0)
    path = str(tmp_path / "a.safetensors")
    files.write(path, dict(one=one, same=one, turned=one.reshape(2, 2).T), {})
    loaded = safetensors.torch.load_file(path)
    assert torch.equal(loaded["turned"], one.reshape(2, 2).T)
    assert torch.equal(loaded["same"], one)


@pytest.mark.parametrize(
    ("content", "container", "others"),
    [
        (lambda w: dict(w), None, []),
        (lambda w: OrderedDict(w, epoch=3), None, ["epoch"]),
        (lambda w: dict(state_dict=w, optimizer={}, arch="a"), "state_dict", ["optimizer", "arch"]),
        (lambda w: dict(model=w, model_ema=w, epoch=1), "model", ["model_ema", "epoch"]),
        (
            lambda w: dict(state_dict=dict(w, note="text"), state_dict_ema=w),
            "state_dict",
            ["state_dict_ema", "note"],
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_the_forms_of_releases(tmp_path, content, container, others, prefix):
    weights = {prefix + name: value for name, value in WEIGHTS.items()}
    source = files.source(save(tmp_path / "a.pth.tar", content(weights)))
    assert list(source.weights) == list(WEIGHTS)
    assert (source.container, source.others) == (container, others)


def test_class_names_of_older_detectors(tmp_path):
    meta = dict(mmdet_version="0.6.0", config="model = 1", CLASSES=("a", "b"), epoch=3)
    source = files.source(save(tmp_path / "a.pth", dict(state_dict=WEIGHTS, meta=meta)))
    assert source.classes == ("a", "b")
    assert source.meta == dict(mmdet_version="0.6.0", config="model = 1")


@pytest.mark.parametrize("content", [{}, dict(epoch=3), dict(state_dict={}), dict(optimizer={})])
def test_a_file_without_weights(tmp_path, content):
    with pytest.raises(CheckpointError, match="holds no weights: expected tensors by name"):
        files.source(save(tmp_path / "a.pth", content))


def test_a_hostile_file_does_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = save(tmp_path / "a.pth", dict(state_dict=dict(WEIGHTS), optimizer=Hostile()))
    # PyTorch's switch for unsafe loading changes nothing
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        with pytest.raises(
            CheckpointError, match=r"holds \w+\.mkdir, .* so it is not read"
        ) as info:
            files.source(path)
    assert "\n" not in str(info.value)
    assert not (tmp_path / "harm").exists()


def header(length, text=b""):
    return struct.pack("<Q", length) + text


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>404</html>", header(2**62), header(5, b'{"a":'), None],
    ids=["empty", "html", "huge header", "broken header", "truncated"],
)
def test_a_damaged_safetensors_file(tmp_path, data):
    path = tmp_path / "a.safetensors"
    files.write(str(path), WEIGHTS, META)
    path.write_bytes(path.read_bytes()[:-3] if data is None else data)
    with pytest.raises(CheckpointError, match="is not a whole .safetensors file") as info:
        files.source(str(path))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("classes", ["cat,dog", "3", '["cat", 3]'])
def test_other_writers_may_have_a_key_of_that_name(tmp_path, classes):
    path = str(tmp_path / "a.safetensors")
    safetensors.torch.save_file(dict(WEIGHTS), path, metadata=dict(format="pt", classes=classes))
    source = files.source(path)
    assert source.classes == ()
    assert source.meta["format"] == "pt"


def test_a_missing_file_names_those_that_are_there(tmp_path):
    files.write(str(tmp_path / "there.safetensors"), WEIGHTS, META)
    with pytest.raises(
        CheckpointError, match=r"does not exist; in that folder: there\.safetensors"
    ):
        files.source(str(tmp_path / "a.pth"))
    with pytest.raises(CheckpointError, match="is a folder: name a file in it"):
        files.source(str(tmp_path))


def test_targets_that_are_refused(tmp_path):
    origin = save(tmp_path / "a.pth", WEIGHTS)
    (tmp_path / "link.pth").symlink_to(origin)
    (tmp_path / "b.pth").write_text("precious")
    (tmp_path / "folder.pth").mkdir()
    for target, said in [
        ("a.bin", r"a\.bin is expected to end in \.pth or \.safetensors"),
        ("gone/a.pth", "gone is not a folder"),
        ("folder.pth", "is a folder"),
        ("b.pth", "exists: name another file, or give --force"),
        ("a.pth", "is the file to convert itself"),
        ("link.pth", "is the file to convert itself"),
    ]:
        with pytest.raises(CheckpointError, match=said):
            files.check_target(str(tmp_path / target), origin)
    for target in ("a.pth", "link.pth"):
        with pytest.raises(CheckpointError, match="itself"):
            files.check_target(str(tmp_path / target), origin, force=True)
    files.check_target(str(tmp_path / "b.pth"), origin, force=True)
    files.check_target(str(tmp_path / "new.pth"), origin)


@pytest.mark.parametrize("suffix", files.SUFFIXES)
@pytest.mark.parametrize("failure", [OSError("no space left"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, suffix, failure):
    path = tmp_path / f"a{suffix}"
    path.write_text("before")

    def fail(_source, _target):
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError if isinstance(failure, OSError) else KeyboardInterrupt):
        files.write(str(path), WEIGHTS, META)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == [path.name]


def test_a_full_disk(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    part = tmp_path / f".a.pth.{os.getpid()}.part"
    part.symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"a\.pth cannot be written: "):
        files.write(str(tmp_path / "a.pth"), WEIGHTS, META)
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_others_may_read_what_is_written(tmp_path, suffix):
    before = os.umask(0o022)
    try:
        files.write(str(tmp_path / f"a{suffix}"), WEIGHTS, META)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / f"a{suffix}").stat().st_mode) == 0o644


@pytest.mark.parametrize("map_location", [None, "cpu", torch.device("cpu")])
def test_mmengine_loads_safetensors(tmp_path, map_location, capsys):
    mmattn.registry.MODELS.import_from_location()
    net = nn.Linear(3, 2)
    path = str(tmp_path / "a.safetensors")
    files.write(path, dict(weight=torch.ones(2, 3), bias=torch.zeros(2)), META)
    content = load_checkpoint(net, path, map_location, strict=True)
    assert "safetensors backend" in capsys.readouterr().out
    assert content["meta"] == META
    assert torch.equal(net.weight, torch.ones(2, 3))


@pytest.mark.parametrize(
    "path",
    ["https://host/a.safetensors", "s3://a.safetensors", "torchvision://a.safetensors", "a.pth"],
)
def test_other_sources_keep_their_loaders(path):
    mmattn.registry.MODELS.import_from_location()
    loader = CheckpointLoader._get_checkpoint_loader(path)
    assert loader.__name__ != "load_from_safetensors"


def test_the_header_is_text(tmp_path):
    """Nothing but names, shapes and strings stands before the numbers."""
    path = tmp_path / "a.safetensors"
    files.write(str(path), WEIGHTS, META, ("cat",))
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    parsed = json.loads(data[8 : 8 + length])
    assert parsed["__metadata__"] == {**META, "classes": '["cat"]'}
    assert set(parsed) - {"__metadata__"} == set(WEIGHTS)


def test_it_knows_no_models():
    """Not even torch is loaded before a file is read; nothing of mmdet ever is."""
    code = (
        "import sys, mmattn.checkpoints as c\n"
        "roots = lambda: {m.split('.')[0] for m in sys.modules}\n"
        "assert not roots() & {'torch', 'mmengine', 'mmcv', 'mmdet'}\n"
        "import torch\n"
        "c.convert({'conv1.weight': torch.ones(1), 'layer1.0.conv1.weight': torch.ones(1)})\n"
        "loaded = [m for m in sys.modules if m.startswith(('mmdet', 'mmattn.plugins'))]\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
