"""python -m pretrain embed TEACHER DATA OUT: the features of every image, computed once.
Parquet in, Parquet out.

TEACHER is the folder of a saved encoder or anything else that `pretrain.encoders.teachers` opens. OUT gets
Parquet files of a few hundred rows each, with one row for every row of the data, in the same order:
`features` (pooled, fixed_size_list<halffloat>), `maps` if asked for (the last map at CELLS x CELLS
positions, reduced to few channels by the PCA in map_pca.safetensors), a checksum of the image, the location
of the row (`file`, `row_group`, `row`), and the columns of DATA that are not images. Rows that cannot be
decoded have null for features and are listed in bad_rows.jsonl. features.json, written last, says which data
and which teacher the features are of. The same command given again continues where it was cut off. A run
reads the features alongside the images: method.arguments.features=OUT.

With --workers the command runs on Ray: on a private Ray, or on an existing cluster (RAY_ADDRESS, or inside a
job), where --readers decode on the nodes that --reader-label chooses, for the workers that have the GPUs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from cluster import storage
from cluster.batch.check import check_batch_job
from cluster.batch.jobs import BatchJob, BatchResult, Machines, parts_of, parts_there, run_batch_job
from cluster.batch.options import add_machine_options, machines_of, whole
from cluster.command_line import CommandLine
from cluster.durations import duration
from cluster.errors import UserError
from cluster.lease import held_folder
from cluster.progress import ProgressLine
from pretrain.data.reading.decoded import ROWS_PER_PART, DecodedRows, columns_to_keep, units_of
from pretrain.data.reading.feature_layout import (
    CHECKSUM,
    COMPONENTS,
    DESCRIPTION,
    FEATURES,
    FORMAT_VERSION,
    MAPS,
    row_groups_of,
)
from pretrain.data.reading.feature_statistics import write_description
from pretrain.data.reading.image_paths import add_image_root_option, use_image_root
from pretrain.data.reading.in_sequence import batches_in_sequence
from pretrain.data.reading.manifest import Manifest, load_manifest
from pretrain.data.reading.shards import Shards
from pretrain.data.views.random_views import CentralCrop
from pretrain.encoders.looking import Look
from pretrain.encoders.map_components import MapComponents, at_cells, fit_components
from pretrain.encoders.teachers import Teacher, TeacherOutput, open_teacher
from pretrain.teacher_pass import Embedding, device_here

ROWS_FOR_COMPONENTS, ROWS_FOR_CHECK = 512, 32


def main(arguments: Sequence[str]) -> int:
    """Reads the command line and runs the job; returns the exit code."""
    embed(parser().parse_args(arguments))
    return 0


def embed(options: argparse.Namespace) -> BatchResult | None:
    """Runs the job that the options of the command ask for; None for a check."""
    use_image_root(options.image_root)
    name, out = _teacher_name(options.teacher), storage.absolute(options.out)
    data = [storage.absolute(url) for url in options.data.split(",")]
    manifest = load_manifest(data, image_column=options.image_column)
    keep = columns_to_keep(manifest, options.image_column, options.keep)
    for column in (FEATURES, MAPS, CHECKSUM, "pixels"):
        if column in keep:
            raise UserError(
                f"a column {column!r} of the data cannot go along, embed has its own; leave it out by --keep"
            )

    # -- what is looked at, and how maps are reduced --------------------------------------------------------
    teacher = open_teacher(name)
    size = options.size or teacher.input_size
    seen = seen_by(teacher, size)
    # a position of a map is a position of the image only where the teacher sees all of it
    is_whole = options.whole_image or options.maps > 0
    transform = CentralCrop(
        size, fraction=options.crop_fraction, whole=is_whole, channels=teacher.in_channels
    )
    decode_threads = max(1, int(options.cpus_per_reader if options.workers else torch.get_num_threads()))
    num_threads = int(options.cpus_per_worker) if options.workers else 0
    components = None
    if options.maps:
        check_maps(teacher, seen, size, options.maps, options.map_channels)
        components = _components(options, out, teacher, manifest, transform, decode_threads)

    # -- the job --------------------------------------------------------------------------------------------
    job = BatchJob(
        units=units_of(manifest, rows_per_part=options.rows_per_part),
        prepare=DecodedRows(
            manifest=manifest,
            image_column=options.image_column,
            keep=keep,
            transform=transform,
            decode_threads=decode_threads,
            rows_per_part=options.rows_per_part,
            with_bad=True,
        ),
        compute=Embedding(name, size, options.maps, components, num_threads),
        out=out,
        identity={
            "job": "embed",
            "format_version": FORMAT_VERSION,
            "teacher": teacher.weights_sha256,
            "mean": teacher.mean,
            "std": teacher.std,
            "data": manifest.fingerprint,
            "columns": keep,
            "size": size,
            "whole_image": is_whole,
            "crop_share": None if is_whole else options.crop_fraction,
            "maps": options.maps,
            "map_channels": options.map_channels if options.maps else 0,
            "map_pca": None if components is None else components.sha256,
            "rows_per_part": options.rows_per_part,
        },
        files={} if components is None else {COMPONENTS: components.to_bytes()},
        row_groups=row_groups_of,
    )
    machines = machines_of(options, has_gpu=torch.cuda.is_available())
    if options.check:
        for line in check_batch_job(job, machines, data_urls=data):
            print(f"embed: {line}")
        return None
    with held_folder(out):
        maps = _maps_described(components, options.maps)
        return _run(job, machines, manifest, data, teacher, maps, options.rows_per_part)


def _components(
    options: argparse.Namespace, out: str, teacher: Teacher, manifest: Manifest, transform: CentralCrop,
    decode_threads: int,
) -> MapComponents:  # fmt: skip
    """What maps are reduced by: that of a job that was cut off, or made of images spread over the data."""
    url = storage.join(out, COMPONENTS)
    if storage.exists(url):
        return MapComponents.from_bytes(storage.read_bytes(url), url)
    num = ROWS_FOR_CHECK if options.check else ROWS_FOR_COMPONENTS
    looks = Look(teacher, device_here())
    images = _spread_images(manifest, options.image_column, transform, num, decode_threads)
    maps = (at_cells(looks(batch).maps[-1], options.maps) for batch in images)
    components = fit_components(maps, num=options.map_channels)
    if components is None:
        raise UserError(
            f"none of {num} images spread over the data can be decoded; pretrain.data check lists why"
        )
    return components


def _run(
    job: BatchJob,
    machines: Machines,
    manifest: Manifest,
    data: list[str],
    teacher: Teacher,
    maps: dict[str, Any] | None,
    rows_per_part: int,
) -> BatchResult:
    """Does what is missing of the job, and says what came of it."""
    out = job.out
    print(f"embed: {manifest.num_rows:,} images, {len(job.units):,} units, into {out}", flush=True)
    description_url = storage.join(out, DESCRIPTION)
    if parts_there(job) != parts_of(job):
        storage.remove(description_url)  # so that a folder that lacks parts does not look finished
    with ProgressLine("embed, parts") as progress:
        result = run_batch_job(job, machines, on_progress=progress.reach)

    # -- what is said of it ---------------------------------------------------------------------------------
    lines = "".join(json.dumps(note) + "\n" for note in result.notes)
    storage.write_bytes(storage.join(out, "bad_rows.jsonl"), lines.encode())
    if not storage.exists(description_url):
        write_description(
            out,
            sorted(parts_of(job)),
            manifest=manifest,
            data_urls=data,
            rows_per_part=rows_per_part,
            teacher=teacher.described(),
            maps=maps,
            images={key: job.identity[key] for key in ("size", "whole_image", "crop_share")},
        )
    new = result.num_parts - result.num_parts_before
    bad = f", {len(result.notes):,} bad rows in bad_rows.jsonl" if result.notes else ""
    print(
        f"embed: features of {result.num_rows - len(result.notes):,} images{bad}; {new:,} of "
        f"{result.num_parts:,} parts made in {duration(result.seconds)}"
    )
    return result


def _maps_described(components: MapComponents | None, cells: int) -> dict[str, Any] | None:
    if components is None:
        return None
    return {"cells": cells, "channels": components.channels, "explained": components.explained}


def _teacher_name(name: str) -> str:
    # workers may run in another folder; what names no folder here is a name of another kind
    return storage.absolute(name) if storage.is_local(name) and storage.exists(name) else name


def seen_by(teacher: Teacher, size: int) -> TeacherOutput:
    """A teacher's features of a blank image. Raises UserError where it does not take images of this size."""
    with torch.no_grad():
        try:
            output: TeacherOutput = teacher.network(torch.zeros(1, teacher.in_channels, size, size))
        except Exception as error:  # whatever a network raises for a size that it was not made for
            if size == teacher.input_size:
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"--size {size}: the teacher {teacher.name} does not take images of {size} pixels "
                f"({reason}); its own size is {teacher.input_size}"
            ) from error
    return output


