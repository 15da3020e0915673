"""published.yml: what it says is read, and what is wrong in it is one sentence."""

import pytest
import yaml

from mmattn.reproduction.published import read
from tests.config_files import CONFIGS

SOURCES = {"A": {"name": "Authors", "url": "https://a.org"}, "B": {"name": "B", "url": "b"}}
ROWS = [
    dict(config="_base_/plain", source="A", figures={"ap": 37.5}),
    dict(config="_base_/plain", source="B", figures={"ap": 38}),
    dict(
        config="se/gated", source="A", baseline="_base_/plain", figures={"ap": 38.7, "ap_s": 20},
        cost={"params_m": 41.5}, note="one image per GPU",
    ),
]  # fmt: skip


def written(folder, rows=ROWS, **more):
    for name in ("_base_/plain", "se/gated"):
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (folder / "published.yml").write_text(yaml.safe_dump(dict(sources=SOURCES, rows=rows) | more))
    return folder


def test_rows_come_with_their_source_and_baseline(tmp_path):
    plain, other, gated = read(written(tmp_path))
    assert (plain.config, plain.source.name, plain.baseline) == ("_base_/plain", "Authors", None)
    assert other.source.key == "B"
    assert gated.baseline == plain
    assert gated.figures == {"ap": 38.7, "ap_s": 20.0}
    assert gated.cost == {"params_m": 41.5}
    assert gated.note == "one image per GPU"
    assert (plain.cost, plain.note) == ({}, "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(config="se/other"), r"row 3 \(se/other\): its config .* no configs/se/other.py"),
        (dict(config="se/gated.py"), "write it without .py"),
        (dict(source="C"), "source 'C' is not among the sources A, B"),
        (dict(figure={"ap": 1}), "unknown key 'figure'; did you mean figures"),
        (dict(figures={"ap60": 60}), "figures has the unknown key 'ap60'; did you mean ap50"),
        (dict(figures={"ap": "38"}), "ap is expected to be a number, got '38'"),
        (dict(figures={"ap": True}), "ap is expected to be a number, got True"),
        (dict(figures={"ap": 387}), "expected in percent"),
        (dict(figures={}), "expected in percent"),
        (dict(figures=[38.7]), "figures is expected to be a map"),
        (dict(cost={"flops": 1}), "cost has the unknown key 'flops'"),
        (dict(baseline="se/gated"), "its baseline se/gated is no plain row of source A"),
        (dict(source="B", baseline="_base_/none"), "is no plain row of source B"),
        (dict(config="_base_/plain", baseline=None), "A has a row of _base_/plain already"),
    ],
)
def test_a_wrong_row_is_named(change, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read(written(tmp_path, [*ROWS[:2], ROWS[2] | change]))


def test_a_file_that_is_wrong_as_a_whole(tmp_path):
    with pytest.raises(ValueError, match=r"published.yml cannot be read: No such file"):
        read(tmp_path)
    with pytest.raises(ValueError, match="lacks figures"):
        read(written(tmp_path, [dict(config="se/gated", source="A")]))
    with pytest.raises(ValueError, match="unknown key 'row'; did you mean rows"):
        read(written(tmp_path, row=[]))
    with pytest.raises(ValueError, match="source A lacks url"):
        read(written(tmp_path, sources={"A": {"name": "x"}}))
    with pytest.raises(ValueError, match="rows is expected to be a list"):
        read(written(tmp_path, rows={}))
    with pytest.raises(ValueError, match="row 1 is expected to be a map"):
        read(written(tmp_path, rows=["se/gated"]))
    (tmp_path / "published.yml").write_text("rows: [")
    with pytest.raises(ValueError, match="is not YAML"):
        read(tmp_path)


def test_ours_is_valid():
    assert len(read(CONFIGS)) > 60
