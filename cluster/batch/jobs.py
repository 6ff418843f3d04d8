"""Work over a whole data set, piece by piece:
here, or by Ray Data on CPU nodes that read for nodes that compute.

A job is a list of units, each a small description (a file and its row groups, say) that one machine can work
off. `prepare` reads a unit and gives tables, `compute` makes a table of each,
and each of those becomes one Parquet file in OUT:

    OUT/part-00000012-0000.parquet     unit 12, its first table; names sort in the order of the data
    OUT/job.json                       what the parts are made of, so that no other job goes on with them
    OUT/result.json                    at the end

Parts appear whole or not at all, so the same command goes on where it was cut off, on any number of workers.
`prepare` may leave notes (rows that could not be used) in a table's schema;
they travel with the parts, so a continued job has them all.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import UserError

JOB, RESULT = "job.json", "result.json"
NOTES = b"fovea.notes"
FOOTER_THREADS = 32
MIB = 2**20

Prepare = Callable[[Any], Iterable[pa.Table]]
Compute = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Unit:
    """A piece of work: what `prepare` is given (JSON), and how many tables it will make of it."""

    task: Any
    num_parts: int


@dataclass(frozen=True)
class BatchJob:
    """What is to be done.

    Attributes:
        units: in the order of the data.
        prepare: called once in each process that reads, gives the function that reads a unit. Runs on CPUs.
        compute: called once in each process that computes (it loads a model), gives the function that makes
            a part of a table and returns the metadata of its input's schema with it.
        out: folder of the parts, any fsspec URL.
        identity: JSON of all that the parts depend on; a folder with another one is refused.
        files: name -> content of what lies beside the parts before the first of them is made.
        row_groups: gives how many rows of a part belong to each row group of its file, in order;
            by default it has one.
    """

    units: Sequence[Unit]
    prepare: Callable[[], Prepare]
    compute: Callable[[], Compute]
    out: str
    identity: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)
    row_groups: Callable[[pa.Table], Sequence[int]] | None = None


@dataclass(frozen=True)
class Machines:
    """Where the work is done.

    Attributes:
        workers: processes that compute; 0 does all in this process, without Ray.
        readers: processes that read and decode; 0 is one for each worker.
        cpus_per_worker, gpus_per_worker, cpus_per_reader: what each asks of Ray.
        worker_labels, reader_labels: labels of the nodes that may run them (`ray.io/accelerator-type:
            "!in(A100)"` or labels of one's own), so that decoding does not take the CPUs of GPU nodes.
        address: a Ray cluster to join; else RAY_ADDRESS, else a private Ray on this machine.
    """

    workers: int = 0
    readers: int = 0
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    cpus_per_reader: float = 1
    worker_labels: Mapping[str, str] = field(default_factory=dict)
    reader_labels: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None


@dataclass(frozen=True)
class BatchResult:
    """What came out: rows and notes of all parts, and how much of it this call did."""

    num_rows: int
    num_parts: int
    num_parts_before: int
    seconds: float
    notes: list[Any]


def part_name(unit: int, part: int) -> str:
    """The file name of a part; names sort in the order of the data."""
    return f"part-{unit:08d}-{part:04d}.parquet"


def with_notes(table: pa.Table, notes: Sequence[Any]) -> pa.Table:
    """The table with notes (JSON) in its schema."""
    return table.replace_schema_metadata(
        {**(table.schema.metadata or {}), NOTES: json.dumps(list(notes)).encode()}
    )


def run_batch_job(
    job: BatchJob, machines: Machines, *, on_progress: Callable[[int, int], None] | None = None
) -> BatchResult:
    """Works off all units that have parts missing, then checks all parts; returns what they hold.

    `on_progress` is called with the number of parts that are there and of all parts. Raises UserError when
    `out` holds another job or other files, what `prepare` and `compute` raise,
    and KeyboardInterrupt at Ctrl-C (the parts stay).
    """
    began = time.monotonic()
    wanted = parts_of(job)
    there = parts_there(job)
    if there is None:
        there = set()
        storage.write_json(storage.join(job.out, JOB), _identity(job))
    for name, content in job.files.items():
        if not storage.exists(storage.join(job.out, name)):
            storage.write_bytes(storage.join(job.out, name), content)
    missing = [
        unit
        for unit, todo in enumerate(job.units)
        if any(part_name(unit, part) not in there for part in range(todo.num_parts))
    ]
    done = len(there)
    if missing:
        if machines.workers:
            from cluster.batch.ray_data import parts_by_ray as parts
        else:
            parts = parts_here
        for written in parts(job, machines, missing):
            done += written
            if on_progress is not None:
                on_progress(min(done, len(wanted)), len(wanted))
    num_rows, notes = _checked(job, sorted(wanted))
    result = BatchResult(num_rows, len(wanted), len(there), time.monotonic() - began, notes)
    storage.write_json(
        storage.join(job.out, RESULT),
        {
            "status": "finished",
            "rows": num_rows,
            "parts": len(wanted),
            "notes": len(notes),
            "seconds": result.seconds,
        },
    )
    return result


def parts_here(job: BatchJob, machines: Machines, missing: Sequence[int]) -> Iterator[int]:
    """Works units off in this process, reading the next table while one is computed;
    yields the parts written, one by one.
    """
    prepare, compute = job.prepare(), job.compute()
    tables = (
        (unit, part, table) for unit in missing for part, table in enumerate(prepare(job.units[unit].task))
    )
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as ahead:
        following = ahead.submit(next, tables, None)
        while (now := following.result()) is not None:
            following = ahead.submit(next, tables, None)
            unit, part, table = now
            yield write_part(job, unit, part, compute(table))


def write_part(job: BatchJob, unit: int, part: int, table: pa.Table) -> int:
    """Writes a part, whole or not at all; returns 1,
    or 0 when it was there (a unit is worked off again as a whole).
    """
    url = storage.join(job.out, part_name(unit, part))
    again = storage.exists(url)
    buffer = io.BytesIO()
    # numbers of 16 bits are few enough for a dictionary,
    # which would make them larger and five times slower to read
    plain = [column.name for column in table.schema if not _holds_halves(column.type)]
    dictionary: Any = True if len(plain) == table.num_columns else plain or False
    with pq.ParquetWriter(buffer, table.schema, compression="zstd", use_dictionary=dictionary) as file:
        start = 0
        for rows in [table.num_rows] if job.row_groups is None else job.row_groups(table):
            file.write_table(table.slice(start, rows))
            start += rows
    storage.write_bytes(url, buffer.getvalue())
    return 0 if again else 1


def _holds_halves(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type))


def parts_of(job: BatchJob) -> set[str]:
    """The names of all parts."""
    return {part_name(unit, part) for unit, todo in enumerate(job.units) for part in range(todo.num_parts)}


def parts_there(job: BatchJob) -> set[str] | None:
    """The names of the parts that an earlier call has made; None where OUT is empty. Writes nothing.

    Raises UserError when OUT holds another job or other files.
    """
    identity = _identity(job)
    names = [name for name in storage.names_in(job.out) if not name.startswith(".")]
    if JOB in names:
        before = storage.read_json(storage.join(job.out, JOB))
        differing = sorted(key for key in {*identity, *before} if identity.get(key) != before.get(key))
        if differing:
            told = "; ".join(
                f"{key} is {before.get(key)!r} there, {identity.get(key)!r} here" for key in differing
            )
            raise UserError(f"{job.out} holds the parts of another job ({told}); choose another folder")
        return parts_of(job).intersection(names)
    if names:
        raise UserError(
            f"{job.out} is not empty and holds no job of this kind (there: {', '.join(names[:5])})"
        )
    return None


def _identity(job: BatchJob) -> dict[str, Any]:
    identity: dict[str, Any] = json.loads(json.dumps(dict(job.identity)))
    return identity


def _checked(job: BatchJob, names: Sequence[str]) -> tuple[int, list[Any]]:
    """Rows and notes of all parts, from their footers. Raises UserError when one is missing or damaged."""

    def look(name: str) -> tuple[int, list[Any]]:
        url = storage.join(job.out, name)
        try:
            with storage.open_input(url) as file:
                parquet = pq.ParquetFile(file)
                metadata = parquet.schema_arrow.metadata or {}
                return parquet.metadata.num_rows, json.loads(metadata.get(NOTES, b"[]"))
        except pa.ArrowException as error:
            raise UserError(f"{url} is damaged ({error}); remove it and give the command again") from error

    with ThreadPoolExecutor(FOOTER_THREADS, thread_name_prefix="footer") as pool:
        looked = list(pool.map(look, names))
    return sum(rows for rows, _ in looked), [note for _, notes in looked for note in notes]
