"""Trains a backbone and FPN for a few steps with mmengine's Runner, alone and in two processes.

The loss is a mean over images of per-image means, so that the mean over processes is the mean
over the joint batch. As a script, started by test_distributed.py, it forks two processes over gloo
after the imports, which take longer than all of their training.
"""

import argparse
import copy
import json
import os
from unittest import mock

import mmattn  # isort: skip  before mmdet: offers the operators that mmcv may lack
import torch
from mmdet.models.backbones import ResNet
from mmdet.models.backbones.resnet import Bottleneck
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from tests.zoo import assert_close, layer, scramble

IMAGES, STEPS = 8, 3  # 4 images a step in all


class Images(Dataset):
    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(images=torch.randn(3, 64, 64, generator=generator, dtype=torch.float64))


class Features(BaseModel):
    def __init__(self, backbone):
        super().__init__()
        plugins = backbone.pop("attach", None)
        with mock.patch.dict(ResNet.arch_settings, {50: (Bottleneck, (1, 1, 1, 1))}):
            self.backbone = MODELS.build(dict(type="mmdet.ResNet", **backbone))
        channels = [64, 128, 256, 512]
        self.neck = MODELS.build(
            dict(type="mmdet.FPN", in_channels=channels, out_channels=16, num_outs=5)
        )
        if plugins:
            mmattn.attach(self, plugins)

    def init_weights(self):
        super().init_weights()
        self.start = {k: v.clone() for k, v in self.state_dict().items()}

    def forward(self, images, mode="loss"):
        levels = self.neck(self.backbone(images))
        return dict(loss=sum(level.square().mean((1, 2, 3)).mean() for level in levels))


def train(name, backbone, world, work_dir):
    """The weights before and after a few steps, the same in every process."""
    backbone = dict(backbone)
    accumulate = backbone.pop("accumulate", 1)
    model = Features(backbone).double()
    dataset = Images()
    runner = Runner(
        model,
        work_dir=work_dir,
        train_dataloader=DataLoader(
            dataset, 4 // world // accumulate, sampler=DefaultSampler(dataset, False)
        ),
        train_cfg=dict(by_epoch=False, max_iters=STEPS * accumulate),
        optim_wrapper=dict(
            # --auto-scale-lr counts the images of a batch, not those of an update
            optimizer=dict(type="SGD", lr=0.2 * accumulate, momentum=0.9, weight_decay=1e-4),
            accumulative_counts=accumulate,
        ),
        default_hooks=dict(checkpoint=None),
        launcher="pytorch" if world > 1 else "none",
        # mmengine's default wrapper asks for a GPU
        cfg=dict(model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None)),
        randomness=dict(seed=0),  # the Runner draws the initial weights
        auto_scale_lr=dict(enable=True, base_batch_size=8),  # by 4 / 8, however many processes
        log_level="WARNING",
        experiment_name=f"{world} processes, {name}",
    )
    runner.train()
    assert runner.optim_wrapper.get_lr()["lr"] == [0.1]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    if world > 1:
        for value in weights.values():
            other = value.clone()
            torch.distributed.broadcast(other, src=1)
            assert torch.equal(other, value), "the processes drifted apart"
    return model.start, weights


class Between(nn.Module):
    """A layer between two convolutions."""

    def __init__(self, inner):
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(3, 64, 3), inner, nn.Conv2d(64, 2, 1)

    def forward(self, images):
        return self.last(torch.relu(self.inner(self.first(images))))


class Unused(nn.Module):
    """What the test below has to find: a parameter without a part in the loss."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x


def steps_under_ddp(inner, rank):
    """Two steps, each process with images of its own, without a search for unused parameters."""
    torch.manual_seed(0)
    net = scramble(Between(inner)).double()
    wrapped = DistributedDataParallel(net, find_unused_parameters=False)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(2):
        images = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=generator)
        alone = copy.deepcopy(net)
        alone.zero_grad()
        alone(images).square().mean().backward()
        wrapped.zero_grad()
        wrapped(images).square().mean().backward()
        for (name, own), found in zip(alone.named_parameters(), net.parameters(), strict=True):
            mean = own.grad.clone()
            torch.distributed.all_reduce(mean)
            assert_close(found.grad, mean / 2, 1e-12, f"{name}: the mean over the processes")
            both = [torch.empty_like(found.grad) for _ in range(2)]
            torch.distributed.all_gather(both, found.grad)
            assert torch.equal(*both), f"{name}: not the same in both processes"


def said(inner, rank):
    """None, or why the steps failed."""
    try:
        steps_under_ddp(inner, rank)
    except (RuntimeError, AssertionError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def work(rank, folder, cases, layers):
    os.environ["LOCAL_RANK"] = str(rank)
    # mmengine's own start asks for a GPU
    torch.distributed.init_process_group(
        "gloo", f"file://{os.path.abspath(folder)}/store", rank=rank, world_size=2
    )
    start, weights = {}, {}
    for name, backbone in cases.items():
        start[name], weights[name] = train(name, backbone, 2, folder)
    outcome = {name: said(layer(*one), rank) for name, one in layers.items()}
    outcome["unused"] = said(Unused(), rank)
    outcomes = [None, None]
    torch.distributed.all_gather_object(outcomes, outcome)
    if rank == 0:
        found = dict(start=start, weights=weights, outcomes=outcomes)
        torch.save(found, os.path.join(folder, "found.pth"))
    torch.distributed.destroy_process_group()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("cases", type=json.loads, help="name: arguments of the ResNet, and others")
    parser.add_argument("layers", type=json.loads, help="name: [its type, its arguments]")
    arguments = parser.parse_args()
    torch.multiprocessing.start_processes(
        work,
        (arguments.folder, arguments.cases, arguments.layers),
        nprocs=2,
        start_method="fork",
    )


if __name__ == "__main__":
    main()
