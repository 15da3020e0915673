"""What every attention module has in common."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from itertools import chain

import torch
from mmcv.cnn import build_norm_layer
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mmattn.ops._backend import check_map
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.registry import MODELS


def check_positive_int(owner: str, name: str, value) -> int:
    """Returns ``value``, or raises in the name of ``owner`` unless it is an integer above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{owner} expects {name} to be an integer above 0, got {value!r}")
    return value


def check_choice(owner: str, name: str, value, choices) -> None:
    """Raises in the name of ``owner`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(
            f"{owner} expects {name} to be one of {', '.join(map(repr, choices))}, got {value!r}"
        )


def build_norm(owner: str, norm_cfg: dict, channels: int) -> nn.Module:
    """The norm layer of ``norm_cfg`` for that many channels; raises in the name of ``owner``."""
    if not isinstance(norm_cfg, dict) or "type" not in norm_cfg:
        raise TypeError(f"{owner} expects norm_cfg as dict(type='BN', ...), got {norm_cfg!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on scopes, of no use to who mistyped a name
        known = isinstance(norm_cfg["type"], type) or MODELS.get(norm_cfg["type"]) is not None
    if not known:
        raise ValueError(
            f"{owner} expects the type in norm_cfg to be a registered norm layer such as 'BN', "
            f"'SyncBN' or 'GN', got {norm_cfg['type']!r}"
        )
    try:
        norm = build_norm_layer(norm_cfg, channels)[1]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{owner} cannot build norm_cfg={dict(norm_cfg)} for {channels} channels: "
            f"{error.args[0] if error.args else error}"
        ) from error
    if isinstance(norm, nn.LayerNorm):
        raise ValueError(
            f"{owner} expects a norm layer over the channels of a map, such as 'BN', 'SyncBN' or "
            f"'GN', got {norm_cfg['type']!r}, which is one over the last axis"
        )
    return norm


def normalize(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)`` for x (N, C, ...), in the wider dtype of both, returned in the dtype of ``x``.

    A BatchNorm in training that would see at most one value a channel, where a variance does
    not exist, uses its running statistics and leaves them as they are. A SyncBatchNorm with
    peers does not: they wait for its part, and bring values.
    """
    own = next(chain(norm.parameters(), norm.buffers()), x).dtype
    dtype = torch.promote_types(x.dtype, own)
    value = x.to(dtype)
    if (
        isinstance(norm, nn.modules.batchnorm._BatchNorm)
        and norm.training
        and norm.track_running_stats
        and value.numel() <= value.shape[1]
        and not (isinstance(norm, nn.SyncBatchNorm) and get_world_size() > 1)
    ):
        state = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        state = (None if v is None else v.to(dtype) for v in state)
        value = F.batch_norm(value, *state, False, 0.0, norm.eps)
    elif type(norm) is nn.GroupNorm:
        affine = (None if v is None else v.to(dtype) for v in (norm.weight, norm.bias))
        # the layer itself refuses a single value a group, which is 0 when it is normalised
        value = torch.group_norm(value, norm.num_groups, *affine, norm.eps)
    elif own == dtype:
        value = norm(value)
    else:
        state = chain(norm.named_parameters(), norm.named_buffers())
        wide = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state}
        value = functional_call(norm, wide, value)
        for key, buffer in norm.named_buffers():
            buffer.copy_(wide[key])  # what a BatchNorm moved
    return value.to(x.dtype)


