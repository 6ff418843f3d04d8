"""Steps a second and peak memory of each method:
relative to simclr, and to lightly's own loop of the method.

    python -m tests.benchmarks.methods PHOTOS [--methods simclr byol ...] [--repeats 3] [--steps 24]
        [--keep host]

PHOTOS holds `train` with a folder a class. Ours is `configs/pretrain/small/NAME.yaml`, run in-process from
Parquet shards of the photos as they are, images decoded anew in each epoch, or with `--keep host`, as those
files say, in the first only; lightly's is the loop of its documentation (`tests.benchmarks.lightly_loops`)
over the same photos as files, with as many DataLoader workers as there are cores. Same encoder, batch, view
sizes and head sizes. Each measurement is a process of its own; ours and lightly's take turns, and the table
shows medians. Memory is the peak of the process, for lightly plus that of the largest of its loader's
workers. Seconds of CPU are those of all threads and workers,
and say more than the clock on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.benchmarks.cpu_time import cpu_seconds

CONFIGS = Path("configs/pretrain/small")
SIZE, LOCAL, BATCH, SKIP = 64, 24, 64, 4


def main(arguments: list[str] | None = None) -> None:
    """Measures in turns and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.methods", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--methods", nargs="+", default=sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument(
        "--keep",
        choices=["none", "host"],
        default="none",
        help="data.keep of ours; the first epoch is left out",
    )
    parser.add_argument("--one", nargs=3, metavar=("WHOSE", "NAME", "SHARDS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        whose, name, shards = options.one
        numbers = (
            ours(name, shards, options.steps, options.keep)
            if whose == "ours"
            else lightly(name, options.photos, options.steps)
        )
        print(json.dumps(numbers))
        return

    from pretrain.data.packing.importing import ImportOptions, import_images

    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        import_images(str(options.photos / "train"), folder, ImportOptions(), show_progress=False)
        for _ in range(options.repeats):
            for name in options.methods:
                for whose in ("ours", "lightly"):
                    command = [sys.executable, "-m", "tests.benchmarks.methods", str(options.photos)]
                    command += [
                        "--steps",
                        str(options.steps),
                        "--keep",
                        options.keep,
                        "--one",
                        whose,
                        name,
                        folder,
                    ]
                    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    found[whose, name].append(json.loads(printed.strip().splitlines()[-1]))
                    print(f"  {whose:8} {name:13} {found[whose, name][-1]}", flush=True)

    def median(whose: str, name: str, what: str) -> float:
        return statistics.median(numbers[what] for numbers in found[whose, name])

    base = "simclr" if "simclr" in options.methods else options.methods[0]
    print(
        "\n"
        f"{BATCH} images a step, {SIZE} pixels, {options.repeats} repeats of {options.steps} steps, "
        f"{os.cpu_count()} cores"
    )
    print(
        "CPU: seconds of all threads a step; MiB: peak; `of`: relative to ours of that method; `times`: "
        "lightly over ours"
    )
    print(
        f"{'':13} {'ours: CPU':>9} {'of ' + base:>9} {'steps/s':>7} {'of ' + base:>9} {'MiB':>5} "
        f"{'of ' + base:>9} {'lightly: CPU':>12} {'steps/s':>7} {'MiB':>5} {'times CPU':>9} "
        f"{'times clock':>11}"
    )
    what = ("cpu_seconds", "seconds", "mib")
    base_cpu, base_clock, base_mib = (median("ours", base, quantity) for quantity in what)
    for name in options.methods:
        cpu, clock, mib = (median("ours", name, quantity) for quantity in what)
        their_cpu, their_clock, their_mib = (median("lightly", name, quantity) for quantity in what)
        print(
            f"{name:13} {cpu:>9.2f} {cpu / base_cpu:>9.2f} {1 / clock:>7.2f} {base_clock / clock:>9.2f} "
            f"{mib:>5.0f} {mib / base_mib:>9.2f} {their_cpu:>12.2f} {1 / their_clock:>7.2f} "
            f"{their_mib:>5.0f} {their_cpu / cpu:>9.2f} {their_clock / clock:>11.2f}"
        )


def ours(name: str, shards: str, steps: int, keep: str) -> dict[str, float]:
    """Seconds of a step after the first few, by the clock and of CPU, and the peak of memory."""
    from cluster.settings import load_settings
    from cluster.training.rank_context import local_context
    from pretrain.papers import defaults_of
    from pretrain.run import pretrain
    from pretrain.settings import PretrainSettings

    skip = SKIP * (6 if keep == "host" else 1)  # an epoch of 1,347 photos are 21 steps
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            PretrainSettings,
            str(CONFIGS / f"{name}.yaml"),
            [
                f"data.url={shards}", f"out={folder}/run", f"data.keep={keep}", "rankme_images=0",
                f"views.size={SIZE}",
                f"training.steps={skip + steps}", f"training.log_every_steps={SKIP}",
                f"training.batch_size_global={BATCH}",
            ],
            beneath=defaults_of,
        )  # fmt: skip
        readings: dict[int, tuple[float, float]] = {}  # step -> clock and CPU

        def read(record: dict[str, Any]) -> None:
            readings[record.get("step", 0)] = time.perf_counter(), cpu_seconds()

        with local_context(read) as context:
            pretrain(context, settings)
    (clock, cpu), (end_clock, end_cpu) = readings[skip], readings[skip + steps]
    return {
        "seconds": (end_clock - clock) / steps,
        "cpu_seconds": (end_cpu - cpu) / steps,
        "mib": _peak_mib(),
    }


def lightly(name: str, photos: Path, steps: int) -> dict[str, float]:
    """The same of lightly's loop."""
    import torch

    from cluster.settings import load_settings
    from pretrain.encoders import build_encoder
    from pretrain.papers import defaults_of
    from pretrain.settings import PretrainSettings
    from tests.benchmarks.lightly_loops import seconds_per_step

    given = ["data.url=none", "out=none"]
    settings = load_settings(PretrainSettings, str(CONFIGS / f"{name}.yaml"), given, beneath=defaults_of)
    torch.manual_seed(0)
    encoder = build_encoder(settings.encoder.name, **settings.encoder.arguments)
    seconds, cpu = seconds_per_step(
        name,
        encoder,
        str(photos / "train"),
        size=SIZE,
        local=LOCAL,
        batch=BATCH,
        workers=os.cpu_count() or 1,
        steps=steps,
        skip=SKIP,
    )
    return {"seconds": seconds, "cpu_seconds": cpu, "mib": _peak_mib()}


def _peak_mib() -> float:
    # of itself and of the largest of its ended children, in KiB on Linux
    return (
        sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        / 1024
    )


if __name__ == "__main__":
    main()
