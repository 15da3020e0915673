"""The releases' ResNets, written from their equations, under the releases' names."""

import math
import re

import torch
from torch.nn import functional as F

from tests.data import DATA

LAYOUTS = DATA / "layouts"
BLOCKS = (3, 4, 6, 3)  # ResNet-50


def random_weights(shapes, seed=0):
    """Weights of those shapes, scaled so that sixteen blocks neither vanish nor overflow."""
    torch.manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            weights[name] = torch.empty(shape).uniform_(0.5, 1.5)
        elif len(shape) == 1 and name.endswith("weight"):
            weights[name] = torch.empty(shape).uniform_(0.3, 0.6)  # of a norm
        elif name.endswith(("bias", "running_mean")) or math.prod(shape[1:]) == 1:
            weights[name] = torch.empty(shape).normal_(std=0.3)
        else:
            fan_in = shape[1] if shape[0] == 1 else math.prod(shape[1:])
            weights[name] = torch.empty(shape).normal_(std=fan_in**-0.5)
    return weights


def container(weights):
    """What the releases' training scripts save."""
    state = {f"module.{name}": value for name, value in weights.items()}
    extra = dict(epoch=100, arch="resnet50", best_acc1=torch.tensor(77.5))
    optimizer = dict(state={0: dict(momentum_buffer=torch.zeros(3))}, param_groups=[dict(lr=0.1)])
    return dict(extra, state_dict=state, optimizer=optimizer)


def shapes_with_gc(plain, attribute, stages, ratio):
    """A plain ResNet's shapes with global context blocks."""
    shapes = dict(plain)
    for stage in stages:
        channels = 256 * 2 ** (stage - 1)
        hidden = channels // ratio
        for block in range(BLOCKS[stage - 1]):
            start = f"layer{stage}.{block}.{attribute}"
            shapes |= {
                f"{start}.conv_mask.weight": [1, channels, 1, 1],
                f"{start}.conv_mask.bias": [1],
                f"{start}.channel_add_conv.0.weight": [hidden, channels, 1, 1],
                f"{start}.channel_add_conv.0.bias": [hidden],
                f"{start}.channel_add_conv.1.weight": [hidden, 1, 1],
                f"{start}.channel_add_conv.1.bias": [hidden, 1, 1],
                f"{start}.channel_add_conv.3.weight": [channels, hidden, 1, 1],
                f"{start}.channel_add_conv.3.bias": [channels],
            }
    return shapes


