"""Predictions of whole data sets by a batch job:
on CPU nodes that decode for the nodes that predict, or here.

OUT/parts holds a Parquet file for some hundred rows each; OUT/predictions.jsonl is written from them when
all are there, with the same records as `predict` writes in one process.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cluster import storage
from cluster.batch.jobs import NOTES, BatchJob, Compute, Machines, run_batch_job
from cluster.errors import UserError
from cluster.progress import ProgressLine
from finetune.model import load_model
from finetune.predicting.records import arrow_schema, record_of, records_in, table_of
from finetune.predicting.sources import Clip, Item
from finetune.predicting.stream import Stream
from finetune.tasks.base import Predictor
from pretrain.data.reading.decoded import LOCATION, DecodedRows, geometry_of, pixels_of, units_of
from pretrain.data.reading.manifest import Manifest, load_manifest

# fewer than for embedding: Ray's private object store takes a few tables of canvases of 640 pixels
ROWS_PER_PART = 128
AT_ONCE = 32


@dataclass(frozen=True)
class Predicting:
    """Predicts for decoded images; sent to each process that computes, where calling it loads the model."""

    model_url: str
    num_threads: int = 0  # 0: as many as torch takes

    def __call__(self) -> Compute:
        """Loads the model and gives the function that makes a part of a table."""
        if self.num_threads:
            torch.set_num_threads(self.num_threads)
        predictor = load_model(self.model_url).to("cuda" if torch.cuda.is_available() else "cpu")
        schema = arrow_schema(predictor.result_type)

        def compute(table: pa.Table) -> pa.Table:
            size, channels = predictor.config["image_size"], predictor.channels
            pixels, geometry = pixels_of(table, size=size, channels=channels), geometry_of(table)
            records: list[dict[str, Any]] = []
            for start in range(0, len(pixels), AT_ONCE):
                some = slice(start, start + AT_ONCE)
                part = None if geometry is None else geometry[:, some]
                records.extend(map(record_of, predictor.results([pixels[some].copy()], part)))
            predicted = table_of(records, schema)
            locations = table.select(list(LOCATION))
            for name in predicted.column_names:
                locations = locations.append_column(predicted.schema.field(name), predicted[name])
            return locations.replace_schema_metadata(table.schema.metadata)

        return compute


def job_of(
    predictor: Predictor,
    model_url: str,
    clips: Sequence[Clip],
    out: str,
    machines: Machines,
    *,
    image_column: str,
) -> tuple[BatchJob, Manifest]:
    """The job that predicts for rows of Parquet clips into `out/parts`. Raises UserError for other clips."""
    if others := [clip.name for clip in clips if clip.kind != "parquet"]:
        raise UserError(
            f"--workers predicts for Parquet shards alone, and {others[0]} is none; pack it with "
            "`python -m pretrain.data import`"
        )
    urls = [url for clip in clips for url in clip.urls]
    manifest = load_manifest(urls, columns=[image_column], image_column=image_column)
    job = BatchJob(
        units=units_of(manifest, rows_per_part=ROWS_PER_PART),
        prepare=DecodedRows(
            manifest=manifest,
            image_column=image_column,
            keep=[],
            transform=predictor.transform,
            decode_threads=max(
                1, int(machines.cpus_per_reader if machines.workers else torch.get_num_threads())
            ),
            rows_per_part=ROWS_PER_PART,
        ),
        compute=Predicting(model_url, int(machines.cpus_per_worker) if machines.workers else 0),
        out=storage.join(out, "parts"),
        identity={
            "job": "predict",
            "model": predictor.config["weights_sha256"],
            "data": manifest.fingerprint,
            "rows_per_part": ROWS_PER_PART,
        },
    )
    return job, manifest


def predict_shards(job: BatchJob, manifest: Manifest, clips: Sequence[Clip], machines: Machines) -> Stream:
    """Does the job of `job_of`, or what is left of it; the images of what it gives have no pixels."""
    with ProgressLine("predict, parts") as progress:
        run_batch_job(job, machines, on_progress=progress.reach)
    clip_of = {url: clip for clip in clips for url in clip.urls}
    found = _records(job.out, manifest, clips)
    for clip, records in itertools.groupby(found, key=lambda record: clip_of[record["source"]]):
        yield clip, ((Item(record["source"], record["index"], None, None), record) for record in records)


def _records(parts: str, manifest: Manifest, clips: Sequence[Clip]) -> Iterator[dict[str, Any]]:
    """The records of all parts, in the order of the data, bad ones too; rows count from 0 in each input."""
    first_of_file, first = {}, 0
    for clip in clips:
        first_of_file.update(dict.fromkeys(clip.urls, first))
        first += clip.num_items or 0
    starts = {
        (manifest.files[file].url, group): int(start) - first_of_file[manifest.files[file].url]
        for file, group, start in zip(
            manifest.file_of_group.tolist(),
            manifest.group_in_file.tolist(),
            manifest.start_of_group,
            strict=False,
        )
    }
    for file in storage.find_files(parts, ".parquet"):
        with storage.open_input(file.url) as source:
            table = pq.read_table(source)
        notes = json.loads((table.schema.metadata or {}).get(NOTES, b"[]"))
        rows = [(row, None) for row in records_in(table)] + [(note, note["reason"]) for note in notes]
        found = []
        for row, reason in rows:
            url, group, number = (row.pop(name) for name in LOCATION)
            row.pop("reason", None)
            index = starts[url, group] + number
            found.append({"source": url, "index": index, "seconds": None, "error": reason, **row})
        yield from sorted(found, key=lambda record: record["index"])
