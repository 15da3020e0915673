"""Style pooling and integration of the style-based recalibration module."""

from __future__ import annotations

from torch import Tensor

from mmattn.ops._backend import check_map, select
from mmattn.ops.srm import eager, reference

_IMPLEMENTATIONS = {"reference": reference.srm, "eager": eager.srm}


def srm(x: Tensor, cfc: Tensor, eps: float = 1e-5) -> Tensor:
    """Style of each channel, weighted: the part of SRM in front of its BatchNorm.

    ``z = cfc_0 mean_hw(x) + cfc_1 sqrt(var_hw(x) + eps)``, the variance unbiased; SRM is then
    ``y = x * sigmoid(BatchNorm(z))``, see :class:`mmattn.SRM`.

    Paper: SRM, A Style-based Recalibration Module, https://arxiv.org/abs/1903.10829.

    Args:
        x: Feature map (N, C, H, W).
        cfc: (C, 2).
        eps: Added to the variance.

    Returns:
        (N, C), in float32 or better (with the backend ``'reference'`` in the dtype of ``x``).

    Raises:
        ValueError: ``x`` is not (N, C, H, W), or ``cfc`` not (C, 2).
        TypeError: ``x`` is not floating point.
    """
    if cfc.dim() != 2 or cfc.shape[1] != 2:
        raise ValueError(f"srm expects cfc of shape (C, 2), got {tuple(cfc.shape)}")
    check_map("srm", x, cfc.shape[0])
    return select("srm", _IMPLEMENTATIONS)(x, cfc, eps)
