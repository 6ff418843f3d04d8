"""timm's networks, one small one of each family:
whether fine-tuning can begin with it at 64 pixels and at its own size.

    python -m tests.benchmarks.networks [--size 64] [--only MODULE ...]

Each is opened as `encoder=random:timm:NAME image_size=SIZE` opens it, computes its maps, and takes one step.
What comes is `ok` with the strides of its maps (and `img_size` where the network had to be made for the
size), or the line that a user would get. A traceback is a fault.
"""

from __future__ import annotations

import argparse
import gc
import re
import time

import timm
import torch

from cluster.errors import UserError
from pretrain.encoders.sources import open_encoder
from pretrain.encoders.timm_weights import fresh_size

SMALL = (
    "atto",
    "femto",
    "pico",
    "nano",
    "micro",
    "xxs",
    "xxt",
    "xs",
    "s0",
    "n0",
    "tiny",
    "_t",
    "small",
    "_s",
    "lite",
)
TRIED = 4  # networks of a family whose parameters are counted
LARGEST = 60e6  # parameters; what is larger is left out, for memory


def smallest_of(module: str) -> str | None:
    """The network of a family with the fewest parameters, of those whose names promise few."""

    def rank(name: str) -> tuple[int, int, int]:
        words = next((number for number, word in enumerate(SMALL) if word in name), len(SMALL))
        numbers = [int(number) for number in re.findall(r"\d+", name)]
        return words, min(numbers, default=0), len(name)

    counted = {}
    for name in sorted(timm.list_models(module=module), key=rank)[:TRIED]:
        with torch.device("meta"):
            try:
                counted[name] = sum(
                    one.numel() for one in timm.create_model(name, num_classes=0).parameters()
                )
            except Exception:
                continue
    return min(counted, key=counted.__getitem__) if counted and min(counted.values()) <= LARGEST else None


def outcome(name: str, size: int) -> str:
    """What happens when fine-tuning begins with the network at a size."""
    torch.manual_seed(0)
    try:
        encoder = open_encoder(f"random:timm:{name}", "", {}, image_size=size).encoder
    except UserError as error:
        return f"refused: {error}"
    try:
        encoder.train()
        last = encoder(torch.randn(2, encoder.in_channels, size, size))[-1]
        last.square().mean().backward()
        torch.optim.SGD(encoder.parameters(), 0.01).step()
        finite = bool(torch.isfinite(last).all())
    except Exception as error:
        return f"FAULT: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
    made = f", img_size={size}" if encoder.spec["arguments"].get("img_size") == size else ""
    return f"{'ok' if finite else 'NOT FINITE'}, strides {'/'.join(map(str, encoder.strides))}{made}"


def main(arguments: list[str] | None = None) -> None:
    """Prints a line for each family and size."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.networks", description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"timm {timm.__version__}, torch {torch.__version__}")
    print(f"| family | network | at {options.size} | at its own size |\n|---|---|---|---|")
    started, told = time.monotonic(), []
    for module in options.only or sorted(timm.list_modules()):
        name = smallest_of(module)
        if name is None:
            print(f"| {module} | none below {LARGEST / 1e6:.0f} M parameters | | |", flush=True)
            continue
        own = fresh_size(f"timm:{name}") or 224
        here, there = outcome(name, options.size), f"{own}: {outcome(name, own)}"
        told += [here, there]
        print(f"| {module} | {name} | {here} | {there} |", flush=True)
        gc.collect()
    counts = {word: sum(word in one for one in told) for word in ("ok", "refused", "FAULT", "NOT FINITE")}
    print(f"{counts} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
