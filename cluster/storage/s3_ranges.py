"""Ranges of objects in S3 by obstore, at a part of the CPU time that s3fs takes for a request.

s3fs reads through an asynchronous client in Python, of which all threads of a process share one; beside
decoding on a rank's few cores that is felt (tests/benchmarks/range_reads.py, tests/benchmarks/streaming.py).
obstore has the keys and options of the file system that s3fs opened. Only plain answers are dealt with:
whatever is unusual (other regions, refusals, missing objects, options that change requests) is left to s3fs,
so that one place decides what went wrong.
"""

from __future__ import annotations

import logging
import re
import threading
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec

from cluster.storage.retrying import BUSY

log = logging.getLogger(__name__)

CONNECT_SECONDS, SILENT_SECONDS = 10, 30
KEYS_KEPT = timedelta(minutes=10)  # then they are asked for again, for they may expire
CONDITION_FAILED, NO_SUCH_RANGE = 412, 416
UNUSUAL_IN_A_ROW = 3  # after so many answers that s3fs had to deal with, it alone reads from that bucket

_lock = threading.Lock()


class S3Answer(OSError):
    """An answer that is no success."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status} {reason}")
        self.status = status


def read_s3_range(
    fs: fsspec.AbstractFileSystem, path: str, start: int, stop: int, etag: str | None
) -> memoryview | None:
    """Bytes [start, stop) of an object, if its ETag still is `etag`; None where s3fs should be asked.

    Raises S3Answer when the store is busy or the object changed, and ConnectionError or TimeoutError.
    """
    with _lock:
        # kept with the file system, for one of equal options may have been opened in another environment
        if not hasattr(fs, "_fovea_ranges"):
            fs._fovea_ranges = S3Ranges.for_options(fs)
        reader: S3Ranges | None = fs._fovea_ranges
    if reader is None:
        return None
    bucket, key, version = fs.split_path(path)
    return reader.read(bucket, key, version, start, stop, etag)


class S3Ranges:
    """Reads from S3. `open_bucket` gives obstore's store of a bucket."""

    def __init__(self, open_bucket: Callable[[str], Any]) -> None:
        self._open_bucket = open_bucket
        self._lock = threading.Lock()
        self._buckets: dict[str, Any] = {}
        self._unusual: dict[str, int] = {}

    @classmethod
    def for_options(cls, fs: Any) -> S3Ranges | None:
        """With the options of a file system of s3fs;
        None where obstore has no such options, or there are no keys.
        """
        if (
            getattr(fs, "s3_additional_kwargs", None)
            or getattr(fs, "req_kw", None)
            or "verify" in fs.client_kwargs
        ):
            return None
        if set(fs.config_kwargs) - {"max_pool_connections", "retries"}:
            return None
        try:
            from obstore.store import S3Store
        except ImportError:
            log.warning("obstore is missing, so reading from S3 costs more time: pip install 'fovea[s3]'")
            return None
        try:
            from botocore.session import Session

            session = Session(**fs.kwargs)
            if fs.key:
                session.set_credentials(fs.key, fs.secret, fs.token)
            client = session.create_client(
                "s3", **{"endpoint_url": fs.endpoint_url, "use_ssl": fs.use_ssl, **fs.client_kwargs}
            )
            address = urlsplit(client.meta.endpoint_url)
            if urllib.request.getproxies().get(address.scheme) and not urllib.request.proxy_bypass(
                address.netloc
            ):
                return None
            authorities = session.get_config_variable("ca_bundle")
            options: dict[str, Any] = {
                "config": {"endpoint": client.meta.endpoint_url, "region": _region(client.meta.region_name)},
                "client_options": {
                    "allow_http": address.scheme == "http",
                    "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                    # of each part that comes: it is silence that ends a request,
                    # not the time that a large body takes
                    "read_timeout": timedelta(seconds=SILENT_SECONDS),
                    "timeout": timedelta(days=1),
                    **({"root_certificate": Path(authorities).read_text()} if authorities else {}),
                },
                "retry_config": {"max_retries": 0, "retry_timeout": timedelta()},  # ours are counted
            }
            if fs.anon:
                options["config"]["skip_signature"] = True
            else:
                keys = session.get_credentials()
                if keys is None:
                    return None
                options["credential_provider"] = _provider(keys)
        except Exception:  # whatever botocore has against it, s3fs says it better
            return None
        return cls(lambda bucket: S3Store(bucket, **options))

    def read(
        self, bucket: str, key: str, version: str | None, start: int, stop: int, etag: str | None
    ) -> memoryview | None:
        """See `read_s3_range`."""
        if self._unusual.get(bucket, 0) >= UNUSUAL_IN_A_ROW:
            return None
        asked: dict[str, Any] = {"range": (start, stop)}
        asked |= {name: value for name, value in (("if_match", etag), ("version", version)) if value}
        try:
            data = memoryview(self._bucket(bucket).get(key, options=asked).bytes())
        except Exception as error:
            answer = _as_answer(error)
            if answer is not None:
                raise answer from None
            with self._lock:
                self._unusual[bucket] = self._unusual.get(bucket, 0) + 1
            return None
        self._unusual[bucket] = 0
        return data

    def _bucket(self, name: str) -> Any:
        with self._lock:
            if name not in self._buckets:
                self._buckets[name] = self._open_bucket(name)
            return self._buckets[name]


def _region(name: str | None) -> str:
    return "us-east-1" if name in (None, "aws-global") else str(name)


def _provider(keys: Any) -> Callable[[], dict[str, Any]]:
    def current() -> dict[str, Any]:
        now = keys.get_frozen_credentials()  # botocore renews those that expire
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + KEYS_KEPT,
        }

    return current


def _as_answer(error: Exception) -> OSError | None:
    """What is to be tried again, or says that the object changed; None for the rest.
    obstore's texts tell them apart.
    """
    said, _, details = str(error).partition("\n\nDebug source:")
    status = re.search(r"status code: (\d{3})", said)
    if status is not None:
        number = int(status[1])
        if number not in BUSY and number not in (CONDITION_FAILED, NO_SUCH_RANGE):
            return None
        words = re.search(r"<Message>([^<]{1,300})</Message>", said)
        return S3Answer(number, words[1] if words else "")
    if "certificate" in details.lower():  # s3fs says what is wrong with it
        return None
    if "HTTP error" in said:
        if "kind: Timeout" in details or "TimedOut" in details:
            return TimeoutError("no answer in time")
        return ConnectionError("connection lost")
    return None
