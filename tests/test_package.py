"""Importing mmattn: light, and clear about what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmattn
from mmattn import _stack

REPO = Path(mmattn.__file__).parents[1]


def python(code, *options, path=None):
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, env=environment
    )


# what reads data sets answers at once
DATASETS = ", ".join(f"mmattn.datasets.{name}" for name in ("check", "subset", "stats", "voc"))


@pytest.mark.parametrize("module", ["mmattn", "mmattn.evaluation", "mmattn.compat", DATASETS])
def test_import_is_light(module):
    done = python(
        f"import {module}, sys\n"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet')])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_public_names():
    done = python(
        "import mmattn, mmcv.cnn\n"
        # by its name in a config; it inherits mmdet's, so mmcv's operators are needed
        "from mmengine.registry import METRICS\n"
        "metric = METRICS.get('mmattn.CocoSizeMetric')\n"
        "assert metric.__name__ == 'CocoSizeMetric'\n"
        "assert metric is mmattn.CocoSizeMetric\n"
        "print(mmattn.SGE, mmattn.GCTConv2d, mmattn.CocoSizeMetric)\n"
        "print(mmattn.ops.sge, mmattn.__version__)\n"
        "assert {'SGE', 'GCTConv2d', 'CocoSizeMetric'} <= set(dir(mmattn))\n"
        "try:\n    mmattn.SGEE\nexcept AttributeError as error:\n"
        "    assert str(error).endswith('did you mean SGE?'), error\n"
        "print(hasattr(mmattn, 'NoSuchThing'), hasattr(mmattn, '__wrapped__'))"
    )
    assert done.returncode == 0, done.stderr
    assert "mmattn.plugins.sge.SGE" in done.stdout
    assert done.stdout.splitlines()[-1] == "False False"


def fake(folder, package, distribution, version):
    """A package that is nothing but its name and version."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    (info / "top_level.txt").write_text(f"{package}\n")


def test_neither_stack(tmp_path):
    """One sentence on import, an error with it on use; the evaluation works without."""
    (tmp_path / "mmattn").symlink_to(REPO / "mmattn")
    # the path finder, blind to the three
    hide = (
        "import importlib.machinery as m\n"
        "find = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = lambda name, *a, **k: "
        "None if name in ('mmengine', 'mmcv', 'mmdet') else find(name, *a, **k)\n"
    )
    done = python(hide + "import mmattn, mmattn.evaluation", path=tmp_path)
    assert done.returncode == 0
    assert "mmengine, mmcv, mmdet are not installed: pip install 'mmattn[onedl]'" in done.stderr
    done = python(hide + "import mmattn; mmattn.SGE", path=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: mmattn needs mmengine, mmcv and mmdet")


@pytest.mark.parametrize(
    ("package", "distribution", "version"),
    [
        ("mmdet", "mmdet", "2.28.2"),
        ("mmcv", "mmcv-full", "1.7.1"),
        ("mmengine", "onedl-mmengine", "0.9.0"),
    ],
)
def test_unsupported_version(tmp_path, package, distribution, version):
    fake(tmp_path, package, distribution, version)
    done = python("import mmattn", path=os.pathsep.join([str(tmp_path), str(REPO)]))
    assert done.returncode == 0
    assert "mmattn supports" in done.stderr
    assert version in done.stderr
    assert "pip install 'mmattn[onedl]'" in done.stderr
    done = python("import mmattn; mmattn.SGE", path=os.pathsep.join([str(tmp_path), str(REPO)]))
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: mmattn supports")


def test_the_stack_under_the_tests_is_supported():
    assert _stack.problem() is None
    names = {package: _stack.installed(package)[0] for package in _stack.SUPPORTED}
    assert len({name.startswith("onedl-") for name in names.values()}) == 1, names


def test_supported_versions_are_those_of_the_extras():
    """The versions that _stack asks for are the ones that pip installs."""
    tomllib = pytest.importorskip("tomllib")  # in the standard library from 3.11 on
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    supported = {f"{n}{s}" for v in _stack.SUPPORTED.values() for n, s in v.items()}
    # a compiled mmcv is supported beside the mmcv-lite that the extra installs
    assert supported - {*extras["onedl"], *extras["openmmlab"]} == {"mmcv>=2.0.1,<2.2"}
    assert set(extras["onedl"]) <= supported
