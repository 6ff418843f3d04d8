"""When, within the backward pass, are gradients ready,
so that ranks can average them while the rest is computed?

    python -m tests.benchmarks.overlap [--encoder convattn_small] [--ways eager whole blocks]

SimCLR's step on small views on one thread of the CPU: eager, with the encoder compiled as one graph, and
compiled block by block as training does. Printed: seconds of the first step (most of it the compiler's), and
where in the backward pass which share of the encoder's gradient bytes is ready.
"""

from __future__ import annotations

import argparse
import time

import torch

from pretrain.encoders import build_encoder
from pretrain.methods import build_method
from pretrain.training.recipe import compile_blocks

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9)
WAYS = ("eager", "whole", "blocks")
BATCH, SIDE, STEPS = 4, 96, 4


def main(arguments: list[str] | None = None) -> None:
    """Prints a line for each way."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overlap", description=__doc__)
    parser.add_argument("--encoder", default="convattn_small")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for way in options.ways:
        print(f"{way:7} {measured(options.encoder, way)}", flush=True)


def measured(encoder: str, way: str) -> str:
    """A line on one way of compiling."""
    torch._dynamo.reset()  # type: ignore[attr-defined]
    torch.manual_seed(0)
    method = build_method("simclr", build_encoder(encoder), {})
    if way == "whole":
        method.encoder.compile()
    elif way == "blocks":
        compile_blocks(method)
    ready: list[tuple[float, int]] = []
    for parameter in method.encoder.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p: ready.append((time.perf_counter(), p.numel()))
        )
    views = [torch.randn(BATCH, 3, SIDE, SIDE) for _ in range(2)]
    began = time.perf_counter()
    for step in range(STEPS):
        ready.clear()
        loss = method(views).loss
        start = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
        if step == 0:
            first = end - began
        method.zero_grad(set_to_none=True)
    whole, parts = sum(size for _, size in ready), []
    for share in FRACTIONS:
        done = 0
        for moment, size in ready:
            done += size
            if done >= share * whole:
                parts.append(f"{share:.0%} at {(moment - start) / (end - start):.0%}")
                break
    return (
        f"first step {first:5.1f} s, backward {1000 * (end - start):5.0f} ms; bytes ready: "
        f"{', '.join(parts)}"
    )


if __name__ == "__main__":
    main()
