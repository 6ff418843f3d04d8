"""Alarms, places and tracks on clips made from real photos, with known truth:
precision and recall, and MOTA.

    # a classifier of the clothing photos; PHOTOS holds test/CLASS
    python -m tests.benchmarks.clips alarms MODEL PHOTOS
    # learns from whole patches whether a white cell is there
    python -m tests.benchmarks.clips places ENCODER BCCD
    # a detector of blood cells; BCCD holds index.jsonl
    python -m tests.benchmarks.clips tracks MODEL BCCD

Everything goes through `python -m finetune predict`. A clip for alarms is a video of slowly moving photos,
in shots of one photo each, some of them of the class that raises the alarm. One for tracks is a window, as
large as a microscope photo, that moves
from one photo to a second beside it, so that cells pass through it at the scale of the photos.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FPS, SHOT_FRAMES = 5.0, 10
PHOTO, FRAMES = (640, 480), 40
PATCH = 200


def main(arguments: list[str] | None = None) -> None:
    """Makes the clips, lets the model predict for them, prints what is right."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.clips", description=__doc__)
    parser.add_argument("what", choices=["alarms", "places", "tracks"])
    parser.add_argument("model")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/clips"))
    parser.add_argument(
        "--clothing-class", default="pants", help="class that raises the alarm (default: pants)"
    )
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--shots", type=int, default=120)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--steps", type=int, default=300, help="steps of learning what a patch holds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    {"alarms": alarms, "places": places, "tracks": tracks}[options.what](options)


def command(module: str, *arguments: Any) -> None:
    """Runs one of the project's commands and shows what it says."""
    print("$ python -m", module, *arguments, flush=True)
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- alarms -------------------------------------------------------------------------------------------------


