"""The stand-ins for mmcv's compiled operators, through mmcv's public API.

Compared with values from mmcv's own compiled operators (data/golden/ops), with plain float64
loops, and with numerical gradients.
"""

import importlib.util
import itertools
import math
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import mmattn  # noqa: F401  isort: skip  before mmcv

import mmcv.ops as ops
import numpy as np
import pytest
import torch
from mmcv.utils import collect_env
from torch.autograd import gradcheck

from mmattn import compat

ext = importlib.import_module("mmcv._ext")
pytestmark = pytest.mark.skipif(
    ext.__spec__.origin != compat.__name__, reason="this mmcv has its own compiled operators"
)
GOLDEN = Path(__file__).parent / "data" / "golden" / "ops"
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")),
]
on_each_device = pytest.mark.parametrize("device", DEVICES)


def golden(name, device="cpu"):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {k: torch.from_numpy(v).to(device) if v.ndim else v.item() for k, v in file.items()}


def assert_close(actual, expected, tol):
    actual, expected = (torch.as_tensor(t).detach().cpu().double() for t in (actual, expected))
    assert actual.shape == expected.shape
    error = (actual - expected).abs()
    worst = error.max().item() if error.numel() else 0
    bound = tol * max(1, expected.abs().max().item() if error.numel() else 0)
    assert worst <= bound, (
        f"worst error {worst:.3g} at {np.unravel_index(error.argmax(), error.shape)}"
    )


def outcome(function, inputs, grad):
    """The output and the gradients of all floating inputs, for an upstream gradient."""
    inputs = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    output = function(*inputs)
    output.backward(grad)
    return [output.detach(), *(t.grad for t in inputs if t.grad is not None)]


