"""A training that is stopped and resumed ends as one that was not, bit for bit."""

import json
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

import mmattn
from mmattn.checkpoints.files import allow_training_state
from mmattn.hooks._seeded_batches import SeededBatch
from tests.hooks.resumed_training import EXACTLY, Losses, Pairs, Stop, build

REPO = Path(mmattn.__file__).parents[1]
CASES = {
    # keywords of build, and before which iteration it stops
    "epochs": (dict(), 14),
    "workers": (dict(data=dict(workers=2)), 14),
    "workers that end with the epoch": (dict(data=dict(workers=1, persistent=False)), 14),
    "evaluations": (dict(val=True, data=dict(workers=1)), 14),
    "within an epoch": (dict(checkpoint=dict(by_epoch=False, interval=4)), 11),
    "at the end of an epoch": (dict(checkpoint=dict(by_epoch=False, interval=6)), 8),
    "iterations": (dict(by_epoch=False, length=12, checkpoint=dict(interval=5)), 7),
    "iterations, workers": (
        dict(by_epoch=False, length=12, checkpoint=dict(interval=5), data=dict(workers=2)), 7
    ),
    "iterations, evaluations": (
        dict(by_epoch=False, length=12, checkpoint=dict(interval=5), val=True), 7
    ),
    "iterations, finite sampler": (
        dict(
            by_epoch=False, length=16, checkpoint=dict(interval=5),
            data=dict(workers=1, sampler=dict(type="DefaultSampler", shuffle=True)),
        ),
        12,
    ),
    "iterations, own batches": (
        dict(
            by_epoch=False, length=12, checkpoint=dict(interval=5),
            data=dict(workers=1, batch_sampler=dict(type=Pairs)),
        ),
        7,
    ),
}  # fmt: skip


def weights(runner):
    return {k: v.clone() for k, v in runner.model.state_dict().items()}


def log(folder, pattern="mmattn: resuming"):
    lines = [line for path in Path(folder).rglob("*.log") for line in path.open()]
    return [line.split("mmattn: ", 1)[1].strip() for line in lines if pattern in line]


def end(runner):
    """Ends the workers: those of an iterator that is left to the garbage collection hang on."""
    runner.train_dataloader._iterator = None
    vars(getattr(runner.train_loop, "dataloader_iterator", runner))["_iterator"] = None


def straight(folder, hooks=(EXACTLY,), **keywords):
    folder.mkdir()
    losses = Losses()
    runner = build(folder, hooks=[*hooks, losses], **keywords)
    runner.train()
    end(runner)
    return weights(runner), losses.values


def stopped(folder, at, hooks=(EXACTLY,), **keywords):
    folder.mkdir(exist_ok=True)
    runner = build(folder, hooks=[*hooks, Stop(at)], **keywords)
    with pytest.raises(KeyboardInterrupt) as caught:
        runner.train()
    traceback.clear_frames(caught.tb)
    end(runner)


def resumed(folder, hooks=(EXACTLY,), **keywords):
    losses = Losses()
    runner = build(folder, hooks=[*hooks, losses], resume=True, **keywords)
    runner.train()
    end(runner)
    return weights(runner), losses.values


# those that read no data by processes of their own show what a stack may change
EVERYWHERE = {"epochs", "within an epoch", "iterations"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in EVERYWHERE else pytest.mark.once) for n in CASES]
)
def test_a_resumed_training_is_the_same(name, tmp_path):
    keywords, at = CASES[name]
    expected, losses = straight(tmp_path / "straight", **keywords)
    stopped(tmp_path / "stopped", at, **keywords)
    # in between, something else draws
    torch.manual_seed(5)
    found, after = resumed(tmp_path / "stopped", **keywords)
    assert after.items() <= losses.items()
    assert max(after) == max(losses)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    (line,) = log(tmp_path / "stopped")
    assert line.endswith("; exactly")
    # nothing was trained twice
    assert re.search(rf"after .*iteration {min(after)} of {max(losses) + 1}; exactly", line)


@pytest.mark.once
def test_without_the_hook_it_is_not(tmp_path):
    """So the tests above can fail."""
    keywords = dict(hooks=[], data=dict(workers=1))
    _, losses = straight(tmp_path / "straight", **keywords)
    stopped(tmp_path / "stopped", 14, **keywords)
    _, after = resumed(tmp_path / "stopped", **keywords)
    assert not after.items() <= losses.items()


@pytest.mark.once
def test_workers_and_evaluations_do_not_matter(tmp_path):
    _, losses = straight(tmp_path / "one", data=dict(workers=1), length=2)
    several = dict(workers=3, persistent=False)
    _, others = straight(tmp_path / "several", data=several, length=2, val=True)
    assert losses == others


@pytest.mark.once
def test_every_batch_has_a_seed_of_its_own():
    def drawn(*entropy):
        worker = torch.utils.data.DataLoader(Draws(), num_workers=1, batch_sampler=Once(entropy))
        return next(iter(worker)).tolist()

    first = drawn(0, 1, 2, 3)
    assert first == drawn(0, 1, 2, 3)
    others = [drawn(1, 1, 2, 3), drawn(0, 2, 2, 3), drawn(0, 1, 3, 3), drawn(0, 1, 2, 4)]
    for other in others:
        assert all(a != b for a, b in zip(first[0], other[0], strict=True))


class Draws(torch.utils.data.Dataset):
    def __getitem__(self, index):
        import random

        import numpy as np

        return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])


