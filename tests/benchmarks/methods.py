"""Steps a second and peak memory of each method: relative to simclr, and to lightly's own loop of the method.

    python -m tests.benchmarks.methods PHOTOS [--methods simclr byol ...] [--repeats 3] [--steps 24]

PHOTOS holds `train` with a folder a class. Ours is `configs/pretrain/small/NAME.yaml`, run in-process from Parquet shards of
the photos as they are, images decoded anew in each epoch; lightly's is the loop of its documentation
(`tests.benchmarks.lightly_loops`) over the same photos as files, with as many DataLoader workers as there are cores. Same
encoder, batch, view sizes and head sizes. Each measurement is a process of its own; ours and lightly's take turns, and
the table shows medians. Memory is the peak of the process, for lightly with its loader's workers.
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
from collections import defaultdict
from pathlib import Path

CONFIGS = Path("configs/pretrain/small")
SIZE, LOCAL, BATCH, SKIP = 64, 24, 64, 4


def main(arguments: list[str] | None = None) -> None:
    """Measures in turns and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.methods", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--methods", nargs="+", default=sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--one", nargs=3, metavar=("WHOSE", "NAME", "SHARDS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        whose, name, shards = options.one
        measure = ours if whose == "ours" else lightly
        print(json.dumps(measure(name, shards, options.photos, options.steps)))
        return

    from pretrain.data.importing import ImportOptions, import_images

    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        import_images(str(options.photos / "train"), folder, ImportOptions(), show_progress=False)
        for _ in range(options.repeats):
            for name in options.methods:
                for whose in ("ours", "lightly"):
                    command = [sys.executable, "-m", "tests.benchmarks.methods", str(options.photos)]
                    command += ["--steps", str(options.steps), "--one", whose, name, folder]
                    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    found[whose, name].append(json.loads(printed.strip().splitlines()[-1]))
                    print(f"  {whose:8} {name:13} {found[whose, name][-1]}", flush=True)

    def median(whose: str, name: str, what: str) -> float:
        return statistics.median(numbers[what] for numbers in found[whose, name])

    base = "simclr" if "simclr" in options.methods else options.methods[0]
    print(
        f"\n{BATCH} images a step, {SIZE} pixels, {options.repeats} repeats of {options.steps} steps, {os.cpu_count()} cores"
    )
    print(f"{'':13}  {'steps/s':>7}  {'of ' + base:>9}  {'MiB':>5}  {'lightly':>7}  {'MiB':>5}  {'times lightly':>13}")
    for name in options.methods:
        speed, peer = 1 / median("ours", name, "seconds"), 1 / median("lightly", name, "seconds")
        share = speed * median("ours", base, "seconds")
        print(
            f"{name:13}  {speed:>7.2f}  {share:>9.2f}  {median('ours', name, 'mib'):>5.0f}"
            f"  {peer:>7.2f}  {median('lightly', name, 'mib'):>5.0f}  {speed / peer:>13.2f}"
        )


def ours(name: str, shards: str, photos: Path, steps: int) -> dict[str, float]:
    """Seconds of a step after the first few, and the peak of memory."""
    from cluster.place import place_here
    from cluster.settings import load_settings
    from pretrain.papers import defaults_of
    from pretrain.run import pretrain
    from pretrain.settings import PretrainSettings

    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            PretrainSettings,
            str(CONFIGS / f"{name}.yaml"),
            [
                f"data.url={shards}", f"out={folder}/run", "data.keep=none", "rankme_images=0", f"views.size={SIZE}",
                f"training.steps={SKIP + steps}", f"training.log_every_steps={SKIP}", f"training.batch_size_global={BATCH}",
            ],
            beneath=defaults_of,
        )  # fmt: skip
        with place_here() as place:
            pretrain(place, settings)
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = [BATCH / line["images_per_second"] for line in lines[1:]]
    return {"seconds": statistics.mean(seconds), "mib": _peak_mib()}


def lightly(name: str, shards: str, photos: Path, steps: int) -> dict[str, float]:
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
    seconds = seconds_per_step(
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
    return {"seconds": seconds, "mib": _peak_mib()}


def _peak_mib() -> float:
    # of itself and of the largest of its ended children, in KiB on Linux
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


if __name__ == "__main__":
    main()
