"""The model index, each folder's metafile and README, and the configs speak of the same models."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from mmattn.reproduction import zoo
from tools import write_zoo

ROOT = Path(__file__).parents[2]
FOLDERS = zoo.folders(ROOT)


def test_the_generated_files_are_up_to_date():
    assert zoo.outdated(ROOT) == [], "run tools/write_zoo.py"


def test_the_index_lists_every_folder():
    index = yaml.safe_load((ROOT / "model-index.yml").read_text())
    names = sorted([*(p.name for p in FOLDERS), "imagenet"])
    assert index["Import"] == [f"configs/{name}/metafile.yml" for name in names]
    assert len(names) == 13


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_metafile_readme_and_configs_agree(folder):
    meta = yaml.safe_load((folder / "metafile.yml").read_text())
    configs = {str(p.relative_to(ROOT)): p for p in folder.glob("*.py")}
    assert sorted(model["Config"] for model in meta["Models"]) == sorted(configs)
    (collection,) = meta["Collections"]
    assert (ROOT / collection["README"]).samefile(folder / "README.md")
    assert (ROOT / collection["Code"]["URL"]).is_file()
    epochs = {"1x": 12, "2x": 24, "20e": 20}
    for model in meta["Models"]:
        path = configs[model["Config"]]
        assert model["Name"] == path.stem
        assert model["In Collection"] == collection["Name"]
        assert model["Metadata"]["Epochs"] == epochs[path.stem.split("_")[-2]]
        small = "8xb1" in zoo.base_of(path).name or "4xb2" in zoo.base_of(path).name
        assert model["Metadata"]["Batch Size"] == (8 if small else 16)
        # nothing has been trained on COCO: a published number is not ours
        assert "Results" not in model
        assert "Weights" not in model
    text = (folder / "README.md").read_text()
    rows = re.findall(r"^\| `([^`]+_coco)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in configs.values())
    assert collection["Paper"]["URL"] in text
    assert re.search(r"tools/train\.py configs/\w+/[\w.-]+\.py", text)


@pytest.fixture
def copied(tmp_path):
    """The part of the repository that is generated from, with two folders of the zoo."""
    for name in ("configs/_base_", "configs/sge", "configs/gc"):
        shutil.copytree(ROOT / name, tmp_path / name)
    content = yaml.safe_load((ROOT / "configs/published.yml").read_text())
    content["rows"] = [
        row for row in content["rows"] if row["config"].startswith(("_base_/", "sge/", "gc/"))
    ]
    (tmp_path / "configs/published.yml").write_text(yaml.safe_dump(content))
    zoo.write(tmp_path)
    return tmp_path


def cells(root, config):
    """The cells of a config's first line in the table of its README."""
    folder, _, name = config.partition("/")
    text = (root / "configs" / folder / "README.md").read_text()
    (line,) = re.findall(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
    return [cell.strip() for cell in line.strip("| ").split("|")] if line else []


SGE = "sge/faster-rcnn_r50-sge-c2-c5-pre_fpn_2x_coco"


def test_a_row_has_its_baseline_beside_it(copied):
    _, base, plain, reported, source, cost, *_ = cells(copied, SGE)
    assert base.startswith("[faster-rcnn_r50_fpn_pi-2x_coco]")
    assert (plain, reported) == (
        "37.5 (AP50 59.1, AP75 40.6)",
        "38.7 (AP50 60.8, AP75 41.7)",
    )
    assert source.startswith("[PytorchInsight](https://github.com/implus/PytorchInsight)")
    assert cost == "23.51 M, 88.1 GFLOPs"
    retina = cells(copied, "sge/retinanet_r50-sge-c2-c5-pre_fpn_2x_coco")
    assert retina[2:4] == ["S 19.9, M 39.6, L 48.3", "S 21.8, M 41.2, L 49.9"]
    masks = cells(copied, "gc/mask-rcnn_r50-gc-r4-c3-c5_fpn_1x_coco")
    assert masks[2:4] == ["37.3, mask 34.2", "38.9, mask 35.5"]
    text = (copied / "configs/gc/README.md").read_text()
    assert "| | | 38.2, mask 34.7 | 39.9, mask 36.0 | [MMDetection 3.x]" in text
    assert "nothing published, mmdet's own" in " ".join(
        cells(copied, "gc/retinanet_r50-gc-r16-c3-c5_fpn_1x_coco")
    )


def test_what_is_changed_by_hand_is_written_anew(copied):
    assert zoo.outdated(copied) == []
    for name in ("configs/sge/README.md", "configs/gc/metafile.yml", "model-index.yml"):
        path = copied / name
        before = path.read_text()
        path.write_text(re.sub("38.7 |Epochs: 12|gc/metafile", "39.9", before, count=1))
        assert zoo.outdated(copied) == [path]
        assert zoo.write(copied) == [path]
        assert path.read_text() == before
    (copied / f"configs/{SGE}.py").unlink()
    with pytest.raises(ValueError, match="does not exist"):
        zoo.outdated(copied)


def test_our_results_stand_beside_the_reported_ones(copied):
    path = copied / "configs/results.yml"
    path.write_text(
        f"{SGE}: {{ap: 38.4, report: docs/reports/sge.md}}\n"
        "_base_/faster-rcnn_r50_fpn_pi-2x_coco: {ap: 37.25}\n"
    )
    zoo.write(copied)
    assert cells(copied, SGE)[6:] == ["37.2", "[38.4](../../docs/reports/sge.md)"]
    path.write_text("sge/faster: {ap: 38.4}\n")
    with pytest.raises(ValueError, match="there is no configs/sge/faster.py"):
        zoo.outdated(copied)
    path.write_text(f"{SGE}: {{AP: 38.4}}\n")
    with pytest.raises(ValueError, match="expected to have ap"):
        zoo.outdated(copied)


def test_a_page_without_its_marks_is_an_error(copied):
    path = copied / "configs/gc/README.md"
    path.write_text(path.read_text().replace("<!-- end -->", ""))
    with pytest.raises(ValueError, match=r"gc/README.md is expected to have the lines"):
        zoo.write(copied)


def test_the_tool_checks_and_writes(copied, monkeypatch, capsys):
    monkeypatch.setattr(write_zoo, "ROOT", copied)
    write_zoo.main(["--check"])
    assert capsys.readouterr().out == "everything is up to date\n"
    path = copied / "model-index.yml"
    path.write_text("Import:\n")
    with pytest.raises(SystemExit) as stop:
        write_zoo.main(["--check"])
    assert "run tools/write_zoo.py" in stop.value.code
    assert capsys.readouterr().out == "not up to date: model-index.yml\n"
    assert path.read_text() == "Import:\n"
    write_zoo.main([])
    assert capsys.readouterr().out == "written: model-index.yml\n"
    (copied / "configs/published.yml").unlink()
    with pytest.raises(SystemExit, match=r"write_zoo.py: .*published.yml cannot be read"):
        write_zoo.main([])


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
