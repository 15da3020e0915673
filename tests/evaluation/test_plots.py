"""Pictures: what is drawn where, and files."""

import io
import itertools
import math
import subprocess
import sys
import warnings
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from mmattn.evaluation.bins import COCO_BINS, COCO_FINE_BINS
from mmattn.evaluation.plots import (
    Comparison,
    SizeCurve,
    plot_differences,
    plot_errors,
    plot_precision_recall,
    plot_result,
    plot_size_curves,
    save,
    to_html,
)

COUNT = {"all": 36335, "small": 15091, "medium": 12441, "large": 8803}
SIZES = tuple(COUNT)
LONG = [f"{'faster-rcnn_r50_fpn_1x_coco_'}{i}_{'x' * 30}" for i in range(6)]  # 60 characters


@pytest.fixture(autouse=True)
def _strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def curve(name="a", ap=(0.1, 0.2, 0.3), width=0.02, **kwargs):
    ap = np.asarray(ap)
    columns = dict(size=8.0 * 2 ** np.arange(len(ap)), num_objects=np.arange(len(ap)) * 100)
    if width:
        columns |= dict(low=ap - width, high=ap + width)
    return SizeCurve(name=name, ap=ap, **{**columns, **kwargs})


def difference(value, half=0.01):
    return SimpleNamespace(value=value, low=value - half, high=value + half, p=0.5)


def comparison(candidate="b", baseline="a", values=(0.03, 0.0, -0.005, -0.02), **kwargs):
    rows = {
        size: dict.fromkeys(("AP", "AP50", "AR"), difference(value))
        for size, value in zip(SIZES, values, strict=True)
    }
    return Comparison(baseline=baseline, candidate=candidate, differences=rows, **kwargs)


def errors(scale=1.0, sizes=SIZES):
    kinds = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FP", "FN")
    deltas = {kind: scale * (i + 1) / 100 for i, kind in enumerate(kinds)}
    by_size = {size: SimpleNamespace(delta_ap=dict(deltas)) for size in sizes}
    return SimpleNamespace(by_size=by_size)


def run(name="a", value=0.4, seeds=1, std=None):
    figures = {size: dict(AP=value, AP50=0.6, AP75=0.45, AR=0.5) for size in SIZES}
    if std is not None:
        std = {size: dict.fromkeys(("AP", "AP50", "AP75", "AR"), std) for size in SIZES}
    return SimpleNamespace(name=name, figures=figures, num_objects=COUNT, seeds=seeds, std=std)


def all_figures(names):
    yield plot_size_curves([curve(name) for name in names], COCO_BINS)
    if len(names) > 1:
        yield plot_differences([comparison(name, names[0]) for name in names[1:]], COUNT)
    precision = {size: np.linspace(1, 0, 101) for size in SIZES}
    yield plot_precision_recall(dict.fromkeys(names, precision), COUNT)
    yield plot_errors({name: errors() for name in names}, COUNT)
    yield plot_result(run(names[0], seeds=3, std=0.01))


def lines(axes, marker=False):
    """The data lines of a panel."""
    found = [x for x in axes.lines if x.get_linewidth() > 1 and len(x.get_xdata()) > 0]
    return [x for x in found if (x.get_marker() not in ("None", "|")) == marker]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def tick_labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def svg_text(figure):
    root = ElementTree.fromstring(to_html(figure, "label", "p"))
    return ["".join(x.itertext()) for x in root.iter("text")]


def test_curves_are_drawn_in_percent_with_band_and_counts():
    figure = plot_size_curves([curve("a"), curve("b", (0.2, 0.3, 0.4))], COCO_BINS, level=0.9)
    axes, below = figure.axes
    assert axes.get_ylabel() == "AP, %"
    assert "px (log scale)" in below.get_xlabel()
    assert below.get_xscale() == "log"
    np.testing.assert_allclose(lines(axes)[0].get_ydata(), (10, 20, 30))
    np.testing.assert_allclose(lines(axes)[1].get_ydata(), (20, 30, 40))
    band = axes.collections[0].get_paths()[0].vertices
    assert {(8, 8), (8, 12), (32, 28), (32, 32)} <= {tuple(x) for x in band.round(9).tolist()}
    bars = below.collections[0].get_paths()[0].vertices
    assert bars[:, 1].max() == 200
    assert legend(figure) == ["a", "b", "band: 90 % interval of each run"]
    first, second = lines(axes)[:2]
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()


