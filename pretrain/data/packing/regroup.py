"""Rewrites shards into small row groups: the same rows in the same order, every column with its type."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from cluster import storage
from cluster.errors import UserError
from cluster.progress import ProgressLine
from cluster.secrets import masked
from pretrain.data.hashing import image_digest
from pretrain.data.images.decode import BadImage, decode_image
from pretrain.data.packing.packing import MIB, ShardWriter
from pretrain.data.packing.preparing import stored_decoded
from pretrain.data.reading.footers import Footer, read_footer
from pretrain.data.reading.image_paths import encoded_images
from pretrain.data.reading.manifest import Manifest, find_shards, load_manifest
from pretrain.data.reading.naming import named, names_in
from pretrain.data.reading.numberings import declared_names, numbered_differently
from pretrain.data.reading.one_schema import common_type, same_values, with_names_as_text

MAX_ROWS_PER_GROUP, GROUP_BYTES = 64, 8 * MIB
BATCH_BYTES = 4 * MIB
PAGE_BUFFER_BYTES = MIB
DROPPED_LIST = "_dropped.jsonl"  # readers of whole folders pass over names with an underscore


def check_locations(url: str, dest: str) -> None:
    """Raises UserError when DEST is not empty, lies in the source or around it:
    a reader would see rows twice.
    """
    source, target = _normal(url), _normal(dest)
    is_glob = storage.is_glob(url)
    inside = (
        re.match(glob_translate(source), f"{target}/shard-00000.parquet")
        if is_glob
        else f"{target}/".startswith(f"{source}/")
    )
    if inside or any(_normal(file.url).startswith(f"{target}/") for file in find_shards([url])):
        raise UserError(
            f"--fix {dest} and the source {url} contain one another; name a folder outside the source"
        )
    if names := storage.names_in(dest):
        raise UserError(f"--fix {dest}: it is not empty (it holds {names[0]}); name another folder")


def lies_in(url: str, folder: str) -> bool:
    """Whether a file would be somewhere below a folder."""
    return _normal(url).startswith(f"{_normal(folder)}/")


def _normal(url: str) -> str:
    """One spelling for each location."""
    if storage.is_local(url):
        return os.path.realpath(storage.local_path(url))
    fs, path = storage.filesystem(url)
    return fs.unstrip_protocol(path).rstrip("/")


def regroup(
    url: str,
    dest: str,
    image_column: str = "image",
    *,
    drop_bad: bool = False,
    drop_duplicates: bool = False,
    decoded_form: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Writes all rows of a data set to new shards in `dest` and returns what was written, ready for JSON.

    Memory depends on the size of images and pages, not on that of row groups (a page holds up to 1024 rows
    where pyarrow's defaults were used); `drop_duplicates` adds some 100 bytes a row. Rows that are left
    out are listed in DEST/_dropped.jsonl.

    Args:
        url: file, folder or glob.
        dest: a folder, new or empty, outside of the source.
        image_column: holds the encoded images.
        drop_bad: leave out rows whose image cannot be decoded; all images are decoded for it.
        drop_duplicates: of rows whose encoded images are equal byte for byte, keep the first.
        decoded_form: images are stored decoded, see `pretrain.data.packing.preparing.stored_decoded`;
            bad ones as they are.

    Raises:
        UserError: when `dest` does not suit, a file cannot be read, or the files' columns differ.
    """
    check_locations(url, dest)
    manifest = load_manifest(url, image_column=image_column)
    schema = _common_schema(manifest)
    keeper = _Keeper(drop_bad, drop_duplicates)
    with (
        ProgressLine("rewriting", manifest.num_rows, shown=show_progress) as progress,
        ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode") as pool,
        ShardWriter(
            dest, schema, rows_per_group=_rows_per_group(manifest), bytes_per_group=GROUP_BYTES
        ) as writer,
    ):
        for location, footer, batch in _batches(manifest):
            images = batch.column(image_column)
            encoded = encoded_images(images, pool.map)
            reasons = keeper.reasons(encoded, location, pool)
            if decoded_form:
                encoded = list(pool.map(_decoded_if_good, encoded))
            for index, reason in enumerate(reasons):
                if reason is None:
                    row = {
                        name: _as_written(batch.column(name)[index], name, schema, footer)
                        for name in batch.schema.names
                    }
                    row[image_column] = _image_value(images[index], encoded[index])
                    writer.write(row | footer.folder_columns)
            progress.advance(batch.num_rows)
    if keeper.dropped:
        lines = "".join(json.dumps(row) + "\n" for row in keeper.dropped)
        storage.write_bytes(storage.join(dest, DROPPED_LIST), lines.encode())
    return _summary(manifest, dest, image_column, keeper)


