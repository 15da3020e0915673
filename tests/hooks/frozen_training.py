"""A small model, its training through mmengine's Runner, and what each iteration left behind.

As a script, started by test_freeze_except_hook.py, it trains in two processes under several kinds
of DDP; rank 0 saves the weights.
"""

import argparse
import json
import os

import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import DataLoader, Dataset

import mmattn

IMAGES, BATCH = 12, 4  # three iterations an epoch


class Images(Dataset):
    """Deterministic images, read in order."""

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(images=torch.randn(3, 8, 8, generator=generator, dtype=torch.float64))


class Net(BaseModel):
    """SE and GCT among plain layers; ``stem`` is frozen as mmdet's frozen stages are.

    The loss is a mean over images of per-image means, so that the mean over processes is the
    mean over the joint batch.
    """

    def __init__(self, norm_eval=False, dtype=torch.float64):
        super().__init__()
        self.norm_eval = norm_eval
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.layer = nn.Sequential(
            nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), mmattn.SE(4, ratio=2)
        )
        self.conv = mmattn.GCTConv2d(4, 4, 3)
        self.adapter = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        self.to(dtype)
        self.train()

    def init_weights(self):
        """They are drawn above."""

    def train(self, mode=True):
        super().train(mode)
        self.stem.requires_grad_(False).eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images, mode="loss"):
        x = self.layer(self.stem(images.to(self.head.weight.dtype)))
        y = self.head(self.adapter(self.conv(x)).mean((2, 3)))
        return dict(loss=(y - 1).square().mean(1).mean()) if mode == "loss" else list(y)


class Recorder(Hook):
    """What each iteration found and left."""

    priority = "LOWEST"

    def __init__(self):
        self.weights, self.training, self.learning, self.states = [], [], [], []

    def before_train(self, runner):
        self.model = getattr(runner.model, "module", runner.model)
        self.weights.append(self._weights())

    def _weights(self):
        return {k: v.clone() for k, v in self.model.state_dict().items()}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        parameters = dict(self.model.named_parameters())
        self.training.append({n for n, m in self.model.named_modules() if m.training})
        self.learning.append({n for n, p in parameters.items() if p.requires_grad})
        state = runner.optim_wrapper.optimizer.state
        self.states.append({n for n, p in parameters.items() if state.get(p)})

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.weights.append(self._weights())


class OwnAllReduce(Hook):
    """A communication hook, as users register one to compress gradients; it counts its calls."""

    def __init__(self):
        self.calls = [0]

    def before_run(self, runner):
        runner.model.register_comm_hook(self, lambda self, bucket: self.reduce(bucket))

    def reduce(self, bucket):
        self.calls[-1] += 1
        return allreduce_hook(None, bucket)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.calls.append(0)


class Nothing(BaseMetric):
    """Makes the Runner evaluate, which puts the model into eval mode."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


def loader(by_epoch=True, world=1):
    dataset = Images()
    # the infinite one for a loop without epochs, which else waits seconds at the end of the data
    sampler = (DefaultSampler if by_epoch else InfiniteSampler)(dataset, shuffle=False)
    return DataLoader(dataset, BATCH // world, sampler=sampler)


def train(
    work_dir,
    hook=None,
    model=None,
    by_epoch=True,
    length=4,
    world=1,
    ema=False,
    val=False,
    extra=None,
    **kwargs,
):
    """A Runner that has trained, and its Recorder.

    ``length`` is in epochs or in iterations; ``hook`` holds the arguments of FreezeExceptHook;
    ``model`` is one, or the arguments of Net; ``extra`` is a hook, or several.
    """
    recorder = Recorder()
    limit = dict(max_epochs=length) if by_epoch else dict(max_iters=length)
    if val:
        limit["val_interval"] = 1
        kwargs.update(val_dataloader=loader(), val_cfg=dict(), val_evaluator=[Nothing()])
    hooks = [recorder, *([extra] if isinstance(extra, Hook) else extra or ())]
    if hook is not None:
        hooks.append(dict(type="mmattn.FreezeExceptHook", **hook))
    if ema:
        hooks.append(dict(type="EMAHook", momentum=0.3))
    optimizer = dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=0.1)
    runner = Runner(
        model if isinstance(model, nn.Module) else Net(**(model or {})),
        work_dir=str(work_dir),
        train_dataloader=loader(by_epoch, world),
        train_cfg=dict(by_epoch=by_epoch, **limit),
        optim_wrapper=dict(dict(optimizer=optimizer), **kwargs.pop("optim_wrapper", {})),
        custom_hooks=hooks,
        default_hooks=dict(
            checkpoint=dict(type="CheckpointHook", interval=1, by_epoch=by_epoch),
            logger=dict(type="LoggerHook", interval=1000),
        ),
        launcher="pytorch" if world > 1 else "none",
        randomness=dict(seed=0),  # the Runner draws initial weights
        experiment_name=str(work_dir).replace("/", "-"),
        **kwargs,
    )
    runner.train()
    return runner, recorder


def work(rank, cases, folder):
    """What each of two processes does."""
    # mmengine's own start and default wrapper ask for a GPU
    os.environ["LOCAL_RANK"] = str(rank)
    store = f"file://{os.path.abspath(folder)}/store"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=2)
    for name, (keywords, wrapper) in cases.items():
        ddp = dict(type="MMDistributedDataParallel", device_ids=None, **wrapper)
        out = os.path.join(folder, name)
        cfg = dict(keywords.pop("cfg", {}), model_wrapper_cfg=ddp)
        own = OwnAllReduce() if name == "own communication" else None
        _, recorder = train(out, world=2, cfg=cfg, extra=own, **keywords)
        assert own is None or all(own.calls[:-1]), own.calls
        for weights in recorder.weights:
            for key, value in weights.items():
                other = value.clone()
                torch.distributed.broadcast(other, src=1)
                assert torch.equal(other, value), f"{name}: the processes drifted apart in {key}"
        if rank == 0:
            torch.save(recorder.weights, os.path.join(out, "weights.pth"))
    torch.distributed.destroy_process_group()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", type=json.loads, help="name: [keywords of train, of DDP]")
    parser.add_argument("folder")
    arguments = parser.parse_args()
    # forks: they need not import everything anew
    torch.multiprocessing.start_processes(
        work, (arguments.cases, arguments.folder), nprocs=2, start_method="fork"
    )


if __name__ == "__main__":
    main()