def make(*shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


# ------------------------------------------------------------------------ the import machinery


def python(*args, **env):
    """What a fresh process prints, with only the given switches set."""
    kept = {
        k: v for k, v in os.environ.items() if k not in ("RANK", "SLURM_PROCID", "MMATTN_COMPAT")
    }
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, *args]
    result = subprocess.run(command, env={**kept, **env}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


LINE = "mmcv has no compiled operators"


def pure_mmcv(folder, **files):
    """An mmcv without `_ext`, or with the fake one given."""
    (folder / "mmcv").mkdir(parents=True)
    for name, text in {"__init__": "", **files}.items():
        (folder / "mmcv" / f"{name}.py").write_text(text)
    return f"import sys; sys.path.insert(0, {str(folder)!r}); import mmattn; "


def test_import_is_light_and_finder_is_one_and_last():
    code = """
import importlib, sys
import mmattn
from mmattn import compat
heavy = {m.split('.')[0] for m in sys.modules} & {
    'torch', 'torchvision', 'numpy', 'mmengine', 'mmcv', 'mmdet'}
assert not heavy, heavy
for _ in range(2):
    finders = [i for i, f in enumerate(sys.meta_path) if type(f).__module__ == 'mmattn.compat']
    assert finders == [len(sys.meta_path) - 1], sys.meta_path
    compat.install()
    importlib.reload(compat)
    importlib.reload(mmattn)
compat.uninstall()
assert not [f for f in sys.meta_path if type(f).__module__ == 'mmattn.compat']
"""
    python("-c", code)


def test_compiled_operators_win(tmp_path):
    code = pure_mmcv(tmp_path, _ext="nms = 'compiled'") + "from mmcv._ext import nms; print(nms)"
    assert python("-c", code) == "compiled\n"


def test_can_be_turned_off(tmp_path):
    code = (
        pure_mmcv(tmp_path) + "from importlib.util import find_spec; print(find_spec('mmcv._ext'))"
    )
    assert python("-c", code, MMATTN_COMPAT="0") == "None\n"
    assert "mmattn.compat" in python("-c", code)


SCRIPT = """
import sys
sys.path.insert(0, {zip!r})
import mmattn
import importlib, mmcv._ext, torch

class Boxes(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, i):
        boxes = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 4]])
        return len(mmcv._ext.nms(boxes, torch.rand(2), 0.5, 0))

if __name__ == '__main__':
    importlib.reload(mmcv._ext)
    loader = torch.utils.data.DataLoader(Boxes(), num_workers=1, multiprocessing_context='spawn')
    print(mmcv.__file__, [int(n) for n in loader])
"""


def test_script_with_a_zipped_mmcv_and_spawned_workers_says_it_once(tmp_path):
    with zipfile.ZipFile(tmp_path / "pure.zip", "w") as file:
        file.writestr("mmcv/__init__.py", "")
    (tmp_path / "script.py").write_text(SCRIPT.format(zip=str(tmp_path / "pure.zip")))
    output = python(str(tmp_path / "script.py"))
    assert output.endswith("__init__.py [1, 1]\n")
    assert output.count(LINE) == 1


def test_only_the_first_rank_says_it(monkeypatch):
    said = []
    monkeypatch.setattr("mmengine.logging.print_log", lambda line, logger: said.append(line))
    for rank, count in ("1", 0), ("0", 1):
        monkeypatch.setenv("RANK", rank)
        compat._announce.__wrapped__()
        assert len(said) == count
    assert LINE in said[0]


def test_module_is_found_by_every_way_mmcv_and_mmengine_look():
    spec = importlib.util.find_spec("mmcv._ext")
    assert spec is ext.__spec__
    assert spec.name == ext.__name__ == "mmcv._ext"
    from mmcv.utils.ext_loader import check_ops_exist
    from mmengine.utils.dl_utils import mmcv_full_available

    assert check_ops_exist()
    assert mmcv_full_available()


def test_operator_without_stand_in():
    assert hasattr(ext, "ms_deform_attn_forward")
    with pytest.raises(NotImplementedError, match="'ms_deform_attn_forward'.*docs/installation.md"):
        ext.ms_deform_attn_forward(torch.zeros(1), im2col_step=64)
    with pytest.raises(NotImplementedError, match="'nms_rotated'"):
        ops.nms_rotated(torch.rand(2, 5), torch.rand(2), 0.5)
    for name in ("__file__", "__wrapped__", "_ipython_display_"):
        assert not hasattr(ext, name)


def test_deformable_attention_keeps_its_pytorch_path_on_cpu():
    module = ops.MultiScaleDeformableAttention(8, num_heads=2, num_levels=1, num_points=2)
    x = torch.rand(6, 1, 8)
    output = module(
        x, value=x, reference_points=torch.rand(1, 6, 1, 2),
        spatial_shapes=torch.tensor([[2, 3]]), level_start_index=torch.tensor([0]),
    )  # fmt: skip
    assert output.isfinite().all()


def test_models_and_operators_pickle():
    model = torch.nn.Sequential(
        ops.RoIAlign(7), ops.DeformConv2dPack(2, 2, 3), ops.ModulatedDeformConv2dPack(2, 2, 3)
    )
    assert repr(pickle.loads(pickle.dumps(model))) == repr(model)
    assert pickle.loads(pickle.dumps(ext.nms)) is ext.nms
    assert pickle.loads(pickle.dumps(ext.carafe_forward)).args == ("carafe_forward",)


def test_environment_report_says_what_serves_the_operators():
    report = collect_env()
    assert "torchvision" in report["MMCV Compiler"]
    assert report["MMCV CUDA Compiler"] == "not available"


# --------------------------------------------------------------------------------------- boxes


@on_each_device
@pytest.mark.parametrize("name", ["nms_offset0", "nms_offset1", "nms_score_max", "batched_nms"])
def test_nms_equals_mmcv(name, device):
    ref = golden(name, device)
    boxes, scores, threshold = ref["boxes"], ref["scores"], ref["iou_threshold"]
    if name == "batched_nms":
        cfg = dict(type="nms", iou_threshold=threshold)
        dets, keep = ops.batched_nms(boxes, scores, ref["idxs"], cfg)
    else:
        dets, keep = ops.nms(
            boxes, scores, threshold, offset=int(name[-1] == "1"),
            score_threshold=ref.get("score_threshold", 0), max_num=ref.get("max_num", -1),
        )  # fmt: skip
    assert keep.tolist() == ref["keep"].tolist()
    assert torch.equal(dets, ref["dets"])


@on_each_device
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_equals_mmcv(method, device):
    ref = golden(f"soft_nms_{method}", device)
    boxes, scores = ref["boxes"], ref["scores"].clone()
    arguments = ref["iou_threshold"], ref["sigma"], ref["min_score"], method
    dets, keep = ops.soft_nms(boxes, scores, *arguments)
    assert keep.tolist() == ref["keep"].tolist()
    assert_close(dets, ref["dets"], 1e-6)
    assert torch.equal(scores, ref["scores"])  # not decayed in place


def crowd(seed, n=40):
    """Boxes on a coarse grid with coarse scores: many equal scores, duplicates, empty boxes."""
    rng = np.random.default_rng(seed)
    corner, side = rng.integers(0, 12, (n, 2)), rng.integers(0, 8, (n, 2))
    boxes = torch.from_numpy(np.concatenate([corner, corner + side], 1)).double()
    return boxes, torch.from_numpy(rng.integers(1, 9, n) / 8)


def loop_iou(a, b, offset):
    w, h = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + offset) for i in (0, 1))
    area_a, area_b = ((c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b))
    union = area_a + area_b - w * h
    return w * h / union if union else math.nan


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_nms_equals_loop(offset, dtype):
    for seed in range(10):
        boxes, scores = (t.to(dtype) for t in crowd(seed))
        kept = []
        for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
            others = (loop_iou(boxes[j].tolist(), boxes[i].tolist(), offset) for j in kept)
            if not any(iou > 0.45 for iou in others):
                kept.append(i)
        assert ops.nms(boxes, scores, 0.45, offset=offset)[1].tolist() == kept


