"""Images stored decoded beside the same images as JPEG:
images a second and core for two random crops of 224 pixels, and bytes.

    python -m tests.benchmarks.decoded_form PHOTOS [--images 400] [--short-sides 0 256] [--repeats 5]

PHOTOS is a folder of JPEG files (searched recursively). They are imported twice for each short side (0: at
their size), as JPEG and with `--decoded`. `crops` makes the two views of SimCLR, as bytes for an
accelerator, of images in memory, in CPU time of one thread. `from Parquet` reads the shards as well (which
the system keeps in memory), with one thread that decodes, in CPU time of all threads. The two forms take
turns, their order changes from repeat to repeat, and medians are printed with the ratio in each repeat.
Last, by how much the pixels of the two forms differ, of whole images and of views.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from pretrain.data.images.pixels import open_image
from pretrain.data.packing.importing import ImportOptions, import_images
from pretrain.data.reading.loader import Loader
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Order
from pretrain.data.reading.shards import Shards, read_in_sequence
from pretrain.data.views.random_views import RandomViews
from pretrain.data.views.recipes import recipe_views

BATCH, SIDE, NUM_BATCHES, AHEAD_BYTES = 32, 224, 40, 32 * 2**20
FORMS = ("JPEG", "decoded")


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the comparison."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.decoded_form", description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--short-sides", type=int, nargs="+", default=[0, 256])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    paths = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    chosen = paths[:: max(1, len(paths) // options.images)][: options.images]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        for number, path in enumerate(chosen):
            shutil.copy(path, folder / "photos" / f"{number:05d}.jpg")
        for short_side in options.short_sides:
            compare(folder, short_side, options.repeats)


def compare(folder: Path, short_side: int, repeats: int) -> None:
    """Both forms of the photos at one size."""
    shards, images = {}, {}
    for form in FORMS:
        url = str(folder / f"{form}-{short_side}")
        import_images(
            str(folder / "photos"),
            url,
            ImportOptions(short_side=short_side, decoded_form=form == "decoded"),
            show_progress=False,
        )
        shards[form] = Shards(load_manifest(url), image_column="image")
        images[form] = [
            image for rows in read_in_sequence(shards[form]) for image in rows.images if image is not None
        ]
    sizes = [(opened.width, opened.height) for opened in map(open_image, images["JPEG"])]
    num_bytes = {form: statistics.mean(map(len, images[form])) for form in FORMS}
    print(
        f"{len(sizes)} photos, short side {short_side or 'as it is'}: "
        f"{statistics.mean(w * h for w, h in sizes) / 1e6:.3f} megapixels, {num_bytes['JPEG'] / 1e3:.1f} kB "
        f"as JPEG, {num_bytes['decoded'] / 1e3:.1f} kB decoded "
        f"({num_bytes['decoded'] / num_bytes['JPEG']:.2f} times)"
    )
    for what, measure in (
        ("crops", lambda form: cropped(images[form])),
        ("from Parquet", lambda form: loaded(shards[form])),
    ):
        rates: dict[str, list[float]] = {form: [] for form in FORMS}
        for repeat in range(-1, repeats):  # the first round compiles and warms up
            for form in FORMS if repeat % 2 else FORMS[::-1]:
                rate = measure(form)
                if repeat >= 0:
                    rates[form].append(rate)
        jpeg, decoded = (statistics.median(rates[form]) for form in FORMS)
        ratios = [other / one for one, other in zip(rates["JPEG"], rates["decoded"], strict=True)]
        print(
            f"  {what}: {jpeg:.0f} images/s a core as JPEG, {decoded:.0f} decoded: {decoded / jpeg:.2f} "
            f"times (repeat by repeat {min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
    if not short_side:
        whole = np.concatenate(
            [differences(*(open_image(images[form][row], fast=True).decode(1)[0, :, :,
                :3].copy() for form in FORMS))
             for row in range(len(sizes))]
        )  # fmt: skip
        say("pixels", whole)
    made = {form: views(images[form][: 4 * BATCH]) for form in FORMS}
    say("views", differences(made["JPEG"], made["decoded"]))


def say(what: str, differences_N: np.ndarray) -> None:
    """How far apart channels are, in levels of 255."""
    print(
        f"  {what} differ by {differences_N.mean():.3f} levels on average; equal "
        f"{(differences_N == 0).mean():.1%}, more than 2: {(differences_N > 2).mean():.3%}, more than 8: "
        f"{(differences_N > 8).mean():.4%}, at most {differences_N.max()}"
    )


def differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """uint8 [N]: the absolute differences of all values."""
    return np.abs(one.astype(np.int16) - other).astype(np.uint8).reshape(-1)


def views(images: list[bytes]) -> np.ndarray:
    """The two views of each image, uint8 [2, B, 3, S, S]."""
    rows = np.arange(len(images))
    filling = RandomViews(recipe_views("simclr", SIDE, {}), seed=0, colours_on_host=False).begin(
        rows * 0, rows
    )
    for index, image in enumerate(images):
        filling.fill(index, image)
    return np.stack(filling.arrays)


def cropped(images: list[bytes]) -> float:
    """Images a second of this thread's time, batch by batch as a loader makes them."""
    transform = RandomViews(recipe_views("simclr", SIDE, {}), seed=0, colours_on_host=False)
    started = time.thread_time()
    for start in range(0, len(images), BATCH):
        rows = np.arange(start, min(start + BATCH, len(images)))
        filling = transform.begin(rows * 0, rows)
        for index, row in enumerate(rows):
            filling.fill(index, images[row])
    return len(images) / (time.thread_time() - started)


def loaded(shards: Shards) -> float:
    """Images a second of CPU time of all threads, from Parquet to batches."""
    order = Order(
        shards.manifest.rows_of_group, batch_size_global=BATCH, num_streams=4, window_rows=128, seed=0
    )
    transform = RandomViews(recipe_views("simclr", SIDE, {}), seed=0, colours_on_host=False)
    ahead = {"decode_threads": 1, "prefetch_bytes": AHEAD_BYTES}
    with Loader(order, shards, transform, rank=0, world_size=1, **ahead) as loader:
        for _ in itertools.islice(loader, NUM_BATCHES // 2):  # in which what is read ahead fills
            pass
        cpu = time.process_time()
        for _ in itertools.islice(loader, NUM_BATCHES):
            pass
        return NUM_BATCHES * BATCH / (time.process_time() - cpu)


if __name__ == "__main__":
    main()
