"""Bodies arrive whole over connections that stay open, and what goes wrong on the way is a plain error."""

import os
import socket
import threading
from contextlib import contextmanager

import pytest

from cluster.storage import connections
from cluster.storage.connections import WAIT_FOR_ALL_BYTES, Connections

BODY = os.urandom(WAIT_FOR_ALL_BYTES * 8 + 17)


@contextmanager
def server(*answers):
    """A server whose n-th connection gives `answers[n]`, lists of pieces or functions, one list a request; its address."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        for requests in answers:
            connection, _ = listening.accept()
            with connection:
                for pieces in requests:
                    asked = b""
                    while b"\r\n\r\n" not in asked:
                        asked += connection.recv(65536)
                    for piece in pieces:
                        connection.sendall(piece) if isinstance(piece, bytes) else piece()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()
        thread.join(5)


def head(num_bytes):
    return f"HTTP/1.1 206 Partial Content\r\nContent-Length: {num_bytes}\r\n\r\n".encode()


def test_bodies_in_whatever_pieces():
    pause = threading.Event()
    whole = [head(len(BODY)) + BODY]
    # with the head, alone, and with a pause in the middle of it
    torn = [
        head(len(BODY)),
        BODY[:5],
        lambda: pause.wait(0.2),
        BODY[5:100_000],
        lambda: pause.wait(0.2),
        BODY[100_000:],
    ]
    with server([whole, torn, [head(3) + b"abc"], [head(0)], whole]) as address:
        host = Connections(address)
        assert [host.get("/", {})[1] for _ in range(5)] == [BODY, BODY, b"abc", b"", BODY]


@pytest.mark.parametrize("sent", [0, 10, WAIT_FOR_ALL_BYTES * 3])
def test_a_body_that_ends_early(sent):
    with server([[head(len(BODY)) + BODY[:sent]]], [[head(len(BODY)) + BODY]]) as address:
        host = Connections(address)
        with pytest.raises(ConnectionError, match="connection lost"):
            host.get("/", {})
        assert host.get("/", {}) == (206, BODY), "by a new connection"


@pytest.mark.parametrize("sent", [0, 10, WAIT_FOR_ALL_BYTES * 3])
def test_a_body_that_stalls(monkeypatch, sent):
    monkeypatch.setattr(connections, "SILENT_SECONDS", 1)
    stop = threading.Event()
    with server([[head(len(BODY)) + BODY[:sent], lambda: stop.wait(20)]]) as address:
        with pytest.raises(TimeoutError, match="no answer in time"):
            Connections(address).get("/", {})
        stop.set()


def test_a_body_that_only_crawls_is_waited_for(monkeypatch):
    """It is silence that ends a request, not the time that a large body takes in all."""
    monkeypatch.setattr(connections, "SILENT_SECONDS", 1)
    pause, step = threading.Event(), len(BODY) // 6
    pieces = [head(len(BODY))]
    for start in range(0, len(BODY), step):
        pieces += [BODY[start : start + step], lambda: pause.wait(0.4)]
    with server([pieces]) as address:
        assert Connections(address).get("/", {}) == (206, BODY)
