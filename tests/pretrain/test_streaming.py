"""Streaming from a store: the same samples as from a disk, whatever fails for a moment,
in bounded memory.
"""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from cluster import storage
from cluster.errors import UserError
from pretrain.data.reading import chunks
from pretrain.data.reading.ahead import ReadAhead
from pretrain.data.reading.loader import Loader
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Order
from pretrain.data.reading.shards import Shards
from tests import slow_store
from tests.pretrain.shards import IMAGE, write_shards
from tests.slow_store import SlowStore

ROWS = 120


class Bytes:
    """Makes of each image a digest of its bytes."""

    parameters = geometry_VB5 = None

    def begin(self, passes, row_ids):
        filling = Bytes()
        filling.arrays = [np.zeros((len(row_ids), 16), np.uint8)]
        return filling

    def fill(self, index, data):
        self.arrays[0][index] = np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), np.uint8)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    generator = np.random.default_rng(0)
    images = [generator.bytes(int(generator.integers(500, 9000))) for _ in range(ROWS)]
    labels = [f"class {number % 3}" for number in range(ROWS)]
    return write_shards(
        tmp_path_factory.mktemp("local"), images, rows_per_file=30, label=labels, note=["n" * 300_000] * ROWS
    )


@pytest.fixture(scope="module")
def remote(local, s3_server):
    url = f"{s3_server.url}/{uuid.uuid4().hex}"
    for path in Path(local).iterdir():
        storage.upload(path, f"{url}/{path.name}")
    return url


@pytest.fixture
def store(s3_server, monkeypatch):
    parts = urlsplit(s3_server.endpoint)
    with SlowStore(parts.hostname, parts.port) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.port}")
        s3fs.S3FileSystem.clear_instance_cache()
        yield store
    s3fs.S3FileSystem.clear_instance_cache()


def shards_at(url):
    return Shards(load_manifest(url, columns=["image", "label"]), image_column="image", columns=["label"])


def order_of(shards, *, window=48):
    return Order(
        shards.manifest.rows_of_group, batch_size_global=12, num_streams=6, window_rows=window, seed=3
    )


def samples(url, num_batches=25, *, window=48, shards=None, **options):
    """(row ids, digests, labels) of the first batches, over more than two epochs."""
    shards = shards or shards_at(url)
    with Loader(order_of(shards, window=window), shards, Bytes(), rank=0, world_size=1, **options) as loader:
        return [
            (batch.row_ids.tolist(), batch.arrays[0].tobytes(), batch.columns["label"])
            for batch in itertools.islice(loader, num_batches)
        ]


@pytest.mark.parametrize(("window", "prefetch_bytes"), [(6, 40_000), (48, 1), (48, 2**28), (1000, 2**28)])
def test_a_store_gives_the_samples_of_the_disk_within_any_budget(local, remote, window, prefetch_bytes):
    wanted = samples(local, window=window)
    assert wanted[0][0] == order_of(shards_at(local), window=window).epoch_batches(0)[0].tolist()
    assert samples(remote, window=window, prefetch_bytes=prefetch_bytes, read_threads=3) == wanted


