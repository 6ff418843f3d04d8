"""SimCLR on the accelerator: images a second, and the share of its bfloat16 peak, beside lightly's loop.

    python -m tests.benchmarks.accelerator PHOTOS [--size 224] [--batch 256] [--steps 60] [--small-batch 1024]

PHOTOS holds `train` with a folder a class. Each encoder trains as `configs/pretrain/simclr.yaml` does, in-process: from shards
of the photos, with the photos kept decoded in memory, with views made by lightly's transform in one process a core, and as
lightly's documentation builds the loop, with one DataLoader worker a core. Last, SimCLR on the same photos as squares of 32
pixels, all of them on the device. Images count once, not each view.

The peak is measured here, by products of large bfloat16 matrices; floating-point operations of a step are those that
`torch.utils.flop_counter` counts in forward and backward of both views. `waits` is the share of the time in which the loop
waited for data, and the device part is what finishes uploaded crops: colours, blur and normalisation of both views. Without
a GPU it runs in float32 on the CPU.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from pretrain.data.views.augment import finish_views
from pretrain.data.views.random_views import RandomViews
from pretrain.data.views.recipes import recipe_views
from pretrain.encoders import build_encoder
from tests.benchmarks.lightly_loops import seconds_per_step
from tests.benchmarks.view_training import LightlyViewer, LightlyViews

ENCODERS = ("convattn_small", "timm:resnet50")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main(arguments: list[str] | None = None) -> None:
    """Measures one after another and prints each as it comes."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.accelerator", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--small-batch", type=int, default=1024)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--lightly", metavar="ENCODER", help=argparse.SUPPRESS)
    parser.add_argument("--fed-by-lightly", nargs="+", metavar="SETTING", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.fed_by_lightly:
        raise SystemExit(train_fed_by_lightly(options.fed_by_lightly))
    if options.lightly:
        print(json.dumps(lightly(options.lightly, options)))
        return

    peak = peak_flops()
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(
        f"{name}, {os.cpu_count()} cores, torch {torch.__version__}; peak {peak / 1e12:.2f} TFLOP/s (bfloat16 on a GPU)"
    )
    with tempfile.TemporaryDirectory() as folder:
        pack(options.photos, Path(folder))
        finishing = device_part(options.size, options.batch) / options.batch
        print(
            f"device part: {finishing * 1e6:.1f} microseconds an image, two views of {options.size} pixels", flush=True
        )
        size = [f"views.size={options.size}", f"training.batch_size_global={options.batch}"]
        for encoder in options.encoders:
            work = step_flops(encoder, options.size)
            chosen = [f"encoder.name={encoder}", *size]
            measured = {
                "ours, decoding": ours(f"{folder}/photos", options.steps, chosen),
                "ours, kept decoded": ours(f"{folder}/photos", options.steps, [*chosen, "data.keep=host"]),
                "ours, fed by lightly": ours(f"{folder}/photos", options.steps, chosen, fed_by_lightly=True),
                "lightly": (_lightly_process(encoder, options), None),
            }
            for whose, (speed, waits) in measured.items():
                times = speed / measured["lightly"][0]
                more = "" if waits is None else f"  waits {waits:.1%}  device part {finishing * speed:.1%} of the step"
                print(f"{encoder:16} {options.size} pixels  {whose:20} {speed:>8.1f} images/s  "
                      f"{speed * work / peak:>6.1%} of the peak  {times:>6.2f} times lightly{more}", flush=True)  # fmt: skip
        small = [f"training.batch_size_global={options.small_batch}", "views.size=32", "encoder.name=convattn_nano"]
        for keep in ("none", "host"):
            speed, waits = ours(f"{folder}/squares", options.steps, [*small, f"data.keep={keep}"])
            print(
                f"convattn_nano    32 pixels, data.keep={keep:6} {speed:>8.1f} images/s  waits {waits:.1%}", flush=True
            )


def pack(photos: Path, folder: Path) -> None:
    """Shards of the photos as they are, and of squares of 32 pixels, eight of each photo."""
    from pretrain.data.packing.importing import ImportOptions, import_images

    import_images(str(photos / "train"), str(folder / "photos"), ImportOptions(), show_progress=False)
    files = folder / "files"
    files.mkdir()
    for number, path in enumerate(sorted(path for path in (photos / "train").rglob("*") if path.is_file())):
        try:
            image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB").resize((64, 64))
        except OSError:
            continue  # not an image
        for part in range(8):
            left, top = part % 4 * 10, part // 4 * 30
            image.crop((left, top, left + 32, top + 32)).save(files / f"{number}_{part}.png")
    import_images(str(files), str(folder / "squares"), ImportOptions(), show_progress=False)


def device_part(size: int, batch: int) -> float:
    """Seconds in which the device finishes the two views of a batch whose crops it has."""
    specs, rows = recipe_views("simclr", size, {}), np.arange(batch)
    filling = RandomViews(specs, seed=0, colours_on_host=False).begin(rows * 0, rows)
    photo = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)).save(photo, "PNG")
    for row in rows:
        filling.fill(int(row), photo.getvalue())
    device = torch.device(DEVICE)
    arrays = [torch.as_tensor(array).to(device) for array in filling.arrays]
    parameters = [torch.as_tensor(array).to(device) for array in filling.parameters or ()]
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        float(finish_views(arrays, parameters, device=device)[-1][0, 0, 0, 0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[3:])  # the first ones compile


def ours(shards: str, steps: int, overrides: list[str], *, fed_by_lightly: bool = False) -> tuple[float, float]:
    """Images a second, and the share of waiting for data, over the later half of the run, in a process of its own."""
    program = ["tests.benchmarks.accelerator", shards, "--fed-by-lightly"] if fed_by_lightly else ["pretrain"]
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, "-m", *program, "configs/pretrain/simclr.yaml", f"data.url={shards}", f"out={out}/run",
            "cluster.workers=0", "rankme_images=0", f"training.steps={steps}", "training.log_every_steps=5",
            "training.reproducible=false", *overrides,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
        lines = [json.loads(line) for line in (Path(out) / "run" / "metrics.jsonl").read_text().splitlines()]
    half = lines[len(lines) // 2 :]
    return (
        statistics.median(line["images_per_second"] for line in half),
        statistics.median(line["data_wait_fraction"] for line in half),
    )


def train_fed_by_lightly(settings: list[str]) -> int:
    """Our loop, whose views are made by lightly's transform in as many processes as there are cores."""
    from cluster.errors import run_command
    from pretrain.__main__ import main as pretrain_main

    num = os.cpu_count() or 1
    with ProcessPoolExecutor(num, mp_context=multiprocessing.get_context("spawn")) as pool:

        class ViewsOfProcesses(LightlyViews):
            """`fill` waits in a decoding thread for one of the processes."""

            def fill(self, index: int, data: Any) -> None:
                for array, view in zip(self.arrays, pool.submit(lightly_views, self.spec, data).result(), strict=True):
                    array[index] = view

        class FedViewer(LightlyViewer):
            views = ViewsOfProcesses

        with mock.patch("pretrain.run.Viewer", FedViewer):
            return run_command(lambda: pretrain_main([*settings, f"data.decode_threads={num}"]))


def lightly_views(spec: Any, data: bytes) -> list[np.ndarray]:
    """The two views of an image, uint8 [3, size, size], made in a process of the pool."""
    torch.set_num_threads(1)
    views = LightlyViews(spec).begin(np.zeros(1, np.int64), np.zeros(1, np.int64))
    views.fill(0, data)
    return [array[0] for array in views.arrays]


def _lightly_process(encoder: str, options: Any) -> float:
    command = [
        sys.executable, "-m", "tests.benchmarks.accelerator", str(options.photos), "--size", str(options.size),
        "--batch", str(options.batch), "--lightly", encoder,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def lightly(encoder: str, options: Any) -> float:
    """Images a second of lightly's loop, ten steps after the first five."""
    seconds, _ = seconds_per_step(
        "simclr", build_encoder(encoder), str(options.photos / "train"), size=options.size, local=0, batch=options.batch,
        workers=os.cpu_count() or 1, steps=10, skip=5, device=DEVICE,
    )  # fmt: skip
    return options.batch / seconds


def step_flops(encoder: str, size: int) -> float:
    """Of one image: forward and backward of two views."""
    network, images = build_encoder(encoder), torch.randn(2, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        network(images)[-1].sum().backward()
    return float(counter.get_total_flops())


def peak_flops(side: int = 8192 if DEVICE == "cuda" else 1024) -> float:
    """Floating-point operations a second of the best of several products of square matrices."""
    kind = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    first, second = (torch.randn(side, side, dtype=kind, device=DEVICE) for _ in range(2))
    fastest = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        float((first @ second)[0, 0])
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * side**3 / fastest


if __name__ == "__main__":
    main()
