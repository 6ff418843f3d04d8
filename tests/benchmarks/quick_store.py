"""A store that serves the files of a folder as S3 does, as fast as a process in Python can:
listings, what is known of an object, and ranges; with a delay of each request.

    with quick_store(folder, delay_seconds=0.05) as store:
        ... # read f"{store.url}/name"; store.served() says what was asked

moto's server takes milliseconds of CPU for a request, and as long to be given an object, which for tens of
thousands of files is what would be measured. Keys are the paths below the folder; the bucket is not looked
at, nor are signatures. `python -m tests.benchmarks.quick_store FOLDER SECONDS` is one that runs until its
standard input is closed, and prints its port.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

KEYS_A_PAGE = 1000
MODIFIED, MODIFIED_IN_LISTINGS = "Thu, 01 Jan 2026 00:00:00 GMT", "2026-01-01T00:00:00.000Z"
COUNTS = "/counts"  # which S3 has not


@dataclass
class Served:
    """What was asked of a store, and sent."""

    listings: int = 0
    heads: int = 0
    reads: int = 0
    body_bytes: int = 0

    @property
    def requests(self) -> int:
        """Of every kind."""
        return self.listings + self.heads + self.reads


@dataclass(frozen=True)
class Store:
    """A store that runs in a process of its own."""

    port: int

    url = "s3://bucket"

    def served(self) -> Served:
        """What was asked so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{COUNTS}") as answer:
            return Served(**json.load(answer))


@contextmanager
def quick_store(folder: Path, delay_seconds: float) -> Iterator[Store]:
    """Serves what lies in a folder now; the environment leads every S3 client of this process,
    and of those that it starts, to it.
    """
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.quick_store", str(folder), str(delay_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        store = Store(int(server.stdout.readline()))
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.port}",
        }
        yield store
    finally:
        server.terminate()
        server.wait()


class Server:
    """Answers requests for `GET` and `HEAD` of objects and `GET` of version 2 of a bucket's listing."""

    def __init__(self, folder: Path, delay_seconds: float) -> None:
        self._folder, self._delay_seconds = folder, delay_seconds
        found = (path for path in folder.rglob("*") if path.is_file())
        self._sizes = dict(sorted((str(path.relative_to(folder)), path.stat().st_size) for path in found))
        self._keys = list(self._sizes)
        self.served = Served()

    async def answer_all(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """The requests of one connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await client.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, target, _ = head.split(" ", 2)
                asked = re.search(r"\r\nrange: bytes=(\d+)-(\d+)", head, re.IGNORECASE)
                status, headers, body = self._answer(
                    method, target, asked and (int(asked[1]), int(asked[2]))
                )
                if self._delay_seconds and target != COUNTS:
                    await asyncio.sleep(self._delay_seconds)
                lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
                to_client.write("\r\n".join([*lines, "", ""]).encode() + (body if method == "GET" else b""))
                await to_client.drain()
        to_client.close()

    def _answer(
        self, method: str, target: str, bounds: tuple[int, int] | None
    ) -> tuple[str, dict[str, str | int], bytes]:
        if target == COUNTS:
            return _whole("200 OK", json.dumps(dataclasses.asdict(self.served)))
        parts = urlsplit(target)
        _, _, key = unquote(parts.path).lstrip("/").partition("/")
        if not key:
            self.served.listings += 1
            return _whole("200 OK", self._page({k: v[0] for k, v in parse_qs(parts.query).items()}))
        self.served.reads += method == "GET"
        self.served.heads += method == "HEAD"
        if key not in self._sizes:
            return _whole("404 Not Found", "<Error><Code>NoSuchKey</Code></Error>")
        size = self._sizes[key]
        first, last = bounds or (0, size - 1)
        last = min(last, size - 1)
        headers: dict[str, str | int] = {
            "ETag": f'"{size:032x}"',
            "Last-Modified": MODIFIED,
            "Content-Length": last - first + 1,
            "Accept-Ranges": "bytes",
        }
        if bounds:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        body = b""
        if method == "GET":
            with open(self._folder / key, "rb") as file:
                file.seek(first)
                body = file.read(last - first + 1)
            self.served.body_bytes += len(body)
        return "206 Partial Content" if bounds else "200 OK", headers, body

    def _page(self, query: dict[str, str]) -> str:
        """One page of a listing, without folders but where `delimiter` asks for them."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        keys = [key for key in self._keys if key.startswith(prefix)]
        folders: list[str] = []
        if delimiter:
            inner = {key: key[len(prefix) :].split(delimiter) for key in keys}
            folders = sorted({prefix + names[0] + delimiter for names in inner.values() if names[1:]})
            keys = [key for key in keys if not inner[key][1:]]
        start = int(query.get("continuation-token", 0))
        stop = start + min(KEYS_A_PAGE, int(query.get("max-keys", KEYS_A_PAGE)))
        more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < len(keys) else ""
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{self._sizes[key]}</Size>"
            f"<ETag>&quot;{self._sizes[key]:032x}&quot;</ETag><LastModified>{MODIFIED_IN_LISTINGS}</LastModified>"
            "</Contents>"
            for key in keys[start:stop]
        )
        entries += "".join(
            f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders
        )
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>bucket</Name><KeyCount>{len(keys[start:stop])}</KeyCount>"
            f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{entries}</ListBucketResult>"
        )


def _whole(status: str, text: str) -> tuple[str, dict[str, str | int], bytes]:
    body = text.encode()
    return status, {"Content-Type": "application/xml", "Content-Length": len(body)}, body


async def serve(folder: Path, delay_seconds: float) -> None:
    """Until the standard input is closed."""
    server = Server(folder, delay_seconds)
    listening = await asyncio.start_server(server.answer_all, "127.0.0.1", 0)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float(sys.argv[2])))
