"""What views cost on the host, beside lightly's transforms and beside decoding alone.

    python -m tests.benchmarks.views PHOTOS [--images 160] [--repeats 5] [--sheet aliasing.png]

PHOTOS is a folder of image files (searched recursively). Everything runs in one thread and is measured in
CPU time of that thread; the contestants take turns, and the medians of the repeats are compared. Lightly's
time includes decoding by Pillow. `decoding alone` interpolates colours that a JPEG stores at half the
resolution, as Pillow does; `decoding as for views` does not. `host part` is decoding, cropping and flipping
to uint8, what an accelerator leaves to the host; `finished` adds colours and normalised floats on the CPU.
Last come images a second of whole pipelines, from Parquet shards to finished batches, with one and two
threads, beside a training step of convattn_small on this CPU.

It shows a crop that shrinks an image much, with our filter and without any.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import lightly.transforms
import numpy as np
import torch
from PIL import Image

from pretrain.data.images.buffer_pool import BufferPool
from pretrain.data.images.pixels import open_image
from pretrain.data.packing.importing import import_images
from pretrain.data.reading.loader import Loader
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Order
from pretrain.data.reading.shards import Shards
from pretrain.data.views.augment import finish_views
from pretrain.data.views.random_views import RandomViews, write_crop
from pretrain.data.views.recipes import recipe_views

BATCH, CPU, FLOATS = 32, torch.device("cpu"), BufferPool()
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the comparison."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.views", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sheet", type=Path, help="write the image of aliasing here")
    options = parser.parse_args(arguments)
    paths = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    chosen = paths[:: max(1, len(paths) // options.images)][: options.images]
    images = [path.read_bytes() for path in chosen]
    sizes = [Image.open(io.BytesIO(image)).size for image in images]
    print(f"{len(images)} photos, {statistics.mean(map(len, images)) / 1000:.1f} kB and "
          f"{statistics.mean(w * h for w, h in sizes) / 1e6:.2f} megapixels on average")  # fmt: skip
    torch.set_num_threads(1)
    compare(images, options.repeats)
    scaling(images)
    pipeline(chosen, images)
    if options.sheet is not None:
        options.sheet.write_bytes(aliasing())
        print(f"aliasing, looked at: {options.sheet}")


def compare(images: list[bytes], repeats: int) -> None:
    """Lightly's transforms, our host part, finished views and decoding alone, taking turns."""
    theirs = {"simclr": lightly.transforms.SimCLRTransform(), "dino": lightly.transforms.DINOTransform()}
    contestants: dict[str, Callable[[], object]] = {
        "decoding alone": lambda: [open_image(image).decode(1) for image in images],
        "decoding as for views": lambda: [open_image(image, fast=True).decode(1) for image in images],
        "decoding alone, Pillow": lambda: [Image.open(io.BytesIO(image)).convert("RGB") for image in images],
    }
    for name, transform in theirs.items():
        contestants[f"{name}: lightly"] = lambda transform=transform: [
            transform(Image.open(io.BytesIO(image)).convert("RGB")) for image in images
        ]
        contestants[f"{name}: host part"] = lambda name=name: made(images, name, colours=False, finish=False)
        contestants[f"{name}: finished"] = lambda name=name: made(images, name, colours=True, finish=True)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(-1, repeats):  # the first round compiles and warms up
        for name, contestant in contestants.items():
            started = time.thread_time()
            contestant()
            if repeat >= 0:
                times[name].append((time.thread_time() - started) / len(images) * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:24} {value:8.3f} ms an image ({1000 / value:6.0f} images/s)")
    decoding, coarser = medians["decoding alone"], medians["decoding as for views"]
    print()
    for name in theirs:
        host, whole = medians[f"{name}: host part"], medians[f"{name}: finished"]
        print(
            f"{name}: host part {medians[f'{name}: lightly'] / host:.1f} times as fast as lightly, "
            f"{host / decoding:.2f} times decoding alone ({host / coarser:.2f} without interpolation); "
            f"finished on the CPU {medians[f'{name}: lightly'] / whole:.1f} times as fast as lightly"
        )


def made(images: list[bytes], recipe: str, *, colours: bool, finish: bool) -> None:
    """All views of all images, batch by batch, as the loader makes them."""
    transform = transform_of(recipe, colours)
    for start in range(0, len(images), BATCH):
        rows = np.arange(start, min(start + BATCH, len(images)))
        filling = transform.begin(rows * 0, rows)
        for index, row in enumerate(rows):
            filling.fill(index, images[row])
        if finish:
            finish_views(filling.arrays, filling.parameters, device=CPU, buffer_pool=FLOATS)


