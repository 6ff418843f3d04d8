"""The channel's state and both ends for records, without Ray: coroutines and threads only."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from cluster.training.channel import Channel, Failure, Listener, Sender


def test_the_cause_of_a_restart_is_the_death_or_else_the_first_failure() -> None:
    async def story() -> list[str]:
        channel = Channel()
        assert (await channel.begin()).attempt == 0
        await channel.fail(Failure(0, 2, "RuntimeError: connection closed by peer", ""), fatal=None)
        await channel.note_death("worker 1: its process died")
        await channel.begin()
        await channel.fail(Failure(1, 2, "KeyError: 'x'", ""), fatal=None)
        await channel.fail(Failure(0, 2, "RuntimeError: connection closed by peer", ""), fatal=None)
        await channel.begin()
        beginning = await channel.begin()
        assert beginning.attempt == 3
        assert not beginning.over
        return list(beginning.restarts)

    assert asyncio.run(story()) == [
        "worker 1: its process died",
        "worker 1: KeyError: 'x'",
        "Ray replaced the workers",
    ]


def test_after_a_fatal_error_a_restarted_group_leaves_at_once() -> None:
    async def story() -> None:
        channel = Channel()
        await channel.begin()
        await channel.fail(Failure(1, 2, "UserError: no", ""), fatal=b"first")
        await channel.fail(Failure(0, 2, "UserError: no", ""), fatal=b"second")
        assert (await channel.outcome()).fatal == b"first"
        assert (await channel.begin()).over

    asyncio.run(story())


def test_records_come_in_order_once_and_the_end_is_told() -> None:
    async def story() -> None:
        channel = Channel()
        waiting = asyncio.create_task(channel.next_records())
        await asyncio.sleep(0)
        await channel.send([{"i": 0}, {"i": 1}])
        assert await waiting == ([{"i": 0}, {"i": 1}], False)
        await channel.send([{"i": 2}])
        await channel.close()
        assert await channel.next_records() == ([{"i": 2}], True)
        assert await channel.next_records() == ([], True)

    asyncio.run(story())


@pytest.mark.parametrize(("said", "heard"), [("stop", {"stop"}), ("abort", {"stop", "abort"})])
def test_abort_is_a_stop_too_but_not_the_other_way(said: str, heard: set[str]) -> None:
    async def story() -> set[str]:
        channel = Channel()
        await channel.say(said)
        tasks = {word: asyncio.create_task(channel.wait_for(word)) for word in ("stop", "abort")}
        await asyncio.sleep(0.01)
        done = {word for word, task in tasks.items() if task.done()}
        for task in tasks.values():
            task.cancel()
        return done

    assert asyncio.run(story()) == heard


def test_sending_never_waits_and_closing_delivers_the_rest() -> None:
    delivered: list[int] = []
    slow = threading.Event()

    def deliver(records: list[dict[str, Any]], position: int | None) -> None:
        assert slow.wait(60)
        delivered.extend(record["i"] for record in records)

    sender = Sender(deliver)
    for i in range(1000):
        sender.send({"i": i})
    assert not delivered
    slow.set()
    sender.close()
    assert delivered == list(range(1000))


def test_a_lost_channel_costs_records_only() -> None:
    def deliver(records: list[dict[str, Any]], position: int | None) -> None:
        raise ConnectionError("gone")

    sender = Sender(deliver)
    sender.send({})
    sender.close()


def test_a_failing_console_hears_no_more_and_its_error_is_raised_at_the_end() -> None:
    batches = iter([([{"i": 0}, {"i": 1}], False), ([{"i": 2}], False), ([], True)])
    heard: list[int] = []

    def on_record(record: dict[str, Any]) -> None:
        heard.append(record["i"])
        if record["i"] == 1:
            raise OSError("console gone")

    listener = Listener(lambda: next(batches), on_record)
    with pytest.raises(OSError, match="console gone"):
        listener.close()
    assert heard == [0, 1]


def test_an_attempt_is_told_how_far_the_one_before_came_and_how_long_ago() -> None:
    async def story() -> None:
        channel = Channel()
        first = await channel.begin(2)
        assert (first.position, first.silent_seconds) == (None, 0.0)
        await channel.send([], 7)
        await asyncio.sleep(0.05)
        second = await channel.begin(2)
        assert second.position == 7 and second.silent_seconds >= 0.05
        third = await channel.begin(1)  # the second took no step, so the silence goes on
        assert third.position is None and third.silent_seconds >= second.silent_seconds
        assert third.restarts[-1] == "Ray changed the number of workers from 2 to 1"
        await channel.send([], 9)
        assert (await channel.begin(1)).silent_seconds < 0.05

    asyncio.run(story())


def test_a_node_that_is_gone_is_named_once() -> None:
    async def story() -> list[str]:
        channel = Channel()
        await channel.begin(2, {"old": "10.0.0.1"})
        await channel.fail(Failure(0, 2, "lost its connection to another worker", ""), fatal=None)
        await channel.begin(1, {"old": "10.0.0.1", "new": "10.0.0.2"})
        await channel.fail(Failure(0, 1, "KeyError: 'x'", ""), fatal=None)
        return list((await channel.begin(1, {"old": "10.0.0.1", "new": "10.0.0.2"})).restarts)

    assert asyncio.run(story()) == [
        "worker 0: lost its connection to another worker (gone since: node 10.0.0.2)",
        "worker 0: KeyError: 'x'",
    ]


def test_only_the_last_position_of_a_moment_is_sent() -> None:
    told: list[int | None] = []
    first = threading.Event()

    def deliver(records: list[dict[str, Any]], position: int | None) -> None:
        told.append(position)
        first.set()

    sender = Sender(deliver)
    sender.beat(1)
    assert first.wait(60)
    for position in range(2, 1000):
        sender.beat(position)
    sender.close()
    assert told[-1] == 999 and len(told) < 100


def test_a_checkpoint_is_asked_for_as_often_as_it_is_waited_for() -> None:
    async def story() -> None:
        channel = Channel()
        assert (await channel.begin()).num_asked == 0
        waiting = asyncio.create_task(channel.wait_for_asking(0))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await channel.ask_checkpoint()
        assert await waiting == 1
        again = asyncio.create_task(channel.wait_for_asking(1))
        await asyncio.sleep(0.01)
        assert not again.done()
        await channel.ask_checkpoint()
        assert await again == 2 and (await channel.begin()).num_asked == 2

    asyncio.run(story())
