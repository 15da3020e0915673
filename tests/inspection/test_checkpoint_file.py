"""What is read from a checkpoint, what is refused, and what fits a model?"""

import io
import os
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MMLogger
from torch import nn

import mmattn
from mmattn.inspection import checkpoint_file
from mmattn.inspection.preflight import PreflightError


class Detector(nn.Module):
    def __init__(self, width=4, classes=3, extra=False):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))
        if extra:
            self.backbone.add_module("sge", nn.Linear(width, 1))
        self.head = nn.Linear(width, classes)


def content(model, **meta):
    return dict(state_dict=model.state_dict(), meta=dict(epoch=0, iter=5, **meta), message_hub={})


def save(path, thing):
    torch.save(thing, path)
    return str(path)


def test_what_mmengine_saves_is_read(tmp_path):
    buffer = HistoryBuffer()
    buffer.update(0.5)
    hub = dict(log_scalars=dict(loss=buffer), runtime_info=dict(lr=np.float64(0.1)))
    path = save(tmp_path / "a.pth", dict(state_dict={}, message_hub=hub))
    checkpoint_file.read(path)
    torch.serialization.clear_safe_globals()  # as other code in the process may
    read = checkpoint_file.read(path)["message_hub"]
    assert read["log_scalars"]["loss"].mean() == 0.5
    assert read["runtime_info"]["lr"] == 0.1


@pytest.mark.parametrize("home", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_arrays_of_either_numpy_are_read(tmp_path, home):
    path = tmp_path / "a.pth"
    save(path, dict(array=np.arange(3.0), scalar=np.int64(7)))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            for old in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
                data = data.replace(b"c" + old + b"\n", b"c" + home + b"\n")
            archive.writestr(name, data)
    read = checkpoint_file.read(str(path))
    assert read["array"].tolist() == [0, 1, 2]
    assert read["scalar"] == 7


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_is_refused_and_does_nothing(tmp_path, zipped):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = tmp_path / "a.pth"
    torch.save(dict(state_dict=Hostile()), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(PreflightError, match=r"holds \w+\.mkdir,.*not read"):
        checkpoint_file.read(str(path))
    assert not (tmp_path / "harm").exists()


def test_attributes_are_read_of_a_history_buffer_only(tmp_path):
    class Sly:
        def __reduce__(self):
            return getattr, (HistoryBuffer, "__init__")

    path = save(tmp_path / "a.pth", dict(state_dict=Sly()))
    with pytest.raises(PreflightError):
        checkpoint_file.read(path)


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "a.pth").write_text("<html>404</html>")
    with pytest.raises(
        PreflightError, match=r"is not a checkpoint.*16 bytes that start with b'<html"
    ):
        checkpoint_file.read(str(tmp_path / "a.pth"))
    (tmp_path / "empty.pth").write_text("")
    with pytest.raises(PreflightError, match="is not a checkpoint.*0 bytes"):
        checkpoint_file.read(str(tmp_path / "empty.pth"))
    with pytest.raises(PreflightError, match=r"does not exist; in that folder: .*a\.pth"):
        checkpoint_file.read(str(tmp_path / "b.pth"))
    with pytest.raises(PreflightError, match="expected to hold a dict"):
        checkpoint_file.read(save(tmp_path / "list.pth", [1]))


def test_every_truncation_is_noticed(tmp_path):
    whole = io.BytesIO()
    torch.save(content(Detector()), whole)
    data = whole.getvalue()
    for length in range(1, len(data), len(data) // 17):
        (tmp_path / "a.pth").write_bytes(data[:length])
        with pytest.raises(PreflightError, match="is incomplete|is not a checkpoint"):
            checkpoint_file.read(str(tmp_path / "a.pth"))


def test_the_older_format_is_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert checkpoint_file.read(str(tmp_path / "a.pth"))["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("a.pth", True),
        ("/a/b.pth", True),
        ("https://host/a.pth", False),
        ("torchvision://resnet50", False),
        ("open-mmlab://detectron/resnet50", False),
        ("open-mmlab:s3://a", False),
    ],
)
def test_local_paths_and_others(path, local):
    assert checkpoint_file.is_local(path) == local


@pytest.mark.parametrize("partly", [True, False])
def test_a_fitting_checkpoint_passes(partly):
    model = Detector()
    checkpoint_file.check_fit(model, content(Detector()), "a.pth", partly)
    wrapped = {f"module.{k}": v for k, v in Detector().state_dict().items()}
    checkpoint_file.check_fit(model, wrapped, "a.pth", partly)


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (
            Detector(classes=5),
            r"head\.weight is \(5, 4\) in the file and \(3, 4\).*number of classes",
        ),
        (Detector(width=8), r"backbone\.0\.weight is \(8, 3, 1, 1\).*another backbone or module"),
        (Detector(extra=True), r"no place for its backbone\.sge\.weight.*other modules"),
        (nn.Linear(2, 2), r"only 0 of the model's 8 weights are in it; it has weight, bias"),
    ],
)
def test_what_does_not_fit_is_named(saved, said):
    with pytest.raises(PreflightError, match=said) as info:
        checkpoint_file.check_fit(
            Detector(), content(saved, experiment_name="plain_20250101_000000"), "a.pth"
        )
    if "only" not in said:
        assert str(info.value).endswith("the config it was trained with, plain")


