"""Less memory for more computing: the blocks of encoders keep their inputs alone,
and are computed again in the backward pass.

Chen et al., Training Deep Nets with Sublinear Memory Cost, https://arxiv.org/abs/1604.06174.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pretrain.encoders import Encoder


def checkpoint_blocks(module: nn.Module) -> None:
    """From now on the blocks of every encoder in a module (`Encoder.blocks`) save nothing but their inputs.

    Losses and gradients stay the same to the bit: random layers draw the same numbers again. Blocks that are
    to be compiled are compiled before. These parts and not those of timm's `set_grad_checkpointing`, which
    takes whole stages of convolutional networks, more at once than blocks (`python -m
    tests.benchmarks.activations` compares them).
    """
    for part in module.modules():
        if isinstance(part, Encoder):
            for block in part.blocks():
                # the slot of nn.Module.compile: copies of a module come without it,
                # and names in its state stay
                call = block._compiled_call_impl or block._call_impl
                block._compiled_call_impl = partial(checkpoint, call, use_reentrant=False)


class BlockStatistics:
    """The running statistics of the batch norms of encoders,
    which blocks that are computed again would count a second time.
    """

    def __init__(self, module: nn.Module) -> None:
        encoders = [part for part in module.modules() if isinstance(part, Encoder)]
        norms = {norm for encoder in encoders for norm in encoder.modules() if isinstance(norm, _BatchNorm)}
        self._buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self._values = [torch.empty_like(buffer) for buffer in self._buffers]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """They are the same afterwards as before."""
        if not self._buffers:
            yield
            return
        with torch.no_grad():
            torch._foreach_copy_(self._values, self._buffers)
        yield
        with torch.no_grad():
            torch._foreach_copy_(self._buffers, self._values)
