"""Checkpoints survive a full disk and a kill: what is left in the folder, and can it be read?"""

import errno
import multiprocessing
import os
import resource
import signal

import pytest
import torch
from mmengine.fileio import LocalBackend

from mmattn.checkpoints.files import CheckpointError, read
from tests.hooks.resumed_training import Losses, build

KEEP = dict(max_keep_ckpts=1)


def listed(folder):
    return {p.name for p in folder.iterdir() if p.is_file()}


def last(folder):
    return os.path.basename((folder / "last_checkpoint").read_text())


def trains(folder, full_at=None, monkeypatch=None, **keywords):
    """Trains, on a disk that is full at the given write of a checkpoint."""
    put, writes = LocalBackend.put, []

    def limited(self, content, path):
        writes.append(str(path))
        if len(writes) == full_at:
            with open(path, "wb") as file:
                file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, content, path)

    if monkeypatch:
        monkeypatch.setattr(LocalBackend, "put", limited)
    runner = build(folder, **keywords)
    runner.train()
    return runner, writes


def test_what_a_training_leaves(tmp_path):
    trains(tmp_path, length=3, checkpoint=KEEP)
    assert {n for n in listed(tmp_path) if not n.endswith(".py")} == {
        "epoch_3.pth",
        "last_checkpoint",
    }
    assert last(tmp_path) == "epoch_3.pth"
    assert read(str(tmp_path / "epoch_3.pth"))["meta"]["epoch"] == 3


@pytest.mark.parametrize("name", ["epoch_{}.pth", "e{}"])
def test_a_full_disk_leaves_the_previous(name, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError) as caught:
        trains(tmp_path, 2, monkeypatch, length=3, checkpoint=dict(KEEP, filename_tmpl=name))
    assert str(caught.value) == (
        f"{tmp_path / name.format(2)} cannot be written: No space left on device; the checkpoints "
        "before it are untouched: make room, and go on with --resume"
    )
    kept = {n for n in listed(tmp_path) if not n.endswith(".py")}
    assert kept == {name.format(1), "last_checkpoint"}
    assert last(tmp_path) == name.format(1)
    assert read(str(tmp_path / name.format(1)))["meta"]["epoch"] == 1


def test_a_pointer_that_does_not_fit(tmp_path, monkeypatch):
    put_text, calls = LocalBackend.put_text, []

    def limited(self, text, path, *rest):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        put_text(self, text, path, *rest)

    monkeypatch.setattr(LocalBackend, "put_text", limited)
    with pytest.raises(CheckpointError, match="last_checkpoint cannot be written: Disk quota"):
        trains(tmp_path, length=3, checkpoint=KEEP)
    assert last(tmp_path) == "epoch_1.pth"
    assert {"epoch_1.pth", "epoch_2.pth"} < listed(tmp_path)


def best_of(folder):
    return {n for n in listed(folder) if n.startswith("best")}


def test_the_best_checkpoint(tmp_path):
    keywords = dict(val=True, checkpoint=dict(KEEP, save_best="acc"))
    trains(tmp_path, length=3, **keywords)
    assert best_of(tmp_path) == {"best_acc_epoch_3.pth"}
    # the last one knows of it, so that a resumed run removes it for a better one
    info = read(str(tmp_path / "epoch_3.pth"))["message_hub"]["runtime_info"]
    assert info["best_ckpt"].endswith("best_acc_epoch_3.pth")
    build(tmp_path, length=4, resume=True, **keywords).train()
    assert best_of(tmp_path) == {"best_acc_epoch_4.pth"}


@pytest.mark.parametrize(
    ("full_at", "best"),
    [
        (5, {"best_acc_epoch_1.pth"}),
        # the last checkpoint, written again with the new best one's name
        (6, {"best_acc_epoch_1.pth", "best_acc_epoch_2.pth"}),
    ],
)
def test_a_full_disk_leaves_the_previous_best(full_at, best, tmp_path, monkeypatch):
    # epoch 1, best 1, epoch 1 again, epoch 2, best 2, epoch 2 again
    checkpoint = dict(KEEP, save_best="acc")
    with pytest.raises(CheckpointError):
        trains(tmp_path, full_at, monkeypatch, length=3, val=True, checkpoint=checkpoint)
    assert best_of(tmp_path) == best
    assert last(tmp_path) == "epoch_2.pth"
    assert read(str(tmp_path / "epoch_2.pth"))["meta"]["epoch"] == 2
    assert not [n for n in listed(tmp_path) if n.endswith(".part")]


