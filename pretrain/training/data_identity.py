"""What a run learns from, by content, so that a change of the data under an unfinished run is noticed.

Files are told apart by their sizes, the rows of their row groups and samples of their bytes, in the order in
which they are read; not by their names, so that the same data is the same at another location. Small files
are read whole. A change of a few bytes within a large file, with its size and rows as they were,
is not found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cluster import storage
from cluster.errors import UserError
from cluster.secrets import masked
from cluster.storage import FileInfo
from pretrain.data.reading.group_table import LOCAL_THREADS, REMOTE_THREADS
from pretrain.data.reading.manifest import Manifest

WHOLE_BYTES, BLOCK_BYTES, NUM_BLOCKS = 2**20, 2**14, 4
MAX_FILES_READ = 256  # spread over the data set; of the others sizes and rows count
MAX_FILES_LISTED = 10_000  # beyond which a checkpoint holds no list of them

Identity = dict[str, Any]
URLS = {"train": "data.url", "validation": "validation_url"}  # part of the data -> the setting that names it


def identity_of(parts: Mapping[str, Manifest]) -> dict[str, Identity]:
    """Of each part of a run's data, for JSON: `fingerprint`, `rows`, `files` as [name, rows, digest]."""
    return {name: _of_manifest(manifest) for name, manifest in parts.items()}


def summary_of(identity: Mapping[str, Identity]) -> dict[str, Identity]:
    """The same without the list of files."""
    return {
        name: {"fingerprint": part["fingerprint"], "rows": part["rows"], "num_files": part["num_files"]}
        for name, part in identity.items()
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Identity]) -> list[str]:
    """What differs between the data of an earlier start and now, in words, of parts that are in both."""
    return [
        f"{URLS.get(name, name)}: {_difference(old[name], part)}"
        for name, part in new.items()
        if isinstance(old.get(name), dict) and old[name].get("fingerprint") != part["fingerprint"]
    ]


def check_same(
    old: Mapping[str, Any], new: Mapping[str, Identity], *, on_change: str, out: str
) -> list[str]:
    """What changed, in words, where a run may go on with it.

    Raises UserError for other data than that of the run in `out`, unless `on_change` is `continue`.
    """
    changed = differences(old, new)
    if changed and on_change != "continue":
        raise UserError(
            f"the data of the unfinished run in {out} changed ({'; '.join(changed)}); put the former data "
            "back, start again in another out, or go on with what is there now with data.on_change=continue"
        )
    return changed


def _of_manifest(manifest: Manifest) -> Identity:
    files = manifest.files
    rows = manifest.rows_of_group if manifest.all_rows_of_group is None else manifest.all_rows_of_group
    read = set(np.linspace(0, len(files) - 1, min(len(files), MAX_FILES_READ)).astype(int).tolist())
    threads = LOCAL_THREADS if storage.is_local(files[0].url) else REMOTE_THREADS
    with ThreadPoolExecutor(threads, thread_name_prefix="identity") as pool:
        jobs = {index: pool.submit(_digest, files[index]) for index in sorted(read)}
    whole = hashlib.sha256(b"fovea data 1\n")
    listed: list[list[Any]] = []
    order = np.argsort(manifest.file_of_group, kind="stable")
    starts = np.searchsorted(manifest.file_of_group[order], np.arange(len(files) + 1))
    for index, file in enumerate(files):
        groups = rows[order[starts[index] : starts[index + 1]]].tolist()
        content = jobs[index].result() if index in jobs else ""
        digest = hashlib.sha256(f"{file.size_bytes} {groups} {content}".encode()).hexdigest()[:16]
        whole.update(f"{digest}\n".encode())
        listed.append([masked(file.url).rsplit("/", 1)[-1], sum(groups), digest])
    return {
        "fingerprint": whole.hexdigest(),
        "rows": int(rows.sum()),
        "num_files": len(files),
        "files": listed if len(listed) <= MAX_FILES_LISTED else [],
    }


def _digest(file: FileInfo) -> str:
    """Of all bytes of a small file, of some blocks of a larger one, its first and last among them."""
    size = file.size_bytes
    digest = hashlib.sha256()
    if size <= WHOLE_BYTES:
        digest.update(storage.read_range(file, 0, size))
    else:
        for start in np.linspace(0, size - BLOCK_BYTES, NUM_BLOCKS).astype(int).tolist():
            digest.update(storage.read_range(file, start, start + BLOCK_BYTES))
    return digest.hexdigest()


def _difference(old: Mapping[str, Any], new: Identity) -> str:
    rows = f"{old.get('rows')} -> {new['rows']} rows"
    before, now = old.get("files") or [], new["files"]
    for number in range(max(len(before), len(now))):
        if number >= len(before):
            return f"{rows}; {now[number][0]} is new"
        if number >= len(now):
            return f"{rows}; {before[number][0]} is missing"
        if before[number][2] != now[number][2]:
            (old_name, old_rows, _), (name, new_rows, _) = before[number], now[number]
            what = name if name == old_name else f"{name} instead of {old_name}"
            return f"{rows}; the first file that differs is {what} ({old_rows} -> {new_rows} rows)"
    return rows
