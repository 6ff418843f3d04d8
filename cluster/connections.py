"""Requests to one host over connections that are kept open, from any number of threads, without much ado.

Thin because it is called for each range that is read: a request of urllib3 takes about twice the CPU time, much of it for
normalising a signed URL again and again.
"""

from __future__ import annotations

import http.client
import select
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress

CONNECT_SECONDS, SILENT_SECONDS = 10, 30
MOST_IDLE = 64


class Connections:
    """Makes requests to `netloc` (host, or host:port), by https where `tls` is given."""

    def __init__(self, netloc: str, tls: ssl.SSLContext | None = None) -> None:
        self._netloc, self._tls = netloc, tls
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def get(self, target: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and whole body of an answer to GET; redirects are not followed.

        Raises TimeoutError, ConnectionError whatever else went wrong, or ssl.SSLCertVerificationError. Their texts do not
        hold the target, which may be signed.
        """
        connection = self._opened()
        try:
            connection.request("GET", target, headers=dict(headers))
            answer = connection.getresponse()
            body = answer.read()
        except BaseException as error:
            connection.close()
            raise _plain(error) from None
        if not answer.will_close:
            with self._lock:
                if len(self._idle) < MOST_IDLE:
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
        except BaseException as error:
            connection.close()
            raise _plain(error) from None
        return connection


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
