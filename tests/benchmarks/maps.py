"""Do the maps mean something? Attention and class maps inside the boxes of what is there,
pretrained beside random weights.

    python -m tests.benchmarks.maps [--bccd FOLDER] [--seeds 0 1 2] [--out runs/maps]

Demo scenes: SimCLR by `configs/pretrain/demo.yaml`, then the classifier of `configs/finetune/demo.yaml` from
these weights and from random ones. On the held-out scenes: the share of attention inside the boxes of all
things, the share of the true class's Grad-CAM inside the main thing's box, and how often its highest point
lies there (pointing game, https://arxiv.org/abs/1608.00507). White cells: FOLDER is the BCCD set with
`index.jsonl`; pretraining sees the train images without boxes, the classifier tiles with and without a white
cell, and the maps whole test images; beside Grad-CAM stands what `predict --localize --size` makes of them,
window by window.

Attention that prefers nothing puts into boxes what they take of the area, so shares are also given as
multiples of that; for hits that area is the chance. The head of attention is chosen on training images, for
both kinds of weights alike. Runs that are finished in `--out` are not repeated.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from finetune.class_maps import grad_cam
from finetune.model import load_model
from finetune.predicting.localizing import Localizer
from pretrain.data.images.heat_maps import enlarged
from pretrain.data.packing.packing import ShardWriter, schema_of
from pretrain.data.scenes.scenes import write_demo
from pretrain.data.views.augment import normalised
from pretrain.encoders import Encoder, build_encoder, load_encoder, read_encoder_config
from pretrain.encoders.attention_maps import attention_maps, attention_rollout

NUM_SCENES, DEMO_STEPS = 2000, 450
BCCD_SIZE, TILE, CROP_FRACTION = (320, 240), 96, 0.875
MAP_SIZE = (
    256,
    192,
)  # at which a cell is about as large as in a tile that is cropped and scaled to 64 pixels
NUM_CHOOSING = 100  # training images on which a head is chosen


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, uint8 [N, 3, H, W], for each the boxes looked for (shares
    of the sides, [n, 4]) and a class.
    """

    images_N3HW: np.ndarray
    boxes: list[np.ndarray]
    classes: list[str]

    def first(self, num: int) -> ImageSet:
        """The first of them."""
        return ImageSet(self.images_N3HW[:num], self.boxes[:num], self.classes[:num])


