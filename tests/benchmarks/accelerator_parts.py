"""The parts of `tests.benchmarks.accelerator`, each in a process of its own,
which prints what it measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.utils.flop_counter import FlopCounterMode

from cluster.settings import load_settings
from cluster.training.rank_context import RankContext, local_context
from pretrain.encoders import build_encoder
from pretrain.papers import defaults_of
from pretrain.run import pretrain
from pretrain.settings import PretrainSettings
from tests.benchmarks.accelerator_watch import (
    Averaging,
    Phase,
    averaging,
    gradients,
    profiled,
    timed,
    told,
    waits,
    watched,
)
from tests.benchmarks.photo_like import write_photo_like

CONFIG = "configs/pretrain/simclr.yaml"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPECIFIED = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # NVIDIA's data sheets: dense bfloat16, SXM
WARM_UP_STEPS, PROFILED_STEPS, WATCHED_STEPS = 8, 3, 2
GIB = 2**30


def main() -> None:
    """One part, whose lines it prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--encoder", default="")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--images", type=int, default=0)
    options = parser.parse_args()
    PARTS[options.part](options)


# -- what the others need -----------------------------------------------------------------------------------


def photos(options: argparse.Namespace) -> None:
    """Shards of the photos in FOLDER/shards, and the name of the folder of files in FOLDER/photos.txt."""
    from pretrain.data.packing.importing import ImportOptions, import_images

    source = options.photos or write_photo_like(options.folder / "made", options.images)
    began = time.monotonic()
    import_images(
        str(source / "train"), str(options.folder / "shards"), ImportOptions(), show_progress=False
    )
    (options.folder / "photos.txt").write_text(str(source.absolute()))
    files = [path for path in (source / "train").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    kind = "made like photos" if options.photos is None else str(source)
    print(f"{len(files):,} images, {kind}, {size / len(files) / 1000:.0f} kB each; "
          f"imported at {len(files) / (time.monotonic() - began):,.0f} images/s")  # fmt: skip


def machine(options: argparse.Namespace) -> None:
    """Names, versions, and what the device reaches at best; the peak goes to FOLDER/machine.json."""
    print(
        f"{platform.machine()}, {os.cpu_count()} cores ({len(os.sched_getaffinity(0))} usable), torch "
        f"computes and decodes with {torch.get_num_threads()}; Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )
    specified = None
    if DEVICE == "cuda":
        properties = torch.cuda.get_device_properties(0)
        print(
            f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / GIB:.0f} GiB, "
            f"compute {properties.major}.{properties.minor}; driver {_driver()}, CUDA "
            f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, "
            f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
        )
        specified = next((flops for name, flops in SPECIFIED.items() if name in properties.name), None)
    peak = peak_flops()
    (options.folder / "machine.json").write_text(json.dumps({"peak": peak}))
    of_specified = (
        "" if specified is None else f" ({peak / specified:.0%} of the {specified / 1e12:.0f} specified)"
    )
    print(f"peak, product of large {'bfloat16' if DEVICE == 'cuda' else 'float32'} matrices: "
          f"{peak / 1e12:.2f} TFLOP/s{of_specified}")  # fmt: skip
    array = torch.empty(2**30 if DEVICE == "cuda" else 2**26, dtype=torch.uint8, device=DEVICE)
    print(
        f"copying on the device: {2 * len(array) / best_seconds(lambda: array.clone()) / 1e9:,.1f} GB/s "
        "read and written"
    )
    if DEVICE == "cuda":
        pinned = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
        seconds = best_seconds(lambda: array[: 2**28].copy_(pinned, non_blocking=True))
        print(f"copying from page-locked memory to the device: {2**28 / seconds / 1e9:.1f} GB/s")


def _driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.split()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return "unknown"


def peak_flops(side: int = 8192 if DEVICE == "cuda" else 1024) -> float:
    """Floating-point operations a second of the best of several products of square matrices."""
    kind = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    first, second = (torch.randn(side, side, dtype=kind, device=DEVICE) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: first @ second)


def best_seconds(work: Callable[[], object], repeats: int = 20) -> float:
    """Of the fastest of several turns, each waited for."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


# -- training -----------------------------------------------------------------------------------------------


def step(options: argparse.Namespace) -> None:
    """Steps on one batch that stays on the device."""
    found: dict[str, Any] = {}
    num_warm_up = warm_up_steps(options)

    def line() -> str:
        seconds = found["seconds"] / options.steps
        return (
            f"{speed(options, seconds)}; {1000 * seconds:.1f} ms a step, {found['warm_up_seconds']:.0f} s "
            f"for the first {num_warm_up}; {memory()}"
        )

    phases = [
        Phase(num_warm_up, timed(found, "warm_up_")),
        Phase(options.steps, timed(found)),
        Phase(1, told(line)),
        Phase(PROFILED_STEPS, profiled(PROFILED_STEPS)),
        Phase(WATCHED_STEPS, waits(WATCHED_STEPS)),
        Phase(WATCHED_STEPS, gradients()),
    ]
    with local_context() as context:
        trained(context, options, phases, fixed=True, batch=options.batch)


def run(options: argparse.Namespace) -> None:
    """The same from shards."""
    found: dict[str, Any] = {}
    with local_context() as context:
        rows = num_images(options)
        # kept images are there from the second epoch on
        warm_up = warm_up_steps(options) + (rows // options.batch if options.keep else 0)
        phases = [Phase(warm_up, timed(found, "warm_up_")), Phase(options.steps, timed(found))]
        more = ["data.keep=host"] if options.keep else []
        trained(context, options, phases, fixed=False, batch=options.batch, more=more)
    seconds = found["seconds"] / options.steps
    print(f"{speed(options, seconds)}; {found['waited'] / found['seconds']:.1%} of the time waiting for "
          f"data, {torch.get_num_threads()} decoding threads; {memory()}")  # fmt: skip


def trained(
    context: RankContext,
    options: argparse.Namespace,
    phases: list[Phase],
    *,
    fixed: bool,
    batch: int,
    more: list[str] | None = None,
) -> None:
    """One run by `pretrain`, whose loop is watched."""
    with tempfile.TemporaryDirectory() as out:
        given = [
            f"data.url={options.folder}/shards", f"out={out}/run", f"encoder.name={options.encoder}",
            "rankme_images=0",
            f"views.size={options.size}", f"training.batch_size_global={batch}",
            "training.reproducible=false",
            "training.log_every_steps=1000000",  # the health of embeddings is not what is timed
            f"training.steps={sum(phase.steps for phase in phases) + 1}", *(more or []),
        ]  # fmt: skip
        settings = load_settings(PretrainSettings, CONFIG, given, beneath=defaults_of)
        pretrain(context, settings, loop=watched(phases, fixed=fixed))


def warm_up_steps(options: argparse.Namespace) -> int:
    """Steps that are not timed; the first ones compile."""
    return min(WARM_UP_STEPS, options.steps)


def speed(options: argparse.Namespace, seconds: float) -> str:
    """Images a second and share of the peak, of steps that take so long."""
    rate, file = options.batch / seconds, options.folder / "machine.json"
    share = "share of the peak not known"
    if file.exists():
        peak = json.loads(file.read_text())["peak"]
        share = f"{rate * step_flops(options.encoder, options.size) / peak:.1%} of the peak"
    return f"{rate:,.1f} images/s at {options.size} pixels, batch {options.batch}, {share}"


def step_flops(encoder: str, size: int) -> float:
    """Of one image: forward and backward of two views."""
    network, images = build_encoder(encoder), torch.randn(2, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        network(images)[-1].sum().backward()
    return float(counter.get_total_flops())


def memory() -> str:
    """What was used at most."""
    host = (
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB of the host's memory at most"
    )
    if DEVICE == "cpu":
        return host
    used, reserved = torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB
    return f"{used:.1f} GiB of the device's ({reserved:.1f} reserved), {host}"


def num_images(options: argparse.Namespace) -> int:
    """Rows of the shards."""
    from pretrain.data.reading.manifest import load_manifest

    return load_manifest(f"{options.folder}/shards").num_rows


# -- beside it, and together --------------------------------------------------------------------------------


def lightly(options: argparse.Namespace) -> None:
    """Lightly's loop, on the same files."""
    from tests.benchmarks.lightly_loops import seconds_per_step

    source = Path((options.folder / "photos.txt").read_text())
    steps = min(10, options.steps)
    seconds, _ = seconds_per_step(
        "simclr", build_encoder(options.encoder), str(source / "train"), size=options.size, local=0,
        batch=options.batch,
        workers=len(os.sched_getaffinity(0)), steps=steps, skip=min(5, steps), device=DEVICE,
    )  # fmt: skip
    print(f"{speed(options, seconds)}; {memory()}")


def of_ranks(options: argparse.Namespace) -> None:
    """Starts as many ranks as there are GPUs."""
    num = torch.cuda.device_count() if DEVICE == "cuda" else 2
    if num < 2:
        print("one GPU, so there is nothing to average with; when gradients are ready is told by `step`")
        return
    batch = min(options.batch, num_images(options) // num)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num}",
        "-m", "tests.benchmarks.accelerator_parts", "rank", "--folder", str(options.folder), "--size",
        str(options.size), "--batch", str(batch), "--steps", str(options.steps), "--encoder",
        options.encoder,
    ]  # fmt: skip
    sys.exit(subprocess.run(command).returncode)


def rank(options: argparse.Namespace) -> None:
    """What each rank does; rank 0 prints."""
    number, num = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", number) if DEVICE == "cuda" else torch.device("cpu")
    if DEVICE == "cuda":
        torch.cuda.set_device(device)
        distributed.init_process_group("nccl", device_id=device)
    else:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo")
    found: dict[str, Any] = {}
    patched = Averaging()
    phases = [Phase(warm_up_steps(options), timed(found, "warm_up_"))]
    ways = ("during", "after", "never")
    phases += [Phase(options.steps, averaging(patched, way, timed(found, f"{way}_"))) for way in ways]
    trained(RankContext(number, num, device), options, phases, fixed=True, batch=options.batch * num)
    if number == 0:
        during, after, never = (1000 * found[f"{way}_seconds"] / options.steps for way in ways)
        whole, shown = after - never, during - never
        hidden = (
            f"{1 - shown / whole:.0%} of {whole:.1f} ms hidden"
            if whole > 0.02 * never
            else "too little to tell"
        )
        size, messages = patched.num_bytes / options.steps / 1e6, patched.messages // options.steps
        print(
            f"{num} ranks, batch {options.batch} each, {size:.1f} MB in {messages} messages a step; a step "
            f"takes {during:.1f} ms, {after:.1f} when averaging begins after the backward pass, {never:.1f} "
            f"without: {hidden}; {num * options.batch / during * 1000:,.1f} images/s together"
        )
    distributed.destroy_process_group()


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "photos": photos,
    "machine": machine,
    "step": step,
    "run": run,
    "lightly": lightly,
    "averaging": of_ranks,
    "rank": rank,
}

if __name__ == "__main__":
    main()
