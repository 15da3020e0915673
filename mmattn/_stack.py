"""Which of the two supported OpenMMLab stacks is installed, and is it one that we support?

Reads package metadata only; nothing is imported.
"""

from __future__ import annotations

import functools
import importlib.util
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

# import name -> {distribution: supported versions}; the maintained fork first
SUPPORTED = {
    "mmengine": {"onedl-mmengine": ">=0.10.12,<1", "mmengine": ">=0.10.7,<1"},
    "mmcv": {"onedl-mmcv": ">=2.3.6,<3", "mmcv-lite": ">=2.0.1,<2.2", "mmcv": ">=2.0.1,<2.2"},
    "mmdet": {"onedl-mmdetection": ">=3.5.1,<4", "mmdet": ">=3.3,<4"},
}
INSTALL = "pip install 'mmattn[onedl]' (or 'mmattn[openmmlab]' for the upstream packages)"


def installed(package: str) -> tuple[str, str] | None:
    """Returns (distribution, version) behind an import name, or None.

    Both stacks use the same import names and may lie on one path, so the distribution is the
    one whose files are found first, not the one whose name is.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin).resolve()
    editable = None
    for name in SUPPORTED[package]:
        for dist in metadata.distributions(name=name):
            if Path(dist.locate_file(f"{package}/__init__.py")).resolve() == origin:
                return name, dist.version
            if dist.read_text("direct_url.json"):  # its files are not where its metadata is
                editable = name, dist.version
    return editable or _unsupported(package)


def _unsupported(package: str) -> tuple[str, str]:
    """(distribution, version) of a package from some other distribution, mmcv-full say."""
    names = metadata.packages_distributions().get(package)  # reads all metadata: slow
    return (names[0], metadata.version(names[0])) if names else (package, "0")


@functools.cache
def problem() -> str | None:
    """One sentence that says what is missing or unsupported and what to install, or None."""
    found = {package: installed(package) for package in SUPPORTED}
    missing = [package for package, dist in found.items() if dist is None]
    if missing:
        return (
            f"mmattn needs mmengine, mmcv and mmdet, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed: {INSTALL}."
        )
    for package, (name, version) in found.items():
        supported = SUPPORTED[package].get(name)
        if supported is None or Version(version) not in SpecifierSet(supported, prereleases=True):
            return (
                f"mmattn supports {' or '.join(f'{n}{s}' for n, s in SUPPORTED[package].items())}, "
                f"but {package} is {name} {version}: {INSTALL}."
            )
    return None


def require() -> None:
    """Raises ImportError with the sentence of :func:`problem`, if there is one."""
    if sentence := problem():
        raise ImportError(sentence)