def test_faults_change_nothing_and_are_counted(local, remote, store):
    wanted, before = samples(local), storage.retries()
    faults = [slow_store.RESET, slow_store.BUSY, slow_store.TRUNCATED, slow_store.SLOW_DOWN]
    store.fail(lambda request: faults[request.number // 5 % 4] if request.number % 5 == 4 else None)
    assert samples(remote) == wanted
    assert storage.retries() - before >= 5


@pytest.mark.parametrize(
    ("fault", "words"),
    [(slow_store.FORBIDDEN, "permission denied"), (slow_store.MISSING, "it does not exist")],
)
def test_a_refusal_in_the_middle_ends_the_reading_with_the_file(remote, store, fault, words):
    shards = shards_at(remote)
    store.fail(lambda request: fault if "shard-00002" in request.path else None)
    before = storage.retries()
    with pytest.raises(UserError, match=rf"cannot read {remote}/shard-00002\.parquet: {words}"):
        samples(remote, shards=shards)
    assert storage.retries() == before


def test_closing_does_not_wait_for_a_store_that_is_away(remote, store):
    shards = shards_at(remote)
    store.fail(lambda request: slow_store.BUSY)
    loader = Loader(order_of(shards), shards, Bytes(), rank=0, world_size=1)
    time.sleep(0.3)
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 30  # patience would last for 42 seconds or more


def test_a_file_that_changes_in_the_middle_is_named(local, remote, store, tmp_path):
    url = f"{remote}-changed"
    for place in (url, str(tmp_path)):
        for path in Path(local).iterdir():
            storage.upload(path, f"{place}/{path.name}")
        shards = shards_at(place)
        storage.upload(Path(local) / "shard-00000.parquet", f"{place}/shard-00001.parquet")
        with pytest.raises(UserError, match=r"shard-00001\.parquet changed while it was being read"):
            samples(place, shards=shards)


def test_only_needed_bytes_are_asked_for_in_few_requests(remote, store):
    shards = shards_at(remote)
    first = len(store.requests)
    samples(remote, 10, shards=shards, prefetch_bytes=1)  # one epoch
    asked = [request for request in store.requests[first:] if request.method == "GET"]
    num_bytes = sum(
        int(stop) - int(start) + 1
        for start, stop in (request.headers["range"].removeprefix("bytes=").split("-") for request in asked)
    )
    manifest = shards.manifest
    groups, footers = len(manifest.rows_of_group), len(manifest.files) * 2**16
    # a second epoch has begun, and a group on a cut is read for two streams;
    # the notes of 16 MB in all are left out
    assert len(asked) <= 2 * groups + len(manifest.files) * 4
    assert num_bytes <= 2 * int(manifest.bytes_of_group.sum()) + 2 * groups * 2000 + footers * 4


def test_a_row_group_on_cuts_is_sent_once_for_all_its_streams(remote, store):
    shards = shards_at(remote)
    order = Order(
        shards.manifest.rows_of_group, batch_size_global=60, num_streams=60, window_rows=60, seed=3
    )
    assert len(order.rows_of_group) * 2 < order.num_streams
    first = len(store.requests)
    with Loader(order, shards, Bytes(), rank=0, world_size=1, prefetch_bytes=1) as loader:
        seen = [batch.row_ids.tolist() for batch in itertools.islice(loader, 2)]
    assert seen == [ids.tolist() for ids in order.epoch_batches(0)]
    groups = [r.headers["range"] for r in store.requests[first:] if r.method == "GET"]
    # each row group, each footer, and what was read ahead of the next epoch
    assert len(groups) <= 2 * len(order.rows_of_group) + 2 * len(shards.manifest.files)


def test_the_cache_answers_in_the_second_run(local, remote, store, tmp_path):
    wanted = samples(local, 10)
    storage.use_cache(str(tmp_path), 1)
    try:
        shards = shards_at(remote)
        samples(remote, shards=shards)
        assert samples(remote, 10, shards=shards_at(remote)) == wanted
        first = len(store.requests)
        assert (
            samples(remote, 10, shards=Shards(shards.manifest, image_column="image", columns=["label"]))
            == wanted
        )
        assert len(store.requests) == first
    finally:
        storage.use_cache(None, 0)


@pytest.mark.parametrize("whole", [0, 2**30])
def test_a_large_row_group_is_read_in_blocks(tmp_path, monkeypatch, whole):
    generator = np.random.default_rng(1)
    images = [generator.bytes(3000) for _ in range(2000)]
    array = pa.array([{"bytes": image, "path": ""} for image in images], IMAGE)
    table = pa.table({"image": array, "label": [str(number) for number in range(2000)]})
    pq.write_table(table, tmp_path / "a.parquet", write_batch_size=16, data_page_size=10_000)
    url = f"memory://{uuid.uuid4().hex}"
    storage.upload(tmp_path / "a.parquet", f"{url}/a.parquet")
    monkeypatch.setattr(chunks, "WHOLE_GROUP_BYTES", whole)
    monkeypatch.setattr(chunks, "MIN_BLOCK_BYTES", 70_000)
    sizes = []
    read_range = storage.read_range
    monkeypatch.setattr(
        storage, "read_range", lambda *key, **more: sizes.append(key[2] - key[1]) or read_range(*key)
    )
    assert samples(url, 60) == samples(str(tmp_path), 60)
    assert max(sizes) > 10**6 if whole else max(sizes) <= 70_000
    fsspec.filesystem("memory").rm(url, recursive=True)


class Counted:
    """A stream of windows of 10 rows and 100 bytes."""

    def __init__(self, ready):
        self.ready, self.ahead = ready, 0

    def rows_ready(self):
        return self.ready + 10 * self.ahead

    def bytes_ahead(self):
        return 100 * self.ahead

    def bytes_of_next(self):
        return 100

    def begin_next(self):
        self.ahead += 1


@pytest.mark.parametrize(
    ("budget", "max_rows", "wanted"),
    [
        (0, 99, [1, 0, 0]),  # something is always on its way
        (250, 99, [1, 1, 0]),  # those that run dry first
        (700, 99, [3, 2, 2]),
        (10**6, 10, [1, 1, 1]),
        (10**6, 20, [2, 2, 2]),
    ],
)
def test_the_budget_goes_to_the_streams_that_run_dry_first(budget, max_rows, wanted):
    streams = [Counted(0), Counted(3), Counted(6)]
    ahead = ReadAhead(budget, max_rows=max_rows)
    for stream in streams:
        ahead.add(stream)
    for _ in range(3):
        ahead.fill()
        assert [stream.ahead for stream in streams] == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["ten times", "one group", "one group in s3"],
)
def test_memory_does_not_grow_with_the_data_or_its_row_groups(kind, tmp_path, s3_server, monkeypatch):
    from moto.s3.models import FakeKey

    from tests.benchmarks import memory
    from tests.kept_objects import kept_values

    monkeypatch.setattr(FakeKey, "value", kept_values())
    small = memory.write(tmp_path / "small", megabytes=100, rows_per_group=64)
    large = memory.write(
        tmp_path / "large", megabytes=1000, rows_per_group=64 if kind == "ten times" else 10**6
    )
    urls = [str(small), str(large)]
    if kind.endswith("s3"):
        urls = [f"{s3_server.url}/{uuid.uuid4().hex}" for _ in urls]
        for folder, url in zip((small, large), urls, strict=True):
            for path in folder.iterdir():
                storage.upload(path, f"{url}/{path.name}")
    peaks = [memory.peak_mib(url, repeats=3) for url in urls]
    print(f"{kind}: {peaks[0]:.0f} and {peaks[1]:.0f} MiB")
    assert peaks[1] <= 1.1 * peaks[0]


def test_importing_the_reader_does_not_need_the_libraries_of_stores():
    code = (
        "import sys\n"
        "for name in ('s3fs', 'gcsfs', 'aiohttp', 'huggingface_hub'): sys.modules[name] = None\n"
        "import pretrain.data.reading.loader"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