def test_nms_threshold_is_a_c_float():
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]])  # IoU float32(0.3), more than 0.3
    assert ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.3)[1].tolist() == [0, 1]


def loop_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    rows = [[*box, score, i] for i, (box, score) in enumerate(zip(boxes, scores, strict=True))]
    i = 0
    while i < len(rows):
        best = i
        for j in range(i + 1, len(rows)):
            if rows[best][4] < rows[j][4]:
                best = j
        rows[i], rows[best] = rows[best], rows[i]
        j = i + 1
        while j < len(rows):
            iou = loop_iou(rows[i], rows[j], offset)
            if method == "gaussian":
                rows[j][4] *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                rows[j][4] *= 1 - iou if method == "linear" else 0
            if rows[j][4] < min_score:
                last = rows.pop()
                if j < len(rows):
                    rows[j] = last
            else:
                j += 1
        i += 1
    return rows


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_equals_loop(method, offset):
    for seed in range(10):
        boxes, scores = crowd(seed)
        rows = loop_soft_nms(boxes.tolist(), scores.tolist(), 0.3, 0.5, 0.2, method, offset)
        dets, keep = ops.soft_nms(boxes, scores, 0.3, 0.5, 0.2, method, offset)
        assert keep.tolist() == [row[5] for row in rows]
        torch.testing.assert_close(
            dets, torch.tensor([row[:5] for row in rows]).double(), equal_nan=True
        )
        assert 0 < len(keep) < len(boxes)


@on_each_device
@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray], ids=["torch", "numpy"])
def test_nms_match_equals_loop(kind, device):
    for seed in range(10):
        boxes, scores = crowd(seed)
        left, groups = sorted(range(len(boxes)), key=lambda i: -scores[i]), []
        while left:
            first, *rest = left
            # float64 division of small integers: 1 / 4 is exact, so >= differs from >
            match = [i for i in rest if loop_iou(boxes[first], boxes[i], 0) >= 0.25]
            groups.append([first, *match])
            left = [i for i in rest if i not in match]
        dets = torch.cat([boxes, scores[:, None]], 1)
        dets = dets.to(device) if kind is torch.as_tensor else dets.numpy()
        result = ops.nms_match(dets, 0.25)
        assert [m.tolist() for m in result] == groups
        assert isinstance(result[0], type(dets))


