"""What a range read from S3 costs this process, by each library that could make it, plain and through TLS.

    python -m tests.benchmarks.range_reads [--reads 200] [--threads 8] [--repeats 5]

The store is moto's server in a process of its own; its certificate is made for the purpose. CPU time is this
process's alone. The libraries take turns, and medians are printed:
milliseconds of CPU and of wall time for a read, with so many threads at it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUCKET, KEY, OBJECT_BYTES = "benchmark", "shards/one.parquet", 64 * 2**20
SIZES = {"64 KiB": 2**16, "2 MiB": 2**21}
Read = Callable[[int, int], Any]


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.range_reads", description=__doc__)
    parser.add_argument("--reads", type=int, default=200, help="reads in each turn")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    print(f"{'':6}{'':16}" + "".join(f"{f'{name}, CPU':>14}{'wall ms':>10}" for name in SIZES))
    for scheme in ("http", "https"):
        with tempfile.TemporaryDirectory() as folder, store(scheme, Path(folder)) as certificate:
            readers = readers_of(certificate)
            found: dict[tuple[str, str], list[tuple[float, float]]] = {}
            for _ in range(options.repeats):
                for size in SIZES:
                    for name, read in readers.items():
                        measured = measure(read, SIZES[size], options.reads, options.threads)
                        found.setdefault((name, size), []).append(measured)
            for name in readers:
                cells = ""
                for size in SIZES:
                    cpu, wall = (
                        statistics.median(values) for values in zip(*found[name, size], strict=True)
                    )
                    cells += f"{cpu * 1e3:>14.3f}{wall * 1e3:>10.2f}"
                print(f"{scheme:6}{name:16}{cells}", flush=True)


def measure(read: Read, num_bytes: int, num_reads: int, threads: int) -> tuple[float, float]:
    """Seconds of CPU and wall time for one read."""
    starts = [(index * num_bytes) % (OBJECT_BYTES - num_bytes) for index in range(num_reads)]
    with ThreadPoolExecutor(threads) as pool:
        assert {
            len(data) for data in pool.map(lambda start: read(start, start + num_bytes), starts[:threads])
        } == {num_bytes}
        wall, cpu = time.perf_counter(), time.process_time()
        list(pool.map(lambda start: len(read(start, start + num_bytes)), starts))
        return (time.process_time() - cpu) / num_reads, (time.perf_counter() - wall) / num_reads


def readers_of(certificate: str | None) -> dict[str, Read]:
    """Library -> how it reads [start, stop) of the object."""
    import pyarrow.fs
    import s3fs

    from cluster import storage

    url, endpoint = f"s3://{BUCKET}/{KEY}", os.environ["AWS_ENDPOINT_URL"]
    (file,) = storage.find_files(url, ".parquet")
    found: dict[str, Read] = {"Fovea": lambda start, stop: storage.read_range(file, start, stop)}

    tls = {} if certificate is None else {"tls_ca_file_path": certificate}
    scheme, _, address = endpoint.partition("://")
    arrow = pyarrow.fs.S3FileSystem(
        access_key="test",
        secret_key="test",
        region="us-east-1",
        scheme=scheme,
        endpoint_override=address,
        **tls,
    )

    def read_by_arrow(start: int, stop: int) -> bytes:
        with arrow.open_input_file(f"{BUCKET}/{KEY}") as source:
            return bytes(source.read_at(stop - start, start))

    found["pyarrow.fs"] = read_by_arrow
    with_s3fs = s3fs.S3FileSystem()
    found["s3fs"] = lambda start, stop: with_s3fs.cat_file(f"{BUCKET}/{KEY}", start=start, end=stop)
    try:
        from obstore.store import S3Store
    except ImportError:
        return found
    root = {} if certificate is None else {"root_certificate": Path(certificate).read_text()}
    bucket = S3Store(
        BUCKET, endpoint=endpoint, region="us-east-1", access_key_id="test", secret_access_key="test",
        client_options={"allow_http": scheme == "http", **root},
    )  # fmt: skip
    found["obstore"] = lambda start, stop: bucket.get(
        KEY, options={"range": (start, stop), "if_match": file.version}
    ).bytes()
    return found


@contextmanager
def store(scheme: str, folder: Path) -> Iterator[str | None]:
    """A server with an empty bucket that the environment leads to;
    the path of its certificate, None without TLS.
    """
    files = certificates(folder) if scheme == "https" else []
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, *files],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        ports = dict(zip(("http", "https"), server.stdout.readline().split()))
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"{scheme}://127.0.0.1:{ports[scheme]}",
        }
        if files:
            os.environ["AWS_CA_BUNDLE"] = files[2]
        import boto3
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        filling = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{ports['http']}")
        filling.create_bucket(Bucket=BUCKET)
        filling.put_object(Bucket=BUCKET, Key=KEY, Body=os.urandom(OBJECT_BYTES))
        yield files[2] if files else None
    finally:
        server.terminate()
        server.wait()


def certificates(folder: Path) -> list[str]:
    """A certificate of 127.0.0.1, its key, and the authority that signed it."""
    own, key, authority, authority_key = (
        str(folder / f"{name}.pem") for name in ("own", "key", "authority", "authority_key")
    )
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    to_sign = ["-CA", authority, "-CAkey", authority_key, "-addext", "basicConstraints=critical,CA:FALSE"]
    for command in (
        [*make, "-subj", "/CN=authority", "-out", authority, "-keyout", authority_key],
        [
            *make,
            "-subj",
            "/CN=store",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            *to_sign,
            "-out",
            own,
            "-keyout",
            key,
        ],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return [own, key, authority]


SERVER = """
import sys, threading
from moto.s3.models import FakeKey
from moto.server import DomainDispatcherApplication, create_backend_app
from tests.kept_objects import kept_values
from werkzeug.serving import WSGIRequestHandler, make_server
WSGIRequestHandler.protocol_version = "HTTP/1.1"  # connections stay open, as those of stores do
FakeKey.value = kept_values()
app = DomainDispatcherApplication(create_backend_app)
servers = [make_server("127.0.0.1", 0, app, threaded=True)]
if sys.argv[1:]:
    servers.append(make_server("127.0.0.1", 0, app, threaded=True, ssl_context=tuple(sys.argv[1:3])))
for server in servers:
    threading.Thread(target=server.serve_forever).start()
print(*(server.port for server in servers), flush=True)
"""


if __name__ == "__main__":
    main()
