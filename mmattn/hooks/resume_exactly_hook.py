"""A training that was stopped goes on as if it had not been."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import IterBasedTrainLoop, find_latest_checkpoint
from torch.utils.data import DataLoader, IterableDataset

from mmattn.hooks._seeded_batches import EndlessBatches, SeededBatches
from mmattn.registry import HOOKS

KEY = "mmattn_random_state"  # in a checkpoint
# type -> what it keeps from one iteration to the next, beside weights: no checkpoint has it
UNSAVED = {
    "CachedMosaic": "images",
    "CachedMixUp": "images",
    "BatchSyncRandomResize": "its size",
    "EarlyStoppingHook": "its best score",
}


@HOOKS.register_module()
class ResumeExactlyHook(Hook):
    """Puts into each checkpoint what a resumed training needs to go on exactly.

    ::

        custom_hooks = [dict(type='mmattn.ResumeExactlyHook')]

    - The states of the random number generators (Python, NumPy, PyTorch, CUDA) of every process
      are saved, and restored on resume. Evaluations in between do not change them.
    - Workers of the training's data loader are seeded for each batch, from the run's seed, the
      epoch, the process and the batch's number in the epoch. So augmentations depend neither on
      how many workers there are, nor on whether they persist, nor on where a run was resumed.
    - A run resumed within an epoch, or by iterations, goes on with the next batch; those before
      are passed over without being loaded.

    On a CPU the resumed run's weights equal those of one that was never stopped, bit for bit. On
    GPUs they do as far as the kernels are deterministic. One line says from where a run resumes,
    and what is not exact, if anything. See ``docs/distributed.md``.

    Args:
        enabled: False: does nothing, where ``tools/train.py`` would add the hook.

    Raises:
        TypeError: ``enabled`` is not a bool.
    """

    priority = "LOW"  # ahead of CheckpointHook, behind whatever draws random numbers

    def __init__(self, enabled: bool = True):
        if not isinstance(enabled, bool):
            raise TypeError(f"ResumeExactlyHook expects enabled to be a bool, got {enabled!r}")
        self.enabled = enabled
        self._found: dict | None = None  # in the checkpoint that was loaded
        self._batches: SeededBatches | None = None
        self._states: tuple[int, list[dict]] | None = None  # after so many iterations
        self._before_val: dict | None = None

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keeps what an earlier run has left."""
        self._found = checkpoint.get(KEY)

    def before_train(self, runner) -> None:
        """Takes over the data loader, and goes on where an earlier run has ended."""
        if not self.enabled:
            return
        loop, resumed = runner.train_loop, runner.iter > 0
        found = self._found if resumed else None
        reasons = [] if found or not resumed else ["it was saved without mmattn.ResumeExactlyHook"]
        self._take_over(runner, _of_process(found, "seed"), reasons)
        if resumed:
            same_data = self._same_data(loop, found, reasons)
            if self._batches is not None and not isinstance(loop, IterBasedTrainLoop):
                done = runner.iter - runner.epoch * len(loop.dataloader)
                if same_data and done > 0:
                    self._batches.due = done
            self._look_for_reasons(runner, found, reasons)
        if self._batches is not None and isinstance(loop, IterBasedTrainLoop):
            # mmengine 0.10.7 asks for each batch that is done; a later one may ask for none
            one_by_one = resumed and not hasattr(loop.dataloader_iterator, "skip_iter")
            asked = runner.iter if one_by_one else 0
            loop.dataloader_iterator = EndlessBatches(loop.dataloader, runner.iter, asked)
        if resumed:
            self._say(runner, reasons)
        if found and len(found["states"]) == get_world_size():
            _restore(_of_process(found, "generators"))
        self._found = None

    def before_train_epoch(self, runner) -> None:
        """Tells the batches of which epoch they are; a loop without epochs has its own."""
        if self._batches is not None and not isinstance(runner.train_loop, IterBasedTrainLoop):
            self._batches.epoch = runner.epoch

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Gathers the states where a checkpoint is about to be written."""
        for hook in self._savers(runner, by_epoch=False):
            if hook.every_n_train_iters(runner, hook.interval, hook.save_begin) or (
                hook.save_last and hook.is_last_train_iter(runner)
            ):
                self._gather(runner.iter + 1)
                return

    def after_train_epoch(self, runner) -> None:
        """Gathers the states where a checkpoint is about to be written."""
        for hook in self._savers(runner, by_epoch=True):
            if hook.every_n_epochs(runner, hook.interval, hook.save_begin) or (
                hook.save_last and hook.is_last_train_epoch(runner)
            ):
                self._gather(runner.iter)
                return

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds the states, if the checkpoint is one to go on from."""
        if self._states is None or "optimizer" not in checkpoint:
            return
        done, states = self._states
        if checkpoint["meta"].get("iter") == done:
            checkpoint[KEY] = self._content(runner, states)

    def before_val(self, runner) -> None:
        """An evaluation draws random numbers of its own."""
        self._before_val = _generators() if self.enabled else None

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Gathers the states where the best checkpoint, and with it the last, may be written."""
        if self._before_val is None or (self._states and self._states[0] == runner.iter):
            return
        hooks = [*self._savers(runner, True), *self._savers(runner, False)]
        if self._batches is not None and any(hook.save_best for hook in hooks):
            self._gather(runner.iter, self._before_val)

    def after_val(self, runner) -> None:
        """The training's numbers go on where they were."""
        if self._before_val is not None:
            _restore(self._before_val)
            self._before_val = None

    def _take_over(self, runner, seed: int | None, reasons: list[str]) -> None:
        """Gives the loader batches with seeds."""
        loop, self._batches, self._seed = runner.train_loop, None, runner.seed
        loader = getattr(loop, "dataloader", None)
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            reasons.append("its batches have no numbers: they are read anew, and not seeded")
            return
        if seed is None:
            own = getattr(_sampler(loop.dataloader), "seed", None)
            seed = runner.seed if own is None else own
        self._seed = seed
        if isinstance(runner._train_dataloader, dict):
            # anew, on the same dataset: the sampler of a loop may have begun, or have another seed
            kept = _Uncopied(loop.dataloader.dataset)
            config = dict(runner._train_dataloader, dataset=kept)
            config.pop("num_batch_per_epoch", None)  # done to the dataset already
            loop.dataloader = runner.build_dataloader(config, seed=seed)
        elif isinstance(_sampler(loop.dataloader), InfiniteSampler):
            sampler = _sampler(loop.dataloader)
            sampler.seed = seed
            sampler.indices = sampler._indices_of_rank()
        if loop.dataloader.batch_sampler is None:
            reasons.append("its data loader does not read by batches, so workers are not seeded")
            return
        self._batches = SeededBatches(loop.dataloader, seed, get_rank())

    def _same_data(self, loop, found: dict | None, reasons: list[str]) -> bool:
        if not found:
            return False
        kept = True
        world, workers = len(found["states"]), _has_workers(loop)
        if world != get_world_size():
            kept = False
            reasons.append(
                f"it was saved by {world} processes, and this run has {get_world_size()}"
            )
        if self._batches is not None and found["batches"] != len(loop.dataloader):
            kept = False
            reasons.append(
                f"an epoch had {found['batches']} batches, and has {len(loop.dataloader)} now"
            )
        if found["workers"] != workers:
            names = ("the main process", "workers")
            before, now = names[found["workers"]], names[workers]
            reasons.append(f"the data were read by {before}, and are by {now}")
        return kept

    def _look_for_reasons(self, runner, found: dict | None, reasons: list[str]) -> None:
        counts = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
        if runner.iter % counts:
            reasons.append(
                f"it lacks the gradients of {runner.iter % counts} of the {counts} batches that "
                "are accumulated"
            )
        used = set(_types([runner.cfg, runner._train_dataloader]))
        for kind, what in UNSAVED.items():
            if kind in used:
                reasons.append(f"{kind} keeps {what}, which no checkpoint has")
        if self._batches is not None and not getattr(
            runner.train_loop.dataloader, "in_order", True
        ):
            reasons.append("the data loader gives batches in any order (in_order=False)")

    def _say(self, runner, reasons: list[str]) -> None:
        # the path that the Runner has loaded
        path = runner._load_from or find_latest_checkpoint(runner.work_dir) or "a checkpoint"
        near = os.path.relpath(path) if os.path.exists(path) else path
        where = f"iteration {runner.iter} of {runner.max_iters}"
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            where = f"epoch {runner.epoch} of {runner.max_epochs}, {where}"
        head = f"mmattn: resuming from {path if near.startswith('..') else near} after {where}"
        if reasons:
            runner.logger.warning(f"{head}; not exactly: {'; '.join(reasons)}")
        elif torch.cuda.is_available() and not runner.deterministic:
            runner.logger.info(f"{head}; exactly, as far as the GPU's kernels are deterministic")
        else:
            runner.logger.info(f"{head}; exactly")

    def _savers(self, runner, by_epoch: bool) -> list[CheckpointHook]:
        if not self.enabled:
            return []
        hooks = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
        return [hook for hook in hooks if hook.by_epoch == by_epoch]

    def _gather(self, done: int, generators: dict | None = None) -> None:
        # by all processes; the checkpoint is written by the first alone
        own = dict(seed=self._seed, generators=generators or _generators())
        self._states = (done, all_gather_object(own))

    def _content(self, runner, states: list[dict]) -> dict:
        loop = runner.train_loop
        return dict(
            states=states,
            batches=None if self._batches is None else len(loop.dataloader),
            workers=_has_workers(loop),
        )