@on_each_device
def test_no_boxes(device):
    boxes, scores = torch.zeros(0, 4, device=device), torch.zeros(0, device=device)
    for offset in (0, 1):
        for dets, keep in (
            ops.nms(boxes, scores, 0.5, offset=offset),
            ops.soft_nms(boxes, scores, 0.5, offset=offset),
            ops.nms(boxes + 1, scores, 0.5, offset=offset, score_threshold=0.5),
        ):
            assert dets.shape == (0, 5)
            assert keep.shape == (0,)
            assert keep.dtype == torch.int64
    assert ops.nms_match(torch.zeros(0, 5), 0.5) == []


# ------------------------------------------------------------------------------------- regions


@on_each_device
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_equals_mmcv(aligned, sampling_ratio, device):
    ref = golden(f"roi_align_aligned{aligned:d}_sr{sampling_ratio}", device)
    arguments = (7, 7), ref["spatial_scale"], sampling_ratio, "avg", aligned
    y, dx = outcome(lambda x: ops.roi_align(x, ref["rois"], *arguments), [ref["x"]], ref["dy"])
    assert_close(y, ref["y"], 1e-6)
    assert_close(dx, ref["dx"], 1e-6)


SCALE, SIZE = 0.5, (2, 3)
ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 12.6, 9.2],
        [1, -3.0, -4.2, 6.1, 5.0],  # over the upper left corner
        [0, 10.2, 8.4, 21.0, 17.0],  # over the lower right corner
        [1, 40.0, 40.0, 48.0, 50.0],  # outside
        [1, 4.0, 4.0, 4.5, 4.2],  # smaller than a pixel
        [0, 0.0, 0.0, 18.0, 14.0],  # all
    ]
).double()
EMPTY = torch.tensor([[0, 9.0, 8.0, 9.0, 8.0], [1, 9.0, 8.0, 2.0, 1.0]]).double()


def corners(height, width, y, x):
    """Pixels and weights of a bilinear sample by RoIAlign's rule."""
    if not (-1 <= y <= height and -1 <= x <= width):
        return []
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    i, j = math.floor(y), math.floor(x)
    pixels = [(i, j, (i + 1 - y) * (j + 1 - x)), (i, j + 1, (i + 1 - y) * (x - j)),
              (i + 1, j, (y - i) * (j + 1 - x)), (i + 1, j + 1, (y - i) * (x - j))]  # fmt: skip
    return [p for p in pixels if p[2]]


def loop_roi_align(x, rois, dy, sampling_ratio, mode, aligned):
    y, dx = torch.zeros_like(dy), torch.zeros_like(x)
    height, width = x.shape[2:]
    for k, c, ph, pw in itertools.product(*map(range, dy.shape)):
        image, x1, y1, x2, y2 = rois[k].tolist()
        x1, y1, x2, y2 = (v * SCALE - 0.5 * aligned for v in (x1, y1, x2, y2))
        h, w = ((v if aligned else max(v, 1)) for v in (y2 - y1, x2 - x1))
        bin_h, bin_w = h / SIZE[0], w / SIZE[1]
        gh, gw = (sampling_ratio or math.ceil(v) for v in (bin_h, bin_w))
        samples = []
        for iy, ix in itertools.product(range(gh), range(gw)):
            spot = y1 + bin_h * (ph + (iy + 0.5) / gh), x1 + bin_w * (pw + (ix + 0.5) / gw)
            pixels = corners(height, width, *spot)
            samples.append((sum(x[int(image), c, i, j] * v for i, j, v in pixels), pixels))
        if mode == "max":
            samples = [max(samples, key=lambda s: s[0])]
        for value, pixels in samples:
            y[k, c, ph, pw] += value / len(samples)
            for i, j, v in pixels:
                dx[int(image), c, i, j] += dy[k, c, ph, pw] * v / len(samples)
    return y, dx


@on_each_device
@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_equals_loop(aligned, sampling_ratio, mode, device):
    x, dy = make(2, 2, 7, 9), make(len(ROIS), 2, *SIZE, seed=1)
    rois, arguments = ROIS.to(device), (SIZE, SCALE, sampling_ratio, mode, aligned)
    actual = outcome(lambda x: ops.roi_align(x, rois, *arguments), [x.to(device)], dy.to(device))
    expected = loop_roi_align(x, ROIS, dy, sampling_ratio, mode, aligned)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, 1e-12)


