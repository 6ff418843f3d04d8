"""A real HTTP proxy in front of a store: it delays each request, and fails some of them as stores do.

    with SlowStore("127.0.0.1", 9000, delay_seconds=0.05) as store:
        store.fail(lambda request: "reset" if request.number == 3 else None)
        ... # ask http://127.0.0.1:{store.port}

It runs in a thread of its own; `python -m tests.slow_store HOST PORT SECONDS` is one in a process of its
own, which prints its port.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

# how a request can fail
RESET, BUSY, SLOW_DOWN, TRUNCATED, STALLED, FORBIDDEN, MISSING = (
    "reset", "503", "429", "truncated", "stalled", "403", "404"
)  # fmt: skip
STALL_SECONDS = 1.0
PIECE_BYTES = 2**16
ANSWERS = {
    BUSY: ("503 Slow Down", "SlowDown"),
    SLOW_DOWN: ("429 Too Many Requests", "TooManyRequests"),
    FORBIDDEN: ("403 Forbidden", "AccessDenied"),
    MISSING: ("404 Not Found", "NoSuchKey"),
}


@dataclass(frozen=True)
class Request:
    """What the proxy saw: the number of the request (0..), its method,
    path and headers with small letters.
    """

    number: int
    method: str
    path: str
    headers: dict[str, str]


class SlowStore:
    """A proxy on a free port of this machine.

    Args:
        host, port: of the store behind it.
        delay_seconds: added to each request before it is passed on.
    """

    def __init__(self, host: str, port: int, *, delay_seconds: float = 0.0) -> None:
        self.requests: list[Request] = []
        self.delay_seconds = delay_seconds
        self._behind = (host, port)
        self._fault_of: Callable[[Request], str | None] = lambda request: None
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slow-store", daemon=True)

    def fail(self, fault_of: Callable[[Request], str | None]) -> None:
        """Asks this from now on how each request is to fail; None lets it pass."""
        self._fault_of = fault_of

    def __enter__(self) -> SlowStore:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    async def _serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        behind = None
        try:
            behind = await asyncio.open_connection(*self._behind)
            while await self._pass_on(client, answer, *behind):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            answer.close()
            if behind is not None:
                behind[1].close()

    async def _pass_on(
        self,
        client: asyncio.StreamReader,
        answer: asyncio.StreamWriter,
        store: asyncio.StreamReader,
        to_store: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer; False when the connection is to be closed."""
        head = await client.readuntil(b"\r\n\r\n")
        (method, path, _), headers = _parsed(head)
        if headers.get("expect") == "100-continue":
            answer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await client.readexactly(int(headers.get("content-length", 0)))
        request = Request(len(self.requests), method, path, headers)
        self.requests.append(request)
        fault = self._fault_of(request)
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if fault == RESET:
            answer.transport.abort()
            return False
        if fault in ANSWERS:
            status, code = ANSWERS[fault]
            text = (
                f"<Error><Code>{code}</Code><Message>made to fail</Message></Error>"
                if method != "HEAD"
                else ""
            )
            answer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\n"
                f"Content-Length: {len(text)}\r\n\r\n{text}".encode()
            )
            await answer.drain()
            return True

        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:")]
        to_store.write(b"\r\n".join(lines) + body)
        head = await store.readuntil(b"\r\n\r\n")
        (_, status, *_), headers = _parsed(head)
        num_bytes = (
            0 if method == "HEAD" or status in ("204", "304") else int(headers.get("content-length", 0))
        )
        answer.write(head)
        sent = 0
        while sent < num_bytes:
            if fault in (TRUNCATED, STALLED) and sent >= num_bytes // 2:
                await answer.drain()
                if fault == TRUNCATED:
                    answer.transport.close()
                    return False
                await asyncio.sleep(STALL_SECONDS)
                fault = None
            stop = num_bytes // 2 if fault in (TRUNCATED, STALLED) else num_bytes
            piece = await store.read(min(PIECE_BYTES, stop - sent))
            if not piece:
                return False
            answer.write(piece)
            await answer.drain()
            sent += len(piece)
        await answer.drain()
        return headers.get("connection", "").lower() != "close"


def _parsed(head: bytes) -> tuple[list[str], dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":")[::2] for line in lines)
    return first.split(" ", 2), {name.strip().lower(): value.strip() for name, value in pairs}


def main() -> None:
    """A proxy that runs until its standard input is closed."""
    host, port, seconds = sys.argv[1:]
    with SlowStore(host, int(port), delay_seconds=float(seconds)) as store:
        print(store.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