def check_maps(teacher: Teacher, seen: TeacherOutput, size: int, cells: int, channels: int) -> None:
    """Raises UserError where a teacher has no map of so many cells and channels at `size` pixels."""
    if not seen.maps:
        raise UserError(
            f"--maps {cells}: the teacher {teacher.name} has no maps, only pooled features; leave --maps out"
        )
    last = seen.maps[-1]
    positions = min(last.shape[2:])
    if cells > positions:
        larger = -(-cells * size // positions)
        raise UserError(
            f"--maps {cells}: the last map of {teacher.name} has {last.shape[2]} x {last.shape[3]} "
            f"positions at {size} pixels; ask for at most {positions}, or for larger images, such as --size "
            f"{larger}"
        )
    if channels > last.shape[1]:
        raise UserError(
            f"--map-channels {channels}: the last map of {teacher.name} has only {last.shape[1]} channels"
        )


def _spread_images(
    manifest: Manifest, image_column: str, transform: CentralCrop, num: int, threads: int
) -> Iterator[np.ndarray]:
    """uint8 batches [B, C, size, size] of about `num` images, spread over the data, of few row groups."""
    sample = manifest.sample(num)
    num = min(num, sample.num_rows)
    rows = np.arange(num) * sample.num_rows // num
    shards = Shards(sample.chosen(rows), image_column=image_column)
    for batch in batches_in_sequence(shards, transform, batch_size=8, decode_threads=threads):
        yield batch.arrays[0]


def parser() -> CommandLine:
    """The command line."""
    parser = CommandLine(
        prog="python -m pretrain embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "teacher", metavar="TEACHER", help="encoder folder (a path or any fsspec URL), or another teacher"
    )
    parser.add_argument(
        "data", metavar="DATA", help="Parquet shards: path, glob or URL, or several, separated by commas"
    )
    parser.add_argument("out", metavar="OUT", help="folder of the features, a path or URL")
    parser.add_argument(
        "--image-column", default="image", metavar="NAME", help="struct<bytes, path> or binary"
    )
    add_image_root_option(parser)
    parser.add_argument(
        "--keep", type=lambda text: [name for name in text.split(",") if name], metavar="NAMES",
        default=None,
        help="columns to copy, separated by commas; by default all that are neither images nor nested",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=whole(1), help="side of the images in pixels; by default the teacher's own"
    )
    parser.add_argument(
        "--whole-image", action="store_true",
        help="the teacher sees the whole image, squeezed into a square, instead of its central square; "
        "--maps implies it",
    )  # fmt: skip
    parser.add_argument(
        "--crop-fraction",
        type=_fraction,
        default=0.875,
        help="side of the central square, as a fraction of the short side",
    )
    parser.add_argument(
        "--maps",
        type=whole(1),
        default=0,
        metavar="CELLS",
        help="also store the last map, at CELLS x CELLS positions",
    )
    parser.add_argument(
        "--map-channels",
        type=whole(1),
        default=64,
        metavar="N",
        help="number of channels that maps are reduced to",
    )
    parser.add_argument(
        "--rows-per-part", type=whole(1), default=ROWS_PER_PART, help="rows in each file of OUT"
    )
    add_machine_options(parser)
    return parser


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and at most 1")
    return fraction
