"""How far do exported models lie from Fovea? Of each kind and format the
largest difference of their answers.

    python -m tests.benchmarks.exports [--models FOLDER ...] [--encoders FOLDER ...]

Encoders and models of all tasks, small and with random weights, or those that are named, go through each
format as `export` would write them: answers to 16 images of odd sizes (of the validation data, where a model
knows where they are) through Fovea and through what reads the format. What a kind does not come in is left
out. Printed is what an export prints and refuses by: the largest difference, and the bound.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from cluster.errors import UserError
from finetune.exporting.command import open_model
from pretrain.encoders import build_encoder, save_encoder
from pretrain.exporting.command import FORMATS, files_of
from pretrain.exporting.exported import Exported, open_encoder
from tests.finetune.test_export_model import a_model
from tests.finetune.test_exports import HEADS, a_detector, a_summarizer

ENCODERS = {"convattn_nano": {"stem_stride": 2}, "timm:resnet18": {"drop_path_rate": 0.1}}


def main(arguments: list[str] | None = None) -> None:
    """Exports everything and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.exports", description=__doc__)
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--encoders", nargs="+", default=[])
    options = parser.parse_args(arguments)
    print("| what | format | answers of | largest difference (allowed) |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, exported in networks(options, Path(folder)):
            for form in FORMATS:
                try:
                    lines = files_of(exported, form)[1]
                except UserError as error:
                    print(f"| {name} | {form} | refused: {error} | |", flush=True)
                    continue
                for line in lines:
                    what, _, found = line.partition(": largest difference ")
                    print(f"| {name} | {form} | {what} | {found} |", flush=True)


def networks(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Exported]]:
    """What is exported, with its name."""
    for url in options.encoders:
        yield url, open_encoder(url)
    for url in options.models:
        yield url, open_model(url)
    if options.encoders or options.models:
        return
    for name, more in ENCODERS.items():
        torch.manual_seed(0)
        url = folder / name.replace(":", "-")
        save_encoder(build_encoder(name, **more), str(url), input_size=64)
        yield f"encoder {name}", open_encoder(str(url))
    for name, more in ENCODERS.items():
        place = folder / f"classifier-{name.replace(':', '-')}"
        place.mkdir()
        yield f"classifier {name}", open_model(a_model(place, "full", name, **more))
    for head in HEADS:
        yield f"detector {head}", open_model(a_detector(folder, head))
    yield "summarizer", open_model(a_summarizer(folder))


if __name__ == "__main__":
    main()