def _summary(manifest: Manifest, dest: str, image_column: str, keeper: _Keeper) -> dict[str, Any]:
    """Counts, after a look at what lies in DEST now."""
    num_kept = manifest.num_rows - len(keeper.dropped)
    if not num_kept:
        raise UserError(
            f"all {manifest.num_rows} rows were left out, see {storage.join(dest, DROPPED_LIST)}; nothing "
            "was written"
        )
    written = load_manifest(dest, image_column=image_column)
    if written.num_rows != num_kept:
        raise RuntimeError(f"{dest} holds {written.num_rows} rows, but {num_kept} were to be written")
    rows = written.rows_of_group
    return {
        "dest": masked(dest),
        "rows": manifest.num_rows,
        "rows_written": written.num_rows,
        "dropped_bad": len(keeper.dropped) - keeper.num_duplicates,
        "dropped_duplicates": keeper.num_duplicates,
        "dropped_list": masked(storage.join(dest, DROPPED_LIST)) if keeper.dropped else None,
        "shards": len(written.files),
        "bytes": sum(file.size_bytes for file in written.files),
        "row_groups": {
            "count": len(rows),
            "rows": {"min": int(rows.min()), "median": int(np.median(rows)), "max": int(rows.max())},
        },
    }


class _Keeper:
    """Decides which rows are kept, and lists the others."""

    def __init__(self, drop_bad: bool, drop_duplicates: bool) -> None:
        self._drop_bad, self._drop_duplicates = drop_bad, drop_duplicates
        self._seen: set[bytes] = set()
        self.dropped: list[dict[str, Any]] = []
        self.num_duplicates = 0

    def reasons(
        self, images: list[bytes | None], location: dict[str, Any], pool: ThreadPoolExecutor
    ) -> list[str | None]:
        """Why each row is left out, None for those that are kept. `location` is that of the first."""
        reasons: list[str | None] = (
            list(pool.map(_why_bad, images)) if self._drop_bad else [None] * len(images)
        )
        for index, data in enumerate(images):
            if reasons[index] is None and data is not None and self._drop_duplicates:
                digest = image_digest(data)
                if digest in self._seen:
                    self.num_duplicates += 1
                    reasons[index] = "duplicate"
                self._seen.add(digest)
            if reasons[index] is not None:
                self.dropped.append({**location, "row": location["row"] + index, "reason": reasons[index]})
        return reasons


def _why_bad(data: bytes | None) -> str | None:
    if data is None:
        return "null"
    try:
        decode_image(data)
    except BadImage as error:
        return str(error)
    return None


def _decoded_if_good(data: bytes | None) -> bytes | None:
    try:
        return None if data is None else stored_decoded(data)
    except BadImage:
        return data


def _common_schema(manifest: Manifest) -> pa.Schema:
    """The first file's schema with its metadata; where files have other types for the same values, a plain
    one, and where they number their classes differently, text.

    Raises UserError when another file's columns hold other things.
    """
    schema = read_footer(manifest.files[0]).schema
    if len(set(schema.names)) < len(schema.names):
        raise UserError(
            f"{manifest.files[0].url} has several columns of one name: {', '.join(schema.names)}; rename "
            "them"
        )
    locations: dict[tuple[str, ...], None] = {}
    kinds: dict[str, dict[pa.DataType, None]] = {field.name: {field.type: None} for field in schema}
    with ThreadPoolExecutor(8, thread_name_prefix="footer") as pool:
        for file, footer in zip(manifest.files, pool.map(read_footer, manifest.files), strict=True):
            other = footer.schema
            if set(other.names) != set(schema.names):
                raise UserError(
                    f"{file.url} has the columns {', '.join(other.names)}, but {manifest.files[0].url} has "
                    f"{', '.join(schema.names)}; rewrite them one by one"
                )
            for field in schema:
                kind = other.field(field.name).type
                if same_values(kind) != same_values(field.type):
                    raise UserError(
                        f"column {field.name!r} is {field.type} in {manifest.files[0].url} but {kind} in "
                        f"{file.url}; rewrite them one by one"
                    )
                kinds[field.name][kind] = None
            locations.update(dict.fromkeys(_locations_of_names(other)))
    for index, name in enumerate(schema.names):
        schema = schema.set(index, schema.field(index).with_type(common_type(list(kinds[name]))))
    for path in locations:
        declared_names([manifest], *path)
        if numbered_differently(manifest, *path):
            schema = with_names_as_text(schema, path[0])
    return schema