def test_a_gap_is_a_gap_and_a_point_alone_is_seen():
    nan = math.nan
    axes = plot_size_curves([curve(ap=(0.1, 0.2, nan, 0.4, nan, 0.5, 0.6))]).axes[0]
    np.testing.assert_array_equal(lines(axes)[0].get_ydata(), (10, 20, nan, 40, nan, 50, 60))
    alone = [x for x in axes.lines if x.get_marker() == "o"]
    assert [x.get_xydata().tolist() for x in alone] == [[[64, 40]]]
    for collection in axes.collections[:1]:
        parts = [path.vertices[:, 0] for path in collection.get_paths()]
        assert not any(x.min() < 32 < x.max() for x in parts)


def test_no_band_without_intervals_and_no_objects_at_all():
    assert legend(plot_size_curves([curve(width=0)])) == ["a"]
    for nothing in ([math.nan] * 3, []):
        axes = plot_size_curves([curve(ap=nothing)]).axes[0]
        assert "too few objects" in [text.get_text() for text in axes.texts]
        to_html(axes.figure, "label", "p")


@pytest.mark.parametrize(
    ("bins", "limits"),
    [(COCO_BINS, {32, 96}), (None, {32, 96}), (COCO_FINE_BINS, {16, 32, 64, 96, 192}), ((), set())],
)
def test_the_limits_of_the_bins_are_marked(bins, limits):
    axes, below = plot_size_curves([curve(ap=np.linspace(0.1, 0.6, 7))], bins).axes
    marked = {x.get_xdata()[0] for x in axes.lines if list(x.get_ydata()) == [0, 1]}
    assert marked == limits
    assert limits <= set(below.get_xticks())
    assert (np.diff(np.log(below.get_xticks())) > 0.15).all()


def test_names_of_bins_stand_over_them_or_not_at_all():
    narrow = [("one", 0, 30.0**2), ("a-long-name", 30.0**2, 34.0**2), ("two", 34.0**2, 1e10)]
    axes = plot_size_curves([curve(ap=np.linspace(0.1, 0.6, 7))], narrow).axes[0]
    assert [text.get_text() for text in axes.texts] == ["one", "two"]


def test_relative_sizes():
    bins = [("small", 0, 0.06), ("large", 0.06, 1e10)]
    shares = curve(size=[0.02, 0.1, 0.5])
    axes, below = plot_size_curves([shares], bins, size_by="sqrt-relative").axes
    assert "share of the image" in below.get_xlabel()
    assert [x.get_xdata()[0] for x in axes.lines if list(x.get_ydata()) == [0, 1]] == [0.06]
    assert "0.06" in svg_text(axes.figure)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(size=[8, 16]), "columns of 2, 3, 3, 3, 3 values"),
        (dict(size=[0, 8, 16]), "must be above 0"),
        (dict(size=[math.nan, 8, 16]), "must be above 0"),
    ],
)
def test_curves_that_cannot_be_drawn(bad, message):
    with pytest.raises(ValueError, match=message):
        plot_size_curves([curve(**bad)])


