"""docs/troubleshooting.md quotes what the code says, for every hazard and error."""

import re
from pathlib import Path

import pytest
from mmdet.models.backbones import ResNet
from mmdet.models.backbones.resnet import Bottleneck

from mmattn import compat
from mmattn.inspection import hazards
from tests.docs import troubles

PAGE = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text()
# the models of the tests are smaller than the reader's
SIZES = (
    r"(?<=: )\d+(?= [\w.]+ in backbone)",
    r"(?<=and )\d+(?= more)",
    r"\d+(?= convolutions,)",
    r"(?<=\()[\d,.]+(?= parameters)",
    r"(?<=in_channels=)\d+",
    r"(?<=mmattn has )[^;]*",  # the names of all modules
    r"stage_with_dcn=\([^)]*\)",
)


def without_sizes(text):
    for size in SIZES:
        text = re.sub(size, "_", text)
    return text


BLOCKS = re.findall(r"^```text\n(.*?)\n```$", PAGE, re.S | re.M)
QUOTED = {without_sizes(block) for block in BLOCKS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("troubles")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setitem(ResNet.arch_settings, 50, (Bottleneck, (2, 1, 1, 1)))
        troubles.prepare(folder)
        yield folder


def test_every_hazard_has_an_entry():
    assert set(troubles.HAZARDS) == set(hazards.HAZARDS)
    assert re.findall(r"^warning: ([\w-]+):", PAGE, re.M) == list(hazards.HAZARDS)


@pytest.mark.parametrize("name", [*troubles.HAZARDS, *troubles.ERRORS])
def test_the_page_quotes_what_is_said(name, folder):
    said = troubles.said(name, (troubles.HAZARDS | troubles.ERRORS)[name])
    assert without_sizes(said) in QUOTED


def test_the_page_quotes_the_missing_operator():
    with pytest.raises(NotImplementedError) as raised:
        compat._refuse("ms_deform_attn_forward")
    assert str(raised.value) in QUOTED
