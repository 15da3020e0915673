"""What a table may say, and what is said of one that is wrong."""

from pathlib import Path

import pytest
import yaml

from mmattn.reproduction import listing
from mmattn.reproduction import table as tables
from mmattn.reproduction.zoo import base_of

PLAIN = "configs/_base_/faster-rcnn_r50_fpn_pi-2x_coco.py"
SGE = "configs/sge/faster-rcnn_r50-sge-c2-c5-pre_fpn_2x_coco.py"


def write(tmp_path, **more):
    content = {
        "title": "T",
        "defaults": {"seeds": [0, 1], "gpus": 4, "options": {"a": 1, "b": 1}},
        "rows": [
            {"name": "plain", "config": PLAIN},
            {"config": SGE, "baseline": "plain", "options": {"b": 2}, "label": "SGE"},
        ],
    } | more
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_rows_take_defaults_and_published_figures(tmp_path):
    table = tables.load(write(tmp_path, quick={"seeds": [3], "options": {"c": 3}}))
    plain, sge = table.rows
    assert (plain.label, sge.label, sge.baseline) == ("plain", "SGE", "plain")
    assert (plain.seeds, plain.gpus) == ((0, 1), 4)
    assert plain.options == {"a": 1, "b": 1}
    assert sge.options == {"a": 1, "b": 2}
    assert sge.name == "faster-rcnn_r50-sge-c2-c5-pre_fpn_2x_coco"
    assert [(p.source.key, p.figures["ap"]) for p in sge.published] == [("PI", 38.7)]
    assert sge.published[0].baseline.figures["ap"] == 37.5
    quick = tables.load(table.path, quick=True)
    assert quick.name == "mine-quick"
    assert quick.rows[1].seeds == (3,)
    assert quick.rows[1].options == {"a": 1, "b": 2, "c": 3}
    assert (
        tables.load(write(tmp_path, rows=[{"config": SGE, "published": []}])).rows[0].published
        == ()
    )


def test_another_model_has_not_the_figures_of_its_config(tmp_path):
    row = {"config": SGE, "options": {"model.backbone.depth": 101}}
    assert tables.load(write(tmp_path, rows=[row])).rows[0].published == ()
    asked = tables.load(write(tmp_path, rows=[{**row, "published": ["PI"]}])).rows[0]
    assert [p.source.key for p in asked.published] == ["PI"]


def test_choosing_rows_brings_their_baselines(tmp_path):
    table = tables.load(write(tmp_path))
    name = table.rows[1].name
    assert table.choose(["sge"], None) == {(n, s) for n in ("plain", name) for s in (0, 1)}
    assert table.choose(["SGE"], [1]) == {("plain", 1), (name, 1)}
    assert table.choose(None, None) == table.choose(["plain", "sge"], None)
    # a whole name, not all that have it in theirs
    longer = [{"name": "plain", "config": PLAIN}, {"name": "plain-sge", "config": SGE}]
    assert tables.load(write(tmp_path, rows=longer)).choose(["plain"], [0]) == {("plain", 0)}
    with pytest.raises(ValueError, match=r"no row with 'plian' in its name; did you mean plain\?"):
        table.choose(["plian"], None)
    with pytest.raises(ValueError, match="no row with 'gct' in its name; its rows: plain, faster"):
        table.choose(["gct"], None)
    with pytest.raises(ValueError, match="has one of the seeds 7"):
        table.choose(None, [7])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"row": []}, r"mine.yml has the unknown key 'row'; did you mean rows\?"),
        ({"rows": []}, "rows is expected to be a list of rows"),
        ({"rows": [{"name": "x"}]}, "row x lacks config"),
        ({"rows": ["x"]}, "row 'x' is expected to be a map"),
        ({"rows": [{"config": "configs/x.py"}]}, "row x: config configs/x.py does not exist"),
        ({"rows": [{"config": PLAIN, "seed": [1]}]}, r"unknown key 'seed'; did you mean seeds\?"),
        ({"rows": [{"config": PLAIN, "seeds": 3}]}, "seeds is expected to be a list of integers"),
        ({"rows": [{"config": PLAIN, "seeds": [1, 1]}]}, "seeds is expected to be a list"),
        ({"rows": [{"config": PLAIN, "seeds": [-1]}]}, "expected integers for seeds and gpus"),
        ({"rows": [{"config": PLAIN, "gpus": 0}]}, "gpus is expected to be 1 or more, got 0"),
        ({"rows": [{"config": PLAIN, "name": "a/b"}]}, r"letters, digits and \. _ \+ - only"),
        ({"rows": [{"config": PLAIN, "baseline": "z"}]}, "baseline 'z' is no other row"),
        ({"rows": [{"config": PLAIN}, {"config": PLAIN}]}, "has two rows"),
        ({"rows": [{"config": PLAIN, "published": ["ECA"]}]}, "published.yml has nothing of ECA"),
        ({"defaults": {"optoins": {}}}, r"defaults has the unknown key 'optoins'; did you mean op"),
    ],
)
def test_a_wrong_table_is_refused_in_a_sentence(tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        tables.load(write(tmp_path, **more))


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "no.yml").write_text("a: b: c")
    with pytest.raises(ValueError, match=r"no.yml is not YAML"):
        tables.load(tmp_path / "no.yml")
    (tmp_path / "no.yml").write_text("- 1")
    with pytest.raises(ValueError, match="is expected to be a map of keys and values"):
        tables.load(tmp_path / "no.yml")
    with pytest.raises(FileNotFoundError, match=r"table sgee does not exist; did you mean sge\?"):
        tables.find("sgee")
    with pytest.raises(ValueError, match="has no quick variant: leave out --quick"):
        tables.load(tables.find("sge"), quick=True)


@pytest.mark.parametrize("path", tables.shipped(), ids=lambda path: path.stem)
def test_shipped_tables(path):
    """Each row but a baseline has a baseline that shares its seeds; published figures are found."""
    table = tables.load(path)
    of_name = {row.name: row for row in table.rows}
    baselines = {row.baseline for row in table.rows} - {None}
    for row in table.rows:
        assert (row.baseline is None) == (row.name in baselines), row.name
        if row.baseline:
            assert set(row.seeds) <= set(of_name[row.baseline].seeds), row.name
            assert row.config != of_name[row.baseline].config or row.options, row.name
            if "ablations" not in path.stem and path.stem not in ("demo", "bccd"):
                # the same schedule, learning rate and batch
                assert Path(of_name[row.baseline].config) == base_of(Path(row.config)), row.name
    assert table.title in listing.shipped()
    published = sum(bool(row.published) for row in table.rows)
    expected = {"sge": 18, "gct": 4, "gcnet": 12, "se": 9}
    assert published >= expected.get(path.stem, 0)
    text = listing.rows(path.stem)
    assert all(row.name in text for row in table.rows)
