"""How many bytes of an image autograd keeps for the backward pass,
with activation checkpointing and without.

    python -m tests.benchmarks.activations [--encoders convattn_small ...] [--images 2] [--seconds]

Counted by `saved_tensors_hooks` at 224 pixels, each storage once and parameters left out; in float32 on the
CPU, and in eager bfloat16 autocast on fake CUDA tensors, which need no GPU. Per image: the difference
between one image and some more, so that copies of weights do not count. With checkpointing, what is kept and
what the largest part takes while it is computed again. `timm's own` is its `set_grad_checkpointing`, for
comparison. `--seconds` adds CPU seconds of a forward and backward pass in float32 on one thread,
the fewest of three.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.cuda.amp import common

from pretrain.encoders import Encoder, build_encoder
from pretrain.training.activation_checkpointing import checkpoint_blocks

ENCODERS = (
    "convattn_small",
    "convattn_base",
    "timm:resnet50",
    "timm:convnext_tiny",
    "timm:vit_small_patch16_224",
)
SIDE = 224
ALL, BLOCKS, TIMMS = "all", "blocks", "timm's own"


def main(arguments: list[str] | None = None) -> None:
    """Prints a line for each encoder and way."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.activations", description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--seconds", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(
        f"MiB of an image of {SIDE} pixels: kept + of the largest part that is computed again; torch "
        f"{torch.__version__}"
    )
    for name in options.encoders:
        for way in (ALL, BLOCKS, *[TIMMS] * name.startswith("timm:")):
            # on fake tensors at last: they do not come back
            encoder, changed = build_encoder(name), made(name, way)
            parts = {ALL: lambda encoder: [], BLOCKS: Encoder.blocks, TIMMS: timms_parts}[way](encoder)
            text = f"{name:28} {way:10}"
            time_taken = (
                f"  {seconds(changed, torch.randn(options.images, 3, SIDE, SIDE)):.2f} s"
                if options.seconds
                else ""
            )
            for dtype, on_cuda in (("float32", False), ("bfloat16", True)):
                _, again = _per_image(encoder, parts, options.images, on_cuda=on_cuda)
                kept, _ = _per_image(changed, [], options.images, on_cuda=on_cuda)
                text += f"  {dtype} {kept:6.1f} + {again:5.1f}"
            print(text + time_taken, flush=True)


def made(name: str, way: str) -> Encoder:
    """An encoder that is checkpointed in this way."""
    encoder = build_encoder(name)
    if way == BLOCKS:
        checkpoint_blocks(encoder)
    elif way == TIMMS:
        timms_own(encoder)
    return encoder


def _per_image(
    encoder: Encoder, parts: Sequence[nn.Module], num_images: int, *, on_cuda: bool
) -> tuple[float, float]:
    """MiB that one more image makes the encoder keep, and the largest of its parts."""
    found = []
    with fake_cuda(encoder) if on_cuda else nullcontext("cpu") as device:
        for num in (1, 1 + num_images):
            sizes = dict.fromkeys(parts, 0)
            found.append(
                (saved_bytes(encoder, torch.empty(num, 3, SIDE, SIDE, device=device), sizes), sizes)
            )
    (few, few_sizes), (many, many_sizes) = found
    largest = max((many_sizes[part] - few_sizes[part] for part in parts), default=0)
    return (many - few) / num_images / 2**20, largest / num_images / 2**20


@contextmanager
def fake_cuda(encoder: nn.Module) -> Iterator[str]:
    """Inside, tensors have no content, and the encoder's are on a CUDA device that is not there,
    under bfloat16 autocast.
    """
    with (
        patch.object(common, "amp_definitely_not_available", lambda: False),
        patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.autocast("cuda", torch.bfloat16),
    ):
        for module in encoder.modules():
            for own in (module._parameters, module._buffers):
                for name, tensor in list(own.items()):
                    if tensor is not None:
                        fake = torch.empty_strided(
                            tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cuda:0"
                        )
                        own[name] = nn.Parameter(fake) if isinstance(tensor, nn.Parameter) else fake  # type: ignore[assignment]
        yield "cuda:0"


def saved_bytes(encoder: nn.Module, images: Tensor, of_parts: dict[nn.Module, int] | None = None) -> int:
    """Bytes that a forward pass keeps for the backward pass, images and parameters left out;
    `of_parts` are filled in.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*encoder.parameters(), images)}
    saved: dict[
        int, tuple[int, Tensor]
    ] = {}  # tensors are kept alive, so that no storage takes the place of another
    of_parts = {} if of_parts is None else of_parts

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes(), tensor
        return tensor

    def total() -> int:
        return sum(num_bytes for num_bytes, _ in saved.values())

    def begin(part: nn.Module, _: Any) -> None:
        of_parts[part] -= total()

    def end(part: nn.Module, *_: Any) -> None:
        of_parts[part] += total()

    hooks = [
        hook
        for part in of_parts
        for hook in (part.register_forward_pre_hook(begin), part.register_forward_hook(end))
    ]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder.train()(images)
    for hook in hooks:
        hook.remove()
    return total()


def timms_own(encoder: nn.Module) -> None:
    """timm's switch: of its feature extraction where that has one, else of the network inside."""
    network: Any = encoder.network
    (network if hasattr(network, "set_grad_checkpointing") else network.model).set_grad_checkpointing()


def timms_parts(encoder: nn.Module) -> list[nn.Module]:
    """What that computes again: the children but the first and the last,
    or the blocks of the network inside.
    """
    network: Any = encoder.network
    return (
        list(network.children())[1:-1]
        if hasattr(network, "set_grad_checkpointing")
        else list(network.model.blocks)
    )


def seconds(encoder: nn.Module, images: Tensor) -> float:
    """CPU seconds of a forward and backward pass, the fewest of three."""
    found = []
    for _ in range(3):
        began = time.process_time()
        encoder(images)[-1].square().mean().backward()
        found.append(time.process_time() - began)
    return min(found)


if __name__ == "__main__":
    main()