class Official:
    """The forward pass of a release, in float64, from its own names.

    Args:
        weights: Official names without ``module.``, and tensors.
    """

    def __init__(self, weights):
        self.w = {name: value.double() for name, value in weights.items()}
        self.gct = "stem.conv1.0.alpha" in weights
        self.stem = "stem." if self.gct else ""

    def __call__(self, x):
        """The four stages' maps."""
        x = x.double()
        x = F.relu(self.norm(self.conv(x, f"{self.stem}conv1", 2, 3), f"{self.stem}bn1"))
        x = F.max_pool2d(x, 3, 2, 1)
        maps = []
        for stage, blocks in enumerate(BLOCKS, 1):
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                x = self.block(x, f"layer{stage}.{block}", stride)
            if f"bam{stage}.spatial_att.gate_s.gate_s_conv_final.bias" in self.w:
                x = self.bam(x, f"bam{stage}")
            maps.append(x)
        return maps

    def conv(self, x, name, stride=1, padding=0, groups=1, dilation=1):
        if self.gct:
            return F.conv2d(
                self.gate(x, f"{name}.0"), self.w[f"{name}.1.weight"], None, stride, padding
            )
        bias = self.w.get(f"{name}.bias")
        return F.conv2d(x, self.w[f"{name}.weight"], bias, stride, padding, dilation, groups)

    def norm(self, x, name):
        mean, var, weight, bias = (
            self.w[f"{name}.{key}"].reshape(1, -1, *[1] * (x.dim() - 2))
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def linear(self, x, name):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def block(self, x, name, stride):
        # GCT's ResNet has the stride in the first 1x1 convolution
        first, second = (stride, 1) if self.gct else (1, stride)
        y = F.relu(self.norm(self.conv(x, f"{name}.conv1", first), f"{name}.bn1"))
        if f"{name}.conv2g.weight" in self.w:
            y = self.selective(y, name, second)
        else:
            y = F.relu(self.norm(self.conv(y, f"{name}.conv2", second, 1), f"{name}.bn2"))
        y = self.norm(self.conv(y, f"{name}.conv3"), f"{name}.bn3")
        for attribute in ("se", "sge", "gc", "context_block", "cbam"):
            if any(key.startswith(f"{name}.{attribute}.") for key in self.w):
                kind = "gc" if attribute == "context_block" else attribute
                y = getattr(self, kind)(y, f"{name}.{attribute}")
        if self.gct and f"{name}.downsample.1.weight" in self.w:
            x = self.gate(x, f"{name}.downsample.0")
            x = F.conv2d(x, self.w[f"{name}.downsample.1.weight"], None, stride)
            x = self.norm(x, f"{name}.downsample.2")
        elif f"{name}.downsample.0.weight" in self.w:
            x = self.norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return F.relu(x + y)

    def gate(self, x, name):
        alpha, gamma, beta = (self.w[f"{name}.{key}"] for key in ("alpha", "gamma", "beta"))
        e = alpha * torch.sqrt((x**2).sum((2, 3), keepdim=True) + 1e-5)
        n = gamma / torch.sqrt((e**2).mean(1, keepdim=True) + 1e-5)
        return x * (1 + torch.tanh(e * n + beta))

    def se(self, x, name):
        gate = self.linear(F.relu(self.linear(x.mean((2, 3)), f"{name}.fc.0")), f"{name}.fc.2")
        return x * torch.sigmoid(gate)[:, :, None, None]

    def sge(self, x, name):
        weight, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        groups = []
        for g, part in enumerate(x.chunk(weight.shape[1], 1)):
            t = (part * part.mean((2, 3), keepdim=True)).sum(1, keepdim=True)
            t = (t - t.mean((2, 3), keepdim=True)) / (t.std((2, 3), keepdim=True) + 1e-5)
            groups.append(part * torch.sigmoid(weight[0, g] * t + bias[0, g]))
        return torch.cat(groups, 1)

    def gc(self, x, name):
        w, b = self.w[f"{name}.conv_mask.weight"], self.w[f"{name}.conv_mask.bias"]
        share = torch.softmax(((x * w).sum(1) + b).flatten(1), 1)  # (N, HW)
        context = torch.einsum("ncp,np->nc", x.flatten(2), share)
        start = f"{name}.channel_add_conv"
        hidden = context @ self.w[f"{start}.0.weight"].flatten(1).T + self.w[f"{start}.0.bias"]
        mean, var = hidden.mean(1, keepdim=True), hidden.var(1, unbiased=False, keepdim=True)
        hidden = (hidden - mean) / torch.sqrt(var + 1e-5)
        hidden = (
            hidden * self.w[f"{start}.1.weight"].flatten() + self.w[f"{start}.1.bias"].flatten()
        )
        out = F.relu(hidden) @ self.w[f"{start}.3.weight"].flatten(1).T + self.w[f"{start}.3.bias"]
        return x + out[:, :, None, None]

    def cbam(self, x, name):
        first, last = f"{name}.ChannelGate.mlp.1", f"{name}.ChannelGate.mlp.3"
        pooled = (x.mean((2, 3)), x.amax((2, 3)))
        gate = sum(self.linear(F.relu(self.linear(p, first)), last) for p in pooled)
        x = x * torch.sigmoid(gate)[:, :, None, None]
        pooled = torch.stack([x.amax(1), x.mean(1)], 1)
        gate = self.conv(pooled, f"{name}.SpatialGate.spatial.conv", padding=3)
        return x * torch.sigmoid(self.norm(gate, f"{name}.SpatialGate.spatial.bn"))

    def bam(self, x, name):
        start = f"{name}.channel_att.gate_c.gate_c_"
        c = F.relu(self.norm(self.linear(x.mean((2, 3)), f"{start}fc_0"), f"{start}bn_1"))
        c = self.linear(c, f"{start}fc_final")[:, :, None, None]
        start = f"{name}.spatial_att.gate_s.gate_s_"
        s = F.relu(self.norm(self.conv(x, f"{start}conv_reduce0"), f"{start}bn_reduce0"))
        for i in (0, 1):
            s = self.conv(s, f"{start}conv_di_{i}", padding=4, dilation=4)
            s = F.relu(self.norm(s, f"{start}bn_di_{i}"))
        return x * (1 + torch.sigmoid(c * self.conv(s, f"{start}conv_final")))

    def selective(self, x, name, stride):
        one = F.relu(self.norm(self.conv(x, f"{name}.conv2", stride, 1), f"{name}.bn2"))
        two = F.relu(self.norm(self.conv(x, f"{name}.conv2g", stride, 1, 32), f"{name}.bn2g"))
        z = one.mean((2, 3), keepdim=True) + two.mean((2, 3), keepdim=True)
        z = F.relu(self.norm(self.conv(z, f"{name}.conv_fc1"), f"{name}.bn_fc1"))
        a = torch.softmax(self.conv(z, f"{name}.conv_fc2").unflatten(1, (2, -1)), 1)
        return a[:, 0] * one + a[:, 1] * two


def plain(shapes):
    """The shapes without modules."""
    inside = r"layer\d\.\d+\.(?:conv\d\.|bn\d\.|downsample)|conv1\.|bn1\.|fc\."
    return {name: shape for name, shape in shapes.items() if re.match(inside, name)}
