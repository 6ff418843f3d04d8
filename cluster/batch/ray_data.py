"""Units of a batch job on a Ray cluster: Ray Data streams them from processes
that read to processes that compute.

Each row that passes between them is one whole table as Arrow's stream format, so that Ray neither splits nor
joins what belongs together, and each unit's parts can be written where they are computed.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pyarrow as pa

from cluster.batch.jobs import MIB, BatchJob, Machines, write_part
from cluster.errors import UserError, WorkerFailed
from cluster.process import set_up_process

QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal"}  # its complaint about actors that could not be restarted
OBJECT_STORE_BYTES = 1024 * MIB  # of a private Ray: some tables of decoded images for each process


def parts_by_ray(job: BatchJob, machines: Machines, missing: Sequence[int]) -> Iterator[int]:
    """Works units off on the cluster; yields the parts written as they come.

    Raises UserError as `prepare` or `compute` raised it, or when the cluster can never hold the processes;
    WorkerFailed with the traceback of anything else.
    """
    from cluster.training.ray_session import check_resources, ray_session

    readers = machines.readers or machines.workers
    cpus = machines.workers * machines.cpus_per_worker + readers * machines.cpus_per_reader
    with ray_session(machines.address, 1, cpus, environment=QUIET, object_store_bytes=OBJECT_STORE_BYTES):
        computing = {"CPU": machines.cpus_per_worker} | (
            {"GPU": machines.gpus_per_worker} if machines.gpus_per_worker else {}
        )
        check_resources(machines.workers, computing)
        check_resources(readers, {"CPU": machines.cpus_per_reader})
        yield from _parts(job, machines, missing, readers)


def _parts(job: BatchJob, machines: Machines, missing: Sequence[int], readers: int) -> Iterator[int]:
    import ray
    import ray.cloudpickle
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    pickled = ray.cloudpickle.dumps(job)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    units = [{"unit": unit} for unit in missing]
    rows = (
        ray.data.from_items(units, override_num_blocks=min(len(units), 64 * readers))
        .map_batches(
            _Prepare,
            fn_constructor_args=(pickled,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=readers),
            num_cpus=machines.cpus_per_reader,
            **_labels(machines.reader_labels),
        )
        .map_batches(
            _Compute,
            fn_constructor_args=(pickled,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=machines.workers),
            num_cpus=machines.cpus_per_worker,
            num_gpus=machines.gpus_per_worker or None,
            **_labels(machines.worker_labels),
        )
    )
    try:
        for row in rows.iter_rows():
            _raise(row["failure"])
            yield int(row["written"])
    except ray.exceptions.RayError as error:
        raise WorkerFailed(f"Ray gave up\n{str(error).strip()}") from None


def _labels(labels: Any) -> dict[str, Any]:
    return {"label_selector": dict(labels)} if labels else {}


def _failure(error: Exception) -> str:
    # Ray wraps an exception again and again, and loses what it was; a text comes through as it is
    mended = isinstance(error, UserError)
    return json.dumps([mended, str(error) if mended else "".join(traceback.format_exception(error))])


def _raise(failure: str) -> None:
    if failure:
        mended, text = json.loads(failure)
        raise UserError(text) if mended else WorkerFailed(f"a worker failed\n{text.rstrip()}")


def _unpickled(job: bytes) -> BatchJob:
    """A job in the process that works on it, which is set up before the job's modules load torch."""
    import ray.cloudpickle

    set_up_process()
    return cast(BatchJob, ray.cloudpickle.loads(job))


class _Prepare:
    """An actor that reads: one unit in, its tables out, one a row; or a row that says what failed."""

    def __init__(self, job: bytes) -> None:
        self._job = _unpickled(job)
        self._prepare = self._job.prepare()

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for unit in batch["unit"].to_pylist():
            try:
                for part, table in enumerate(self._prepare(self._job.units[unit].task)):
                    sink = pa.BufferOutputStream()
                    with pa.ipc.new_stream(sink, table.schema) as stream:
                        stream.write_table(table)
                    yield _row(unit, part, sink.getvalue().to_pybytes(), "")
            except Exception as error:
                yield _row(unit, -1, b"", _failure(error))


class _Compute:
    """An actor that computes: tables in, parts written."""

    def __init__(self, job: bytes) -> None:
        self._job = _unpickled(job)
        self._compute = self._job.compute()

    def __call__(self, batch: pa.Table) -> pa.Table:
        written, failure = 0, ""
        for unit, part, whole, failed in zip(*(batch[name] for name in _COLUMNS), strict=True):
            failure = failure or failed.as_py()
            if not failure:
                try:
                    table = pa.ipc.open_stream(whole.as_buffer()).read_all()
                    written += write_part(self._job, unit.as_py(), part.as_py(), self._compute(table))
                except Exception as error:
                    failure = _failure(error)
        return pa.table({"written": [written], "failure": [failure]})


_COLUMNS = ("unit", "part", "table", "failure")


def _row(unit: int, part: int, table: bytes, failure: str) -> pa.Table:
    arrays = [pa.array([unit]), pa.array([part]), pa.array([table], pa.large_binary()), pa.array([failure])]
    return pa.Table.from_arrays(arrays, list(_COLUMNS))
