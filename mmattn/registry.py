"""Child registries under the scope ``mmattn``.

mmengine imports ``<scope>.registry`` by itself when it meets a scope in a config, and the
``locations`` are imported when a name is first looked up: ``type='mmattn.SGE'`` needs no
``custom_imports``.
"""

from mmattn import _stack

_stack.require()

from mmengine.registry import METRICS as MMENGINE_METRICS  # noqa: E402
from mmengine.registry import MODELS as MMENGINE_MODELS  # noqa: E402
from mmengine.registry import Registry  # noqa: E402

__all__ = ["METRICS", "MODELS"]

MODELS = Registry(
    "model",
    parent=MMENGINE_MODELS,
    scope="mmattn",
    locations=["mmattn.plugins", "mmattn.convs", "mmattn.backbones"],
)
METRICS = Registry(
    "metric",
    parent=MMENGINE_METRICS,
    scope="mmattn",
    locations=["mmattn.evaluation.coco_size_metric"],
)
