"""The same numbers every time, or the fastest kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exactness(reproducible: bool, *, num_threads: int = 0) -> Iterator[None]:
    """Chooses the kernels that PyTorch takes inside a `with`.

    Reproducible: the same seed gives the same numbers, bit for bit, on the same kind and number of devices
    and the same versions (https://docs.pytorch.org/docs/stable/notes/randomness.html); PyTorch warns of an
    operation that has no such kernel. Otherwise cuDNN tries its kernels and takes the fastest, and float32
    products may use TF32. CPU kernels are reproducible either way, for the same number of threads,
    which is `num_threads` where that is not 0.
    """
    if reproducible:
        # read when cuBLAS is first used; its reductions depend on workspaces otherwise
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        torch.get_float32_matmul_precision(),
        memory.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.get_num_threads(),
        cudnn.allow_tf32,
    )
    if num_threads:
        torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(reproducible, warn_only=True)
    cudnn.benchmark = cudnn.allow_tf32 = not reproducible
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs time
    if torch.cuda.is_available():  # elsewhere it would mean bfloat16
        torch.set_float32_matmul_precision("highest" if reproducible else "high")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark = before[2]
        torch.set_float32_matmul_precision(before[3])
        memory.fill_uninitialized_memory = before[4]  # type: ignore[attr-defined]
        torch.set_num_threads(before[5])
        cudnn.allow_tf32 = before[6]
