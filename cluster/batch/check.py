"""`--check` of batch jobs: does a first part of the work and keeps nothing of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from cluster import storage
from cluster.batch.jobs import BatchJob, Machines, parts_of, parts_there
from cluster.durations import duration
from cluster.errors import UserError
from cluster.training.memory import GIB, peak_bytes
from cluster.training.workers import Workers, check_cluster


def check_batch_job(job: BatchJob, machines: Machines, *, data_urls: Sequence[str]) -> list[str]:
    """What the job would do and how long it would take, in lines for the terminal. Writes nothing.

    The first table of the first unit is read and computed in this process,
    so the estimate holds for machines like it.

    Raises UserError for what would stop the job at its start: an OUT of something else or that cannot be
    written, data that cannot be read, a cluster that is not ready.
    """
    there = parts_there(job)
    with storage.no_new_folders(job.out):
        storage.check_writable(job.out)
        asked = Workers(
            num_workers=machines.workers,
            storage_url=job.out,
            data_urls=data_urls,
            cpus_per_worker=machines.cpus_per_worker,
            gpus_per_worker=machines.gpus_per_worker,
            address=machines.address,
        )
        num_nodes = check_cluster(asked)
    num_parts = len(parts_of(job))
    num_left = num_parts - len(there or ())
    lines = [f"{job.out} can be written; {num_parts - num_left:,} of {num_parts:,} parts are there"]
    if num_nodes:
        lines.append(f"the cluster's {num_nodes} nodes can hold the workers and have what they need")
    compute = job.compute()
    started = time.monotonic()
    table = next(iter(job.prepare()(job.units[0].task)), None)
    if table is None:
        raise UserError(
            f"none of the first rows of {', '.join(data_urls)} can be used; see pretrain.data check"
        )
    prepared = time.monotonic()
    compute(table)
    read, computed = prepared - started, time.monotonic() - prepared
    share = max(1, machines.workers)
    # reading and computing overlap
    seconds = math.ceil(num_left / share) * max(read, computed) if num_left else 0.0
    lines += [
        f"first part: {table.num_rows:,} images read in {duration(read)}, computed in {duration(computed)}",
        f"memory: about {peak_bytes() / GIB:.1f} GiB for a process that does both",
        f"about {duration(seconds)} for {num_left:,} parts with {share} worker{'s'[: share != 1]} like this "
        "machine",
        "nothing was started",
    ]
    return lines
