"""Keywords and sentences on scenes never seen, and on real photos with five references each.

    python -m tests.benchmarks.summarization [--coco FOLDER] [--scenes 5000] [--steps 2500]
        [--out FOLDER] [key=value ...]

The demo's scenes at their own 96 pixels: `convattn_nano` with a stem of stride 4 from random weights (or
`--encoder URL`), evaluated on the held-out fifth. With FOLDER, which holds `index.jsonl` with the paths and
captions of photos, the same network learns these few by heart, to show that real sentences with several
references go through; photos without a caption are counted. The same command again continues.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CONFIG = "configs/finetune/summarization.yaml"
NETWORK = ("architecture.name=convattn_nano", "architecture.arguments={stem_stride: 4, attention_from: 3}")


def main(arguments: list[str] | None = None) -> None:
    """Makes the data, trains, and prints the numbers."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.summarization", description=__doc__)
    parser.add_argument("--coco", type=Path, help="folder with index.jsonl")
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--encoder", default="random")
    parser.add_argument("--out", type=Path, default=Path("runs/summarization"))
    options, overrides = parser.parse_known_args(arguments)

    scenes = options.out / "scenes"
    if not (scenes / "demo.json").exists():
        command("pretrain.data", "demo", str(scenes), "--images", str(options.scenes))
    result = trained(
        options.out / "held-out",
        f"encoder={options.encoder}",
        "image_size=96",
        f"data.url={scenes / 'train'}",
        f"validation_url={scenes / 'validation'}",
        f"training.steps={options.steps}",
        "training.warmup_epochs=1",
        "optimizer.learning_rate=8.0e-3",
        "evaluate_every_epochs=0",
        "summarization.num_maps=3",
        "summarization.keyword_min_images=200",
        *overrides,
    )
    show(f"{result['validation_images']:,} scenes never seen, {result['steps']:,} steps of batch 64", result)
    if options.coco is not None:
        shards = options.out / "coco"
        if not (shards / "_import.json").exists():
            command("pretrain.data", "import", str(options.coco / "index.jsonl"), str(shards), "--overwrite")
        result = trained(
            options.out / "by-heart",
            f"encoder={options.encoder}",
            f"data.url={shards}",
            f"validation_url={shards}",
            "training.batch_size_global=16",
            "training.steps=260",
            "image_size=48",
            "training.warmup_epochs=2",
            "evaluate_every_epochs=0",
            "optimizer.learning_rate=2.4e-2",
            "summarization.num_maps=3",
            "summarization.min_crop=1.0",
            "summarization.dropout=0.0",
            "summarization.keyword_min_images=3",
        )
        show("photos learnt by heart", result)


def trained(out: Path, *overrides: str) -> dict[str, Any]:
    """The result of a run."""
    more = [
        "compare=[]",
        "cluster.workers=0",
        "data.keep=host",
        "training.checkpoint_every_seconds=30",
        *NETWORK,
    ]
    command("finetune", CONFIG, *more, f"out={out}", *overrides)
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


def show(title: str, result: dict[str, Any]) -> None:
    """Prints the numbers and some sentences."""
    print(f"\n{title}: {result['seconds']:.0f} s of training")
    for name, value in result["metrics"].items():
        print(f"  {name:14} {value:.3f}")
    print(f"  captions of {result['training_captions']}")
    for row in sorted(result["per_keyword"], key=lambda row: -row["average_precision"]):
        print(f"  {row['keyword']:16} {row['average_precision']:.3f} of {row['images']}")
    for example in result["examples"][:8]:
        print(f"  {example['sentence']!r} | {example['references'][0]!r}")


def command(module: str, *arguments: str) -> None:
    """Runs one of the project's commands and shows what it says."""
    print("$", "python -m", module, *arguments, flush=True)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)
    print(f"({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
