"""Every operator and option against plain float64 loops written from the equations."""

import itertools
import math

import pytest
import torch

from mmattn import ops
from tests.zoo import assert_close

N, C, H, W = 2, 4, 2, 3
POSITIONS = list(itertools.product(range(H), range(W)))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def draw(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def mean_std(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def linear(w, b, v):
    bias = [0.0] * len(w) if b is None else b.tolist()
    return [
        sum(a * z for a, z in zip(r.tolist(), v, strict=True)) + bias[i] for i, r in enumerate(w)
    ]


@pytest.fixture(params=["reference", "eager", "eager's own passes"], autouse=True)
def backend(request, monkeypatch):
    if request.param not in ops.BACKENDS:  # which maps as small as these do not take
        monkeypatch.setattr("mmattn.ops._backend.EAGER_FROM", 0)
    with ops.use_backend(request.param.split("'")[0]):
        yield


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_se(bias, scale):
    x, w1, b1, w2, b2 = draw((N, C, H, W), (2, C), (2,), (C, 2), (C,))
    if not bias:
        b1 = b2 = None
    y = torch.empty_like(x)
    for n in range(N):
        z = [sum(x[n, c, i, j].item() for i, j in POSITIONS) / (H * W) for c in range(C)]
        hidden = [max(v, 0.0) for v in linear(w1, b1, z)]
        for c, s in enumerate(linear(w2, b2, hidden)):
            y[n, c] = x[n, c] * sigmoid(s) / (scale or 1)
    scale = None if scale is None else torch.tensor(scale)
    assert_close(ops.se(x, w1, b1, w2, b2, scale), y, 1e-12)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_sge(groups, normalize, scale):
    x, weight, bias = draw((N, C, H, W), (1, groups, 1, 1), (1, groups, 1, 1))
    eps, y, size = 0.01, torch.empty_like(x), C // groups
    for n, g in itertools.product(range(N), range(groups)):
        channels = range(g * size, (g + 1) * size)
        q = {c: sum(x[n, c, i, j].item() for i, j in POSITIONS) / (H * W) for c in channels}
        t = {p: sum(q[c] * x[n, c, p[0], p[1]].item() for c in channels) for p in POSITIONS}
        mean, std = mean_std(list(t.values())) if normalize else (0.0, 1 - eps)
        for (i, j), c in itertools.product(POSITIONS, channels):
            z = weight.flatten()[g].item() * (t[i, j] - mean) / (std + eps) + bias.flatten()[g]
            y[n, c, i, j] = x[n, c, i, j] * sigmoid(z) / (scale or 1)
    scale = None if scale is None else torch.tensor(scale)
    assert_close(ops.sge(x, weight, bias, groups, eps, normalize, scale), y, 1e-12)


@pytest.mark.parametrize("pooling", ["att", "avg"])
@pytest.mark.parametrize("fusion", [("add",), ("mul",), ("add", "mul")])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_gc(pooling, fusion, scale):
    x, wk, bk = draw((N, C, H, W), (1, C, 1, 1), (1,))
    p = 3
    shapes = [(p, C), (p,), (p,), (p,), (C, p), (C,)]
    parameters = {f: ops.GCTransform(*draw(*shapes, seed=i + 1)) for i, f in enumerate(fusion)}

    def transform(f, context):
        t = parameters[f]
        z = linear(t.w1, t.b1, context)
        mean = sum(z) / p
        variance = sum((v - mean) ** 2 for v in z) / p
        z = [(v - mean) / math.sqrt(variance + 1e-5) for v in z]
        z = [z[k] * t.norm_weight[k].item() + t.norm_bias[k].item() for k in range(p)]
        return linear(t.w2, t.b2, [max(v, 0.0) for v in z])

    y = x.clone()
    for n in range(N):
        weights = {}
        for i, j in POSITIONS:
            logit = sum(wk.flatten()[c].item() * x[n, c, i, j].item() for c in range(C))
            weights[i, j] = math.exp(logit + bk.item()) if pooling == "att" else 1.0
        total = sum(weights.values())
        context = [
            sum(w / total * x[n, c, i, j].item() for (i, j), w in weights.items()) for c in range(C)
        ]
        for c in range(C):
            if "mul" in fusion:
                y[n, c] *= sigmoid(transform("mul", context)[c]) / (scale or 1)
            if "add" in fusion:
                y[n, c] += transform("add", context)[c]
    mask = (wk, bk) if pooling == "att" else (None, None)
    scale = None if scale is None else torch.tensor(scale)
    actual = ops.gc(x, *mask, parameters.get("add"), parameters.get("mul"), scale)
    assert_close(actual, y, 1e-12)


GATES = {
    "1+tanh": lambda z: 1 + math.tanh(z),
    "sigmoid": sigmoid,
    "1+elu": lambda z: 1 + z if z > 0 else math.exp(z),
}


@pytest.mark.parametrize("norm", ["l2", "l1", "l1 after relu"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("scale", [None, 0.5])
def test_gct(norm, gate, scale):
    x, alpha, gamma, beta = draw((N, C, H, W), *[(1, C, 1, 1)] * 3)
    norm, _, after_relu = norm.partition(" ")
    if after_relu:
        x = x.relu()
    eps, y = 0.01, torch.empty_like(x)
    for n in range(N):
        e = []
        for c in range(C):
            values = [x[n, c, i, j].item() for i, j in POSITIONS]
            a = alpha.flatten()[c].item()
            if norm == "l2":
                e.append(a * math.sqrt(sum(v * v for v in values) + eps))
            else:
                e.append(a * sum(abs(v) for v in values))
        if norm == "l2":
            spread = math.sqrt(sum(v * v for v in e) / C + eps)
        else:
            spread = sum(abs(v) for v in e) / C + eps
        for c in range(C):
            z = e[c] * gamma.flatten()[c].item() / spread + beta.flatten()[c].item()
            y[n, c] = x[n, c] * GATES[gate](z) / (scale or 1)
    scale = None if scale is None else torch.tensor(scale)
    assert_close(ops.gct(x, alpha, gamma, beta, eps, norm, bool(after_relu), gate, scale), y, 1e-12)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_eca(kernel_size, scale):
    x, weight = draw((N, C, H, W), (1, 1, kernel_size))
    y = torch.empty_like(x)
    for n in range(N):
        z = [sum(x[n, c, i, j].item() for i, j in POSITIONS) / (H * W) for c in range(C)]
        for c in range(C):
            neighbours = {k: c + k - kernel_size // 2 for k in range(kernel_size)}
            s = sum(weight[0, 0, k].item() * z[d] for k, d in neighbours.items() if 0 <= d < C)
            y[n, c] = x[n, c] * sigmoid(s) / (scale or 1)
    scale = None if scale is None else torch.tensor(scale)
    assert_close(ops.eca(x, weight, scale), y, 1e-12)


def test_srm():
    x, cfc = draw((N, C, H, W), (C, 2))
    eps, z = 0.01, torch.empty(N, C, dtype=torch.float64)
    for n, c in itertools.product(range(N), range(C)):
        mean, std = mean_std([x[n, c, i, j].item() for i, j in POSITIONS])
        z[n, c] = cfc[c, 0].item() * mean + cfc[c, 1].item() * math.sqrt(std**2 + eps)
    assert_close(ops.srm(x, cfc, eps), z, 1e-12)


def test_simam():
    (x,) = draw((N, C, H, W))
    e_lambda, y = 0.01, torch.empty_like(x)
    for n, c in itertools.product(range(N), range(C)):
        mean, std = mean_std([x[n, c, i, j].item() for i, j in POSITIONS])
        for i, j in POSITIONS:
            value = x[n, c, i, j].item()
            y[n, c, i, j] = value * sigmoid((value - mean) ** 2 / (4 * (std**2 + e_lambda)) + 0.5)
    assert_close(ops.simam(x, e_lambda), y, 1e-12)


def test_snl():
    x, wk, bk, wv = draw((N, C, H, W), (1, C, 1, 1), (1,), (C, C))
    y = x.clone()
    for n in range(N):
        pixels = {p: x[n, :, p[0], p[1]].tolist() for p in POSITIONS}
        weights = {p: math.exp(linear(wk.flatten(1), bk, v)[0]) for p, v in pixels.items()}
        total = sum(weights.values())
        context = [sum(weights[p] / total * pixels[p][c] for p in POSITIONS) for c in range(C)]
        for c, value in enumerate(linear(wv, None, context)):
            y[n, c] += value
    assert_close(ops.snl(x, wk, bk, wv), y, 1e-12)
    assert_close(ops.snl(x, wk, bk, wv[:, :, None, None]), y, 1e-12)


@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize(
    ("mode", "use_scale"),
    [
        ("embedded_gaussian", True),
        ("embedded_gaussian", False),
        ("gaussian", True),
        ("dot_product", True),
        ("concatenation", True),
    ],
)
def test_non_local(mode, use_scale, sub_sample):
    p = 3
    x, wf, *projections = draw((N, C, 3, 4), (1, 2 * p), *[(p, C), (p,)] * 3, (C, p), (C,))
    theta, phi, g, out = zip(projections[::2], projections[1::2], strict=True)

    def pooled(maps):
        """The largest of each 2 x 2 pixels of a 3 x 4 map, whose last row is left over."""
        if not sub_sample:
            return maps
        squares = [[(0, 0), (0, 1), (1, 0), (1, 1)], [(0, 2), (0, 3), (1, 2), (1, 3)]]
        return {
            k: [max(v) for v in zip(*map(maps.get, s), strict=True)] for k, s in enumerate(squares)
        }

    y = torch.empty_like(x)
    for n in range(N):
        pixels = {(i, j): x[n, :, i, j].tolist() for i in range(3) for j in range(4)}
        queries = {q: linear(*theta, v) if mode != "gaussian" else v for q, v in pixels.items()}
        keys = pooled({q: linear(*phi, v) if mode != "gaussian" else v for q, v in pixels.items()})
        values = pooled({q: linear(*g, v) for q, v in pixels.items()})
        for q, query in queries.items():
            f = {}
            for k, key in keys.items():
                dot = sum(a * b for a, b in zip(query, key, strict=True))
                if mode == "concatenation":
                    f[k] = max(linear(wf, None, query + key)[0], 0.0) / len(keys)
                elif mode == "dot_product":
                    f[k] = dot / len(keys)
                else:
                    scaled = mode == "embedded_gaussian" and use_scale
                    f[k] = math.exp(dot / math.sqrt(p) if scaled else dot)
            total = sum(f.values()) if "gaussian" in mode else 1.0
            mixed = [sum(f[k] / total * values[k][c] for k in keys) for c in range(p)]
            y[n, :, q[0], q[1]] = torch.tensor(linear(*out, mixed), dtype=torch.float64)
    embedded = (theta, phi) if mode != "gaussian" else (None, None)
    concat = wf[:, :, None, None] if mode == "concatenation" else None
    actual = ops.non_local(x, g, out, *embedded, concat, mode, use_scale, sub_sample)
    assert_close(actual, y, 1e-12)
