"""Does training on our views reach what training on lightly's reaches? kNN
accuracy after the same number of steps.

    python -m tests.benchmarks.view_training PHOTOS [--seeds 0 1 2] [--epochs 20] [key=value ...]

PHOTOS holds `train` and `test`, each with a folder a class. Both runs of a seed are
`configs/pretrain/small/simclr.yaml` in this process, with the same order of images, weights and steps; only
the views differ: ours, or those of lightly's SimCLRTransform with the same settings, decoded by Pillow. The
kNN looks for neighbours of test images in the train split.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lightly.transforms import SimCLRTransform
from PIL import Image

from cluster.errors import run_command
from pretrain.__main__ import main as pretrain_main
from pretrain.data.packing.importing import ImportOptions, import_images
from pretrain.data.views.viewing import Viewer


class LightlyViews:
    """Host transform that leaves an image to lightly."""

    parameters = geometry_VB5 = None

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.transform = SimCLRTransform(spec.size, min_scale=spec.crop_scale[0], normalize=None)
        self.arrays: list[np.ndarray] = []

    def begin(self, passes: np.ndarray, row_ids: np.ndarray) -> LightlyViews:
        filling = type(self)(self.spec)
        size = self.spec.size
        filling.arrays = [np.empty((len(row_ids), 3, size, size), np.uint8) for _ in range(2)]
        return filling

    def fill(self, index: int, data: Any) -> None:
        image = Image.open(io.BytesIO(bytes(data))).convert("RGB")
        for array, view in zip(self.arrays, self.transform(image), strict=True):
            array[index] = (view * 255).round().byte().numpy()


class LightlyViewer(Viewer):
    """Makes the views of a run by lightly's transform."""

    views = LightlyViews

    def source(self, shards: Any, *, decode_threads: int) -> Any:
        return shards, self.views(self.specs[0])

    def kept_images(self) -> None:
        """Its transform takes no images that we decoded."""


def main(arguments: list[str] | None = None) -> None:
    """Trains twice a seed and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.view_training", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    options, overrides = parser.parse_known_args(arguments)
    accuracies: dict[str, list[float]] = {"ours": [], "lightly": []}
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "test"):
            packed = ImportOptions(short_side=160)
            import_images(str(options.photos / split), f"{folder}/{split}", packed, show_progress=False)
        for seed in options.seeds:
            for name, viewer in (("ours", Viewer), ("lightly", LightlyViewer)):
                torch.manual_seed(seed)
                np.random.seed(seed)
                out = Path(folder) / f"{name}{seed}"
                settings = [
                    "configs/pretrain/small/simclr.yaml", f"data.url={folder}/train", f"out={out}",
                    f"seed={seed}", "cluster.workers=0", f"training.epochs={options.epochs}",
                    f"knn.train_url={folder}/train",
                    f"knn.test_url={folder}/test", "knn.every_epochs=0", *overrides,
                ]  # fmt: skip
                with mock.patch("pretrain.run.Viewer", viewer):
                    if run_command(lambda settings=settings: pretrain_main(settings)) != 0:
                        raise SystemExit(f"the run in {out} failed")
                metrics = json.loads((out / "result.json").read_text())["metrics"]
                accuracies[name].append(metrics["knn_accuracy"])
    print(f"\n{options.epochs} epochs; kNN accuracy on test, seeds {options.seeds}")
    for name, values in accuracies.items():
        spread = f" +- {statistics.stdev(values):.1%}" if len(values) > 1 else ""
        print(
            f"{name:8} {'  '.join(f'{value:.1%}' for value in values)}   mean "
            f"{statistics.mean(values):.1%}{spread}"
        )


if __name__ == "__main__":
    main()