def loop_roi_pool(x, rois, dy):
    y, dx = torch.zeros_like(dy), torch.zeros_like(x)
    height, width = x.shape[2:]
    for k, c, ph, pw in itertools.product(*map(range, dy.shape)):
        image, x1, y1, x2, y2 = rois[k].tolist()
        x1, y1, x2, y2 = x1 * SCALE, y1 * SCALE, (x2 + 1) * SCALE, (y2 + 1) * SCALE
        if x2 <= x1 or y2 <= y1:
            continue
        bin_h, bin_w = (y2 - y1) / SIZE[0], (x2 - x1) / SIZE[1]
        ys = range(
            max(math.floor(ph * bin_h + y1), 0), min(math.ceil((ph + 1) * bin_h + y1), height)
        )
        xs = range(
            max(math.floor(pw * bin_w + x1), 0), min(math.ceil((pw + 1) * bin_w + x1), width)
        )
        if ys and xs:
            i, j = max(itertools.product(ys, xs), key=lambda p: x[int(image), c, p[0], p[1]])
            y[k, c, ph, pw] = x[int(image), c, i, j]
            dx[int(image), c, i, j] += dy[k, c, ph, pw]
    return y, dx


@on_each_device
def test_roi_pool_equals_loop(device):
    rois = torch.cat([ROIS, EMPTY])
    # values with ties: the first in reading order takes the gradient
    x, dy = make(2, 2, 7, 9).round(), make(len(rois), 2, *SIZE, seed=1)
    layer = ops.RoIPool(SIZE, SCALE)
    actual = outcome(lambda x: layer(x, rois.to(device)), [x.to(device)], dy.to(device))
    for a, b in zip(actual, loop_roi_pool(x, rois, dy), strict=True):
        assert_close(a, b, 1e-12)


@on_each_device
def test_empty_regions_give_zero_and_no_gradient(device):
    x = make(2, 2, 7, 9).to(device) + 5
    for rois, mode in itertools.product((EMPTY[:1], EMPTY[:0]), ("avg", "max")):
        arguments = rois.to(device), SIZE, SCALE, 0, mode, True
        dy = torch.ones(len(rois), 2, *SIZE, dtype=x.dtype, device=device)
        for value in outcome(lambda x, a=arguments: ops.roi_align(x, *a), [x], dy):
            assert not value.any()
    rois = EMPTY[1:].to(device)
    for value in outcome(
        lambda x: ops.roi_pool(x, rois, SIZE, SCALE), [x], dy.new_ones(1, 2, *SIZE)
    ):
        assert not value.any()
    assert ops.roi_pool(x, rois[:0], SIZE, SCALE).shape == (0, 2, *SIZE)


# -------------------------------------------------------------------------------- focal losses


def plain_sigmoid_focal(x, target, gamma, alpha, weight=None):
    one = (target[:, None] == torch.arange(x.shape[1])).double()
    p = torch.sigmoid(x) * one + torch.sigmoid(-x) * (1 - one)
    loss = -(alpha * one + (1 - alpha) * (1 - one)) * (1 - p) ** gamma * p.log()
    if weight is not None:
        loss = (
            loss * torch.tensor([weight[t] if 0 <= t < len(weight) else 1 for t in target])[:, None]
        )
    return loss


def plain_softmax_focal(x, target, gamma, alpha, weight=None):
    losses = []
    for row, t in zip(x, target, strict=True):
        p = row.softmax(0)[t] if 0 <= t < len(row) else torch.ones((), dtype=x.dtype)
        w = weight[t] if weight is not None and 0 <= t < len(row) else 1
        losses.append(-alpha * w * (1 - p) ** gamma * p.log())
    return torch.stack(losses)


TARGET = torch.tensor([0, 2, 3, 1, -1, 2, 4])  # 4: background, -1: ignored
FOCAL = [
    (ops.sigmoid_focal_loss, plain_sigmoid_focal),
    (ops.softmax_focal_loss, plain_softmax_focal),
]
each_focal_loss = pytest.mark.parametrize(("loss", "plain"), FOCAL, ids=["sigmoid", "softmax"])


