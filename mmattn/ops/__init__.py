"""The operators as pure functions: no parameters of their own, no registry.

Each operator's folder holds ``reference.py``, the paper's equation, and faster
implementations; :func:`use_backend` chooses between them.
"""

from mmattn.ops._backend import BACKENDS, get_backend, use_backend
from mmattn.ops.gc import GCTransform, gc
from mmattn.ops.gct import gct
from mmattn.ops.region_conv import region_conv2d
from mmattn.ops.se import se
from mmattn.ops.sge import sge

__all__ = [
    "BACKENDS",
    "GCTransform",
    "gc",
    "gct",
    "get_backend",
    "region_conv2d",
    "se",
    "sge",
    "use_backend",
]