def alarms(options: argparse.Namespace) -> None:
    """Which frames and events of a video show a class."""
    from finetune.predicting.videos import VideoWriter

    generator = np.random.default_rng(options.seed)
    photos = sorted((options.photos / "test").glob("*/*.jpg"))
    wanted = [path for path in photos if path.parent.name == options.clothing_class]
    others = [path for path in photos if path.parent.name != options.clothing_class]
    options.out.mkdir(parents=True, exist_ok=True)
    video, truth = options.out / "alarms.mp4", []
    with VideoWriter(video, frame_rate=FPS) as writer:
        for _ in range(options.shots):
            shows = bool(generator.random() < 0.25)
            path = generator.choice(wanted if shows else others)  # type: ignore[arg-type]
            image = Image.open(path).convert("RGB")
            side = min(image.size)
            for frame in range(SHOT_FRAMES):
                length = round(side * (1 - 0.01 * frame))  # a slow zoom
                left, top = ((s - length) // 2 for s in image.size)
                crop = image.crop((left, top, left + length, top + length)).resize((256, 256))
                writer.write(np.asarray(crop))
                truth.append(shows)
    out = options.out / "alarms"
    rule = f"{options.clothing_class}>{options.threshold}"
    command(
        "finetune", "predict", options.model, video, out, "--alarm", rule, "--alarm-gap", 0.5, "--overwrite"
    )
    told = lines(out / "alarms.jsonl")
    said = np.zeros(len(truth), bool)
    said[[line["index"] for line in told if line["kind"] == "frame"]] = True
    show("frames", said & truth, said, truth)
    events = [line for line in told if line["kind"] == "event"]
    shots = np.array(truth).reshape(-1, SHOT_FRAMES)[:, 0]
    starts = np.flatnonzero(shots & ~np.r_[False, shots[:-1]])
    runs = [
        (start * SHOT_FRAMES, (start + int(np.r_[~shots[start:], True].argmax())) * SHOT_FRAMES)
        for start in starts
    ]
    right = [
        any(event["first_index"] < stop and event["last_index"] >= start for start, stop in runs)
        for event in events
    ]
    found = [
        any(event["first_index"] < stop and event["last_index"] >= start for event in events)
        for start, stop in runs
    ]
    print(
        f"events: {len(events)} told, {len(runs)} true; precision {np.mean(right):.2f}, recall "
        f"{np.mean(found):.2f} ({options.shots} shots of {SHOT_FRAMES} frames, {FPS:g} a second, rule "
        f"{rule})"
    )


def show(what: str, both: np.ndarray, said: Any, true: Any) -> None:
    """Precision and recall of a set of decisions."""
    precision, recall = both.sum() / max(1, np.sum(said)), both.sum() / max(1, np.sum(true))
    print(
        f"{what}: {np.sum(said)} told, {np.sum(true)} true; precision {precision:.2f}, recall {recall:.2f}"
    )


# -- places -------------------------------------------------------------------------------------------------


def places(options: argparse.Namespace) -> None:
    """Where white cells are in whole photos, learnt from whether a patch holds one."""
    data = options.out / "patches"
    for split, name in (("train", "train"), ("val", "validation")):
        _cut_patches(options.photos, split, data / "folders" / name, options.seed)
        target = data / name
        if not (target / "_import.json").exists():
            command("pretrain.data", "import", data / "folders" / name, target, "--overwrite")
    run = options.out / "places-run"
    command(
        "finetune", "configs/finetune/classification.yaml", f"encoder={options.model}",
        f"data.url={data / 'train'}",
        f"validation_url={data / 'validation'}", f"out={run}", "image_size=96", "crop_fraction=1.0",
        "compare=[]",
        f"training.steps={options.steps}", "training.batch_size_global=32", "cluster.workers=0",
        "layer_decay=1.0", "classification.min_crop=0.6",
    )  # fmt: skip
    photos = [entry for entry in lines(options.photos / "index.jsonl") if entry["split"] == "test"]
    folder = options.out / "places-photos"
    folder.mkdir(parents=True, exist_ok=True)
    for entry in photos:
        source = options.photos / entry["path"]
        Image.open(source).convert("RGB").save(folder / f"{source.stem}.png")
    out, size = (
        options.out / "places",
        round(PHOTO[1] * 96 / PATCH),
    )  # as many pixels a cell as in the patches
    command(
        "finetune",
        "predict",
        run / "model",
        folder,
        out,
        "--localize",
        "white",
        "--size",
        size,
        "--overwrite",
    )
    hits, told, found, true = 0, 0, 0, 0
    for record in lines(out / "predictions.jsonl"):
        entry = next(e for e in photos if Path(e["path"]).stem == Path(record["source"]).stem)
        boxes = [box["xyxy"] for box in entry["boxes"] if box["cls"] == "WBC"]
        regions = [region["box"] for region in record["regions"] if region["score"] >= 0.25]
        middles = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in regions]
        told, true = told + len(middles), true + len(boxes)
        hits += sum(any(_inside(middle, box) for box in boxes) for middle in middles)
        found += sum(any(_inside(middle, box) for middle in middles) for box in boxes)
    print(
        f"white cells: {told} regions in {len(photos)} photos, {true} cells; precision "
        f"{hits / max(1, told):.2f}, recall {found / max(1, true):.2f} (a region is right when its middle "
        "lies in a cell's box)"
    )


def _inside(point: tuple[float, float], box: list[float]) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _cut_patches(bccd: Path, split: str, folder: Path, seed: int) -> None:
    """Patches with a whole white cell, and as many without any part of one."""
    if folder.exists():
        return
    generator = np.random.default_rng(seed)
    for name in ("white", "none"):
        (folder / name).mkdir(parents=True)
    for entry in lines(bccd / "index.jsonl"):
        if entry["split"] != split:
            continue
        image = Image.open(bccd / entry["path"]).convert("RGB")
        cells = [box["xyxy"] for box in entry["boxes"] if box["cls"] == "WBC"]
        for number in range(24):
            left, top = (int(generator.integers(0, side - PATCH)) for side in PHOTO)
            shares = [_fraction_inside(cell, (left, top, left + PATCH, top + PATCH)) for cell in cells]
            name = (
                "white"
                if any(share > 0.8 for share in shares)
                else "none"
                if max(shares, default=0) < 0.1
                else ""
            )
            if name and (name == "white" or generator.random() < 0.15):
                patch = image.crop((left, top, left + PATCH, top + PATCH)).resize(
                    (96, 96), Image.Resampling.BOX
                )
                patch.save(folder / name / f"{Path(entry['path']).stem}-{number}.png")


