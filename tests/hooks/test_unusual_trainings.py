"""The hooks of every training, in trainings that read or are named in other ways."""

import errno
import os
import random

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from torch.utils.data import IterableDataset

from mmattn.hooks._seeded_batches import SeededBatches
from tests.hooks.resumed_training import DrawnImages, build
from tests.hooks.test_resuming import log, resumed, stopped, straight


@DATASETS.register_module()
class OpenDatabase(DrawnImages):
    """As one on LMDB: it can be neither copied nor pickled."""

    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle 'Environment' object")


@DATASETS.register_module()
class Stream(IterableDataset):
    """Has no order that could be gone on with."""

    def __iter__(self):
        return (dict(images=torch.zeros(3, 8, 8).double()) for _ in range(12))

    def __len__(self):
        return 12


class Chance:
    """A batch sampler that draws from the global generators, as mmdet's for SoftTeacher does."""

    def __init__(self, sampler, batch_size):
        self.sampler, self.size = sampler, batch_size

    def __len__(self):
        return 6

    def __iter__(self):
        for _ in range(len(self)):
            yield [np.random.randint(12), random.randrange(12), int(torch.randint(12, ()))]


def test_the_data_are_not_copied(tmp_path):
    straight(tmp_path / "a", length=1, data=dict(dataset=dict(type="OpenDatabase")))


def test_a_part_of_the_data_an_epoch(tmp_path):
    """mmengine's slice of a dataset cannot be copied."""
    straight(tmp_path / "a", length=2, data=dict(num_batch_per_epoch=3))


def test_chance_chooses_the_batches(tmp_path):
    """Workers are given batches ahead of the checkpoint."""
    keywords = dict(
        by_epoch=False, length=12, checkpoint=dict(interval=5),
        data=dict(workers=1, batch_sampler=dict(type=Chance)),
    )  # fmt: skip
    expected, losses = straight(tmp_path / "straight", **keywords)
    stopped(tmp_path / "stopped", 7, **keywords)
    found, after = resumed(tmp_path / "stopped", **keywords)
    assert after.items() <= losses.items()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_batches_of_chance_leave_the_generators_alone():
    def drawn():
        return random.random(), np.random.rand(), torch.rand(()).item()

    def seed():
        random.seed(0), np.random.seed(0), torch.manual_seed(0)

    seed()
    expected = drawn()
    loader = torch.utils.data.DataLoader(range(12), batch_sampler=Chance(None, 2))
    batches = SeededBatches(loader, 3, 0)
    seed()
    first = list(map(list, batches))
    assert drawn() == expected
    assert first == list(map(list, batches))
    batches.set_epoch(1)
    assert not set(map(tuple, first)) & set(map(tuple, batches))


def test_a_stream_is_not_said_to_be_exact(tmp_path):
    keywords = dict(
        by_epoch=False, length=7, checkpoint=dict(interval=5),
        data=dict(dataset=dict(type="Stream"), sampler=None),
    )  # fmt: skip
    stopped(tmp_path, 6, **keywords)
    resumed(tmp_path, **keywords)
    assert log(tmp_path)[0].endswith(
        "not exactly: its batches have no numbers: they are read anew, and not seeded"
    )


def test_what_no_checkpoint_has_is_said(tmp_path):
    early = dict(type="EarlyStoppingHook", monitor="acc", rule="greater", patience=9)
    stopped(tmp_path, 7, val=True)
    runner = build(tmp_path, val=True, resume=True)
    runner.cfg.custom_hooks = [early]
    runner.train()
    assert log(tmp_path)[0].endswith(
        "not exactly: EarlyStoppingHook keeps its best score, which no checkpoint has"
    )


def test_a_number_with_a_format_in_a_name(tmp_path):
    left = tmp_path / ".epoch_007.pth.part"
    left.touch()
    build(tmp_path, length=1, checkpoint=dict(filename_tmpl="epoch_{:03d}.pth")).train()
    assert (tmp_path / "epoch_001.pth").is_file()
    assert not left.exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_disk_that_does_not_synchronise(number, tmp_path, monkeypatch):
    """Some file systems of networks have no fsync; an error of the disk is one."""

    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    if number == errno.EIO:
        with pytest.raises(ValueError, match=r"epoch_1\.pth cannot be written: Input/output"):
            build(tmp_path, length=1).train()
        return
    build(tmp_path, length=1).train()
    assert (tmp_path / "last_checkpoint").read_text().endswith("epoch_1.pth")
