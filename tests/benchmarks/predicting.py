"""Prediction over Parquet: images a second of `finetune predict` with no worker, one and two,
beside a plain loop.

    python -m tests.benchmarks.predicting SHARDS [--copies 10] [--size 128] [--encoder convattn_nano]

A classifier with random weights predicts for every image of SHARDS, as many times as --copies says (files
that are copies of each other). The plain loop is what one would write: Parquet rows one after another,
Pillow decodes and crops, the same model predicts in batches of 64. On Ray the rate is that of the parts
after each worker's first, from when they were written;
seconds from the command to its end are told beside it.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from finetune.model import load_model

BATCH = 64


def main(arguments: list[str] | None = None) -> None:
    """Makes a model and copies of the data, measures one after another and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.predicting", description=__doc__)
    parser.add_argument("shards", type=Path, help="folder of labelled shards")
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--encoder", default="convattn_nano")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command(
            "configs/finetune/classification.yaml", "encoder=random", f"architecture.name={options.encoder}",
            f"data.url={options.shards.absolute()}", f"validation_url={options.shards.absolute()}",
            f"out={folder / 'run'}",
            f"image_size={options.size}", "training.steps=2", "compare=[]", "cluster.workers=0",
            "report_images=0",
        )  # fmt: skip
        model, data = folder / "run" / "model", folder / "data"
        data.mkdir()
        for copy in range(options.copies):
            for shard in sorted(options.shards.glob("*.parquet")):
                shutil.copy(shard, data / f"{copy:03d}-{shard.name}")
        num_images, seconds = plain_loop(model, data, options.size)
        print(f"{num_images:,} images of {options.size} pixels, {options.encoder}, {os.cpu_count()} CPUs")
        print(f"plain loop          {num_images / seconds:7.0f} images/s")
        for workers in (0, 1, 2):
            out = folder / f"out{workers}"
            began = time.monotonic()
            said = command("predict", str(model), str(data), str(out), f"--workers={workers}")
            whole = time.monotonic() - began
            if workers:
                rate = rate_of_parts(out / "parts", workers)
            else:
                rate = float(said.rpartition(" a second)")[0].rpartition("(")[2])
            print(
                f"predict, {workers} workers  {rate:7.0f} images/s, {whole:5.1f} s from the command to its "
                "end",
                flush=True,
            )


def plain_loop(model: Path, data: Path, size: int) -> tuple[int, float]:
    """The number of images, and the seconds that predicting takes."""
    predictor = load_model(str(model))
    started, num_images = time.monotonic(), 0
    for path in sorted(data.glob("*.parquet")):
        for rows in pq.ParquetFile(path).iter_batches(BATCH, columns=["image"]):
            pixels = []
            for row in rows.column("image").to_pylist():
                image = Image.open(io.BytesIO(row["bytes"])).convert("RGB")
                side = 0.875 * min(image.size)
                left, top = (image.width - side) / 2, (image.height - side) / 2
                image = image.resize(
                    (size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side)
                )
                pixels.append(np.asarray(image).transpose(2, 0, 1))
            num_images += len(predictor.results([np.stack(pixels)], None))
    return num_images, time.monotonic() - started


def rate_of_parts(parts: Path, workers: int) -> float:
    """Images a second of all parts but those that each worker wrote first."""
    written = sorted(
        (path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in parts.glob("*.parquet")
    )
    if len(written) <= workers:
        raise SystemExit("too few parts to measure a rate: give more --copies")
    return sum(rows for _, rows in written[workers:]) / (written[-1][0] - written[workers - 1][0])


def command(*arguments: str) -> str:
    """Runs `python -m finetune`; returns what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "finetune", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
