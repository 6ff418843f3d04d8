"""Stores that fail for a moment are asked again and counted;
those that fail for good are not, and the URL is named.
"""

from __future__ import annotations

import http.server
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import s3fs

from cluster import storage
from cluster.errors import UserError
from cluster.storage.retrying import SECONDS_ONCE_GIVEN_UP, Patience, retrying
from cluster.storage.s3_ranges import UNUSUAL_IN_A_ROW
from tests import slow_store
from tests.conftest import S3Server
from tests.slow_store import Request, SlowStore

CONTENT = bytes(range(256)) * 4000
QUICK = Patience(attempts=4, total_seconds=5, first_seconds=0.01)


@pytest.fixture
def faulty(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStore]:
    """A proxy before the S3 server, through which this process now goes."""
    parts = urlsplit(s3_server.endpoint)
    assert parts.hostname and parts.port
    with SlowStore(parts.hostname, parts.port) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.port}")
        s3fs.S3FileSystem.clear_instance_cache()
        yield store
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def url(s3_server: S3Server, faulty: SlowStore) -> str:
    """An object behind the proxy."""
    url = f"{s3_server.url}/{uuid.uuid4().hex}/x.parquet"
    storage.write_bytes(url, CONTENT)
    return url


def listed(url: str) -> storage.FileInfo:
    (file,) = storage.find_files(url, ".parquet")
    return file


PASSING = [slow_store.RESET, slow_store.BUSY, slow_store.SLOW_DOWN, slow_store.TRUNCATED]


@pytest.mark.parametrize("fault", PASSING)
def test_what_fails_for_a_moment_is_survived_and_counted(faulty: SlowStore, url: str, fault: str) -> None:
    file = listed(url)
    folder, name = url.rsplit("/", 1)
    reads = {
        "range": lambda: storage.read_range(file, 1000, 900_000) == CONTENT[1000:900_000],
        "whole": lambda: storage.read_bytes(url) == CONTENT,
        "glob": lambda: storage.find_files(f"{folder}/*.parquet", ".parquet") == [file],
        "folder": lambda: storage.find_files(folder, ".parquet") == [file],
        "file": lambda: storage.find_files(url, ".parquet") == [file],
        "names": lambda: storage.names_in(folder) == [name],
        "exists": lambda: storage.exists(url),
        "write": lambda: storage.write_bytes(f"{folder}/y", b"y") is None,
    }
    for what, read in reads.items():
        before, first = storage.retries(), len(faulty.requests)
        # the answer to a HEAD has no body that could be cut short
        failed = [0]

        def twice(request: Request, failed: list[int] = failed, first: int = first) -> str | None:
            if failed[0] == 2 or (fault == slow_store.TRUNCATED and request.method != "GET"):
                return None
            failed[0] += 1
            return fault

        faulty.fail(twice)
        assert read(), what
        # aiohttp takes another connection by itself when the one it kept open turns out to be closed
        least = failed[0] - 1 if fault == slow_store.RESET else failed[0]
        assert least <= storage.retries() - before <= failed[0], what
        assert len(faulty.requests) - first > failed[0], what
    faulty.fail(lambda request: None)


def test_a_body_that_stalls_is_waited_for(faulty: SlowStore, url: str) -> None:
    file, before = listed(url), storage.retries()
    faulty.fail(lambda request: slow_store.STALLED)
    assert storage.read_range(file, 0, len(CONTENT)) == CONTENT
    assert storage.retries() == before


@pytest.mark.parametrize(
    ("fault", "words"),
    [(slow_store.FORBIDDEN, "permission denied"), (slow_store.MISSING, "it does not exist")],
)
def test_what_fails_for_good_fails_at_once_with_the_url(
    faulty: SlowStore, url: str, fault: str, words: str
) -> None:
    file, before = listed(url), storage.retries()
    faulty.fail(lambda request: fault)
    for read in (lambda: storage.read_range(file, 0, 10), lambda: storage.read_bytes(url)):
        first = len(faulty.requests)
        with pytest.raises(UserError, match=rf"cannot read {url}: {words}"):
            read()
        assert len(faulty.requests) - first <= 2
    assert storage.retries() == before
    if fault == slow_store.FORBIDDEN:
        with pytest.raises(UserError, match=rf"cannot list {url}: permission denied"):
            storage.find_files(url, ".parquet")


def test_patience_ends_and_the_last_error_is_told(faulty: SlowStore, url: str) -> None:
    file, before = listed(url), storage.retries()
    faulty.fail(lambda request: slow_store.BUSY)
    with pytest.raises(UserError, match=rf"cannot read {url}: .*made to fail"):
        storage.read_range(file, 0, 10, patience=QUICK)
    assert storage.retries() - before == QUICK.attempts - 1


