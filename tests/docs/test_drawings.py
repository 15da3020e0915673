"""Every module has its drawing, as the script writes it, and its page shows it."""

import importlib.util
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mmattn import backbones, convs
from mmattn.plugins import AttentionModule
from mmattn.registry import MODELS

DOCS = Path(__file__).parents[2] / "docs"
spec = importlib.util.spec_from_file_location("docs_drawings", DOCS / "drawings.py")
drawings = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = drawings  # dataclasses look there
spec.loader.exec_module(drawings)

MODELS.import_from_location()
REGISTERED = {
    name
    for name, cls in MODELS.module_dict.items()
    if name in (*convs.__all__, *backbones.__all__)
    or (isinstance(cls, type) and issubclass(cls, AttentionModule))
}
PAGES = {path.stem: path.read_text() for path in (DOCS / "modules").glob("*.md")}


def test_every_registered_module_is_on_a_page_with_a_drawing():
    assert set(PAGES) == set(drawings.DRAWINGS)
    for name, page in PAGES.items():
        assert len(re.findall(rf"!\[[^\]]+\]\(\.\./images/modules/{name}\.svg\)", page)) == 1
    for name in REGISTERED:
        assert any(f"mmattn.{name}" in page for page in PAGES.values()), name


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_the_files_are_what_the_script_draws(name):
    text = (drawings.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert text == drawings.DRAWINGS[name]().svg(), "python docs/drawings.py writes it anew"
    root = ElementTree.fromstring(text)
    _, _, width, height = map(float, root.get("viewBox").split())
    # read on a page, and its own white ground for a dark one
    ground = next(e for e in root if e.tag.endswith("rect"))
    assert (float(ground.get("width")), float(ground.get("height"))) == (width, height)
    assert ground.get("fill") == "#ffffff"
    assert all(float(e.get("font-size")) >= 12 for e in root.iter() if e.tag.endswith("text"))


def test_what_does_not_fit_is_an_error():
    drawing = drawings.Drawing("a", 100)
    with pytest.raises(ValueError, match="too wide"):
        drawing.row(50, 0, 100, drawings.plain("a long text"), drawings.plain("another one"))
    drawing.put(drawings.plain("here"), 100, 50)
    with pytest.raises(ValueError, match="lies on"):
        drawing.put(drawings.plain("there"), 120, 60)
    with pytest.raises(ValueError, match="leaves the drawing"):
        drawing.put(drawings.plain("outside"), 715, 50)
