"""Triton's compiler, which brings all it needs, takes what the interpreter tolerates."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from tests.ops import test_channel_passes as channel_passes
from tests.ops import test_fused_triton_gc as gc
from tests.ops import test_fused_triton_sge as sge
from tests.ops import test_region_conv_triton as region_conv

# imported once, and each script in a copy of the process: they change the modules they look at
RUN = """
import os, runpy, sys
try:
    import torch, triton.compiler, mmattn.ops
except ImportError as error:
    sys.exit(f"skip: {error}")
for path in sys.argv[1:]:
    copy = os.fork()
    if not copy:
        runpy.run_path(path)
        sys.exit()
    if status := os.waitpid(copy, 0)[1]:
        sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies the process")
def test_kernels_compile(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    scripts = []
    for module in (channel_passes, gc, region_conv, sge):
        scripts.append(tmp_path / f"{module.__name__.rpartition('.')[2]}.py")
        scripts[-1].write_text(module.COMPILE)
    process = subprocess.run(
        [sys.executable, "-c", RUN, *scripts],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if process.stderr.startswith("skip:"):
        pytest.skip(process.stderr)
    assert process.returncode == 0, process.stderr
