"""What a data set consists of: its Parquet files and their row groups, read once and remembered.

Everything that can be wrong with whole files (missing, truncated, another schema) is found here, before a
run takes an accelerator. Rows are numbered 0.. in the order of the manifest: data sets in the order given,
files by URL, row groups as they lie in the file. `Manifest.chosen` leaves rows out, or takes some several
times, without touching the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from cluster import storage
from cluster.errors import UserError
from cluster.storage import FileInfo
from pretrain.data.reading.group_table import Table, read_table
from pretrain.data.reading.manifest_cache import ManifestCache

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jpe", ".jfif", ".jif", ".apng"),
    *(".dib", ".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)


@dataclass(frozen=True, eq=False)
class Manifest:
    """The row-group table of a data set, G row groups without the empty ones.

    Attributes:
        files: sorted by URL within each data set.
        file_of_group: int32 [G], index into `files`.
        group_in_file: int32 [G], number of the row group in its file.
        rows_of_group: int64 [G]; where rows are chosen, the chosen ones.
        bytes_of_group: int64 [G], compressed size of all images in the file.
        source_of_group: int32 [G], which of the URLs it came from, in the order they were given.
        fingerprint: hex; changes with any file's name below the common folder, its size or its rows, not
            with the place where the folder lies; and with the choice of rows.
        choice: where rows are chosen, int64 [num_rows], which row of its group each one is; else None, all
            in their order.
        all_rows_of_group: int64 [G], the rows in the file where rows are chosen, else None.
        num_left_out: rows that `with_rows_of_use` left out.
    """

    files: tuple[FileInfo, ...]
    file_of_group: np.ndarray
    group_in_file: np.ndarray
    rows_of_group: np.ndarray
    bytes_of_group: np.ndarray
    source_of_group: np.ndarray
    fingerprint: str
    choice: np.ndarray | None = None
    all_rows_of_group: np.ndarray | None = None
    num_left_out: int = 0

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return int(self.rows_of_group.sum())

    @property
    def fraction(self) -> float:
        """Chosen rows over those in the files that hold them; 1 where none were chosen."""
        all_rows = self.rows_of_group if self.all_rows_of_group is None else self.all_rows_of_group
        return self.num_rows / max(1, int(all_rows.sum()))

    @cached_property
    def start_of_group(self) -> np.ndarray:
        """int64 [G + 1]: id of each group's first row, and the number of rows at the end."""
        return np.concatenate([[0], np.cumsum(self.rows_of_group)]).astype(np.int64)

    def sample(self, num_rows: int) -> Manifest:
        """Row groups spread over the data set, with at least `num_rows` rows (all, if it has fewer)."""
        fraction = min(1.0, num_rows / max(1, self.num_rows))
        # a group is taken when the rows wanted so far pass those taken so far
        wanted = np.ceil(self.start_of_group[1:] * fraction)
        taken, keep = 0, []
        for group, rows in enumerate(self.rows_of_group):
            if taken < wanted[group]:
                keep.append(group)
                taken += int(rows)
        choice = self.choice if self.choice is None else self.choice[np.isin(self._group_of_row, keep)]
        return self._of_groups(np.array(keep, dtype=np.int64), choice=choice)

    def chosen(self, row_ids: np.ndarray) -> Manifest:
        """The same data set with these rows only, numbered anew in their order, twice where named twice.

        Row groups without any are not read. Those with some are read whole, and their other rows left out.

        Args:
            row_ids: int64, sorted; at least one.
        """
        assert len(row_ids) and (np.diff(row_ids) >= 0).all()
        all_rows = self.rows_of_group if self.all_rows_of_group is None else self.all_rows_of_group
        groups, rows = self.locate(row_ids)
        keep, counts = np.unique(groups, return_counts=True)
        digest = hashlib.sha256(
            f"{self.fingerprint} chosen\n".encode() + np.asarray(row_ids).astype("<i8").tobytes()
        )
        return dataclasses.replace(
            self._of_groups(keep, choice=rows),
            rows_of_group=counts.astype(np.int64),
            all_rows_of_group=all_rows[keep],
            fingerprint=digest.hexdigest(),
        )

    @property
    def source_fingerprints(self) -> list[str]:
        """The fingerprint that each of the URLs has alone, in the order they were given."""
        return [self._source_fingerprint(source) for source in range(int(self.source_of_group.max()) + 1)]

    def _source_fingerprint(self, source: int) -> str:
        groups = np.flatnonzero(self.source_of_group == source)
        files = self.file_of_group[groups]
        table = (files - files.min(), self.group_in_file[groups], self.rows_of_group[groups])
        return _fingerprint(self.files[files.min() : files.max() + 1], *table)

    def with_rows_of_use(self, row_ids: np.ndarray | None, what: str) -> Manifest:
        """The same with these rows only, as `chosen`, which counts the others; None stands for all.

        Raises UserError where there are none: `what` then says what no row has.
        """
        if row_ids is None:
            return self
        if not len(row_ids):
            raise UserError(f"{self.files[0].url}: none of {self.num_rows} rows has {what}")
        return dataclasses.replace(self.chosen(row_ids), num_left_out=self.num_rows - len(row_ids))

    def choice_in_group(self, group: int) -> np.ndarray | None:
        """The rows of a row group (index into the table) that are chosen, int64, sorted; None for all."""
        if self.choice is None:
            return None
        return self.choice[self.start_of_group[group] : self.start_of_group[group + 1]]

    @property
    def _group_of_row(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.rows_of_group)), self.rows_of_group)

    def _of_groups(self, keep: np.ndarray, *, choice: np.ndarray | None) -> Manifest:
        names = ["file_of_group", "group_in_file", "rows_of_group", "bytes_of_group", "source_of_group"]
        if self.all_rows_of_group is not None:
            names.append("all_rows_of_group")
        return dataclasses.replace(
            self, **{name: getattr(self, name)[keep] for name in names}, choice=choice
        )

    def locate(self, row_ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The row group (index into the table) and the row in it of each row id, both int64."""
        ids = np.asarray(row_ids, dtype=np.int64)
        assert ids.size == 0 or (ids.min() >= 0 and ids.max() < self.num_rows), "row id out of range"
        groups = np.searchsorted(self.start_of_group, ids, side="right") - 1
        return groups, ids - self.start_of_group[groups] if self.choice is None else self.choice[ids]


def load_manifest(
    url: str | Sequence[str],
    *,
    columns: Sequence[str] = (),
    image_column: str = "image",
    cache_dir: str | None = None,
) -> Manifest:
    """The manifest of a file, folder, glob, or several of these; reads footers if the listing changed.

    Args:
        url: what to read; a folder means all `.parquet` files below it.
        columns: must be there, with the same type in all files; the image column is always checked.
        image_column: `struct<bytes: binary, ...>` or binary; data sets may differ in this.
        cache_dir: where manifests are remembered; by default `fovea/manifests` in the user's cache folder.

    Raises:
        UserError: naming the file, when there is nothing to read, a file cannot be used,
            or two URLs hold the same file.
    """
    urls = [url] if isinstance(url, str) else list(url)
    needed = tuple(dict.fromkeys([image_column, *columns]))
    files: list[FileInfo] = []
    tables: list[Table] = []
    found_in: dict[str, str] = {}
    for source in urls:
        of_source = find_shards([source])
        for file in of_source:
            if file.url in found_in:
                raise UserError(
                    f"{file.url} is in {found_in[file.url]} and again in {source}; name each file once"
                )
            found_in[file.url] = source
        cache = ManifestCache(source, needed, of_source, cache_dir)
        table = cache.load()
        if table is None:
            table = read_table(of_source, needed)
            cache.save(table)
        if not table[0].size:
            num = len(of_source)
            raise UserError(f"{source}: no rows in {num} Parquet file{'s'[: num > 1]}")
        tables.append((table[0] + np.int32(len(files)), *table[1:]))
        files.extend(of_source)
    file_of_group, group_in_file, rows_of_group, bytes_of_group = map(
        np.concatenate, zip(*tables, strict=True)
    )
    source_of_group = np.repeat(np.arange(len(tables), dtype=np.int32), [len(table[0]) for table in tables])
    fingerprint = _fingerprint(files, file_of_group, group_in_file, rows_of_group)
    return Manifest(
        tuple(files),
        file_of_group,
        group_in_file,
        rows_of_group,
        bytes_of_group,
        source_of_group,
        fingerprint,
    )


def find_shards(urls: Sequence[str]) -> list[FileInfo]:
    """The Parquet files of all URLs, sorted, each once. Raises UserError for a URL without any."""
    found: dict[str, FileInfo] = {}
    for url in urls:
        files = storage.find_files(url, ".parquet")
        if not files:
            raise UserError(_why_nothing(url))
        _refuse_unfinished(url)
        found.update((file.url, file) for file in files)
    return [found[name] for name in sorted(found)]


def _refuse_unfinished(url: str) -> None:
    """Raises UserError for a folder into which an import still moves shards: some would pass for all."""
    if not url.lower().endswith((".parquet", ".pq")) and not storage.is_glob(url):
        for folder in (url.rstrip("/"), url.rstrip("/").rpartition("/")[0]):  # splits lie one folder deeper
            if folder and storage.exists(f"{folder}/.unfinished/journal.json"):
                raise UserError(
                    f"{folder} holds an import that is not finished; give its command again first"
                )


def _why_nothing(url: str) -> str:
    fs, path = storage.filesystem(url)
    if storage.is_glob(url):
        return f"no .parquet file matches {url}"
    if not storage.exists(url):
        return (
            f"{url} does not exist; give a Parquet file, a folder of them, or a glob such as {url}/*.parquet"
        )
    with storage.explained("list", url):
        for _, _, names in islice(fs.walk(path), 1000):
            if any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
                return (
                    f"{url} holds image files and no .parquet files; "
                    f"pack it first with: python -m pretrain.data import {url} DEST"
                )
    return f"no .parquet files in the folder {url}"


def _fingerprint(files: Sequence[FileInfo], *table: np.ndarray) -> str:
    digest = hashlib.sha256(b"fovea manifest 1\n")
    parts = [file.url.split("/") for file in files]
    # of lists of folder names; commonpath would make s3:/ of s3:// and refuse to compare stores
    depth = len(os.path.commonprefix([folders for *folders, _ in parts]))  # noqa: RUF071
    for file, names in zip(files, parts, strict=True):
        name = "/".join(names[depth:])
        digest.update(f"{len(name)} {name} {file.size_bytes}\n".encode())
    for array in table:
        digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()
