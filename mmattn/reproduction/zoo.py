"""What of the model zoo follows from the configs and the published figures?

Each folder's metafile.yml, model-index.yml, and the tables of results in the READMEs and in
docs/configs.md are written from the config files and configs/published.yml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from mmattn.reproduction.published import Published, read

__all__ = ["base_of", "expected", "folders", "outdated", "write"]

START, END = "<!-- table -->", "<!-- end -->"
DETECTORS = {
    "faster-rcnn": "Faster R-CNN",
    "cascade-rcnn": "Cascade R-CNN",
    "retinanet": "RetinaNet",
    "mask-rcnn": "Mask R-CNN",
}
BACKBONES = {
    "r50": "R50",
    "r101": "R101",
    "x101-32x4d": "X101-32x4d",
    "shufflenet-v2-x1.0": "ShuffleNetV2 1.0x",
}
EPOCHS = {"1x": 12, "2x": 24, "20e": 20}
FIGURES = {"ap50": "AP50", "ap75": "AP75", "ap_s": "S", "ap_m": "M", "ap_l": "L"}


def folders(root: Path) -> list[Path]:
    """The folders of the zoo: one a paper, with a metafile and configs for COCO."""
    found = (root / "configs").glob("*/metafile.yml")
    return sorted(path.parent for path in found if any(path.parent.glob("*_coco.py")))


def base_of(config: Path) -> Path:
    """The plain config that a config of the zoo adds its module to: its baseline.

    Raises:
        ValueError: Its first line names none.
    """
    match = re.match(r"_base_ = '(\.\./_base_/[^']+)'\n", config.read_text(encoding="utf-8"))
    if not match:
        raise ValueError(f"{config} is expected to begin with _base_ = '../_base_/...'")
    return (config.parent / match[1]).resolve()


def expected(root: Path) -> dict[Path, str]:
    """What each generated file is to hold.

    Args:
        root: The folder that holds configs/ and model-index.yml.

    Raises:
        ValueError: A table has no place, or a file cannot be read: the sentence names it.
    """
    configs = root / "configs"
    published: dict[str, list[Published]] = {}
    for row in read(configs):
        published.setdefault(row.config, []).append(row)
    ours = _results(configs)
    texts = {}
    for folder in folders(root):
        paths = sorted(folder.glob("*_coco.py"), key=_order)
        texts[folder / "metafile.yml"] = _metafile(folder / "metafile.yml", paths)
        texts[folder / "README.md"] = _filled(
            folder / "README.md", _table(configs, paths, published, ours)
        )
    # with that of the pre-training configs, which is written by hand
    metafiles = sorted(configs.glob("*/metafile.yml"))
    index = "".join(f"  - {path.relative_to(root).as_posix()}\n" for path in metafiles)
    texts[root / "model-index.yml"] = f"Import:\n{index}"
    if (root / "docs" / "configs.md").is_file():  # not among what a wheel holds
        texts[root / "docs" / "configs.md"] = _filled(root / "docs" / "configs.md", _list(root))
    return texts


def outdated(root: Path) -> list[Path]:
    """The generated files that do not hold what they should."""
    return [
        path
        for path, text in expected(root).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def write(root: Path) -> list[Path]:
    """Writes the generated files that are not up to date, and returns them."""
    texts = expected(root)
    paths = outdated(root)
    for path in paths:
        path.write_text(texts[path], encoding="utf-8")
    return paths


def _parts(path: Path) -> tuple[str, str, str]:
    """(detector, backbone, module) of a config's name."""
    detector, rest, *_ = path.stem.split("_")
    backbone = next(name for name in sorted(BACKBONES, key=len)[::-1] if rest.startswith(name))
    return detector, backbone, rest[len(backbone) :]


def _order(path: Path) -> tuple:
    detector, backbone, _ = _parts(path)
    places = list(DETECTORS).index(detector), list(BACKBONES).index(backbone)
    return (*places, "-pre_" not in path.name, path.name)


def _recipe(base: Path) -> tuple[int, int]:
    """(epochs, images between two steps) of a plain config, as its name says.

    Names are held to what the configs are by tests, and reading them takes mmengine seconds.
    """
    match = re.search(r"_(?:pi-)?(?:(\d+)xb(\d+)-)?(1x|2x|20e)_coco$", base.stem)
    if not match:
        raise ValueError(f"{base} is expected to end in a schedule, such as _8xb1-2x_coco.py")
    return EPOCHS[match[3]], int(match[1] or 8) * int(match[2] or 2)


def _metafile(path: Path, configs: list[Path]) -> str:
    """The collection stays as it was written; the models are those of the folder."""
    head, found, _ = path.read_text(encoding="utf-8").partition("\nModels:\n")
    if not found:
        raise ValueError(f"{path} is expected to have a line 'Models:'")
    (collection,) = yaml.safe_load(head)["Collections"]
    lines = [head, "Models:"]
    for config in configs:
        epochs, batch = _recipe(base_of(config))
        lines += [
            f"  - Name: {config.stem}",
            f"    In Collection: {collection['Name']}",
            f"    Config: configs/{config.parent.name}/{config.name}",
            "    Metadata:",
            "      Training Data: COCO",
            f"      Epochs: {epochs}",
            f"      Batch Size: {batch}",
        ]
    return "\n".join(lines) + "\n"


