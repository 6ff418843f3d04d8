"""Requests to one host over connections that are kept open, from any number of threads, with little overhead.

Thin because it is called for each range that is read: a request of urllib3 takes about twice the CPU time, much of it for
normalising a signed URL again and again. And a body is received by one call where the system can wait for all of it: a call for
each packet that arrives would ask for the interpreter's lock as often, beside threads that decode.
"""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress

CONNECT_SECONDS, SILENT_SECONDS = 10, 30
WAIT_FOR_ALL_BYTES = 2**16
MAX_IDLE = 64


class Connections:
    """Makes requests to `netloc` (host, or host:port), by https where `tls` is given."""

    def __init__(self, netloc: str, tls: ssl.SSLContext | None = None) -> None:
        self._netloc, self._tls = netloc, tls
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def get(self, target: str, headers: Mapping[str, str]) -> tuple[int, bytes | bytearray]:
        """Status and whole body of an answer to GET; redirects are not followed.

        Raises TimeoutError, ConnectionError whatever else went wrong, or ssl.SSLCertVerificationError. Their texts do not
        hold the target, which may be signed.
        """
        connection = self._opened()
        try:
            connection.request("GET", target, headers=dict(headers))
            answer = connection.getresponse()
            body = _body(connection, answer)
        except BaseException as error:
            connection.close()
            raise _plain(error) from None
        if not answer.will_close:
            with self._lock:
                if len(self._idle) < MAX_IDLE:
                    self._idle.append(connection)
                    return answer.status, body
        connection.close()
        return answer.status, body

    def _opened(self) -> http.client.HTTPConnection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                break
            if not _has_ended(connection):
                return connection
            connection.close()
        if self._tls is None:
            connection = http.client.HTTPConnection(self._netloc, timeout=CONNECT_SECONDS)
        else:
            connection = http.client.HTTPSConnection(self._netloc, timeout=CONNECT_SECONDS, context=self._tls)
        try:
            connection.connect()
            connection.sock.settimeout(SILENT_SECONDS)
            if self._tls is None:  # for calls that wait in the kernel, see `_body`
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SILENT_SECONDS, 0))
        except BaseException as error:
            connection.close()
            raise _plain(error) from None
        return connection


def _body(connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> bytes | bytearray:
    num_bytes, sock = answer.length, connection.sock
    if not num_bytes or num_bytes < WAIT_FOR_ALL_BYTES or isinstance(sock, ssl.SSLSocket) or sock is None:
        return answer.read()
    body = bytearray(num_bytes)
    view = memoryview(body)
    # the head was read through a buffer, which may hold the beginning of the body
    assert isinstance(answer.fp, io.BufferedReader)
    received = answer.fp.readinto1(view[: len(answer.fp.peek())])
    sock.settimeout(None)  # with a time-out of Python's own, a socket never waits for all
    try:
        while received < num_bytes:
            # returns early when the connection ends, or when the time-out of the kernel passes
            more = sock.recv_into(view[received:], 0, socket.MSG_WAITALL)
            if not more:
                raise http.client.IncompleteRead(b"", num_bytes - received)
            received += more
    except BlockingIOError:
        raise TimeoutError from None
    finally:
        sock.settimeout(SILENT_SECONDS)
    answer.length = 0
    answer.close()
    return body


def _has_ended(connection: http.client.HTTPConnection) -> bool:
    # nothing is to come on an idle connection but its end, which a server declares after some seconds
    with suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(connection.sock, select.POLLIN)
        return bool(poll.poll(0))
    return True


def _plain(error: BaseException) -> BaseException:
    if isinstance(error, TimeoutError):
        return TimeoutError("no answer in time")
    if isinstance(error, ssl.SSLCertVerificationError) or not isinstance(error, (OSError, http.client.HTTPException)):
        return error
    return ConnectionError(f"connection lost ({type(error).__name__})")
