"""`export ENCODER OUT --format onnx|timm|huggingface`, shared by both stages."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster import storage
from cluster.command_line import CommandLine
from pretrain.exporting.exported import SIZES, Exported, check_empty, open_encoder
from pretrain.exporting.hugging_face import hugging_face_files, prove
from pretrain.exporting.model_card import model_card
from pretrain.exporting.onnx_file import onnx_bytes
from pretrain.exporting.timm_folder import timm_files

FORMATS = ("onnx", "timm", "huggingface")


def parser() -> CommandLine:
    """The command line."""
    return export_parser("python -m pretrain export", "ENCODER")


def main(arguments: Sequence[str]) -> int:
    """python -m pretrain export ENCODER OUT: an encoder for other programs."""
    return run_export(parser().parse_args(arguments), open_encoder)


def export_parser(prog: str, network: str) -> CommandLine:
    """What both stages can be told."""
    parser = CommandLine(
        prog=prog, description="Writes a folder that other programs load, with a model card."
    )
    parser.add_argument(
        "network", metavar=network, help=f"{network.lower()} folder, a path or any fsspec URL"
    )
    parser.add_argument("out", metavar="OUT", help="a new or empty folder, a path or any fsspec URL")
    parser.add_argument("--format", choices=FORMATS, required=True, help="the format of the folder")
    parser.add_argument("--check", action="store_true", help="exports into memory and writes nothing")
    return parser


def run_export(options: argparse.Namespace, open_network: Callable[[str], Exported]) -> int:
    """Exports; returns the exit code."""
    check_empty(options.out)
    storage.check_writable(options.out)
    files, proven = files_of(open_network(options.network), options.format)
    for line in proven:
        print(line)
    if options.check:
        print(f"{options.network} can be exported for {options.format}; {options.out} can be written:")
        for name, content in files.items():
            print(f"  {name}: {len(content) / 2**20:.1f} MiB")
        print("nothing was written")
        return 0
    for name, content in files.items():
        storage.write_bytes(storage.join(options.out, name), content)
    print(f"{options.network} exported for {options.format}: {options.out}")
    return 0


def files_of(exported: Exported, form: str) -> tuple[dict[str, bytes], list[str]]:
    """What the folder holds, by name, in the order in which it is written (README.md, the model card, comes
    last), and lines that say how far its answers lie from Fovea's.

    Raises UserError when the network cannot be exported, or would answer otherwise.
    """
    found: Mapping[str, Any] = {}
    lines: list[str] = []
    if form == "onnx":
        data, found = onnx_bytes(exported, say=lines.append)
        about = {
            "input": "float32 [batch, channels, height, width], values from 0 to 1; normalisation is inside",
            "class_names": exported.class_names,
            "image_size": exported.size,
            "preprocessing": exported.framing.described(),
            **found,
        }
        if exported.network is not None and exported.network.optional:
            about["optional_inputs"] = {
                SIZES: "float32 [batch, 2]: height and width of each image on its canvas, where boxes are "
                "cut"
            }
        files = {
            "model.onnx": data,
            "config.json": (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode(),
        }
    elif form == "timm":
        files, lines, found = timm_files(exported)
    else:
        files = hugging_face_files(exported)
        lines, found = prove(exported, files)
    return {**files, "README.md": model_card(exported, form, found).encode()}, lines