@on_each_device
@each_focal_loss
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [2.0, 1.5, 0.5, 0.0])
def test_focal_loss_equals_plain_formula(loss, plain, gamma, weighted, device):
    x, target = make(7, 4) * 3, TARGET
    weight = make(4, seed=2).abs() if weighted else None
    if plain is plain_softmax_focal and gamma < 1:  # autograd of (1 - p)^gamma at p = 1
        keep = (target >= 0) & (target < 4)
        x, target = x[keep], target[keep]
    on_device = None if weight is None else weight.to(device)
    for reduction, reduce in ("sum", torch.sum), ("mean", lambda v: v.sum() / len(x)):
        actual = outcome(
            lambda x, r=reduction: loss(x, target.to(device), gamma, 0.3, on_device, r),
            [x.to(device)],
            torch.tensor(1.7, dtype=x.dtype, device=device),
        )
        expected = outcome(
            lambda x, r=reduce: r(plain(x, target, gamma, 0.3, weight)),
            [x],
            torch.tensor(1.7, dtype=x.dtype),
        )
        for a, b in zip(actual, expected, strict=True):
            assert_close(a, b, 1e-12)
    assert_close(
        loss(x.to(device), target.to(device), gamma, 0.3, on_device, "none"),
        plain(x, target, gamma, 0.3, weight),
        1e-12,
    )


@each_focal_loss
@pytest.mark.parametrize("gamma", [2.0, 0.5, 0.0])
def test_focal_loss_of_large_logits(loss, plain, gamma):
    """Finite, and for the sigmoid exact: in float32, 1 - sigmoid(20) and sigmoid(-200) are 0."""
    x = torch.tensor([[200.0, -200.0], [20.0, -20.0], [-20.0, 20.0], [200.0, -200.0]])
    target = torch.tensor([1, 1, 1, 0])
    y, dx = outcome(lambda x: loss(x, target, gamma, 0.25, None, "sum"), [x], torch.tensor(1.0))
    assert y.isfinite()
    assert dx.isfinite().all()
    if plain is plain_sigmoid_focal:
        y = loss(x, target, gamma, 0.25, None, "none")
        assert_close(y, plain(x.double(), target, gamma, 0.25), 1e-6)


@each_focal_loss
def test_focal_loss_of_ignored_and_of_no_rows(loss, plain):
    x = make(7, 4).requires_grad_()
    y = loss(x, TARGET, 2.0, 0.25, make(4, seed=2), "none")
    if plain is plain_softmax_focal:
        assert y[[4, 6]].tolist() == [0, 0]
        loss(x, TARGET, 2.0, 0.25, None, "sum").backward()
        assert not x.grad[[4, 6]].any()
    assert loss(x[:0], TARGET[:0], 2.0, 0.25, None, "sum") == 0


# ---------------------------------------------------------------------- deformable convolution


@on_each_device
@pytest.mark.parametrize("name", ["deform_conv2d", "modulated_deform_conv2d"])
def test_deform_conv_equals_mmcv(name, device):
    ref = golden(name, device)
    names = [n for n in ("x", "offset", "mask", "weight", "bias") if n in ref]
    function = getattr(ops, name)
    y, *gradients = outcome(lambda *t: function(*t, 1, 1), [ref[n] for n in names], ref["dy"])
    assert_close(y, ref["y"], 1e-5)
    for n, gradient in zip(names, gradients, strict=True):
        assert_close(gradient, ref[f"d{n}"], 1e-5)


STRIDE, PADDING, DILATION, GROUPS, DEFORM_GROUPS = (2, 1), (1, 2), (1, 2), 2, 3


