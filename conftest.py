"""Without a GPU, Triton's interpreter runs the CUDA backend's kernels; it must be chosen before triton is imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
