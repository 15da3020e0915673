"""SimAM with statistics in float32 or better."""

from __future__ import annotations

from torch import Tensor

from mmattn.ops._backend import statistics_dtype, without_autocast
from mmattn.ops.simam import reference


@without_autocast
def simam(x: Tensor, e_lambda=1e-4) -> Tensor:
    return reference.simam(x.to(statistics_dtype(x)), e_lambda).to(x.dtype)
