"""Which checkpoints does a model start from, and what of it is in them?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmattn.inspection import checkpoint_file, config_file
from mmattn.inspection.checkpoint_file import Fit
from mmattn.inspection.modules import Inserted

# places that hold backbones of ImageNet, without attention unless the name says so
PLAIN_PLACES = (
    "torchvision://",
    "modelzoo://",
    "open-mmlab://",
    "openmmlab://",
    "mmcls://",
    "https://download.pytorch.org/models/",
    "https://github.com/huggingface/pytorch-image-models/",
    "https://github.com/rwightman/pytorch-image-models/",
)
ATTENTIVE_NAME = re.compile(
    r"(?<![a-z])(?:se|sge|gc|gct|sk|cbam|bam|eca|srm|simam|nl)[-_]?(?:res|net|3d)"
    r"|d2se|efficientnet|mobilenet_v3|regnet_?y|attention"
)


@dataclass(frozen=True)
class Source:
    """A checkpoint that a model, or a part of it, starts from.

    Args:
        path: A file, or a URL.
        part: The part's name, ``''`` for the whole model.
        fit: How a local file fits; None for one that was not read.
        exact: Every weight comes from it, as in a resumed training.
    """

    path: str
    part: str = ""
    fit: Fit | None = None
    exact: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is a URL that is known to hold no attention modules."""
        name = self.path.rpartition("/")[2].lower()
        return self.path.startswith(PLAIN_PLACES) and not ATTENTIVE_NAME.search(name)

    def covers(self, name: str) -> bool:
        """Whether the module of that name is in the part."""
        return not self.part or name == self.part or name.startswith(self.part + ".")

    def inside(self, name: str) -> str:
        """A module's name as seen from the part."""
        return name[len(self.part) + 1 :] if self.part else name


def sources(model, load_from: str | None = None, resume: bool = False) -> list[Source]:
    """The checkpoints a model starts from; local ones are loaded to see whether they fit.

    Raises:
        PreflightError: A file is no checkpoint, or does not fit.
    """
    while hasattr(model, "module"):
        model = model.module
    found = []
    if load_from:
        fit = None
        if checkpoint_file.is_local(load_from):
            content = checkpoint_file.read(load_from)
            fit = checkpoint_file.check_fit(model, content, load_from, partly=not resume)
        found.append(Source(load_from, fit=fit, exact=resume))
    if resume:
        return found
    for name, part in model.named_modules():
        for path, prefix in config_file.pretrained(getattr(part, "init_cfg", None)):
            fit = None
            if checkpoint_file.is_local(path):
                content = checkpoint_file.read(path, "pretrained checkpoint")
                fit = checkpoint_file.check_fit(part, content, path, partly=True, prefix=prefix)
            found.append(Source(path, name, fit))
    return found


def assign(found: list[Inserted], given: list[Source]) -> None:
    """Notes for each inserted module whether a checkpoint has it, or has its surroundings."""
    for one in found:
        for source in given:
            if not source.covers(one.name):
                continue
            if source.exact or (source.fit and _has(source, one)):
                one.from_checkpoint = True
            elif source.fit is None:
                one.from_plain = one.from_plain or (source.path if source.plain else "")
            elif one.parameters and _surrounds(source, one):  # SimAM leaves no trace in a file
                one.from_plain = one.from_plain or source.path


def _has(source: Source, one: Inserted) -> bool:
    """Whether the file holds the module itself, not a plain convolution that it starts from."""
    state = one.new.state_dict()
    own = [key for key in state if not key.endswith(("num_batches_tracked", "gate_scale"))]
    prefix = source.inside(one.name)
    names = {key: f"{prefix}.{key}" if prefix else key for key in own}
    telling = set(own) - ({"weight", "bias"} if one.conv else set())
    return source.fit.has(names.values()) and any(names[k] in source.fit.shapes for k in telling)


def _surrounds(source: Source, one: Inserted) -> bool:
    """Whether the file holds weights of the block that a module is in."""
    block = source.inside(one.name).rpartition(".")[0]
    return any(name.startswith(f"{block}." if block else "") for name in source.fit.shapes)
