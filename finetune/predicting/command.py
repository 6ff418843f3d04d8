"""python -m finetune predict MODEL INPUT [INPUT ...] OUT: predictions for images, data sets, videos."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from cluster import storage
from cluster.batch.check import check_batch_job
from cluster.batch.jobs import BatchJob, Machines
from cluster.batch.options import add_machine_options, machines_of
from cluster.command_line import CommandLine
from cluster.durations import duration
from cluster.errors import UserError
from cluster.lease import HELD, held_folder
from cluster.progress import ProgressLine
from finetune.model import load_model
from finetune.predicting.alarms import Rule
from finetune.predicting.following import (
    AlarmFollower,
    DrawFollower,
    Follower,
    LocalizeFollower,
    TrackFollower,
)
from finetune.predicting.localizing import Localizer
from finetune.predicting.records import RecordWriter
from finetune.predicting.sources import Clip, find_clips
from finetune.predicting.spread import job_of, predict_shards
from finetune.predicting.stream import Stream, followed, predicted
from finetune.tasks.base import Predictor
from pretrain.data.images.decode import set_max_pixels
from pretrain.data.reading.image_paths import add_image_root_option, use_image_root
from pretrain.data.reading.manifest import Manifest

UNFINISHED = ".unfinished"  # there while OUT is filled; what a command that was cut off leaves is no result
BOX = pa.list_(pa.float64())
LOCALIZED = pa.schema(
    [
        ("localized", pa.string()),
        ("probability", pa.float64()),
        (
            "regions",
            pa.list_(pa.struct([("box", BOX), ("score", pa.float64()), ("area_share", pa.float64())])),
        ),
    ]
)
TRACKED = pa.schema(
    [
        (
            "tracks",
            pa.list_(
                pa.struct(
                    [("track", pa.int64()), ("label", pa.string()), ("score", pa.float64()), ("box", BOX)]
                )
            ),
        )
    ]
)


def parser() -> CommandLine:
    """The command line."""
    parser = CommandLine(
        prog="python -m finetune predict",
        description="Predicts for images: OUT/predictions.jsonl and OUT/predictions.parquet have a record "
        "for each.",
    )
    parser.add_argument("model", metavar="MODEL", help="model folder, a path or any fsspec URL")
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="image, folder, glob, Parquet shards or video; any URL"
    )
    parser.add_argument("out", metavar="OUT", help="folder for the results, a path or any fsspec URL")
    parser.add_argument("--draw", action="store_true", help="writes each image with its result to OUT/drawn")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="every N-th image or frame (default: 1)"
    )
    parser.add_argument(
        "--frames",
        action="store_true",
        help="all frames of animated images (GIF, WebP, PNG, AVIF), each with its time; otherwise only"
        " the first",
    )
    parser.add_argument(
        "--max-megapixels",
        type=float,
        metavar="N",
        help="larger images are refused (default: 100); JPEGs above 100 are decoded at a reduced size",
    )
    parser.add_argument(
        "--fps", type=float, help="frames per second, for images that are the frames of a video"
    )
    parser.add_argument(
        "--image-column", default="image", help="column of images in Parquet (default: image)"
    )
    add_image_root_option(parser)
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (default: 64)")
    parser.add_argument(
        "--decode-threads", type=int, default=0, help="decoding threads; 0: one for each CPU"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace earlier predictions in OUT")
    alarms = parser.add_argument_group("alarms (surveillance)")
    alarms.add_argument(
        "--alarm",
        action="append",
        default=[],
        metavar="CLASS>FRACTION",
        help="write frames above a threshold, and the events that they form, to OUT/alarms.jsonl",
    )
    alarms.add_argument(
        "--alarm-gap", type=float, default=1.0, help="seconds between frames of one event (default: 1)"
    )
    localization = parser.add_argument_group("localization (medical images)")
    localization.add_argument(
        "--localize", metavar="CLASS", help="add where a classifier sees a class; maps go to OUT/maps"
    )
    localization.add_argument(
        "--region-fraction",
        type=float,
        default=0.5,
        help="evidence from which a position belongs to a region, as a fraction of the strongest "
        "(default: 0.5)",
    )
    localization.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="short side that images are scaled to (default: as in training)",
    )
    tracks = parser.add_argument_group("tracks (traffic)")
    tracks.add_argument(
        "--track",
        action="store_true",
        help="links a detector's boxes over frames: OUT/tracks, MOT format and a video",
    )
    tracks.add_argument(
        "--track-score",
        type=float,
        default=0.5,
        help="minimum score of a box that starts a track (default: 0.5)",
    )
    cluster = parser.add_argument_group(
        "a cluster (Parquet shards only)",
        "continues where it was cut off; OUT/parts has the results as Parquet",
    )
    add_machine_options(cluster)
    return parser


class Predicted(NamedTuple):
    """How many images there were, and how many of them could not be decoded."""

    num_images: int
    num_bad: int


def main(arguments: Sequence[str]) -> int:
    """Reads the command line and predicts; returns the exit code."""
    predict(parser().parse_args(arguments))
    return 0


def predict(options: argparse.Namespace) -> Predicted | None:
    """Predicts as the options of the command ask for, and prints; None for a check."""
    use_image_root(options.image_root)
    rules = [Rule.parse(text) for text in options.alarm]
    for name in ("every", "batch_size", "size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(options, name)} is not possible: it must be at least 1"
            )
    if options.size is not None and not options.localize:
        raise UserError("--size says at what size --localize looks; give --localize CLASS with it")
    _refuse_full(options.out, options.overwrite or options.workers > 0)
    storage.check_writable(options.out)
    if options.max_megapixels is not None:
        if not options.max_megapixels > 0:
            raise UserError(
                f"--max-megapixels {options.max_megapixels:g} is not possible: it must be above 0"
            )
        set_max_pixels(int(options.max_megapixels * 1e6))
    clips = find_clips(options.inputs, image_column=options.image_column, frames=options.frames)
    predictor = load_model(options.model).to("cuda" if torch.cuda.is_available() else "cpu")
    followers = _followers(options, predictor, rules)
    needs_images = any(not isinstance(follower, AlarmFollower) for follower in followers)
    if options.workers and (needs_images or options.every > 1):
        raise UserError(
            "--draw, --localize, --track and --every need the images in order: give them without --workers"
        )
    if options.check:
        _check(options, predictor, clips)
        return None
    started = time.monotonic()
    with held_folder(options.out):
        storage.write_bytes(storage.join(options.out, UNFINISHED), b"")
        total = -(-sum(clip.num_items or 0 for clip in clips) // options.every)
        stream = _stream(options, predictor, clips)
        num_all, num_bad = write_records(options, predictor, stream, followers, total)
        _tell(options.out, clips, followers, Predicted(num_all, num_bad), time.monotonic() - started)
    # last: until then the same command does again what was cut off
    storage.remove(storage.join(options.out, UNFINISHED))
    if num_all and num_bad == num_all:
        raise UserError(
            f"none of {num_all} images could be decoded; {options.out} gives the reason for each"
        )
    return Predicted(num_all, num_bad)


def _tell(
    out: str, clips: list[Clip], followers: Sequence[Follower], predicted: Predicted, seconds: float
) -> None:
    num_all, num_bad = predicted
    bad = f", {num_bad} of which cannot be decoded" if num_bad else ""
    print(
        f"predict: {num_all} images in {duration(seconds)} ({num_all / max(seconds, 1e-9):.0f} a "
        f"second){bad}"
    )
    if still := sum(clip.animated[0] for clip in clips):
        print(
            f"predict: {still} images are animated, and only their first frame was looked at; --frames "
            "takes all"
        )
    for follower in followers:
        if isinstance(follower, AlarmFollower):
            print(f"predict: {follower.num_frames} frames over a threshold, {follower.events} events")
        if isinstance(follower, TrackFollower):
            print(f"predict: {follower.tracks} tracks")
    print(f"predict: {out} has the results", flush=True)


def write_records(
    options: argparse.Namespace,
    predictor: Predictor,
    stream: Stream,
    followers: Sequence[Follower],
    total: int,
) -> Predicted:
    """Writes the records of a stream to OUT, where followers add to them."""
    more = pa.schema([*(LOCALIZED if options.localize else []), *(TRACKED if options.track else [])])
    num_all, num_bad = 0, 0
    with (
        RecordWriter(options.out, predictor.result_type, more) as writer,
        ProgressLine("predict", total) as progress,
    ):
        for record in followed(stream, followers):
            writer.write(record)
            num_all, num_bad = num_all + 1, num_bad + (record["error"] is not None)
            progress.advance()
    return Predicted(num_all, num_bad)


def _stream(options: argparse.Namespace, predictor: Predictor, clips: list[Clip]) -> Stream:
    """What the model predicts, in this process or on a cluster."""
    if options.workers:
        job, manifest, machines = _job(options, predictor, clips)
        return predict_shards(job, manifest, clips, machines)
    asked = {"image_column": options.image_column, "fps": options.fps, "every": options.every}
    how = {
        "batch_size": options.batch_size,
        "decode_threads": options.decode_threads or torch.get_num_threads(),
    }
    return ((clip, predicted(predictor, clip.items(**asked), **how)) for clip in clips)


def _job(
    options: argparse.Namespace, predictor: Predictor, clips: list[Clip]
) -> tuple[BatchJob, Manifest, Machines]:
    """What a cluster is to do, on what data and where."""
    machines = machines_of(options, has_gpu=torch.cuda.is_available())
    model, out = storage.absolute(options.model), storage.absolute(options.out)
    return (*job_of(predictor, model, clips, out, machines, image_column=options.image_column), machines)


def _check(options: argparse.Namespace, predictor: Predictor, clips: list[Clip]) -> None:
    """Predicts for a first batch and tells what the command would take; nothing stays behind."""
    if options.workers:
        job, manifest, machines = _job(options, predictor, clips)
        lines = check_batch_job(job, machines, data_urls=[file.url for file in manifest.files])
    else:
        items = clips[0].items(image_column=options.image_column, fps=options.fps, every=options.every)
        threads = options.decode_threads or torch.get_num_threads()
        started = time.monotonic()
        sample = list(itertools.islice(items, options.batch_size))
        records = [
            record
            for _, record in predicted(
                predictor, sample, batch_size=options.batch_size, decode_threads=threads
            )
        ]
        seconds = (time.monotonic() - started) / max(1, len(records))
        bad = sum(record["error"] is not None for record in records)
        known = [clip.num_items for clip in clips if clip.num_items is not None]
        total = -(-sum(known) // options.every)
        open_end = (
            f" and {len(clips) - len(known)} videos of unknown length" if len(known) < len(clips) else ""
        )
        lines = [
            f"{options.out} can be written",
            f"first {len(records)} images: {bad} of which cannot be decoded",
            f"{total:,} images{open_end} in all, about {duration(total * seconds)}",
            "nothing was started",
        ]
    for line in lines:
        print(f"predict: {line}")


def _followers(options: Any, predictor: Predictor, rules: list[Rule]) -> list[Follower]:
    """In the order in which they add to a record. Raises UserError for what the model cannot do."""
    followers: list[Follower] = []
    known = predictor.names
    for rule in rules:
        if rule.name not in known:
            raise UserError(
                f"--alarm {rule.name!r}: not a class of the model (known: {', '.join(known[:20])})"
            )
    if options.localize:
        localizer = Localizer(
            predictor, options.localize, size=options.size, fraction=options.region_fraction
        )
        followers.append(LocalizeFollower(options.out, localizer))
    if options.track:
        if predictor.config["task"] != "detection":
            raise UserError(
                f"--track links boxes, but this model is for {predictor.config['task']}; give a detector"
            )
        followers.append(TrackFollower(options.out, known, options.track_score, options.fps))
    if rules:
        followers.append(AlarmFollower(options.out, rules, gap_seconds=options.alarm_gap))
    if options.draw:
        followers.append(DrawFollower(options.out))
    return followers


def _refuse_full(out: str, overwrite: bool) -> None:
    there = [name for name in storage.names_in(out) if name != HELD]
    if there and not overwrite and UNFINISHED not in there:
        raise UserError(
            f"{out} is not empty (there: {', '.join(there[:3])}); choose another OUT or give --overwrite"
        )
