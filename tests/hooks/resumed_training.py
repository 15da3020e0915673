"""A small network that draws random numbers, trained through mmengine's Runner.

As a script, started by test_resuming.py, it trains in two processes of torchrun's agent: straight
through, until the second kills itself, and from there on.
"""

import argparse
import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils.data import BatchSampler, Dataset

import mmattn
from mmattn.checkpoints.files import allow_training_state

IMAGES = 12
EXACTLY = dict(type="mmattn.ResumeExactlyHook")


@DATASETS.register_module()
class DrawnImages(Dataset):
    """Fixed images with noise from all three generators, as augmentations draw from them."""

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        image = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))
        noise = random.gauss(0, 1) + np.random.normal() + torch.randn(())
        return dict(images=(image + 0.3 * noise).double())


class Net(BaseModel):
    """SGE between convolutions, and dropout."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), mmattn.SGE(8, groups=2), nn.Dropout(0.5)
        )
        self.head = nn.Linear(8, 2)
        self.double()

    def forward(self, images, mode="loss"):
        # as samplers of boxes draw
        chosen = torch.randperm(images.shape[-1])[:6]
        y = self.head(self.layer(images[..., chosen]).mean((2, 3)))
        return dict(loss=(y - 1).square().mean()) if mode == "loss" else list(y)


class Score(BaseMetric):
    """Draws from all generators itself; better with each evaluation."""

    def process(self, data_batch, data_samples):
        self.results.append(random.random() + np.random.rand() + float(torch.rand(())))

    def compute_metrics(self, results):
        Score.calls = getattr(Score, "calls", 0) + 1
        return dict(acc=float(Score.calls))


class Kill(Hook):
    """Ends one process as the system would, before an iteration."""

    def __init__(self, at, rank=0):
        self.at, self.rank = at, rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at and runner.rank == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


class Stop(Hook):
    """Ends a training early, as Ctrl-C does."""

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            raise KeyboardInterrupt


class Losses(Hook):
    """What every iteration has lost."""

    def __init__(self):
        self.values = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.values[runner.iter] = outputs["loss"].item()


def loader(by_epoch=True, workers=0, persistent=True, batch=2, **changes):
    sampler = DefaultSampler if by_epoch else InfiniteSampler
    persist = dict(persistent_workers=persistent) if workers else {}
    settings = dict(
        dataset=dict(type="DrawnImages"),
        sampler=dict(type=sampler.__name__, shuffle=True),
        batch_size=batch,
        collate_fn=dict(type="default_collate"),
        num_workers=workers,
        **persist,
    )
    return settings | changes


class Pairs(BatchSampler):
    """A batch sampler of the user's own, which mmengine cannot pass over quickly."""

    def __init__(self, sampler, batch_size):
        super().__init__(sampler, batch_size, drop_last=False)


def build(
    work_dir,
    by_epoch=True,
    length=4,
    data=None,
    hooks=(EXACTLY,),
    checkpoint=None,
    val=False,
    resume=False,
    launcher="none",
    seed=0,
    optim_wrapper=None,
    load_from=None,
):
    """A Runner. ``length`` is in epochs or iterations; ``data`` and others change the usual."""
    limit = dict(max_epochs=length) if by_epoch else dict(max_iters=length)
    more = {}
    if val:
        more = dict(val_dataloader=loader(), val_cfg=dict(), val_evaluator=[Score()])
        limit["val_interval"] = 1 if by_epoch else 3
    saving = dict(type="mmattn.SafeCheckpointHook", interval=1, by_epoch=by_epoch)
    allow_training_state()
    torch.manual_seed(0)
    return Runner(
        Net(),
        work_dir=str(work_dir),
        train_dataloader=loader(**({"by_epoch": by_epoch} | (data or {}))),
        train_cfg=dict(by_epoch=by_epoch, **limit),
        optim_wrapper=dict(
            dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9)), **(optim_wrapper or {})
        ),
        param_scheduler=[dict(type="LinearLR", by_epoch=False, end=20)],
        custom_hooks=list(hooks),
        default_hooks=dict(
            checkpoint=saving | (checkpoint or {}), logger=dict(type="LoggerHook", interval=1000)
        ),
        launcher=launcher,
        resume=resume,
        load_from=load_from,
        randomness=dict(seed=seed),
        experiment_name=str(work_dir).replace("/", "-") + str(len(os.listdir(work_dir))),
        cfg=dict(model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None)),
        **more,
    )


def train(work_dir, by_epoch=True, kill_at=None, resume=False):
    """What each of two processes does."""
    for draw in (random.seed, np.random.seed, torch.seed):
        draw()  # a fork has its parent's generators, a process of its own has not
    # mmengine's own start asks for a GPU
    torch.distributed.init_process_group("gloo")
    hooks = [EXACTLY] if kill_at is None else [EXACTLY, Kill(kill_at, rank=1)]
    build(
        work_dir,
        by_epoch=by_epoch,
        length=4 if by_epoch else 12,
        data=dict(workers=2),
        hooks=hooks,
        checkpoint=dict(interval=1 if by_epoch else 5),
        resume=resume,
        launcher="pytorch",
    ).train()
    torch.distributed.destroy_process_group()


def torchrun(*arguments):
    """``train`` in two processes of torchrun's agent, as forks, which import nothing anew."""
    config = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0)
    config.run_id, config.start_method = "resumed", "fork"
    elastic_launch(config, train)(*arguments)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--by-iteration", action="store_true")
    arguments = parser.parse_args()
    by_epoch = not arguments.by_iteration
    straight, killed = (arguments.folder / name for name in ("straight", "killed"))
    for work_dir in (straight, killed):
        work_dir.mkdir()
    torchrun(straight, by_epoch)
    began = time.monotonic()
    try:
        torchrun(killed, by_epoch, 7)
        said = "nothing"
    except ChildFailedError as error:
        said = str(error)
    seconds = time.monotonic() - began
    last = (killed / "last_checkpoint").read_text()
    torchrun(killed, by_epoch, None, True)
    outcome = dict(said=said, seconds=seconds, last=last)
    (arguments.folder / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
