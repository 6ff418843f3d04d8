"""Ranges of objects in S3 at little cost of CPU: signed URLs over a pool of plain connections.

s3fs reads through an asynchronous client, which takes several times as long for a request and shares one thread among all of
them; beside decoding on a rank's few cores that is felt (tests/benchmarks/streaming.py). Here the fetching threads ask by
themselves. Only plain answers are dealt with: whatever is unusual (other regions, refusals, missing objects, options that
change requests) is left to s3fs, so that there is one judge of what went wrong.
"""

from __future__ import annotations

import os
import re
import threading
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import fsspec

from cluster.retrying import BUSY

CONNECTIONS, CONNECT_SECONDS, SILENT_SECONDS = 64, 10, 30
# a URL is used for much shorter than it is valid, for clocks differ, and keys that expire make it expire with them
SIGNED_FOR_SECONDS, USED_FOR_SECONDS = 3600, 600
MOST_SIGNED = 10_000
CONDITION_FAILED, NO_SUCH_RANGE = 412, 416

_lock = threading.Lock()


class S3Answer(OSError):
    """An answer that is no success."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status} {reason}")
        self.status = status


def read_s3_range(fs: fsspec.AbstractFileSystem, path: str, start: int, stop: int, etag: str | None) -> bytes | None:
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
    """Reads from S3 with the keys and options of a file system of s3fs.

    Args:
        client: of botocore; only signs.
        pool: of urllib3; makes the requests.
    """

    def __init__(self, client: Any, pool: Any) -> None:
        self._client, self._pool = client, pool
        self._lock = threading.Lock()
        self._signed: dict[tuple[str, str, str | None], tuple[str, float]] = {}

    @classmethod
    def for_options(cls, fs: Any) -> S3Ranges | None:
        """None where options are set that a signed URL cannot carry, or where there are no keys."""
        if getattr(fs, "s3_additional_kwargs", None) or getattr(fs, "req_kw", None) or "verify" in fs.client_kwargs:
            return None
        try:
            import urllib3
            from botocore import UNSIGNED
            from botocore.config import Config
            from botocore.session import Session

            config = Config(**({"signature_version": UNSIGNED} if fs.anon else {"signature_version": "s3v4"}))
            options = {"endpoint_url": fs.endpoint_url, "use_ssl": fs.use_ssl, **fs.client_kwargs}
            client = Session(**fs.kwargs).create_client(
                "s3",
                aws_access_key_id=fs.key,
                aws_secret_access_key=fs.secret,
                aws_session_token=fs.token,
                config=config.merge(Config(**fs.config_kwargs)),
                **options,
            )
            address = urlsplit(client.meta.endpoint_url)
            if urllib.request.getproxies().get(address.scheme) and not urllib.request.proxy_bypass(address.netloc):
                return None
            pool = urllib3.PoolManager(
                maxsize=CONNECTIONS,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=SILENT_SECONDS),
                retries=False,
                ca_certs=os.environ.get("AWS_CA_BUNDLE"),
            )
        except Exception:  # whatever botocore has against it, s3fs says it better
            return None
        return cls(client, pool)

    def read(self, bucket: str, key: str, version: str | None, start: int, stop: int, etag: str | None) -> bytes | None:
        """See `read_s3_range`."""
        from urllib3.exceptions import HTTPError
        from urllib3.exceptions import TimeoutError as PoolTimeout

        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if etag:
            headers["If-Match"] = etag
        url = self._url(bucket, key, version)
        if url is None:
            return None
        try:
            answer = self._pool.request("GET", url, headers=headers, redirect=False, decode_content=False)
        except PoolTimeout as error:  # urllib3's texts may hold the signed URL
            raise TimeoutError(f"no answer ({type(error).__name__})") from None
        except HTTPError as error:
            raise ConnectionError(f"connection lost ({type(error).__name__})") from None
        if answer.status in (200, 206):
            return bytes(answer.data)
        if answer.status in BUSY or answer.status in (CONDITION_FAILED, NO_SUCH_RANGE):
            raise S3Answer(answer.status, _in_words(answer.data) or answer.reason or "")
        return None

    def _url(self, bucket: str, key: str, version: str | None) -> str | None:
        now, name = time.monotonic(), (bucket, key, version)
        with self._lock:
            url, signed_at = self._signed.get(name, ("", 0.0))
            if url and now - signed_at < USED_FOR_SECONDS:
                return url
            if len(self._signed) >= MOST_SIGNED:
                self._signed.clear()
        parameters = {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})
        try:
            url = self._client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=SIGNED_FOR_SECONDS)
        except Exception:  # no keys, for one
            return None
        with self._lock:
            self._signed[name] = url, now
        return str(url)


def _in_words(body: bytes) -> str:
    """The message in an answer of S3."""
    found = re.search(rb"<Message>([^<]{1,300})</Message>", body)
    return found[1].decode("utf-8", "replace") if found else ""