def main(arguments: list[str] | None = None) -> None:
    """Trains what is not trained yet and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.maps", description=__doc__)
    parser.add_argument("--bccd", type=Path)
    parser.add_argument("--only-bccd", action="store_true", help="the white cells alone")
    parser.add_argument("--bccd-steps", type=int, default=200, help="of pretraining on the blood")
    parser.add_argument("--bccd-epochs", type=int, default=5, help="of the classifier of tiles")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/maps"))
    options = parser.parse_args(arguments)
    if not options.only_bccd:
        demo_scenes(options.out / "demo", options.seeds)
    if options.bccd is not None:
        white_cells(
            options.bccd,
            options.out / "bccd",
            options.seeds,
            num_steps=options.bccd_steps,
            num_epochs=options.bccd_epochs,
        )


@torch.no_grad()
def demo_scenes(out: Path, seeds: Sequence[int]) -> None:
    """The table of the demo scenes."""
    if not (out / "data" / "demo.json").exists():
        write_demo(str(out / "data"), num_images=NUM_SCENES)
    train, test = (scenes(out / "data" / split) for split in ("train", "validation"))
    main_boxes = ImageSet(test.images_N3HW, [boxes[:1] for boxes in test.boxes], test.classes)
    rows = []
    for seed in seeds:
        encoder = pretrained(out / f"seed{seed}", "configs/pretrain/demo.yaml", out / "data" / "train", seed,
                             f"training.steps={DEMO_STEPS}", "rankme_images=0")  # fmt: skip
        rows += [
            ("attention", name, *numbers) for name, numbers in attention_rows(encoder, train, test, seed)
        ]
        for name, start in (("pretrained", encoder), ("random", f"random:{encoder}")):
            model = finetuned(out / f"seed{seed}-{name}", start, out / "data", seed)
            rows.append(("Grad-CAM", f"{name}: true class", *class_map_numbers(model, main_boxes)))
    report(
        f"demo scenes: {len(test.boxes)} held-out scenes, seeds {list(seeds)}, main box for Grad-CAM, all "
        "boxes else",
        rows,
    )


@torch.no_grad()
def white_cells(source: Path, out: Path, seeds: Sequence[int], *, num_steps: int, num_epochs: int) -> None:
    """The table of the white cells."""
    train, test = (blood(source, split, MAP_SIZE) for split in ("train", "test"))
    if not (out / "tiles" / "validation").exists():
        write_images(out / "images", blood(source, "train", BCCD_SIZE))
        for split, folder in (("train", "train"), ("val", "validation")):
            write_tiles(out / "tiles" / folder, blood(source, split, BCCD_SIZE))
    rows = []
    for seed in seeds:
        encoder = pretrained(
            out / f"seed{seed}", "configs/pretrain/small/simclr.yaml", out / "images", seed,
            f"training.steps={num_steps}", "views.arguments={crop_scale: [0.03, 0.3]}", "rankme_images=0",
        )  # fmt: skip
        rows += [
            ("attention", name, *numbers) for name, numbers in attention_rows(encoder, train, test, seed)
        ]
        for name, start in (("pretrained", encoder), ("random", f"random:{encoder}")):
            model = finetuned(
                out / f"seed{seed}-{name}", start, out / "tiles", seed, f"training.epochs={num_epochs}"
            )
            rows.append(("Grad-CAM", f"{name}: white cell", *class_map_numbers(model, test)))
            rows.append(("windows", f"{name}: white cell", *window_numbers(model, test)))
    title = (
        f"white cells: {len(test.boxes)} test images, seeds {list(seeds)}, {num_steps} steps, "
        f"{num_epochs} epochs"
    )
    report(title, rows)


# -- maps and their numbers ---------------------------------------------------------------------------------


def attention_rows(
    encoder_url: str, train: ImageSet, test: ImageSet, seed: int
) -> list[tuple[str, tuple[float, ...]]]:
    """Share of attention inside boxes, over that of their area:
    by rollout, and by the head that is best on `train`.
    """
    config = read_encoder_config(encoder_url)
    torch.manual_seed(seed)
    fresh = build_encoder(config.name, **config.arguments)
    rows = []
    for name, encoder in (("pretrained", load_encoder(encoder_url)), ("random", fresh)):
        rows.append((f"{name}: rollout", numbers_of(rollout_of(encoder, test), test)))
        heads = every_head(encoder, train.first(NUM_CHOOSING))
        best = max(heads, key=lambda key: numbers_of(heads[key], train.first(NUM_CHOOSING))[0])
        rows.append((f"{name}: best head", numbers_of(every_head(encoder, test)[best], test)))
    return rows


def rollout_of(encoder: Encoder, images: ImageSet) -> np.ndarray:
    """[N, H, W]."""
    return np.concatenate([attention_rollout(encoder, some).numpy() for some in batches(images)])


def every_head(encoder: Encoder, images: ImageSet) -> dict[tuple[str, int], np.ndarray]:
    """[N, H, W] of each layer and head."""
    heads: dict[tuple[str, int], list[np.ndarray]] = {}
    for some in batches(images):
        for layer, maps_BhHW in attention_maps(encoder, some).items():
            for head in range(maps_BhHW.shape[1]):
                heads.setdefault((layer, head), []).append(maps_BhHW[:, head].numpy())
    return {key: np.concatenate(parts) for key, parts in heads.items()}


def class_map_numbers(model_url: str, images: ImageSet) -> tuple[float, ...]:
    """Numbers of the images' own classes' Grad-CAM."""
    predictor = load_model(model_url)
    names = predictor.config["class_names"]
    heats, start = [], 0
    for some in batches(images):
        classes = torch.tensor([names.index(name) for name in images.classes[start : start + len(some)]])
        heats.append(grad_cam(predictor.model, some, classes).numpy())
        start += len(some)
    return numbers_of(np.concatenate(heats), images)


def window_numbers(model_url: str, images: ImageSet) -> tuple[float, ...]:
    """Numbers of the evidence for the images' classes in windows of the size that the model learnt from."""
    predictor, size = load_model(model_url), min(images.images_N3HW.shape[2:])
    localizers = {name: Localizer(predictor, name, size=size) for name in set(images.classes)}
    heats = [
        localizers[name].localize_pixels(np.ascontiguousarray(image_3HW.transpose(1, 2, 0))).heat_HW
        for image_3HW, name in zip(images.images_N3HW, images.classes, strict=True)
    ]
    return numbers_of(np.stack(heats), images)


