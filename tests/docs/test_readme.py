"""README_zh-CN.md says what README.md says: its code, its figures, its links, its sections."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README_zh-CN.md").read_text(encoding="utf-8")
CODE = re.compile(r"^```.*?^```$", re.S | re.M)


def prose(text):
    """Without code and without what links lead to."""
    return re.sub(r"\]\([^)]*\)", "]", CODE.sub("", text))


def differences(pattern, function=lambda text: text):
    """What of a kind is in one of the two and not in the other."""
    counts = [Counter(re.findall(pattern, function(text), re.M)) for text in (ENGLISH, CHINESE)]
    english, chinese = counts[0] - counts[1], counts[1] - counts[0]
    return {
        key: sorted(only.elements())
        for key, only in (("only in README.md", english), ("only in README_zh-CN.md", chinese))
        if only
    }


def test_the_code_is_the_same():
    blocks = [CODE.findall(text) for text in (ENGLISH, CHINESE)]
    for number, (english, chinese) in enumerate(zip(*blocks, strict=False), 1):
        assert chinese == english, f"block {number} of code differs"
    assert len(blocks[0]) == len(blocks[1])


def test_the_figures_are_the_same():
    assert not differences(r"(?<![\w.-])\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?![\w-])", prose)


def test_the_words_in_code_are_the_same():
    assert not differences(r"`[^`\n]+`", prose)


def test_the_links_lead_to_the_same_pages():
    # the two lead to each other, and a heading has its name in its own language
    links = differences(r"\]\(([^#)\s][^)\s]*)\)")
    assert links in (
        {},
        {"only in README_zh-CN.md": ["README.md"]},
        {"only in README.md": ["README_zh-CN.md"], "only in README_zh-CN.md": ["README.md"]},
    )


def test_the_sections_and_the_rows_are_as_many():
    for pattern in (r"^#+ ", r"^\|", r"^- "):
        numbers = [len(re.findall(pattern, CODE.sub("", t), re.M)) for t in (ENGLISH, CHINESE)]
        assert numbers[0] == numbers[1], pattern
