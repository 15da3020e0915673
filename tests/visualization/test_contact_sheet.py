"""Sheets of many images: one scale for all of them, the true aspect ratio, and a cell for each."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from mmattn.visualization import style
from mmattn.visualization.collected import Collected, Detections, Layer, Map
from mmattn.visualization.contact_sheets import contact_sheet
from mmattn.visualization.geometry import Grid, Placement
from mmattn.visualization.overlay import DARKEST, TINT, reduced, tint_of, tinted

SIZE = (32, 64)
GRID = Grid((8.0, 8.0), (3.5, 3.5))


def collected(name, *maps, size=SIZE, detections=None, layer="backbone.layer1.0.sge"):
    """A grey image with one layer."""
    image = np.full((*size, 3), 128, np.uint8)
    one = Layer(layer, "SGE", "c2", "c2, block 1", maps, GRID)
    return Collected(name, image, Placement(size), (one,), detections)


def mask(*values, mean=None):
    """A spatial gate with those values in its groups, everywhere alike."""
    groups = torch.stack([torch.full((4, 8), float(x)) for x in values])
    mean = None if mean is None else torch.full((4, 8), float(mean))
    names = tuple(range(len(values)))
    return Map(
        "mask", "spatial", groups, "factor", 1.0, (0.0, 2.0), None, names, 16, mean, None, GRID
    )


def sheet(images, *args, **options):
    return contact_sheet(images, "backbone.layer1.0.sge", *args, **options)


def axes(figure, label):
    [found] = [x for x in figure.axes if x.get_label() == label]
    return found


def pictures(figure, *names):
    """What the cells show, 0 to 255."""
    found = [axes(figure, name).images[0].get_array() for name in names]
    return [np.rint(x * 255) if x.dtype.kind == "f" else x for x in found]


def colour(figure, name):
    return pictures(figure, name)[0][10, 20].astype(int).tolist()


def bar_colour(figure, value):
    """What the colour bar says of a value."""
    found = axes(figure, "scale")
    [mesh] = [x for x in found.collections if x.get_array() is not None]
    return np.rint(np.array(mesh.cmap(mesh.norm(value))[:3]) * 255).astype(int).tolist()


# --- one scale -------------------------------------------------------------------------------


def test_all_cells_have_the_colours_of_the_one_bar():
    images = [collected("a", mask(1.2)), collected("b", mask(1.4)), collected("c", mask(0.7))]
    [figure] = sheet(images)
    for name, value in (("a", 1.2), ("b", 1.4), ("c", 0.7)):
        np.testing.assert_allclose(colour(figure, name), bar_colour(figure, value), atol=1)
    assert len({tuple(colour(figure, name)) for name in "abc"}) == 3
    assert sum(x.get_label() == "scale" for x in figure.axes) == 1
    assert axes(figure, "scale").get_ylabel() == "mask (1 changes nothing)"


def test_several_sheets_share_the_scale():
    images = [collected(f"x{k}", mask(1 + 0.1 * k)) for k in range(5)]
    images += [collected("same", mask(1.1))]
    sheets = sheet(images, most=3)
    assert len(sheets) == 2
    assert colour(sheets[0], "x1") == colour(sheets[1], "same")
    assert bar_colour(sheets[0], 1.3) == bar_colour(sheets[1], 1.3)
    assert [x.texts[1].get_text() for x in sheets] == [
        "3 images; sheet 1 of 2",
        "3 images; sheet 2 of 2",
    ]
    names = [[x.get_text() for x in figure.texts[2:]] for figure in sheets]
    assert names == [["x0", "x1", "x2"], ["x3", "x4", "same"]]


def test_the_mean_over_all_groups_is_drawn_and_scaled():
    [figure] = sheet(
        [collected("a", mask(1.8, 0.2, mean=1.1)), collected("b", mask(1.9, mean=1.0))]
    )
    np.testing.assert_allclose(colour(figure, "a"), bar_colour(figure, 1.1), atol=1)
    assert axes(figure, "scale").get_ylim()[1] < 1.2
    assert "mean over 16 groups" in figure.texts[0].get_text()


def weights(*values):
    maps = torch.stack([torch.as_tensor(x, dtype=torch.float32) for x in values])
    maps = maps / maps.sum((1, 2), keepdim=True)
    return Map("context mask", "weights", maps, "detail", grid=GRID)


def test_weights_are_times_an_even_share():
    uneven = np.ones((4, 8))
    uneven[:, :4] = 3  # 1.5 times and half an even share
    [figure] = sheet([collected("a", weights(np.ones((4, 8)))), collected("b", weights(uneven))])
    assert colour(figure, "a") == pytest.approx(bar_colour(figure, 0), abs=1)
    left, right = pictures(figure, "b")[0][10, [5, 60]].astype(int).tolist()
    assert left == pytest.approx(bar_colour(figure, np.log2(1.5)), abs=1)
    assert right == pytest.approx(bar_colour(figure, -1), abs=1)


def test_the_mean_over_queries():
    first, second = np.ones((4, 8)), np.ones((4, 8))
    first[:, :4], second[:, 4:] = 3, 3  # even again in the mean
    [figure] = sheet([collected("a", weights(first, second))])
    assert colour(figure, "a") == pytest.approx(bar_colour(figure, 0), abs=1)
    assert "mean over 2 queries" in figure.texts[0].get_text()
    three = weights(first, second, second)
    [figure] = sheet([collected("a", weights(first, second)), collected("b", three)])
    assert "mean over each image's queries" in figure.texts[0].get_text()


# --- regions, channels, shares ---------------------------------------------------------------


def test_regions_have_the_palette_and_a_legend():
    index = torch.zeros(4, 8, dtype=torch.long)
    index[:, 4:] = 2
    one = Map("regions", "regions", index, "detail", count=4, grid=GRID)
    [figure] = sheet([collected("a", one), collected("b", one)])
    colours = style.palette(4)(np.arange(4))[:, :3]
    for name in "ab":
        [picture] = pictures(figure, name)
        for x, region in ((10, 0), (50, 2)):
            grey_part = (1 - TINT) * (DARKEST + (1 - DARKEST) * 128 / 255)
            wanted = 255 * (TINT * colours[region] + grey_part)
            np.testing.assert_allclose(picture[16, x], wanted, atol=1)
    [legend] = [x.get_legend() for x in figure.axes if x.get_legend()]
    assert [x.get_text() for x in legend.get_texts()] == ["region 0", "1", "2", "3"]
    patch = legend.get_patches()[2].get_facecolor()[:3]
    np.testing.assert_allclose(patch, tint_of(colours[2]))


def gate(*values):
    return Map(
        "channel gate", "channel", torch.tensor(values), "factor", 1.0, (0.0, 2.0), group_count=1
    )


def test_channel_gates_are_strips_in_one_order():
    # by the mean over both: channels 1, 0, 2
    images = [collected("a", gate(1.0, 0.5, 0.9)), collected("b", gate(0.7, 0.6, 1.4))]
    [figure] = sheet(images)
    for name, values in (("a", (0.5, 1.0, 0.9)), ("b", (0.6, 0.7, 1.4))):
        [strip] = [x for x in figure.axes if x.get_label().startswith(f"{name}, channel gate")]
        found = np.rint(strip.images[0].get_array()[0] * 255).tolist()
        assert found == [bar_colour(figure, value) for value in values]
    np.testing.assert_array_equal(pictures(figure, "a")[0][0, 0], 128)  # the image itself


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([0.1, 0.6, 0.3], [0.1, 0.6, 0.3]), ([[0.2, 0.4], [0.8, 0.6]], [0.3, 0.7])],
)
def test_shares_are_bars(values, wanted):
    one = Map("expert shares", "shares", torch.tensor(values), "detail")
    [figure] = sheet([collected("a", one)])
    [strip] = [x for x in figure.axes if x.get_label().startswith("a, expert shares")]
    assert [x.get_width() for x in strip.patches] == pytest.approx(wanted)
    assert [x.get_x() for x in strip.patches] == pytest.approx(np.cumsum([0, *wanted])[:-1])


def test_shares_that_do_not_sum_to_1_have_one_scale():
    few, many = (
        collected(name, Map("expert shares", "shares", torch.tensor(values), "detail"))
        for name, values in (("a", [0.2, 0.3]), ("b", [0.9, 0.8]))
    )
    [figure] = sheet([few, many])
    ends = [x.get_xlim() for x in figure.axes if x.get_label().endswith("expert shares")]
    np.testing.assert_allclose(ends, [(0, 1.7), (0, 1.7)])


def test_which_map_is_drawn():
    one = collected("a", gate(1.5, 0.5), weights(np.ones((4, 8))), mask(1.2))
    assert "mask" in sheet([one])[0].texts[0].get_text()  # over the image, and a factor
    assert "channel gate" in sheet([one], "channel gate")[0].texts[0].get_text()


# --- layout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [None, 1, 2, 7])
def test_cells_keep_the_images_shape_and_lie_apart(columns):
    sizes = {"wide": (20, 90), "tall": (90, 20), "square": (40, 40), "other": (60, 80)}
    images = [collected(name, mask(1.1), size=size) for name, size in sizes.items()]
    [figure] = sheet(images, columns=columns)
    figure.canvas.draw()
    boxes = {name: axes(figure, name).get_window_extent() for name in sizes}
    for name, (height, width) in sizes.items():
        assert boxes[name].height / boxes[name].width == pytest.approx(height / width, rel=0.02)
    whole = [*boxes.values(), axes(figure, "scale").get_tightbbox()]
    for k, box in enumerate(whole):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in whole[:k])
    texts = [x.get_window_extent() for x in figure.texts[2:]]
    assert not any(a.overlaps(b) for k, a in enumerate(texts) for b in texts[:k])
    assert not any(a.overlaps(b) for a in texts for b in boxes.values())


def test_boxes_of_detections_from_a_score_on():
    found = Detections(
        np.array([[8, 8, 24, 24], [0, 0, 9, 9]], float),
        np.array([0.9, 0.2]),
        np.array([0, 0]),
        ("x",),
    )
    image = collected("a", mask(1.1), detections=found)
    [figure] = sheet([image])
    [box] = [x for x in axes(figure, "a").patches if x.get_gid() == "kept"]
    assert (box.get_x(), box.get_width()) == pytest.approx((8, 16))
    assert "score of 0.3 or more" in figure.texts[1].get_text()
    [figure] = sheet([image], score=None)
    assert not axes(figure, "a").patches
    assert "score" not in figure.texts[1].get_text()


def test_long_and_odd_names_are_cut_to_their_cell():
    images = [collected(f"{k}$_{'name' * 40}$", mask(1.1)) for k in range(3)]
    [figure] = sheet(images, columns=3)
    data = style.png(figure, dpi=40)
    assert Image.open(io.BytesIO(data)).width > 100
    extents = [x.get_window_extent() for x in figure.texts[2:]]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(extents))


# --- what cannot be drawn --------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"columns": 0}, {"most": 0}])
def test_bad_numbers(options):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sheet([collected("a", mask(1.1))], **options)


def test_no_images():
    with pytest.raises(ValueError, match="at least one image"):
        sheet([])


def test_no_such_layer_or_map():
    image = collected("a", mask(1.1))
    with pytest.raises(KeyError, match=r"backbone\.layer1\.0\.sge"):
        contact_sheet([image], "neck.sge")
    with pytest.raises(KeyError, match="'gate'"):
        sheet([image], "gate")


def test_a_map_without_a_place_on_the_image():
    distances = Map("filter distances", "distances", torch.zeros(3, 3), "detail")
    with pytest.raises(ValueError, match=r"cannot be drawn.*filter distances \(distances\)"):
        sheet([collected("a", distances)])
    with pytest.raises(ValueError, match="'filter distances'.*cannot be drawn"):
        sheet([collected("a", mask(1.1), distances)], "filter distances")


def test_images_of_different_models():
    with pytest.raises(ValueError, match="one model"):
        sheet([collected("a", gate(1.1, 1.2)), collected("b", gate(1.1, 1.2, 1.3))])
    with pytest.raises(ValueError, match="one model"):
        sheet([collected("a", gate(1.1, 1.2)), collected("b", mask(1.1))])


# --- tints -----------------------------------------------------------------------------------


def test_a_tint_over_black_white_and_green():
    image = np.array([[[0, 0, 0], [255, 255, 255], [0, 255, 0]]], np.uint8)
    found = tinted(image, np.broadcast_to([1.0, 0.5, 0.0], image.shape))
    under = np.array([0.35, 1, 0.35 + 0.65 * 0.587])  # a lightened grey
    np.testing.assert_allclose(found[0], 0.6 * np.array([1, 0.5, 0]) + 0.4 * under[:, None])


def test_legends_show_what_a_middle_grey_gives():
    # the luminance of 127.5 is a half
    image = np.full((1, 2, 3), 127, np.uint8)
    image[0, 1] = 128
    over = tinted(image, np.broadcast_to([0.2, 0.4, 0.9], image.shape))
    np.testing.assert_allclose(over.mean((0, 1)), tint_of([0.2, 0.4, 0.9]))


def test_pictures_are_shrunk_to_means_and_never_enlarged():
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, ::2] = 200
    assert (reduced(picture, 4) == np.full((2, 4, 3), 100)).all()
    assert reduced(picture, 100) is picture
    assert reduced(np.zeros((1, 1000, 3), np.uint8), 10).shape == (1, 10, 3)
