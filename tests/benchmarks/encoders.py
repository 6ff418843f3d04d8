"""Encoder bake-off: the same method and views for the same training time, then kNN and a linear probe.

    python -m tests.benchmarks.encoders PHOTOS [key=value ...] [--seconds 120] [--seeds 0] [--jobs 1]
        [--only NAME ...]

PHOTOS holds `train` and `test`, each with a folder a class. Every run is
`configs/pretrain/small/simclr.yaml` in a process of its own with one thread, with the encoder exchanged; a
first run of some steps measures the seconds of CPU of a step, and the second gets as many steps as fit the
time, with its whole schedule. Scores are on the test split, from features of the train split. Time is that
of the CPU, so that other programs on the machine count little;
with `--jobs 2` two encoders train beside each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pretrain.data.packing.importing import ImportOptions, import_images
from tests.benchmarks.cpu_time import cpu_seconds

STEM: dict[str, Any] = {"stem_stride": 4}
FIRST: dict[str, Any] = STEM | {
    "attention_from": 3
}  # the family's default until these runs; what was tried beside it
# label -> encoder and its arguments; the family's default first, then what was tried,
# then other people's networks
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "convattn_nano": ("convattn_nano", STEM),
    "nano, one more attention block": ("convattn_nano", STEM | {"depths": [1, 1, 3, 2]}),
    "nano, deeper stage 3": ("convattn_nano", STEM | {"depths": [1, 1, 6, 1]}),
    "nano, no attention": ("convattn_nano", STEM | {"attention_from": 5}),
    "nano, attention from 2": ("convattn_nano", STEM | {"attention_from": 2}),
    "nano, attention from 3": ("convattn_nano", FIRST),
    "from 3, MLP ratio 2": ("convattn_nano", FIRST | {"mlp_ratio": 2}),
    "from 3, stem stride 2": ("convattn_nano", FIRST | {"stem_stride": 2}),
    "from 3, batch norm": ("convattn_nano", FIRST | {"norm": "batch"}),
    "from 3, kernel 5": ("convattn_nano", FIRST | {"kernel_size": 5}),
    "from 3, kernel 7": ("convattn_nano", FIRST | {"kernel_size": 7}),
    "from 3, heads of 16": ("convattn_nano", FIRST | {"head_dim": 16}),
    "from 3, heads of 64": ("convattn_nano", FIRST | {"head_dim": 64}),
    "from 3, K and V stride 2": ("convattn_nano", FIRST | {"kv_stride": 2}),
    "from 3, deeper": ("convattn_nano", FIRST | {"depths": [2, 2, 4, 2]}),
    "from 3, wider": ("convattn_nano", FIRST | {"dims": [32, 80, 160, 256]}),
    "convattn_tiny": ("convattn_tiny", STEM),
    "tiny, attention from 3": ("convattn_tiny", FIRST | {"depths": [2, 2, 5, 2]}),
    "resnet18": ("timm:resnet18", {}),
    "convnext_atto": ("timm:convnext_atto", {}),
    "convnext_femto": ("timm:convnext_femto", {}),
    "mobilevit_xxs": ("timm:mobilevit_xxs", {}),
    "mobilevitv2_050": ("timm:mobilevitv2_050", {}),
    "coatnet_nano_rw": ("timm:coatnet_nano_rw_224", {"img_size": 64}),
    "maxvit_rmlp_pico_rw": ("timm:maxvit_rmlp_pico_rw_256", {"img_size": 64}),
    "vit_tiny, patch 16": ("timm:vit_tiny_patch16_224", {}),
}
REHEARSAL, LINE = 36, 6


def main(arguments: list[str] | None = None) -> None:
    """Runs them and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.encoders", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args(arguments)
    if options.one:
        print(json.dumps(trained(overrides)))
        return

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as jobs:
        for split in ("train", "test"):
            packed = ImportOptions(short_side=160)
            import_images(str(options.photos / split), f"{folder}/{split}", packed, show_progress=False)

        def scored(label: str) -> tuple[str, dict[str, float]]:
            scores = [_scored(folder, label, seed, options, overrides) for seed in options.seeds]
            row = {key: statistics.mean(score[key] for score in scores) for key in scores[0]}
            print(_line(label, row), flush=True)
            return label, row

        rows = list(jobs.map(scored, options.only))
    print(f"\n{options.seconds:.0f} s of CPU each, seeds {options.seeds}\n{_line('encoder', None)}")
    for label, row in sorted(rows, key=lambda item: -item[1]["linear"]):
        print(_line(label, row))


def _scored(
    folder: str, label: str, seed: int, options: argparse.Namespace, overrides: list[str]
) -> dict[str, float]:
    """Speed and scores of an encoder that trained for the time."""
    name, arguments = ENCODERS[label]
    given = [
        f"data.url={folder}/train", f"seed={seed}", f"encoder.name={name}",
        "encoder.arguments=" + json.dumps(arguments), f"training.log_every_steps={LINE}", *overrides,
    ]  # fmt: skip
    trial = _in_a_process(options.photos, [*given, f"training.steps={REHEARSAL}", "rankme_images=0"])
    steps = max(REHEARSAL, round(options.seconds / trial["cpu_seconds"]))
    knn = [f"knn.train_url={folder}/train", f"knn.test_url={folder}/test", "knn.every_epochs=0"]
    return _in_a_process(options.photos, [*given, *knn, f"training.steps={steps}"]) | {"steps": steps}


def _in_a_process(photos: Path, settings: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.encoders", str(photos), "--one", *settings]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-1000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def trained(overrides: list[str]) -> dict[str, float]:
    """Seconds of CPU of a step, and the scores, of one run in this process."""
    from cluster.settings import load_settings
    from cluster.training.rank_context import local_context
    from pretrain.papers import defaults_of
    from pretrain.run import pretrain
    from pretrain.settings import PretrainSettings

    readings: list[tuple[int, float]] = []  # step and seconds of CPU at each line of the log

    def read(record: dict[str, Any]) -> None:
        if "step" in record:
            readings.append((record["step"], cpu_seconds()))

    with tempfile.TemporaryDirectory() as out:
        settings = load_settings(
            PretrainSettings,
            "configs/pretrain/small/simclr.yaml",
            [*overrides, f"out={out}/run"],
            beneath=defaults_of,
        )
        with local_context(read) as context:
            metrics = pretrain(context, settings)["metrics"]
    lines = readings[: REHEARSAL // LINE]  # the last line of a long run comes after its evaluation
    (first, cpu), (last, end) = lines[len(lines) // 2], lines[-1]
    return {
        "cpu_seconds": (end - cpu) / (last - first),  # the first epoch decodes, and warms up
        "knn": metrics.get("knn_accuracy", 0.0),
        "linear": metrics.get("linear_accuracy", 0.0),
        "rankme": metrics.get("rankme", 0.0),
    }


def _line(label: str, row: dict[str, float] | None) -> str:
    if row is None:
        return f"{label:30}  {'CPU ms/step':>11}  {'steps':>5}  {'kNN':>6}  {'linear':>6}  {'RankMe':>6}"
    return (
        f"{label:30}  {1000 * row['cpu_seconds']:>11.0f}  {row['steps']:>5.0f}  {row['knn']:>6.1%}  "
        f"{row['linear']:>6.1%}  {row['rankme']:>6.1f}"
    )


if __name__ == "__main__":
    main()
