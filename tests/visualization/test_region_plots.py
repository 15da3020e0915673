"""Region maps: the colours, shares and distances that are seen in the pictures."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from mmattn.visualization import regions
from mmattn.visualization.collected import Collected, Detections, Layer, Map
from mmattn.visualization.geometry import Grid, Placement
from mmattn.visualization.overlay import tinted
from mmattn.visualization.shares import around, entropy, percent, region_shares
from mmattn.visualization.style import palette

SIZE = (48, 64)
# cells of 16 px: half region 1, a quarter each regions 3 and 0; region 2 nowhere
CELLS = torch.tensor([[1, 1, 3, 3], [1, 1, 3, 0], [1, 1, 0, 0]])
GRID = Grid.even((3, 4), SIZE)
DISTANCES = torch.tensor([[0, 0.2, 0.3, 0.4], [0.2, 0, 0.5, 0.6], [0.3, 0.5, 0, 0.8],
                          [0.4, 0.6, 0.8, 0]])  # fmt: skip


def region_map(cells=CELLS, count=4, grid=GRID):
    return Map("regions", "regions", cells, "detail", count=count, grid=grid)


def layer(name, *maps, label="c4, block 1"):
    return Layer(name, "DRConv2d", "c4", label, maps or (region_map(),), GRID)


def collected(*layers, detections=None):
    image = np.full((*SIZE, 3), 90, np.uint8)
    return Collected("drawn", image, Placement(SIZE), layers, detections)


def texts(figure):
    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def pictures(figure):
    found = figure.findobj(lambda a: bool(getattr(a, "images", [])))
    return {ax.get_title(loc="left"): ax for ax in found}


def picture(figure, title):
    return next(ax for name, ax in pictures(figure).items() if name.startswith(title))


def test_each_cell_has_the_colour_of_its_region_and_nothing_between():
    axes = picture(regions.draw_regions(collected(layer("a")), "a"), "regions, 3 x 4 cells")
    seen = axes.images[0].get_array()
    colours = palette(4)(np.arange(4))[:, :3]
    expected = colours[CELLS.numpy()].repeat(16, 0).repeat(16, 1)
    np.testing.assert_allclose(seen, expected)
    assert axes.images[0].get_extent() == [0, 64, 48, 0]
    # over the image they are mixed with its lightness
    over = picture(regions.draw_regions(collected(layer("a")), "a"), "over the image")
    image = collected().image
    np.testing.assert_allclose(over.images[0].get_array(), tinted(image, expected))


def test_lines_run_along_the_edges_of_cells_where_regions_meet():
    axes = picture(regions.draw_regions(collected(layer("a")), "a"), "regions")
    [lines] = axes.findobj(LineCollection)
    segments = {tuple(map(tuple, segment)) for segment in lines.get_segments()}
    assert segments == {
        ((32.0, 0.0), (32.0, 48.0)),  # 1 | 3 and 1 | 0
        ((48.0, 16.0), (48.0, 32.0)),  # 3 | 0
        ((48.0, 16.0), (64.0, 16.0)),  # 3 above 0
        ((32.0, 32.0), (48.0, 32.0)),
    }


def test_lines_do_not_cover_cells_that_are_too_small():
    cells = torch.arange(48 * 64).reshape(48, 64) % 2
    fine = region_map(cells, grid=Grid.even((48, 64), SIZE))
    large = replace(collected(layer("a", fine)), placement=Placement((480, 640), (0.1, 0.1)))
    large = replace(large, image=np.zeros((480, 640, 3), np.uint8))
    assert picture(regions.draw_regions(large, "a"), "regions").findobj(LineCollection)
    finer = replace(large, layers=(layer("a", region_map(cells.repeat(3, 3), grid=Grid.even(
        (144, 192), SIZE))),))  # fmt: skip
    assert not picture(regions.draw_regions(finer, "a"), "regions").findobj(LineCollection)


def test_the_bars_are_the_shares_and_an_unused_region_is_seen():
    figure = regions.draw_regions(collected(layer("a")), "a")
    [axes] = [ax for ax in figure.axes if ax.get_xlabel() == "region" and ax.containers]
    bars = axes.containers[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([0.25, 0.5, 0, 0.25])
    for k, bar in enumerate(bars):
        assert bar.get_facecolor() == pytest.approx(palette(4)(k))
    shown = texts(figure)
    assert {"25 %", "50 %", "0 %"} <= {*shown}
    assert "shares of the image's area, entropy 1.50 of 2.00 bits\nunused: 2" in shown
    # the colour of the unused region stands below its bar all the same
    squares = [p for p in axes.patches if p not in bars]
    assert [p.get_facecolor() for p in squares] == [pytest.approx(palette(4)(k)) for k in range(4)]
    full = collected(layer("a", region_map(torch.arange(12).reshape(3, 4) % 4)))
    assert any(t.endswith("all regions are used") for t in texts(regions.draw_regions(full, "a")))


def test_what_pads_the_image_has_no_share():
    # the image is the left half of what the network saw
    half = replace(collected(layer("a")), placement=Placement((48, 32), input_size=SIZE))
    half = replace(half, image=half.image[:, :32])
    shown = texts(regions.draw_regions(half, "a"))
    assert "100 %" in shown
    assert "shares of the image's area, entropy 0.00 of 2.00 bits\nunused: 0, 2, 3" in shown
    assert picture(regions.draw_region_layers(half), "c4, block 1\n1 of 4 used")


def test_distances_start_at_0_and_name_the_unused_region():
    apart = Map("filter distances", "distances", DISTANCES, "detail")
    figure = regions.draw_regions(collected(layer("a", region_map(), apart)), "a")
    axes = picture(figure, "filter distances")
    np.testing.assert_allclose(axes.images[0].get_array(), DISTANCES)
    assert axes.images[0].get_clim() == pytest.approx((0, 0.8))
    assert {(t.get_position(), t.get_text()) for t in axes.texts} >= {((3, 2), "0.80")}
    colours = [t.get_color() for t in axes.get_xticklabels()]
    assert colours == ["black", "black", "#999999", "black"]
    # without distances there is no empty place for them
    assert "filter distances" not in texts(regions.draw_regions(collected(layer("a")), "a"))


def test_detections_above_the_score_are_drawn_where_they_are():
    boxes = np.array([[4.0, 6, 30, 40], [40.0, 20, 60, 44]])
    found = Detections(boxes, np.array([0.9, 0.4]), np.array([1, 0]), ("circle", "square"))
    one = collected(layer("a"), detections=found)
    axes = picture(regions.draw_regions(one, "a", score=0.5), "image, 1 detection\nof a score")
    [box] = [p for p in axes.patches if isinstance(p, Rectangle)]
    assert box.get_bbox().extents == pytest.approx(boxes[0])
    assert [t.get_text() for t in axes.texts] == ["square 0.90"]
    figure = regions.draw_regions(one, "a")
    for title in ("image, 2 detections", "over the image"):
        assert len(picture(figure, title).patches) == 2
    none = picture(regions.draw_regions(one, "a", score=0.95), "image, no detections")
    assert not none.patches


def test_a_name_does_not_cover_that_of_a_better_detection():
    boxes = np.array([[4.0, 20, 30, 40], [5.0, 20, 30, 40]])
    found = Detections(boxes, np.array([0.9, 0.4]), np.array([0, 0]), ("circle",))
    axes = picture(regions.draw_regions(collected(layer("a"), detections=found), "a"), "image")
    places = {t.get_text(): t.get_position() for t in axes.texts}
    assert places["circle 0.90"][1] < 20 < places["circle 0.40"][1]


def test_the_overview_has_each_layer_with_its_use_and_says_what_colours_mean():
    one = collected(
        layer("a"), layer("b", region_map(CELLS * 0), label="c5, block 1"),
        layer("c", region_map(grid=None), label="c5, block 2"),
    )  # fmt: skip
    figure = regions.draw_region_layers(one)
    shown = pictures(figure)
    assert list(shown) == [
        "image",
        "c4, block 1\n3 of 4 used, 1.50 of 2 bits",
        "c5, block 1\n1 of 4 used, 0.00 of 2 bits",
    ]
    seen = shown["c4, block 1\n3 of 4 used, 1.50 of 2 bits"]
    np.testing.assert_allclose(seen.images[0].get_array()[8, 8], palette(4)(1)[:3])
    [bar] = seen.child_axes
    assert [p.get_width() for p in bar.patches] == pytest.approx([0.25, 0.5, 0.25])
    assert [p.get_x() for p in bar.patches] == pytest.approx([0, 0.25, 0.75])
    [legend] = figure.legends
    assert "within one layer only" in legend.get_title().get_text()
    assert [t.get_text() for t in legend.get_texts()] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("size", [(40, 400), (400, 40), (800, 1333)])
def test_wide_tall_and_large_images_give_figures_of_a_sensible_size(size):
    one = layer("a", region_map(grid=Grid.even((3, 4), size)))
    wide = Collected("x", np.zeros((*size, 3), np.uint8), Placement(size), (one, one))
    for figure in (regions.draw_regions(wide, "a"), regions.draw_region_layers(wide)):
        width, height = figure.get_size_inches()
        assert 4 < width < 12
        assert 1.5 < height < 18
        for axes in pictures(figure).values():
            assert max(axes.images[0].get_array().shape) <= 512


def test_shares_of_cells_and_of_the_image():
    one = region_map()
    assert region_shares(one) == pytest.approx([0.25, 0.5, 0, 0.25])
    # an image in the left half of the input: what pads it does not count
    half = Placement((48, 32), input_size=SIZE)
    assert region_shares(one, half) == pytest.approx([0, 1, 0, 0])
    for shares in (region_shares(one), region_shares(one, Placement((31, 45)))):
        assert shares.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="does not lie on the image; leave the placement out"):
        region_shares(region_map(grid=None), half)
    with pytest.raises(ValueError, match="of the kind 'regions', got 'x' \\(channel\\)"):
        region_shares(Map("x", "channel", torch.ones(3)))


def test_entropy_in_bits():
    assert entropy([0.5, 0.25, 0.25, 0]) == pytest.approx(1.5)
    assert entropy([0, 1, 0]) == 0
    assert entropy(np.full(32, 1 / 32)) == pytest.approx(5)
    assert entropy([0.9, 0.1]) == pytest.approx(-0.9 * math.log2(0.9) - 0.1 * math.log2(0.1))


def test_values_around_the_neutral_one():
    values = [0.5, 0.98, 0.99, 1, 1.01, 1.02, 1.5, 2]
    assert around(values, 1, 0.0100001) == (0.25, 0.375, 0.375)
    assert around(torch.tensor([[0.0, 0.0]]), 0, 0) == (0, 1, 0)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.0001, "< 0.1 %"), (0.0034, "0.3 %"), (0.0994, "9.9 %"),
     (0.123, "12 %"), (0.997, "99.7 %"), (0.9999, "> 99.9 %")],
)  # fmt: skip
def test_percentages_do_not_round_to_nothing_or_to_all(share, text):
    assert percent(share) == text


def test_what_cannot_be_drawn_is_said_in_a_sentence():
    gate = Map("channel gate", "channel", torch.ones(8))
    one = collected(layer("a", gate), layer("roi", region_map(grid=None)))
    with pytest.raises(ValueError, match=r"a \(DRConv2d\) has no map of regions on the image; it"):
        regions.draw_regions(one, "a")
    with pytest.raises(ValueError, match="roi .* has no map of regions on the image"):
        regions.draw_regions(one, "roi")
    with pytest.raises(ValueError, match="no layer of drawn has a map of regions, which come from"):
        regions.draw_region_layers(one)
    with pytest.raises(KeyError, match="no layer 'b'; there are a, roi"):
        regions.draw_regions(one, "b")


# what protanopes and deuteranopes see, in linear RGB (Machado et al. 2009)
NO_RED = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
          [-0.003882, -0.048116, 1.051998]]  # fmt: skip
NO_GREEN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881]]  # fmt: skip
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175],
       [0.0193339, 0.119192, 0.9503041]]  # fmt: skip


def least_difference(rgb, seen):
    """The CIELAB distance of the two most similar colours."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(seen).T, 0, 1)
    x = linear @ np.array(XYZ).T / [0.95047, 1, 1.08883]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    lab = np.stack([116 * f[:, 1], 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)
    apart = np.linalg.norm(lab[:, None] - lab, axis=-1)
    return apart[np.triu_indices(len(lab), 1)].min()


@pytest.mark.parametrize(("count", "least"), [(8, 16.5), (16, 16.5), (32, 13.5)])
@pytest.mark.parametrize("seen", [np.eye(3), NO_RED, NO_GREEN], ids=["all", "no red", "no green"])
def test_colours_of_regions_are_told_apart_by_colour_blind_people(count, least, seen):
    colours = palette(count)(np.arange(count))[:, :3]
    assert len(colours) == count
    assert least_difference(colours, seen) > least


def test_a_region_keeps_its_colour_whatever_their_number():
    for count in (2, 8, 31):
        np.testing.assert_array_equal(palette(count)(range(count)), palette(32)(range(count)))
    assert len({palette(40)(k) for k in range(40)}) == 40
