"""`make demo`: from pictures to a pretrained encoder to three task models, with the commands that a user would type.

The models are a classifier, a detector and an image summarizer, each beside the same network from random weights. Each step
is a command of its own, printed before it runs, so the demo is also a tour. It is quick on two cores; the same command again
continues or repeats nothing that is done.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.errors import UserError, run_command

CONSOLE = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class DemoTask:
    """A model of the demo: `scores` are the metrics shown, with a name each."""

    what: str
    config: str
    folder: str
    scores: tuple[tuple[str, str], ...]


TASKS = (
    DemoTask("a classifier", "configs/finetune/demo.yaml", "classify", (("accuracy", "accuracy"),)),
    DemoTask("a detector", "configs/finetune/demo_detection.yaml", "detect", (("map", "mAP"), ("ap50", "AP50"))),
    DemoTask(
        "an image summarizer",
        "configs/finetune/demo_summarization.yaml",
        "summarize",
        (("keyword_map", "keyword mAP"), ("cider_d", "CIDEr-D")),
    ),
)


def main() -> int:
    """Reads the command line and runs the demo."""
    parser = argparse.ArgumentParser(prog="python -m finetune.demo", description=__doc__)
    parser.add_argument("--data", help="folder of your own photos; class folders give the labels")
    parser.add_argument("--out", default="runs/demo", help="folder for all that the demo makes (default: runs/demo)")
    parser.add_argument("--workers", type=int, default=2, help="Ray workers that pretrain (default: 2)")
    parser.add_argument("--steps", type=int, default=450, help="steps of pretraining (default: 450, a few minutes)")
    arguments = parser.parse_args()
    return demo(arguments.data, Path(arguments.out), workers=arguments.workers, steps=arguments.steps)


def demo(photos: str | None, out: Path, *, workers: int, steps: int) -> int:
    """Runs the steps. Raises UserError when one of them says that something is wrong."""
    started = time.monotonic()

    # -- pictures -> shards ---------------------------------------------------------------------------------------------
    shards = out / "data" if photos is None else out / "photos"
    if photos is None:
        if not (shards / "demo.json").exists():
            shutil.rmtree(shards, ignore_errors=True)  # of a demo that was cut off here
            step("Make a data set of small scenes", "pretrain.data", "demo", str(shards))
        labelled = True
    else:
        if not (shards / "_import.json").exists():
            step(
                "Pack the photos", "pretrain.data", "import", photos, str(shards), "--validation", "0.2", "--overwrite"
            )
        labelled = bool(json.loads((shards / "_import.json").read_text())["classes"])
    train, validation = str(shards / "train"), str(shards / "validation")
    num_images = count_rows(shards / "train")

    # -- shards -> encoder ----------------------------------------------------------------------------------------------
    pretraining = out / "pretrain"
    batch = batch_size(num_images, 64)
    epochs_of_steps = batch / num_images  # so that the demo takes as long for a hundred photos as for a million
    overrides = [
        f"data.url={train}",
        f"out={pretraining}",
        f"cluster.workers={workers}",
        f"training.batch_size_global={batch}",
        f"training.steps={steps}",
        f"training.warmup_epochs={0.1 * steps * epochs_of_steps:.4g}",
        f"knn.every_epochs={steps / 3 * epochs_of_steps:.4g}",
    ]
    if labelled:
        overrides += [f"knn.train_url={train}", f"knn.test_url={validation}"]
    step("Pretrain an encoder without labels", "pretrain", "configs/pretrain/demo.yaml", *overrides)
    report_health(pretraining)
    if not labelled:
        print(f"\nThe photos have no class folders, so this is where the demo ends. Encoder: {pretraining / 'encoder'}")
        return 0

    # -- encoder -> task models, each beside the same network from random weights ---------------------------------------
    tasks = TASKS if photos is None else TASKS[:1]  # photos in folders have classes, and neither boxes nor sentences
    for task in tasks:
        overrides = [] if photos is None else [f"training.batch_size_global={batch_size(num_images, 64)}"]
        step(
            f"Fine-tune {task.what}, and the same network from random weights",
            "finetune",
            task.config,
            f"encoder={pretraining / 'encoder'}",
            f"data.url={train}",
            f"validation_url={validation}",
            f"out={out / task.folder}",
            *overrides,
        )
    show_results(out, tasks, seconds=time.monotonic() - started)
    return 0


def step(title: str, module: str, *arguments: str) -> None:
    """Shows a command and runs it. Raises UserError when it fails; its own words stand above."""
    CONSOLE.print(f"\n[bold]{title}[/bold]")
    CONSOLE.print("$ " + shlex.join(["python", "-m", module, *arguments]), markup=False)
    code = subprocess.run(
        [sys.executable, "-m", module, *arguments], env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}, check=False
    ).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        raise UserError(f"the demo ends here: the command above failed with exit code {code}")


def count_rows(folder: Path) -> int:
    """Rows of the shards in a folder, by their footers."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in sorted(folder.glob("*.parquet")))


def batch_size(num_images: int, wanted: int) -> int:
    """The largest power of two that is at most `wanted` and an eighth of the images, but no less than 4."""
    size = wanted
    while size > 4 and size > num_images // 8:
        size //= 2
    return size


def report_health(pretraining: Path) -> None:
    """Says in words how pretraining went."""
    last: dict[str, Any] = {}
    for line in (pretraining / "metrics.jsonl").read_text().splitlines():
        last |= json.loads(line)
    names = [
        ("loss", "loss", ".3f"),
        ("spread", "spread of embeddings (1 fills the sphere, 0 is collapsed)", ".2f"),
        ("effective_rank", "effective rank of embeddings", ".1f"),
        ("knn_accuracy", "kNN accuracy on held-out images", ".1%"),
        ("knn_accuracy_untrained", "the same with the weights it began with", ".1%"),
    ]
    for key, words, form in names:
        if last.get(key) is not None:
            print(f"  {words}: {last[key]:{form}}")


def show_results(out: Path, tasks: Sequence[DemoTask], *, seconds: float) -> None:
    """One table of all models, and where everything lies."""
    from finetune.comparing import COMPARISON  # it brings torch along, which takes seconds

    table = Table(title="Held-out images: from the pretrained encoder, and from random weights")
    for column in ("model", "score"):
        table.add_column(column)
    for column in ("pretrained", "random", "gain"):
        table.add_column(column, justify="right")
    for task in tasks:
        pretrained, fresh = (row["metrics"] for row in json.loads((out / task.folder / COMPARISON).read_text())["rows"])
        for key, name in task.scores:
            gain = pretrained[key] - fresh[key]
            table.add_row(task.what, name, f"{pretrained[key]:.3f}", f"{fresh[key]:.3f}", f"{gain:+.3f}")
    CONSOLE.print()
    CONSOLE.print(table)
    print(f"{seconds:.0f} s in all. Everything lies in {out}:")
    places = [("pretrain/encoder", "the encoder (safetensors + config.json)"), ("pretrain/report.html", "how it went")]
    places += [(f"{task.folder}/model", f"{task.what}; finetune.model.load_model loads it") for task in tasks]
    places += [(f"{task.folder}/report.html", "what it sees, beside random weights") for task in tasks]
    for name, what in places:
        if (out / name).exists():
            print(f"  {out / name}  {what}")


if __name__ == "__main__":
    sys.exit(run_command(main))
