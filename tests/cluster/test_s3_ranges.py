"""Ranges of objects in S3 by obstore: which keys it has, which names it knows, and what ends a request."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit

import boto3
import pytest
import s3fs

from cluster import storage
from cluster.storage import s3_ranges, stores
from tests import slow_store
from tests.conftest import S3Server
from tests.slow_store import SlowStore

pytest.importorskip("obstore")
CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def watched(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStore]:
    """A proxy before the S3 server, through which this process now goes."""
    parts = urlsplit(s3_server.endpoint)
    assert parts.hostname and parts.port
    with SlowStore(parts.hostname, parts.port) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.port}")
        s3fs.S3FileSystem.clear_instance_cache()
        yield store
    s3fs.S3FileSystem.clear_instance_cache()


def written(url: str) -> storage.FileInfo:
    storage.write_bytes(url, CONTENT)
    (file,) = storage.find_files(url.rsplit("/", 1)[0], ".parquet")
    return file


def agent(store: SlowStore) -> str:
    """The client of the last request."""
    return store.requests[-1].headers["user-agent"].partition("/")[0]


@pytest.mark.parametrize(
    ("name", "reader"), [("a b%20c+é#?.parquet", "object_store"), ("x/./y.parquet", "aiobotocore")]
)
def test_any_name_is_read_by_whoever_can(
    watched: SlowStore, s3_server: S3Server, name: str, reader: str
) -> None:
    file = written(f"{s3_server.url}/{uuid.uuid4().hex}/{name}")
    assert bytes(storage.read_range(file, 5, 700_000)) == CONTENT[5:700_000]
    assert agent(watched).lower() == reader


def test_the_keys_are_those_of_the_options(
    watched: SlowStore, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(f"{s3_server.url}/{uuid.uuid4().hex}/x.parquet")
    bucket, _, key = file.url.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object_acl(Bucket=bucket, Key=key, ACL="public-read")
    options = {
        "key": "another",
        "secret": "s",
        "token": "t",
        "endpoint_url": f"http://127.0.0.1:{watched.port}",
    }
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    for given, sign in ((options, "Credential=another/"), ({**options, "anon": True}, "")):
        monkeypatch.setitem(stores._options, s3_server.url, given)
        assert bytes(storage.read_range(file, 0, 100)) == CONTENT[:100]
        headers = watched.requests[-1].headers
        assert agent(watched) == "object_store" and sign in headers.get("authorization", "")
        assert ("authorization" in headers) == bool(sign)
        assert headers.get("x-amz-security-token") == ("t" if sign else None)


def test_a_profile_gives_keys_too(watched, s3_server, tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    file = written(f"{s3_server.url}/{uuid.uuid4().hex}/x.parquet")
    (tmp_path / "keys").write_text("[ours]\naws_access_key_id = of-profile\naws_secret_access_key = s\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_PROFILE", "ours")
    s3fs.S3FileSystem.clear_instance_cache()
    assert bytes(storage.read_range(file, 0, 100)) == CONTENT[:100]
    assert (
        agent(watched) == "object_store"
        and "Credential=of-profile/" in watched.requests[-1].headers["authorization"]
    )


def test_silence_ends_a_request_and_is_counted(
    watched: SlowStore, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_ranges, "SILENT_SECONDS", 0.2)
    file, before = written(f"{s3_server.url}/{uuid.uuid4().hex}/x.parquet"), storage.retries()
    stalled = [0]

    def once(request: slow_store.Request) -> str | None:
        stalled[0] += 1
        return slow_store.STALLED if stalled[0] == 1 else None

    watched.fail(once)
    assert bytes(storage.read_range(file, 0, len(CONTENT))) == CONTENT
    assert storage.retries() == before + 1 and agent(watched) == "object_store"