def test_differences_are_points_with_bars():
    figure = plot_differences([comparison("b"), comparison("c")], COUNT)
    assert [axes.get_title() for axes in figure.axes] == ["AP", "AP50", "AR"]
    axes = figure.axes[0]
    assert axes.get_xlabel() == "difference in AP, points (%)"
    assert tick_labels(axes.yaxis)[:2] == ["all\nn = 36,335", "small\nn = 15,091"]
    points = lines(axes, marker=True)
    np.testing.assert_allclose([x.get_xdata()[0] for x in points], [3, 0, -0.5, -2] * 2, atol=1e-9)
    bars = [x.get_xdata() for x in axes.lines if x.get_marker() == "|"]
    np.testing.assert_allclose(bars[0], (2, 4))
    assert axes.get_xlim()[0] < -3 < 4 < axes.get_xlim()[1]
    assert legend(figure)[:3] == ["0: a", "b", "c"]
    ys = [x.get_ydata()[0] for x in points]
    assert len(set(ys)) == len(ys)
    assert all(round(y) == i for i, y in zip([0, 1, 2, 3] * 2, ys, strict=True))


@pytest.mark.parametrize(
    ("low", "high", "filled"),
    [
        (0.01, 0.03, True),
        (-0.03, -0.01, True),
        (-0.01, 0.03, False),
        (0.0, 0.03, False),
        (math.nan, math.nan, False),
        (None, None, False),
        (0.02, 0.02, False),
    ],
)
def test_only_an_interval_without_zero_is_filled(low, high, filled):
    item = SimpleNamespace(value=0.02, low=low, high=high, p=0.001)
    one = Comparison(baseline="a", candidate="b", differences={"all": {"AP": item}})
    (axes,) = plot_differences([one], figures=["AP"]).axes
    (point,) = lines(axes, marker=True)
    assert (point.get_markerfacecolor() == "white") is not filled


def test_a_difference_that_is_not_available():
    nan = math.nan
    item = SimpleNamespace(value=nan, low=nan, high=nan, p=nan)
    rows = {"all": {"AP": difference(0.01)}, "small": {"AP": item}, "large": {}}
    one = Comparison(baseline="a", candidate="b", differences=rows)
    (axes,) = plot_differences([one], figures=["AP"]).axes
    assert [(t.get_text(), t.get_position()) for t in axes.texts] == [
        ("n/a", (0, 1)),
        ("n/a", (0, 2)),
    ]


def test_differences_of_different_baselines():
    with pytest.raises(ValueError, match="different baselines, 'a' and 'b'"):
        plot_differences([comparison("c", "a"), comparison("c", "b")])


def test_a_run_keeps_its_look_in_all_pictures():
    runs = ["a", "b", "c"]
    curves = plot_size_curves([curve("c")], runs=runs).axes[0]
    points = plot_differences([comparison("c")], runs=runs).axes[0]
    precision = plot_precision_recall({"c": {"all": [1, 0]}}, runs=runs).axes[0]
    types = plot_errors({"c": errors()}, runs=runs).axes[0]
    colours = {
        lines(curves)[0].get_color(),
        lines(points, marker=True)[0].get_markeredgecolor(),
        lines(precision)[0].get_color(),
        lines(types, marker=True)[0].get_color(),
    }
    assert len(colours) == 1
    assert colours != {lines(plot_size_curves([curve("a")]).axes[0])[0].get_color()}


def test_precision_and_recall():
    drawn = {"all": np.linspace(1, 0, 101), "small": [math.nan] * 101, "large": [0.5] * 101}
    figure = plot_precision_recall({"a": drawn, "b": drawn}, COUNT, iou=0.75)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["all, n = 36,335", "small, n = 15,091", "large, n = 8,803"]
    line = lines(figure.axes[0])[0]
    np.testing.assert_allclose(line.get_xdata(), np.arange(101))
    np.testing.assert_allclose(line.get_ydata(), 100 - np.arange(101))
    assert [text.get_text() for text in figure.axes[1].texts] == ["no objects"]
    assert "precision at IoU 0.75" in figure.get_supxlabel()
    assert figure.get_supylabel() == "precision, %"


