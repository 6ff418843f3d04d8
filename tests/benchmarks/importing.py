"""Import beside decoding alone, in images a second; its memory for N and 10 N files;
the time to list 100,000 files.

    python -m tests.benchmarks.importing [--images 4000] [--small 2000] [--listed 100000]

Speed: JPEGs of 300 x 240, nothing scaled, over all CPUs; decoding alone reads and decodes the same files by
as many threads. Memory: files of 32 x 32 with a split, each import in a process of its own; what the same
process takes for ten images is taken off. All files differ in a few bytes behind the image,
so that none is left out as another's duplicate.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

NUM_IMAGES = 200


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.importing", description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--small", type=int, default=2000)
    parser.add_argument("--listed", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    print(f"{os.cpu_count()} CPUs; images a second and seconds are medians of {options.repeats}")
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder), options.images, options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        listing(Path(folder), options.listed, options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        memory(Path(folder), options.small)


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


def memory(folder: Path, num: int) -> None:
    """Peak memory of an import of N and of 10 N files, each in a process of its own,
    and whether it grows while packing.
    """
    sizes, grown = {}, {}
    for files in (10, num, 10 * num):
        make(folder / f"src{files}", files, size=(32, 32))
        command = [
            sys.executable,
            "-m",
            __spec__.name,
            "--child",
            str(folder / f"src{files}"),
            str(folder / f"out{files}"),
        ]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        sizes[files], *grown[files] = map(float, told.split())
    base = sizes.pop(10)
    told = ", ".join(f"{files} files {size - base:.0f} MiB" for files, size in sizes.items())
    growth = (sizes[10 * num] - sizes[num]) * 2**20 / (9 * num)
    print(
        f"import with a split, above the {base:.0f} MiB of ten: {told}; {growth:.0f} bytes for each further "
        "image"
    )
    first, last = grown[10 * num]
    print(
        f"while {10 * num} files are packed: {first:.0f} MiB when a tenth is done, {last:.0f} MiB when all "
        "are"
    )


def child(src: str, dest: str) -> None:
    """Imports in this process; prints MiB of resident memory:
    at its highest, after a tenth of packing, after all of it.
    """
    from pretrain.data.packing import import_taking
    from pretrain.data.packing.importing import ImportOptions, import_images

    total, seen = len(os.listdir(src)), []
    take = import_taking.Taking.take

    def and_look(self: import_taking.Taking, *arguments: object) -> None:
        take(self, *arguments)  # type: ignore[arg-type]
        seen.append(memory_now("VmRSS") if len(seen) + 1 in (-(-total // 10), total) else 0.0)

    import_taking.Taking.take = and_look  # type: ignore[method-assign]
    import_images(src, dest, ImportOptions(validation_fraction=0.5), show_progress=False)
    print(memory_now("VmHWM"), seen[-(-total // 10) - 1], seen[total - 1])


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
