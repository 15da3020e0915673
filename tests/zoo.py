"""What the generated tests run over: every registered plug-in, in every variant named here."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

import mmattn.convs
import mmattn.plugins
from mmattn.registry import MODELS

MODELS.import_from_location()
PLUGINS = {
    name: cls
    for name, cls in MODELS.module_dict.items()
    if isinstance(cls, type) and issubclass(cls, mmattn.plugins.AttentionModule)
}
GN = dict(type="GN", num_groups=1)
# arguments beside the defaults; a new module is tested with its defaults on arrival
VARIANTS = {
    "SE": [dict(bias=False), dict(ratio=4)],
    "SGE": [dict(groups=8), dict(groups=8, normalize=False), dict(groups=1)],
    "GC": [dict(ratio=4, fusion=("mul",)), dict(fusion=("add", "mul")), dict(pooling="avg")],
    "GCT": [
        dict(norm="l1"),
        dict(gate="sigmoid"),
        dict(gate="1+elu", norm="l1"),
    ],
    "CBAM": [dict(spatial=False), dict(ratio=4, kernel_size=3, norm_cfg=GN)],
    "BAM": [dict(ratio=4, dilation=2, num_dilated_convs=1, norm_cfg=GN)],
    "CoordAttention": [dict(ratio=4, norm_cfg=GN)],
    "TripletAttention": [dict(spatial=False), dict(kernel_size=3, norm_cfg=GN)],
    "ECA": [dict(kernel_size=7)],
    "SRM": [dict(norm_cfg=GN)],
    "SimAM": [dict(e_lambda=0.1)],
    "NonLocal": [
        dict(mode="gaussian", ratio=4),
        dict(mode="dot_product"),
        dict(mode="concatenation", sub_sample=True),
        dict(sub_sample=True),
        dict(norm_cfg=dict(type="BN")),
    ],
}
# modules that cannot start as identity
NEVER_IDENTITY = {"SimAM"}
# times the tolerance in half precision, where a softmax amplifies the rounding of its input
AMPLIFY = {"NonLocal": 3}
# parameters whose gradient is zero by theory
INERT = {
    "GC": {"conv_mask.bias"},
    "BAM": {
        "channel_att.gate_c.gate_c_fc_0.bias",
        "spatial_att.gate_s.gate_s_conv_reduce0.bias",
        "spatial_att.gate_s.gate_s_conv_di_0.bias",
        "spatial_att.gate_s.gate_s_conv_di_1.bias",
    },
    "CoordAttention": {"conv1.bias"},
    "SNL": {"conv_mask.bias"},
    # in front of a softmax, and of a BatchNorm
    "NonLocal": {"phi.conv.bias", "phi.0.conv.bias", "g.conv.bias"},
}

CASES = [
    (name, arguments) for name in sorted(PLUGINS) for arguments in [{}, *VARIANTS.get(name, [])]
]
IDS = [f"{name}({', '.join(f'{k}={v}' for k, v in args.items())})" for name, args in CASES]

# the convolution layers; arguments beside the defaults
CONV_VARIANTS = {
    "CondConv2d": [dict(experts=2)],
    "DRConv2d": [
        dict(regions=4, generator="paper", bias=False),
        dict(regions=4, generator="paper", base_filter=True),
        dict(regions=4, templates=2, guide_candidates=2, guide_kernel_size=3, stride=2),
    ],
    "GCTConv2d": [dict(norm="l1", gate="sigmoid")],
    "SKConv2d": [dict(branch_groups=4, ratio=4, bias=False)],
}
CONV_CASES = [
    (name, arguments)
    for name in sorted(mmattn.convs.__all__)
    for arguments in [{}, *CONV_VARIANTS.get(name, [])]
]
CONV_IDS = [
    f"{name}({', '.join(f'{k}={v}' for k, v in args.items())})" for name, args in CONV_CASES
]


def layer(name, arguments, channels=64):
    """A plug-in, or a 3 x 3 convolution, on that many channels."""
    if name in PLUGINS:
        return PLUGINS[name](channels, **arguments)
    return getattr(mmattn.convs, name)(channels, channels, 3, padding=1, **arguments)


def scramble(module, seed=0):
    """Moves every parameter and every running statistic off its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise.to(parameter.dtype))
        for norm in module.modules():
            if isinstance(norm, _BatchNorm):
                norm.running_mean.normal_(std=0.3, generator=generator)
                norm.running_var.uniform_(0.5, 1.5, generator=generator)
    return module


def assert_close(actual, expected, tolerance, what=""):
    """|a - b| <= tolerance max(1, max|b|), the golden files' measure."""
    actual = torch.as_tensor(actual).detach().double()
    expected = torch.as_tensor(expected).detach().double()
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape} is not {expected.shape}"
    if expected.numel():
        error = (actual - expected).abs().max().item()
        limit = tolerance * max(1.0, expected.abs().max().item())
        assert error <= limit, f"{what}: error {error:.3g} > {limit:.3g}"