@pytest.mark.parametrize("panels", [1, 5, 11])
def test_precision_and_recall_of_many_bins(panels):
    figure = plot_precision_recall({"a": {f"bin{i}": [1, 0.5, 0] for i in range(panels)}})
    assert len(figure.axes) == panels
    figure.draw_without_rendering()
    # the lowest panel of each column has the numbers
    for column in {round(axes.get_position().x0, 3) for axes in figure.axes}:
        inside = [a for a in figure.axes if round(a.get_position().x0, 3) == column]
        lowest = min(inside, key=lambda a: a.get_position().y0)
        assert all(text.get_visible() for text in lowest.get_xticklabels())


def test_errors_and_their_differences():
    figure = plot_errors({"a": errors(), "b": errors(1.5)}, COUNT)
    above, below = figure.subfigs
    assert above.get_supxlabel() == "AP50 that mending these errors would add, points (%)"
    assert "difference to a, points of AP50 (%)" in below.get_supxlabel()
    titles = [axes.get_title() for axes in above.axes]
    assert titles[:2] == ["class", "location"]
    assert len(titles) == 8
    first, second = (x.get_xdata() for x in lines(above.axes[1], marker=True))
    np.testing.assert_allclose(first, [2] * 4)
    np.testing.assert_allclose(second, [3] * 4)
    (change,) = lines(below.axes[1], marker=True)
    np.testing.assert_allclose(change.get_xdata(), [1] * 4)
    # one scale for the types
    assert len({axes.get_xlim() for axes in above.axes[:6]}) == 1
    assert len({axes.get_xlim() for axes in below.axes}) == 1


def test_errors_of_one_run_and_of_a_size_without_objects():
    one = errors()
    one.by_size["small"].delta_ap = dict.fromkeys(one.by_size["small"].delta_ap, math.nan)
    (part,) = plot_errors({"a": one}).subfigs
    assert [(t.get_text(), t.get_position()) for t in part.axes[0].texts] == [("n/a", (0, 1))]


def test_a_single_result():
    figure = plot_result(run("a", seeds=3, std=0.05))
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "a"
    assert axes.get_xlabel() == "%"
    assert legend(figure)[-1] == "mean and standard deviation of 3 seeds"
    (bar,) = axes.containers[0].lines[2]
    np.testing.assert_allclose(bar.get_segments()[0][:, 0], (35, 45))
    one = plot_result(run("a", value=math.nan))
    assert [text.get_text() for text in one.axes[0].texts] == ["AP: n/a"] * 4
    assert legend(one) == ["AP", "AP50", "AP75", "AR"]


@pytest.mark.parametrize(
    "draw", [plot_size_curves, plot_differences, plot_precision_recall, plot_errors]
)
def test_nothing_to_draw(draw):
    with pytest.raises(ValueError, match="nothing to draw: expected one or more"):
        draw({} if draw in (plot_precision_recall, plot_errors) else [])


@pytest.mark.parametrize("names", [["a"], LONG], ids=["1", "6 long"])
def test_nothing_overlaps_or_is_cut(names):
    for figure in all_figures(names):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        page = figure.bbox
        boxes, outside = {}, set(_ticks_outside(figure))
        for text in figure.findobj(lambda x: isinstance(x, Text) and x.get_text()):
            if not text.get_visible() or text in outside:
                continue
            box = text.get_window_extent(renderer)
            assert page.x0 <= box.x0 < box.x1 <= page.x1, text
            assert page.y0 <= box.y0 < box.y1 <= page.y1, text
            boxes[text] = box
        assert len(boxes) > 8
        for (one, a), (two, b) in itertools.combinations(boxes.items(), 2):
            apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 + 2 or b.y1 <= a.y0 + 2
            assert apart, (one, two)
        key = figure.legends[0].get_window_extent(renderer)
        assert not any(key.overlaps(axes.get_window_extent(renderer)) for axes in figure.axes)


def _ticks_outside(figure):
    """Labels beyond their axis, which are not drawn."""
    for axes in figure.axes:
        for axis, place in ((axes.xaxis, 0), (axes.yaxis, 1)):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.majorTicks:
                if not low <= tick.label1.get_position()[place] <= high:
                    yield tick.label1


