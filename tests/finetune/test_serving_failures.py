"""Replicas that die, are slow or fail, and more requests than there is room for: what is answered then."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

from cluster.serving.replicas import Unanswered
from tests.finetune.asking import Here, answering, ask, photo


class Failing(Here):
    """Raises what it is given, or waits for ever."""

    async def ask(self, items):
        if self.answer is None:
            await asyncio.sleep(600)
        raise self.answer


def test_a_dead_replica_a_slow_one_and_a_failure_are_said_without_a_traceback(caplog):
    with answering(Failing(Unanswered("2 replicas died"))) as port:
        status, headers, answer = ask(port, photo(0))
        assert (status, answer["error"], headers["retry-after"]) == (503, "2 replicas died", "1")
    with answering(Failing(ZeroDivisionError("a secret"))) as port:
        status, _, answer = ask(port, photo(0))
        assert status == 500 and "secret" not in answer["error"]
    failing = Failing(None)
    with answering(failing, timeout_seconds=0.2, max_requests=1) as port:
        assert ask(port, photo(0))[::2] == (504, {"error": "no answer within 0.2 s"})
        with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
            slow.sendall(
                b"POST /predict HTTP/1.1\r\nHost: x\r\n"
                b"Content-Type: image/png\r\nContent-Length: 100\r\n\r\n"
            )
            assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
        failing.ready = 0
        assert ask(port, path="/health", method="GET")[::2] == (
            503,
            {"status": "no replica is ready", "replicas": 0},
        )


def test_more_requests_than_there_is_room_for_are_asked_to_come_again():
    with (
        answering(Failing(None), timeout_seconds=0.7, max_requests=2) as port,
        ThreadPoolExecutor(6) as pool,
    ):
        statuses = sorted(pool.map(lambda _: ask(port, photo(0))[0], range(6)))
        assert statuses == [503] * 4 + [504] * 2
        assert ask(port, photo(0))[0] == 504  # there is room again
    size = len(photo(0)) * 1.5 / 1e6
    with (
        answering(Failing(None), timeout_seconds=0.7, max_waiting_megabytes=size) as port,
        ThreadPoolExecutor(3) as pool,
    ):
        assert sorted(pool.map(lambda _: ask(port, photo(0))[0], range(3))) == [503, 503, 504]
