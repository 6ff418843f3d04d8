"""What a data set consists of: its Parquet files and their row groups,
read from the footers once and remembered.

Everything that can be wrong with whole files (missing, truncated, another schema) is found here, before a
run takes an accelerator. Rows are numbered 0.. in the order of the manifest: data sets in the order given,
files by URL, row groups as they lie in the file. `Manifest.chosen` leaves rows out,
or takes some several times, without touching the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.errors import UserError, nearest
from cluster.storage import FileInfo
from pretrain.data.reading.footers import Footer, read_footer
from pretrain.data.reading.image_paths import image_root
from pretrain.data.reading.one_schema import same_values

CACHE_VERSION = 1  # part of the key: a change of what is stored makes old entries unread
LOCAL_THREADS, REMOTE_THREADS = 8, 32  # a remote footer is nearly all waiting
IMAGE_SUFFIXES = (
    *(
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".jpe",
        ".jfif",
        ".jif",
        ".apng",
        ".dib",
    ),
    *(".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
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
        return (
            1.0
            if self.all_rows_of_group is None
            else self.num_rows / max(1, int(self.all_rows_of_group.sum()))
        )

    @cached_property
    def start_of_group(self) -> np.ndarray:
        """int64 [G + 1]: id of each group's first row, and the number of rows at the end."""
        return np.concatenate([[0], np.cumsum(self.rows_of_group)]).astype(np.int64)

    def sample(self, num_rows: int) -> Manifest:
        """Whole row groups, evenly spread over the data set,
        that hold at least `num_rows` rows (all, if it has fewer).
        """
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
        """The same data set with these rows only, numbered anew in their order;
        one that is named twice is there twice.

        Row groups without any are not read. Those with some are read whole,
        and the others of their rows are left out.

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
        """Which rows of a row group (index into the table) are chosen, int64 and sorted;
        None where none were chosen.
        """
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
    """The manifest of a file, folder, glob, or several of these;
    footers are read only when the listing changed.

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
        cache = _Cache(source, needed, of_source, cache_dir)
        table = cache.load()
        if table is None:
            table = _read_table(of_source, needed)
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
    """Raises UserError for a folder into which an import is still moving its shards:
    some would be taken for all.
    """
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


Table = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _read_table(files: Sequence[FileInfo], columns: Sequence[str]) -> Table:
    """Reads all footers, checks the columns (the first is the image column),
    and gives the row-group table.
    """
    remote = not storage.is_local(files[0].url)
    pool = ThreadPoolExecutor(REMOTE_THREADS if remote else LOCAL_THREADS, thread_name_prefix="footer")
    groups: list[np.ndarray] = []
    first: dict[str, pa.DataType] | None = None
    try:
        # results come in the order of the files, so the first bad file by name is the one reported
        for file, (kinds, of_file) in zip(
            files, pool.map(lambda file: _of_footer(file, columns), files), strict=True
        ):
            first = first or kinds
            for column in columns:
                _check_same(
                    files[0].url,
                    first[column],
                    file.url,
                    kinds[column],
                    column,
                    is_image=column == columns[0],
                )
            groups.append(of_file)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    file_of_group = np.repeat(np.arange(len(files), dtype=np.int32), [len(of_file) for of_file in groups])
    table = np.concatenate(groups)
    return file_of_group, table[:, 0].astype(np.int32), table[:, 1].copy(), table[:, 2].copy()


def _of_footer(file: FileInfo, columns: Sequence[str]) -> tuple[dict[str, pa.DataType], np.ndarray]:
    """The types of the columns, and `_groups_of`. A footer takes a hundred times as
    much memory as what is kept of it.
    """
    footer = read_footer(file)
    for column in columns:
        _check_column(file.url, footer.schema, column, is_image=column == columns[0])
    groups = np.array(_groups_of(file.url, footer, columns[0]), dtype=np.int64).reshape(-1, 3)
    return {column: footer.schema.field(column).type for column in columns}, groups


