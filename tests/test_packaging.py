"""What a wheel holds: mim and mmengine look for configs and tools under ``mmattn/.mim``."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from mmengine.utils import get_installed_path

from tests.test_package import REPO


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # built from a copy: a build leaves folders beside its sources
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPO, capture_output=True, text=True
    )
    if names.returncode:
        pytest.skip("not a git checkout")
    for name in names.stdout.splitlines():
        if (REPO / name).is_file() and not name.startswith("tests/"):
            (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, folder / "src" / name)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w",
         str(folder), str(folder / "src")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("mmattn-*.whl")))


def test_configs_tools_and_index_are_in_the_wheel(wheel):
    names = set(wheel.namelist())
    for folder in ("configs", "tools"):
        expected = {
            f"mmattn/.mim/{path.relative_to(REPO)}"
            for path in (REPO / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert len(expected) > 5
        assert expected <= names
    assert "mmattn/.mim/model-index.yml" in names
    assert not [n for n in names if "__pycache__" in n or n.startswith("tests")]


def test_every_package_is_in_the_wheel(wheel):
    expected = {
        str(path.relative_to(REPO))
        for path in (REPO / "mmattn").rglob("*.py")
        if ".mim" not in path.parts
    }
    assert expected <= set(wheel.namelist())


def test_mim_finds_the_package(wheel):
    """mim wants the distribution's name to be the package's, and no console script."""
    (metadata,) = [n for n in wheel.namelist() if n.endswith("dist-info/METADATA")]
    assert "\nName: mmattn\n" in wheel.read(metadata).decode()
    assert not [n for n in wheel.namelist() if n.endswith("entry_points.txt")]


def test_mmengine_finds_an_editable_install():
    assert get_installed_path("mmattn") == str(REPO / "mmattn")