def _killed(folder, at):
    if at == "limit":  # the system's own refusal, in the middle of a file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        put = LocalBackend.put

        def limited(self, content, path):  # from here on: logs would be cut as well
            size = len(content) // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            put(self, content, path)

        LocalBackend.put = limited
    else:
        target, name = dict(write=(LocalBackend, "put"), rename=(os, "replace"))[at]

        def die(*arguments):
            if at == "write":
                with open(arguments[2], "wb") as file:
                    file.write(arguments[1][:1000])
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(target, name, die)
    try:
        build(folder, length=2, resume=True, checkpoint=KEEP).train()
    except CheckpointError:
        os._exit(3)
    os._exit(0)


@pytest.mark.parametrize("at", ["write", "rename", "limit"])
def test_a_kill_leaves_the_previous(at, tmp_path):
    trains(tmp_path, length=1, checkpoint=KEEP)
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path, at))
    process.start()
    process.join(60)
    assert process.exitcode == (3 if at == "limit" else -signal.SIGKILL)
    assert last(tmp_path) == "epoch_1.pth"
    assert read(str(tmp_path / "epoch_1.pth"))["meta"]["epoch"] == 1
    assert not (tmp_path / "epoch_2.pth").exists()
    left = ".epoch_2.pth.part"
    assert (left in listed(tmp_path)) == (at != "limit")
    losses = Losses()
    build(tmp_path, length=2, resume=True, checkpoint=KEEP, hooks=[losses]).train()
    assert sorted(losses.values) == list(range(6, 12))
    assert left not in listed(tmp_path)
    assert last(tmp_path) == "epoch_2.pth"


def test_what_a_killed_run_did_not_remove(tmp_path, monkeypatch):
    """It dies between the new checkpoint and the removal of the old one."""
    import mmattn.hooks.safe_checkpoint_hook as module

    remove = module._remove
    monkeypatch.setattr(module, "_remove", lambda path: None)
    trains(tmp_path, length=2, checkpoint=KEEP)
    assert {"epoch_1.pth", "epoch_2.pth"} < listed(tmp_path)
    monkeypatch.setattr(module, "_remove", remove)
    build(tmp_path, length=3, resume=True, checkpoint=KEEP).train()
    assert [n for n in listed(tmp_path) if n.endswith(".pth")] == ["epoch_3.pth"]


def test_another_storage_is_mmengines(tmp_path, monkeypatch):
    class Remote(LocalBackend):
        pass

    runner = build(tmp_path, length=1)
    (hook,) = (h for h in runner.hooks if type(h).__name__ == "SafeCheckpointHook")
    saved = []
    monkeypatch.setattr(hook, "file_client_args", dict(backend="disk"))
    monkeypatch.setattr(runner, "save_checkpoint", lambda *a, **k: saved.append(a[1]))
    runner.train()
    assert saved == ["epoch_1.pth"]  # by its own name


def test_it_is_faithful_to_mmengine(tmp_path):
    """The same names are left and remembered as with mmengine's hook."""
    left = []
    for kind in ("CheckpointHook", "mmattn.SafeCheckpointHook"):
        folder = tmp_path / kind
        folder.mkdir()
        torch.manual_seed(0)
        checkpoint = dict(type=kind, interval=2, max_keep_ckpts=2, save_best=["acc"], save_begin=2)
        runner, _ = trains(folder, length=7, val=True, checkpoint=checkpoint)
        info = {
            key: str(value).replace(kind, "")
            for key, value in runner.message_hub.runtime_info.items()
            if "ckpt" in key or "best" in key
        }
        info["keep_ckpt_ids"] = info["keep_ckpt_ids"][-8:]
        names = {n for n in listed(folder) if n.endswith(".pth")}
        left.append((names, {k: v for k, v in info.items() if k != "best_score"}))
    assert left[0][0] == left[1][0]
    assert left[0][1].keys() == left[1][1].keys()


def test_an_evaluation_alone(tmp_path):
    build(tmp_path, val=True).val()
    assert not [n for n in listed(tmp_path) if n.endswith(".pth")]
