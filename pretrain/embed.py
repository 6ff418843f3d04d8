"""python -m pretrain embed ENCODER DATA OUT: the features of every image, Parquet in, Parquet out.

OUT gets a Parquet file for some hundred rows each, in the order of the data: `features` (list of float32, the encoder's pooled
last map), where each row lay (`file`, `row_group`, `row`), and the columns of DATA that are no images. Rows that cannot be
decoded are left out and listed in bad_rows.jsonl. The same command again continues where it was cut off.

With --workers it runs on Ray: on a Ray of its own, or on the cluster there is (RAY_ADDRESS, inside a job), where --readers
decode on nodes that --reader-label chooses, for the workers that have the GPUs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch

from cluster import storage
from cluster.batch_check import check_batch_job
from cluster.batch_jobs import BatchJob, Compute, run_batch_job
from cluster.batch_options import JobProgress, add_machine_options, machines_of, whole
from pretrain.data.augment import normalised
from pretrain.data.decoded import ROWS_PER_PART, DecodedRows, columns_to_keep, pixels_of, units_of
from pretrain.data.manifest import load_manifest
from pretrain.data.views import CentralCrop
from pretrain.encoders import Encoder, load_encoder, pooled, read_encoder_config

IMAGES_PER_PASS = 128


@dataclass(frozen=True)
class Embedding:
    """Makes features of decoded images; sent to each process that computes, where calling it loads the encoder."""

    encoder_url: str
    size: int
    num_threads: int = 0  # 0: as many as torch takes

    def __call__(self) -> Compute:
        """Loads the encoder and gives the function that makes a part of a table."""
        if self.num_threads:
            torch.set_num_threads(self.num_threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = read_encoder_config(self.encoder_url)
        encoder = load_encoder(self.encoder_url).to(device).eval()
        mean, std = config.mean, config.std

        def compute(table: pa.Table) -> pa.Table:
            features = features_of(encoder, table, size=self.size, mean=mean, std=std, device=device)
            return table.drop_columns(["pixels"]).add_column(0, "features", features)

        return compute


@torch.no_grad()
def features_of(
    encoder: Encoder, table: pa.Table, *, size: int, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> pa.Array:
    """The pooled features of a table's images, list<float32> [B]."""
    pixels = pixels_of(table, size=size, channels=encoder.in_channels)
    parts = []
    for start in range(0, len(pixels), IMAGES_PER_PASS):
        images = normalised(pixels[start : start + IMAGES_PER_PASS].copy(), device, mean, std)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            parts.append(pooled(encoder(images)).float().cpu())
    dim = encoder.channels[-1]
    flat = torch.cat(parts).reshape(-1).numpy() if parts else torch.zeros(0).numpy()
    offsets = pa.array(range(0, len(pixels) * dim + 1, dim), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(flat, pa.float32()))


def main(arguments: Sequence[str]) -> int:
    """Reads the command line and runs the job; returns the exit code."""
    options = _parser().parse_args(arguments)
    encoder_url, out = storage.absolute(options.encoder), storage.absolute(options.out)
    data = [storage.absolute(url) for url in options.data.split(",")]
    config = read_encoder_config(encoder_url)
    manifest = load_manifest(data, columns=[options.image_column], image_column=options.image_column)
    keep = columns_to_keep(manifest, options.image_column, options.keep)
    size = options.size or config.input_size or 224
    encoder_file = storage.read_json(storage.join(encoder_url, "config.json"))
    job = BatchJob(
        units=units_of(manifest, rows_per_part=options.rows_per_part),
        prepare=DecodedRows(
            manifest=manifest,
            image_column=options.image_column,
            keep=keep,
            transform=CentralCrop(size, share=options.crop_share, channels=config.in_channels),
            decode_threads=max(1, int(options.cpus_per_reader if options.workers else torch.get_num_threads())),
            rows_per_part=options.rows_per_part,
        ),
        compute=Embedding(encoder_url, size, int(options.cpus_per_worker) if options.workers else 0),
        out=out,
        identity={
            "job": "embed",
            "encoder": encoder_file["weights_sha256"],
            "data": manifest.fingerprint,
            "columns": keep,
            "size": size,
            "crop_share": options.crop_share,
            "rows_per_part": options.rows_per_part,
        },
    )
    machines = machines_of(options, has_gpu=torch.cuda.is_available())
    if options.check:
        for line in check_batch_job(job, machines, data_urls=data):
            print(f"embed: {line}")
        return 0
    print(f"embed: {manifest.num_rows:,} images, {len(job.units):,} units, into {out}", flush=True)
    result = run_batch_job(job, machines, on_progress=JobProgress("embed"))
    lines = "".join(json.dumps(note) + "\n" for note in result.notes)
    storage.write_bytes(storage.join(out, "bad_rows.jsonl"), lines.encode())
    new = result.num_parts - result.num_parts_before
    bad = f", {len(result.notes):,} bad rows in bad_rows.jsonl" if result.notes else ""
    print(
        f"embed: features of {result.num_rows:,} images{bad}; {new:,} of {result.num_parts:,} parts made in "
        f"{result.seconds:.1f} s"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder", metavar="ENCODER", help="encoder folder, a path or any fsspec URL")
    parser.add_argument("data", metavar="DATA", help="Parquet shards: path, glob or URL, several with commas between")
    parser.add_argument("out", metavar="OUT", help="folder of the features, a path or URL")
    parser.add_argument("--image-column", default="image", metavar="NAME", help="struct<bytes, path> or binary")
    parser.add_argument(
        "--keep", type=lambda text: [name for name in text.split(",") if name], metavar="NAMES", default=None,
        help="columns that go along, with commas between; by default all that are no images and not nested",
    )  # fmt: skip
    parser.add_argument("--size", type=whole(1), help="side of the crops in pixels; by default the encoder's own")
    parser.add_argument("--crop-share", type=_share, default=0.875, help="part of the short side that is looked at")
    parser.add_argument("--rows-per-part", type=whole(1), default=ROWS_PER_PART, help="rows of a file of OUT")
    add_machine_options(parser)
    return parser


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and at most 1")
    return share
