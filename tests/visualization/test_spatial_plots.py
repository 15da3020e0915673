"""Pictures of spatial gates: what a reader sees of known maps."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from mmattn.visualization import style
from mmattn.visualization.geometry import Grid, Placement
from mmattn.visualization.overlay import RELIEF, arranged, bar, over_image, shown
from mmattn.visualization.sheet import wrapped
from mmattn.visualization.spatial import draw_layers, draw_norms, draw_spatial, spatial_scale
from mmattn.visualization.style import Scale
from tests.pictures import (
    GRID,
    INSIDE,
    OUTSIDE,
    Drawn,
    collected,
    colour,
    layer,
    mask,
    nowhere,
    two_values,
)

SEEN = 2 / 255  # a colour of 8 bits
WHITE = colour(Scale(0, 2, 1.0), 1.0)  # of a diverging scale


def two_groups(label="c2, block 1"):
    values = torch.stack([two_values(1.4, 0.8), two_values(0.7, 1.1)])
    mean = two_values(1.2, 1.0)
    return layer(mask(values, count=64, groups=(17, 3), mean=mean), label)


def test_each_pixel_has_the_colour_of_its_value():
    image = collected(two_groups())
    scale = Scale(0.5, 1.5, 1.0, "mask")
    drawn = Drawn(draw_spatial(image, image.layers[0], "mask", scale))
    for panel, inside, outside in (
        ("mean of 64 groups", 1.2, 1.0),
        ("group 17 of 64", 1.4, 0.8),
        ("group 3 of 64", 0.7, 1.1),
    ):
        assert_allclose(drawn.colour(panel, *INSIDE), colour(scale, inside), atol=SEEN)
        assert_allclose(drawn.colour(panel, *OUTSIDE), colour(scale, outside), atol=SEEN)
    for value in (0.51, 0.8, 1.0, 1.4):
        assert_allclose(drawn.colour(drawn.bars[0], 0.5, value), colour(scale, value), atol=0.02)
    assert_allclose(drawn.colour("street", *INSIDE), (1, 1, 1), atol=SEEN)
    assert_allclose(drawn.colour("street", *OUTSIDE), (60 / 255,) * 3, atol=SEEN)


def test_what_stands_at_the_picture():
    image = collected(two_groups())
    drawn = Drawn(draw_spatial(image, image.layers[0], "mask", spatial_scale([image])))
    assert drawn.title == "SGE, c2, block 1: mask"
    titles = [ax.get_title() for ax in drawn.panels.values()]
    assert titles == [
        "street",
        "mean of 64 groups\n1.00 to 1.20",
        "group 17 of 64\n0.800 to 1.40",
        "group 3 of 64\n0.700 to 1.10",
    ]
    assert drawn.numbers() == ["0.6", "0.8", "1.0", "1.2", "1.4"]
    assert drawn.bars[0].get_ylabel().replace("\n", " ") == "mask (1 changes nothing)"
    drawn.assert_readable()


def test_chosen_groups_in_their_order():
    image = collected(two_groups())
    figure = draw_spatial(image, image.layers[0], "mask", groups=[3])
    assert [ax.get_title().split("\n")[0] for ax in figure.axes][:-1] == [
        "street",
        "mean of 64 groups",
        "group 3 of 64",
    ]
    with pytest.raises(ValueError, match="with the groups 17, 3, got 5"):
        draw_spatial(image, image.layers[0], "mask", groups=[3, 5])


def test_one_group_is_drawn_alone_and_over_the_image():
    gate = mask(two_values(1.2, 0.8)[None], name="spatial gate")
    image = collected(layer(gate, type="CBAM"))
    drawn = Drawn(draw_spatial(image, image.layers[0], gate))
    assert list(drawn.panels) == ["street", "spatial gate", "over the image"]
    scale = spatial_scale([image])
    for panel in ("spatial gate", "over the image"):
        assert_allclose(drawn.colour(panel, *INSIDE), colour(scale, 1.2), atol=SEEN)


def test_channels_are_called_so():
    image = collected(layer(mask(torch.ones(2, 12, 16), count=256), type="BAM"))
    titles = [ax.get_title() for ax in draw_spatial(image, image.layers[0], "mask").axes]
    names = ["mean of 256 channels", "channel 0 of 256", "channel 1 of 256"]
    assert titles[1:4] == [f"{name}\n1.00" for name in names]


def test_a_scale_for_all_layers_and_images():
    one = collected(layer(mask(torch.full((1, 12, 16), 1.1))))
    other = collected(
        layer(mask(torch.full((1, 12, 16), 0.7)), "c5, block 3"),
        layer(mask(torch.full((1, 12, 16), 1.9), name="gate"), type="BAM"),
    )
    scale = spatial_scale([one, other], "SGE")
    assert (scale.low, scale.centre, scale.high) == pytest.approx((0.7, 1.0, 1.3))
    assert spatial_scale([one, other], map="gate").high == pytest.approx(1.9)
    with pytest.raises(ValueError, match=r"BAM: gate, SGE: mask: give type and map"):
        spatial_scale([one, other])
    with pytest.raises(ValueError, match=r"'mask', type 'CBAM' on .* BAM: gate, SGE: mask"):
        spatial_scale([one, other], "CBAM", "mask")
    with pytest.raises(ValueError, match="got none"):
        spatial_scale([collected(layer(nowhere(one.layers[0].maps[0])))])


def test_a_scale_stays_within_the_bounds_and_shows_no_noise():
    strong = mask(torch.full((1, 12, 16), 0.02), neutral=0.9, bounds=(0, 1))
    scale = spatial_scale([collected(layer(strong))])
    assert (scale.low, scale.high) == pytest.approx((0.02, 1.0))
    start = mask(1 + 1e-6 * torch.randn(1, 12, 16))
    image = collected(layer(start))
    scale = spatial_scale([image])
    assert (scale.low, scale.high) == pytest.approx((0.99, 1.01), abs=1e-5)
    drawn = Drawn(draw_spatial(image, image.layers[0], start, scale))
    assert_allclose(drawn.colour("mask", *INSIDE), WHITE, atol=SEEN)


def test_a_gate_that_only_raises_has_one_side():
    values = torch.linspace(0.75, 0.9, 192).reshape(1, 12, 16)
    scale = spatial_scale([collected(layer(mask(values, neutral=0.62, bounds=(0.62, 1))))])
    assert (scale.low, scale.centre) == (0.62, None)
    assert scale.high == pytest.approx(0.9, abs=0.01)
    scale = spatial_scale([collected(layer(mask(values, neutral=1.0, bounds=(0, 1))))])
    assert (scale.high, scale.centre) == (1.0, None)


def test_layers_that_differ_in_their_neutral_value_have_no_centre():
    start = [mask(torch.full((1, 12, 16), x), neutral=x) for x in (0.5, 1.0)]
    scale = spatial_scale([collected(*map(layer, start))])
    assert (scale.low, scale.centre, scale.high) == (0.5, None, 1.0)


def test_the_image_shows_in_edges_only():
    image = collected()
    values = np.linspace(1.2, 1.4, 48 * 64).reshape(48, 64)
    scale = Scale(0.5, 1.5, 1.0)
    picture, pure = over_image(image, values, scale), scale.colours(values)
    change = abs(picture - pure).max(-1)
    assert change.max() <= RELIEF
    # the object's edge is there: lighter inside, darker outside
    assert (picture - pure)[24, 21].max() > 0.02
    assert (picture - pure)[24, 18].min() < -0.02
    even = change[20:28, 28:40], change[:4], change[44:]
    assert max(part.max() for part in even) < 0.003
    values[24, 34] = np.nan
    r, g, b = over_image(image, values, scale)[24, 34]
    assert r == g == b


def test_norms_before_and_after():
    before, after = two_values(2.0, 1.0), two_values(4.0, 1.0)
    image = collected(layer(mask(torch.ones(1, 12, 16)), before=before, after=after))
    drawn = Drawn(draw_norms(image, image.layers[0]))
    assert list(drawn.panels)[:3] == ["street", "norm before", "norm after"]
    ratio = list(drawn.panels)[3]
    norms = Scale(0, 4)
    for panel, inside in (("norm before", 2.0), ("norm after", 4.0)):
        assert_allclose(drawn.colour(panel, *INSIDE), colour(norms, inside), atol=SEEN)
        assert_allclose(drawn.colour(panel, *OUTSIDE), colour(norms, 1.0), atol=SEEN)
    doubled = drawn.colour(ratio, *INSIDE)
    assert_allclose(doubled, colour(Scale(-1, 1, 0), 1.0), atol=SEEN)
    assert_allclose(drawn.colour(ratio, *OUTSIDE), WHITE, atol=SEEN)
    assert drawn.numbers(1) == ["1/2×", "1×", "2×"]  # noqa: RUF001
    assert_allclose(drawn.colour(drawn.bars[1], 0.99, 0.5), doubled, atol=0.02)
    drawn.assert_readable()


def test_the_ratio_of_norms_is_centred_at_the_neutral_factor():
    before = two_values(2.0, 1.0)
    gate = mask(torch.full((1, 12, 16), 0.5), neutral=0.5, bounds=(0, 1))
    image = collected(layer(gate, before=before, after=before / 2))
    drawn = Drawn(draw_norms(image, image.layers[0]))
    ratio = "after / before: mean 0.5×"  # noqa: RUF001
    assert drawn.panels[ratio].get_title().endswith("neutral: 0.5×")  # noqa: RUF001
    assert_allclose(drawn.colour(ratio, *INSIDE), WHITE, atol=SEEN)


def test_norms_of_zero_and_missing_norms():
    before, after = two_values(0.0, 1.0), two_values(0.0, 1.5)
    one = layer(mask(torch.ones(1, 12, 16)), before=before, after=after)
    drawn = Drawn(draw_norms(collected(one), one))
    ratio = list(drawn.panels)[-1]
    assert ratio == "after / before: mean 1.5×"  # noqa: RUF001
    assert_allclose(drawn.colour(ratio, *INSIDE), (0.8, 0.8, 0.8), atol=SEEN)
    with pytest.raises(ValueError, match=r"c2\.1\.sge was collected without the norms"):
        draw_norms(collected(), dataclasses.replace(one, after=None))
    with pytest.raises(ValueError, match="not run on the whole image"):
        draw_norms(collected(), dataclasses.replace(one, grid=None))


def test_sixteen_layers_on_one_scale():
    labels = [
        f"c{s}, block {b}"
        for s, n in zip(range(2, 6), (3, 4, 6, 3), strict=True)
        for b in range(1, n + 1)
    ]
    gates = [1 + 0.02 * n for n in range(16)]
    layers = [
        layer(mask(torch.stack([two_values(x, 1.0), two_values(x + 0.1, 1.0)])), label)
        for x, label in zip(gates, labels, strict=True)
    ]
    image = collected(*layers)
    drawn = Drawn(draw_layers(image, layers, "mask"))
    assert list(drawn.panels) == ["street", *labels]
    assert drawn.title == "SGE over depth: mask, mean over groups"
    scale = spatial_scale([image])
    for x, label in zip(gates, labels, strict=True):
        assert_allclose(drawn.colour(label, *INSIDE), colour(scale, x + 0.05), atol=0.012)
    drawn.assert_readable()


@pytest.mark.parametrize(("size", "groups"), [((200, 40), 9), ((40, 200), 1), ((48, 64), 9)])
def test_tall_and_wide_images(size, groups):
    cells = size[0] // 4, size[1] // 4
    gate = mask(1 + 0.1 * torch.randn(groups, *cells), name="spatial gate")
    ratio = torch.linspace(0.89, 1.12, cells[0] * cells[1]).reshape(cells)
    one = layer(gate, before=torch.ones(cells), after=ratio)
    image = collected(one, size=size)
    for figure in (draw_spatial(image, one, gate), draw_norms(image, one)):
        drawn = Drawn(figure)
        drawn.assert_readable()
        assert figure.get_figwidth() < 12
        assert figure.get_figheight() < 14
        for ax in drawn.panels.values():
            box = ax.get_window_extent()
            assert box.height / box.width == pytest.approx(size[0] / size[1], rel=0.01)
    assert drawn.numbers(1) == ["0.9×", "1×", "1.1×"]  # noqa: RUF001


def test_a_large_image_is_drawn_small_and_stays_aligned():
    image = np.zeros((800, 1333, 3), np.uint8)
    image[96:320, 640:1024] = 255
    # the network saw it at 0.6 of its size, in the corner of 512 x 832 px
    place = Placement((800, 1333), (0.6, 0.6), (480, 800), (8, 12), (False, True), (512, 832))
    values = torch.full((128, 208), 0.8)
    rows = slice(round((8 + 0.6 * 96) / 4), round((8 + 0.6 * 320) / 4))
    left, right = (12 + 800 - 0.6 * x for x in (1024, 640))  # mirrored
    values[rows, round(left / 4) : round(right / 4)] = 1.2
    one = layer(mask(values[None], name="gate"), grid=GRID)
    whole = dataclasses.replace(collected(one), image=image, placement=place)
    figure = draw_spatial(whole, one, "gate")
    assert max(figure.axes[1].images[0].get_array().shape) <= 512
    assert len(style.png(figure)) < 1_000_000
    drawn, scale = Drawn(figure), spatial_scale([whole])
    for x, y in ((660, 116), (1004, 116), (660, 300), (1004, 300)):
        assert_allclose(drawn.colour("gate", x, y), colour(scale, 1.2), atol=SEEN)
        assert_allclose(drawn.colour("street", x, y), (1, 1, 1), atol=SEEN)
    for x, y in ((620, 200), (1044, 200), (800, 76), (800, 340)):
        assert_allclose(drawn.colour("gate", x, y), colour(scale, 0.8), atol=SEEN)
    small = shown(whole)
    at = small.on_image(values, GRID)
    reference = whole.on_image(values, GRID)
    assert at.shape == (307, 512)
    y, x = 100, 200  # the middles of the same place
    assert at[y, x] == pytest.approx(
        reference[int((y + 0.5) * 800 / 307), int((x + 0.5) * 1333 / 512)], abs=1e-6
    )


def test_panels_are_arranged_with_few_empty_places():
    assert arranged(3, 5) == (1, 3)
    assert arranged(10, 4) == (2, 5)
    assert arranged(17, 5) == (3, 6)
    assert arranged(9, 3) == (3, 3)
    assert arranged(2, 0) == (2, 1)


def test_wrong_maps():
    gate = mask(torch.ones(1, 12, 16))
    channels = dataclasses.replace(gate, name="channel gate", kind="channel")
    one = layer((nowhere(gate), channels))
    image = collected(one)
    scale = Scale(0, 2, 1.0)
    with pytest.raises(ValueError, match="mask cannot be drawn"):
        draw_spatial(image, one, "mask", scale)
    with pytest.raises(ValueError, match="'spatial' here, got 'channel gate'"):
        draw_layers(image, [one], "channel gate", scale)
    with pytest.raises(ValueError, match="at least one layer"):
        draw_layers(image, [], "mask", scale)
    with pytest.raises(KeyError, match="not 'gate'"):
        draw_spatial(image, one, "gate", scale)


def test_a_grid_of_another_offset_is_drawn_where_it_lies():
    one = layer(mask(two_values(1.5, 0.5)[None], grid=Grid((4.0, 4.0), (1.5, 9.5))))
    drawn = Drawn(draw_spatial(collected(one), one, "mask", Scale(0.5, 1.5, 1.0)))
    # cells 5 to 11 have their middles at 29.5 to 53.5 now
    assert_allclose(drawn.colour("mask", 52, 24.5), drawn.colour("mask", 34, 24.5), atol=SEEN)
    assert_allclose(drawn.colour("mask", 25, 24.5), drawn.colour("mask", 5, 24.5), atol=SEEN)


def test_many_layers_with_long_names_are_readable():
    labels = [f"c4, block {n}, conv2, context block" for n in range(12)]
    layers = [layer(mask(torch.ones(1, 12, 16)), label=label) for label in labels]
    image = dataclasses.replace(collected(*layers), name="a_name_of_a_camera_" * 3)
    drawn = Drawn(draw_layers(image, layers, "mask"))
    drawn.assert_readable()
    shown = [ax.get_title().replace("\n", " ") for ax in drawn.figure.axes[1:13]]
    assert shown == labels


def test_names_of_modules_break_at_their_dots():
    name = "backbone.layer3.12.downsample.conv"
    assert wrapped(f"{name}, call 3\n4 x 5 cells", 9, 200) == (
        "backbone.layer3.12.\ndownsample.conv,\ncall 3\n4 x 5 cells"
    )
    assert wrapped("0.98 to 1.05", 9, 100) == "0.98 to\n1.05"
    assert wrapped("unbreakable", 9, 60).endswith("...")


def test_a_scale_leaves_out_outliers_and_ends_at_bounds():
    scale = Scale.of([np.r_[np.linspace(0, 1, 999), 100.0]])
    assert (scale.low, scale.high) == pytest.approx((0, 1), abs=0.01)
    scale = Scale.of([[0.0, 3.0]], 1.0, bounds=(0.5, 2.5))
    assert (scale.low, scale.high) == (0.5, 2.5)


@pytest.mark.parametrize(
    ("values", "extend"),
    [([0.4, 1.0], "min"), ([1.0, 1.6], "max"), ([0.4, 1.6], "both"), ([0.6, 1.4], "neither")],
)
def test_a_bar_has_an_arrow_where_values_lie_beyond(values, extend):
    figure = style.new_figure(2, 2)
    assert bar(figure, figure.add_subplot(), Scale(0.5, 1.5, 1.0), [values]).extend == extend
