import os

import torch

if not torch.cuda.is_available():
    # Triton reads it when it is imported: its kernels then run on the CPU, slowly
    os.environ.setdefault("TRITON_INTERPRET", "1")

import mmattn  # noqa: F401  before any mm* package: it offers the operators mmcv may lack
