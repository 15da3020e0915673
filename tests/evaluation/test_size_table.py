"""Tables: what they say, and that nothing is cut."""

import pytest
from rich.console import Console

from mmattn.evaluation import evaluate
from mmattn.evaluation.run import Run
from mmattn.evaluation.statistics import Difference
from mmattn.evaluation.table import (
    class_table,
    difference_cells,
    p_value,
    render,
    runs_table,
    size_table,
)


def result(name="cat", **kwargs):
    truth = {
        "images": [{"id": 1, "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": name}, {"id": 2, "name": "[red]dog[/red]"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "iscrowd": 0}
        ],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 15], "score": 0.5}]
    return evaluate(truth, found, **kwargs)


def test_size_table():
    # IoU 0.75: six of ten thresholds are met
    assert str(result()) == render(size_table(result())) == TABLE.strip()


TABLE = """
AP by size: bbox, %, 100 detections of an image and class, 1 image

| size   | area (px^2)  | objects |   AP |  AP50 |  AP75 |   AR |
|--------|--------------|---------|------|-------|-------|------|
| all    | any          |       1 | 60.0 | 100.0 | 100.0 | 60.0 |
| small  | 0 to 1024    |       1 | 60.0 | 100.0 | 100.0 | 60.0 |
| medium | 1024 to 9216 |       0 |  n/a |   n/a |   n/a |  n/a |
| large  | 9216 or more |       0 |  n/a |   n/a |   n/a |  n/a |

Size: objects by their annotation's area, unmatched detections by their box's.
1 of 1 annotations have no 'area': their size is the area of their box.
"""


def test_class_table():
    lines = render(class_table(result())).splitlines()
    assert lines[4:] == [
        "| cat            | 60.0 (1) | 60.0 (1) | n/a (0) | n/a (0) |",
        "| [red]dog[/red] |  n/a (0) |  n/a (0) | n/a (0) | n/a (0) |",
    ]


def test_nothing_is_cut():
    name = "a class with a name " * 8
    bins = [(f"bin_{'long' * 5}_{n}", n, n + 1) for n in range(12)]
    wide = result(name, bins=bins)
    text = render(size_table(wide), class_table(wide))
    assert name in text
    assert all(bin_name in text for bin_name, *_ in bins)
    assert "…" not in text  # rich's sign of what is cut


def test_plain_ascii_that_fits_80_columns():
    text = render(size_table(result()), class_table(result()))
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80


def test_also_on_a_console(capsys):
    Console(width=80).print(size_table(result()))
    assert "| small  | 0 to 1024    |       1 | 60.0 |" in capsys.readouterr().out


def run(name, *boxes):
    truth = {
        "images": [{"id": 1, "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "area": 400}
        ],
    }
    where = {"image_id": 1, "category_id": 1, "score": 0.5}
    results = [evaluate(truth, [{**where, "bbox": box}], {"tiny": (0, 500)}) for box in boxes]
    return Run(name=name, results=tuple(results))


def test_runs_table():
    # IoU 0.75 (six of ten thresholds) and 1.0, mean 80, standard deviation 28.3; and 0.5: one
    seeds = run("[b]seeds[/b]", [0, 0, 20, 15], [0, 0, 20, 20])
    other = run("other", [0, 0, 20, 10])
    assert render(runs_table([seeds, other])) == RUNS_TABLE.strip()
    assert seeds.class_std["cat"]["tiny"] == pytest.approx(0.08**0.5)  # of 0.6 and 1
    assert other.class_std is None
    assert seeds.class_ap["cat"] == pytest.approx({"all": 0.8, "tiny": 0.8})


RUNS_TABLE = """
AP by size: bbox, %, 100 detections of an image and class, 1 image

| size | objects | run          |           AP |         AP50 |         AP75 |           AR |
|------|---------|--------------|--------------|--------------|--------------|--------------|
| all  |       1 | [b]seeds[/b] | 80.0 +- 28.3 | 100.0 +- 0.0 | 100.0 +- 0.0 | 80.0 +- 28.3 |
|      |         | other        | 10.0 (-70.0) |  100.0 (0.0) | 0.0 (-100.0) | 10.0 (-70.0) |
| tiny |       1 | [b]seeds[/b] | 80.0 +- 28.3 | 100.0 +- 0.0 | 100.0 +- 0.0 | 80.0 +- 28.3 |
|      |         | other        | 10.0 (-70.0) |  100.0 (0.0) | 0.0 (-100.0) | 10.0 (-70.0) |

Area (px^2): tiny 0 to 500.
In brackets: difference to [b]seeds[/b].
Mean +- standard deviation over seeds ([b]seeds[/b] 2, other 1).
Size: objects by their annotation's area, unmatched detections by their box's.
"""


def test_notes_of_some_results_name_them():
    plain, odd = run("a", [0, 0, 20, 15]), run("b", [0, 0, 20, 15])
    odd.results[0].conditions.notes.append("something odd.")
    text = render(runs_table([plain, odd]))
    assert "results: something odd." in text


def test_differences_and_p():
    nan = float("nan")
    assert difference_cells(Difference(0.012, -0.001, 0.0249, 0.0712, 0.01)) == (
        "+1.2",
        "-0.1 to +2.5",
        "0.071",
    )
    assert difference_cells(Difference(nan, nan, nan, nan, nan)) == ("n/a", "n/a", "n/a")
    assert difference_cells(Difference(-0.0004, nan, nan, nan, nan)) == ("0.0", "n/a", "n/a")
    assert [p_value(x) for x in (0.0004, 0.01234, 0.5, 1, nan)] == [
        "<0.001",
        "0.012",
        "0.50",
        "1.00",
        "n/a",
    ]


def test_other_thresholds_are_in_the_heading():
    assert "1 image, IoU 0.5, 0.75\n" in render(size_table(result(iou_thrs=[0.5, 0.75])))


def test_a_name_cannot_break_its_row():
    lines = render(class_table(result(name="a|b\nc"))).splitlines()
    assert lines[4].startswith("| a\\|b c         | 60.0 (1) |")


def test_the_class_table_of_seeds_has_their_mean():
    text = render(class_table(run("seeds", [0, 0, 20, 15], [0, 0, 20, 20])))
    assert "| cat   | 80.0 (1) | 80.0 (1) |" in text