def numbers_of(maps_NHW: np.ndarray, images: ImageSet) -> tuple[float, float, float, float]:
    """Share inside the boxes over the boxes' area, that share, that area,
    and how often the highest point is inside.
    """
    height, width = images.images_N3HW.shape[2:]
    shares, areas, hits = [], [], []
    for map_HW, boxes in zip(maps_NHW, images.boxes, strict=True):
        inside_HW = np.zeros((height, width), bool)
        for left, top, right, low in boxes:
            inside_HW[
                round(top * height) : round(low * height), round(left * width) : round(right * width)
            ] = True
        heat_HW = enlarged(map_HW, (height, width)).clip(0)
        even = not heat_HW.max() > 0  # a map of nothing points nowhere
        areas.append(float(inside_HW.mean()))
        shares.append(areas[-1] if even else float(heat_HW[inside_HW].sum() / heat_HW.sum()))
        hits.append(0.0 if even else float(inside_HW.flat[heat_HW.argmax()]))
    share, area = statistics.mean(shares), statistics.mean(areas)
    return share / area, share, area, statistics.mean(hits)


def batches(images: ImageSet, size: int = 50) -> list[Tensor]:
    """Normalised images."""
    parts = range(0, len(images.boxes), size)
    return [normalised(images.images_N3HW[start : start + size], torch.device("cpu")) for start in parts]


def report(title: str, rows: Sequence[tuple[str, str, float, float, float, float]]) -> None:
    """Means over seeds, and their range."""
    print(
        "\n"
        f"{title}\n"
        f"{'':12}{'':28}{'x even':>8}{'(range)':>16}{'inside':>9}{'area':>8}{'hits':>8}{'(range)':>18}"
    )
    for kind, name in dict.fromkeys((row[0], row[1]) for row in rows):
        ratios, shares, areas, hits = zip(*(row[2:] for row in rows if row[:2] == (kind, name)))
        mean = statistics.mean
        print(
            f"{kind:12}{name:28}{mean(ratios):>8.2f}{f'{min(ratios):.2f} to {max(ratios):.2f}':>16}"
            f"{mean(shares):>9.1%}"
            f"{mean(areas):>8.1%}{mean(hits):>8.1%}{f'{min(hits):.0%} to {max(hits):.0%}':>18}"
        )


# -- runs ---------------------------------------------------------------------------------------------------


def pretrained(out: Path, config: str, data: Path, seed: int, *overrides: str) -> str:
    """The encoder of a pretraining run."""
    if not (out / "encoder" / "config.json").exists():
        command(
            "pretrain",
            config,
            f"data.url={data}",
            f"out={out}",
            f"seed={seed}",
            "cluster.workers=0",
            *overrides,
        )
    return f"{out}/encoder"


def finetuned(out: Path, encoder: str, data: Path, seed: int, *overrides: str) -> str:
    """The model of a fine-tuning run, evaluated on `data`/validation."""
    if not (out / "result.json").exists():
        command(
        "finetune", "configs/finetune/demo.yaml", f"encoder={encoder}", f"data.url={data}/train",
        "compare=[]",
        f"validation_url={data}/validation", f"out={out}", f"seed={seed}", f"crop_fraction={CROP_FRACTION}",
        *overrides,
    )  # fmt: skip
    accuracy = json.loads((out / "result.json").read_text())["metrics"]["accuracy"]
    print(f"{out}: accuracy {accuracy:.1%}", flush=True)
    return f"{out}/model"


