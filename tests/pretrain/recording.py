"""`python -m tests.pretrain.recording CONFIG ...`:
`python -m pretrain`, and each worker writes down which rows it trained on.

The records lie beside OUT, in OUT.rows. A file `seconds` there slows each step down, so that there is time
to break things: workers of a cluster see no environment of the command's.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
import zlib
from pathlib import Path

from cluster.errors import run_command
from pretrain import __main__ as command
from pretrain import run
from pretrain.training.loop import train

pretrain = run.pretrain


class Recorded:
    """A run's batches, each written down as it is taken."""

    def __init__(self, batches, context, samples_seen, batch_size_global, folder):
        self._batches, self._context, self._size = batches, context, batch_size_global
        self._step = samples_seen // batch_size_global
        folder.mkdir(exist_ok=True)
        self._file, slow = folder / f"{uuid.uuid4().hex}.jsonl", folder / "seconds"
        self._seconds = float(slow.read_text()) if slow.exists() else 0.0
        loader = batches._batches
        self._loader_next = type(loader).__next__
        batches._batches = self
        self._loader = loader

    def __next__(self):  # in the place of the loader
        batch = self._loader_next(self._loader)
        rows = batch.row_ids.tolist()
        taken = {
            "step": self._step,
            "rank": self._context.rank,
            "of": self._context.world_size,
            "rows": rows,
        }
        if "features" in batch.columns:
            taken["features"] = [zlib.crc32(features.tobytes()) for features in batch.columns["features"]]
        with open(self._file, "a") as file:
            file.write(json.dumps(taken) + "\n")
        self._step += 1
        time.sleep(self._seconds)
        return batch

    def close(self):
        self._loader.close()


def recorded_train(module, optimizer, plan, *, context, run, batches_from):
    def recorded(samples_seen):
        batches = batches_from(samples_seen)
        Recorded(batches, context, samples_seen, plan.training.batch_size_global, Path(f"{plan.out}.rows"))
        return batches

    return train(module, optimizer, plan, context=context, run=run, batches_from=recorded)


def recorded_pretrain(context, settings, **made):
    """What each worker does."""
    return pretrain(context, settings, **made, loop=recorded_train)


def rows_by_step(folder, what="rows"):
    """The rows (or checksums of the `features`) of each global batch, from all attempts;
    attempts that differ are an error.
    """
    pieces = {}
    for path in Path(folder).glob("*.jsonl"):
        for line in path.read_text().splitlines():
            taken = json.loads(line)
            known = pieces.setdefault((taken["step"], taken["of"]), {}).setdefault(
                taken["rank"], taken[what]
            )
            assert known == taken[what], taken
    batches = {}
    for (step, of), ranks in pieces.items():
        if len(ranks) == of:  # else an attempt ended between the ranks
            rows = [row for rank in range(of) for row in ranks[rank]]
            assert batches.setdefault(step, rows) == rows, step
    return batches


if __name__ == "__main__":
    from tests.pretrain import recording  # by its importable name, for the workers

    run.pretrain = recording.recorded_pretrain
    sys.exit(run_command(lambda: command.main(sys.argv[1:])))
