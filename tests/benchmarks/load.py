"""Clients that post images and wait for the answer, as many at once as are asked for,
in a process of their own.

    python -m tests.benchmarks.load HOST:PORT FOLDER --clients 32 --seconds 10

Prints a JSON object: requests by status (0: the connection broke), seconds, milliseconds of each answered
request, the sizes of the batches that they were in, and the CPU seconds of the clients. They write HTTP by
hand: a client library takes about as much of a small machine as the server.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections import Counter
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Runs the clients and prints what they saw."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.load", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--token", default="")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args(arguments)
    images = [path.read_bytes() for path in sorted(options.folder.glob("*.jpg"))]
    print(
        json.dumps(
            asyncio.run(load(options.address, images, options.token, options.clients, options.seconds))
        )
    )


async def load(
    address: str, images: list[bytes], token: str, num_clients: int, seconds: float
) -> dict[str, object]:
    """What the clients saw."""
    began, cpu = time.monotonic(), time.process_time()
    statuses: Counter[int] = Counter()
    milliseconds: list[float] = []
    batches: Counter[int] = Counter()

    async def client(first: int) -> None:
        host, _, port = address.rpartition(":")
        connection = None
        for image in itertools.islice(itertools.cycle(images), first, None):
            if time.monotonic() - began > seconds:
                break
            asked = time.monotonic()
            try:
                connection = connection or await asyncio.open_connection(host, int(port))
                status, headers = await post(*connection, image, token)
            except (OSError, asyncio.IncompleteReadError):
                connection, status, headers = None, 0, {}
            statuses[status] += 1
            if status == 200:
                milliseconds.append(1000 * (time.monotonic() - asked))
                batches[int(headers["x-batch-size"])] += 1
        if connection is not None:
            connection[1].close()

    await asyncio.gather(*(client(7 * number) for number in range(num_clients)))
    return {
        "statuses": statuses,
        "seconds": time.monotonic() - began,
        "milliseconds": milliseconds,
        "batches": batches,
        "cpu_seconds": time.process_time() - cpu,
    }


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, image: bytes, token: str
) -> tuple[int, dict[str, str]]:
    """Posts an image; returns the status and the headers of the answer, whose body is read."""
    head = (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
    )
    writer.write(head.encode())
    writer.write(image)
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    await reader.readexactly(int(headers["content-length"]))
    return int(status.split()[1]), headers


if __name__ == "__main__":
    main()
