"""Names of layers that people can read."""

from __future__ import annotations

import re

# what a detector calls the parts in which modules are put
PARTS = {
    "bbox_head": "box head",
    "mask_head": "mask head",
    "rpn_head": "RPN",
    "roi_head": "RoI head",
    "lateral_convs": "lateral conv",
    "fpn_convs": "output conv",
    "cls_convs": "class conv",
    "reg_convs": "box conv",
    "downsample": "downsample",
}

# a number behind them counts blocks; behind those with a dot, stages
BLOCKS = re.compile(r"layer\d+|stage\d+|blocks|features")
STAGES = ("stages", "layers")
PLACES = ("backbone", "neck", "model")


def stage(name: str) -> str:
    """Of a module by its name in the model: ``'c2'`` to ``'c5'``, ``'stem'``, or the part it is in.

    Args:
        name: ``'backbone.layer1.0.sge'``.
    """
    if match := re.search(r"(?:^|\.)layer(\d)(?:\.|$)", name):
        return f"c{int(match[1]) + 1}"
    if match := re.search(r"(?:^|\.)stage(\d)(?:\.|$)", name):
        return f"stage {match[1]}"
    if match := re.search(r"(?:^|\.)(?:stages|layers)\.(\d)(?:\.|$)", name):
        return f"stage {int(match[1]) + 1}"
    if re.search(r"(?:^|\.)stem(?:\.|$)|^(?:backbone\.)?(?:conv|bn|norm)1(?:\.|$)", name):
        return "stem"
    steps = name.split(".")
    if steps[0] == "backbone" and len(steps) > 1:
        return steps[1]
    return PARTS.get(steps[0], steps[0])


def label(name: str, own: str = "") -> str:
    """Where a module is, for people: ``'c2, block 1'`` or ``'neck, lateral conv 2'``.

    Args:
        name: ``'backbone.layer1.0.sge'``.
        own: What the module itself is usually called, ``'sge'``: left out.
    """
    where = stage(name)
    steps = name.split(".")
    if own and re.sub(r"_?\d+$", "", steps[-1]) == own:
        steps.pop()
    words: list[str] = []
    before = ""
    for number, step in enumerate(steps):
        if step.isdigit():
            nested = number > 1 and steps[number - 2] in STAGES
            if BLOCKS.fullmatch(before) or nested:
                words.append(f"block {int(step) + 1}")
            elif before.endswith("s") and before not in STAGES and words:
                words[-1] += f" {int(step) + 1}"
        elif not (step in (*PLACES, *STAGES, "stem") or BLOCKS.fullmatch(step)):
            words.append(_step(step))
        before = step
    return ", ".join(dict.fromkeys([where, *(word for word in words if word != where)]))


def _step(step: str) -> str:
    return PARTS.get(step, step.replace("_", " "))
