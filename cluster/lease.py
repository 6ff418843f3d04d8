"""One command at a time in a folder: a file that says who holds it, renewed while they do.

On a local disk, on NFS and in stores with conditional writes (S3, GCS) the file is created once, however
many ask at the same time; in others, and where one is taken over, the last writer wins and sees that it did.
What holds a folder on this machine is asked whether it lives; elsewhere its file is renewed twice a minute,
and taken over when it was not for three minutes.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.errors import UserError

RENEWED_EVERY_SECONDS, EXPIRES_SECONDS = 30.0, 180.0

_mine: set[str] = set()  # tokens of this process


HELD = ".in-use.json"  # the file in folders of commands that have no other name for it


class InUse(UserError):
    """A folder that another command holds."""


@contextmanager
def held(url: str, folder: str) -> Iterator[None]:
    """Holds a folder by the file at `url`, which says who does.

    Raises InUse when another process does, and UserError when the file cannot be written.
    """
    token = uuid.uuid4().hex
    mark = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": _start_of(os.getpid()),
        "started_at": time.time(),
        "token": token,
    }
    _take(url, folder, mark)
    _mine.add(token)
    done = threading.Event()
    renewal = threading.Thread(target=_renew, args=(url, mark, done), name="lease", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        done.set()
        renewal.join()
        _mine.discard(token)
        with suppress(Exception):
            if (read(url) or mark).get("token") == token:
                storage.remove(url)


def held_folder(folder: str) -> AbstractContextManager[None]:
    """`held` for a folder whose contents say nothing of who works there."""
    return held(storage.join(folder, HELD), folder)


def held_beside(folder: str) -> AbstractContextManager[None]:
    """The same by a file beside the folder, for one that must be empty before; where nothing can lie beside
    it (a bucket, a mount in a folder of somebody else's) nobody holds it."""
    above, _, name = storage.absolute(folder).rstrip("/").rpartition("/")
    if above.endswith(":/") or (
        storage.is_local(folder) and Path(above).exists() and not os.access(above, os.W_OK)
    ):
        return nullcontext()
    return held(f"{above}/.{name}{HELD}", folder)


def check_free(url: str, folder: str) -> None:
    """Raises InUse when somebody holds the folder."""
    mark = read(url)
    if mark is not None and is_held(mark):
        since = datetime.fromtimestamp(float(mark["started_at"]), UTC).isoformat(sep=" ", timespec="seconds")
        raise InUse(
            f"{folder} is in use: process {mark['pid']} on {mark['host']} has been running there since "
            f"{since}; wait until it ends, stop it, or choose another out"
        )


def read(url: str) -> dict[str, Any] | None:
    """The mark that is there; None where there is none, or none that says who holds what."""
    if not storage.exists(url):
        return None
    try:
        mark = json.loads(storage.read_bytes(url))
        known = (
            isinstance(mark["host"], str) and isinstance(mark["pid"], int) and float(mark["started_at"]) >= 0
        )
    except (ValueError, KeyError, TypeError):
        return None
    return mark if known else None


def is_held(mark: dict[str, Any]) -> bool:
    """Whether the process that left the mark is still running."""
    if mark["host"] == socket.gethostname():
        if mark["pid"] == os.getpid():
            return mark.get("token") in _mine
        begun = _start_of(mark["pid"])
        # another process may have got the number since
        return begun is not None and mark.get("process_started") in (None, begun)
    renewed = mark.get("renewed_at", mark["started_at"])
    return isinstance(renewed, int | float) and time.time() - renewed < EXPIRES_SECONDS


def _take(url: str, folder: str, mark: dict[str, Any]) -> None:
    data = (json.dumps(mark | {"renewed_at": time.time()}, indent=2) + "\n").encode()
    check_free(url, folder)
    made = _made_anew(storage.local_path(url), data) if storage.is_local(url) else _made_in_store(url, data)
    if not made:
        check_free(url, folder)  # somebody may have been faster
        before = read(url)
        if before is not None and before.get("token") != mark["token"]:
            print(
                f"{folder}: process {before['pid']} on {before['host']}, which held it, is gone; it is "
                "taken over",
                flush=True,
            )
        storage.write_bytes(url, data)
    if (read(url) or {}).get("token") != mark["token"]:
        check_free(url, folder)


def _made_anew(path: Path, data: bytes) -> bool:
    with storage.explained("write", str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.parent / f".tmp-{uuid.uuid4().hex}"
        try:
            written.write_bytes(data)
            os.link(written, path)  # unlike a rename, it fails where there is something
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if path.exists():
                return False
            os.replace(written, path)
        finally:
            with suppress(FileNotFoundError):
                written.unlink()
    return True


def _made_in_store(url: str, data: bytes) -> bool:
    """Writes an object that is not there yet; False where one is, or where the store cannot tell."""
    fs, path = storage.filesystem(url)
    try:
        with storage.explained("write", url):
            try:
                fs.pipe_file(path, data, mode="create")  # S3 and GCS refuse a second one
            except FileExistsError:
                return False
            except (TypeError, NotImplementedError, ValueError):
                return False
    except UserError:
        return False  # a store without conditional writes; an unconditional one says what is wrong
    return True


def _renew(url: str, mark: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(RENEWED_EVERY_SECONDS):
        with suppress(Exception):  # a store that is away for a while; the next one may be written
            storage.write_json(url, mark | {"renewed_at": time.time()})


def _start_of(pid: int) -> int | None:
    """When a process of this machine began, in the kernel's ticks;
    None where there is none, 0 where nobody knows.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):
        pass
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return None if after_name[0] in ("Z", "X") else int(after_name[19])
