"""Batch jobs: every part once, in order, continued where they were cut off, here and on Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.batch.jobs import BatchJob, Machines, Unit, part_name, run_batch_job, with_notes
from cluster.errors import UserError, WorkerFailed


def numbers() -> Callable[[Any], Iterator[pa.Table]]:
    """Reads a unit [first, last): tables of at most four numbers, with a note for each multiple of 7."""

    def prepare(task: list[int]) -> Iterator[pa.Table]:
        for start in range(task[0], task[1], 4):
            values = list(range(start, min(start + 4, task[1])))
            yield with_notes(
                pa.table({"x": values}), [f"{value} is bad" for value in values if value % 7 == 0]
            )

    return prepare


class Squares:
    """Computes, and writes down how often; may be made to fail at a number."""

    def __init__(self, log: Path, fail_at: int | None = None, error: type[Exception] = UserError) -> None:
        self.log, self.fail_at, self.error = str(log), fail_at, error

    def __call__(self) -> Callable[[pa.Table], pa.Table]:
        def compute(table: pa.Table) -> pa.Table:
            values = table["x"].to_pylist()
            with open(self.log, "a") as file:
                file.write(f"{values[0]} {os.getpid()}\n")
            if self.fail_at in values:
                raise self.error(f"cannot square {self.fail_at}")
            return table.append_column("squared", pa.array([value * value for value in values]))

        return compute


def job(folder: Path, **how: Any) -> BatchJob:
    """30 numbers in units of 10, of three tables each."""
    units = [Unit([start, start + 10], 3) for start in range(0, 30, 10)]
    return BatchJob(units, numbers, Squares(folder / "log", **how), str(folder / "out"), {"of": "squares"})


def values(folder: Path) -> list[tuple[int, int]]:
    found = []
    for path in sorted((folder / "out").glob("*.parquet")):
        found += [(row["x"], row["squared"]) for row in pq.read_table(path).to_pylist()]
    return found


EXPECTED = [(x, x * x) for x in range(30)]
NOTES = [f"{x} is bad" for x in (0, 7, 14, 21, 28)]


def test_every_part_once_in_order_and_a_finished_job_does_nothing(tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    result = run_batch_job(job(tmp_path), Machines(), on_progress=lambda done, of: said.append((done, of)))
    assert values(tmp_path) == EXPECTED
    assert (result.num_rows, result.num_parts, result.num_parts_before, result.notes) == (30, 9, 0, NOTES)
    assert said == [(done, 9) for done in range(1, 10)]
    again = run_batch_job(job(tmp_path, fail_at=0), Machines())
    assert (again.num_rows, again.num_parts_before, again.notes) == (30, 9, NOTES)


def test_a_job_that_was_cut_off_does_only_the_rest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot square 15"):
        run_batch_job(job(tmp_path, fail_at=15), Machines())
    there = {path.name for path in (tmp_path / "out").glob("*.parquet")}
    assert there == {part_name(0, part) for part in range(3)} | {part_name(1, 0)}
    (tmp_path / "log").unlink()
    result = run_batch_job(job(tmp_path), Machines())
    assert values(tmp_path) == EXPECTED and result.notes == NOTES and result.num_parts_before == 4
    computed = [int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()]
    assert computed == [10, 14, 18, 20, 24, 28]  # whole units, and none of the first


def test_other_jobs_and_other_files_are_left_alone(tmp_path: Path) -> None:
    run_batch_job(job(tmp_path), Machines())
    other = BatchJob([], numbers, Squares(tmp_path / "log"), str(tmp_path / "out"), {"of": "cubes"})
    with pytest.raises(UserError, match=r"another job \(of is 'squares' there, 'cubes' here\)"):
        run_batch_job(other, Machines())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("dear to somebody")
    with pytest.raises(UserError, match=r"not empty and holds no job of this kind \(there: thesis\.txt\)"):
        run_batch_job(BatchJob([], numbers, numbers, str(tmp_path / "full"), {}), Machines())


def test_a_damaged_part_is_told(tmp_path: Path) -> None:
    run_batch_job(job(tmp_path), Machines())
    (tmp_path / "out" / part_name(1, 1)).write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match=r"part-00000001-0001\.parquet is damaged"):
        run_batch_job(job(tmp_path), Machines())


@pytest.mark.ray
def test_on_ray_the_same_parts_from_other_processes(tmp_path: Path, shared_ray: None) -> None:
    machines = Machines(workers=1, readers=1)
    with pytest.raises(UserError, match=r"^cannot square 25$"):
        run_batch_job(job(tmp_path, fail_at=25), machines)
    result = run_batch_job(job(tmp_path), machines)
    assert values(tmp_path) == EXPECTED and result.notes == NOTES
    processes = {line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}
    assert str(os.getpid()) not in processes


@pytest.mark.ray
@pytest.mark.slow
def test_a_bug_on_ray_is_told_with_its_traceback(tmp_path: Path, shared_ray: None) -> None:
    with pytest.raises(WorkerFailed, match="ZeroDivisionError: cannot square 3"):
        run_batch_job(job(tmp_path, fail_at=3, error=ZeroDivisionError), Machines(workers=1))
    with pytest.raises(UserError, match="want 1000 GPU"):
        run_batch_job(job(tmp_path), Machines(workers=1000, cpus_per_worker=0.001, gpus_per_worker=1))
