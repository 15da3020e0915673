"""The non-local block.

Paper: Wang et al., Non-local Neural Networks, CVPR 2018, https://arxiv.org/abs/1711.07971
Consulted: mmcv's NonLocal2d (names, initial values, arguments)
"""

from __future__ import annotations

import torch
from mmcv.cnn import ConvModule
from mmengine.model import constant_init, normal_init
from torch import Tensor, nn

from mmattn.ops import non_local
from mmattn.ops._backend import check_map
from mmattn.ops.non_local import MODES, reference
from mmattn.plugins._gates import check_bool, zero_affine
from mmattn.plugins.base import AttentionModule, build_norm, check_choice, in_dtype_of, normalize
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS


@MODELS.register_module()
class NonLocal(AttentionModule):
    """Non-local block: adds to each position a weighted sum over all positions of the map.

    ::

        y_i = x_i + Wz sum_j f_ij g(x_j)              g, theta, phi: 1x1 convolutions, C -> P
        embedded_gaussian:  f_ij = softmax_j(theta(x_i) . phi(x_j) / sqrt(P))
        gaussian:           f_ij = softmax_j(x_i . x_j)
        dot_product:        f_ij = theta(x_i) . phi(x_j) / M         M: the number of the j
        concatenation:      f_ij = relu(wf . [theta(x_i), phi(x_j)]) / M

    Paper: https://arxiv.org/abs/1711.07971.
    Reference: mmcv's NonLocal2d; parameter names ``{g,theta,phi,conv_out}.conv.*``,
    ``conv_out.bn.*``, ``concat_project.conv.weight``; with ``sub_sample`` ``g.0.conv.*`` and
    ``phi.0.conv.*``.
    Deviations: the division by sqrt(P) is mmcv's, the paper has none (``use_scale=False``). A side
    of one pixel is not pooled (mmcv raises). The norm layer, in training, uses its running
    statistics where it would see one value a channel.
    Identity at init: yes; Wz is zero, or with ``norm_cfg`` the affine of the norm layer.
    Cost: 4 C P + 3 P + C parameters (2 C P fewer in 'gaussian'); the time grows with (HW)^2 in the
    modes with a softmax and with HW in the others, the memory with HW in all.

    Args:
        in_channels: C.
        ratio: Divisor of C that gives the inner width P = C // ratio; mmcv's ``reduction``.
        mode: One of the four above.
        use_scale: The division by sqrt(P) in 'embedded_gaussian'; the other modes have none.
        sub_sample: Take the j from the map pooled by 2 (maximum), a quarter of the positions.
        norm_cfg: A norm layer after Wz, which then has no bias; None: no norm layer.
        identity_init: Accepted; the block starts as identity either way.

    Shape:
        (N, C, H, W) in and out.

    Raises:
        ValueError: ``ratio`` is no integer in [1, C], ``mode`` is unknown, ``norm_cfg`` cannot be
            built, or ``identity_init`` comes with a norm layer that has nothing to learn.
        TypeError: ``use_scale`` or ``sub_sample`` is no bool, or ``norm_cfg`` no dict with a type.
    """

    _abbr_ = "nonlocal_block"

    def __init__(
        self,
        in_channels: int,
        ratio: int = 2,
        mode: str = "embedded_gaussian",
        use_scale: bool = True,
        sub_sample: bool = False,
        norm_cfg: dict | None = None,
        identity_init: bool = False,
    ):
        check_choice("NonLocal", "mode", mode, MODES)
        super().__init__(in_channels, identity_init, neutral=1.0)
        hidden = self._hidden_channels(ratio)
        self.mode = mode
        self.use_scale = check_bool("NonLocal", "use_scale", use_scale)
        self.sub_sample = check_bool("NonLocal", "sub_sample", sub_sample)
        if norm_cfg is not None:
            build_norm("NonLocal", norm_cfg, in_channels)  # for its errors
        names = ("g",) if mode == "gaussian" else ("g", "theta", "phi")
        for name in names:
            block = ConvModule(in_channels, hidden, 1, act_cfg=None)
            # the operator pools; the sequence is there for mmcv's names
            pooled = sub_sample and name != "theta"
            setattr(self, name, nn.Sequential(block, nn.MaxPool2d(2)) if pooled else block)
        if mode == "concatenation":
            self.concat_project = ConvModule(2 * hidden, 1, 1, bias=False)
        self.conv_out = ConvModule(hidden, in_channels, 1, norm_cfg=norm_cfg, act_cfg=None)
        self.reset_parameters()

    @property
    def identity_at_init(self) -> bool:
        """True, unless the norm layer has no factor that could be zero."""
        norm = self.conv_out.norm
        return norm is None or any(True for _ in norm.parameters())

    def _conv(self, name: str) -> nn.Conv2d | None:
        block = getattr(self, name, None)  # theta and phi are not in every mode
        if isinstance(block, nn.Sequential):
            block = block[0]
        return None if block is None else block.conv

    def _projection(self, name: str) -> tuple[Tensor, Tensor | None] | None:
        conv = self._conv(name)
        return None if conv is None else (conv.weight, conv.bias)

    def reset_parameters(self) -> None:
        """g, theta and phi N(0, 0.01), biases 0; Wz zero, or the affine of its norm layer."""
        for name in ("g", "theta", "phi"):
            if (conv := self._conv(name)) is not None:
                normal_init(conv, std=0.01)
        if self.mode == "concatenation":
            self.concat_project.init_weights()
        norm = self.conv_out.norm
        if norm is None:
            constant_init(self.conv_out.conv, 0)
            return
        self.conv_out.init_weights()
        norm.reset_parameters()
        if self.identity_init:
            zero_affine(self, norm)
        else:
            constant_init(norm, 0)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{self.in_channels}, mode={self.mode}, use_scale={self.use_scale}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        concat = self._conv("concat_project")
        branch = non_local(
            x,
            self._projection("g"),
            self._projection("conv_out"),
            self._projection("theta"),
            self._projection("phi"),
            None if concat is None else concat.weight,
            self.mode,
            self.use_scale,
            self.sub_sample,
        )
        if self.conv_out.norm is not None:
            branch = normalize(self.conv_out.norm, branch)
        return x + branch

    @describes
    def attention(self, x: Tensor, queries: Tensor | None = None) -> list[AttentionMap]:
        """The weights f_ij of a few positions i, the queries, for all positions j.

        Args:
            x: Feature map (N, C, H, W).
            queries: Cells (Q, 2) of ``x`` that ask, integers, row and column; None: a grid of
                8 x 8 cells, evenly spread, or as many as there are.

        Returns:
            One map (N, Q, H', W'); with ``sub_sample`` a cell of it stands for 2 x 2 of ``x``.
            They sum to 1 in the modes with a softmax; in the others they are divided by H' W'.

        Raises:
            ValueError: ``queries`` is not (Q, 2) integers, or lies outside ``x``.
        """
        check_map("NonLocal", x, self.in_channels)
        queries = _cells(queries, x)
        theta, phi = self._projection("theta"), self._projection("phi")
        asking = x[:, :, queries[:, 0], queries[:, 1]].unsqueeze(3)
        keys = x
        if theta is not None:
            asking = reference.conv(asking, in_dtype_of(x, *theta))
            keys = reference.conv(x, in_dtype_of(x, *phi))
        keys = reference.pool(keys, self.sub_sample)
        concat = self._conv("concat_project")
        weights = reference.weights(
            reference.tokens(asking),
            reference.tokens(keys),
            *in_dtype_of(x, None if concat is None else concat.weight),
            self.mode,
            self.use_scale,
        )
        pooled = [self.sub_sample and side > 1 for side in x.shape[2:]]  # see reference.pool
        highest = 1 if self.mode.endswith("gaussian") else None
        return [
            AttentionMap(
                "attention",
                "weights",
                weights.unflatten(2, keys.shape[2:]),
                "detail",
                bounds=(None if self.mode == "dot_product" else 0, highest),
                queries=queries,
                stride=tuple(2.0 if p else 1.0 for p in pooled),
                offset=tuple(0.5 if p else 0.0 for p in pooled),
            )
        ]


def _cells(queries: Tensor | None, x: Tensor) -> Tensor:
    """The cells (Q, 2) that ask, checked; by default the middles of 8 x 8 equal parts."""
    if queries is None:
        rows, columns = (
            ((torch.arange(k, device=x.device) + 0.5) * side / k).long()
            for side in x.shape[2:]
            for k in [min(8, side)]
        )
        return torch.cartesian_prod(rows, columns)
    cells = torch.as_tensor(queries, device=x.device)
    integers = not (cells.is_floating_point() or cells.is_complex() or cells.dtype == torch.bool)
    if cells.dim() != 2 or cells.shape[1] != 2 or not integers:
        raise ValueError(
            "NonLocal expects queries as integers (Q, 2), row and column of a cell, got "
            f"{cells.dtype} of shape {tuple(cells.shape)}"
        )
    outside = (cells < 0) | (cells >= cells.new_tensor(x.shape[2:]))
    if outside.any():
        raise ValueError(
            f"NonLocal expects queries inside the map of {x.shape[2]} x {x.shape[3]} cells, got "
            f"{cells[outside.any(1)][0].tolist()}"
        )
    return cells.long()