@functools.cache
def transform_of(recipe: str, colours: bool) -> RandomViews:
    """One for all batches, as a loader has it."""
    return RandomViews(recipe_views(recipe, 224, {}), seed=0, colours_on_host=colours)


def pipeline(paths: list[Path], images: list[bytes]) -> None:
    """Images a second from Parquet shards to finished batches, and the share of a training step."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photos"
        source.mkdir()
        for number, (path, image) in enumerate(zip(paths, images, strict=True)):
            (source / f"{number}{path.suffix}").write_bytes(image)
        import_images(str(source), f"{folder}/shards", show_progress=False)
        shards = Shards(load_manifest(f"{folder}/shards"), image_column="image")
        order = Order(
            shards.manifest.rows_of_group, batch_size_global=BATCH, num_streams=4, window_rows=128, seed=0
        )
        print()
        rates = {}
        for threads, colours in ((1, False), (2, False), (1, True), (2, True)):
            rate, cpu = loaded(order, shards, threads, colours)
            rates[threads, colours] = cpu
            what = "finished on the CPU" if colours else "uint8 for an accelerator"
            print(
                f"pipeline, two views of 224 pixels, {what}, {threads} thread{'s'[: threads > 1]}: "
                f"{rate:.0f} images/s, {1000 / cpu:.0f} images/s a core"
            )
    step = training_step()
    print(
        f"a step of convattn_small (SimCLR, 224 pixels, one thread) is {step:.0f} ms of CPU an image; "
        f"finished views are {rates[1, True] / (step + rates[1, True]):.2%} of both"
    )


def scaling(images: list[bytes]) -> None:
    """The host part by one thread, by two threads, and by two processes that hand nothing over:
    the most they could do.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as processes, ThreadPoolExecutor(2) as threads:
        for pool in (processes, threads):  # start and compile
            list(pool.map(host_part, [images[:4]] * 4))
        rates: dict[str, list[float]] = {"one thread": [], "two threads": [], "two processes": []}
        for _ in range(3):
            for name in rates:
                started = time.perf_counter()
                if name == "one thread":
                    host_part(images)
                    num = len(images)
                else:
                    list((threads if name == "two threads" else processes).map(host_part, [images, images]))
                    num = 2 * len(images)
                rates[name].append(num / (time.perf_counter() - started))
    words = ", ".join(f"{name} {statistics.median(values):.0f}" for name, values in rates.items())
    print(f"host part of simclr, images/s by the clock: {words}")


def host_part(images: list[bytes]) -> None:
    """Two uint8 views of each image."""
    made(images, "simclr", colours=False, finish=False)


def loaded(order: Order, shards: Shards, threads: int, colours: bool) -> tuple[float, float]:
    """Images a second by the clock, and milliseconds of CPU an image in all threads."""
    transform, num_batches = transform_of("simclr", colours), 30
    with Loader(order, shards, transform, rank=0, world_size=1, decode_threads=threads) as loader:
        for _ in itertools.islice(loader, 5):
            pass
        wall, cpu = time.perf_counter(), time.process_time()
        for batch in itertools.islice(loader, num_batches):
            if colours:
                finish_views(batch.arrays, batch.parameters, device=CPU, buffer_pool=FLOATS)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return num_batches * BATCH / wall, cpu / (num_batches * BATCH) * 1e3


def training_step() -> float:
    """Milliseconds of CPU an image of forward, backward and optimizer."""
    from pretrain.encoders import build_encoder
    from pretrain.methods import build_method

    torch.manual_seed(0)
    num = 8
    method = build_method("simclr", build_encoder("convattn_small"), {})
    optimizer = torch.optim.AdamW(method.parameters())
    views = [torch.randn(num, 3, 224, 224) for _ in range(2)]
    times = []
    for _ in range(3):
        started = time.process_time()
        method(views).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append((time.process_time() - started) / num * 1e3)
    return min(times)


def aliasing() -> bytes:
    """A PNG of rings whose frequency grows outwards, shrunk by six:
    with our filters, and by picking single pixels.
    """
    side, small = 1344, 224
    y, x = np.mgrid[:side, :side] - side / 2
    rings = (127.5 + 127.5 * np.cos((x**2 + y**2) * np.pi / side / 2.2)).astype(np.uint8)
    pixels = np.repeat(rings[:, :, None], 4, axis=2)[None]
    images = []
    for cubic in (False, True):
        target = np.empty((3, small, small), np.uint8)
        write_crop(pixels, (0, 0, side, side), target, cubic=cubic)
        images.append(target.transpose(1, 2, 0))
    images.append(
        np.asarray(Image.fromarray(rings).resize((small, small), Image.Resampling.NEAREST).convert("RGB"))
    )
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(images, axis=1)).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
