"""CBAM's two gates with statistics in float32 or better, in any memory format.

Least traffic, in maps read or written. Forward: x for its means and maxima over pixels, x for
those of x' over channels, x for y, which is written (4); x' stays in the cache. Backward: x and dy
for the gradients of both gates as far as they do not pass the spatial gate's layers, x for what
comes back through them, x and dy for dx, which is written (6). The channel gate alone: 3 and 5.

Saved: x, and per (N, C) and per (N, 1, H, W).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mmattn.ops._backend import scaled, statistics_dtype, without_autocast
from mmattn.ops._chunks import Scratch, blocks, weighted_pixels, weighted_sum
from mmattn.ops._operator import needs_plain_backward, plain_gradients, pullback

# the equations, one PyTorch operator after the other ---------------------------------------------


@without_autocast
def channel_gate(x: Tensor, w1: Tensor, b1, w2: Tensor, b2, gate_scale) -> Tensor:
    wide = x.to(statistics_dtype(x))
    gate = _mlp(torch.stack([wide.mean((2, 3)), wide.amax((2, 3))]), w1, b1, w2, b2)
    return x * scaled(gate[:, :, None, None], gate_scale).to(x.dtype)


@without_autocast
def cbam(x: Tensor, w1: Tensor, b1, w2: Tensor, b2, gate_scale, layers: Callable) -> Tensor:
    # each gate by its own neutral value: the second starts on x itself, not on x over 2
    scale = None if gate_scale is None else gate_scale.sqrt()
    wide = channel_gate(x.to(statistics_dtype(x)), w1, b1, w2, b2, scale)
    maps = torch.cat([wide.amax(1, keepdim=True), wide.mean(1, keepdim=True)], 1)
    return (wide * scaled(layers(maps).sigmoid(), scale)).to(x.dtype)


def _mlp(pooled: Tensor, w1: Tensor, b1, w2: Tensor, b2) -> Tensor:
    """The gate of each channel, (N, C), of means and maxima (2, N, C)."""
    w1, b1, w2, b2 = (None if p is None else p.to(pooled.dtype) for p in (w1, b1, w2, b2))
    return F.linear(F.relu(F.linear(pooled, w1, b1)), w2, b2).sum(0).sigmoid()


# passes over the map -----------------------------------------------------------------------------


def _of_channels(v: Tensor, at: tuple) -> Tensor:
    """What belongs to a chunk of (N, C): broadcasts with it."""
    return v[at[0], at[1], None, None]


def _of_pixels(v: Tensor, at: tuple) -> Tensor:
    """What belongs to a chunk of (N, H, W): broadcasts with it."""
    return v[at[0], ..., at[2], :].unsqueeze(-3)


def _pool_pixels(x: Tensor) -> Tensor:
    """Means and maxima over pixels: (N, C, H, W) -> (2, N, C)."""
    dtype = statistics_dtype(x)
    pooled = x.new_zeros((2, *x.shape[:2]), dtype=dtype)
    mean, largest = pooled[0], pooled[1].fill_(-torch.inf)
    scratch = Scratch(dtype)
    for at in blocks(x):
        part = scratch.wide(x[at])
        mean[at[:2]] += part.sum((-2, -1))
        own = largest[at[:2]]
        torch.maximum(own, part.amax((-2, -1)), out=own)
    mean /= x.shape[2] * x.shape[3]
    return pooled


@without_autocast
def forward(x, tensors, options):
    """Of the channel gate alone: y, means and maxima (2, N, C) and the gate (N, C)."""
    *mlp, gate_scale = tensors
    pooled = _pool_pixels(x)
    gate = scaled(_mlp(pooled, *mlp), gate_scale)
    factor = gate.to(x.dtype)
    y = torch.empty_like(x)
    for at in blocks(x):
        torch.mul(x[at], _of_channels(factor, at), out=y[at])
    return y, (pooled, gate)


@without_autocast
def backward(dy, x, tensors, saved, options, needs):
    """Of the channel gate alone: the gradients of x and of the layers."""
    *mlp, gate_scale = tensors
    pooled, gate = saved
    largest, dtype = pooled[1], pooled.dtype
    dgate, ties = torch.zeros_like(gate), torch.zeros_like(gate)
    first, second, third = Scratch(dtype), Scratch(dtype), Scratch(dtype)
    for at in blocks(x):
        part = first.wide(x[at])
        product = second.product(part, third.wide(dy[at]))
        dgate[at[:2]] += product.sum((-2, -1))
        if needs[0]:
            ties[at[:2]] += _where_equal(part, _of_channels(largest, at), product).sum((-2, -1))
    dpooled, *dmlp = pullback(_mlp, (pooled, *mlp), (scaled(dgate, gate_scale),))
    if not needs[0]:
        return None, *dmlp, None
    dmean, dlargest = dpooled[0] / (x.shape[2] * x.shape[3]), dpooled[1] / ties
    dx = torch.empty_like(x)
    for at in blocks(x):
        part = first.wide(x[at])
        found = _where_equal(part, _of_channels(largest, at), second.like(part))
        # two steps: with two numbers a channel in one PyTorch computes value by value
        found.mul_(_of_channels(dlargest, at)).add_(_of_channels(dmean, at))
        _addcmul(found, third.wide(dy[at]), _of_channels(gate, at), dx[at])
    return dx, *dmlp, None


def _where_equal(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """1 where a is b and 0 elsewhere; a mask of bools costs five times as much."""
    return torch.eq(a, b, out=out)


def _addcmul(a: Tensor, b: Tensor, c: Tensor, out: Tensor) -> None:
    """``out = a + b c``; destroys ``a``."""
    if out.dtype == a.dtype:
        torch.addcmul(a, b, c, out=out)
    else:
        out.copy_(a.addcmul_(b, c))


# both gates --------------------------------------------------------------------------------------


def fused(x: Tensor, tensors: tuple, layers: nn.Module, needs_gradient: bool) -> Tensor:
    """Both gates, as one node if a gradient will be asked for."""
    if not needs_gradient:
        return _forward(x, tensors, lambda maps: layers(maps).sigmoid())[0]
    named = dict(layers.named_parameters())
    return _TwoGates.apply(layers, tuple(named), x, *tensors, *named.values())


class _TwoGates(torch.autograd.Function):
    """Both gates as one node, around the small graph of the spatial gate's layers."""

    @staticmethod
    def forward(ctx, layers, names, x, *tensors):
        tensors, parameters = tensors[:5], tensors[5:]
        needs_maps = any(t is not None and t.requires_grad for t in (x, *tensors))
        spatial = _Spatial(layers, names)
        y, *saved = _forward(x, tensors, lambda maps: spatial.forward(maps, parameters, needs_maps))
        ctx.layers, ctx.names, ctx.spatial = layers, names, spatial
        ctx.save_for_backward(x, *tensors, *parameters, *saved, *spatial.taken())
        return y

    @staticmethod
    def backward(ctx, dy):
        x, *rest = ctx.saved_tensors
        tensors, rest = tuple(rest[:5]), rest[5:]
        parameters, saved = tuple(rest[: len(ctx.names)]), tuple(rest[len(ctx.names) :])
        needs = tuple(ctx.needs_input_grad[2:])
        if needs_plain_backward(dy):
            gradients = _differentiable(dy, x, tensors, parameters, ctx.layers, ctx.names, needs)
        else:
            gradients = _backward(x, dy, tensors, saved, ctx.spatial, needs)
        return None, None, *gradients