def _locations_of_names(schema: pa.Schema) -> Iterator[tuple[str, ...]]:
    """All locations at which a file says what numbers stand for, such as ("objects", "category")."""
    for column in schema.names:
        names = names_in(schema, column)
        if isinstance(names, tuple):
            yield (column,)
        for field in names if isinstance(names, Mapping) else ():
            yield column, field


def _rows_per_group(manifest: Manifest) -> int:
    """As many rows as make a good row group; the writer counts the images' bytes,
    this also those of other large columns.
    """
    total = sum(file.size_bytes for file in manifest.files)
    return int(min(max(1, GROUP_BYTES * manifest.num_rows // max(1, total)), MAX_ROWS_PER_GROUP))


def _batches(manifest: Manifest) -> Iterator[tuple[dict[str, Any], Footer, pa.RecordBatch]]:
    """(location of the first row, footer of its file, rows) in file order, a few MiB at a time."""
    for index, file in enumerate(manifest.files):
        numbers = np.flatnonzero(manifest.file_of_group == index)
        if not len(numbers):
            continue
        with storage.open_input(file.url) as source:
            group, footer = 0, read_footer(file)
            try:
                parquet = pq.ParquetFile(source, pre_buffer=False, buffer_size=PAGE_BUFFER_BYTES)
                for group in manifest.group_in_file[numbers].tolist():
                    metadata = parquet.metadata.row_group(group)
                    mean = max(1, metadata.total_byte_size // metadata.num_rows)
                    size, position = int(min(max(1, BATCH_BYTES // mean), MAX_ROWS_PER_GROUP)), 0
                    for batch in parquet.iter_batches(size, row_groups=[group], use_threads=False):
                        yield {"file": file.url, "row_group": group, "row": position}, footer, batch
                        position += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"{file.url}: row group {group} cannot be read: {reason}") from error


def _as_written(scalar: pa.Scalar, name: str, schema: pa.Schema, footer: Footer) -> Any:
    """A value of one file for the schema of all."""
    if scalar.type == schema.field(name).type:
        return _kept(scalar)
    try:
        value = scalar.as_py()
    except UnicodeDecodeError as error:
        raise UserError(
            f"column {name!r} holds text that is not UTF-8 ({error}); write it again as UTF-8"
        ) from error
    return value if names_in(schema, name) is not None else named(value, names_in(footer.schema, name))


def _kept(scalar: pa.Scalar) -> Any:
    """A value for the writer that no conversion to Python changes:
    nanoseconds, decimals, text that is not UTF-8.
    """
    if not scalar.is_valid:
        return None
    kind = scalar.type
    if not _holds_unwritable(kind):
        return scalar
    if pa.types.is_struct(kind):
        return {field.name: _kept(scalar[field.name]) for field in kind}
    if pa.types.is_map(kind):
        return [(_kept(entry[0]), _kept(entry[1])) for entry in scalar.values]
    if isinstance(scalar, pa.ListScalar):
        return [_kept(value) for value in scalar.values]
    return scalar.as_py()


def _holds_unwritable(kind: pa.DataType) -> bool:
    """Whether pyarrow makes no array of such scalars: maps, nulls and tensors, wherever they stand."""
    return (
        pa.types.is_map(kind)
        or pa.types.is_null(kind)
        or isinstance(kind, pa.FixedShapeTensorType)
        or any(_holds_unwritable(kind.field(index).type) for index in range(kind.num_fields))
    )


def _image_value(scalar: pa.Scalar, data: bytes | None) -> Any:
    """The image as bytes, whose size the writer counts."""
    if not scalar.is_valid or not pa.types.is_struct(scalar.type):
        return data
    return {
        field.name: data if field.name == "bytes" else _kept(scalar[field.name]) for field in scalar.type
    }