def in_dtype_of(x: Tensor, *parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """The parameters in the dtype of ``x``."""
    return tuple(None if p is None else p.to(x.dtype) for p in parameters)


class AttentionModule(BaseModule):
    """An attention module: (N, C, H, W) in, the same shape, dtype and memory format out.

    A subclass names its parameters as the authors' release does, sets ``_abbr_`` to the
    attribute name there (a file format: it never changes), restores its documented initial
    state in :meth:`reset_parameters`, and calls an operator of :mod:`mmattn.ops`.

    With ``identity_init=True`` the model computes at step 0 exactly what it computed without
    the module: the gate starts at its neutral value and is divided by it. The divisor is the
    buffer ``gate_scale``, so that a checkpoint carries it. Weights trained without it
    (official ones) set it to 1 on loading.

    Args:
        in_channels: C.
        identity_init: Start as identity, by a zeroed last factor and a gate over its neutral
            value.
        neutral: What the gate is while its last factor is zero, before it is divided; 1 needs no
            divisor.

    Raises:
        ValueError: ``in_channels`` is not an integer above 0.
        TypeError: ``identity_init`` is not a bool.
        RuntimeError: On loading weights with a ``gate_scale`` into a module that has none.
    """

    _abbr_: str

    def __init__(self, in_channels: int, identity_init: bool, neutral: float):
        super().__init__()
        name = type(self).__name__
        if not isinstance(identity_init, bool):
            raise TypeError(f"{name} expects identity_init to be a bool, got {identity_init!r}")
        self.in_channels = check_positive_int(name, "in_channels", in_channels)
        self.identity_init = identity_init
        self._neutral = float(neutral)
        divides = identity_init and neutral != 1
        self.register_buffer("gate_scale", torch.tensor(float(neutral)) if divides else None)

    @property
    def identity_at_init(self) -> bool:
        """Whether the module computes y = x after :meth:`init_weights`."""
        return self.identity_init

    @property
    def neutral_factor(self) -> float:
        """What a neutral gate multiplies by: its starting value over ``gate_scale``."""
        return self._neutral / self._divisor

    @property
    def _divisor(self) -> float:
        """``gate_scale``, or 1 where there is none."""
        return 1.0 if self.gate_scale is None else float(self.gate_scale)

    @describes
    def attention(self, x: Tensor) -> list[AttentionMap]:
        """What the module decides about ``x``; nothing, unless a subclass says it.

        Args:
            x: Feature map (N, C, H, W), as it comes into ``forward``.

        Returns:
            One :class:`~mmattn.plugins.maps.AttentionMap` for each gate, mask or added term, in
            float32 or better and without a gradient.
        """
        return []

    def without_attention(self, x: Tensor) -> Tensor:
        """What the module would give if it told nothing apart: ``x`` times the neutral factor.

        Args:
            x: Feature map (N, C, H, W).

        Returns:
            (N, C, H, W): equal to ``x`` with ``identity_init``, and where the module only adds.
        """
        check_map(type(self).__name__, x, self.in_channels)
        return x * self.neutral_factor  # a tensor of its own: what follows may work in place

    def _factor(
        self, name: str, kind: str, values: Tensor, lowest: float = 0, highest: float | None = 1
    ) -> AttentionMap:
        """The module's gate, which lies between the two before it is divided."""
        bounds = tuple(None if b is None else b / self._divisor for b in (lowest, highest))
        return AttentionMap(name, kind, values, neutral=self.neutral_factor, bounds=bounds)

    @abstractmethod
    def reset_parameters(self) -> None:
        """Restores the documented initial values."""

    def init_weights(self) -> None:
        """Restores the documented initial state, whatever a parent's ``init_cfg`` did to it."""
        self.reset_parameters()
        self._is_init = True

    def apply(self, fn):
        """As ``nn.Module.apply``, but a parent's ``init_cfg`` does not reach in.

        mmengine initialises by applying functions to every layer below, in parts of a model
        whose ``init_weights`` never descends to this module.
        """
        if getattr(fn, "__module__", None) == "mmengine.model.weight_init":
            return self
        return super().apply(fn)

    def _hidden_channels(self, ratio: int) -> int:
        """C // ratio, with ``ratio`` checked."""
        name = type(self).__name__
        if isinstance(ratio, float) and 0 < ratio < 1:
            raise ValueError(
                f"{name} expects ratio as an integer divisor of the channels, got the fraction "
                f"{ratio}; for that share give ratio={round(1 / ratio)}"
            )
        check_positive_int(name, "ratio", ratio)
        if ratio > self.in_channels:
            raise ValueError(
                f"{name} expects ratio to be at most the number of channels, "
                f"got ratio={ratio} for in_channels={self.in_channels}"
            )
        return self.in_channels // ratio

    _last_load = None  # the list of missing keys of the load that was logged last

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, *args, **kwargs
    ):
        key = f"{prefix}gate_scale"
        if self.gate_scale is None and key in state_dict:
            raise RuntimeError(
                f"the weights hold {key}: they were trained with identity_init=True, but this "
                f"{type(self).__name__} was built without; set identity_init=True in its config"
            )
        if (
            self.gate_scale is not None
            and key not in state_dict
            and any(prefix + name in state_dict for name, _ in self.named_parameters())
        ):
            state_dict[key] = torch.ones(())
            # every module of one load gets the same list: one line a load, not one a module
            if AttentionModule._last_load is not missing_keys:
                AttentionModule._last_load = missing_keys
                print_log(
                    f"mmattn: the weights of {prefix.rstrip('.') or type(self).__name__} (and of "
                    "others, if any) were trained without gate_scale; it is set to 1",
                    logger="current",
                )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *args, **kwargs
        )
