"""Statistics of inserted modules: against numpy over all values held in memory."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from torch import nn

from mmattn.convs.drconv import DRConv2d
from mmattn.plugins import GC, GCT, SE, SGE, NonLocal
from mmattn.plugins.maps import AttentionMap, describes
from mmattn.visualization.statistics import (
    Histogram,
    Moments,
    gate_statistics,
    parameter_statistics,
)
from mmattn.visualization.statistics_plots import NAMES, figures
from mmattn.visualization.statistics_table import tables


class Toy(nn.Module):
    """Says of itself what a function says."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, x):
        for one in self.maps(x):
            if one.role == "factor":
                values = one.values
                if one.kind == "channel":
                    values = values[..., None, None]
                x = x * values.repeat_interleave(x.shape[1] // values.shape[1], 1)
        return x

    @describes
    def attention(self, x):
        return self.maps(x)


class Detector(nn.Module):
    """What gate_statistics knows of one."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def data_preprocessor(self, data, training):
        return data

    def extract_feat(self, inputs):
        return self.backbone(inputs)


def shake(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.7, generator=generator)
    return module.double()


def images(*sizes, channels=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, channels, h, w, generator=generator, dtype=torch.float64)
        for n, h, w in sizes
    ]


def sample(labels=(), **meta):
    return SimpleNamespace(
        metainfo=meta, gt_instances=InstanceData(labels=torch.tensor(labels, dtype=torch.long))
    )


def channel_gate(values, **kw):
    return AttentionMap(
        "channel gate", "channel", values, **{"neutral": 1.0, "bounds": (0, 2), **kw}
    )


def only(statistics, name=None):
    [layer] = statistics.layers
    return layer, next(one for one in layer["maps"] if name in (None, one["name"]))


BATCHES = ((3, 6, 5), (1, 4, 9), (2, 6, 5))


@pytest.mark.parametrize("module", [SE(8, ratio=2, identity_init=True), SGE(8, groups=4), GCT(8)])
def test_gates_are_those_of_numpy(module):
    module = shake(module).train()
    if module.__class__ is SE:
        module.gate_scale.fill_(0.5)
    batches = images(*BATCHES)
    layer, found = only(gate_statistics(nn.Sequential(module), batches))
    assert module.training  # as before
    maps = [module.attention(x)[0].values.numpy() for x in batches]
    everything = np.concatenate([one.ravel() for one in maps])
    means = np.concatenate([one.reshape(*one.shape[:2], -1).mean(2) for one in maps])
    near = dict(rtol=1e-10, atol=1e-13)
    assert layer["samples"] == 6
    np.testing.assert_allclose(found["mean"], means.mean(), **near)
    np.testing.assert_allclose(found["per_unit"]["mean"], means.mean(0), **near)
    np.testing.assert_allclose(found["per_unit"]["sd"], means.std(0, ddof=1), **near)
    np.testing.assert_allclose(found["sd_images"], math.sqrt(means.var(0, ddof=1).mean()), **near)
    np.testing.assert_allclose(found["sd_units"], means.mean(0).std(), **near)
    flat = [one.reshape(*one.shape[:2], -1) for one in maps]
    for key, end in (("min", np.min), ("max", np.max)):
        extreme = end([end(end(one, axis=2), axis=0) for one in flat], axis=0)
        np.testing.assert_allclose(found["per_unit"][key], extreme, **near)
    edges = found["histogram"]["edges"]
    assert found["histogram"]["counts"] == np.histogram(everything, edges)[0].tolist()
    assert (edges[0], edges[-1]) == tuple(found["bounds"])
    if found["kind"] == "spatial":
        within = np.concatenate([one.var(2) for one in flat])
        np.testing.assert_allclose(found["sd_positions"], math.sqrt(within.mean()), **near)
    low, high = found["bounds"]
    close = 0.01 * (high - low)
    assert found["near_bounds"]["high"] == pytest.approx((everything >= high - close).mean())
    assert found["near_bounds"]["low"] == pytest.approx((everything <= low + close).mean())
    variances = [np.concatenate([t.numpy().var((2, 3)) for t in (batches)]).mean()]
    variances += [np.concatenate([module(x).detach().numpy().var((2, 3)) for x in batches]).mean()]
    ratio = layer["activation"]["variance_ratio"]
    np.testing.assert_allclose(ratio, variances[1] / variances[0], **near)
    np.testing.assert_allclose(layer["activation"]["variance_in"]["mean"], variances[0], **near)
    norms = np.concatenate([np.sqrt(np.square(x.numpy()).sum((2, 3))) for x in batches])
    spread = layer["activation"]["norm_spread_in"]["mean"]
    np.testing.assert_allclose(spread, (norms.std(1) / norms.mean(1)).mean(), **near)


def test_the_variance_at_the_mean_factor_is_that_of_an_even_mask():
    x = images((1, 6, 6))[0]
    mask = torch.rand(1, 4, 6, 6, dtype=torch.float64)
    even = mask.mean((2, 3), keepdim=True).repeat_interleave(2, 1)
    toy = Toy(lambda x: [AttentionMap("mask", "spatial", mask, neutral=1.0, bounds=(0, 1))])
    layer, _ = only(gate_statistics(nn.Sequential(toy), [x]))
    expected = (x * even).var((2, 3), correction=0).mean() / x.var((2, 3), correction=0).mean()
    assert layer["activation"]["variance_ratio_at_mean_factor"] == pytest.approx(float(expected))
    assert layer["activation"]["variance_ratio"] != pytest.approx(float(expected), rel=1e-3)


def test_dead_and_saturated_gates():
    """Neutral, another constant, low, high, alive, and one that only just moves."""
    rows = torch.tensor(
        [[1.015, 1.5, 0.0, 1.985, 0.3, 1.20], [0.985, 1.515, 0.015, 2.0, 1.0, 1.23]]
    )
    numbers = iter(rows)
    toy = Toy(lambda x: [channel_gate(next(numbers)[None])])
    toy.forward = lambda x: x
    _, found = only(gate_statistics(nn.Sequential(toy), images((1, 2, 2), (1, 2, 2), channels=6)))
    states = found["states"]
    kinds = ("neutral", "constant", "low", "high")
    assert {kind: states[kind] for kind in kinds} == {
        "neutral": [0], "constant": [1], "low": [2], "high": [3],
    }  # fmt: skip
    assert states["dead"] == pytest.approx(2 / 6)
    assert states["saturated"] == pytest.approx(2 / 6)
    assert found["near_bounds"] == {"low": 2 / 12, "high": 2 / 12}


def test_one_image_cannot_tell_whether_a_channel_gate_is_dead():
    statistics = gate_statistics(nn.Sequential(SE(8, ratio=2)), [images((1, 2, 2))[0].float()])
    _, found = only(statistics)
    assert found["states"] is None
    assert math.isnan(found["sd_images"])
    plain = json.loads(json.dumps(statistics.to_dict(), allow_nan=False))
    assert plain["layers"][0]["maps"][0]["sd_images"] is None


@pytest.mark.parametrize("alpha", [1.0, -1.0])
@pytest.mark.parametrize("gamma", [0.4, -0.4])
def test_a_positive_gamma_alpha_makes_channels_compete(gamma, alpha):
    gct = GCT(8).double()
    gct.gamma.data.fill_(gamma)
    gct.alpha.data.fill_(alpha)
    gct.gamma.data[:, 0] = 0  # neither
    x = images((4, 5, 5))[0] * torch.linspace(0.2, 3, 8)[:, None, None]
    statistics = gate_statistics(nn.Sequential(gct), [x])
    [found] = statistics.parameters
    compete = gamma * alpha > 0
    assert (found["competing"], found["cooperating"]) == ((7 / 8, 0) if compete else (0, 7 / 8))
    # what the words mean: the norms come out more unequal, or less
    ratio = statistics.layers[0]["activation"]["norm_spread_ratio"]
    assert (ratio > 1.02) if compete else (ratio < 0.98)
    assert found["gamma"]["mean"] == pytest.approx(gamma * 7 / 8)
    assert found["gamma"]["variance"] == pytest.approx(gamma**2 * 7 / 64)


def test_sge_says_how_far_its_mask_can_swing():
    sge = SGE(8, groups=2, identity_init=True)
    sge.weight.data[:] = torch.tensor([0.5, -1.0]).view(1, 2, 1, 1)
    sge.bias.data.fill_(0.3)
    [found] = parameter_statistics(nn.Sequential(sge)).parameters
    sigmoid = torch.sigmoid(torch.tensor([[-0.7, 0.3, 1.3], [2.3, 0.3, -1.7]])) / 0.5
    np.testing.assert_allclose(found["factor"]["values"], sigmoid, rtol=1e-6)
    np.testing.assert_allclose(
        found["swing"]["values"], (sigmoid[:, 2] - sigmoid[:, 0]).abs(), rtol=1e-5
    )


def test_parameters_alone_leave_others_out():
    model = nn.Sequential(SE(8, ratio=2), SGE(8, groups=2), SE(8, ratio=2), GC(8, ratio=2))
    found = parameter_statistics(model)
    assert [one["type"] for one in found.parameters] == ["SGE"]
    assert found.needs_data == ["SE", "GC"]
    assert (found.images, found.layers) == (0, [])


def test_means_by_class():
    """Two channels that say how bright their channel is; an image counts for all its classes."""
    toy = Toy(lambda x: [channel_gate(x.mean((2, 3)))])
    levels = [(0.1, 0.4), (0.2, 0.4), (0.6, 0.4), (1.0, 0.8)]
    labels = [[0], [0, 0], [1, 0], [1]]
    batches = [
        {
            "inputs": torch.tensor(level, dtype=torch.float64)[None, :, None, None].expand(
                1, 2, 3, 3
            ),
            "data_samples": [sample(label)],
        }
        for level, label in zip(levels, labels, strict=True)
    ]
    told = []
    statistics = gate_statistics(
        Detector(toy), batches, {"cat": 0, "dog": 1, "owl": 2}, told.append
    )
    assert told == [1, 2, 3, 4]
    assert statistics.classes == {"all": 4, "cat": 3, "dog": 2, "owl": 0}
    _, found = only(statistics)
    assert set(found["classes"]) == {"all", "cat", "dog"}
    assert found["classes"]["cat"]["images"] == 3
    np.testing.assert_allclose(found["classes"]["all"]["mean"], [0.475, 0.5])
    np.testing.assert_allclose(found["classes"]["cat"]["mean"], [0.3, 0.4])
    np.testing.assert_allclose(found["classes"]["dog"]["mean"], [0.8, 0.6])
    spread = np.array([[0.3, 0.4], [0.8, 0.6]]).var(0, ddof=1)
    assert found["class_spread"] == pytest.approx(math.sqrt(spread.mean()))
    variance = [np.var([0.1, 0.2, 0.6, 1.0], ddof=1), np.var([0.4, 0.4, 0.4, 0.8], ddof=1)]
    # 3 and 2 images, 1 of them the same
    expected = np.mean(variance) * ((1 / 3 + 1 / 2) / 2 - 1 / (3 * 2))
    assert found["class_spread_by_chance"] == pytest.approx(math.sqrt(expected))


def test_a_gate_that_knows_no_classes_spreads_as_by_chance():
    """Over many channels, which are as many draws; classes share images, unevenly."""
    gates = torch.randn(12, 20000, generator=torch.Generator().manual_seed(0))
    numbers = iter(gates)
    toy = Toy(lambda x: [channel_gate(next(numbers)[None], bounds=(None, None))])
    toy.forward = lambda x: x
    labels = [[0, 1]] * 5 + [[0]] * 3 + [[1, 2]] * 2 + [[2]] * 2
    x = torch.zeros(1, 1, 1, 1)
    batches = [{"inputs": x, "data_samples": [sample(label)]} for label in labels]
    _, found = only(gate_statistics(Detector(toy), batches, {"a": 0, "b": 1, "c": 2}))
    assert found["class_spread"] == pytest.approx(found["class_spread_by_chance"], rel=0.02)


def test_no_class_can_be_called_all():
    with pytest.raises(ValueError, match="leave the class of that name out"):
        gate_statistics(nn.Sequential(SE(8, ratio=2)), images((1, 4, 4)), {"all": 0})


def test_classes_need_ground_truth():
    bare = SimpleNamespace(metainfo={})
    batch = {"inputs": images((1, 2, 2))[0], "data_samples": [bare]}
    detector = Detector(Toy(lambda x: [channel_gate(x.mean((2, 3)))]))
    with pytest.raises(ValueError, match="LoadAnnotations"):
        gate_statistics(detector, [batch], {"cat": 0})


def test_what_is_padded_does_not_count():
    """8 x 8 px of input, images of 4 x 6 and 8 x 8, a map of 4 x 4 cells."""
    mask = torch.rand(2, 2, 4, 4, dtype=torch.float64) * 0.2 + 0.7
    pools = nn.AvgPool2d(2)
    toy = Toy(lambda x: [AttentionMap("mask", "spatial", mask, neutral=1.0, bounds=(0, 1))])
    mask[0, :, 2:] = mask[0, :, :, 3:] = 0  # in the padding, far from all others
    x = images((2, 8, 8), channels=4)[0]
    samples = [sample(img_shape=(4, 6)), sample(img_shape=(8, 8))]
    batch = {"inputs": x, "data_samples": samples}
    layer, found = only(gate_statistics(Detector(nn.Sequential(pools, toy)), [batch]))
    inside = [mask[0, :, :2, :3].flatten(1).numpy(), mask[1].flatten(1).numpy()]
    means = np.array([one.mean(1) for one in inside])
    np.testing.assert_allclose(found["per_unit"]["mean"], means.mean(0))
    np.testing.assert_allclose(
        found["per_unit"]["min"], np.minimum(inside[0].min(1), inside[1].min(1))
    )
    assert sum(found["histogram"]["counts"]) == 2 * (6 + 16)
    assert found["histogram"]["counts"][0] == 0
    np.testing.assert_allclose(
        found["sd_positions"], math.sqrt(np.mean([one.var(1) for one in inside]))
    )
    y = pools(x)
    variances = [
        y[0, :, :2, :3].flatten(1).var(1, correction=0),
        y[1].flatten(1).var(1, correction=0),
    ]
    assert layer["activation"]["variance_in"]["mean"] == pytest.approx(
        float(torch.stack(variances).mean())
    )


def test_letter_boxes_are_padding_too():
    toy = Toy(lambda x: [AttentionMap("mask", "spatial", x[:, :1], neutral=1.0, bounds=(0, 1))])
    x = torch.zeros(1, 4, 8, 8)
    x[:, :, 2:6, 1:7] = 0.5
    samples = [sample(img_shape=(8, 8), pad_param=np.array([2, 2, 1, 1], np.float32))]
    _, found = only(gate_statistics(Detector(toy), [{"inputs": x, "data_samples": samples}]))
    assert (found["per_unit"]["min"], found["per_unit"]["max"]) == ([0.5], [0.5])
    assert sum(found["histogram"]["counts"]) == 4 * 6


def test_a_map_coarser_than_the_image_keeps_a_cell():
    toy = Toy(lambda x: [AttentionMap("mask", "spatial", x[:, :1], neutral=1.0, bounds=(-9, 9))])
    batch = {
        "inputs": torch.randn(1, 4, 64, 64),
        "data_samples": [sample(img_shape=(10, 64))],
    }
    model = Detector(nn.Sequential(nn.AvgPool2d(32), toy))
    _, found = only(gate_statistics(model, [batch]))
    assert sum(found["histogram"]["counts"]) == 2
    assert np.isfinite(found["mean"])


def test_use_of_regions():
    """Region 3 of 4 is never used; the first image halves itself, the second has quarters."""
    first = torch.tensor([[0, 0], [1, 1]])
    second = torch.tensor([[0, 2], [2, 2]])
    numbers = iter([first, second])
    toy = Toy(
        lambda x: [AttentionMap("regions", "regions", next(numbers)[None], "detail", count=4)]
    )
    toy.forward = lambda x: x
    _, found = only(gate_statistics(nn.Sequential(toy), images((1, 2, 2), (1, 2, 2))))
    np.testing.assert_allclose(found["share"]["mean"], [3 / 8, 1 / 4, 3 / 8, 0])
    assert list(found["images_that_use"]) == [2, 1, 1, 0]
    assert list(found["never_used"]) == [3]
    of_second = 0.25 * 2 + 0.75 * math.log2(4 / 3)
    assert found["entropy_bits"]["mean"] == pytest.approx((1 + of_second) / 2)
    whole = 2 * 3 / 8 * math.log2(8 / 3) + 0.5
    assert found["entropy_bits_of_mean"] == pytest.approx(whole)
    assert found["uniform_bits"] == 2


def test_regions_of_the_padding_do_not_count():
    regions = torch.tensor([[[0, 1, 2], [1, 1, 2]]])
    toy = Toy(lambda x: [AttentionMap("regions", "regions", regions, "detail", count=3)])
    toy.forward = lambda x: x
    batch = {"inputs": images((1, 2, 3))[0], "data_samples": [sample(img_shape=(2, 2))]}
    _, found = only(gate_statistics(Detector(toy), [batch]))
    np.testing.assert_allclose(found["share"]["mean"], [0.25, 0.75, 0])
    assert list(found["never_used"]) == [2]


def test_entropy_of_weights():
    """Over the content alone: one query looks everywhere alike, the other at one place."""
    weights = torch.zeros(1, 2, 4, 4)
    weights[0, 0, :2] = 0.1  # and 0.2 in the padding
    weights[0, 0, 2] = 0.05
    weights[0, 1, 0, 0] = 1
    toy = Toy(lambda x: [AttentionMap("attention", "weights", weights, "detail")])
    toy.forward = lambda x: x
    batch = {"inputs": images((1, 4, 4))[0], "data_samples": [sample(img_shape=(2, 4))]}
    _, found = only(gate_statistics(Detector(toy), [batch]))
    assert found["entropy_bits"]["mean"] == pytest.approx(3 / 2)
    assert found["uniform_bits"] == pytest.approx(3)
    assert found["weight_on_padding"] == pytest.approx(0.1)
    assert found["query_distance"]["cosine"]["mean"] == pytest.approx(1 - 1 / math.sqrt(8))
    weights -= 0.1  # of no softmax
    _, found = only(gate_statistics(Detector(toy), [batch]))
    assert found["entropy_bits"] is None


def test_a_module_that_runs_on_regions_of_interest_or_several_times():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = shake(SE(8, ratio=2))

        def forward(self, x):
            self.gate(x)
            self.gate(x[:, :, :2])
            self.gate(x.repeat(3, 1, 1, 1)[:0])
            return self.gate(x.repeat(3, 1, 1, 1))

    found = gate_statistics(Head(), images((2, 4, 4), (2, 4, 4)), {})
    assert [(x["call"], x["samples"], x["unit"]) for x in found.layers] == [
        (0, 4, "image"),
        (1, 4, "image"),
        (2, 0, "region of interest"),
        (3, 12, "region of interest"),
    ]
    assert found.to_dict()["layers"][2]["maps"] == []


def test_moments_in_pieces():
    values = np.random.default_rng(0).normal(1e6, 1, (50, 3))
    moments = Moments()
    for piece in np.split(values, [1, 2, 20, 20]):
        moments.add(piece)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.variance, values.var(0, ddof=1), rtol=1e-8)
    np.testing.assert_array_equal(moments.low, values.min(0))
    np.testing.assert_array_equal(moments.high, values.max(0))


@pytest.mark.parametrize("bounds", [(None, None), (0, None), (None, 40)])
def test_a_histogram_with_an_open_end_loses_no_value(bounds):
    generator = torch.Generator().manual_seed(3)
    pieces = [torch.rand(40, generator=generator, dtype=torch.float64) * s for s in (1, 0.1, 30)]
    pieces += [pieces[0] - 7] if bounds[0] is None else []
    histogram = Histogram(bounds)
    for piece in pieces:
        histogram.add(piece)
    found, everything = histogram.to_dict(), torch.cat(pieces).numpy()
    assert found["counts"] == np.histogram(everything, found["edges"])[0].tolist()
    assert sum(found["counts"]) == len(everything)
    width = found["edges"][1] - found["edges"][0]
    reach = np.ptp([*everything, *(b for b in bounds if b is not None)])
    assert width <= 2.1 * reach / 128
    assert all(b is None or b in (found["edges"][0], found["edges"][-1]) for b in bounds)


def test_a_histogram_of_one_value():
    histogram = Histogram()
    histogram.add(torch.full((4,), 2.5))
    histogram.add(torch.tensor([2.5, math.nan]))
    assert sum(histogram.to_dict()["counts"]) == 5


def test_a_plain_model_and_no_images():
    with pytest.raises(ValueError, match="--attention"):
        gate_statistics(nn.Sequential(nn.Conv2d(3, 3, 1)), [])
    with pytest.raises(ValueError, match="at least one batch"):
        gate_statistics(nn.Sequential(SE(8, ratio=2)), [])


def experts(x):
    return [AttentionMap("expert shares", "shares", x.mean((2, 3)).softmax(1), "detail")]


@pytest.fixture(scope="module")
def everything():
    backbone = nn.Sequential(
        shake(SE(8, ratio=2)), shake(SGE(8, groups=4)), shake(GCT(8)), shake(GC(8, ratio=2)),
        shake(NonLocal(8)), shake(DRConv2d(8, 8, 3, padding=1, regions=3)),
        Toy(experts),
        Toy(lambda x: [channel_gate(1 + x.mean((2, 3)) ** 2, bounds=(0, None))]),
    )  # fmt: skip
    batches = [
        {"inputs": x, "data_samples": [sample([i % 2, 5]), sample([1])]}
        for i, x in enumerate(images(*[(2, 6, 6)] * 3))
    ]
    return gate_statistics(Detector(backbone), batches, {"cat": 0, "dog": 1})


def test_json_has_no_nan(everything):
    text = json.dumps(everything.to_dict(), allow_nan=False)
    found = json.loads(text)
    assert (found["schema"], found["images"]) == (1, 6)
    assert [one["type"] for one in found["layers"]] == [
        *("SE", "SGE", "GCT", "GC", "NonLocal", "DRConv2d", "Toy", "Toy"),
    ]
    context = found["layers"][3]
    assert [one["name"] for one in context["maps"]] == ["context mask", "added context"]
    assert context["activation"]["term_to_input"]["mean"] > 0
    assert "classes" not in context["maps"][1]  # what is added is no gate
    shares = found["layers"][6]["maps"][0]
    assert sum(shares["share"]["mean"]) == pytest.approx(1)
    assert 0 < shares["entropy_bits"]["mean"] < shares["uniform_bits"] == 3


def test_every_plot_is_drawn(everything):
    drawn = figures(everything)
    assert list(drawn) == list(NAMES)
    texts = {
        name: [t.get_text() for ax in figure.axes for t in (ax.title, *ax.texts)]
        for name, figure in drawn.items()
    }
    assert any("compete" in text for text in texts["gct_gamma"])
    gates = drawn["gates"]
    # one scale of colours for all that are compared
    meshes = [one for ax in gates.axes for one in ax.collections if one.get_array() is not None]
    scales = {mesh.get_clim() for mesh in meshes}
    assert scales == {(0.01, 100)}
    assert gates.axes[0].get_xlabel() == "gate; colour: share of the values in a bin"
    assert "Dead and saturated gates" in drawn["gate_states"].get_suptitle()
    spread = drawn["class_spread"].axes[0].lines
    assert [line.get_label() for line in spread[:2]] == [
        "between the classes",
        "to expect if the gates had nothing to do with the classes",
    ]


def test_of_many_layers_the_title_says_which_are_shown(monkeypatch):
    model = nn.Sequential(*[shake(SE(4, ratio=2), n) for n in range(4)])
    batch = {"inputs": images((2, 6, 6), channels=4)[0], "data_samples": [sample([0]), sample([1])]}
    found = gate_statistics(Detector(model), [batch], {"cat": 0})
    for panels, words in ((4, ""), (3, "3 of 4 layers, evenly spaced from the first to the last")):
        monkeypatch.setattr("mmattn.visualization.statistics_plots.PANELS", panels)
        for name in ("class_gates", "class_differences"):
            figure = figures(found)[name]
            title = " ".join(figure.get_suptitle().split())
            assert words in title
            assert ("layers" in title) == bool(words)
            shown = [ax for ax in figure.axes if ax.get_visible()]
            assert [ax.get_xlabel() for ax in shown] == ["channels, sorted"] * panels
            assert figure.legends[0].get_title().get_text() == "class (images that show it)"


def test_plots_of_parameters_alone():
    model = nn.Sequential(GCT(8), SGE(8, groups=2), GCT(8))  # as they start: all alike
    assert list(figures(parameter_statistics(model))) == ["gct_gamma", "sge_parameters"]
    assert figures(parameter_statistics(nn.Sequential(SE(8, ratio=2)))) == {}


def test_tables_say_what_there_is(everything):
    text = tables(everything)
    titles = ("GCT: gamma", "SGE: weight", "Gates and added", "Activations", "Spread of the mean")
    for title in (*titles, "Regions", "Experts", "Where queries look"):
        assert title in text
    assert "(images: cat 2, dog 4)" in text
    assert max(map(len, text.splitlines())) < 150


@pytest.mark.parametrize("broken", [(True,), (True, False), (False, True)])
def test_gates_that_are_no_numbers(broken):
    values = {True: torch.full((2, 8), math.nan), False: torch.full((2, 8), 1.5)}
    toys = [Toy(lambda x, v=values[one]: [channel_gate(v)]) for one in broken]
    found = gate_statistics(nn.Sequential(*toys), images((2, 4, 4)))
    json.dumps(found.to_dict(), allow_nan=False)
    assert "n/a" in tables(found)
    [plot] = [ax for ax in figures(found)["gates"].axes if "values over" in ax.get_title("left")]
    shares = plot.collections[0].get_array().filled(0).sum(1)
    assert shares.tolist() == [0 if one else 100 for one in broken]


def test_every_part_keeps_its_mode():
    model = nn.Sequential(SE(8, ratio=2), nn.BatchNorm2d(8).eval()).double()
    gate_statistics(model, images((1, 4, 4)))
    assert [part.training for part in model] == [True, False]
    assert model.training


def test_weights_on_the_padding_alone_have_no_entropy():
    weights = torch.zeros(2, 1, 4, 4)
    weights[0, 0, 3] = 0.25
    weights[1, 0, :2] = 0.125
    toy = Toy(lambda x: [AttentionMap("attention", "weights", weights, "detail")])
    toy.forward = lambda x: x
    samples = [sample(img_shape=(2, 4))] * 2
    _, found = only(
        gate_statistics(Detector(toy), [{"inputs": images((2, 4, 4))[0], "data_samples": samples}])
    )
    assert found["entropy_bits"]["mean"] == pytest.approx(3)
    assert found["weight_on_padding"] == pytest.approx(0.5)


def test_who_competes_is_drawn_upwards_and_said_in_the_table():
    gct = GCT(8)
    gct.gamma.data.view(-1)[:] = torch.tensor([1.0, 1, 1, 1, 1, 1, -1, 0])
    found = parameter_statistics(nn.Sequential(gct))
    ax = next(x for x in figures(found)["gct_gamma"].axes if "compete (up" in x.get_title())
    assert [bar.get_height() for bar in ax.patches] == [75, -12.5]
    row = next(line for line in tables(found).splitlines() if "75.0 %" in line)
    assert row.index("75.0 %") < row.index("12.5 %")


def test_tables_and_plots_tell_dead_from_saturated_and_region_from_region():
    values = torch.tensor([[2.0, 2, 2, 1, 1.5, 0.5, 0.6, 0.7]]).repeat(2, 1)
    values[1, 4:] += 0.1
    regions = torch.tensor([[[0, 0, 0, 2]]]).repeat(2, 1, 1)
    toys = [
        Toy(lambda x: [channel_gate(values)]),
        Toy(lambda x: [AttentionMap("regions", "regions", regions, "detail", count=3)]),
    ]
    found = gate_statistics(nn.Sequential(*toys), images((2, 1, 4)))
    row = next(line for line in tables(found).splitlines() if "37.5 %" in line)
    assert row.index("12.5 %") < row.index("37.5 %")  # one is dead, three are saturated
    ax = figures(found)["regions"].axes[0]
    heights = {c.get_label(): c.patches[0].get_height() for c in ax.containers}
    assert heights == {"0": 75, "1": 0, "2": 25}
