"""Images a second of one and two workers under Ray and under torchrun, and a model of what 64 GPUs would do.

    python -m tests.benchmarks.scaling SHARDS [--steps 60] [--batch 32] [--size 48] [--repeats 2]
    python -m tests.benchmarks.scaling --model

The same worker function (`pretrain.run.pretrain`) runs under both, one thread a worker, interleaved so that
a noisy machine is noisy for both; medians over the steps from the tenth on.
The global batch is the same for one and two workers.

The model is arithmetic on paper; its assumptions are the arguments of
`modelled` and stand in cluster/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed
from torch.utils.flop_counter import FlopCounterMode

from cluster.errors import run_command
from cluster.settings import load_settings
from cluster.training.rank_context import RankContext
from pretrain.encoders import build_encoder
from pretrain.papers import defaults_of
from pretrain.run import pretrain
from pretrain.settings import PretrainSettings

CONFIG = "configs/pretrain/small/simclr.yaml"
WARM_UP_STEPS = 10


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints; under torchrun it is one of the workers."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scaling", description=__doc__)
    parser.add_argument("shards", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", action="store_true", help="prints the model of 64 GPUs")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        run_worker(options.worker)
    elif options.model:
        print_model()
    elif options.shards is None:
        parser.error("give SHARDS or --model")
    else:
        compare(options)


# -- measured: Ray beside torchrun --------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> None:
    seconds: dict[tuple[str, int], list[float]] = {}
    for repeat in range(options.repeats):
        kinds = [("ray", 1), ("torchrun", 1), ("ray", 2), ("torchrun", 2)]
        for kind in kinds if repeat % 2 == 0 else kinds[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                steps = measured(*kind, options, Path(folder) / "run")
            seconds.setdefault(kind, []).extend(steps)
            rate = options.batch / statistics.median(steps)
            print(f"{kind[0]:9} {kind[1]} workers: {rate:.1f} images/s", flush=True)
    print()
    for workers in (1, 2):
        ray, torchrun = (
            options.batch / statistics.median(seconds[kind, workers]) for kind in ("ray", "torchrun")
        )
        print(f"{workers} workers: Ray {ray:.1f} images/s, torchrun {torchrun:.1f} images/s, ratio "
              f"{ray / torchrun:.3f} "
              f"(medians of {len(seconds['ray', workers])} steps each)")  # fmt: skip
    one, two = (options.batch / statistics.median(seconds["ray", workers]) for workers in (1, 2))
    print(f"two workers over one, under Ray: {two / one:.2f}")


def measured(kind: str, workers: int, options: argparse.Namespace, out: Path) -> list[float]:
    """Seconds of each step of a run."""
    overrides = [
        f"data.url={options.shards.absolute()}", f"out={out}", f"training.batch_size_global={options.batch}",
        f"training.steps={options.steps}", "training.log_every_steps=1", f"views.size={options.size}",
        "data.keep=none", "rankme_images=0", f"cluster.workers={workers}", "cluster.cpus_per_worker=1",
        "data.decode_threads=1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "pretrain", CONFIG, *overrides]
    if kind == "torchrun":
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}",
            "-m", "tests.benchmarks.scaling", "--worker", *overrides,
        ]  # fmt: skip
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stdout}")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [options.batch / json.loads(line)["images_per_second"] for line in lines[WARM_UP_STEPS:]]


def run_worker(overrides: list[str]) -> None:
    """What each process of torchrun does: a process group, a context, and the same function."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    settings = load_settings(PretrainSettings, CONFIG, overrides, beneath=defaults_of)
    context = RankContext(rank, world_size, torch.device("cpu"))
    sys.exit(run_command(lambda: pretrain(context, settings) and None))


# -- modelled: 64 GPUs --------------------------------------------------------------------------------------


def modelled(
    num_gpus: int,
    *,
    step_seconds: float,
    gradient_bytes: float,
    network_bytes_per_second: float,
    gpus_per_node: int = 8,
    nvlink_bytes_per_second: float = 200e9,
    bucket_bytes: float = 25 * 2**20,
    latency_seconds: float = 20e-6,
    backward_fraction: float = 2 / 3,
    overlap: float = 0.8,
    jitter: float = 0.01,
) -> float:
    """Seconds of a step on so many GPUs with the same batch a GPU.

    Gradients are averaged by rings, first inside a node, then between nodes (2 (n - 1) / n of the bytes over
    the slowest link of each), while the backward pass runs: a share `overlap` of it can hide them, but not
    the last bucket. Each step waits for the slowest GPU, whose steps scatter normally by `jitter`:
    sqrt(2 ln n) deviations for n GPUs.
    """
    if num_gpus == 1:
        return step_seconds
    inside = min(num_gpus, gpus_per_node)
    nodes = math.ceil(num_gpus / gpus_per_node)

    def ring(num_bytes: float) -> float:
        seconds = (
            2 * (inside - 1) / inside * num_bytes / nvlink_bytes_per_second
            + 2 * (inside - 1) * latency_seconds
        )
        between = (
            2 * (nodes - 1) / nodes * num_bytes / network_bytes_per_second
            + 2 * (nodes - 1) * latency_seconds
        )
        return seconds + between

    num_buckets = max(1, math.ceil(gradient_bytes / bucket_bytes))
    bucket = ring(gradient_bytes / num_buckets)
    hidden = overlap * backward_fraction * step_seconds
    exposed = max(bucket, num_buckets * bucket - hidden)
    return step_seconds * (1 + jitter * math.sqrt(2 * math.log(num_gpus))) + exposed


def print_model(name: str = "convattn_small", batch: int = 128, size: int = 224) -> None:
    """The table of cluster/README.md: gradient bytes and work are measured on the network,
    the rest is assumed.
    """
    encoder = build_encoder(name).eval()
    gradient_bytes = 4 * sum(parameter.numel() for parameter in encoder.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 3, size, size))
    flops = 3 * 2 * batch * counter.get_total_flops()  # forward and backward of two views
    print(
        f"{name} at {size} pixels: {gradient_bytes / 1e6:.0f} MB of gradients, "
        f"{counter.get_total_flops() / 1e9:.1f} GFLOP forward an image"
    )
    for reached in (100e12, 300e12):
        step = flops / reached
        print(
            "\n"
            f"{reached / 1e12:.0f} TFLOP/s reached: a step of {batch} images a GPU takes {1000 * step:.0f} "
            f"ms, {batch / step:,.0f} images/s"
        )
        for label, network in (("25 Gbit/s", 25e9 / 8), ("400 Gbit/s", 400e9 / 8)):
            parts = []
            for num_gpus in (1, 8, 16, 32, 64):
                seconds = modelled(
                    num_gpus,
                    step_seconds=step,
                    gradient_bytes=gradient_bytes,
                    network_bytes_per_second=network,
                )
                parts.append(f"{num_gpus}: {num_gpus * batch / seconds:,.0f} ({step / seconds:.2f})")
            print(f"  {label} a node, GPUs: images/s (efficiency)  " + "  ".join(parts))


if __name__ == "__main__":
    main()
