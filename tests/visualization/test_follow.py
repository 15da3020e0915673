"""Where the cells of a map lie, against the pixels that they see."""

import pytest
import torch
from mmdet.models.backbones import CSPDarknet, HRNet, ResNet, SwinTransformer
from mmdet.models.necks import FPN
from torch import nn
from torch.nn import functional as F

from mmattn.visualization.follow import following
from mmattn.visualization.geometry import Grid, Placement, to_image
from mmattn.visualization.images import _placement

WHOLE = Grid((1.0, 1.0), (0.0, 0.0))


def averaging(model: nn.Module) -> nn.Module:
    """Every convolution a mean, every norm the identity: a cell is a mean of what it sees."""
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.constant_(part.weight, 1 / part.weight[0].numel())
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
    model.eval()
    return model.double()


def seen(y: torch.Tensor, x: torch.Tensor) -> tuple[list[float], tuple[float, float]]:
    """The centre, row and column, of what four cells in the middle of y see of x, and theirs.

    Four, since an upsampled map looks to one side with every other cell.
    """
    row, column = y.shape[2] // 2, y.shape[3] // 2
    four = y[0, :, row : row + 2, column : column + 2].sum()
    (g,) = torch.autograd.grad(four, x, retain_graph=True)
    g = g[0].sum(0)
    centre = [
        float((g.sum(1 - i) * torch.arange(len(g.sum(1 - i)))).sum() / g.sum()) for i in (0, 1)
    ]
    return centre, (row + 0.5, column + 0.5)


def agrees(f, model, x, atol=1e-3):
    """Every output's grid is where its middle cells look."""
    outputs = model(x)
    outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    for y in outputs:
        grid = f.grid(y)
        assert grid is not None
        assert grid.exact
        centre, cell = seen(y, x)
        for i in (0, 1):
            assert grid.offset[i] + grid.stride[i] * cell[i] == pytest.approx(centre[i], abs=atol)
    return outputs


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
def test_a_resnet_is_followed_to_its_last_stage(style):
    model = averaging(ResNet(50, base_channels=4, style=style, norm_cfg=dict(type="BN")))
    model.maxpool = nn.AvgPool2d(3, 2, 1)  # a maximum has a gradient at one place only
    x = torch.ones(1, 3, 512, 448, dtype=torch.float64, requires_grad=True)
    with following(model) as f:
        f.place(x, WHOLE)
        outputs = agrees(f, model, x)
    assert [f.grid(y).stride for y in outputs] == [(s, s) for s in (4.0, 8.0, 16.0, 32.0)]
    # half a stride from where an evenly cut image would have it
    assert f.grid(outputs[3]).offset == (0.0, 0.0)
    assert Grid.even((16, 14), (512, 448)).offset == (15.5, 15.5)


def test_a_focus_takes_every_second_pixel_four_times():
    small = dict(widen_factor=0.125, deepen_factor=0.33, act_cfg=dict(type="ReLU"))
    model = averaging(CSPDarknet(**small, out_indices=(1, 2, 3)))
    x = torch.ones(1, 3, 384, 384, dtype=torch.float64, requires_grad=True)
    with following(model) as f:
        f.place(x, WHOLE)
        outputs = agrees(f, model, x)
    assert [f.grid(y).offset for y in outputs] == [(0.5, 0.5)] * 3