def _types(part) -> Iterator[str]:
    """The names of all types in a config."""
    part = part._cfg_dict if isinstance(part, Config) else part
    if isinstance(part, Mapping):
        kind = part.get("type")
        yield str(getattr(kind, "__name__", kind)).rpartition(".")[2]
        part = part.values()
    elif not isinstance(part, (list, tuple)):
        return
    for inner in part:
        yield from _types(inner)


class _Uncopied:
    """Stands for an object where a config is copied: large, or with an open file or database."""

    def __init__(self, content):
        self.content = content

    def __deepcopy__(self, memo):
        return self.content


def _has_workers(loop) -> bool:
    return bool(getattr(getattr(loop, "dataloader", None), "num_workers", 0))


def _sampler(loader: DataLoader):
    """What gives the indices, behind a batch sampler of the config's own as well."""
    return getattr(loader.batch_sampler, "sampler", loader.sampler)


def _of_process(found: dict | None, key: str):
    """What this process has saved, or the first in its place."""
    states = found["states"] if found else [{}]
    return states[min(get_rank(), len(states) - 1)].get(key)


def _generators() -> dict:
    """The states of this process's generators, as tensors and numbers: safe to load."""
    version, words, gauss = random.getstate()
    _, key, position, has_gauss, cached = np.random.get_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return dict(
        python=(version, torch.tensor(words, dtype=torch.int64), gauss),
        numpy=(torch.from_numpy(key.astype(np.int64)), int(position), int(has_gauss), cached),
        torch=torch.get_rng_state(),
        cuda=cuda,
    )


def _restore(state: dict) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    key, position, has_gauss, cached = state["numpy"]
    key = key.cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, position, has_gauss, cached))
    # a checkpoint is mapped to the GPU when it is loaded
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