def command(module: str, *arguments: str) -> None:
    """Runs one of the project's commands."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"python -m {module} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}{done.stdout[-2000:]}"
        )


# -- data ---------------------------------------------------------------------------------------------------


def scenes(folder: Path) -> ImageSet:
    """The demo's scenes as they are, 96 x 96; the first box is the main thing's."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])
    images = [pixels(row["bytes"]) for row in table["image"].to_pylist()]
    boxes = []
    for objects in table["objects"].to_pylist():
        left, top, width, height = np.array(objects["bbox"]).T / images[0].shape[1]
        boxes.append(np.stack([left, top, left + width, top + height], axis=1))
    return ImageSet(np.stack(images), boxes, table["label"].to_pylist())


def blood(source: Path, split: str, size: tuple[int, int]) -> ImageSet:
    """BCCD images that hold a white cell, scaled to width and height, with the white cells' boxes."""
    images, boxes = [], []
    for line in (source / "index.jsonl").read_text().splitlines():
        record = json.loads(line)
        sides = np.array([record["w"], record["h"]] * 2)
        white = [np.array(box["xyxy"]) / sides for box in record["boxes"] if box["cls"] == "WBC"]
        white = [box for box in white if (box[2:] > box[:2]).all()]
        if record["split"] == split and white:
            image = Image.open(source / record["path"]).convert("RGB").resize(size, Image.Resampling.BOX)
            images.append(np.asarray(image).transpose(2, 0, 1))
            boxes.append(np.stack(white))
    return ImageSet(np.stack(images), boxes, ["white cell"] * len(images))


def write_images(folder: Path, images: ImageSet) -> None:
    """Shards of whole images."""
    with ShardWriter(str(folder), schema_of()) as writer:
        for number, image in enumerate(images.images_N3HW):
            writer.write({"image": {"bytes": png(image), "path": f"{number}.png"}})


def write_tiles(folder: Path, images: ImageSet) -> None:
    """Shards of tiles with a white cell's centre in their inner half,
    and of as many that no white cell touches.
    """
    generator = np.random.default_rng(0)
    with ShardWriter(str(folder), schema_of(label=pa.string())) as writer:
        for number, (image, boxes) in enumerate(zip(images.images_N3HW, images.boxes, strict=True)):
            height, width = image.shape[1:]
            left, top, right, low = (boxes * np.array([width, height] * 2)).T
            corners = [
                (x, y)
                for y in range(0, height - TILE + 1, TILE // 4)
                for x in range(0, width - TILE + 1, TILE // 4)
            ]
            far = [
                np.maximum(abs((left + right) / 2 - x - TILE / 2), abs((top + low) / 2 - y - TILE / 2))
                for x, y in corners
            ]
            touched = [
                ((left < x + TILE) & (right > x) & (top < y + TILE) & (low > y)).any() for x, y in corners
            ]
            white = [
                corner for corner, distance in zip(corners, far, strict=True) if (distance < TILE / 4).any()
            ]
            none = [corner for corner, touches in zip(corners, touched, strict=True) if not touches]
            some = generator.permutation(len(none))[: max(1, len(white))]
            for label, chosen in (("white cell", white), ("none", [none[index] for index in some])):
                for x, y in chosen:
                    encoded = {
                        "bytes": png(image[:, y : y + TILE, x : x + TILE]),
                        "path": f"{number}-{x}-{y}.png",
                    }
                    writer.write({"image": encoded, "label": label})


def pixels(data: bytes) -> np.ndarray:
    """uint8 [3, H, W]."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)


def png(image_3HW: np.ndarray) -> bytes:
    """An encoded image."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image_3HW.transpose(1, 2, 0))).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
