"""Dynamic region-aware convolution.

Paper: Chen et al., Dynamic Region-Aware Convolution, CVPR 2021, https://arxiv.org/abs/2003.12243
Consulted: the authors' 2024 release and the known re-implementation (names, initial values)
"""

from __future__ import annotations

import zlib

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.convs.base import ConvLayer, run_in_dtype_of
from mmattn.ops import cond_conv2d, region_conv2d
from mmattn.ops._backend import check_map, statistics_dtype, without_autocast
from mmattn.ops.region_conv import output_size
from mmattn.plugins.base import check_choice
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS


@MODELS.register_module()
class DRConv2d(ConvLayer):
    """A convolution whose filter depends on the region that a pixel is in, and on the image.

    A guide scores m regions at every output pixel, and each pixel is convolved with the one
    filter of its best region; the m filters are made for each sample::

        F = guide(x)                                       (N, m, H', W')
        y_p = W_{argmax_j F_jp} * x  (+ bias)              W (N, m, O, C / groups, kh, kw)

    ``generator='template'`` (the authors' release) mixes K shared templates, by a routing of the
    mean of the map; ``generator='paper'`` makes each filter from the map pooled to the size of
    the kernel::

        template:  W_t = sum_k r_tk T_k,   r = 2 sigmoid(fc(mean_hw x)) / K
        paper:     W = conv1x1_{groups=m}(sigmoid(conv1x1(pool_{kh x kw}(x))))   (+ weight)

    In the backward pass the softmax of F stands for the one-hot, see
    :func:`mmattn.ops.region_conv2d`.

    As conv2 of a ResNet's stages: ``dcn=dict(type='mmattn.DRConv2d'), stage_with_dcn=(False,
    False, True, True)``. Weights of a plain convolution load by themselves: a 'template' layer,
    or a 'paper' layer with ``base_filter``, then computes what that convolution computed, while
    its regions are free to part ways in training.

    Paper: https://arxiv.org/abs/2003.12243.
    Reference: authors' release (template): ``weight`` (O C kh kw, K), ``routing_fc``, ``bias``,
    ``masknet``; re-implementation (paper): ``conv_kernel.1``, ``conv_kernel.3``, ``conv_guide``.
    Deviations: the initial scale. Templates are drawn from U(+-sqrt(6 K / fan_in)), fan_in =
    C kh kw / groups, sqrt(K) times the release's, since the mean of K has a K-th of their
    variance; ``conv_kernel.3`` from N(0, 8 / (m fan_in)) and bias 0. The output then varies as
    that of a Kaiming-initialised convolution; the re-implementations leave it to chance.
    ``groups``, ``guide_candidates`` and ``base_filter`` are not in the paper.
    Cost: the multiply-adds of one convolution, those of the guide, and m K O C kh kw / groups
    (paper: m m O C kh kw / groups) a sample for the filters. In training, the gradient of the
    guide takes ``guide_candidates`` convolutions more (all m by default). The filters of each
    sample are kept for the backward pass. Parameters against a plain convolution: K times
    (template), m times and as large a bias over k^2 (paper), and the guide.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: As in ``nn.Conv2d``, like the next seven.
        stride: As in ``nn.Conv2d``.
        padding: As in ``nn.Conv2d``, but no strings.
        dilation: As in ``nn.Conv2d``.
        groups: As in ``nn.Conv2d``: all groups share the regions.
        bias: As in ``nn.Conv2d``: one for all regions.
        padding_mode: As in ``nn.Conv2d``.
        regions: m, at least 2.
        generator: How the filters are made, ``'template'`` or ``'paper'``. 'template' is the
            default: it takes plain weights, and 8 times the parameters for any kernel ('paper'
            takes 72 times those of a 1x1 convolution).
        templates: K, at least 2 ('template' alone).
        guide_kernel_size: Odd; None: 1 for 'template', ``kernel_size`` for 'paper'.
        shared_guide: Make no guide; ``forward`` takes the scores as its second argument.
        guide_candidates: So many regions of the highest score take part in the gradient of the
            guide, at the cost of as many convolutions; None: all, as the authors.
        base_filter: A plain filter ``weight`` (O, C / groups, kh, kw) that the generated ones,
            zero at first, are added to ('paper' alone).

    Attributes:
        keep_region_map: Set it to True, and ``region_map`` holds the regions of the last forward.
        region_map: Integers (N, H', W'), or None while ``keep_region_map`` is False.

    Shape:
        (N, C, H, W) -> (N, O, H', W'); a shared guide: (N, m, any height, any width), which is
        resized to H' x W' by its nearest values.

    Raises:
        ValueError: An argument that is out of range, or does not go with ``generator``.
        TypeError: ``forward`` gets a guide and has its own, or the other way round.
        RuntimeError: On loading a plain convolution's weight into a 'paper' layer without
            ``base_filter``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        regions: int = 8,
        generator: str = "template",
        templates: int = 8,
        guide_kernel_size: int | None = None,
        shared_guide: bool = False,
        guide_candidates: int | None = None,
        base_filter: bool = False,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        check_choice("DRConv2d", "generator", generator, ("template", "paper"))
        _check_at_least_2("regions", regions)
        _check_at_least_2("templates", templates)
        if guide_candidates is not None and not (
            _is_int(guide_candidates) and 2 <= guide_candidates <= regions
        ):
            raise ValueError(
                f"DRConv2d expects guide_candidates from 2 to regions={regions}, or None, "
                f"got {guide_candidates!r}"
            )
        if base_filter and generator == "template":
            raise ValueError(
                "DRConv2d takes base_filter with generator='paper' alone, got "
                "generator='template', whose templates hold a plain filter already"
            )
        if guide_kernel_size is not None and shared_guide:
            raise ValueError(
                "DRConv2d with shared_guide=True makes no guide, "
                f"got guide_kernel_size={guide_kernel_size}; leave out one or the other"
            )
        if guide_kernel_size is not None and not (
            _is_int(guide_kernel_size) and guide_kernel_size > 0 and guide_kernel_size % 2
        ):
            raise ValueError(
                "DRConv2d expects guide_kernel_size to be an odd integer above 0, or None, "
                f"got {guide_kernel_size!r}"
            )
        self.regions = regions
        self.generator = generator
        self.templates = templates
        self.shared_guide = shared_guide
        self.guide_candidates = guide_candidates
        self.keep_region_map = False
        self.region_map: Tensor | None = None
        self._filter_shape = (out_channels, in_channels // groups, *self.kernel_size)
        size = out_channels * in_channels // groups * self.kernel_size[0] * self.kernel_size[1]

        if generator == "template":
            self.weight = nn.Parameter(torch.empty(size, templates))
            self.routing_fc = nn.Linear(in_channels, regions * templates)
            if not shared_guide:
                k = guide_kernel_size or 1
                self.masknet = nn.Conv2d(in_channels, regions, k, padding=k // 2, bias=False)
        else:
            self.conv_kernel = nn.Sequential(
                _PoolTo(self.kernel_size),
                nn.Conv2d(in_channels, regions * regions, 1),
                nn.Sigmoid(),
                nn.Conv2d(
                    regions * regions,
                    regions * out_channels * (in_channels // groups),
                    1,
                    groups=regions,
                ),
            )
            self.register_parameter(
                "weight", nn.Parameter(torch.empty(self._filter_shape)) if base_filter else None
            )
            if not shared_guide:
                own = guide_kernel_size in (None, self.kernel_size[0]) and (
                    guide_kernel_size is None or self.kernel_size[0] == self.kernel_size[1]
                )
                k = self.kernel_size if own else (guide_kernel_size, guide_kernel_size)
                self.conv_guide = nn.Conv2d(
                    in_channels,
                    regions,
                    k,
                    self.stride,
                    self.padding if own else (k[0] // 2, k[1] // 2),
                    self.dilation if own else 1,
                    padding_mode=padding_mode,
                )
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Filters with the variance of Kaiming's, 2 / fan_in; the guide as ``nn.Conv2d``."""
        fan_in = self._filter_shape[1] * self._filter_shape[2] * self._filter_shape[3]
        bound = (6 / fan_in) ** 0.5  # uniform with the variance 2 / fan_in
        if self.generator == "template":
            nn.init.uniform_(self.weight, -bound * self.templates**0.5, bound * self.templates**0.5)
            nn.init.normal_(self.routing_fc.weight, std=0.01)
            nn.init.zeros_(self.routing_fc.bias)
        else:
            self.conv_kernel[1].reset_parameters()
            nn.init.zeros_(self.conv_kernel[3].bias)
            if self.weight is None:
                # a sigmoid near 1/2 is squared to 1/4, and m of them are summed
                std = (8 / (self.regions * fan_in)) ** 0.5
                nn.init.normal_(self.conv_kernel[3].weight, std=std)
            else:
                nn.init.zeros_(self.conv_kernel[3].weight)
                nn.init.uniform_(self.weight, -bound, bound)
        if not self.shared_guide:
            self._guide_conv.reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return (
            f"{super().extra_repr()}, regions={self.regions}, generator={self.generator!r}, "
            f"templates={self.templates}"
        )

    @property
    def _guide_conv(self) -> nn.Conv2d:
        return self.masknet if self.generator == "template" else self.conv_guide

    def filters(self, x: Tensor) -> Tensor:
        """The filters (N, m, O, C / groups, kh, kw) that are made for the maps ``x``."""
        shape = (len(x), self.regions, *self._filter_shape)
        if self.generator == "template":
            routing = self._routing(x)
            return F.linear(routing.flatten(0, 1), self.weight).view(shape)
        made = self.conv_kernel(x).reshape(shape)
        return made if self.weight is None else made + self.weight

    def _routing(self, x: Tensor) -> Tensor:
        """The routing r (N, m, K), from the means of the map in float32 or better."""

        @without_autocast
        def route(x):
            mean = x.mean((2, 3), dtype=statistics_dtype(x)).to(self.routing_fc.weight.dtype)
            return 2 * self.routing_fc(mean).sigmoid() / self.templates

        return route(x).view(len(x), self.regions, self.templates)

    def forward(self, x: Tensor, guide: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W'); ``guide`` with ``shared_guide`` alone."""
        guide = self._scores(x, guide)
        region = guide.detach().argmax(1)
        self.region_map = region if self.keep_region_map else None
        filters = self.filters(x)
        x, padding = self._padded(x)
        y = region_conv2d(
            x,
            filters,
            region,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            guide=guide,
            candidates=self.guide_candidates,
        )
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    def _scores(self, x: Tensor, guide: Tensor | None) -> Tensor:
        """The scores (N, m, H', W') of the regions, checked, of the output's size."""
        check_map("DRConv2d", x, self.in_channels)
        if (guide is not None) != self.shared_guide:
            raise TypeError(
                f"DRConv2d with shared_guide={self.shared_guide} expects "
                + ("a guide as second argument" if self.shared_guide else "no guide")
                + f", got {'none' if guide is None else 'one'}"
            )
        height, width = (e + 2 * p for e, p in zip(x.shape[2:], self.padding, strict=True))
        out_size = output_size(
            (height, width), self.kernel_size, self.stride, (0, 0), self.dilation
        )
        if guide is None:
            guide = self._guide_conv(x)
        elif guide.dim() != 4 or guide.shape[:2] != (len(x), self.regions):
            raise ValueError(
                f"DRConv2d expects a guide (N, m, H, W) = ({len(x)}, {self.regions}, H, W), "
                f"got {tuple(guide.shape)}"
            )
        if tuple(guide.shape[2:]) != out_size:
            guide = F.interpolate(guide, out_size, mode="nearest")
        return guide

    @describes
    def attention(self, x: Tensor, guide: Tensor | None = None) -> list[AttentionMap]:
        """The region of each output pixel, and how far the regions' filters are apart.

        Args:
            x: Feature map (N, C, H, W).
            guide: As in ``forward``: with ``shared_guide`` alone.

        Returns:
            'regions', integers (N, H', W'). 'filter distances', (N, m, m): the Frobenius norm of
            each difference ``W_i - W_j``, over the mean norm of the sample's m filters. The
            scores are made in float32 or better: in a forward pass in half precision, a pixel
            whose best two are as good as equal may have had the other region.

        Raises:
            TypeError: As ``forward``.
            ValueError: As ``forward``.
        """
        region, filters = run_in_dtype_of(
            x, self, lambda layer: (layer._scores(x, guide).argmax(1), layer.filters(x))
        )
        filters = filters.flatten(2)
        # not by a matrix product, which would give two equal filters a distance
        apart = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")
        norm = filters.norm(dim=2).mean(1).clamp(min=torch.finfo(x.dtype).tiny)
        regions = AttentionMap(
            "regions",
            "regions",
            region,
            "detail",
            bounds=(0, self.regions - 1),
            count=self.regions,
            stride=tuple(map(float, self.stride)),
            offset=tuple(
                (k - 1) * d / 2 - p
                for k, d, p in zip(self.kernel_size, self.dilation, self.padding, strict=True)
            ),
        )
        distances = AttentionMap(
            "filter distances",
            "distances",
            apart / norm[:, None, None],
            "detail",
            bounds=(0, None),
            count=self.regions,
        )
        return [regions, distances]

    def without_attention(self, x: Tensor, guide: Tensor | None = None) -> Tensor:
        """What the layer would give without regions: each pixel by the mean of the m filters.

        Args:
            x: Feature map (N, C, H, W).
            guide: Taken as in ``forward``, and of no effect.

        Returns:
            (N, O, H', W').
        """
        check_map("DRConv2d", x, self.in_channels)
        filters = self.filters(x).mean(1)
        # each sample is an expert that has all of one sample
        one_each = torch.eye(len(x), dtype=filters.dtype, device=x.device)
        x, padding = self._padded(x)
        y = cond_conv2d(x, filters, one_each, self.stride, padding, self.dilation, self.groups)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    _last_load = None  # the list of missing keys of the load that was logged last

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, *args, **kwargs
    ):
        plain = state_dict.get(prefix + "weight")
        fresh = not any(prefix + name in state_dict for name in self._own_names())
        if plain is not None and plain.dim() == 4 and fresh:
            self._start_from(plain, state_dict, prefix)
            # all modules of one load get the same list: one line a load, not one a layer
            if DRConv2d._last_load is not missing_keys:
                DRConv2d._last_load = missing_keys
                print_log(
                    f"mmattn: {prefix.rstrip('.') or 'DRConv2d'} (and others, if any) starts from "
                    "the weight of a plain convolution, in every region",
                    logger="current",
                )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *args, **kwargs
        )

    def _own_names(self) -> list[str]:
        return [name for name in self.state_dict() if name not in ("weight", "bias")]

    def _start_from(self, plain: Tensor, state_dict, prefix: str) -> None:
        """Puts into ``state_dict`` what makes every region's filter the plain one."""
        if self.generator == "paper" and self.weight is None:
            raise RuntimeError(
                f"the weights hold {prefix}weight of a plain convolution, which DRConv2d with "
                "generator='paper' cannot start from; set base_filter=True, or "
                "generator='template'"
            )
        if tuple(plain.shape) != self._filter_shape:
            raise RuntimeError(
                f"{prefix}weight: DRConv2d expects the weight of a plain convolution "
                f"{self._filter_shape}, got {tuple(plain.shape)}"
            )
        start = {
            name: value
            for name, value in self.state_dict().items()
            if name not in ("weight", "bias")
        }
        if self.generator == "template":
            # the mean of the templates is the plain filter, and the routing takes the mean
            start["weight"] = self._templates_around(plain, prefix)
            zero = ("routing_fc.weight", "routing_fc.bias")
        else:
            zero = ("conv_kernel.3.weight", "conv_kernel.3.bias")
        start.update({name: torch.zeros_like(start[name]) for name in zero})
        if self.bias is not None and prefix + "bias" not in state_dict:
            start["bias"] = torch.zeros_like(self.bias)
        state_dict.update({prefix + name: value for name, value in start.items()})

    def _templates_around(self, plain: Tensor, prefix: str) -> Tensor:
        """Templates (O C kh kw, K) whose mean is ``plain``, each as far from it as it is wide.

        Equal templates would get equal gradients for ever.
        """
        # the layer's name is the seed: every process of a distributed run draws the same
        seed = torch.Generator().manual_seed(zlib.crc32(prefix.encode()))
        size = (plain.numel(), self.templates)
        noise = torch.randn(size, generator=seed, dtype=torch.float64)
        noise -= noise.mean(1, keepdim=True)
        centre = plain.detach().to("cpu", torch.float64)
        return (centre.flatten()[:, None] + centre.std(correction=0) * noise).to(self.weight.dtype)


class _PoolTo(nn.Module):
    """Adaptive average pooling by plain means: its gradient is deterministic, and it exports."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        bands = [
            [(i * extent // k, ((i + 1) * extent + k - 1) // k) for i in range(k)]
            for extent, k in zip(x.shape[2:], self.size, strict=True)
        ]
        means = [x[..., a:b, c:d].mean((2, 3)) for a, b in bands[0] for c, d in bands[1]]
        return torch.stack(means, -1).unflatten(-1, self.size)


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_at_least_2(name: str, value) -> None:
    if not _is_int(value) or value < 2:
        raise ValueError(f"DRConv2d expects {name} to be an integer from 2 on, got {value!r}")
