import os
from pathlib import Path

import torch

if not torch.cuda.is_available():
    # Triton reads it when it is imported: its kernels then run on the CPU, slowly
    os.environ.setdefault("TRITON_INTERPRET", "1")

import mmattn  # noqa: F401  before any mm* package: it offers the operators mmcv may lack

# mmattn's own arithmetic, and what reads files: the same whatever stack is under it
ONCE = (
    "checkpoints/",
    "convs/",
    "evaluation/",
    "ops/",
    "plugins/test_contract.py",
    "plugins/test_gates.py",
    "plugins/test_golden.py",
    "plugins/test_non_local.py",
    "tools/test_analyze_training.py",
    "tools/test_ap_by_size.py",
    "tools/test_benchmark",
)
# those that do touch the stack, in the folders above
EVERYWHERE = ("evaluation/test_coco_size_metric.py", "evaluation/test_training_")


def pytest_collection_modifyitems(items):
    """Marks the tests that ``make test`` runs on one of the two stacks."""
    for item in items:
        path = str(item.path.relative_to(Path(__file__).parent))
        if path.startswith(ONCE) and not path.startswith(EVERYWHERE):
            item.add_marker("once")
