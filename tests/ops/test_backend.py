import os
import subprocess
import sys

import pytest
import torch

from mmattn import ops
from mmattn.ops import _backend


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
    with pytest.raises(ValueError, match="divide the 4 channels, got 3"):
        ops.sge(torch.randn(1, 4, 2, 2), torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1), 3)
    with pytest.raises(ValueError, match="shape \\(1, 2, 1, 1\\) for groups=2, got"):
        ops.sge(torch.randn(1, 4, 2, 2), torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1), 2)
    with pytest.raises(ValueError, match="neither"):
        ops.gc(torch.randn(1, 4, 2, 2), None, None)
    ones = torch.ones(1, 4, 1, 1)
    with pytest.raises(ValueError, match="gct expects norm to be one of l2, l1, got 'max'"):
        ops.gct(torch.randn(1, 4, 2, 2), ones, ones, ones, norm="max")


def test_what_has_no_kernels_takes_eager(monkeypatch):
    """'triton' is chosen for a process, not for one operator; test_dispatch.py has the others."""
    said = []
    monkeypatch.setattr(_backend, "_said", set())
    monkeypatch.setattr("mmengine.logging.print_log", lambda line, **_: said.append(line))
    x, weight = torch.randn(1, 4, 3, 3), torch.randn(1, 1, 3)
    with ops.use_backend("eager"):
        y, z = ops.eca(x, weight), ops.simam(x)
    with ops.use_backend("triton"):
        for _ in range(3):
            assert torch.equal(ops.eca(x, weight), y)
            assert torch.equal(ops.simam(x), z)
    assert said == [
        f"mmattn.ops.{name} has no triton kernels; it takes 'eager'" for name in ("eca", "simam")
    ]


def test_environment_variable():
    """As it was when the process began; an empty one is none."""
    code = """
import importlib, os
os.environ["MMATTN_BACKEND"] = "fast"
try:
    from mmattn import ops
except ValueError as error:
    print(error)
for name in ("reference", ""):
    os.environ["MMATTN_BACKEND"] = name
    from mmattn.ops import _backend
    print(importlib.reload(_backend)._current)
"""
    environment = {k: v for k, v in os.environ.items() if k != "MMATTN_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    refused, *current = done.stdout.splitlines()
    assert refused.startswith("MMATTN_BACKEND must be one of auto, reference"), done.stderr
    assert current == ["reference", "auto"], done.stderr


def test_decorator():
    """For the calls of the function, not for the process."""
    before = ops.get_backend()

    @ops.use_backend("reference")
    def chosen():
        return ops.get_backend()

    assert (ops.get_backend(), chosen(), ops.get_backend()) == (before, "reference", before)
    assert chosen.__name__ == "chosen"
