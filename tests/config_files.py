"""The config files that tests run over: what their names say, and a sample of them."""

import copy
import functools
import re
from pathlib import Path

from mmengine import Config

CONFIGS = Path(__file__).parents[1] / "configs"
DEMO = sorted((CONFIGS / "demo").glob("*.py"))
PLAIN = sorted((CONFIGS / "_base_").glob("*_coco.py"))
# the zoo: the folders of papers
COCO = sorted(p for p in CONFIGS.glob("*/*_coco.py") if (p.parent / "metafile.yml").is_file())

NAME = re.compile(
    r"(?P<detector>[a-z]+(?:-rcnn)?)"
    r"_(?:r(?P<depth>50|101)(?P<width>w16)?|(?P<resnext>x101-32x4d)"
    r"|shufflenet-v2-x(?P<widen>\d\.\d))(?P<syncbn>-syncbn)?"
    r"(?:-(?P<module>[a-z]+)(?:-r(?P<ratio>\d+))?(?:-m(?P<regions>\d+))?"
    r"-c(?P<first>\d)(?:-c(?P<last>\d))?)?(?P<pre>-pre)?_(?P<neck>fpn)"
    r"_(?P<recipe>(?:pi-)?(?:\dxb\d-)?)(?P<schedule>[12]x|20e|\d+it)_(?P<dataset>coco|shapes)"
)


@functools.cache
def load(path):
    """A parsed config, the same for all tests of a process: not to be written to."""
    return Config.fromfile(path)


def parse(path):
    """The parts of a config's name."""
    match = NAME.fullmatch(path.stem)
    assert match, f"{path.name} does not follow the naming scheme of docs/configs.md"
    return match


def cover(paths):
    """One config of each module in each variant, of each detector and of each backbone."""
    seen, chosen = set(), []
    for path in sorted(
        paths, key=lambda path: ("_r50" not in path.name, "faster" not in path.name)
    ):
        match = parse(path)
        backbone = match["depth"], match["resnext"], match["widen"], match["syncbn"]
        keys = {match["detector"], (match["module"], match["pre"]), backbone}
        if keys - seen:
            seen |= keys
            chosen.append(path)
    return chosen


def narrow(config):
    """A copy of a config whose model is a quarter as wide or less, where that is possible."""
    config = copy.deepcopy(config)
    backbone, neck = config.model.backbone, config.model.get("neck")
    if "depth" in backbone and "base_channels" not in backbone:
        # the two branches of SK have 32 groups
        backbone.base_channels = 32 if backbone.type == "mmattn.SKResNet" else 16
        neck.in_channels = [backbone.base_channels * 4 * 2**i for i in range(4)]
    model = config.model
    if "rpn" in model.test_cfg:
        model.test_cfg.rpn.max_per_img = 20
    roi = model.get("roi_head", {})
    for part in (neck, model.get("rpn_head"), model.get("bbox_head"), *_dicts(roi)):
        for key in ("feat_channels", "conv_out_channels", "in_channels", "out_channels"):
            if part and part.get(key) == 256:
                part[key] = 32
            if part and "fc_out_channels" in part:
                part.fc_out_channels = 16
    return config


def _dicts(node):
    """All dicts below one."""
    for value in node.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield item
                yield from _dicts(item)
