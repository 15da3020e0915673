"""How do official weights get in? Files are recognised by the names in them, and renamed.

Nothing here knows a model; whether the result fits one is told by
:mod:`mmattn.inspection.conversion`.
"""

from mmattn.checkpoints.files import CheckpointError, check_target, read, source, write
from mmattn.checkpoints.model_config import as_python, model_config
from mmattn.checkpoints.names import Conversion, convert

__all__ = [
    "CheckpointError",
    "Conversion",
    "as_python",
    "check_target",
    "convert",
    "model_config",
    "read",
    "source",
    "write",
]
