"""What attention over maps costs as maps grow: seconds against pixels, and the exponent of the growth.

    python -m tests.benchmarks.attention_cost [--threads 1] [--repeats 5] [--device cpu]

Three layers with the same projections are timed, forward and backward, on square maps of growing side:
- all keys: every position is a key, the cost grows with the square of the pixels;
- kv_stride 4: sixteen times fewer keys, still quadratic, so the saving is a factor and no change of the
  exponent;
- max_keys: the stride grows with the map, so that a query never sees more than so many keys and the cost is
  near linear.
The exponent b is the slope of log(seconds) over log(pixels) on the larger half of the maps, where the
attention itself and not the overhead of a call is what takes time. For noisy machines rounds are
interleaved, the fastest counts, and on CPUs it is processor time that is measured,
not the clock on the wall.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np
import torch

from pretrain.encoders.layers import ConvolutionalAttention

CHANNELS, HEADS, BATCH = 64, 2, 2
SIDES = (16, 24, 32, 48, 64, 96)
VARIANTS: dict[str, dict[str, int]] = {
    "all keys": {},
    "kv_stride 4": {"kv_stride": 4},
    "max_keys 256": {"max_keys": 256},
}


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measures, prints the table, and returns the exponent of each variant."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.attention_cost", description=__doc__)
    parser.add_argument(
        "--sides", type=int, nargs="+", default=SIDES, help="sides of the square maps, rising"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        seconds = measured(options.sides, repeats=options.repeats, device=torch.device(options.device))
    finally:
        torch.set_num_threads(threads_before)

    print(
        f"ConvolutionalAttention({CHANNELS}, heads={HEADS}), batch {BATCH}, forward and backward, "
        f"{options.device}, {options.threads} thread(s), torch {torch.__version__}: milliseconds"
    )
    print(f"{'pixels':>14}" + "".join(f"{side * side:>10,}" for side in options.sides) + "  exponent")
    exponents = {}
    for variant, row in seconds.items():
        exponents[variant] = exponent([side * side for side in options.sides], row)
        print(
            f"{variant:>14}"
            + "".join(f"{1000 * value:>10.1f}" for value in row)
            + f"{exponents[variant]:>10.2f}"
        )
    return exponents


def measured(sides: Sequence[int], *, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """The fastest of `repeats` calls, in seconds, of each variant at each side."""
    torch.manual_seed(0)
    layers = {name: ConvolutionalAttention(CHANNELS, HEADS, **options) for name, options in VARIANTS.items()}
    fastest = {name: [math.inf] * len(sides) for name in VARIANTS}
    for layer in layers.values():
        layer.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for index, side in enumerate(sides):
        x_BCHW = torch.randn(BATCH, CHANNELS, side, side, device=device).to(
            memory_format=torch.channels_last
        )
        for repeat in range(repeats + 1):
            for name, layer in layers.items():
                took = seconds_of(layer, x_BCHW)
                if repeat > 0:  # the first call warms up
                    fastest[name][index] = min(fastest[name][index], took)
    return fastest


def seconds_of(layer: torch.nn.Module, x_BCHW: torch.Tensor) -> float:
    """One forward and backward."""
    clock = time.process_time if x_BCHW.device.type == "cpu" else time.perf_counter
    _wait_for(x_BCHW.device)
    started = clock()
    layer(x_BCHW).sum().backward()
    _wait_for(x_BCHW.device)
    layer.zero_grad(set_to_none=True)
    return clock() - started


def exponent(pixels: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope b of seconds = a * pixels^b, by least squares on the larger
    half of the points (at least two).
    """
    half = min(len(pixels) // 2, len(pixels) - 2)
    slope, _ = np.polyfit(np.log(pixels[half:]), np.log(seconds[half:]), 1)
    return float(slope)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
