"""Trains a backbone and FPN for a few steps with mmengine's Runner; rank 0 saves the weights.

The loss is a mean over images of per-image means, so that the mean over processes is the mean
over the joint batch. Run by test_distributed.py, alone and through torchrun.
"""

import argparse
import json
import os

import torch
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

import mmattn  # before mmdet: offers the operators that mmcv may lack

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
        experiment_name=name,
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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", type=json.loads)
    parser.add_argument("out")
    arguments = parser.parse_args()
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:  # mmengine's own start asks for a GPU
        torch.distributed.init_process_group("gloo")
    start, weights = {}, {}
    for name, backbone in arguments.cases.items():
        start[name], weights[name] = train(name, backbone, world, os.path.dirname(arguments.out))
    if int(os.environ.get("RANK", 0)) == 0:
        torch.save(dict(start=start, weights=weights, world=world), arguments.out)


if __name__ == "__main__":
    main()
