"""Import beside decoding alone, in images a second; its memory by the number of files and the kind of
source; the time to list 100,000 files, and a COCO json of 50,000 images with 5 boxes and outlines each.

    python -m tests.benchmarks.importing [--images 4000] [--listed 100000] [--in-coco 50000]
        [--counts 1000 20000] [--kinds flat classes csv json coco] [--only memory]

Speed: JPEGs of 300 x 240, nothing scaled, over all CPUs; decoding alone reads and decodes the same files by
as many threads. Memory: files of 32 x 32 with a split, each import in a process of its own. Its peak is told
after listing (with the order of packing) and at the end, and the slope of each between one count and the
next, in bytes an image. A full shard of so small images has 250,000 of them, so shards end after a mebibyte.
All files differ in a few bytes behind the image, so that none is left out as another's duplicate.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NUM_IMAGES = 200


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.importing", description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--listed", type=int, default=100_000)
    parser.add_argument("--in-coco", type=int, default=50_000)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 20_000])
    parser.add_argument("--kinds", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("speed", "listing", "coco", "memory"))
    options = parser.parse_args(arguments)
    print(f"{os.cpu_count()} CPUs; images a second and seconds are medians of {options.repeats}")
    parts: dict[str, Callable[[Path], None]] = {
        "speed": lambda folder: speed(folder, options.images, options.repeats),
        "listing": lambda folder: listing(folder, options.listed, options.repeats),
        "coco": lambda folder: coco_listing(folder, options.in_coco, options.repeats),
        "memory": lambda folder: memory(folder, options.counts, options.kinds),
    }
    for name in [options.only] if options.only else parts:
        with tempfile.TemporaryDirectory() as folder:
            parts[name](Path(folder))


def speed(folder: Path, num: int, repeats: int) -> None:
    """Import beside decoding alone, in turn, so that a busy machine slows both down."""
    from pretrain.data.images.decode import decode_image
    from pretrain.data.packing.importing import ImportOptions, import_images

    files = make(folder / "src", num, size=(300, 240))

    def decode() -> None:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for _ in pool.map(lambda path: decode_image(path.read_bytes()), files):
                pass

    rates: dict[str, list[float]] = {"decoding alone": [], "import": [], "import with a split": []}
    for repeat in range(repeats):
        rates["decoding alone"].append(num / seconds_of(decode))
        for name, share in (("import", 0.0), ("import with a split", 0.2)):
            dest, choice = str(folder / f"{name} {repeat}"), ImportOptions(validation_fraction=share)
            rates[name].append(
                num
                / seconds_of(lambda: import_images(str(folder / "src"), dest, choice, show_progress=False))  # noqa: B023
            )
    alone = statistics.median(rates["decoding alone"])
    for name, found in rates.items():
        rate = statistics.median(found)
        print(
            f"{num} JPEGs of 300 x 240, {name}: {rate:.0f} a second ({rate / alone:.2f} of decoding alone)"
        )


def listing(folder: Path, num: int, repeats: int) -> None:
    """All files of one folder."""
    from pretrain.data.packing.sources import list_records

    make(folder / "src", num, size=(32, 32))
    found = [seconds_of(lambda: list_records(str(folder / "src"))) for _ in range(repeats)]
    print(f"{num} files in one folder, listed as records: {statistics.median(found):.1f} s")


def coco_listing(folder: Path, num: int, repeats: int) -> None:
    """A COCO json; CPU seconds, for it is read by one thread. Its images are not opened."""
    from pretrain.data.packing.sources import list_records

    (folder / "images").mkdir()
    for number in range(num):
        (folder / "images" / f"{number:08d}.jpg").touch()
    file = coco(folder, boxes_per_image=5, corners=20)
    found = []
    for _ in range(repeats):
        started = time.process_time()
        assert len(list_records(str(file)).records) == num
        found.append(time.process_time() - started)
    print(
        f"COCO json of {num} images with 5 boxes each, {file.stat().st_size / 1e6:.0f} MB: listed in "
        f"{statistics.median(found):.2f} CPU seconds ({min(found):.2f} to {max(found):.2f}); peak memory "
        f"{memory_now('VmHWM'):.0f} MiB"
    )


def memory(folder: Path, counts: Sequence[int], kinds: Sequence[str]) -> None:
    """Peak memory of imports by kind and number of files, each in a process of its own."""
    for num in counts:
        make(folder / str(num) / "images", num, size=(32, 32))
    for kind in kinds:
        earlier: tuple[int, float, float] | None = None
        for num in counts:
            src, dest = SOURCES[kind](folder / str(num)), folder / f"out-{kind}-{num}"
            command = [sys.executable, "-m", __spec__.name, "--child", str(src), str(dest)]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            base, listed, end = map(float, told.split())
            line = f"{kind}, {num} images: {base:.0f} MiB before, peak {listed:.1f} MiB when listed"
            line += f", {end:.1f} at the end"
            if earlier is not None:
                slopes = [
                    (now - before) * 2**20 / (num - earlier[0])
                    for now, before in ((listed, earlier[1]), (end, earlier[2]))
                ]
                line += f"; {slopes[0]:.0f} and {slopes[1]:.0f} bytes for each further image"
            print(line, flush=True)
            earlier = num, listed, end


def class_folders(folder: Path) -> Path:
    """The images once more, in a hundred folders."""
    for number, file in enumerate(sorted((folder / "images").iterdir())):
        of_class = folder / "classes" / f"class{number % 100:02d}"
        of_class.mkdir(parents=True, exist_ok=True)
        os.link(file, of_class / file.name)
    return folder / "classes"


def table(folder: Path) -> Path:
    """A CSV of paths and labels."""
    with open(folder / "list.csv", "w") as lines:
        lines.write("path,label\n")
        for name in sorted(os.listdir(folder / "images")):
            lines.write(f"images/{name},class{int(name[:8]) % 100:02d}\n")
    return folder / "list.csv"


def json_list(folder: Path) -> Path:
    """A list of objects with path and caption."""
    names = sorted(os.listdir(folder / "images"))
    entries = [{"path": f"images/{name}", "caption": f"a photo of {name}"} for name in names]
    (folder / "list.json").write_text(json.dumps(entries))
    return folder / "list.json"


def coco(folder: Path, *, boxes_per_image: int = 2, corners: int = 0) -> Path:
    """A COCO json with so many boxes an image, which have an outline of so many corners where there are any;
    the categories stand at the end, as in COCO's own files.
    """
    names = sorted(os.listdir(folder / "images"))
    images = [{"id": at, "file_name": name, "width": 32, "height": 32} for at, name in enumerate(names)]
    outline = {"segmentation": [[0.25 * at + 0.01 for at in range(2 * corners)]]} if corners else {}
    boxes = [
        {
            "id": at,
            "image_id": at // boxes_per_image,
            "category_id": 1 + at % 2,
            "bbox": [2.5, 3, 10 + at % 2, 9.25],
            **outline,
        }
        for at in range(boxes_per_image * len(names))
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    with open(folder / "coco.json", "w") as file:
        json.dump({"images": images, "annotations": boxes, "categories": categories}, file)
    return folder / "coco.json"


SOURCES: dict[str, Callable[[Path], Path]] = {
    "flat": lambda folder: folder / "images",
    "classes": class_folders,
    "csv": table,
    "json": json_list,
    "coco": coco,
}


def child(src: str, dest: str) -> None:
    """Imports in this process; prints MiB of resident memory:
    before, at its highest until packing begins, at its highest in all.
    """
    from pretrain.data.packing import importing

    base, listed = memory_now("VmHWM"), list[float]()
    pack_all = importing.pack_all

    def and_look(*arguments: Any, **options: Any) -> int:
        listed.append(memory_now("VmHWM"))
        return pack_all(*arguments, **options)

    importing.pack_all = and_look
    options = importing.ImportOptions(validation_fraction=0.5, bytes_per_shard=2**20)
    importing.import_images(src, dest, options, show_progress=False)
    print(base, *listed, memory_now("VmHWM"))


def memory_now(what: str) -> float:
    """Resident memory of this process in MiB; not by getrusage,
    whose maximum is inherited from the process that started it.
    """
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) / 2**10


def make(folder: Path, num: int, *, size: tuple[int, int]) -> list[Path]:
    """So many files in one folder; images of smooth noise, as photos are."""
    folder.mkdir(parents=True)
    images = []
    for number in range(min(num, NUM_IMAGES)):
        coarse = np.random.default_rng(number).integers(
            0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8
        )
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    files = [folder / f"{number:08d}.jpg" for number in range(num)]
    for number, file in enumerate(files):
        file.write_bytes(images[number % NUM_IMAGES] + str(number).encode())
    return files


def seconds_of(function: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.monotonic()
    function()
    return time.monotonic() - started


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
