"""python -m finetune evaluate MODEL DATA: evaluates a model on a labelled data set."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cluster import storage
from cluster.command_line import CommandLine
from cluster.durations import duration
from cluster.errors import UserError
from cluster.training.rank_context import RankContext, local_context
from finetune.model import load_model
from finetune.robustness import FILE, evaluate_corrupted
from finetune.tasks import TASKS
from finetune.tasks.base import Predictor
from pretrain.data.reading.image_paths import add_image_root_option, use_image_root
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.shards import Shards


def main(arguments: Sequence[str]) -> int:
    """Reads the command line, evaluates, prints the numbers; returns the exit code."""
    evaluate(parser().parse_args(arguments))
    return 0


def parser() -> CommandLine:
    """The command line."""
    parser = CommandLine(prog="python -m finetune evaluate", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="model folder, a path or any fsspec URL")
    parser.add_argument("data", metavar="DATA", help="labelled Parquet shards, a path, glob or URL")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="WHAT=NAME",
        help="column of DATA, if its name differs from that in the training data, such as "
        "label=species; image=NAME for the image",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write all numbers and details to this file (a path or any fsspec URL)",
    )
    parser.add_argument(
        "--corruptions",
        action="store_true",
        help="also evaluate under noise, blur, weather and compression at five strengths; prints a "
        "table, and writes corruptions.json next to MODEL",
    )
    add_image_root_option(parser)
    parser.add_argument(
        "--decode-threads", type=int, default=0, help="decoding threads; 0: one for each CPU"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="evaluates a first batch, estimates the time, and starts nothing",
    )
    return parser


def evaluate(options: argparse.Namespace) -> dict[str, Any] | None:
    """Evaluates as the options of the command ask for, and prints;
    returns all numbers and details, None for a check.
    """
    use_image_root(options.image_root)
    predictor = load_model(options.model)
    columns = predictor.columns
    image_column = predictor.config["image_column"]
    for given in options.column:
        what, equals, name = given.partition("=")
        if not equals or what not in {*columns, "image"}:
            raise UserError(
                f"--column {given!r}: write WHAT=NAME with WHAT one of {', '.join([*columns, 'image'])}"
            )
        if what == "image":
            image_column = name
        else:
            columns[what] = name
    predictor.config["columns"] = columns
    names = sorted(set(columns.values()))
    manifest = load_manifest(options.data, columns=[image_column, *names], image_column=image_column)
    task = TASKS[predictor.config["task"]]
    manifest = manifest.with_rows_of_use(task.usable_rows(columns, manifest), f"a {' and a '.join(columns)}")
    if manifest.num_left_out:
        print(f"{manifest.num_left_out} rows have no label and are left out")
    shards = Shards(manifest, image_column=image_column, columns=names)
    with local_context() as context:
        predictor.to(context.device)
        threads = options.decode_threads or torch.get_num_threads()
        if options.check:
            _check(predictor, shards, context, threads, options.data)
            return None
        evaluation = predictor.evaluate(shards, context, decode_threads=threads)
        for line in _left_out(evaluation.details):
            print(line)
        for name, value in evaluation.metrics.items():
            print(f"{name.replace('_', ' '):24} {value:.4f}")
        whole = {
            "model": options.model,
            "data": options.data,
            "metrics": evaluation.metrics,
            **evaluation.details,
        }
        if options.corruptions:
            clean = evaluation.metrics[TASKS[predictor.config["task"]].best_metric]
            corrupted = evaluate_corrupted(predictor, shards, context, clean=clean, decode_threads=threads)
            print(
                f"{corrupted['metric'].replace('_', ' ')} {clean:.4f} as they are, {corrupted['mean']:.4f} "
                f"on average over {len(corrupted['kinds'])} corruptions at five strengths"
            )
            beside = storage.join(storage.absolute(options.model).rstrip("/").rpartition("/")[0], FILE)
            about = {"model": options.model, "data": options.data, "rows": manifest.num_rows}
            storage.write_json(beside, about | corrupted)
            print(f"written to {beside}")
            whole["corruptions"] = corrupted
    if options.json is not None:
        storage.write_json(options.json, whole)
    return whole


def _left_out(details: Mapping[str, Any]) -> list[str]:
    """What the numbers are not about."""
    lines = []
    if unknown := details.get("unknown_classes"):
        told = ", ".join(f"{name} ({num:,})" for name, num in list(unknown.items())[:20])
        lines.append(
            f"{sum(unknown.values()):,} labels of classes that the model does not know are left out: {told}"
        )
    if boxes := details.get("validation_boxes_left_out"):
        told = ", ".join(f"{num:,} {reason}" for reason, num in boxes["counts"].items())
        lines.append(f"boxes that are left out: {told} (first: {boxes['places'][0]})")
    return lines


def _check(
    predictor: Predictor, shards: Shards, context: RankContext, decode_threads: int, url: str
) -> None:
    """Evaluates a first batch and says how long all of them would take."""
    started = time.monotonic()
    batch = next(predictor.batches(shards, context, batch_size=64, decode_threads=decode_threads), None)
    if batch is None:
        raise UserError(
            f"no row of {url} can be used; `python -m pretrain.data check` lists what is wrong with them"
        )
    predictor.results(batch.arrays, batch.geometry_VB5)
    seconds = (time.monotonic() - started) / len(batch.row_ids)
    num_rows = shards.manifest.num_rows
    print(
        f"evaluate: first {len(batch.row_ids)} images read and evaluated, {len(batch.bad_rows)} that cannot "
        "be decoded"
    )
    print(f"evaluate: {num_rows:,} images in all, about {duration(num_rows * seconds)}; nothing was started")
