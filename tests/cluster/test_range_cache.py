"""The cache on disk: bounded, shared, never stale, and whole after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from cluster import storage
from cluster.errors import UserError
from cluster.storage.range_cache import ABANDONED_SECONDS, RangeCache

MIB = 2**20


def filled(cache: RangeCache, first: int, last: int, num_bytes: int = MIB) -> None:
    for number in range(first, last):
        cache.put("s3://b/x", 10**9, "v1", number * num_bytes, bytes([number % 256]) * num_bytes)
        os.utime(
            cache._path("s3://b/x", 10**9, "v1", number * num_bytes, (number + 1) * num_bytes),
            (number, number),
        )


def found(cache: RangeCache, number: int, num_bytes: int = MIB) -> bool:
    data = cache.get("s3://b/x", 10**9, "v1", number * num_bytes, (number + 1) * num_bytes)
    assert data is None or data == bytes([number % 256]) * num_bytes
    return data is not None


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_was_put_comes_back_for_the_same_version_only(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path / "new"), 100 * MIB)
    cache.put("s3://b/x", 1000, '"etag"', 10, b"0123456789")
    assert (
        RangeCache(str(tmp_path / "new"), 100 * MIB).get("s3://b/x", 1000, '"etag"', 10, 20) == b"0123456789"
    )
    for key in (("s3://b/y", 1000, '"etag"', 10, 20), ("s3://b/x", 1001, '"etag"', 10, 20),
                ("s3://b/x", 1000, '"other"', 10, 20), ("s3://b/x", 1000, '"etag"', 10, 19)):  # fmt: skip
        assert cache.get(*key) is None


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), 32 * MIB)
    filled(cache, 1, 21)
    assert all(found(cache, number) for number in (1, 2, 3))  # just used, so they stay
    filled(cache, 21, 41)
    cache.make_room()
    assert size_of(tmp_path) <= 0.9 * 32 * MIB
    kept = [number for number in range(1, 41) if found(cache, number)]
    assert kept[:3] == [1, 2, 3] and kept[3:] == list(range(41 - len(kept[3:]), 41)) and len(kept) >= 26


def test_a_damaged_entry_is_read_again(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), 100 * MIB)
    filled(cache, 1, 2)
    (path,) = tmp_path.glob("??/*")
    content = path.read_bytes()
    for damage in (content[:-1], content[:-1] + b"x", b"", bytes(len(content))):
        path.write_bytes(damage)
        assert not found(cache, 1) and not path.exists()


WRITER = """
import sys
from cluster.storage.range_cache import RangeCache
cache = RangeCache(sys.argv[1], 40 * 2**20)
print("ready", flush=True)
for number in range(10**9):
    cache.put("s3://b/x", 10**9, "v1", number % 60 * 2**20, bytes([number % 60]) * 2**20)
"""


def test_several_writers_killed_at_any_moment(tmp_path: Path) -> None:
    for attempt in range(3):
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
            for _ in range(3)
        ]
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 0.4 + 0.1 * attempt
        while time.monotonic() < deadline:
            assert size_of_now(tmp_path) <= 44 * MIB
        for writer in writers:
            writer.kill()
            writer.wait()
    cache = RangeCache(str(tmp_path), 40 * MIB)
    there = [number for number in range(60) if found(cache, number)]  # each that is found is right
    assert there
    for path in tmp_path.glob("??/.tmp-*"):
        os.utime(path, (time.time() - ABANDONED_SECONDS - 1,) * 2)
    cache.make_room()
    assert not list(tmp_path.glob("??/.tmp-*")) and size_of(tmp_path) <= 36 * MIB


def size_of_now(folder: Path) -> int:
    total = 0
    for path in folder.glob("??/*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def test_a_disk_that_fails_costs_the_cache_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = RangeCache(str(tmp_path), 100 * MIB)
    key = cache._path("s3://b/x", 10**9, "v1", MIB, 2 * MIB)
    key.parent.write_bytes(b"a file where the folder should be")
    filled_quietly = lambda: cache.put("s3://b/x", 10**9, "v1", MIB, bytes(MIB))  # noqa: E731
    filled_quietly()
    filled_quietly()
    assert not found(cache, 1) and caplog.text.count("cannot keep what was read") == 1


def test_storage_reads_from_it_and_never_what_is_out_of_date(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}/x.parquet"
    storage.use_cache(str(tmp_path), 1)
    try:
        for content in (b"a" * 100, b"b" * 100):
            storage.write_bytes(url, content)
            (file,) = storage.find_files(url, ".parquet")
            assert storage.read_range(file, 0, 50) == content[:50] == storage.read_range(file, 0, 50)
        assert len(list(tmp_path.glob("??/*"))) == 2
        storage.remove(url)
        assert storage.read_range(file, 0, 50) == b"b" * 50
    finally:
        storage.use_cache(None, 0)
    with pytest.raises(UserError, match="it does not exist"):
        storage.read_range(file, 0, 50)


def test_impossible_caches_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache_gib=5 needs data\.cache_dir"):
        storage.use_cache(None, 5)
    with pytest.raises(UserError, match=r"data\.cache_dir=s3://b/c is not a local folder"):
        storage.use_cache("s3://b/c", 5)
    with pytest.raises(UserError, match=r"data\.cache_dir=.*file/x cannot be written"):
        storage.use_cache(str(tmp_path / "file" / "x"), 5)
