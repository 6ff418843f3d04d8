"""The first thing to run on a GPU: what training reaches there and where the time goes, on one page,
in under eight minutes.

    python -m tests.benchmarks.accelerator [PHOTOS] [--minutes 7.5] [--page runs/accelerator.txt] [--size
        224] [--batch 256]
        [--steps 60] [--encoders convattn_small timm:vit_small_patch16_224]

PHOTOS holds `train` with a folder a class; without it images like photos are made. What matters most comes
first, each part in a process of its own that is ended when it takes too long, so that one that fails, hangs
or runs out of memory costs its own lines and no more; what no time is left for is named. The page is written
after each part. Exit code 1 when a part failed.

SimCLR trains as `configs/pretrain/simclr.yaml` says, by `pretrain.run.pretrain` and its loop:

- `step`: one batch that stays on the device is trained on again and again, which leaves out the loading.
  Images a second (an image counts once, not each view), share of the peak, kernels, waits of the host for
  the device, memory, and when in the backward pass the gradients are ready;
- `run`: the same from shards, decoding each image anew or keeping decoded ones in memory: images a second
  and time spent waiting for data;
- `lightly`: the loop of lightly's documentation with one DataLoader worker a core, from files;
- `averaging`: one rank a GPU (two ranks on a machine without): how much of the averaging of gradients is
  hidden by the backward pass, of steps that average during it, after it, and not at all.

The share is of the fastest product of large bfloat16 matrices that was measured here; operations of a step
are those that `torch.utils.flop_counter` counts in the encoder's forward and backward of both views. Without
a GPU everything runs in float32 on the CPU, to show that it runs:
`--size 64 --batch 16 --steps 4 --images 64`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ENCODERS = ("convattn_small", "timm:vit_small_patch16_224")
GOALS = (
    "Goals, one H200, two views of 224 pixels: convattn_small 6,000 images/s (reach for 8,500); "
    "timm:vit_small_patch16_224\n"
    "3,500 images/s; less than 2 % of the time waiting for data; no wait for the device but one a step."
)
MIN_SECONDS = 15  # with less than this left no part begins
LINES_OF_A_FAILURE = 12
OUT_OF_TIME = "ended after"


@dataclass(frozen=True)
class Part:
    """One process of `tests.benchmarks.accelerator_parts`."""

    title: str
    arguments: tuple[str, ...]


def main(arguments: list[str] | None = None) -> int:
    """Measures part by part; each line is printed as the part ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.accelerator", description=__doc__)
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=7.5, help="the whole may take")
    parser.add_argument("--page", type=Path, default=Path("runs/accelerator.txt"))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256, help="images a GPU")
    parser.add_argument("--steps", type=int, default=60, help="timed steps of a part")
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--images", type=int, default=2048, help="made when there are no PHOTOS")
    parser.add_argument("--part-minutes", type=float, default=2.5, help="each part may take")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    options.page.parent.mkdir(parents=True, exist_ok=True)
    page = Page(options.page, f"python -m tests.benchmarks.accelerator {shlex.join(given)}")
    until = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        for part in parts(options, folder):
            if until - time.monotonic() < MIN_SECONDS:
                page.left_out.append(part.title)
                page.write()
                continue
            began = time.monotonic()
            left = until - began
            text, fault = measured(part, min(60 * options.part_minutes, left))
            if fault.startswith(OUT_OF_TIME) and left <= 60 * options.part_minutes:
                # it was begun, but the time of the whole was over
                page.left_out.append(part.title)
                text, fault = f"{text}\ncut short".strip(), ""
            page.add(part.title, time.monotonic() - began, text, fault)
    page.finish()
    return 1 if page.failures else 0


def parts(options: argparse.Namespace, folder: str) -> list[Part]:
    """All parts, what matters most first."""
    common = ("--folder", folder, "--size", str(options.size), "--batch", str(options.batch), "--steps",
              str(options.steps))  # fmt: skip
    photos = (
        ("--images", str(options.images)) if options.photos is None else ("--photos", str(options.photos))
    )
    first, *others = options.encoders

    def of(kind: str, encoder: str, *more: str) -> Part:
        what = " ".join(word.lstrip("-") for word in more)
        return Part(
            f"{kind}: {encoder}" + (f", {what}" if what else ""),
            (kind, *common, "--encoder", encoder, *more),
        )

    large = ("--batch", str(2 * options.batch)), ("--batch", str(4 * options.batch))
    return [
        Part("photos", ("photos", *common, *photos)),
        Part("machine", ("machine", *common)),
        of("step", first),
        of("run", first),
        *(of("step", encoder) for encoder in others),
        of("lightly", first),
        of("averaging", first),
        of("run", first, "--keep"),
        *(of("run", encoder) for encoder in others),
        *(of("step", first, *batch) for batch in large),
        *(of("lightly", encoder) for encoder in others),
        of("run", "convattn_nano", "--size", "32", "--keep"),
    ]


def measured(part: Part, seconds: float) -> tuple[str, str]:
    """What a part printed, and why it ended early ("" when it did not), after so many seconds at most."""
    command = [sys.executable, "-m", "tests.benchmarks.accelerator_parts", *part.arguments]
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as faults:
        # in a session of its own, so that its loaders and ranks end with it
        process = subprocess.Popen(command, stdout=printed, stderr=faults, text=True, start_new_session=True)
        try:
            code = process.wait(timeout=seconds)
            fault = "" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            fault = f"{OUT_OF_TIME} {seconds:.0f} s"
        finally:
            _end(process)
        printed.seek(0)
        faults.seek(0)
        last = (
            [line for line in faults.read().splitlines() if line.strip()][-LINES_OF_A_FAILURE:]
            if fault
            else []
        )
        return printed.read().rstrip(), "\n".join([fault, *last]) if fault else ""


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it and all its children may have ended by themselves
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Page:
    """The page so far; `failures` holds title and fault of parts that did not end well."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.began = path, time.monotonic()
        self.lines = [command, "", GOALS]
        self.failures: list[tuple[str, str]] = []
        self.left_out: list[str] = []
        print(*self.lines, sep="\n", flush=True)

    def add(self, title: str, seconds: float, text: str, fault: str) -> None:
        """Prints what a part said, and writes the page anew."""
        said = ["", f"== {title} ({seconds:.0f} s)", *([text] if text else [])]
        if fault:
            self.failures.append((title, fault))
            said.append(f"FAILED, {fault.splitlines()[0]}: {fault.splitlines()[-1][:200]}")
        print(*said, sep="\n", flush=True)
        self.lines += said
        self.write()

    def finish(self) -> None:
        """Prints how it ended and where the page is."""
        print(self._end(), f"{self.path}", sep="\n", flush=True)
        self.write()

    def write(self) -> None:
        """The page as far as it is, faults in full at the end."""
        faults = [line for title, fault in self.failures for line in ("", f"-- {title}", fault)]
        self.path.write_text("\n".join([*self.lines, self._end(), *faults]) + "\n")

    def _end(self) -> str:
        left_out = f"; no time was left for: {', '.join(self.left_out)}" if self.left_out else ""
        failed = f"; failed: {', '.join(title for title, _ in self.failures)}" if self.failures else ""
        return f"\n{time.monotonic() - self.began:.0f} s in all{failed}{left_out}"


if __name__ == "__main__":
    sys.exit(main())
