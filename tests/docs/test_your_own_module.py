"""The example of docs/your-own-module.md runs as it stands, and prints what the page says."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest

from mmattn.registry import MODELS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/your-own-module.md").read_text()
FILES = dict(re.findall(r'^```python title="([\w.]+)"\n(.*?)^```$', PAGE, re.S | re.M))


def tool(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown_after(command):
    """The block of output behind a command."""
    return re.search(rf"^{re.escape(command)}\n```\n\n```\n(.*?)^```$", PAGE, re.S | re.M)[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with the files of the page."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("contrast", None)
    MODELS.module_dict.pop("Contrast", None)


def test_it_starts_as_identity_and_learns(folder, capsys):
    runpy.run_path("try_it.py")
    said = re.search(r"## Does it train\?.*?^```\n(.*?)^```$", PAGE, re.S | re.M)[1]
    assert capsys.readouterr().out.endswith(said)


def test_it_says_what_it_decides(folder, capsys):
    runpy.run_path("seen.py")
    shown = re.search(r"## Let it be seen.*?^```\n\n```\n(.*?)^```$", PAGE, re.S | re.M)[1]
    assert capsys.readouterr().out == shown


def test_the_tools_say_of_it_what_the_page_says(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["check_config.py", "contrast_retinanet.py"])
    tool("check_config").main()
    shown = shown_after("python tools/check_config.py contrast_retinanet.py")
    # the number of known hazards is that of another page; a line of mmdet comes once a process
    numbers = re.compile(r"of \d+ that are known|^Could not import OneDL.*\n", re.M)
    assert numbers.sub("", capsys.readouterr().out).strip() == numbers.sub("", shown).strip()

    options = "contrast_retinanet.py --shape 320 320 --repeats 0"
    tool("model_cost").main(options.split())
    rows = re.findall(r"^\|.*", shown_after(f"python tools/model_cost.py {options}"), re.M)
    assert re.findall(r"^\|.*", capsys.readouterr().out, re.M) == rows
    assert len(rows) == 7
