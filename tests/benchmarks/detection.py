"""Detection on blood-cell images: mAP and AP50 of FCOS and Faster R-CNN,
from a pretrained encoder and from random weights.

    python -m tests.benchmarks.detection BCCD CLOTHING [--heads fcos faster_rcnn] [--seeds 0]
        [--out runs/detection]

BCCD is a folder with `index.jsonl`: a line an image with `path`, `split` (train, val, test) and `boxes`
(`cls`, `xyxy`). CLOTHING is a folder of photos without labels. The encoder is pretrained by
`configs/pretrain/small/simclr.yaml` on BCCD's train images, without their boxes, and the photos; detectors
are trained by `configs/finetune/detection_small.yaml` on the train images and their boxes, the best on the
validation images is kept and evaluated once on the test images. The same command again continues what was
cut off, and repeats nothing that is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SPLITS = {"train": "train", "val": "validation", "test": "test"}
PRETRAINING = "configs/pretrain/small/simclr.yaml"
CONFIG = "configs/finetune/detection_small.yaml"
METRICS = ("map", "ap50", "ap75")
HEAD_SETTINGS = {"fcos": (), "faster_rcnn": ("detection.depth=1",), "retinanet": ()}


def main(arguments: list[str] | None = None) -> None:
    """Packs, pretrains, trains, evaluates and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.detection", description=__doc__)
    parser.add_argument("bccd", type=Path)
    parser.add_argument("clothing", type=Path)
    parser.add_argument("--heads", nargs="+", default=["fcos", "faster_rcnn"], choices=sorted(HEAD_SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/detection"))
    options, overrides = parser.parse_known_args(arguments)
    data = options.out / "data"
    pack(options.bccd.resolve(), options.clothing, data)

    encoder = options.out / "pretrain" / "encoder"
    command(
        "pretrain",
        PRETRAINING,
        f"data.url=[{data / 'train'},{data / 'photos'}]",
        "data.weights=[4,1]",  # a batch has three images of cells for five photos
        "views.size=80",
        "training.epochs=24",
        f"out={options.out / 'pretrain'}",
        "cluster.workers=0",
    )
    rows = []
    for seed in options.seeds:
        for head in options.heads:
            for start in ("pretrained", "random"):
                out = options.out / f"{head}-{start}-{seed}"
                command(
                    "finetune",
                    CONFIG,
                    f"encoder={encoder if start == 'pretrained' else f'random:{encoder}'}",
                    f"data.url={data / 'train'}",
                    f"validation_url={data / 'validation'}",
                    f"out={out}",
                    f"seed={seed}",
                    "compare=[]",
                    "cluster.workers=0",
                    f"detection.head={head}",
                    *HEAD_SETTINGS[head],
                    *overrides,
                )
                rows.append((head, start, seed, *evaluated(out, data / "test")))
    print(f"\n{'head':12} {'weights':10} {'seed':>4}  {'validation':^20}  {'test':^20}  {'seconds':>7}")
    print(f"{'':28}  {'mAP':>6} {'AP50':>6} {'AP75':>6}  {'mAP':>6} {'AP50':>6} {'AP75':>6}")
    for head, start, seed, result, test in rows:
        numbers = "  ".join(
            " ".join(f"{of[name]:6.3f}" for name in METRICS) for of in (result["metrics"], test)
        )
        print(f"{head:12} {start:10} {seed:>4}  {numbers}  {result['seconds']:7.0f}")
    for head, start, seed, result, _ in rows:
        classes = ", ".join(
            f"{row['class']} {row['ap50']:.3f} ({row['boxes']})" for row in result["per_class"]
        )
        print(f"{head} {start} {seed}: AP50 by class (boxes), validation: {classes}")


def pack(bccd: Path, clothing: Path | None, data: Path) -> None:
    """Images and boxes as shards: a folder for each split,
    and the photos without labels where there are some.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS.values()}
    for line in (bccd / "index.jsonl").read_text().splitlines():
        row = json.loads(line)
        boxes = [
            [left, top, right - left, bottom - top]
            for left, top, right, bottom in (b["xyxy"] for b in row["boxes"])
        ]
        objects = {"bbox": boxes, "category": [box["cls"] for box in row["boxes"]]}
        rows[SPLITS[row["split"]]].append({"file_name": str(bccd / row["path"]), "objects": objects})
    for name, of_split in rows.items():
        table = data / f"{name}.jsonl"
        if not (data / name / "_import.json").exists():
            data.mkdir(parents=True, exist_ok=True)
            table.write_text("".join(json.dumps(row) + "\n" for row in of_split))
            command("pretrain.data", "import", str(table), str(data / name))
    if clothing is not None and not (data / "photos" / "_import.json").exists():
        command(
            "pretrain.data",
            "import",
            str(clothing),
            str(data / "photos"),
            "--labels",
            "none",
            "--short-side",
            "160",
        )


def evaluated(out: Path, test: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """What the run found on the validation images, and its best model on the test images."""
    result = json.loads((out / "result.json").read_text())
    file = out / "test.json"
    if not file.exists():
        command("finetune", "evaluate", result["model"], str(test), "--json", str(file))
    return result, json.loads(file.read_text())["metrics"]


def command(module: str, *arguments: str) -> None:
    """Runs one of the project's commands and shows what it says."""
    print("$", "python -m", module, *arguments, flush=True)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()
