"""What the generated tests run over: every registered plug-in, in every variant named here."""

import torch

import mmattn.plugins
from mmattn.registry import MODELS

MODELS.import_from_location()
PLUGINS = {
    name: cls
    for name, cls in MODELS.module_dict.items()
    if isinstance(cls, type) and issubclass(cls, mmattn.plugins.AttentionModule)
}
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
}
# parameters whose gradient is zero by theory
INERT = {"GC": {"conv_mask.bias"}}

CASES = [
    (name, arguments) for name in sorted(PLUGINS) for arguments in [{}, *VARIANTS.get(name, [])]
]
IDS = [f"{name}({', '.join(f'{k}={v}' for k, v in args.items())})" for name, args in CASES]


def scramble(module, seed=0):
    """Moves every parameter off its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise.to(parameter.dtype))
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
