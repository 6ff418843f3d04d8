"""The HTTP server of a served model, until the process is told to end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """uvicorn's, which leaves signals to us: it would raise them once more when it is done,
    and the exit code would say so.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield

    def end(self) -> None:
        """Takes no further requests and answers those in hand; called again, it drops them."""
        self.force_exit = self.should_exit
        self.should_exit = True


def new_server(app: FastAPI, *, drain_seconds: float) -> Server:
    """A server that says nothing but what went wrong."""
    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="error",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=int(drain_seconds),
        )
    )


async def answer_requests(app: FastAPI, listener: socket.socket, *, drain_seconds: float) -> None:
    """Answers requests until SIGINT, SIGTERM or SIGHUP; those in hand are still answered.
    A second signal ends it at once.
    """
    server = new_server(app, drain_seconds=drain_seconds)
    loop = asyncio.get_running_loop()
    # `nohup` has SIGHUP ignored
    taken = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]
    for number in taken:
        loop.add_signal_handler(number, server.end)
    try:
        await server.serve(sockets=[listener])
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
