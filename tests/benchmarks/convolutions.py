"""What it brings to compute 1x1 convolutions as matrix products, and small depthwise ones over a padded map.

    python -m tests.benchmarks.convolutions [--encoder convattn_nano] [--size 64] [--batch 128]
        [--repeats 9] [--threads 1]

A step (forward, backward) and a forward without gradient of the encoder, with `PointwiseConv` and
`DepthwiseConv` as they are and as `torch.nn.Conv2d`, in turn;
milliseconds of CPU, medians, and the median of the ratios turn by turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from unittest.mock import patch

import torch
from torch import nn

from pretrain.encoders import Encoder, build_encoder
from pretrain.encoders.layers import DepthwiseConv, PointwiseConv

KINDS: dict[str, tuple[type[nn.Conv2d], ...]] = {
    "both as nn.Conv2d": (PointwiseConv, DepthwiseConv),
    "pointwise as nn.Conv2d": (PointwiseConv,),
    "depthwise as nn.Conv2d": (DepthwiseConv,),
    "as they are": (),
}


def main(arguments: list[str] | None = None) -> None:
    """Measures in turns and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.convolutions", description=__doc__)
    parser.add_argument("--encoder", default="convattn_nano")
    parser.add_argument(
        "--arguments", type=json.loads, default={"stem_stride": 4}, help="of the encoder, as JSON"
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    encoder = build_encoder(options.encoder, **options.arguments)
    images = torch.randn(options.batch, 3, options.size, options.size).contiguous(
        memory_format=torch.channels_last
    )
    spent: dict[tuple[str, str], list[float]] = {}
    for turn in range(options.repeats + 1):  # the first warms up
        for kind, plain in KINDS.items():
            with _as_conv2d(plain):
                for name, work in (("step", _step), ("forward", _forward)):
                    before = time.process_time()
                    work(encoder, images)
                    if turn:
                        spent.setdefault((kind, name), []).append(time.process_time() - before)
    print(f"{options.encoder} {options.arguments}, {options.batch} images of {options.size} pixels, "
          f"{options.threads} thread(s), torch {torch.__version__}")  # fmt: skip
    print(f"{'':24} {'step, ms':>10} {'ratio':>7} {'forward, ms':>12} {'ratio':>7}")
    for kind in KINDS:
        cells = []
        for name in ("step", "forward"):
            ours = spent["as they are", name]
            ratio = statistics.median(a / b for a, b in zip(spent[kind, name], ours, strict=True))
            cells += [1000 * statistics.median(spent[kind, name]), ratio]
        print(f"{kind:24} {cells[0]:>10.0f} {cells[1]:>7.2f} {cells[2]:>12.0f} {cells[3]:>7.2f}")


@contextlib.contextmanager
def _as_conv2d(kinds: tuple[type[nn.Conv2d], ...]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(patch.object(kind, "forward", nn.Conv2d.forward))
        yield


def _step(encoder: Encoder, images: torch.Tensor) -> None:
    encoder(images)[-1].square().mean().backward()
    encoder.zero_grad(set_to_none=True)


def _forward(encoder: Encoder, images: torch.Tensor) -> None:
    with torch.no_grad():
        encoder(images)


if __name__ == "__main__":
    main()
