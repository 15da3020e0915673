"""Tables: what they say, and that nothing is cut."""

from rich.console import Console

from mmattn.evaluation import class_table, evaluate_coco, render, size_table


def result(name="cat", **kwargs):
    truth = {
        "images": [{"id": 1, "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": name}, {"id": 2, "name": "[red]dog[/red]"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "iscrowd": 0}
        ],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 15], "score": 0.5}]
    return evaluate_coco(truth, found, **kwargs)


def test_size_table():
    # IoU 0.75: six of ten thresholds are met
    assert str(result()) == render(size_table(result())) == TABLE.strip()


TABLE = """
AP by size: bbox, %, 100 detections an image, 1 images

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
    wide = result(name, size_bins=bins)
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