def deform_inputs(offset_scale=1.5, dtype=torch.float64, n=2):
    """x, offset, mask, weight, bias and the output's gradient; every axis differs."""
    kernel, size = (3, 2), (3, 7)
    x, weight, bias = make(n, 6, 6, 5), make(4, 3, *kernel, seed=1), make(4, seed=2)
    offset = make(n, DEFORM_GROUPS * 12, *size, seed=3) * offset_scale
    mask = make(n, DEFORM_GROUPS * 6, *size, seed=4).sigmoid()
    dy = make(n, 4, *size, seed=5)
    return [t.to(dtype) for t in (x, offset, mask, weight, bias)], dy.to(dtype)


GEOMETRY = STRIDE, PADDING, DILATION, GROUPS, DEFORM_GROUPS


def loop_deform_conv(x, offset, mask, weight, bias, dy):
    """Output and all gradients; like mmcv, no gradient for the offset at -1 and beyond."""
    y = torch.zeros_like(dy) + bias[:, None, None]
    dx, doffset, dmask, dweight = (torch.zeros_like(t) for t in (x, offset, mask, weight))
    height, width = x.shape[2:]
    outs, (group_size, kh, kw) = weight.shape[0], weight.shape[1:]
    for n, o, c, i, j, oy, ox in itertools.product(
        range(len(x)), *map(range, (outs, group_size, kh, kw)), *map(range, dy.shape[2:])
    ):
        channel = o // (outs // GROUPS) * group_size + c
        tap = (channel // (x.shape[1] // DEFORM_GROUPS)) * kh * kw + i * kw + j
        py = oy * STRIDE[0] - PADDING[0] + i * DILATION[0] + offset[n, 2 * tap, oy, ox].item()
        px = ox * STRIDE[1] - PADDING[1] + j * DILATION[1] + offset[n, 2 * tap + 1, oy, ox].item()
        if not (-1 < py < height and -1 < px < width):
            continue
        low_y, low_x = math.floor(py), math.floor(px)
        value = slope_y = slope_x = 0
        m, w, g = mask[n, tap, oy, ox], weight[o, c, i, j], dy[n, o, oy, ox]
        for dy_, dx_ in itertools.product((0, 1), (0, 1)):
            row, column = low_y + dy_, low_x + dx_
            if 0 <= row < height and 0 <= column < width:
                part_y, part_x = 1 - abs(py - row), 1 - abs(px - column)
                pixel = x[n, channel, row, column]
                value += pixel * part_y * part_x
                slope_y += pixel * part_x * (2 * dy_ - 1)
                slope_x += pixel * part_y * (2 * dx_ - 1)
                dx[n, channel, row, column] += g * w * m * part_y * part_x
        y[n, o, oy, ox] += w * m * value
        dweight[o, c, i, j] += g * m * value
        dmask[n, tap, oy, ox] += g * w * value
        doffset[n, 2 * tap, oy, ox] += g * w * m * slope_y
        doffset[n, 2 * tap + 1, oy, ox] += g * w * m * slope_x
    return y, dx, doffset, dmask, dweight, dy.sum((0, 2, 3))


@on_each_device
@pytest.mark.parametrize("offset_scale", [1.5, 0])  # 0: DCN's initial state, samples lie on borders
def test_deform_conv_equals_loop(offset_scale, device):
    (x, offset, mask, weight, bias), dy = deform_inputs(offset_scale)
    expected = loop_deform_conv(x, offset, mask, weight, bias, dy)
    x, offset, mask, weight, bias, dy = (t.to(device) for t in (x, offset, mask, weight, bias, dy))

    actual = outcome(
        lambda *t: ops.modulated_deform_conv2d(*t, *GEOMETRY), [x, offset, mask, weight, bias], dy
    )
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, 1e-12)

    actual = outcome(
        lambda *t: ops.modulated_deform_conv2d(*t, None, *GEOMETRY), [x, offset, mask, weight], dy
    )
    assert_close(actual[0], expected[0] - bias.cpu()[:, None, None], 1e-12)
    for a, b in zip(actual[1:], expected[1:], strict=False):
        assert_close(a, b, 1e-12)

    ones, nothing = torch.ones_like(mask).cpu(), torch.zeros_like(bias).cpu()
    expected = loop_deform_conv(x.cpu(), offset.cpu(), ones, weight.cpu(), nothing, dy.cpu())
    actual = outcome(lambda *t: ops.deform_conv2d(*t, *GEOMETRY), [x, offset, weight], dy)
    for a, b in zip(actual, [*expected[:3], expected[4]], strict=True):
        assert_close(a, b, 1e-12)