def test_a_module_that_the_checkpoint_lacks_is_named():
    with pytest.raises(PreflightError, match=r"lacks backbone\.sge\.weight, backbone\.sge\.bias;"):
        checkpoint_file.check_fit(Detector(extra=True), content(Detector()), "a.pth")


def test_fine_tuning_may_lack_weights_and_have_other_classes():
    for saved in (Detector(classes=5), Detector(extra=True)):
        checkpoint_file.check_fit(Detector(), content(saved), "a.pth", partly=True)
    checkpoint_file.check_fit(Detector(extra=True), content(Detector()), "a.pth", partly=True)
    with pytest.raises(PreflightError, match="another backbone"):
        checkpoint_file.check_fit(Detector(), content(Detector(width=8)), "a.pth", partly=True)


def test_a_prefix_that_is_missing_or_too_much_is_named():
    bare = Detector().backbone
    with pytest.raises(PreflightError, match=r"bare backbone belongs into model\.backbone"):
        checkpoint_file.check_fit(Detector(), content(bare), "a.pth", partly=True)
    with pytest.raises(PreflightError, match=r"add prefix='backbone\.'"):
        checkpoint_file.check_fit(bare, content(Detector()), "a.pth", partly=True)
    checkpoint_file.check_fit(bare, content(Detector()), "a.pth", partly=True, prefix="backbone.")


def test_the_newest_whole_checkpoint_of_a_training(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint_file.latest(".") is None
    for number in (9, 10, 100):
        save(tmp_path / f"iter_{number}.pth", content(Detector()))
    save(tmp_path / "best_coco_bbox_mAP_iter_200.pth", content(Detector()))
    # its folder was renamed since
    (tmp_path / "last_checkpoint").write_text("/gone/work_dir/iter_10.pth")
    assert checkpoint_file.latest(".")[0] == "iter_10.pth"
    (tmp_path / "last_checkpoint").unlink()
    assert checkpoint_file.latest(".")[0] == "iter_100.pth"
    (tmp_path / "iter_100.pth").write_bytes((tmp_path / "iter_100.pth").read_bytes()[:500])
    assert checkpoint_file.latest(".")[0] == "iter_10.pth"
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "iter_100.pth is incomplete" in err


@pytest.mark.parametrize("meta", [dict(config="import os"), dict(epoch=1), None])
def test_only_a_training_is_resumed(meta):
    wrong = dict(content(Detector()), meta=meta)
    if meta and "config" in meta:
        wrong["meta"] = dict(epoch=1, iter=1, **meta)
    with pytest.raises(PreflightError, match="only weights"):
        checkpoint_file.check_resumable(wrong, "a.pth")
    checkpoint_file.check_resumable(content(Detector()), "a.pth")


@pytest.mark.parametrize("arguments", [{}, dict(generator="paper", base_filter=True)])
def test_what_a_module_converts_fits(arguments):
    """A plain convolution's weight starts a DRConv2d, whose own weight has another shape."""
    plain, regional = Detector(), Detector()
    regional.backbone[0] = mmattn.DRConv2d(3, 4, 1, regions=2, **arguments)
    checkpoint_file.check_fit(regional, content(plain), "a.pth")
    checkpoint_file.check_fit(regional, content(plain), "a.pth", partly=True)
    with pytest.raises(PreflightError, match=r"DRConv2d expects .* \(4, 3, 1, 1\), got \(5, 3"):
        checkpoint_file.check_fit(regional, content(Detector(5)), "a.pth")
    # and what is not converted is still named
    with pytest.raises(PreflightError, match="head.weight is .5, 4. in the file"):
        checkpoint_file.check_fit(regional, content(Detector(classes=5)), "a.pth")


def test_the_check_reports_no_conversion(monkeypatch):
    """Modules report them when the weights count: when the run loads them."""
    records = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, "callHandlers", records.append)
    logger.info("before")  # loggers remember which levels are enabled
    model = Detector()
    model.backbone.append(mmattn.SE(4, ratio=2, identity_init=True))
    saved = {k: v for k, v in model.state_dict().items() if "gate_scale" not in k}
    checkpoint_file.check_fit(model, dict(state_dict=saved), "a.pth")
    assert [record.getMessage() for record in records] == ["before"]
    model.load_state_dict(saved)
    assert "gate_scale" in records[-1].getMessage()


def test_a_plain_weight_that_cannot_start_the_module():
    regional = Detector()
    regional.backbone[0] = mmattn.DRConv2d(3, 4, 1, regions=2, generator="paper")
    with pytest.raises(PreflightError, match="does not fit: .* set base_filter=True"):
        checkpoint_file.check_fit(regional, content(Detector()), "a.pth")
