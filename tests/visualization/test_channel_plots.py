"""Strips of channel gates, raised and lowered channels, shares: what is seen in the pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.text import Text

from mmattn.visualization import channels
from mmattn.visualization.collected import Channels, Collected, Layer, Map
from mmattn.visualization.geometry import Grid, Placement
from mmattn.visualization.style import Scale

SIZE = (48, 64)
GRID = Grid.even((6, 8), SIZE)
GATES = torch.tensor([1.4, 0.5, 1.0, 1.005, 0.8, 1.2, 0.995, 1.3])


def gate(values, **fields):
    fields = dict(neutral=1.0, bounds=(0.0, 2.0)) | fields
    return Map("channel gate", "channel", torch.as_tensor(values), **fields)


def layer(name, *maps, label="c2, block 1", type="SE", stage="c2", **fields):
    return Layer(name, type, stage, label, maps, GRID, **fields)


def collected(*layers, name="drawn"):
    image = np.full((*SIZE, 3), 90, np.uint8)
    return Collected(name, image, Placement(SIZE), layers)


def texts(figure):
    return [t.get_text().strip() for t in figure.findobj(Text) if t.get_text()]


def strips(figure):
    return [image.get_array()[0] for image in figure.axes[0].images]


def test_a_strip_has_the_gates_colours_from_the_lowest_to_the_highest():
    scale = Scale(0.5, 1.5, 1.0)
    one = collected(layer("a", gate(GATES)), layer("b", gate([1.4, 0.8]), label="c3, block 1"))
    first, second = strips(channels.draw_strips(one, scale=scale))
    np.testing.assert_allclose(first, scale.colours(np.sort(GATES.numpy())))
    # one scale for all layers: the same gate has the same colour, and that of 1 is the middle one
    np.testing.assert_allclose(second[-1], first[-1])
    np.testing.assert_allclose(first[3], scale.cmap(0.5)[:3])
    # below it purple: more blue than red; above it orange
    assert first[0, 2] > first[0, 0]
    assert first[-1, 2] < first[-1, 0]


def test_the_numbers_beside_a_strip():
    one = collected(layer("a", gate(GATES)))
    figure = channels.draw_strips(one, scale=Scale(0.5, 1.5, 1.0, "gate (neutral: 1)"))
    row = ["8", "0.500", "1.025", "1.400", "25 %", "38 %", "38 %"]
    head = ["channels", "lowest", "mean", "highest", "< 0.990", "between", "> 1.010"]
    shown = texts(figure)
    assert [shown[shown.index(head[0]) + k] for k in range(7)] == head
    assert [shown[shown.index(row[0]) + k] for k in range(7)] == row
    # the mark stands where the strip passes the neutral value: 3 of 8 are below it
    marks = [line.get_xdata() for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert any(np.allclose(x, 3 / 8) for x in marks)
    assert any(text.startswith("gate (neutral: 1); black mark") for text in shown)


def test_layers_stand_in_the_order_in_which_they_ran():
    names = ["c2, block 1", "c2, block 2", "c3, block 1"]
    layers = [layer(n, gate(GATES), label=n, stage=n[:2]) for n in names]
    ax = channels.draw_strips(collected(*layers)).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == names
    assert ax.yaxis_inverted()
    at = list(ax.get_yticks())
    assert at[2] - at[1] > at[1] - at[0] > 0  # a stage stands apart


def test_the_text_of_many_layers_stays_apart_and_inside():
    layers = [
        layer(f"l{n}", gate(GATES), label=f"c{n // 6 + 2}, block {n % 6}, downsample",
              stage=f"c{n // 6 + 2}", type="GCT")
        for n in range(24)
    ]  # fmt: skip
    figure = channels.draw_strips(collected(*layers))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [
        (t.get_text(), t.get_window_extent(canvas.get_renderer()))
        for t in figure.findobj(Text)
        if t.get_text() and t.get_visible()
    ]
    width, height = figure.bbox.size
    for text, box in boxes:
        assert -1 < box.x0 < box.x1 < width + 1, text
        assert -1 < box.y0 < box.y1 < height + 1, text
    for k, (text, box) in enumerate(boxes):
        assert not any(box.shrunk(0.95, 0.7).overlaps(b) for _, b in boxes[k + 1 :]), text


def test_added_context_is_around_0_and_near_is_a_share_of_the_scale():
    term = Map("added context", "channel", torch.tensor([-2.0, 0.01, 1.0]), "term", 0.0)
    figure = channels.draw_strips(collected(layer("a", term, type="GC")), scale=Scale(-2, 2, 0.0))
    shown = texts(figure)
    assert "< \N{MINUS SIGN}0.02" in shown
    assert shown.count("33 %") == 3


def test_no_neutral_value_is_made_up_where_layers_differ_in_theirs():
    one = collected(layer("a", gate(GATES)), layer("b", gate([0.4, 0.6], neutral=0.5)))
    assert channels.channel_scale(one, "SE").centre is None
    assert "neutral\n± 1 %" in texts(channels.draw_strips(one))


def test_one_scale_for_all_images_and_layers():
    quiet = collected(layer("a", gate([0.9, 1.1])))
    loud = collected(layer("a", gate([0.95, 1.05])), layer("b", gate([1.0, 1.6])))
    scale = channels.channel_scale([quiet, loud], "SE")
    assert (scale.low, scale.centre, scale.high) == pytest.approx((0.4, 1.0, 1.6), abs=0.02)
    assert scale == channels.channel_scale([loud, quiet], "SE")
    # ends that nearly are the bounds become them
    scale = channels.channel_scale(collected(layer("a", gate([0.0003, 1.999]))), "SE")
    assert (scale.low, scale.high) == (0, 2)
    # other types have their own
    other = collected(*quiet.layers, layer("c", gate([0.1, 1.9]), type="ECA"))
    assert channels.channel_scale(other, "SE").high == pytest.approx(1.1, abs=0.01)


def test_the_gate_comes_before_what_is_added_and_a_name_chooses():
    term = Map("added context", "channel", torch.tensor([-2.0, 1.0]), "term", 0.0)
    one = collected(layer("a", term, gate(GATES), type="GC"))
    assert channels.channel_maps(one) == [("GC", "added context"), ("GC", "channel gate")]
    assert len(strips(channels.draw_strips(one))[0]) == 8
    assert len(strips(channels.draw_strips(one, name="added context"))[0]) == 2


def raised_and_lowered(up, down):
    x = torch.stack([torch.full((6, 8), v) for v in (up, down)])
    return dict(raised=Channels((0,), x[:1], GRID), lowered=Channels((1,), x[1:], GRID))


def maps_of(figure):
    return [ax.images[0].get_array() for ax in figure.findobj(_is_map)]


def _is_map(artist):
    return bool(getattr(artist, "images", [])) and artist.get_title(loc="left") != ""


def test_raised_and_lowered_channels_are_named_and_share_one_scale():
    def drawn(up, down):
        one = layer("a", gate(GATES), **raised_and_lowered(up, down))
        figure = channels.draw_channels(collected(one), "a", scale=Scale(0.5, 1.5, 1.0))
        return figure, maps_of(figure)

    figure, (first, second) = drawn(2.0, 0.5)
    shown = texts(figure)
    assert {"channel 0: 1.400", "channel 1: 0.500", "most raised", "most lowered"} <= {*shown}
    assert "25 % < 0.990,  38 % > 1.010,\n38 % between" in shown
    scale = channels._activation_scale([*raised_and_lowered(2.0, 0.5).values()])
    np.testing.assert_allclose(first[24, 32], scale.colours([2.0])[0], atol=1e-6)
    np.testing.assert_allclose(second[24, 32], scale.colours([0.5])[0], atol=1e-6)
    # values of both signs are around 0
    assert channels._activation_scale([*raised_and_lowered(2.0, -0.5).values()]).centre == 0
    # the gates are orange and purple in the same figure
    for up, down, colours in ((2, 0.5, "cividis"), (-2, -0.5, "cividis"), (2, -0.5, "RdBu_r")):
        figure, (first, _) = drawn(float(up), float(down))
        scale = channels._activation_scale([*raised_and_lowered(up, down).values()])
        assert scale.cmap.name == colours
        assert colours in {x.cmap.name for x in figure.findobj(QuadMesh)}
        np.testing.assert_allclose(first[24, 32], scale.colours([up])[0], atol=1e-6)
    _, (first, second) = drawn(1.0, 1.0)
    np.testing.assert_array_equal(first, second)


def test_the_curve_marks_the_channels_at_their_ranks():
    one = layer("a", gate(GATES), **raised_and_lowered(2.0, 0.5))
    figure = channels.draw_channels(collected(one), one)
    [curve] = [ax for ax in figure.axes if ax.get_xlabel() == "8 channels, sorted"]
    marks = {line.get_label(): line.get_xydata()[0] for line in curve.lines}
    np.testing.assert_allclose(marks["most raised"], (8, 1.4), rtol=1e-6)
    np.testing.assert_allclose(marks["most lowered"], (1, 0.5), rtol=1e-6)
    points = curve.collections[0].get_offsets()
    assert sorted(points[:, 0]) == list(range(1, 9))
    order = points[np.argsort(points[:, 0]), 1]
    np.testing.assert_allclose(order, np.sort(GATES.numpy()))


def test_regions_of_interest_have_gates_and_no_maps():
    one = replace(layer("a", gate(GATES), **raised_and_lowered(2.0, 0.5)), grid=None)
    nowhere = {k: replace(getattr(one, k), grid=None) for k in ("raised", "lowered")}
    for without in (replace(one, **nowhere), replace(one, raised=None, lowered=None)):
        figure = channels.draw_channels(collected(without), "a")
        assert maps_of(figure) == []
        assert "8 channels, sorted" in texts(figure)
        channels.draw_strips(collected(without))


@pytest.mark.parametrize("size", [(40, 400), (400, 40), (800, 1333)])
def test_wide_tall_and_large_images_give_figures_of_a_sensible_size(size):
    one = layer("a", gate(GATES), **raised_and_lowered(2.0, 0.5))
    image = Collected("x", np.zeros((*size, 3), np.uint8), Placement(size), (one,))
    figure = channels.draw_channels(image, "a")
    width, height = figure.get_size_inches()
    assert 4 < width < 14
    assert 2 < height < 8
    assert all(max(picture.shape) <= 400 for picture in maps_of(figure))


def sk(name, second):
    second = torch.tensor(second)
    values = torch.stack([1 - second, second])
    one = Map("branch shares", "shares", values, "detail", 0.5, (0.0, 1.0))
    return layer(name, one, type="SKConv2d")


def cond(name, values):
    one = Map("expert shares", "shares", torch.tensor(values), "detail", None, (0.0, 1.0))
    return layer(name, one, type="CondConv2d")


def test_of_two_branches_the_share_of_the_second_is_drawn():
    one = collected(sk("a", [0.9, 0.6, 0.3]), sk("b", [0.5, 0.4]))
    figure = channels.draw_shares(one, "a")
    points = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points, [[3, 0.9], [2, 0.6], [1, 0.3]])
    assert "mean 0.600" in texts(figure)
    figure = channels.draw_share_layers(one)
    first, second = strips(figure)
    scale = channels._share_scale([x.maps[0] for x in one])
    np.testing.assert_allclose(first, scale.colours([0.3, 0.6, 0.9]), atol=1e-6)
    np.testing.assert_allclose(second[1], scale.cmap(0.5)[:3], atol=1e-6)
    assert any(t.startswith("share of the second branch (even: 0.5)") for t in texts(figure))


def test_experts_are_bars_and_a_table():
    one = collected(cond("a", [0.25, 0.75, 0.5]), cond("b", [0.1, 0.9]))
    figure = channels.draw_shares(one, "a")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.25, 0.75, 0.5]
    assert figure.axes[0].get_ylim() == (0, 1)
    figure = channels.draw_share_layers(one)
    cells = {(t.get_position(), t.get_text()) for t in figure.axes[0].texts}
    assert ((1, 0), "0.75") in cells
    assert ((0, 1), "0.10") in cells
    assert len(cells) == 5  # the second layer has two experts
    assert figure.axes[0].images[0].get_clim() == (0, 1)


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (lambda c: channels.draw_strips(c), "several types of modules, SE, ECA: choose"),
        (lambda c: channels.draw_strips(c, "GCT"), "no GCT has channel gates in drawn; there are"),
        (lambda c: channels.draw_strips(c, "SE", name="x"), "no SE has 'x' in drawn; there are"),
        (lambda c: channels.channel_scale([c], "GCT"), "no GCT has channel gates in these images"),
        (lambda c: channels.draw_channels(c, "k"), r"k \(SKConv2d\) has no channel gates; it has"),
        (lambda c: channels.draw_shares(c, "a"), r"a \(SE\) has no shares of branches or experts"),
        (lambda c: channels.draw_share_layers(c, "SE"), "there are shares of SKConv2d"),
        (
            lambda c: channels.draw_strips(replace(c, layers=c.layers[2:])),
            "no module has channel gates in drawn; channel gates come from",
        ),
        (
            lambda c: channels.draw_share_layers(replace(c, layers=c.layers[:1])),
            "no module has shares",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_sentence(draw, sentence):
    one = collected(layer("a", gate(GATES)), layer("b", gate(GATES), type="ECA"), sk("k", [0.5]))
    with pytest.raises(ValueError, match=sentence) as error:
        draw(one)
    assert str(error.value).count("\n") == 0
    with pytest.raises(KeyError, match="no layer 'nowhere'"):
        channels.draw_channels(one, "nowhere")


def test_zero_has_no_sign():
    term = Map("added context", "channel", torch.tensor([-2.0, 1.998, -0.001]), "term", 0.0)
    shown = texts(channels.draw_strips(collected(layer("a", term, type="GC"))))
    assert "0.00" in shown
    assert not any("\N{MINUS SIGN}0.00" in text.split() for text in shown)


def test_gates_that_have_not_learned_are_of_one_colour_with_a_readable_scale():
    values = torch.ones(16) + 1e-7 * torch.arange(16)
    scale = channels.channel_scale(collected(layer("a", gate(values))), "SE")
    assert (scale.low, scale.high) == pytest.approx((0.99, 1.01))
    assert "1.0000" in texts(channels.draw_strips(collected(layer("a", gate(values)))))


def test_what_is_no_number_is_grey_and_what_is_infinite_has_the_last_colour():
    one = collected(layer("a", gate([float("nan"), 0.8, float("inf")])))
    [strip] = strips(channels.draw_strips(one, scale=Scale(0.5, 1.5, 1.0)))
    np.testing.assert_allclose(strip[-1], 0.8)  # sorted last
    np.testing.assert_allclose(strip[1], Scale(0.5, 1.5, 1.0).colours(np.array([1.5]))[0])
    ax = channels.draw_channels(one, "a").axes[0]
    assert np.isfinite(ax.get_ylim()).all()


def test_a_long_name_stays_inside():
    one = collected(layer("a", gate(GATES), label="c4, block 23, conv2"), name="long_" * 20)
    for figure in (channels.draw_strips(one), channels.draw_channels(one, "a")):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = figure._suptitle.get_window_extent(canvas.get_renderer())
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert figure.get_suptitle().startswith("SE")
