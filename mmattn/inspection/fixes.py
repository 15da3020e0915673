"""Which line of a config changes that?"""

from __future__ import annotations

import inspect
import re

from mmattn.checkpoints import as_python
from mmattn.inspection import modules
from mmattn.inspection.modules import Inserted, Slot

# modules of mmcv, and those of mmattn that compute the same
EQUIVALENTS = {"ContextBlock": "mmattn.GC", "NonLocal2d": "mmattn.NonLocal"}


class Fixes:
    """Lines for a config, as a child of it would have them.

    A list of plug-ins stands in one line as a whole: later lines have the changes of earlier ones.

    Args:
        cfg: The whole config.
    """

    def __init__(self, cfg):
        self.cfg = cfg
        self._plugins: dict[tuple, list] = {}

    def line(self, key: str, value) -> str:
        """``key = value``."""
        return f"{key} = {as_python(_over(self.cfg, {key: bare(value)})[key])}"

    def model(self, path: tuple, **changes) -> str:
        """The line that changes keys of the part of the model's config at ``path``."""
        lists = [i for i, key in enumerate(path) if isinstance(key, int)]
        if lists:  # a child config replaces a list as a whole
            path, inner = path[: lists[0]], path[lists[0] :]
            whole = bare(at(self.cfg["model"], path))
            at(whole, inner).update(changes)
            path, changes = path[:-1], {path[-1]: whole}
        value = changes
        for key in reversed(path):
            value = {key: value}
        return self.line("model", value)

    def arguments(self, slot: Slot, **arguments) -> str:
        """The line that gives arguments to the module in a slot."""
        if slot.key != "plugins":
            return self.model(slot.path, **{slot.key: arguments})
        return self.plugin(slot, cfg=self._list(slot)[slot.index]["cfg"] | arguments)

    def plugin(self, slot: Slot, **changes) -> str:
        """The line that changes one entry of a list of plug-ins."""
        self._list(slot)[slot.index] |= changes
        return self.model(slot.path, plugins=self._list(slot))

    def _list(self, slot: Slot) -> list:
        plugins = at(self.cfg["model"], slot.path)["plugins"]
        return self._plugins.setdefault(slot.path, list(bare(plugins)))

    def start(self, one: Inserted) -> str:
        """The line after which the model computes at the start what the plain one does."""
        arguments = inspect.signature(type(one.module)).parameters if one.slot else ()
        if one.start.refusal and "base_filter" in arguments:
            return self.arguments(one.slot, base_filter=True)
        # SimAM, which has no parameters, takes the argument to say that it cannot
        if "identity_init" in arguments and one.parameters:
            return self.arguments(one.slot, identity_init=True)
        if ours := equivalent(one):
            return self.plugin(one.slot, cfg=ours | {"identity_init": True})
        return self.pretrained(one, f"checkpoints/<trained with {one.type}>.pth")

    def pretrained(self, one: Inserted, checkpoint: str) -> str:
        """The line that starts the part that a module is in from a checkpoint."""
        init_cfg = dict(type="Pretrained", checkpoint=checkpoint)
        return self.model(self.owner(one, "init_cfg") or (), init_cfg=init_cfg)

    def thaw(self, several: list[Inserted]) -> str:
        """The line that lets frozen modules learn."""
        path = self.owner(several[0], "frozen_stages")
        if path is None:
            return self.start(several[0])
        layers = [re.search(r"(?:^|\.)layer(\d)(?:\.|$)", one.name) for one in several]
        # the stages below go on being frozen
        stages = min((int(match[1]) - 1 if match else -1) for match in layers)
        return self.model(path, frozen_stages=stages)

    def owner(self, one: Inserted, key: str) -> tuple | None:
        """Where the config has the outermost part with a module in it that takes ``key``."""
        steps = one.name.split(".")
        for path, node in modules.nodes(self.cfg["model"]):
            cls = modules.class_of(node.get("type")) if path and path[-1] in steps else None
            if cls and modules.takes(cls, key):
                return path
        return None


def equivalent(one: Inserted) -> dict | None:
    """The config of a module of mmcv as that of mmattn's module, where there is one."""
    ours = EQUIVALENTS.get(one.type.rpartition(".")[2]) if one.slot else None
    if ours is None:
        return None
    cfg = dict(bare(one.slot.cfg), type=ours)
    if ours == "mmattn.GC":
        cfg["ratio"] = round(1 / cfg["ratio"])
        if "pooling_type" in cfg:
            cfg["pooling"] = cfg.pop("pooling_type")
        if "fusion_types" in cfg:
            cfg["fusion"] = tuple(name[len("channel_") :] for name in cfg.pop("fusion_types"))
    return cfg


def _over(old, new: dict) -> dict:
    """``new`` as mmengine wants it over ``old``: no dict inherits from what is none."""
    result = {}
    for key, value in new.items():
        if isinstance(value, dict) and key in old:
            known = isinstance(old[key], dict)
            value = _over(old[key], value) if known else {"_delete_": True, **value}
        result[key] = value
    return result


def at(tree, path: tuple):
    """The value at the end of a path of keys."""
    for key in path:
        tree = tree[key]
    return tree


def bare(value):
    """A copy in plain dicts and lists, classes by their names."""
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(bare, value))
    return f"{value.__module__}.{value.__qualname__}" if inspect.isclass(value) else value
