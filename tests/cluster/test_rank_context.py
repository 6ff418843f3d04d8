"""A context in this process, and signals."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
import torch

from cluster.durations import duration
from cluster.training.rank_context import RankContext, local_context
from cluster.training.workers import Workers, run_workers
from tests.cluster import jobs


def test_in_process_gives_what_a_worker_gives() -> None:
    records: list[dict[str, Any]] = []
    threads = torch.get_num_threads()
    result = run_workers(
        jobs.count,
        jobs.Numbers(count=3),
        Workers(num_workers=0, storage_url="unused", cpus_per_worker=1),
        on_record=records.append,
    )
    assert records == [{"i": i, "rank": 0, "pair": [1, 2]} for i in range(3)]
    assert (result["rank"], result["world_size"], result["attempt"], result["restarts"]) == (0, 1, 0, ())
    assert result["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert result["num_threads"] == 1
    assert torch.get_num_threads() == threads


def test_first_ctrl_c_asks_second_interrupts_and_handlers_come_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with local_context() as context:
        assert not context.stop_requested()
        os.kill(os.getpid(), signal.SIGINT)
        assert context.stop_requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert {number: signal.getsignal(number) for number in former} == former
    assert capfd.readouterr().err.count("press Ctrl-C again") == 1


def test_sigterm_asks_for_a_stop_however_often_it_comes() -> None:
    with local_context() as context:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert context.stop_requested()


def test_handlers_come_back_after_an_exception() -> None:
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="inside"), local_context():
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGINT) is former


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    former = signal.getsignal(signal.SIGINT)
    seen: list[Any] = []

    def run() -> None:
        with local_context() as context:
            seen.append(signal.getsignal(signal.SIGINT))
            context.request_stop()
            seen.append(context.stop_requested())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [former, True]


def test_what_json_cannot_hold_is_refused_on_every_rank() -> None:
    for rank in (0, 1):
        context = RankContext(rank=rank, world_size=2, device=torch.device("cpu"))
        with pytest.raises(TypeError):
            context.report({"loss": torch.zeros(1)})


def test_a_record_is_what_it_was_when_reported() -> None:
    records: list[dict[str, Any]] = []
    with local_context(records.append) as context:
        record = {"step": 1}
        context.report(record)
        record["step"] = 2
    assert records == [{"step": 1}]


def test_durations_are_read_at_a_glance():
    assert [duration(seconds) for seconds in (3, 3.4, 42.4, 185, 12000, 2e5)] == [
        "3 s",
        "3.4 s",
        "42 s",
        "3:05 min",
        "3:20 h",
        "2.3 days",
    ]
