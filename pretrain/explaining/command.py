"""`explain ENCODER IMAGES OUT`, shared by both stages."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch

from cluster import storage
from cluster.command_line import CommandLine
from cluster.durations import duration
from cluster.errors import UserError, printable
from cluster.training.memory import GIB, peak_bytes
from pretrain.data.reading.picking import NamedImage, pick_images
from pretrain.encoders.attention_maps import QUERIES
from pretrain.explaining.explainer import Explainer, open_explainer
from pretrain.explaining.page import write_explanations

SAMPLE = 4  # images of a check


def parser() -> CommandLine:
    """The command line."""
    return explain_parser("python -m pretrain explain", "ENCODER", "Draws what an encoder looks at.")


def main(arguments: Sequence[str]) -> int:
    """python -m pretrain explain ENCODER IMAGES OUT: draws what an encoder looks at."""
    return run_explain(
        parser().parse_args(arguments),
        lambda options: open_explainer(
            options.network, size=options.size, square=options.square, queries=options.queries
        ),
    )


def explain_parser(prog: str, network: str, description: str) -> CommandLine:
    """What both stages can be told."""
    parser = CommandLine(prog=prog, description=description)
    parser.add_argument(
        "network", metavar=network, help=f"{network.lower()} folder, a path or any fsspec URL"
    )
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="image files, folders, globs, Parquet files or URLs"
    )
    parser.add_argument(
        "out", metavar="OUT", help="folder for the PNGs and index.html, a path or any fsspec URL"
    )
    parser.add_argument(
        "--limit", type=int, default=16, help="number of images, spread evenly over all (16)"
    )
    parser.add_argument(
        "--size", type=int, default=None, help="short side in pixels; by default as in training"
    )
    parser.add_argument(
        "--square", action="store_true", help="the central square, for networks that accept no other shape"
    )
    parser.add_argument(
        "--queries",
        choices=QUERIES,
        default="all",
        help="whose attention: all positions' mean, or the class token's",
    )
    parser.add_argument("--image-column", default="image", help="column of images in Parquet files (image)")
    parser.add_argument("--check", action="store_true", help="explains the first images and writes nothing")
    return parser


def run_explain(options: argparse.Namespace, open_network: Callable[[argparse.Namespace], Explainer]) -> int:
    """Explains and writes; returns the exit code."""
    for key in ("limit", "size"):
        value = getattr(options, key)
        if value is not None and value < 1:
            raise UserError(f"--{key} {value} is not possible: it must be at least 1")
    storage.check_writable(options.out)
    explainer = open_network(options)
    images = pick_images(options.images, limit=options.limit, image_column=options.image_column)
    if torch.cuda.is_available():
        explainer.encoder.to("cuda")
    if options.check:
        return _check(options, explainer, images)
    explanations = explainer.explain(images)
    _warn_of_bad(explainer)
    page = write_explanations(options.out, explanations, title=f"What {options.network} looks at")
    print(f"{len(explanations)} images explained: {page}")
    return 0


def _warn_of_bad(explainer: Explainer) -> None:
    for name, reason in explainer.bad.items():
        print(f"warning: {printable(name)} is left out: {reason}")


def _check(options: argparse.Namespace, explainer: Explainer, images: Sequence[NamedImage]) -> int:
    started = time.monotonic()
    explained = explainer.explain(images[:SAMPLE])
    seconds = (time.monotonic() - started) / len(explained)
    print(f"{options.out} can be written")
    _warn_of_bad(explainer)
    print(
        f"{len(explained)} of {len(images)} images explained; about {duration(len(images) * seconds)} for "
        "all"
    )
    print(f"memory: about {peak_bytes() / GIB:.1f} GiB; nothing was written")
    return 0
