"""Ranges of objects in S3 at little cost of CPU: signed URLs over plain connections that are kept open.

s3fs reads through an asynchronous client, which takes several times as long for a request and shares one thread among all of
them; beside decoding on a rank's few cores that is felt (tests/benchmarks/streaming.py). Here the fetching threads ask by
themselves. Only plain answers are dealt with: whatever is unusual (other regions, refusals, missing objects, options that
change requests) is left to s3fs, so that one place decides what went wrong.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import fsspec

from cluster.storage.connections import Connections
from cluster.storage.retrying import BUSY

# a URL is used for much shorter than it is valid, for clocks differ, and keys that expire make it expire with them
SIGNED_FOR_SECONDS, USED_FOR_SECONDS = 3600, 600
MAX_SIGNED = 10_000
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
) -> bytes | bytearray | None:
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
        tls: for https, with the certificates that botocore trusts.
    """

    def __init__(self, client: Any, tls: ssl.SSLContext | None) -> None:
        self._client, self._tls = client, tls
        self._lock = threading.Lock()
        # (bucket, key, version) -> host, path with signature, when it was signed
        self._signed: dict[tuple[str, str, str | None], tuple[Connections, str, float]] = {}
        self._hosts: dict[str, Connections] = {}
        self._unusual: dict[str, int] = {}

    @classmethod
    def for_options(cls, fs: Any) -> S3Ranges | None:
        """None where options are set that a signed URL cannot carry, or where there are no keys."""
        if getattr(fs, "s3_additional_kwargs", None) or getattr(fs, "req_kw", None) or "verify" in fs.client_kwargs:
            return None
        try:
            from botocore import UNSIGNED
            from botocore.config import Config
            from botocore.httpsession import get_cert_path
            from botocore.session import Session

            config = Config(**({"signature_version": UNSIGNED} if fs.anon else {"signature_version": "s3v4"}))
            options = {"endpoint_url": fs.endpoint_url, "use_ssl": fs.use_ssl, **fs.client_kwargs}
            session = Session(**fs.kwargs)
            client = session.create_client(
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
            tls = None
            if address.scheme == "https":
                tls = ssl.create_default_context(cafile=get_cert_path(session.get_config_variable("ca_bundle") or True))
        except Exception:  # whatever botocore has against it, s3fs says it better
            return None
        return cls(client, tls)

    def read(
        self, bucket: str, key: str, version: str | None, start: int, stop: int, etag: str | None
    ) -> bytes | bytearray | None:
        """See `read_s3_range`."""
        if self._unusual.get(bucket, 0) >= UNUSUAL_IN_A_ROW:
            return None
        signed = self._url(bucket, key, version)
        if signed is None:
            return None
        headers = {"Range": f"bytes={start}-{stop - 1}"} | ({"If-Match": etag} if etag else {})
        try:
            status, body = signed[0].get(signed[1], headers)
        except ssl.SSLCertVerificationError:
            return None
        if status in BUSY or status in (CONDITION_FAILED, NO_SUCH_RANGE):
            raise S3Answer(status, _in_words(body))
        is_usual = status in (200, 206)
        with self._lock:
            self._unusual[bucket] = 0 if is_usual else self._unusual.get(bucket, 0) + 1
        return body if is_usual else None

    def _url(self, bucket: str, key: str, version: str | None) -> tuple[Connections, str] | None:
        now, name = time.monotonic(), (bucket, key, version)
        with self._lock:
            signed = self._signed.get(name)
            if signed is not None and now - signed[2] < USED_FOR_SECONDS:
                return signed[:2]
            if len(self._signed) >= MAX_SIGNED:
                self._signed.clear()
        parameters = {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})
        try:
            url = self._client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=SIGNED_FOR_SECONDS)
        except Exception:  # no keys, for one
            return None
        parts = urlsplit(url)
        with self._lock:
            if parts.netloc not in self._hosts:
                self._hosts[parts.netloc] = Connections(parts.netloc, self._tls if parts.scheme == "https" else None)
            host, target = self._hosts[parts.netloc], f"{parts.path}?{parts.query}" if parts.query else parts.path
            self._signed[name] = host, target, now
        return host, target


def _in_words(body: bytes | bytearray) -> str:
    """The message in an answer of S3."""
    found = re.search(rb"<Message>([^<]{1,300})</Message>", body)
    return found[1].decode("utf-8", "replace") if found else ""