def test_a_file_that_changes_is_named(faulty: SlowStore, url: str) -> None:
    file, before = listed(url), storage.retries()
    storage.write_bytes(url, CONTENT[::-1])  # of the same size
    with pytest.raises(UserError, match=rf"{url} changed while it was being read"):
        storage.read_range(file, 0, 10)
    storage.write_bytes(url, b"short")
    with pytest.raises(UserError, match=rf"{url} changed while it was being read"):
        storage.read_range(file, 100, 200)
    assert storage.retries() == before


def test_open_input_reads_through_faults(faulty: SlowStore, url: str) -> None:
    before = storage.retries()
    faulty.fail(
        lambda request: slow_store.TRUNCATED if request.method == "GET" and request.number % 2 else None
    )
    with storage.open_input(url) as file:
        file.seek(-10, 2)
        assert file.read() == CONTENT[-10:]
        file.seek(5)
        assert file.read() == CONTENT[5:]
    assert storage.retries() > before


def test_a_store_that_was_waited_for_in_vain_is_waited_for_briefly_until_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, asked = 0.0, 0

    def pause(seconds: float) -> None:
        nonlocal now
        now += seconds

    def fail() -> None:
        nonlocal asked
        asked += 1
        raise TimeoutError("too slow")

    def seconds_for(function: Callable[[], object], url: str, **options: Any) -> float:
        before = now
        with suppress(TimeoutError):
            retrying(function, url=url, pause=pause, **options)
        return now - before

    monkeypatch.setattr(time, "monotonic", lambda: now)
    seconds_for(fail, "s3://gone/x", patience=QUICK)  # a little patience is no reason to lose more
    assert seconds_for(fail, "s3://gone/x") > 40
    assert seconds_for(fail, "s3://gone/other/y") <= SECONDS_ONCE_GIVEN_UP
    assert seconds_for(fail, "s3://another/x") > 40
    assert seconds_for(lambda: None, "s3://gone/y") == 0  # it answers
    assert seconds_for(fail, "s3://gone/x") > 40
    for url in ("s3://gone/x", "s3://another/x"):
        seconds_for(lambda: None, url)


def test_pauses_grow_and_total_time_is_bounded() -> None:
    slept: list[float] = []

    def fail() -> None:
        raise TimeoutError("too slow")

    patience = Patience(attempts=6, total_seconds=1e9, first_seconds=1, longest_seconds=8)
    for pause, longest in zip(patience.pauses(), (1, 2, 4, 8, 8), strict=True):
        assert longest / 2 <= pause <= longest
    with pytest.raises(TimeoutError):
        retrying(fail, url="s3://x", patience=patience, pause=slept.append)
    assert 11.5 <= sum(slept) <= 24
    slept.clear()
    with pytest.raises(TimeoutError):
        retrying(fail, url="s3://x", patience=Patience(total_seconds=0), pause=slept.append)
    with pytest.raises(TimeoutError):
        retrying(fail, url="s3://x", pause=slept.append, stopped=lambda: True)
    assert not slept
    assert 42 <= sum(Patience().pauses()) <= 86  # about two minutes with the requests themselves


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Python's file server with single byte ranges, which it lacks."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range")
        if wanted is None or not path.is_file():
            return super().do_GET()
        start, stop = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        data = path.read_bytes()[start : stop + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None

    def log_message(self, *_: object) -> None:
        pass


def test_http_files_lists_and_faults(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).write_bytes(CONTENT)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(RangeHandler, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with SlowStore("127.0.0.1", server.server_address[1]) as store:
            root, before = f"http://127.0.0.1:{store.port}", storage.retries()
            store.fail(lambda request: slow_store.BUSY if request.number % 3 == 0 else None)
            file = listed(f"{root}/a.parquet")
            assert file.size_bytes == len(CONTENT) and file.version
            assert storage.read_range(file, 7, 70_000) == CONTENT[7:70_000]
            both = [f"{root}/a.parquet", f"{root}/b.parquet"]
            for url in (f"{root}/", f"{root}/*.parquet"):
                assert [file.url for file in storage.find_files(url, ".parquet")] == both
            assert storage.retries() > before
            store.fail(lambda request: None)
            assert storage.find_files(f"{root}/no.parquet", ".parquet") == []
            with pytest.raises(UserError, match=rf"cannot read {root}/no.parquet: it does not exist"):
                storage.read_bytes(f"{root}/no.parquet")
    finally:
        server.shutdown()
        server.server_close()


def test_a_store_that_refuses_obstore_is_read_all_the_same(faulty: SlowStore, url: str) -> None:
    pytest.importorskip("obstore")
    file, before = listed(url), storage.retries()
    faulty.fail(
        lambda request: slow_store.FORBIDDEN if "object_store" in request.headers["user-agent"] else None
    )
    first = len(faulty.requests)
    for start in range(0, 2000, 100):
        assert storage.read_range(file, start, start + 100) == CONTENT[start : start + 100]
    assert len(faulty.requests) - first == 20 + UNUSUAL_IN_A_ROW
    assert storage.retries() == before