def test_deform_conv_gradients_one_by_one_and_twice():
    """mmcv computes the weight's gradient in a call of its own, or not at all."""
    (x, offset, _, weight, _), dy = deform_inputs()
    inputs = [t.requires_grad_() for t in (x, offset, weight)]
    y = ops.deform_conv2d(*inputs, *GEOMETRY)
    expected = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    for *wanted, k in itertools.product(*[(True, False)] * 3, (1, 2)):
        chosen = list(itertools.compress(range(3), wanted))
        if chosen:
            actual = torch.autograd.grad(y, [inputs[i] for i in chosen], k * dy, retain_graph=True)
            for i, gradient in zip(chosen, actual, strict=True):
                assert_close(gradient, k * expected[i], 1e-12)
        frozen = [t.detach().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
        if chosen:
            ops.deform_conv2d(*frozen, *GEOMETRY).backward(dy)
            for i in chosen:
                assert_close(frozen[i].grad, expected[i], 1e-12)


# ------------------------------------------------------------------- what all operators share


def cases(dtype=torch.float64):
    """Name, function, differentiable inputs; one for each operator with a backward."""
    (x, offset, mask, weight, bias), _ = deform_inputs(dtype=dtype)
    features, rois = make(2, 2, 7, 9, dtype=dtype), ROIS.to(dtype)
    logits = make(7, 4, dtype=dtype)
    yield "align", lambda x: ops.roi_align(x, rois.to(x), SIZE, SCALE, 0, "avg", True), [features]
    yield (
        "align_max",
        lambda x: ops.roi_align(x, rois.to(x), SIZE, SCALE, 2, "max", True),
        [features],
    )
    yield "pool", lambda x: ops.roi_pool(x, rois.to(x), SIZE, SCALE), [features]
    yield "sigmoid", lambda x: ops.sigmoid_focal_loss(x, TARGET, 2.0, 0.3, None, "sum"), [logits]
    yield "softmax", lambda x: ops.softmax_focal_loss(x, TARGET, 2.0, 0.3, None, "sum"), [logits]
    yield "dcn", lambda *t: ops.deform_conv2d(*t, *GEOMETRY), [x, offset, weight]
    yield (
        "dcnv2",
        lambda *t: ops.modulated_deform_conv2d(*t, *GEOMETRY),
        [x, offset, mask, weight, bias],
    )


NAMES = [name for name, *_ in cases()]
each_operator = pytest.mark.parametrize("name", NAMES)


def case(name, **kwargs):
    return next(rest for key, *rest in cases(**kwargs) if key == name)


@each_operator
def test_gradcheck(name):
    function, inputs = case(name)
    assert gradcheck(function, [t.requires_grad_() for t in inputs], fast_mode=True)


@each_operator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_float32_rounded_once(name, dtype):
    function, inputs = case(name, dtype=dtype)
    # mmcv's wrapper takes the softmax in half precision itself
    tol = torch.finfo(dtype).eps * (4 if name == "softmax" else 1)
    shape = function(*inputs).shape
    dy = make(*shape, seed=9).to(dtype)
    half = outcome(function, inputs, dy)
    single = outcome(function, [t.float() for t in inputs], dy.float())
    for a, b in zip(half, single, strict=True):
        assert a.dtype == dtype
        if name == "align_max" and a.shape != shape:
            continue  # mmcv hands over argmax buffers in half precision
        assert_close(a, b, tol)


@each_operator
def test_memory_layout_does_not_matter(name):
    function, inputs = case(name)
    dy = make(*function(*inputs).shape, seed=9)
    plain = outcome(function, inputs, dy)

    def sliced(t):
        return torch.stack([t, t + 1], -1)[..., 0]

    def last(t):
        return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t

    for layout in sliced, last:
        result = outcome(function, [layout(t) for t in inputs], layout(dy))
        for a, b in zip(result, plain, strict=True):
            assert_close(a, b, 1e-12)