@pytest.mark.parametrize(
    "name",
    ["_hidden", "costs $5 and $6", r"a\$b", "<b> & 'c' \"d\"", "x" * 200, "two\nlines", "注意"],
)
def test_any_name_is_drawn_as_it_is(name):
    drawn = svg_text(plot_size_curves([curve(name, width=0)]))
    if len(name) > 64:
        assert any(text.startswith("xxx") and "…" in text for text in drawn)
    else:
        assert name.replace("\n", " ") in drawn


def test_names_with_bytes_that_are_no_text(tmp_path):
    figure = plot_size_curves([curve("a\x00b\x1b\udce4")])
    assert "a b" in " ".join(svg_text(figure))
    save(figure, tmp_path / "a.svg")
    ElementTree.parse(tmp_path / "a.svg")


@pytest.mark.parametrize("suffix", [".png", ".svg", ".PNG"])
def test_files_are_whole_and_the_same_every_time(tmp_path, suffix):
    paths = [tmp_path / "new" / f"{i}{suffix}" for i in range(2)]
    for path in paths:
        save(plot_size_curves([curve()]), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(paths[0].parent.iterdir()) == paths
    if suffix == ".svg":
        root = ElementTree.parse(paths[0]).getroot()
        assert root.tag.endswith("}svg")
        assert b"<dc:date>" not in paths[0].read_bytes()
    else:
        with Image.open(paths[0]) as image:
            assert image.format == "PNG"
            assert image.info["dpi"][0] >= 150 - 0.1
            assert image.width >= 1500


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.svg.gz", "a.pdf"])
def test_other_files_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"written as \.png or \.svg, got"):
        save(plot_size_curves([curve()]), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_file_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    figure = plot_size_curves([curve()])

    def fail(file, **kwargs):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_style_of_the_user_plays_no_part_and_is_left_alone():
    plain = to_html(plot_size_curves([curve()]), "x", "p")
    theirs = {"font.size": 20.0, "lines.linewidth": 9.0, "text.usetex": True}
    with matplotlib.rc_context(theirs):
        backend = matplotlib.rcParams._get("backend")
        assert to_html(plot_size_curves([curve()]), "x", "p") == plain
        assert {key: matplotlib.rcParams[key] for key in theirs} == theirs
        assert matplotlib.rcParams._get("backend") is backend


def test_pyplot_is_not_loaded():
    code = (
        "import sys; from mmattn.evaluation.plots import *; import io\n"
        "figure = plot_precision_recall({'a': {'all': [1, 0]}}); to_html(figure, 'a', 'b')\n"
        "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_svg_for_a_page():
    figure = plot_size_curves([curve(f"r{i}") for i in range(6)], COCO_BINS)
    text = to_html(figure, 'a "label" <x>', "p3-")
    root = ElementTree.fromstring(text)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'a "label" <x>'
    assert "xmlns" not in text
    assert "<style" not in text
    ids = [x.get("id") for x in root.iter() if x.get("id")]
    assert len(ids) == len(set(ids)) > 0
    assert all(x.startswith("p3-") for x in ids)
    used = [x.get("href") for x in root.iter("use")]
    used += [x.get("clip-path")[4:-1] for x in root.iter() if x.get("clip-path")]
    assert {x.removeprefix("#") for x in used} == set(ids)
    assert len(text) < 60_000


def test_svg_for_a_page_looks_as_the_file_does():
    figure = plot_size_curves([curve(ap=np.linspace(0.1, 0.5, 20))], COCO_BINS)
    short = ElementTree.fromstring(to_html(figure, "x", "p"))
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg")
    whole = ElementTree.fromstring(file.getvalue())
    tag = "{http://www.w3.org/2000/svg}path"
    pairs = zip(short.iter("path"), whole.iter(tag), strict=True)
    for rounded, exact in [(x.get("d").split(), y.get("d").split()) for x, y in pairs]:
        for one, other in zip(rounded, exact, strict=True):
            assert (
                one == other or abs(float(one) - float(other)) < 0.02
            )  # and the layout moves a little