class _Spatial:
    """The spatial gate's layers, and the small graph that leads back through them.

    What the graph saves is handed to the node around it, so that checkpoints and hooks on saved
    tensors meet one node. The layers run once, so running statistics move once.
    """

    def __init__(self, layers: nn.Module, names: tuple[str, ...]):
        self.layers, self.names = layers, names
        self.kept: list[Tensor] = []  # the same list for ever: the hooks know it

    def forward(self, maps: Tensor, parameters: tuple, needs_maps: bool) -> Tensor:
        """``sigmoid(layers(maps))``, detached."""
        kept = self.kept

        # no methods: the graph would keep self, which keeps the graph, where no collector looks
        def pack(tensor: Tensor) -> int:
            kept.append(tensor)
            return len(kept) - 1

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda index: kept[index])
        with torch.enable_grad(), hooks:
            # leaves of their own: else a hook on a parameter would see its gradient twice
            maps = maps.detach().requires_grad_(needs_maps)
            parameters = [p.detach().requires_grad_(p.requires_grad) for p in parameters]
            own = dict(zip(self.names, parameters, strict=True))
            self.gate = functional_call(self.layers, own, maps).sigmoid()
        self.leaves = [maps, *parameters]
        return self.gate.detach()

    def taken(self) -> list[Tensor]:
        """What the graph saved; :meth:`backward` wants it back."""
        found = list(self.kept)
        self.kept.clear()
        return found

    def backward(self, dgate: Tensor, kept: tuple) -> list[Tensor | None]:
        """The gradients of the maps and of every parameter, None where none is needed."""
        wanted = [leaf for leaf in self.leaves if leaf.requires_grad]
        self.kept[:] = kept
        try:
            found = torch.autograd.grad(
                self.gate, wanted, dgate, retain_graph=True, materialize_grads=True
            )
        finally:
            self.kept.clear()
        found = iter(found)
        return [next(found) if leaf.requires_grad else None for leaf in self.leaves]


