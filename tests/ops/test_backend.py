import os
import subprocess
import sys

import pytest
import torch

from mmattn import ops


def run_sge():
    return ops.sge(torch.randn(1, 4, 2, 2), torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1), 2)


def test_block_and_process():
    assert ops.get_backend() == os.environ.get("MMATTN_BACKEND", "auto")
    with ops.use_backend("reference"):
        assert ops.get_backend() == "reference"
        with ops.use_backend("eager"):
            assert ops.get_backend() == "eager"
        assert ops.get_backend() == "reference"
    before = ops.get_backend()
    ops.use_backend("reference")
    assert ops.get_backend() == "reference"
    ops.use_backend(before)


def test_the_chosen_implementation_runs(monkeypatch):
    """In float16 the reference overflows where the eager implementation does not."""
    x = torch.full((1, 4, 64, 64), 100.0).half()
    ones = torch.ones(1, 4, 1, 1).half()
    with ops.use_backend("reference"):
        assert ops.gct(x, ones, ones, ones).isnan().any()
    with ops.use_backend("eager"):
        assert ops.gct(x, ones, ones, ones).isfinite().all()


def test_errors():
    with pytest.raises(ValueError, match="one of auto, reference, eager, triton, got 'cuda'"):
        ops.use_backend("cuda")
    assert ops.get_backend() != "cuda"
    with (
        ops.use_backend("triton"),
        pytest.raises(
            ValueError, match="sge has no 'triton' implementation, only reference, eager"
        ),
    ):
        run_sge()
    with pytest.raises(ValueError, match="divide the 4 channels, got 3"):
        ops.sge(torch.randn(1, 4, 2, 2), torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1), 3)
    with pytest.raises(ValueError, match="shape \\(1, 2, 1, 1\\) for groups=2, got"):
        ops.sge(torch.randn(1, 4, 2, 2), torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1), 2)
    with pytest.raises(ValueError, match="neither"):
        ops.gc(torch.randn(1, 4, 2, 2), None, None)
    ones = torch.ones(1, 4, 1, 1)
    with pytest.raises(ValueError, match="gct expects norm to be one of l2, l1, got 'max'"):
        ops.gct(torch.randn(1, 4, 2, 2), ones, ones, ones, norm="max")


@pytest.mark.parametrize("name", ["reference", "fast"])
def test_environment_variable(name):
    code = "from mmattn import ops; print(ops.get_backend())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "MMATTN_BACKEND": name},
    )
    if name == "reference":
        assert done.stdout.strip() == "reference"
    else:
        assert "MMATTN_BACKEND must be one of auto, reference" in done.stderr