def _filled(path: Path, lines: list[str]) -> str:
    """A page with lines between its two marks."""
    text = path.read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"{path} is expected to have the lines {START} and {END}, once each")
    before, _, rest = text.partition(START)
    return "\n".join([before + START, *lines, END]) + rest.partition(END)[2]


def _results(configs: Path) -> dict[str, Mapping]:
    """What was measured with these configs: {config: {ap, mask_ap, report}}, percent."""
    path = configs / "results.yml"
    if not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for config, row in content.items():
        if not (configs / f"{config}.py").is_file():
            raise ValueError(f"{path}: there is no configs/{config}.py")
        if not isinstance(row, Mapping) or set(row) - {"ap", "mask_ap", "report"} or not row:
            raise ValueError(f"{path}: {config} is expected to have ap, mask_ap and report alone")
    return content


def _table(configs: Path, paths: list[Path], published: dict, ours: dict) -> list[str]:
    """The lines of a folder's table, with the notes below it."""
    columns = ["config", "its baseline", "reported: baseline", "reported", "source"]
    cost = any(row.cost for path in paths for row in published.get(_key(path), ()))
    columns += [*(["reported: cost"] if cost else []), "ours: baseline", "ours"]
    lines = [_line(columns), _line(["---"] * len(columns))]
    notes: list[str] = []
    for path in paths:
        base = base_of(path)
        first = [f"`{path.stem}`", f"[{base.stem}](../_base_/{base.name})"]
        last = [_measured(ours.get(_key(one))) for one in (base, path)]
        own = re.search(r"_(?:1x|2x|20e)_coco$", base.stem)  # no recipe before the schedule
        unknown = "nothing published" + (", mmdet's own schedule" if own else "")
        for row in published.get(_key(path), [None]):
            cells = ["", "", unknown, ""]
            if row:
                mark = ""
                if row.note:
                    if row.note not in notes:
                        notes.append(row.note)
                    mark = f" ({notes.index(row.note) + 1})"
                reported = [
                    _figures(row.baseline.figures) if row.baseline else "n/a",
                    _figures(row.figures),
                ]
                source = f"[{row.source.name}]({row.source.url}){mark}"
                cells = [*reported, source, _cost(row.cost)]
            lines.append(_line([*first, *(cells if cost else cells[:3]), *last]))
            first = ["", ""]
            last = ["", ""]
    if notes:
        lines.append("")
        lines += [f"({number}) {note}.  " for number, note in enumerate(notes, 1)]
        lines[-1] = lines[-1].rstrip()
    return lines


def _key(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def _line(cells: list[str]) -> str:
    return re.sub(" +", " ", f"| {' | '.join(cells)} |")


def _figures(figures: Mapping[str, float]) -> str:
    """'38.9, mask 35.5', '37.7 (AP50 60.1, AP75 40.9)' or 'S 19.9, M 39.6, L 48.3'."""
    main = [f"{figures['ap']:.1f}"] if "ap" in figures else []
    main += [f"mask {figures['mask_ap']:.1f}"] if "mask_ap" in figures else []
    more = ", ".join(f"{name} {figures[k]:.1f}" for k, name in FIGURES.items() if k in figures)
    if main and more:
        return f"{', '.join(main)} ({more})"
    return ", ".join(main) or more


def _cost(cost: Mapping[str, float]) -> str:
    words = [f"{cost['params_m']:.2f} M"] if "params_m" in cost else []
    words += [f"{cost['gflops']:.1f} GFLOPs"] if "gflops" in cost else []
    return ", ".join(words)


def _measured(row: Mapping | None) -> str:
    if not row:
        return ""
    text = _figures(row)
    return f"[{text}](../../{row['report']})" if row.get("report") else text


def _list(root: Path) -> list[str]:
    """The lines of the table of all folders: how many configs of each detector and backbone."""
    lines = [
        _line(["folder", "detectors", "backbones", "without suffix", "`-pre`"]),
        _line(["---"] * 5),
    ]
    for folder in folders(root):
        paths = sorted(folder.glob("*_coco.py"), key=_order)
        parts = [_parts(path) for path in paths]
        pre = sum("-pre_" in path.name for path in paths)
        lines.append(
            _line(
                [
                    f"`configs/{folder.name}`",
                    ", ".join(dict.fromkeys(DETECTORS[d] for d, _, _ in parts)),
                    ", ".join(dict.fromkeys(BACKBONES[b] for _, b, _ in sorted(parts, key=_size))),
                    str(len(paths) - pre),
                    str(pre),
                ]
            )
        )
    return lines


def _size(parts: tuple[str, str, str]) -> int:
    return list(BACKBONES).index(parts[1])
