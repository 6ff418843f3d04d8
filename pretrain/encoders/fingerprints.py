"""Checksums of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of tensors with their names, types and shapes, hex."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update((flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)).tobytes())
    return digest.hexdigest()
