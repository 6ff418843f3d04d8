"""From a command to its workers and back, in both stages: claim OUT, run or continue, leave a result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import cluster.settings
from cluster import storage
from cluster.durations import duration
from cluster.errors import EXIT_INTERRUPTED, UserError, printable
from cluster.lease import InUse, check_free
from cluster.secrets import masked
from cluster.training.rank_context import RankContext, local_context
from cluster.training.workers import Workers, check_cluster, run_workers
from pretrain.data.reading.manifest import Manifest
from pretrain.training import checkpoints, run_folder
from pretrain.training.console import RunConsole
from pretrain.training.data_identity import URLS, Identity, check_same, identity_of
from pretrain.training.data_identity import differences as data_differences
from pretrain.training.parent import chosen_step
from pretrain.training.rehearsal import rehearse
from pretrain.training.settings import FREE_TO_CHANGE, UNSEEN, ClusterSettings
from pretrain.training.tracking import check_tracking

LENGTH = ("training.epochs", "training.steps")
LONGER = (
    "its learning rate follows a schedule that ends where the run does, so the steps taken would have been "
    "others; to train longer, go on in another out from this run's checkpoint by training.parent"
)


def launch(
    title: str,
    function: Callable[..., dict[str, Any]],
    settings: Any,
    *,
    cluster_settings: ClusterSettings,
    world_sizes: Sequence[int] = (),
    data: Mapping[str, Manifest] | None = None,
    check_only: bool = False,
    report: Callable[[str], object] | None = None,
) -> int:
    """Runs `function(context, settings)` on the workers that the settings ask for; returns the exit code.

    With `cluster.min_workers` a run may go on with fewer of them, of those numbers that `world_sizes` has.

    `settings.out` must be absolute; `settings.tracking` names trackers. A run that is finished is said to be
    so and not run again. `data` is what the run reads, by what it is for: an unfinished run goes on with the
    same, wherever it lies, and with other data only where `settings.data.on_change` says so. `function`
    returns the contents of result.json, or `{"status": "interrupted", "step": ...}`. With `check_only` it is
    called here with `loop=rehearse` in place of the training loop, a cluster is only asked whether it is
    ready, and nothing stays behind in OUT. `report(out)` is called here however the run ends; what goes
    wrong in it is a warning. A start that fails before its first step leaves OUT as it was.

    Raises what the workers raise; how the run ended is in result.json then.
    """
    out = settings.out
    workers = _workers(settings, cluster_settings, world_sizes)
    run_folder.check_is_no_file(out)
    check_tracking(settings.tracking, out)
    identity = identity_of(data or {})
    before = _Before(out, settings, identity)
    if check_only:
        return _check(title, function, settings, before, workers)
    if not before.is_finished:
        check_free(storage.join(out, run_folder.RUNNING), out)
    run_folder.check_claim(out, before.refused)
    if before.is_finished:
        return _nothing_to_do(title, before, out, report)
    before.check_data()
    before.check_parent(settings.training.parent)
    for line in before.changed:
        print(f"{title}: continues with {line}", flush=True)
    with (
        run_folder.as_it_was_if_nothing_happens(out),
        _reported(out, report),
        run_folder.running(out),
        RunConsole(title) as console,
    ):
        run_folder.claim(out, cluster.settings.to_yaml(settings))
        if num := workers.num_workers:
            print(f"{title}: starting {num} Ray workers, which takes some seconds", flush=True)
        result = run_workers(function, settings, workers, on_record=console.show)
        if result["status"] == "interrupted":
            run_folder.write_result(out, result)
    if result["status"] == "interrupted":
        print(f"{title}: interrupted at step {result['step']}; the same command continues from there")
        return EXIT_INTERRUPTED
    where = storage.join(out, "result.json")
    print(f"{title}: finished in {duration(result['seconds'])} of training; {where} sums it up")
    return 0


def _nothing_to_do(title: str, before: _Before, out: str, report: Callable[[str], object] | None) -> int:
    for line in before.end_in_words():
        print(f"{title}: {line}", flush=True)
    if report is not None and not storage.exists(storage.join(out, run_folder.REPORT)):
        print(f"{title}: its report was missing and is written now", flush=True)
        write_report(report, out)
    return 0


@contextmanager
def _reported(out: str, report: Callable[[str], object] | None) -> Iterator[None]:
    """Writes the report however a run of at least a step ends, not where another command holds OUT."""
    try:
        yield
    except BaseException as error:
        if report is not None and not isinstance(error, InUse) and run_folder.has_steps(out):
            write_report(report, out)
        raise
    if report is not None:
        write_report(report, out)


class _Before:
    """What is in OUT before a start, and what of the settings and the data differs from it."""

    def __init__(self, out: str, settings: Any, identity: Mapping[str, Identity]) -> None:
        self._out, self._identity, self._on_change = out, identity, settings.data.on_change
        self._result = run_folder.read_result(out) or {}
        self.is_finished = self._result.get("status") == "finished"
        self.progress = checkpoints.newest_progress(out)
        known = self.progress.data if self.progress is not None else None
        if self.is_finished:
            known = self._result.get("data")
        self._known = known if isinstance(known, dict) else {}
        old = run_folder.read_settings(out)
        self.changed: list[str] = []
        self.refused: list[str] = []
        if old is None or not (self.is_finished or run_folder.has_steps(out)):
            return  # nothing was learnt that other settings would contradict
        self.changed = cluster.settings.differences(old, settings, ignored=(*UNSEEN, *URLS.values()))
        # where it is known what a run learnt from, its place is free
        is_known = self._known and (
            not self.data_changes or (self._on_change == "continue" and not self.is_finished)
        )
        free = FREE_TO_CHANGE + (tuple(URLS.values()) if is_known else ())
        self.refused = [
            f"{one}: {LONGER}" if one.startswith(LENGTH) else one
            for one in cluster.settings.differences(old, settings, ignored=free)
        ]
        if not self.data_changes:
            moved = cluster.settings.differences(old, settings, ignored=UNSEEN)
            self.changed += [
                f"the same data at another location ({one})" for one in moved if one not in self.changed
            ]

    @property
    def data_changes(self) -> list[str]:
        """In words what differs between the data of the run there and that of now."""
        return data_differences(self._known, self._identity)

    def check_data(self) -> None:
        """Raises UserError for data that changed under an unfinished run and may not."""
        check_same(self._known, self._identity, on_change=self._on_change, out=self._out)

    def check_parent(self, parent: str | None) -> None:
        """Raises UserError where the run would begin at a checkpoint that is not there."""
        if self.progress is None and parent is not None:
            chosen_step(parent)

    def end_in_words(self) -> list[str]:
        """Of a finished run, that it is finished, on which data, and whether that is another now."""
        train = self._known.get("train", {})
        on = f" on {train['rows']:,} rows, data {train['fingerprint'][:12]}" if train else ""
        done = f"{duration(self._result.get('seconds', 0))} of training{on}"
        lines = [f"{self._out} is finished already ({done}); nothing to do"]
        for change in self.data_changes:
            lines.append(
                f"its data changed since ({change}); to learn from what is there now, choose another out"
            )
        return lines


def write_report(report: Callable[[str], object], out: str) -> None:
    """Calls `report(out)`; what goes wrong in it is told and costs nothing else."""
    try:
        report(out)
    except Exception as error:
        what = printable(masked(f"{type(error).__name__}: {error}"))
        print(f"warning: the report of {out} was not written: {what}")


def _check(
    title: str, function: Callable[..., dict[str, Any]], settings: Any, before: _Before, workers: Workers
) -> int:
    with storage.no_new_folders(settings.out):
        run_folder.check_claim(settings.out, before.refused)
        if not before.is_finished:
            before.check_data()
            before.check_parent(settings.training.parent)
        fewest = workers.sizes[0]
        num_nodes = check_cluster(dataclasses.replace(workers, num_workers=fewest, smaller=()))
    if num_nodes:
        told = f"the cluster's {num_nodes} nodes can hold the workers and have what they need"
        print(f"{title}: {told}", flush=True)
    where = "starts from scratch"
    if before.is_finished:
        where = "would do nothing: the run there is finished"
    elif before.progress is not None:
        where = f"continues the run there at step {before.progress.step}"
    print(f"{title}: {settings.out} can be written; the command {where}", flush=True)
    todo = function, settings, max(1, workers.num_workers)
    with RunConsole(title) as console, storage.no_new_folders(settings.out):
        if num_nodes:  # on a node that holds a worker: this one may be a head without a GPU
            one = dataclasses.replace(workers, num_workers=1, smaller=(), data_urls=(), max_failures=0)
            run_workers(_rehearsal, todo, one, on_record=console.show)
        else:
            with local_context(console.show) as here:
                _rehearsal(here, todo)
    print(f"{title}: everything is fine; nothing was started")
    return 0


def _rehearsal(context: RankContext, todo: tuple[Callable[..., dict[str, Any]], Any, int]) -> None:
    # as rank 0 of as many workers as there will be: it reads and computes what one worker will
    function, settings, num_workers = todo
    function(dataclasses.replace(context, world_size=num_workers), settings, loop=rehearse)


def _workers(settings: Any, asked: ClusterSettings, world_sizes: Sequence[int]) -> Workers:
    """What the settings ask for; a run may shrink to `world_sizes` from `cluster.min_workers` on."""
    if asked.min_workers > asked.workers:
        raise UserError(
            f"cluster.min_workers={asked.min_workers} is more than cluster.workers={asked.workers}; "
            "workers is the maximum that a run takes"
        )
    return Workers(
        num_workers=asked.workers,
        storage_url=settings.out,
        data_urls=settings.data.urls,
        smaller=[size for size in world_sizes if 0 < asked.min_workers <= size < asked.workers],
        cpus_per_worker=asked.cpus_per_worker,
        gpus_per_worker=asked.gpus_per_worker,
        max_failures=asked.max_failures,
        hang_seconds=asked.hang_seconds,
        resize_seconds=asked.resize_seconds,
        address=asked.address,
    )
