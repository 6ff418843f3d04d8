"""Encoder bake-off: the same method and views for the same training time, then kNN and a linear probe.

    python -m tests.benchmarks.encoders PHOTOS [--seconds 120] [--seeds 0] [--only NAME ...] [key=value ...]

PHOTOS holds `train` and `test`, each with a folder a class. Every run is `configs/pretrain/small/simclr.yaml` in a process of
its own, with the encoder exchanged; a first run of some steps measures its speed, and the second gets as many steps as fit the
time, with its whole schedule. Scores are on the test split, from features of the train split.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pretrain.data.importing import ImportOptions, import_images

STEM: dict[str, Any] = {"stem_stride": 4}
# label -> encoder and its arguments; the family's default first, what was tried beside it, then other people's networks
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "convattn_nano": ("convattn_nano", STEM),
    "nano, stem stride 2": ("convattn_nano", {"stem_stride": 2}),
    "nano, batch norm": ("convattn_nano", STEM | {"norm": "batch"}),
    "nano, kernel 5": ("convattn_nano", STEM | {"kernel_size": 5}),
    "nano, kernel 7": ("convattn_nano", STEM | {"kernel_size": 7}),
    "nano, attention from 2": ("convattn_nano", STEM | {"attention_from": 2}),
    "nano, attention from 4": ("convattn_nano", STEM | {"attention_from": 4}),
    "nano, no attention": ("convattn_nano", STEM | {"attention_from": 5}),
    "nano, heads of 16": ("convattn_nano", STEM | {"head_dim": 16}),
    "nano, heads of 64": ("convattn_nano", STEM | {"head_dim": 64}),
    "nano, K and V stride 2": ("convattn_nano", STEM | {"kv_stride": 2}),
    "nano, deeper": ("convattn_nano", STEM | {"depths": [2, 2, 4, 2]}),
    "nano, wider": ("convattn_nano", STEM | {"dims": [32, 80, 160, 256]}),
    "convattn_tiny": ("convattn_tiny", STEM),
    "resnet18": ("timm:resnet18", {}),
    "convnext_atto": ("timm:convnext_atto", {}),
    "convnext_femto": ("timm:convnext_femto", {}),
    "mobilevit_xxs": ("timm:mobilevit_xxs", {}),
    "mobilevitv2_050": ("timm:mobilevitv2_050", {}),
    "coatnet_nano_rw": ("timm:coatnet_nano_rw_224", {"img_size": 64}),
    "maxvit_rmlp_pico_rw": ("timm:maxvit_rmlp_pico_rw_256", {"img_size": 64}),
    "vit_tiny, patch 16": ("timm:vit_tiny_patch16_224", {}),
}
REHEARSAL = 24


def main(arguments: list[str] | None = None) -> None:
    """Runs them one after another and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.encoders", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    options, overrides = parser.parse_known_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "test"):
            import_images(
                str(options.photos / split), f"{folder}/{split}", ImportOptions(short_side=160), show_progress=False
            )
        for label in options.only:
            scores = []
            for seed in options.seeds:
                given = [f"seed={seed}", *_encoder_settings(label), *overrides]
                trial = _pretrained(folder, [*given, f"training.steps={REHEARSAL}", "rankme_images=0"])
                steps = max(REHEARSAL, round(options.seconds * trial["speed"] / 64))
                knn = [f"knn.train_url={folder}/train", f"knn.test_url={folder}/test", "knn.every_epochs=0"]
                scores.append(_pretrained(folder, [*given, *knn, f"training.steps={steps}"]))
            row = {key: statistics.mean(score[key] for score in scores) for key in scores[0]}
            rows.append((label, row))
            print(_line(label, row), flush=True)
    print(f"\n{options.seconds:.0f} s of training each, seeds {options.seeds}\n{_line('encoder', None)}")
    for label, row in sorted(rows, key=lambda item: -item[1]["linear"]):
        print(_line(label, row))


def _encoder_settings(label: str) -> list[str]:
    name, arguments = ENCODERS[label]
    return [f"encoder.name={name}", "encoder.arguments=" + json.dumps(arguments)]


def _pretrained(folder: str, settings: list[str]) -> dict[str, float]:
    """Speed and scores of a run of the command."""
    with tempfile.TemporaryDirectory() as out:
        given = [
            "configs/pretrain/small/simclr.yaml", f"data.url={folder}/train", f"out={out}/run", "cluster.workers=0",
            "training.log_every_steps=6", *settings,
        ]  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "pretrain", *given], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(given)} failed: {done.stderr[-1000:]}")
        result = json.loads((Path(out) / "run" / "result.json").read_text())
        lines = [json.loads(line) for line in (Path(out) / "run" / "metrics.jsonl").read_text().splitlines()]
    metrics = result["metrics"]
    return {
        # the first lines decode, and warm up
        "speed": statistics.median(line["images_per_second"] for line in lines[len(lines) // 4 :]),
        "steps": result["steps"],
        "seconds": result["seconds"],
        "knn": metrics.get("knn_accuracy", 0.0),
        "linear": metrics.get("linear_accuracy", 0.0),
        "rankme": metrics.get("rankme", 0.0),
    }


def _line(label: str, row: dict[str, float] | None) -> str:
    if row is None:
        return f"{label:24}  {'images/s':>8}  {'steps':>5}  {'seconds':>7}  {'kNN':>6}  {'linear':>6}  {'RankMe':>6}"
    return (
        f"{label:24}  {row['speed']:>8.0f}  {row['steps']:>5.0f}  {row['seconds']:>7.0f}  {row['knn']:>6.1%}"
        f"  {row['linear']:>6.1%}  {row['rankme']:>6.1f}"
    )


if __name__ == "__main__":
    main()
