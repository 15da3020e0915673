"""Puts configs, tools and the model index under ``mmattn/.mim``, where mmengine and mim look."""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
MIM = ("configs", "tools", "model-index.yml")


class BuildWithMim(build_py):
    """Copies the files into a wheel; links them for an editable install, so that edits count."""

    def run(self):  # noqa: D102
        super().run()
        if self.editable_mode:
            target = ROOT / "mmattn" / ".mim"
        else:
            target = Path(self.build_lib) / "mmattn" / ".mim"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in MIM:
            if self.editable_mode:
                (target / name).symlink_to(os.path.relpath(ROOT / name, target))
            elif (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name,
                    target / name,
                    ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
                )
            else:
                shutil.copy(ROOT / name, target / name)


setup(cmdclass={"build_py": BuildWithMim})
