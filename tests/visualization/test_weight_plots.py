"""Pictures of context masks and of the attention of queries, and how much queries differ."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from mmattn.visualization.collected import Map
from mmattn.visualization.distance import (
    COSINE,
    JSD,
    distance_markdown,
    distance_table,
    is_distribution,
    query_distance,
)
from mmattn.visualization.overlay import times
from mmattn.visualization.style import Scale
from mmattn.visualization.weights import draw_mask, draw_masks, draw_queries, weights_scale
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
UNIFORM = torch.full((12, 16), 1 / 192)


def weights(values, name="context mask", **more) -> Map:
    fields = dict(kind="weights", role="detail", grid=GRID)
    return Map(name, values=values, **fields | more)


def share(inside: float) -> torch.Tensor:
    """Weights that sum to 1, on the object ``inside`` times an even share."""
    cells = 6 * 7
    return two_values(inside, (192 - inside * cells) / (192 - cells)) / 192


def attention(*points, values=None):
    values = torch.stack([share(4.0) for _ in points]) if values is None else values
    one = weights(values, "attention", queries=torch.tensor(points))
    return layer(one, type="NonLocal", measures={COSINE: 0.0123, JSD: 0.00345})


def test_an_even_mask_is_one_times_everywhere():
    one = layer(weights(UNIFORM[None]), type="GC")
    drawn = Drawn(draw_mask(collected(one), one))
    middle = colour(Scale(-1, 1, 0.0), 0.0)
    for panel in ("context mask", "over the image"):
        for point in (INSIDE, OUTSIDE, (0.5, 0.5), (63.5, 47.5)):
            assert_allclose(drawn.colour(panel, *point), middle, atol=SEEN)
    assert drawn.panels["context mask"].get_title() == "context mask\n1×"  # noqa: RUF001
    assert_allclose(drawn.colour(drawn.bars[0], 0.5, 0.0), middle, atol=0.02)
    assert drawn.numbers() == ["1/2×", "1×", "2×"]  # noqa: RUF001


def test_a_mask_is_drawn_in_times_an_even_share():
    one = layer(weights(share(4.0)[None]), type="GC")
    image = collected(one)
    scale = weights_scale([image])
    assert (scale.low, scale.centre, scale.high) == (-2, 0, 2)
    drawn = Drawn(draw_mask(image, one, scale))
    outside = math.log2((192 - 4 * 42) / 150)
    for panel in ("context mask", "over the image"):
        assert_allclose(drawn.colour(panel, *INSIDE), colour(scale, 2.0), atol=SEEN)
        assert_allclose(drawn.colour(panel, *OUTSIDE), colour(scale, outside), atol=SEEN)
    assert drawn.numbers() == ["1/4×", "1/2×", "1×", "2×", "4×"]  # noqa: RUF001
    assert drawn.bars[0].get_ylabel().replace("\n", " ") == "weight, times an even share"
    assert drawn.title == "GC, c2, block 1: context mask"
    drawn.assert_readable()


def test_a_coarser_map_is_compared_with_its_own_even_share():
    fine, coarse = weights(UNIFORM[None]), weights(torch.full((1, 6, 8), 1 / 48))
    layers = [layer(fine, type="GC"), layer(coarse, "c3, block 1", type="GC")]
    drawn = Drawn(draw_masks(collected(*layers), layers))
    for label in ("c2, block 1", "c3, block 1"):
        assert_allclose(drawn.colour(label, *INSIDE), colour(Scale(-1, 1, 0.0), 0), atol=SEEN)


def test_masks_over_depth_are_on_one_scale():
    layers = [
        layer(weights(share(x)[None]), f"c{n}, block 1", type="SNL")
        for n, x in ((3, 1.0), (4, 2.0), (5, 4.0))
    ]
    image = collected(*layers)
    drawn = Drawn(draw_masks(image, layers))
    assert drawn.title == "SNL over depth: context mask"
    assert list(drawn.panels) == ["street", "c3, block 1", "c4, block 1", "c5, block 1"]
    scale = weights_scale([image])
    assert scale.high == 2
    for panel, value in (("c3, block 1", 0), ("c4, block 1", 1), ("c5, block 1", 2)):
        assert_allclose(drawn.colour(panel, *INSIDE), colour(scale, value), atol=SEEN)
    drawn.assert_readable()


def test_weights_of_zero_are_the_lowest_colour():
    cells = torch.zeros(1, 12, 16)
    cells[0, 4:8, 6:10] = 1 / 16
    one = layer(weights(cells), type="GC")
    drawn = Drawn(draw_mask(collected(one), one))
    scale = weights_scale([collected(one)])
    assert (scale.low, scale.high) == (-4, 4)  # 12 times: within 16 times
    for point in (OUTSIDE, (0.5, 0.5), (62.5, 46.5)):
        assert_allclose(drawn.colour("context mask", *point), colour(scale, -4), atol=SEEN)
    single = torch.zeros(1, 12, 16)
    single[0, 2, 3] = 1
    assert weights_scale([collected(layer(weights(single)))]).high == 8  # 192 times
    assert "0× to 12×" in drawn.panels["context mask"].get_title()  # noqa: RUF001


def test_each_query_is_marked_at_its_point():
    points = [(10.5, 40.5), (56.5, 8.5), (34.5, 24.5)]
    values = torch.stack([share(4.0), share(2.0), share(1.0)])
    one = attention(*points, values=values)
    image = collected(one)
    image.image[...] = 60  # a star is white
    drawn = Drawn(draw_queries(image, one))
    assert list(drawn.panels) == ["street", "query 1", "query 2", "query 3"]
    for n, panel in enumerate(drawn.panels):
        for k, point in enumerate(points, 1):
            marked = bool((drawn.colour(panel, *point) == 1).all())
            assert marked == (n in (0, k)), (panel, point)
    scale = weights_scale([image])
    for panel, value in (("query 1", 2), ("query 2", 1), ("query 3", 0)):
        assert_allclose(drawn.colour(panel, 26.5, 30.5), colour(scale, value), atol=SEEN)
    assert drawn.title == (
        "NonLocal, c2, block 1: attention of 3 queries\n"
        "mean distance between queries all over the image: cosine 0.012, JSD 0.0034 nats"
    )


@pytest.mark.parametrize("size", [(48, 64), (64, 20)])
def test_the_title_of_one_query_is_inside(size):
    one = attention((10.5, 20.5))
    drawn = Drawn(draw_queries(collected(one, size=size), one))
    assert drawn.title.startswith("NonLocal, c2, block 1: attention of 1 query\n")
    assert "JSD 0.0034 nats" in " ".join(drawn.title.split())
    drawn.assert_readable()


def test_small_weights_are_said_to_be_small():
    values = torch.full((12, 16), (1 - 1.26e-5 / 192) / 191)
    values[0, 0] = 1.26e-5 / 192
    one = layer(weights(values[None]), type="GC")
    title = Drawn(draw_mask(collected(one), one)).panels["context mask"].get_title()
    assert title == "context mask\n<0.001× to 1.01×"  # noqa: RUF001


def test_eight_queries_are_readable():
    points = [(x, y) for x in (2.0, 25.0, 40.0, 63.0) for y in (2.0, 46.0)]
    one = attention(*points)
    drawn = Drawn(draw_queries(collected(one), one))
    assert list(drawn.panels) == ["street", *(f"query {n}" for n in range(1, 9))]
    drawn.assert_readable()


def test_a_mark_stays_at_its_pixel_when_the_image_is_made_small():
    one = attention((1200.0, 100.0))
    large = dataclasses.replace(collected(one, size=(800, 1333)))
    large.image[...] = 60
    drawn = Drawn(draw_queries(large, one))
    for panel in ("street", "query 1"):
        assert (drawn.colour(panel, 1200, 100) == 1).all()
        assert not (drawn.colour(panel, 1100, 200) == 1).all()


def test_affinities_that_are_no_distribution():
    values = torch.stack([two_values(3.0, -1.0), two_values(-2.0, 0.5)]) / 192
    one = attention((8.5, 8.5), (9.5, 40.5), values=values)
    image = collected(one)
    scale = weights_scale([image])
    assert (scale.low, scale.centre, scale.high) == pytest.approx((-3, 0, 3))
    assert scale.label == "affinity (weight times positions)"
    drawn = Drawn(draw_queries(image, one, scale))
    assert_allclose(drawn.colour("query 1", *INSIDE), colour(scale, 3.0), atol=SEEN)
    assert_allclose(drawn.colour("query 2", *INSIDE), colour(scale, -2.0), atol=SEEN)
    above = attention((8.5, 8.5), values=values[:1].relu())  # 'concatenation'
    assert weights_scale([collected(above)]).centre is None
    softmax = collected(one, attention((8.5, 8.5)))
    with pytest.raises(ValueError, match="all sum to 1, or none"):
        weights_scale([softmax])
    with pytest.raises(ValueError, match="a scale that weights_scale gave"):
        draw_queries(image, one, weights_scale([collected(attention((8.5, 8.5)))]))


def test_wrong_maps():
    one, several = layer(weights(UNIFORM[None]), type="GC"), attention((1.0, 1.0), (2.0, 2.0))
    gate = layer(mask(torch.ones(1, 12, 16)))
    image = collected(one, several, gate)
    with pytest.raises(ValueError, match="2 queries of .*: use draw_queries"):
        draw_mask(image, several)
    with pytest.raises(ValueError, match="use draw_mask"):
        draw_queries(image, one)
    with pytest.raises(ValueError, match="is a SGE, which has no map"):
        draw_mask(image, gate)
    with pytest.raises(ValueError, match="'weights' here, got 'mask'"):
        draw_mask(image, gate, map="mask")
    with pytest.raises(ValueError, match="does not run on the whole image"):
        draw_mask(image, layer(nowhere(one.maps[0]), type="GC"))
    with pytest.raises(ValueError, match="at least one layer"):
        draw_masks(image, [])
    with pytest.raises(ValueError, match="type 'SE' on .* GC: context mask, NonLocal: attention"):
        weights_scale([image], "SE")


def loops(p: np.ndarray) -> tuple[float, float]:
    """The definitions, one pair and one position after the other."""
    cosine, jsd, pairs = 0.0, 0.0, 0
    for i in range(len(p)):
        for j in range(i):
            dot = sum(a * b for a, b in zip(p[i], p[j], strict=True))
            lengths = math.sqrt(sum(a * a for a in p[i])) * math.sqrt(sum(b * b for b in p[j]))
            cosine += 1 - dot / lengths
            for a, b in zip(p[i], p[j], strict=True):
                jsd += sum(x / 2 * math.log(2 * x / (a + b)) for x in (a, b) if x > 0)
            pairs += 1
    return cosine / pairs, jsd / pairs


def test_the_distance_is_that_of_its_definition():
    torch.manual_seed(0)
    p = (3 * torch.randn(5, 4, 6, dtype=torch.float64)).flatten(1).softmax(1).reshape(5, 4, 6)
    p[2] = 0
    p[2, 1, :4] = 0.25  # zeros count, too
    found = query_distance(p)
    assert (found["cosine"], found["JSD"]) == pytest.approx(loops(p.flatten(1).numpy()), rel=1e-10)
    single = query_distance(p.float())
    assert single["JSD"] == pytest.approx(found["JSD"], rel=1e-5)
    near = (share(3.0) * (1 + 1e-4 * torch.randn(4, 12, 16))).float()  # counted in float64
    assert query_distance(near) == query_distance(near.double())


def test_known_distances():
    same = share(3.0).repeat(4, 1, 1)
    assert query_distance(same) == {"cosine": pytest.approx(0, abs=1e-12), "JSD": 0.0}
    apart = torch.eye(6).reshape(6, 2, 3)
    assert query_distance(apart) == {"cosine": 1.0, "JSD": pytest.approx(math.log(2))}
    opposite = torch.stack([torch.eye(3), -torch.eye(3)])
    found = query_distance(opposite)
    assert found["cosine"] == pytest.approx(2.0)
    assert math.isnan(found["JSD"])
    alone = query_distance(same[:1])
    assert math.isnan(alone["cosine"])
    assert math.isnan(alone["JSD"])
    with pytest.raises(ValueError, match=r"\(Q, H, W\), got the shape \(4, 192\)"):
        query_distance(same.flatten(1))


def test_what_is_a_distribution():
    assert is_distribution(share(3.0)[None])
    assert is_distribution(share(3.0)[None].half())  # sums to 1 but for rounding
    assert not is_distribution(2 * share(3.0)[None])
    assert not is_distribution(torch.stack([share(3.0), share(3.0) * 0.5]))
    assert not is_distribution(torch.tensor([[[1.5, -0.5]]]))
    assert not is_distribution(torch.zeros(0, 2, 2))


def test_a_table_of_distances():
    one, other = attention((1.0, 1.0)), attention((1.0, 1.0))
    other = dataclasses.replace(other, measures={COSINE: 0.4, JSD: math.nan})
    twice = dataclasses.replace(other, call=1, label="neck, stride 16")
    plain = layer(weights(UNIFORM[None]), type="GC")
    rows = distance_table([collected(one, plain, twice), collected(other)])
    assert [row["images"] for row in rows] == [2, 1]
    assert rows[0]["cosine"] == pytest.approx((0.0123 + 0.4) / 2)
    assert math.isnan(rows[0]["JSD"])
    assert rows[1]["title"] == "NonLocal, neck, stride 16"
    text = distance_markdown([*rows, *distance_table([collected(one)])])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    table = [line for line in lines if line]
    assert table[0] == ["module", "layer", "images", "cosine distance", "JSD (nats)"]
    assert table[2] == ["NonLocal, c2, block 1", one.name, "2", "0.206", "n/a"]
    assert table[4] == ["NonLocal, c2, block 1", one.name, "1", "0.012", "0.0034"]
    assert "0.693" in text
    assert distance_markdown([]) == ""


def test_a_mask_of_one_cell_and_one_of_no_numbers():
    values = torch.zeros(1, 40, 50)
    values[0, 3, 3] = 1
    scale = weights_scale([collected(layer(weights(values), type="GC"))])
    assert (scale.low, scale.high) == (-11, 11)  # 2000 times an even share
    assert times(scale.high) == "2048\N{MULTIPLICATION SIGN}"
    assert times(-1e-9) == "1\N{MULTIPLICATION SIGN}"
    one = layer(weights(torch.full((1, 12, 16), math.nan)), type="GC")
    titles = [ax.get_title() for ax in draw_mask(collected(one), one).axes]
    assert titles[1] == "context mask\nno values"