class Once:
    def __init__(self, entropy):
        self.entropy = entropy

    def __iter__(self):
        yield SeededBatch([0], self.entropy)

    def __len__(self):
        return 1


@pytest.mark.once
@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (dict(hooks=[]), dict(), "it was saved without mmattn.ResumeExactlyHook"),
        (
            dict(data=dict(workers=1)),
            dict(),
            "the data were read by workers, and are by the main process",
        ),
        (dict(), dict(data=dict(batch=3)), "an epoch had 6 batches, and has 4 now"),
        (
            dict(optim_wrapper=dict(accumulative_counts=4)),
            dict(optim_wrapper=dict(accumulative_counts=4)),
            "it lacks the gradients of 2 of the 4 batches that are accumulated",
        ),
    ],
)
def test_what_is_not_exact_is_said(first, then, said, tmp_path):
    stopped(tmp_path, 7, **first)
    resumed(tmp_path, **then)
    (line,) = log(tmp_path)
    assert line.endswith(f"; not exactly: {said}")
    assert re.match(r"resuming from .*epoch_1\.pth after epoch 1 of 4, iteration", line)


@pytest.mark.once
def test_another_number_of_processes(tmp_path):
    stopped(tmp_path, 7)
    path = tmp_path / "epoch_1.pth"
    content = torch.load(path, weights_only=True)
    content["mmattn_random_state"]["states"] *= 2
    torch.save(content, path)
    resumed(tmp_path)
    (line,) = log(tmp_path)
    assert "not exactly: it was saved by 2 processes, and this run has 1" in line


@pytest.mark.once
def test_a_seed_that_nobody_chose(tmp_path):
    """The resumed run takes that of the first, for the order of the data as well."""
    stopped(tmp_path, 14, seed=None)
    checkpoint = torch.load(tmp_path / "epoch_2.pth", weights_only=True)
    losses = resumed(tmp_path, seed=None)[1]
    (tmp_path / "again").mkdir()
    again = Losses()
    build(
        tmp_path / "again",
        hooks=[EXACTLY, again],
        resume=True,
        load_from=str(tmp_path / "epoch_2.pth"),
        seed=checkpoint["meta"]["seed"],
    ).train()
    assert again.values == losses


def test_the_best_checkpoint_between_two_others(tmp_path):
    """mmengine then writes the last one again, after the evaluation."""
    keywords = dict(val=True, checkpoint=dict(interval=2, save_best="acc"))
    _, losses = straight(tmp_path / "straight", **keywords)
    stopped(tmp_path / "stopped", 19, **keywords)
    assert (tmp_path / "stopped" / "last_checkpoint").read_text().endswith("epoch_3.pth")
    _, after = resumed(tmp_path / "stopped", **keywords)
    assert sorted(after) == list(range(18, 24))
    assert after.items() <= losses.items()


@pytest.mark.once
def test_only_a_checkpoint_to_go_on_from_has_states(tmp_path):
    straight(tmp_path / "a", val=True, length=1, checkpoint=dict(save_best="acc"))
    best = torch.load(tmp_path / "a" / "best_acc_epoch_1.pth", weights_only=True)
    last = torch.load(tmp_path / "a" / "epoch_1.pth", weights_only=True)
    assert "mmattn_random_state" in last
    assert "mmattn_random_state" not in best


@pytest.mark.once
def test_weights_alone_start_anew(tmp_path):
    stopped(tmp_path, 14)
    (tmp_path / "new").mkdir()
    build(tmp_path / "new", load_from=str(tmp_path / "epoch_2.pth"), length=1).train()
    assert log(tmp_path / "new") == []


@pytest.mark.once
def test_the_hook_can_be_switched_off(tmp_path):
    straight(tmp_path / "a", hooks=[dict(EXACTLY, enabled=False)], length=1)
    content = torch.load(tmp_path / "a" / "epoch_1.pth", weights_only=True)
    assert "mmattn_random_state" not in content
    with pytest.raises(TypeError, match="enabled to be a bool, got 'no'"):
        build(tmp_path, hooks=[dict(EXACTLY, enabled="no")])


@pytest.mark.once
@pytest.mark.parametrize("loop", ["epochs", pytest.param("iterations", marks=pytest.mark.slow)])
def test_a_killed_process(loop, tmp_path):
    """kill -9 of one of two processes, in mid-epoch: torchrun ends the other."""
    argv = ["--by-iteration"] if loop == "iterations" else []
    command = [sys.executable, "-m", "tests.hooks.resumed_training", str(tmp_path), *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    # what torchrun saw first: the kill, or the other process that misses its peer
    assert re.search("SIGKILL|Connection closed by peer|Connection reset", outcome["said"])
    assert outcome["seconds"] < 60
    assert outcome["last"].endswith("iter_5.pth" if argv else "epoch_2.pth")
    allow_training_state()
    final = "iter_12.pth" if argv else "epoch_4.pth"
    one, two = (
        torch.load(tmp_path / name / final, weights_only=True) for name in ("straight", "killed")
    )
    for key, value in one["state_dict"].items():
        assert torch.equal(two["state_dict"][key], value), key
    states = [content["mmattn_random_state"]["states"] for content in (one, two)]
    assert len(states[0]) == 2
    assert not torch.equal(states[0][0]["generators"]["torch"], torch.get_rng_state())
    for a, b in zip(*states, strict=True):
        assert torch.equal(a["generators"]["torch"], b["generators"]["torch"])
    (line,) = log(tmp_path / "killed")
    assert line.endswith("; exactly")