def _fraction_inside(box: list[float], window: tuple[int, int, int, int]) -> float:
    width = min(box[2], window[2]) - max(box[0], window[0])
    height = min(box[3], window[3]) - max(box[1], window[1])
    return max(0.0, width) * max(0.0, height) / max(1.0, (box[2] - box[0]) * (box[3] - box[1]))


# -- tracks -------------------------------------------------------------------------------------------------


def tracks(options: argparse.Namespace) -> None:
    """Cells that pass through a moving window, followed; MOTA and identity switches by motmetrics."""
    import motmetrics

    from finetune.predicting.videos import VideoWriter

    photos = [entry for entry in lines(options.photos / "index.jsonl") if entry["split"] == "test"][
        : 2 * options.clips
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    accumulators, names = [], []
    for pair in zip(photos[::2], photos[1::2], strict=True):
        name = Path(pair[0]["path"]).stem
        video, truth = options.out / f"{name}.mp4", []
        pixels = np.concatenate(
            [np.asarray(Image.open(options.photos / entry["path"]).convert("RGB")) for entry in pair], axis=1
        )
        boxes = [
            np.add(box["xyxy"], (number * PHOTO[0], 0) * 2).tolist()
            for number, entry in enumerate(pair)
            for box in entry["boxes"]
        ]
        with VideoWriter(video, frame_rate=10) as writer:
            for left in np.linspace(0, PHOTO[0], FRAMES).round().astype(int).tolist():
                writer.write(pixels[:, left : left + PHOTO[0]])
                truth.append(_visible(boxes, left))
        out = options.out / f"tracks-{name}"
        command(
            "finetune",
            "predict",
            options.model,
            video,
            out,
            "--track",
            "--track-score",
            options.threshold,
            "--overwrite",
        )
        accumulators.append(_compare(motmetrics, truth, lines(out / "predictions.jsonl")))
        names.append(name)
    metrics = ["num_frames", "mota", "idf1", "precision", "recall", "num_switches", "num_unique_objects"]
    table = motmetrics.metrics.create().compute_many(
        accumulators, metrics=metrics, names=names, generate_overall=True
    )
    print(motmetrics.io.render_summary(table))


def _visible(boxes: list[list[float]], left: int) -> list[tuple[int, list[float]]]:
    """Number and box of the cells of which more than half is in the window, in its pixels."""
    window = (left, 0, left + PHOTO[0], PHOTO[1])
    return [
        (number, np.clip(np.subtract(box, (left, 0) * 2), 0, PHOTO * 2).tolist())
        for number, box in enumerate(boxes)
        if _fraction_inside(box, window) > 0.5
    ]


def _compare(
    motmetrics: Any, truth: list[list[tuple[int, list[float]]]], records: list[dict[str, Any]]
) -> Any:
    import torch
    from torchvision.ops import box_iou

    accumulator = motmetrics.MOTAccumulator(auto_id=True)
    for true, record in zip(truth, records, strict=True):
        ours = [(track["track"], track["box"]) for track in record["tracks"]]
        boxes = [
            torch.tensor([box for _, box in part], dtype=torch.float32).view(-1, 4) for part in (true, ours)
        ]
        iou = box_iou(*boxes).numpy()
        distances = np.where(iou >= 0.5, 1 - iou, np.nan)
        accumulator.update([number for number, _ in true], [number for number, _ in ours], distances)
    return accumulator


if __name__ == "__main__":
    main()