@without_autocast
def _forward(x: Tensor, tensors: tuple, spatial: Callable[[Tensor], Tensor]):
    """Returns y, the pooled pixels, the channel gate, the maps and the spatial gate."""
    *mlp, gate_scale = tensors
    scale = None if gate_scale is None else gate_scale.sqrt()
    pooled = _pool_pixels(x)
    c = scaled(_mlp(pooled, *mlp), scale)
    maps = c.new_zeros((x.shape[0], 2, *x.shape[2:]))
    highest, mean = maps.unbind(1)
    highest.fill_(-torch.inf)
    first, second = Scratch(c.dtype), Scratch(c.dtype)
    for at in blocks(x):
        part = second.product(first.wide(x[at]), _of_channels(c, at))
        own = _of_pixels(highest, at)
        torch.maximum(own, part.amax(-3, keepdim=True), out=own)
        _of_pixels(mean, at).add_(part.sum(-3, keepdim=True))
    mean /= x.shape[1]
    s = scaled(spatial(maps), scale).squeeze(1)  # (N, H, W)
    y = torch.empty_like(x)
    for at in blocks(x):
        part = second.product(first.wide(x[at]), _of_channels(c, at))
        if x.dtype == c.dtype:
            torch.mul(part, _of_pixels(s, at), out=y[at])
        else:
            y[at] = part.mul_(_of_pixels(s, at))
    return y, pooled, c, maps, s


@without_autocast
def _backward(x, dy, tensors, saved, spatial: _Spatial, needs) -> list[Tensor | None]:
    """The gradients of x, of tensors and of the layers' parameters."""
    *mlp, gate_scale = tensors
    pooled, c, maps, s, *kept = saved
    scale = None if gate_scale is None else gate_scale.sqrt()
    dtype, through_maps = c.dtype, any(needs[:5])
    largest, highest = pooled[1], maps[:, 0]  # over pixels, and over channels
    ds, ties_over_channels = torch.zeros_like(s), torch.zeros_like(s)
    dc, ties_over_pixels = torch.zeros_like(c), torch.zeros_like(c)
    first, second, third = Scratch(dtype), Scratch(dtype), Scratch(dtype)
    for at in blocks(x):
        part = first.wide(x[at])
        product = second.product(part, third.wide(dy[at]))
        _of_pixels(ds, at).add_(weighted_sum(product, c[at[:2]], third).unsqueeze(-3))
        if not through_maps:
            continue
        dc[at[:2]] += weighted_pixels(product, s[at[0], ..., at[2], :], third)
        torch.mul(part, _of_channels(c, at), out=product)
        found = _where_equal(product, _of_pixels(highest, at), product)
        _of_pixels(ties_over_channels, at).add_(found.sum(-3, keepdim=True))
        if needs[0]:
            found = _where_equal(part, _of_channels(largest, at), product)
            ties_over_pixels[at[:2]] += found.sum((-2, -1))
    dmaps, *dparameters = spatial.backward(scaled(ds, scale).unsqueeze(1), tuple(kept))
    if not through_maps:
        return [None] * 6 + dparameters

    dhighest, dmean = dmaps[:, 0] / ties_over_channels, dmaps[:, 1] / x.shape[1]
    for at in blocks(x):
        part = first.wide(x[at])
        product = second.product(part, _of_channels(c, at))
        found = _where_equal(product, _of_pixels(highest, at), product)
        through = torch.addcmul(_of_pixels(dmean, at), found, _of_pixels(dhighest, at), out=found)
        dc[at[:2]] += through.mul_(part).sum((-2, -1))
    dpooled, *dmlp = pullback(_mlp, (pooled, *mlp), (scaled(dc, scale),))
    dmlp += [None]  # of gate_scale
    if not needs[0]:
        return [None, *dmlp, *dparameters]

    dall, dlargest = dpooled[0] / (x.shape[2] * x.shape[3]), dpooled[1] / ties_over_pixels
    dx = torch.empty_like(x)
    for at in blocks(x):
        part = first.wide(x[at])
        product = second.product(part, _of_channels(c, at))
        found = _where_equal(product, _of_pixels(highest, at), product)
        inner = torch.addcmul(_of_pixels(dmean, at), found, _of_pixels(dhighest, at), out=found)
        inner.addcmul_(third.wide(dy[at]), _of_pixels(s, at))
        inner.mul_(_of_channels(c, at)).add_(_of_channels(dall, at))
        found = _where_equal(part, _of_channels(largest, at), third.like(part))
        _addcmul(inner, found, _of_channels(dlargest, at), dx[at])
    return [dx, *dmlp, *dparameters]


def _differentiable(dy, x, tensors, parameters, layers, names, needs) -> list[Tensor | None]:
    """The gradients through PyTorch's own operators."""

    def plain(*inputs):
        own = dict(zip(names, inputs[6:], strict=True))
        # copies: this is the second time the layers see the batch
        own |= {name: buffer.clone() for name, buffer in layers.named_buffers()}
        return cbam(*inputs[:6], lambda maps: functional_call(layers, own, maps))

    return plain_gradients(plain, (x, *tensors, *parameters), dy, needs)
