"""The package's docstrings as mkdocstrings reads them: the sections of a module become a list."""

from __future__ import annotations

import re

import griffe

SECTIONS = "Paper|Reference|Deviations|Identity at init|Cost|Keys|Saved|Launches"
SECTION = re.compile(rf"^({SECTIONS}):[ \n]((?:.*\n?)(?:(?!(?:{SECTIONS}):).+\n?)*)", re.MULTILINE)
SHAPE = re.compile(r"^Shape:\n((?:[ ]{4}.*\n?|\n(?=[ ]{4}))+)", re.MULTILINE)
ROLE = re.compile(r":(?:func|class|mod|meth|data|attr|obj):(`+)~?([^`]+)\1")
BARE_URL = re.compile(r"(?<![(<\"'`\w])(https?://[^\s)>,]+[^\s)>,.;:])")


def as_markdown(text: str) -> str:
    """A docstring with reStructuredText's marks, and with sections on a line, in Markdown."""
    text = ROLE.sub(r"`\2`", text)
    # the mark of a block of code: alone on its line, or behind a sentence
    text = re.sub(r"^::$", "", text, flags=re.MULTILINE)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    text = SHAPE.sub(lambda m: _item("Shape", m[1]), text)
    text = SECTION.sub(lambda m: _item(m[1], m[2]), text)
    return re.sub(r"\n{3,}", "\n\n", text)


def _item(name: str, said: str) -> str:
    said = BARE_URL.sub(r"<\1>", " ".join(said.split()))
    return f"\n- **{name}**: {said}\n\n"


class Sections(griffe.Extension):
    """Puts each docstring into Markdown before it is parsed."""

    def on_instance(self, *, obj, **_) -> None:
        """Called by griffe with every module, class, function and attribute."""
        if not obj.is_alias and obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
