"""Batches of a data loader that carry their own seed, and can be passed over unread."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, get_worker_info


class SeededBatch(list):
    """The indices of one batch. A worker process that reads them is seeded first.

    A worker has no other place to be told: a persistent one runs code of ours once, when it
    starts. The main process is not seeded: without workers its own random numbers are drawn.
    """

    def __init__(self, indices, entropy: tuple[int, ...]):
        super().__init__(indices)
        self.entropy = entropy

    def __iter__(self):
        if get_worker_info() is not None:
            _seed(self.entropy)
        return super().__iter__()

    def __reduce__(self):
        return type(self), (tuple(super().__iter__()), self.entropy)


def _seed(entropy: tuple[int, ...], seed_torch=torch.manual_seed) -> None:
    """Seeds python, numpy and torch from a sequence of integers."""
    for_python, for_numpy, for_torch = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(for_python))
    np.random.seed(int(for_numpy))
    seed_torch(int(for_torch))


@contextlib.contextmanager
def _apart(entropy: tuple[int, ...]) -> Iterator[None]:
    """Random numbers of its own for a block; those outside go on as without it."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        _seed(entropy, torch.default_generator.manual_seed)  # the GPU's are left alone
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


class SeededBatches:
    """Stands in for the batch sampler of a loader, and numbers its batches from an epoch's start.

    Args:
        loader: Gets this one in place of its batch sampler.
        seed: The same in all processes.
        rank: Of this process.
    """

    def __init__(self, loader: DataLoader, seed: int, rank: int):
        self.batches = loader.batch_sampler
        self.seed, self.rank, self.epoch, self.due = seed, rank, 0, 0
        self._started = None
        # the loader refuses it by the usual way, and has not begun yet
        object.__setattr__(loader, "batch_sampler", self)
        # its iterators draw from the global generator, and persistent ones do so only once
        loader.generator = torch.Generator().manual_seed(0)

    def __getattr__(self, name: str):
        if name == "batches":  # while unpickled
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[SeededBatch]:
        # when first read: persistent workers ask for two iterators, and leave the first unread
        started, self._started = self._started, None
        yield from self._numbered() if started is None else started

    def _numbered(self) -> Iterator[SeededBatch]:
        due, self.due, epoch = self.due, 0, self.epoch
        batches, draws = None, self._draws()
        for number in itertools.count():
            # workers are given batches ahead: by how many would change what is drawn
            with _apart((self.seed, epoch, number, 0, 1)) if draws else contextlib.nullcontext():
                batches = iter(self.batches) if batches is None else batches
                batch = next(batches, None)
            if batch is None:
                return
            if number >= due:
                yield SeededBatch(batch, (self.seed, epoch, self.rank, number))

    def _draws(self) -> bool:
        """Whether batches may be chosen by the global generators, as for a SoftTeacher."""
        sampler = getattr(self.batches, "sampler", None)
        known = type(self.batches).__name__ in ("BatchSampler", "AspectRatioBatchSampler")
        return not known or type(sampler) not in (DefaultSampler, InfiniteSampler)

    def set_epoch(self, epoch: int) -> None:
        """What the next iteration over the batches is."""
        self.epoch = epoch
        # as mmengine's DistSamplerSeedHook does, which a loop without epochs does not call
        sampler = getattr(self.batches, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)

    def pass_over(self, count: int) -> None:
        """Lets the next iteration start ``count`` batches further, over epochs if need be."""
        while count:
            batches = self._numbered()
            passed = sum(1 for _ in zip(range(count), batches, strict=False))
            count -= passed
            if count:
                if not passed:
                    raise ValueError("the data loader has no batches")
                self.set_epoch(self.epoch + 1)
            else:
                self._started = batches


class EndlessBatches:
    """What a loop without epochs reads from: a loader, started again whenever it ends.

    Args:
        loader: Whose batch sampler is a SeededBatches.
        done: Batches that have been trained on; they are passed over without being loaded.
        asked: How many of these the loop is going to ask for one by one, to pass over them.
    """

    def __init__(self, loader: DataLoader, done: int, asked: int):
        self.loader, self.asked = loader, asked
        self._iterator = None
        loader.batch_sampler.pass_over(done)

    def __iter__(self):
        return self

    def skip_iter(self, count: int) -> None:
        """Called by the loops of OneDL's mmengine, in place of asking."""

    def __next__(self):
        if self.asked:
            self.asked -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self.loader)
        try:
            return next(self._iterator)
        except StopIteration:
            batches = self.loader.batch_sampler
            batches.set_epoch(batches.epoch + 1)
            self._iterator = iter(self.loader)
            return next(self._iterator)
