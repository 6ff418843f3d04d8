"""What pretraining is worth with few labels: boxes of 10 % and 20 % of the images, and captions of 400.

    python -m tests.benchmarks.few_labels BCCD [--parts detection] [--seeds 0 1 2] [--out runs/few]
        [key=value ...]

BCCD is a folder with `index.jsonl` as in `tests.benchmarks.detection`. Detectors learn from a share of the
205 train images, another for each seed, at 192 pixels by `configs/finetune/detection_small.yaml`; none is
chosen by the validation images, the last model is evaluated on the 72 test images. They start from
`convattn_nano` that learnt EfficientNet-Lite0's maps by `configs/pretrain/small/distill_maps.yaml` on all
train images without boxes, from random weights of the same network, and from EfficientNet-Lite0 itself (`pip
install 'fovea[teacher]'`) with ImageNet weights and with random ones. The share of the gap that distillation
closes is its gain over random weights by that of ImageNet weights over random ones.

Summaries: scenes of `make demo`, of all train scenes the network learns the teacher's maps without captions,
of 400 the sentences; evaluated on the held-out scenes. `--steps` are those of distillation. The same command
again continues, and repeats nothing that is done; further key=value go to fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.detection import command, pack

TEACHER = "package:efficientnet_lite0"
DISTILLATION = "configs/pretrain/small/distill_maps.yaml"
DETECTION = "configs/finetune/detection_small.yaml"
SUMMARIZATION = "configs/finetune/summarization.yaml"
STARTS = ("distilled", "random", "imagenet", "imagenet-random")
NAMES = {
    "distilled": "convattn_nano, distilled",
    "random": "convattn_nano, random",
    "imagenet": "EfficientNet-Lite0, ImageNet",
    "imagenet-random": "EfficientNet-Lite0, random",
}
ALL = ("compare=[]", "cluster.workers=0", "report_images=0", "evaluate_every_epochs=0", "data.keep=host")
SIDE = 192  # of a detector's canvas, in pixels: half the cost of 256; red cells are 30 across
NUM_CAPTIONED = 400

Scores = dict[tuple[str, str, int], dict[str, float]]
"""Of (share or number of labels, start, seed) the numbers by name."""


def main(arguments: list[str] | None = None) -> None:
    """Packs, distils, trains, evaluates and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.few_labels", description=__doc__)
    parser.add_argument("bccd", type=Path)
    parser.add_argument("--parts", nargs="+", default=["detection", "summarization"], choices=list(PARTS))
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path("runs/few"))
    given = sys.argv[1:] if arguments is None else arguments
    overrides = [argument for argument in given if "=" in argument and not argument.startswith("-")]
    options = parser.parse_args([argument for argument in given if argument not in overrides])
    for part in options.parts:
        PARTS[part](options, overrides)


def detection(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Boxes of few images."""
    data, out = options.out / "bccd", options.out / "detection"
    pack(options.bccd.resolve(), None, data)
    encoders = starts(options, data / "train", out)
    scores: Scores = {}
    for fraction in options.fractions:
        for seed in options.seeds:
            for start in options.starts:
                run = out / f"{fraction:g}-{start}-{seed}"
                command(
                    "finetune", DETECTION, f"encoder={encoders[start]}", f"data.url={data / 'train'}",
                    f"validation_url={data / 'validation'}", f"out={run}", f"seed={seed}",
                    f"label_fraction={fraction:g}",
                    f"image_size={SIDE}", *ALL, *overrides,
                )  # fmt: skip
                test = run / "test.json"
                if not test.exists():
                    command(
                        "finetune", "evaluate", str(run / "model"), str(data / "test"), "--json", str(test)
                    )
                scores[f"{fraction:.0%}", start, seed] = {
                    name: 100 * value for name, value in read(test)["metrics"].items()
                }
    show("boxes", scores, ("map", "ap50"), digits=1)


def summarization(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Sentences about scenes, from captions of few."""
    data, out = options.out / "scenes", options.out / "summarization"
    if not (data / "demo.json").exists():
        command("pretrain.data", "demo", str(data), "--images", str(options.scenes))
    encoders = starts(options, data / "train", out)
    fraction = NUM_CAPTIONED / read(data / "demo.json")["train"]
    scores: Scores = {}
    for seed in options.seeds:
        for start in options.starts:
            run = out / f"{start}-{seed}"
            command(
                "finetune", SUMMARIZATION, f"encoder={encoders[start]}", f"data.url={data / 'train'}",
                f"validation_url={data / 'validation'}", f"out={run}", f"seed={seed}",
                f"label_fraction={fraction:g}", "image_size=96", "summarization.num_maps=2",
                "summarization.num_beams=1", *ALL, *overrides,
            )  # fmt: skip
            scores[str(NUM_CAPTIONED), start, seed] = read(run / "result.json")["metrics"]
    show("captions", scores, ("cider_d", "keyword_map"), digits=3)


def starts(options: argparse.Namespace, train: Path, out: Path) -> dict[str, str]:
    """The encoders to start from; the student learns from all train images, without labels."""
    student = out / "pretrain" / "encoder"
    if {"distilled", "random"} & {*options.starts}:
        command(
            "pretrain", DISTILLATION, f"data.url={train}", f"out={student.parent}",
            f"training.steps={options.steps}", "cluster.workers=0",
        )  # fmt: skip
    return {
        "distilled": str(student),
        "random": f"random:{student}",
        "imagenet": TEACHER,
        "imagenet-random": f"random:{TEACHER}",
    }


def show(labels: str, scores: Scores, metrics: Sequence[str], *, digits: int) -> None:
    """Means over the seeds, each seed's numbers, and the share of the gap."""
    amounts = list(dict.fromkeys(amount for amount, _, _ in scores))
    print(
        f"\n{labels:9} {'start':30}"
        + "".join(f"{name:>13}" for name in metrics)
        + f"   {metrics[0]} by seed"
    )
    means: dict[tuple[str, str], float] = {}
    for amount in amounts:
        for start in dict.fromkeys(start for _, start, _ in scores):
            of_seeds = [numbers for (a, s, _), numbers in scores.items() if (a, s) == (amount, start)]
            cells = []
            for name in metrics:
                values = [numbers[name] for numbers in of_seeds]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}")
            means[amount, start] = statistics.mean(numbers[metrics[0]] for numbers in of_seeds)
            by_seed = " ".join(f"{numbers[metrics[0]]:.{digits}f}" for numbers in of_seeds)
            print(
                f"{amount:9} {NAMES[start]:30}" + "".join(f"{cell:>13}" for cell in cells) + f"   {by_seed}"
            )
    for amount in amounts:
        own = {start: means[amount, start] for start in STARTS if (amount, start) in means}
        if {"distilled", "random"} <= own.keys():
            gain = own["distilled"] - own["random"]
            line = (
                f"{amount} of the {labels}: {gain:+.{digits}f} over random weights "
                f"({gain / own['random']:+.0%})"
            )
            if len(own) == len(STARTS) and own["imagenet"] > own["imagenet-random"]:
                line += (
                    f", {gain / (own['imagenet'] - own['imagenet-random']):.0%} of what ImageNet "
                    "weights are worth"
                )
            print(line)


def read(file: Path) -> dict[str, Any]:
    """A JSON object."""
    tree: dict[str, Any] = json.loads(file.read_text())
    return tree


PARTS: dict[str, Callable[[argparse.Namespace, Sequence[str]], None]] = {
    "detection": detection,
    "summarization": summarization,
}

if __name__ == "__main__":
    main()
