"""Child registries under the scope ``mmattn``.

mmengine imports ``<scope>.registry`` by itself when it meets a scope in a config, and the
``locations`` are imported when a name is first looked up: ``type='mmattn.SGE'`` needs no
``custom_imports``.
"""

import difflib
import warnings

from mmattn import _stack

_stack.require()

from mmengine.registry import HOOKS as MMENGINE_HOOKS  # noqa: E402
from mmengine.registry import METRICS as MMENGINE_METRICS  # noqa: E402
from mmengine.registry import MODELS as MMENGINE_MODELS  # noqa: E402
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS  # noqa: E402
from mmengine.registry import Registry  # noqa: E402

__all__ = ["HOOKS", "METRICS", "MODELS", "TRANSFORMS"]

MODELS = Registry(
    "model",
    parent=MMENGINE_MODELS,
    scope="mmattn",
    locations=[
        "mmattn.plugins",
        "mmattn.convs",
        "mmattn.backbones",
        "mmattn.insertion",
        "mmattn.checkpoints.mmengine_loader",  # no model: lets mmengine load .safetensors
    ],
)
HOOKS = Registry(
    "hook",
    parent=MMENGINE_HOOKS,
    scope="mmattn",
    locations=["mmattn.hooks", "mmattn.datasets.corrupt_images_hook"],
)
METRICS = Registry(
    "metric",
    parent=MMENGINE_METRICS,
    scope="mmattn",
    locations=["mmattn.evaluation.coco_size_metric"],
)
TRANSFORMS = Registry(
    "transform",
    parent=MMENGINE_TRANSFORMS,
    scope="mmattn",
    locations=["mmattn.datasets.loading"],
)


def unknown_type(name: str) -> str | None:
    """What is wrong with a type name that no registry of models has; None for a known one."""
    MODELS.import_from_location()
    with warnings.catch_warnings(), MMENGINE_MODELS.switch_scope_and_registry("mmdet") as registry:
        warnings.simplefilter("ignore")  # on scopes, of no use to who mistyped a name
        if registry.get(name) is not None:
            return None
    known = [f"mmattn.{own}" for own in MODELS.module_dict]
    own = name.rpartition(".")[2].lower()
    same = {"selayer": "se", "contextblock": "gc", "nonlocal2d": "nonlocal"}  # of mmdet and mmcv
    near = [k for k in known if k.rpartition(".")[2].lower() == same.get(own, own)]
    near = near or difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"mmattn has {', '.join(sorted(known))}"
    return f"{name!r}, which is not registered; {hint}"
