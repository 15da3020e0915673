"""The operators as pure functions: no parameters of their own, no registry.

Each operator's folder holds ``reference.py``, the paper's equation, and faster
implementations; :func:`use_backend` chooses between them.
"""

from mmattn.ops._backend import BACKENDS, get_backend, use_backend
from mmattn.ops.cbam import cbam
from mmattn.ops.cond_conv import cond_conv2d
from mmattn.ops.eca import eca
from mmattn.ops.gc import GCTransform, gc
from mmattn.ops.gct import gct
from mmattn.ops.non_local import non_local
from mmattn.ops.region_conv import region_conv2d
from mmattn.ops.se import se
from mmattn.ops.sge import sge
from mmattn.ops.simam import simam
from mmattn.ops.snl import snl
from mmattn.ops.srm import srm

__all__ = [
    "BACKENDS",
    "GCTransform",
    "cbam",
    "cond_conv2d",
    "eca",
    "gc",
    "gct",
    "get_backend",
    "non_local",
    "region_conv2d",
    "se",
    "sge",
    "simam",
    "snl",
    "srm",
    "use_backend",
]