def _groups_of(url: str, footer: Footer, image_column: str) -> list[tuple[int, int, int]]:
    """(number, rows, compressed image bytes) of each row group that has rows."""
    metadata = footer.metadata
    if not metadata.num_row_groups:
        return []
    leaves = [metadata.row_group(0).column(index).path_in_schema for index in range(metadata.num_columns)]
    bytes_leaf = leaves.index(image_column if image_column in leaves else f"{image_column}.bytes")
    path_leaf = leaves.index(f"{image_column}.path") if f"{image_column}.path" in leaves else None
    groups, num_null, num_paths = [], 0, 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.num_rows:
            images = group.column(bytes_leaf)
            told = images.statistics if images.is_stats_set else None
            num_null += told.null_count if told is not None and told.has_null_count else 0
            if path_leaf is not None and (named := group.column(path_leaf)).is_stats_set:
                num_paths += (
                    group.num_rows - named.statistics.null_count if named.statistics.has_null_count else 0
                )
            start = images.dictionary_page_offset if images.has_dictionary_page else images.data_page_offset
            if start + images.total_compressed_size > footer.data_end:
                raise UserError(
                    f"{url} is truncated: row group {number} would reach beyond its end; copy it again"
                )
            groups.append((number, group.num_rows, images.total_compressed_size))
    if groups and num_null == metadata.num_rows and num_paths and image_root() is None:
        raise UserError(
            f"{url} holds no images but only their paths: column {leaves[bytes_leaf]!r} is null in all "
            f"{num_null} rows. data.image_root=FOLDER (--image-root FOLDER) reads them from below that "
            "folder, of absolute paths one that they begin with; or embed them where the file is written "
            "(datasets: to_parquet with Image(decode=True) stores the bytes)"
        )
    return groups


def _check_column(url: str, schema: pa.Schema, column: str, *, is_image: bool) -> None:
    names = schema.names
    if column not in names:
        what = "image column" if is_image else "column"
        raise UserError(
            f"{url} has no {what} {column!r}{nearest(column, names)} (columns there: {', '.join(names)})"
        )
    if names.count(column) > 1:
        raise UserError(f"{url} has {names.count(column)} columns named {column!r}; rename all but one")
    kind = schema.field(column).type
    if is_image and image_kind(kind) is None:
        usable = [name for name in names if image_kind(schema.field(name).type)]
        hint = f"; columns that could be: {', '.join(usable)}" if usable else ""
        raise UserError(
            f"{url}: column {column!r} is {kind}; images must be struct<bytes: binary, path: string> or "
            f"binary{hint}"
        )


def image_kind(kind: pa.DataType) -> str | None:
    """How a column of this type could hold images: `struct<bytes>`, `binary`, or None when it could not."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return "struct<bytes>" if index >= 0 and image_kind(kind.field(index).type) == "binary" else None
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return "binary" if is_binary else None


def _check_same(
    url: str, kind: pa.DataType, other_url: str, other_kind: pa.DataType, column: str, *, is_image: bool
) -> None:
    if is_image:
        same = image_kind(kind) == image_kind(other_kind)
    else:  # string and large_string hold the same values; which is written depends on the writer's version
        same = same_values(kind) == same_values(other_kind)
    if not same:
        raise UserError(
            f"column {column!r} is {kind} in {url} but {other_kind} in {other_url}; all files of a data set "
            "need one schema"
        )


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


class _Cache:
    """One .npz file for each (URL, columns), valid while the listing
    (names, sizes, versions) is the same.
    """

    _NAMES = ("file_of_group", "group_in_file", "rows_of_group", "bytes_of_group")

    def __init__(
        self, url: str, columns: Sequence[str], files: Sequence[FileInfo], cache_dir: str | None
    ) -> None:
        asked = json.dumps([CACHE_VERSION, [storage.absolute(url)], list(columns), image_root() is not None])
        listing = json.dumps([[file.url, file.size_bytes, file.version] for file in files])
        self._path = (
            Path(cache_dir or _user_cache()) / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.npz"
        )
        self._listing = np.frombuffer(hashlib.sha256(listing.encode()).digest(), dtype=np.uint8)
        self._num_files = len(files)

    def load(self) -> Table | None:
        """The remembered table, or None when there is none, it is out of date or damaged."""
        try:
            with np.load(self._path, allow_pickle=False) as stored:
                if not np.array_equal(stored["listing"], self._listing):
                    return None
                file_of_group, group_in_file, rows, sizes = (stored[name] for name in self._NAMES)
        except Exception:  # whatever a damaged entry makes numpy raise: the footers hold the truth
            return None
        arrays = (file_of_group, group_in_file, rows, sizes)
        fits = all(array.ndim == 1 and len(array) == len(rows) for array in arrays)
        if not fits or (len(rows) and not 0 <= file_of_group.min() <= file_of_group.max() < self._num_files):
            return None
        return arrays

    def save(self, table: Table) -> None:
        """Remembers a table; where that is not possible (a read-only home) the
        footers are simply read again next time.
        """
        buffer = io.BytesIO()
        arrays: dict[str, Any] = dict(zip(self._NAMES, table, strict=True))
        np.savez(buffer, listing=self._listing, **arrays)
        with suppress(UserError, OSError):
            storage.write_bytes(str(self._path), buffer.getvalue())


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the standard says that a relative XDG_CACHE_HOME is to be ignored
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "fovea" / "manifests"