class Odd(nn.Module):
    """Strides, paddings and dilations that differ by axis, on sizes that do not divide."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, (5, 3), (3, 2), (1, 0), (1, 2))
        self.down = nn.Conv2d(4, 4, 2, 2)
        self.up = nn.ConvTranspose2d(4, 4, (4, 3), (2, 1), (1, 1))

    def forward(self, x):
        y = F.pad(self.conv(x), (3, 1, 2, 0))
        y = F.avg_pool2d(y, (3, 2), (1, 2), (1, 0))
        z = F.interpolate(self.down(y), scale_factor=2, mode="bilinear", align_corners=False)
        corners = F.interpolate(y, (31, 45), mode="bilinear", align_corners=True)
        return y, z, self.up(y), z[:, :, 1:, 2::2], z[:, :, -9:], F.avg_pool2d(y, 3), corners


def test_odd_windows():
    model = Odd().double()
    for part in model.children():
        nn.init.constant_(part.weight, 0.1)
    x = torch.ones(1, 3, 131, 117, dtype=torch.float64, requires_grad=True)
    with following(model) as f:
        f.place(x, WHOLE)
        agrees(f, model, x)


def test_shuffled_channels_stay_where_they_are():
    def shuffle(x, axes):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(*axes).reshape(n, c, h, w)

    x = torch.randn(1, 8, 16, 16)
    with following(nn.Identity()) as f:
        f.place(x, WHOLE)
        assert f.grid(shuffle(x, (1, 2))) == f.grid(shuffle(x, (-3, 1))) == WHOLE
        assert f.grid(shuffle(x, (-1, -2))) is None
        assert f.grid(x.transpose(1, 2)) is None


def test_a_map_of_another_layout_is_found_again_behind_its_layer():
    class Permuting(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)

    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Permuting(), nn.Conv2d(8, 8, 3, 2, 1))
    x = torch.randn(1, 3, 32, 32)  # 16 cells: width and channels could be taken for each other
    with torch.no_grad(), following(model) as f:
        f.place(x, WHOLE)
        y = model(x)
        assert f.grid(y) == Grid((4.0, 4.0), (0.0, 0.0))
        turned = model[0](x).permute(0, 3, 1, 2)
        assert f.grid(turned) is None


def test_tokens_are_lost_and_said_so():
    model = SwinTransformer(
        embed_dims=12, depths=(1, 1), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1)
    )
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), following(model) as f:
        f.place(x, WHOLE)
        assert [f.grid(y) for y in model(x)] == [None, None]
    # what stands in: a patch of 4 pixels has its middle at 1.5
    assert Grid.even((16, 16), (64, 64)) == Grid((4.0, 4.0), (1.5, 1.5), exact=False)


def test_a_neck_and_a_network_of_many_branches():
    neck = FPN([4, 8], 4, 3)
    model = HRNet(
        extra=dict(
            stage1=dict(
                num_modules=1, num_branches=1, block="BASIC", num_blocks=(1,), num_channels=(4,)
            ),
            stage2=dict(
                num_modules=1, num_branches=2, block="BASIC", num_blocks=(1, 1), num_channels=(4, 8)
            ),
            stage3=dict(
                num_modules=1,
                num_branches=3,
                block="BASIC",
                num_blocks=(1,) * 3,
                num_channels=(4, 8, 16),
            ),
            stage4=dict(
                num_modules=1,
                num_branches=4,
                block="BASIC",
                num_blocks=(1,) * 4,
                num_channels=(4, 8, 16, 32),
            ),
        ),
    )
    model.eval()
    x = torch.randn(1, 3, 128, 128)
    whole = nn.ModuleList([model, neck])
    with torch.no_grad(), following(whole) as f:
        f.place(x, WHOLE)
        maps = model(x)
        assert [f.grid(y).stride[0] for y in maps] == [4.0, 8.0, 16.0, 32.0]
        assert [f.grid(y).stride[0] for y in neck(maps[:2])] == [4.0, 8.0, 16.0]
        # sums of maps whose cells lie apart: their weights decide, and that is said
        assert not f.grid(maps[0]).exact
        assert not f.grid(neck(maps[:2])[0]).exact


def test_nothing_is_left_behind():
    model = nn.Conv2d(3, 3, 1)
    x = torch.randn(1, 3, 4, 4)
    with following(model) as f:
        f.place(x, WHOLE)
        model(x)
    assert not model._forward_hooks
    assert f.grid(model(x)) is None


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        # two pixels of padding are none of the image
        (dict(img_shape=(42, 64), scale_factor=(0.75, 0.8)), ((40, 60), (0, 0), (False, False))),
        (
            dict(img_shape=(64, 64), scale_factor=(0.75, 0.8), pad_param=(11, 13, 1, 3)),
            ((40, 60), (11, 1), (False, False)),
        ),
        (
            dict(img_shape=(40, 60), scale_factor=(0.75, 0.8), flip=True,
                 flip_direction="horizontal"),
            ((40, 60), (0, 0), (False, True)),
        ),
        (dict(img_shape=(40, 60)), ((40, 60), (0, 0), (False, False))),
    ],
)  # fmt: skip
def test_what_the_pipeline_says_of_itself(meta, expected):
    found = _placement(meta, (50, 80), (64, 64))
    assert (found.content_size, found.start, found.mirrored) == expected
    assert found.scale == (0.8, 0.75)


def test_maps_at_the_pixels_of_the_image():
    """A map made of the pixels' own positions gives them back, whatever was done to the image."""
    placement = Placement((50, 81), (0.8, 0.75), (40, 61), (3.0, 5.0), (False, True), (64, 96))
    grid = Grid((4.0, 8.0), (-2.0, 3.0))
    rows = grid.offset[0] + grid.stride[0] * torch.arange(20.0).double()
    columns = grid.offset[1] + grid.stride[1] * torch.arange(15.0).double()
    values = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    found = to_image(values, grid, placement)
    assert found.shape == (2, 50, 81)
    assert found.dtype == torch.float64
    y = torch.arange(50).double()
    x = torch.arange(81).double()
    expected_rows = (y + 0.5) * 0.8 - 0.5 + 3
    expected_columns = 61 - 1 - ((x + 0.5) * 0.75 - 0.5) + 5
    torch.testing.assert_close(found[0], expected_rows[:, None].expand(50, 81))
    torch.testing.assert_close(found[1], expected_columns[None].expand(50, 81))
    for px, py in ((0.5, 0.5), (30.5, 20.5), (80.5, 49.5)):
        at = placement.to_input(px, py)
        assert at == pytest.approx(
            (float(expected_rows[int(py)]), float(expected_columns[int(px)])), abs=1e-9
        )


def test_regions_keep_their_numbers_and_borders_their_values():
    grid, placement = Grid((4.0, 4.0), (1.5, 1.5)), Placement((8, 12))
    values = torch.tensor([[0, 5, 2], [7, 1, 3]])
    found = to_image(values, grid, placement)
    assert found.dtype == torch.int64
    assert torch.equal(found, values.repeat_interleave(4, 0).repeat_interleave(4, 1))
    smooth = to_image(values.float(), grid, placement)
    assert smooth[0, 0] == 0
    assert smooth[0, -1] == 2
    assert smooth[-1, 0] == 7
    assert to_image(values[:1, :1].float(), grid, placement).unique().tolist() == [0.0]
