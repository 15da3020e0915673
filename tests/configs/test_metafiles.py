"""The model index, each folder's metafile and README, and the configs speak of the same models."""

import re
from pathlib import Path

import pytest
import yaml
from mmengine import Config

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(
    {p.parent for p in (ROOT / "configs").glob("*/*_coco.py")} - {ROOT / "configs/_base_"}
)


def test_the_index_lists_every_folder():
    index = yaml.safe_load((ROOT / "model-index.yml").read_text())
    assert sorted(index["Import"]) == [f"configs/{p.name}/metafile.yml" for p in FOLDERS]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_metafile_readme_and_configs_agree(folder):
    meta = yaml.safe_load((folder / "metafile.yml").read_text())
    configs = {str(p.relative_to(ROOT)): p for p in folder.glob("*.py")}
    assert {model["Config"] for model in meta["Models"]} == set(configs)
    (collection,) = meta["Collections"]
    assert (ROOT / collection["README"]).samefile(folder / "README.md")
    assert (ROOT / collection["Code"]["URL"]).is_file()
    for model in meta["Models"]:
        path = configs[model["Config"]]
        assert model["Name"] == path.stem
        assert model["In Collection"] == collection["Name"]
        assert model["Metadata"]["Epochs"] == Config.fromfile(path).train_cfg.max_epochs
        # nothing has been trained on COCO: a published number is not ours
        assert "Results" not in model
        assert "Weights" not in model
    text = (folder / "README.md").read_text()
    rows = set(re.findall(r"^\| `([^`]+_coco)` \|", text, re.MULTILINE))
    assert rows == {path.stem for path in configs.values()}
    assert collection["Paper"]["URL"] in text


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/*/*.md")]),
    ids=lambda p: str(p.relative_to(ROOT)),
)  # fmt: skip
def test_links_and_named_files_exist(page):
    text = page.read_text()
    assert not re.search(r"\b(TODO|FIXME|MEASURED|DEMO_OUTPUT|\w+_ROW)\b", text)
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"configs/\w+/[\w.-]+\.py", text):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"\btools/[\w/]+\.(?:py|sh)", text):
        assert (ROOT / name).is_file(), name
