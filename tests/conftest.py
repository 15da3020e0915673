import functools
import gc
import os
from pathlib import Path

import torch

if not torch.cuda.is_available():
    # Triton reads it when it is imported: its kernels then run on the CPU, slowly
    os.environ.setdefault("TRITON_INTERPRET", "1")

import mmengine.config.utils

import mmattn  # noqa: F401  before mmdet: it offers the operators mmcv may lack

# for every 'mmdet::' in a config mmengine reads the hundred metafiles of mmdet: 0.2 s each time
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)

# mmattn's own arithmetic, and what reads files: the same whatever stack is under it
ONCE = (
    "checkpoints/",
    "configs/test_metafiles.py",
    "configs/test_published.py",
    "convs/",
    "docs/",
    "datasets/test_bccd_",
    "datasets/test_coco_",
    "datasets/test_voc_",
    "evaluation/",
    "inspection/test_class_folders.py",
    "ops/",
    "plugins/test_attention_maps.py",
    "plugins/test_contract.py",
    "plugins/test_gates.py",
    "plugins/test_golden.py",
    "plugins/test_non_local.py",
    "reproduction/test_jobs.py",
    "reproduction/test_plan.py",
    "reproduction/test_report.py",
    "reproduction/test_table.py",
    "reproduction/test_workflow.py",
    "tools/test_analyze_training.py",
    "tools/test_ap_by_size.py",
    "test_mixed_precision.py",
    "test_pretraining.py",
    "tools/test_benchmark",
    "tools/test_draw_folders.py",
    "tools/test_visualize.py",  # what of it touches the stack is in visualization/test_collect.py
    "visualization/test_channel_plots.py",
    "visualization/test_contact_sheet.py",
    "visualization/test_detection_plots.py",
    "visualization/test_gate_statistics.py",
    "visualization/test_names.py",
    "visualization/test_region_plots.py",
    "visualization/test_spatial_plots.py",
    "visualization/test_weight_plots.py",
)
# those that do touch the stack, in the folders above
EVERYWHERE = ("evaluation/test_coco_size_metric.py", "evaluation/test_training_")


def pytest_collection_modifyitems(items):
    """Marks the tests that ``make test`` runs on one of the two stacks."""
    for item in items:
        path = str(item.path.relative_to(Path(__file__).parent))
        if path.startswith(ONCE) and not path.startswith(EVERYWHERE):
            item.add_marker("once")


def pytest_collection_finish():
    """What is imported by now stays: no collection of garbage looks through it again."""
    gc.collect()
    gc.freeze()
