"""What must be equal for two results to be of one experiment: settings, data, code."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from mmattn.evaluation.files import write_text
from mmattn.inspection.hardware import cpu_name

# they change no weight and no detection: figures are computed anew for every report
NOT_TRAINING = ("evaluation", "inspection", "reproduction", "visualization")
# but for those that give a training its hooks, its first weights and its runner
TRAINING = tuple(
    f"inspection/{name}.py" for name in ("build", "checkpoint_file", "preflight", "runner")
)
ENVIRONMENT = ("MMATTN_BACKEND", "MMATTN_COMPAT")  # which code computes
PACKAGES = (
    ("torch",),
    ("torchvision",),
    ("onedl-mmengine", "mmengine"),
    ("onedl-mmcv", "mmcv-lite", "mmcv"),
    ("onedl-mmdetection", "mmdet"),
)


def of_text(*texts: str) -> str:
    """SHA-256 of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def of_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


class Checksums:
    """Checksums of files, kept beside the results so that a large file is read once.

    Args:
        cache: A JSON file; a file is read again when its size or time has changed.
    """

    def __init__(self, cache: Path):
        self.cache = cache
        self.known: dict[str, list] = {}
        with contextlib.suppress(OSError, ValueError):
            self.known = json.loads(cache.read_text())

    def of(self, path: str) -> str:
        """SHA-256 of a file."""
        path = os.path.abspath(path)
        status = os.stat(path)
        state = [status.st_size, status.st_mtime_ns]
        if self.known.get(path, [None])[:2] != state:
            self.known[path] = [*state, of_file(path), None]
            write_text(self.cache, json.dumps(self.known))
        return self.known[path][2]

    def images(self, path: str) -> int | None:
        """Number of images of a COCO annotation file, None if it is not one."""
        self.of(path)
        entry = self.known[os.path.abspath(path)]
        if entry[3] is None:
            with contextlib.suppress(msgspec.DecodeError):
                entry[3] = len(msgspec.json.decode(Path(path).read_bytes(), type=_Images).images)
                write_text(self.cache, json.dumps(self.known))
        return entry[3]


class _Images(msgspec.Struct):
    images: list[msgspec.Raw]


def code(package: Path | None = None) -> str:
    """SHA-256 of what trains and tests: mmattn's code and the versions of the stack below it.

    Comments, docstrings and layout of the code do not count.
    """
    package = package or Path(__file__).resolve().parents[1]
    parts = [json.dumps({k: v for k, v in versions().items() if k not in ("mmattn", "python")})]
    parts += [f"{name}={os.environ[name]}" for name in ENVIRONMENT if os.environ.get(name)]
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        if (
            inside.parts[0] in (*NOT_TRAINING, "_version.py", ".mim")
            and inside.as_posix() not in TRAINING
        ):
            continue
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_text(body[0]):
                body[0] = ast.Pass()
        parts += [inside.as_posix(), ast.unparse(tree)]
    return of_text(*parts)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def versions() -> dict[str, str]:
    """Versions of mmattn, Python and the stack, by the name of the distribution."""
    from mmattn import __version__

    found = {"mmattn": __version__, "python": platform.python_version()}
    for names in PACKAGES:
        for name in names:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
                break
    return found


def commit(folder: Path) -> tuple[str | None, bool]:
    """The git commit of a checkout and whether it has changes; None outside of one."""
    try:
        git = ["git", "-C", str(folder)]
        run = dict(capture_output=True, text=True, check=True, timeout=60)
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], **run).stdout.strip()
        if Path(top).resolve() != folder.resolve():
            return None, False
        sha = subprocess.run([*git, "rev-parse", "HEAD"], **run).stdout.strip()
        changes = ["status", "--porcelain", "--untracked-files=no"]
        return sha, bool(subprocess.run([*git, *changes], **run).stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return None, False


def hardware(devices: Sequence[str], threads: int) -> str:
    """The GPUs with these indices, or the processor, by their own names."""
    if not devices:
        return f"{cpu_name()} ({threads} thread{'s' * (threads != 1)})"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        names = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "-i", ",".join(devices)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.splitlines()
        counts = {name.strip(): names.count(name) for name in names}
        return " + ".join(f"{n} x {name}" if n > 1 else name for name, n in counts.items())
    return f"{len(devices)} GPUs"


def settings(config: dict[str, Any], data_root: str | None) -> str:
    """A config as text without what says where things lie."""

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {str(key): plain(value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return [plain(value) for value in node]
        if isinstance(node, str) and data_root and node.startswith(data_root.rstrip("/") + "/"):
            return "<data>" + node[len(data_root.rstrip("/")) :]
        return node if isinstance(node, (str, int, float, bool, type(None))) else repr(node)

    placed = {"work_dir", "launcher", "resume", "data_root", "num_workers"}
    content = {key: value for key, value in config.items() if key not in placed}
    return json.dumps(plain(content), sort_keys=True)
