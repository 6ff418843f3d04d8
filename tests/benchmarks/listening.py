"""What listens while a run trains on a Ray of its own, where, and what a stranger gets there.

    python -m tests.benchmarks.listening [--workers 2]

Workers with a process group look at every process of the command: each TCP port that listens, its address,
the process, and what it answers to somebody without a token, and with a wrong one: over HTTP (`GET /`, `GET
/metrics`), and to a gRPC call of Ray. And the modes of the folders with sockets and logs.
`tests/cluster/test_workers.py` checks what is printed here.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import stat
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from torch import distributed

from cluster.training.rank_context import RankContext
from cluster.training.workers import Workers, run_workers

SILENT_SECONDS = 2.0
PATHS = ("/", "/metrics")
WRONG = {"Authorization": "Bearer wrong"}
GRPC_METHOD = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"


@dataclass(frozen=True)
class Port:
    """A port that listens, and what it answers: a status of HTTP, or why there is none;
    of gRPC, its code.
    """

    address: str
    process: str
    http: tuple[str, ...]
    grpc: str

    @property
    def is_local(self) -> bool:
        """Whether only processes of this machine reach it."""
        return self.address in ("127.0.0.1", "::1")

    @property
    def refuses(self) -> bool:
        """Whether a stranger gets nothing."""
        return self.grpc != "OK" and not any(answer.startswith("2") for answer in self.http)


@dataclass(frozen=True)
class Found:
    """What a look at a running command gives: its ports, and folders (at any depth) with their modes."""

    ports: tuple[Port, ...]
    folders: dict[str, str]


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 1 where a stranger gets something."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.listening", description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    found = look(parser.parse_args(arguments).workers)
    print(f"{'process':28} {'address':12} {'HTTP, without and with a wrong token':44} gRPC")
    for port in sorted(found.ports, key=lambda port: (port.process, port.address)):
        print(f"{port.process:28} {port.address:12} {', '.join(dict.fromkeys(port.http)):44} {port.grpc}")
    for folder, mode in found.folders.items():
        print(f"{mode}  {folder}")
    open_to_all = [port for port in found.ports if not port.refuses]
    is_private = bool(found.folders) and next(iter(found.folders.values())) == "drwx------"
    return int(bool(open_to_all) or not is_private)


def look(num_workers: int) -> Found:
    """Starts workers on a Ray of their own, which look at all processes below this one."""
    with tempfile.TemporaryDirectory() as folder:
        return run_workers(look_around, os.getpid(), Workers(num_workers=num_workers, storage_url=folder))


def look_around(context: RankContext, command: int) -> Found:
    """What rank 0 sees of the command and of all that it started; the others wait for it."""
    found = Found((), {})
    if context.rank == 0:
        processes = [psutil.Process(command), *psutil.Process(command).children(recursive=True)]
        ports = []
        for process in processes:
            with suppress(psutil.Error):
                for one in process.net_connections("inet"):
                    if one.status == psutil.CONN_LISTEN and one.laddr:
                        ports.append(asked(one.laddr.ip, one.laddr.port, name_of(process, command)))
        found = Found(tuple(ports), modes_of(processes))
    if context.world_size > 1:
        distributed.barrier()
    return found


def name_of(process: psutil.Process, command: int) -> str:
    """A process by what it is."""
    if process.pid == command:
        return "the command"
    words = process.cmdline() or [process.name()]
    scripts = [word for word in words if word.endswith(".py")]
    return Path(scripts[0]).name if scripts else Path(words[0]).name[:28]


def asked(address: str, port: int, process: str) -> Port:
    """A port, and what it says to a stranger."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    answers = [over_http(host, port, path, headers) for path in PATHS for headers in ({}, WRONG)]
    return Port(
        "all" if address in ("0.0.0.0", "::") else address, process, tuple(answers), over_grpc(host, port)
    )


def over_http(host: str, port: int, path: str, headers: dict[str, str]) -> str:
    """The status of an answer; `closed` or `silent` where there is none."""
    connection = http.client.HTTPConnection(host, port, timeout=SILENT_SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        return str(connection.getresponse().status)
    except TimeoutError:
        return "silent"
    except (OSError, http.client.HTTPException):
        return "closed"
    finally:
        connection.close()


def over_grpc(host: str, port: int) -> str:
    """The code with which a call without a token ends; OK where it is answered."""
    import grpc

    target = f"[{host}]:{port}" if socket.has_ipv6 and ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(target) as channel:
        try:
            channel.unary_unary(GRPC_METHOD)(b"", timeout=SILENT_SECONDS)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def modes_of(processes: list[psutil.Process]) -> dict[str, str]:
    """The folders on the way to the sockets and logs of the command's Ray, and what others may do there."""
    folders: dict[str, str] = {}
    for process in processes:
        with suppress(psutil.Error):
            for file in process.open_files():
                for above in Path(file.path).parents:
                    if "fovea" in str(above) and above.is_dir():
                        folders[str(above)] = stat.filemode(above.stat().st_mode)
    return dict(sorted(folders.items()))


if __name__ == "__main__":
    from tests.benchmarks import listening  # by its importable name, which workers know

    sys.exit(listening.main())
