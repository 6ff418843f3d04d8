"""How many bytes of an image autograd keeps for the backward pass, with activation checkpointing and without.

    python -m tests.benchmarks.activations [--encoders convattn_small ...] [--images 4] [--seconds]

Counted by `saved_tensors_hooks` at 224 pixels on the CPU, each storage once and parameters left out; in float32, and under
bfloat16 autocast, as on a GPU. `timm's own` is its `set_grad_checkpointing`, for comparison. `--seconds` adds those of a
forward and backward pass in float32 on one thread, the fastest of three.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.encoders import build_encoder
from pretrain.training.activation_checkpointing import checkpoint_blocks

ENCODERS = ("convattn_small", "convattn_base", "timm:resnet50", "timm:convnext_tiny", "timm:vit_small_patch16_224")
SIDE = 224


def main(arguments: list[str] | None = None) -> None:
    """Prints a line for each encoder and way."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.activations", description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--seconds", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"MiB of an image of {SIDE} pixels, {options.images} images")
    for name in options.encoders:
        ways: dict[str, Callable[[nn.Module], object]] = {"all": lambda encoder: None, "blocks": checkpoint_blocks}
        if name.startswith("timm:"):
            ways["timm's own"] = timms_own
        for way, change in ways.items():
            torch.manual_seed(0)
            encoder = build_encoder(name)
            change(encoder)
            images = torch.randn(options.images, 3, SIDE, SIDE)
            sizes = [saved_bytes(encoder, images, dtype) / options.images / 2**20 for dtype in (None, torch.bfloat16)]
            text = f"{name:28} {way:10} float32 {sizes[0]:6.1f}  bfloat16 {sizes[1]:6.1f}"
            if options.seconds:
                text += f"  {seconds(encoder, images):.2f} s"
            print(text, flush=True)


def saved_bytes(encoder: nn.Module, images: Tensor, autocast: torch.dtype | None = None) -> int:
    """Bytes that a forward pass keeps for the backward pass, images and parameters left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*encoder.parameters(), images)}
    saved: dict[int, Tensor] = {}  # kept alive here, so that no storage takes the place of another

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            saved[address] = tensor
        return tensor

    casting: Any = nullcontext() if autocast is None else torch.autocast("cpu", autocast)
    # the outputs are the method's to keep
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), casting:
        encoder.train()(images)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def timms_own(encoder: nn.Module) -> None:
    """timm's switch: of its feature extraction where that has one, else of the network inside."""
    network: Any = encoder.network
    (network if hasattr(network, "set_grad_checkpointing") else network.model).set_grad_checkpointing()


def seconds(encoder: nn.Module, images: Tensor) -> float:
    """Of a forward and backward pass, the fastest of three."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        encoder(images)[-1].square().mean().backward()
        found.append(time.perf_counter() - began)
    return min(found)


if __name__ == "__main__":
    main()
