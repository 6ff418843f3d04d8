"""What pretraining is worth on real photos: linear probe and 10-shot accuracy,
pretrained beside random weights.

    python -m tests.benchmarks.clothing PHOTOS [--seeds 0 1 2] [--out runs/clothing] [key=value ...]

PHOTOS holds `train`, `validation` and `test`, each with a folder a class. Pretraining sees the train split
without labels, by `configs/pretrain/small/simclr.yaml`, through `python -m pretrain`. Both probes see frozen
pooled features of central crops: logistic regression on all train labels, and on ten train images a class
(the mean of ten draws); its regularisation is chosen on the validation split, for both encoders alike.
Accuracy is that of the test split.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SPLITS = ("train", "validation", "test")
CONFIG = "configs/pretrain/small/simclr.yaml"


def main(arguments: list[str] | None = None) -> None:
    """Packs, pretrains, probes and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.clothing", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/clothing"))
    options, overrides = parser.parse_known_args(arguments)
    shards = packed(options.photos, options.out / "data")

    rows = []
    for seed in options.seeds:
        out = options.out / f"seed{seed}"
        started = time.monotonic()
        command(
            "pretrain",
            CONFIG,
            f"data.url={shards['train']}",
            f"out={out}",
            f"seed={seed}",
            "cluster.workers=0",
            *overrides,
        )
        seconds = time.monotonic() - started
        result = json.loads((out / "result.json").read_text())
        for name in ("pretrained", "random"):
            linear, few = probes(str(out / "encoder"), shards, seed=seed, random=name == "random")
            rows.append((seed, name, linear, few, result["seconds"] if name == "pretrained" else 0.0))
            print(f"seed {seed}  {name:10}  linear {linear:.1%}  10-shot {few:.1%}", flush=True)
        print(
            f"seed {seed}  the command took {seconds:.0f} s, {result['seconds']:.0f} s of it training",
            flush=True,
        )

    print(f"\n{'seed':>4}  {'weights':10}  {'linear probe':>12}  {'10-shot':>8}  {'training':>9}")
    for seed, name, linear, few, seconds in rows:
        print(f"{seed:>4}  {name:10}  {linear:>12.1%}  {few:>8.1%}  {seconds:>7.0f} s")
    for name in ("pretrained", "random"):
        means = [statistics.mean(row[column] for row in rows if row[1] == name) for column in (2, 3)]
        print(f"mean  {name:10}  {means[0]:>12.1%}  {means[1]:>8.1%}")


def packed(photos: Path, out: Path) -> dict[str, Path]:
    """The shards of each split of a folder of photos, in `out`, made unless they are there."""
    shards = {split: out / split for split in SPLITS}
    for split, folder in shards.items():
        if not (folder / "_import.json").exists():
            command(
                "pretrain.data",
                "import",
                str(photos / split),
                str(folder),
                "--overwrite",
                "--short-side",
                "160",
            )
    return shards


def command(module: str, *arguments: str) -> None:
    """Runs one of the project's commands and shows what it says."""
    print("$", "python -m", module, *arguments, flush=True)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def probes(encoder_url: str, shards: dict[str, Path], *, seed: int, random: bool) -> tuple[float, float]:
    """Test accuracy in [0, 1] of the linear probe and of the 10-shot probe."""
    import torch

    from cluster.training.rank_context import local_context
    from pretrain.data.reading.manifest import load_manifest
    from pretrain.data.reading.shards import Shards
    from pretrain.encoders import build_encoder, load_encoder, read_encoder_config
    from pretrain.training.features import class_ids, labelled_features

    torch.manual_seed(seed)
    config = read_encoder_config(encoder_url)
    encoder = build_encoder(config.name, **config.arguments) if random else load_encoder(encoder_url)
    features, labels = {}, {}
    with local_context() as context:
        for split, folder in shards.items():
            manifest = load_manifest(str(folder), columns=["image", "label"])
            features[split], labels[split] = labelled_features(
                encoder.eval().to(context.device),
                Shards(manifest, image_column="image", columns=["label"]),
                label_column="label",
                size=config.input_size,
                crop_fraction=1.0,
                context=context,
                decode_threads=2,
            )
    classes = sorted(set(labels["train"]))
    ids = {split: class_ids(labels[split], classes).numpy() for split in shards}
    mean, deviation = features["train"].mean(0), features["train"].std(0) + 1e-6
    scaled = {split: (values - mean) / deviation for split, values in features.items()}

    linear = best_probe(scaled, ids, np.arange(len(ids["train"])))
    generator = np.random.default_rng(seed)
    few = []
    for _ in range(10):
        chosen = [
            generator.choice(np.flatnonzero(ids["train"] == label), 10, replace=False)
            for label in set(ids["train"])
        ]
        few.append(best_probe(scaled, ids, np.concatenate(chosen)))
    return linear, statistics.mean(few)


def best_probe(features: dict[str, np.ndarray], ids: dict[str, np.ndarray], rows: np.ndarray) -> float:
    """Test accuracy of the logistic regression whose regularisation does best on the validation split."""
    from sklearn.linear_model import LogisticRegression

    scores = []
    for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        probe = LogisticRegression(C=strength, max_iter=500).fit(features["train"][rows], ids["train"][rows])
        scores.append((probe.score(features["validation"], ids["validation"]), -strength, probe))
    return float(max(scores, key=lambda score: score[:2])[2].score(features["test"], ids["test"]))


if __name__ == "__main__":
    main()
