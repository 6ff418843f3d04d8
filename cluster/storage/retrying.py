"""Retrying calls of stores: what fails for a moment is tried again after a pause,
what fails for good is not.

Among a hundred million reads of an object store some time out, break off or are refused because the store is
busy. These are survived and counted; `retries` is this process's count. A missing file, a refused permission
or missing credentials will be no better a second later, and fail at once.
"""

from __future__ import annotations

import concurrent.futures.thread
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from cluster.secrets import masked

Result = TypeVar("Result")

log = logging.getLogger(__name__)

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
# answers of S3 that come with status 400, or inside a status of 200, and mean the same as 503
BUSY_CODES = frozenset(
    {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "ThrottlingException"}
)
# what the libraries under fsspec raise when a connection fails: their classes, or classes these derive from
CONNECTION_ERRORS = frozenset(
    {
        "aiohttp.ClientConnectionError",
        "aiohttp.ClientPayloadError",
        "botocore.HTTPClientError",
        "botocore.IncompleteReadError",
        "botocore.ResponseParserError",
        "httpx.TransportError",
        "httpx2.TransportError",
        "requests.ConnectionError",
        "requests.Timeout",
        "urllib3.HTTPError",
    }
)
PATIENT_BEFORE_WARNING = 3
# a store that did not answer for so long is given up;
# each further request then waits for it so long, until it answers
SECONDS_TO_GIVE_UP, SECONDS_ONCE_GIVEN_UP = 30.0, 5.0
LONGEST_SLEEP_SECONDS = 0.2


class Incomplete(OSError):
    """A body that is shorter than what was asked for."""


@dataclass(frozen=True)
class Patience:
    """How often and how long one read is tried: at most `attempts` times and `total_seconds`.

    The pause before attempt n + 1 is drawn evenly from [0.5, 1] * min(first_seconds * 2**(n - 1),
    longest_seconds), so that a thousand ranks that were cut off together do not come back together.
    """

    attempts: int = 12
    total_seconds: float = 120.0
    first_seconds: float = 0.1
    longest_seconds: float = 20.0

    def pauses(self) -> Iterator[float]:
        """The seconds between attempts."""
        for n in range(self.attempts - 1):
            yield random.uniform(0.5, 1.0) * min(self.first_seconds * 2**n, self.longest_seconds)


DEFAULT_PATIENCE = Patience()

_lock = threading.Lock()
_retries = 0
_given_up: set[str] = set()  # stores of which a request ended its patience, until they answer again


def retries() -> int:
    """How many reads of this process were tried again since it started."""
    return _retries


def retrying(
    function: Callable[[], Result],
    *,
    url: str,
    patience: Patience = DEFAULT_PATIENCE,
    pause: Callable[[float], object] = time.sleep,
    stopped: Callable[[], bool] = lambda: False,
) -> Result:
    """Calls `function` until it succeeds, fails for good, or the patience ends;
    then its last exception is raised.

    The patience also ends when `stopped` says so, or this process comes to its end: threads that read ahead
    must not keep it alive for minutes. A store that was waited for in vain is waited for briefly until it
    answers: a run that ends for it writes a dozen files,
    and a dozen times the patience would be half an hour.
    """
    store, began = urlsplit(url).netloc, time.monotonic()
    seconds_left = (
        min(patience.total_seconds, SECONDS_ONCE_GIVEN_UP) if store in _given_up else patience.total_seconds
    )
    try:
        result = _retried(function, url, patience, began + seconds_left, pause, stopped)
    except Exception as error:
        if store and is_transient(error) and time.monotonic() - began >= SECONDS_TO_GIVE_UP:
            _given_up.add(store)
        raise
    _given_up.discard(store)
    return result


def _retried(
    function: Callable[[], Result],
    url: str,
    patience: Patience,
    deadline: float,
    pause: Callable[[float], object],
    stopped: Callable[[], bool],
) -> Result:
    global _retries
    for attempt, seconds in enumerate(patience.pauses(), start=1):
        try:
            return function()
        except Exception as error:
            if not is_transient(error) or time.monotonic() + seconds > deadline:
                raise
            if attempt >= PATIENT_BEFORE_WARNING:  # from here on somebody may wonder why nothing happens
                log.warning(
                    "%s: attempt %d failed (%s); trying again", masked(url), attempt, masked(in_words(error))
                )
            while seconds > 0 and not stopped() and not _process_ends():
                pause(min(seconds, LONGEST_SLEEP_SECONDS))
                seconds -= LONGEST_SLEEP_SECONDS
            if stopped() or _process_ends():
                raise
        with _lock:
            _retries += 1
    return function()


def _process_ends() -> bool:
    # set when the interpreter begins to wait for the threads of pools; there is no public way to ask
    return bool(getattr(concurrent.futures.thread, "_shutdown", False))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    status = http_status(error)
    if status is not None:
        return status in BUSY or bool(_codes(error) & BUSY_CODES)
    return any(_is_connection_error(cause) for cause in _causes(error))


def http_status(error: BaseException) -> int | None:
    """The HTTP status behind an exception of any store's library, or None when there was no answer."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp; requests and httpx; gcsfs
            status = getattr(cause, "status", None) or getattr(response, "status_code", None)
            if type(cause).__name__ == "HttpError":
                status = status or getattr(cause, "code", None)
        if str(status).isdigit() and 100 <= int(status) < 600:
            return int(status)
    return None


def in_words(error: BaseException) -> str:
    """One line about an exception, never empty."""
    reason = (getattr(error, "strerror", None) or str(error)).strip() or type(error).__name__
    return reason.splitlines()[0]


def _causes(error: BaseException) -> Iterator[BaseException]:
    # fsspec turns the store's answers into OSErrors and keeps the answer as the cause
    cause: BaseException | None = error
    for _ in range(8):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _codes(error: BaseException) -> set[str]:
    responses = [getattr(cause, "response", None) for cause in _causes(error)]
    return {
        str(response.get("Error", {}).get("Code")) for response in responses if isinstance(response, dict)
    }


def _is_connection_error(error: BaseException) -> bool:
    if isinstance(error, (Incomplete, TimeoutError, ConnectionError)):
        return True
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return not CONNECTION_ERRORS.isdisjoint(names)
