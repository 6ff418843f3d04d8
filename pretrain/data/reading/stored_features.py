"""Features that `python -m pretrain embed` wrote, read in step with their images.

    described = describe_features("s3://bucket/features")      # dim, maps, teacher, statistics: what a
        method is built with
    features = StoredFeatures("s3://bucket/features", manifest)      # refused unless they are of this data
    source = with_features(shards, features, ["features"])      # for a Loader, in place of the shards

Both files are read by `pretrain.data.reading.shards`, so features come from any store in bounded memory, and
the rows of a run meet the same features on any number of workers and after any restart. Each row's checksum
is compared with the image beside it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.errors import UserError
from pretrain.data.images.decode import BadImage
from pretrain.data.reading.decoded import image_checksum
from pretrain.data.reading.feature_description import Description, describe_features
from pretrain.data.reading.feature_layout import (
    CHECKSUM,
    DESCRIPTION,
    FEATURES,
    MAPS,
    Layout,
    as_rows,
    column_type,
    layout_of,
)
from pretrain.data.reading.footers import Footer, read_footer
from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.order import Segment
from pretrain.data.reading.shards import Rows, Shards, Source

BYTES_AHEAD, GROUPS_AHEAD = 2**20, 2  # of features that are sent for before they are needed, in each segment
NO_FEATURES = "no features are stored for it: embed could not decode it"


class StoredFeatures:
    """A folder of features that was checked against a data set.

    Args:
        url: of the folder, a path or any fsspec URL.
        manifest: of the data set that they are read with.
        dim: of pooled features that is needed, if any is.

    Attributes:
        described: what the folder says about itself.
        start_of_group: of the data set, see `Manifest`.
        layout: of the features.

    Raises UserError when the folder is not finished, of another data set or of the same rows in another
    order, lacks a part, or has one that is truncated.
    """

    def __init__(self, url: str, manifest: Manifest, *, dim: int | None = None) -> None:
        self.described = described = describe_features(url)
        if dim is not None and dim != described.dim:
            raise UserError(
                f"{described.url} holds features of {described.dim} dimensions, {dim} are needed; "
                f"they are of the teacher {described.teacher.get('name')}"
            )
        _check_data(described, manifest)
        self.start_of_group = manifest.start_of_group
        self.layout = layout_of(manifest, rows_per_part=int(described.content["rows_per_part"]))
        self._files = _check_parts(described, self.layout)

    def files(self, names: Sequence[str]) -> FeatureFiles:
        """What reads these columns (`features`, `maps`). Raises UserError for maps where there are none."""
        maps = self.described.maps
        shapes: dict[str, tuple[int, ...]] = {FEATURES: (self.described.dim,)}
        if maps is not None:
            shapes[MAPS] = (maps.channels, maps.cells, maps.cells)
        for name in names:
            if name not in shapes:
                raise UserError(
                    f"{self.described.url} holds no {name}; make them with: python -m pretrain embed "
                    "TEACHER DATA OUT --maps N"
                )
        layout = self.layout
        row_bytes = sum(2 * math.prod(shapes[name]) for name in names) + 4
        manifest = Manifest(
            files=self._files,
            file_of_group=layout.part_of_group,
            group_in_file=layout.group_in_part,
            rows_of_group=layout.rows_of_group,
            bytes_of_group=layout.rows_of_group * row_bytes,
            source_of_group=np.zeros(len(layout.rows_of_group), np.int32),
            fingerprint=self.described.fingerprint,
        )
        return FeatureFiles(manifest, {name: shapes[name] for name in names})


def _check_data(described: Description, manifest: Manifest) -> None:
    content, url = described.content, described.url
    if content["fingerprint"] == manifest.fingerprint:
        return
    of = ", ".join(str(source["url"]) for source in content["data"])
    if described.rows != manifest.num_rows:
        raise UserError(
            f"{url} holds the features of {described.rows:,} rows of {of}, the data has "
            f"{manifest.num_rows:,} rows; run embed on this data into another folder"
        )
    ours, theirs = manifest.source_fingerprints, [source["fingerprint"] for source in content["data"]]
    if sorted(ours) == sorted(theirs) and ours != theirs:
        raise UserError(
            f"{url} holds the features of the same data sets in another order ({of}); name them in this "
            "order, or run embed again into another folder"
        )
    raise UserError(
        f"{url} holds the features of other data or of its rows in another order ({of}, fingerprint "
        f"{content['fingerprint'][:12]}; that of the data is {manifest.fingerprint[:12]}); run embed on "
        "this data into another folder"
    )


def _check_parts(described: Description, layout: Layout) -> tuple[storage.FileInfo, ...]:
    """The files of the parts, in order. Raises UserError for one that is missing or has another size."""
    found = {file.url.rsplit("/", 1)[-1]: file for file in storage.find_files(described.url, ".parquet")}
    sizes = described.content["part_bytes"]
    if len(sizes) != len(layout.names):
        raise UserError(
            f"{storage.join(described.url, DESCRIPTION)} is damaged: it tells of {len(sizes):,} parts, the "
            f"data has {len(layout.names):,}; run embed again into an empty folder"
        )
    for name, size in zip(layout.names, sizes, strict=True):
        url = storage.join(described.url, name)
        if name not in found:
            raise UserError(f"{url} is missing; run embed again, or copy the folder again")
        if found[name].size_bytes != size:
            what = "is truncated" if found[name].size_bytes < size else "was changed"
            raise UserError(
                f"{url} {what}: it has {found[name].size_bytes:,} bytes, {size:,} were written; remove it "
                "and run embed again, or copy the folder again"
            )
    return tuple(found[name] for name in layout.names)


class FeatureFiles(Shards):
    """The parts of a folder of features as rows without images; columns are float16 arrays or None.

    Args:
        manifest: of the parts; its row ids are those of the data.
        shapes: of each column to be read.
    """

    def __init__(self, manifest: Manifest, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__(manifest, image_column=FEATURES, columns=[*shapes, CHECKSUM])
        self.shapes = shapes

    def check(self) -> None:
        """Raises UserError that names the first part when it has other columns than features.json says."""
        file = self.manifest.files[0]
        schema = read_footer(file).schema
        for name, shape in self.shapes.items():
            wanted = column_type(math.prod(shape))
            found = schema.field(name).type if name in schema.names else None
            if found is None or not found.equals(wanted):
                raise UserError(
                    f"{file.url}: the column {name!r} is {found or 'missing'}, {DESCRIPTION} says {wanted}; "
                    "run embed again into an empty folder"
                )

    def _leaf_columns(self, schema: pa.Schema) -> list[str]:
        return list(self.columns)

    def _rows(self, batch: pa.RecordBatch, first_row_id: int, pass_number: int, footer: Footer) -> Rows:
        num = batch.num_rows
        columns: dict[str, list[Any]] = {CHECKSUM: batch.column(CHECKSUM).to_pylist()}
        for name, shape in self.shapes.items():
            values_BN, good_B = as_rows(batch.column(name))
            if values_BN.shape[1] != np.prod(shape):
                raise OSError(
                    f"{name!r} has {values_BN.shape[1]} numbers a row, {DESCRIPTION} says {np.prod(shape)}"
                )
            # copies: a view would keep the whole batch in memory until its last row is used
            rows = [values.copy() for values in values_BN.reshape(num, *shape)]
            columns[name] = (
                rows
                if good_B.all()
                else [row if good else None for row, good in zip(rows, good_B, strict=True)]
            )
        return Rows(
            list(range(first_row_id, first_row_id + num)), [pass_number] * num, [None] * num, columns
        )


def with_features(source: Source, features: StoredFeatures, names: Sequence[str] = (FEATURES,)) -> Source:
    """A source with columns `features` (float16 [D]) and `maps` (float16 [channels, cells, cells]).

    Args:
        source: `Shards` of the data set that the features are of, or images kept on the device.
        features: of the data set.
        names: of the columns.

    A row without features is a bad row, as one that cannot be decoded: a neighbour takes its place with its
    own features. Raises UserError when a column is not there, and, while reading, when an image is another
    than the one that the features of its row were made of.
    """
    files = features.files(names)
    files.check()
    return _WithFeatures(source, files, features.start_of_group)


class _WithFeatures:
    """A source beside features; `start_of_group` is that of the source's manifest."""

    def __init__(self, source: Source, files: FeatureFiles, start_of_group: np.ndarray) -> None:
        self._source, self._files, self._start_of_group = source, files, start_of_group
        # what stands in for shards may give something else than encoded images
        self._shards = source if isinstance(source, Shards) else None

    @property
    def mean_row_bytes(self) -> float:
        return self._source.mean_row_bytes + self._files.mean_row_bytes

    def read(self, segment: Segment, *, stopped: Callable[[], bool] = lambda: False) -> Iterator[Rows]:
        """The rows of a segment; what a store has to send of both is on its way when this returns."""
        rows = self._source.read(segment, stopped=stopped)
        return self._joined(rows, _FeatureRows(self._files, self._segments(segment), stopped))

    def _segments(self, segment: Segment) -> list[Segment]:
        """The same rows in the row groups of the features."""
        starts = self._files.manifest.start_of_group
        first, last = (
            int(self._start_of_group[segment.group]) + row for row in (segment.start, segment.stop)
        )
        groups = range(
            int(np.searchsorted(starts, first, side="right")) - 1, int(np.searchsorted(starts, last))
        )
        return [
            replace(
                segment,
                group=group,
                start=max(first, int(starts[group])) - int(starts[group]),
                stop=min(last, int(starts[group + 1])) - int(starts[group]),
            )
            for group in groups
        ]

    def _joined(self, pieces: Iterator[Rows], features: _FeatureRows) -> Iterator[Rows]:
        for piece in pieces:
            first_row_id, columns = features.take(len(piece))
            assert first_row_id == piece.row_ids[0], "rows and features are apart"
            self._check(piece, columns.pop(CHECKSUM))
            for name in self._files.shapes:
                columns[name] = [
                    BadImage(NO_FEATURES) if value is None else value for value in columns[name]
                ]
            yield Rows(piece.row_ids, piece.passes, piece.images, {**piece.columns, **columns})

    def _check(self, piece: Rows, checksums: Sequence[int]) -> None:
        if self._shards is None:
            return
        for row_id, image, checksum in zip(piece.row_ids, piece.images, checksums, strict=True):
            if image_checksum(image) != checksum:
                group = int(np.searchsorted(self._files.manifest.start_of_group, row_id, side="right")) - 1
                part = self._files.manifest.files[int(self._files.manifest.file_of_group[group])].url
                raise UserError(
                    f"{self._shards.location(row_id)} holds another image than the one that its features in "
                    f"{part} were made of: the data was changed or its rows were put into another order; "
                    "run embed again into another folder"
                )


class _FeatureRows:
    """The rows of neighbouring segments in turn; the first are sent for at once, the others in time."""

    def __init__(
        self, files: FeatureFiles, segments: Sequence[Segment], stopped: Callable[[], bool]
    ) -> None:
        self._files, self._stopped = files, stopped
        self._to_come = deque(segments)
        # bytes and rows of those that were sent for
        self._begun: deque[tuple[int, Iterator[Rows]]] = deque()
        self._bytes_begun = 0
        self._piece, self._position = Rows([], [], [], {}), 0
        self._begin()

    def take(self, num: int) -> tuple[int, dict[str, list[Any]]]:
        """The next rows: the id of the first, and their columns."""
        first_row_id, columns = -1, {name: list[Any]() for name in self._files.columns}
        while num:
            if self._position == len(self._piece):
                self._piece, self._position = self._next_piece(), 0
            stop = min(self._position + num, len(self._piece))
            if first_row_id < 0:
                first_row_id = self._piece.row_ids[self._position]
            for name, values in self._piece.columns.items():
                columns[name] += values[self._position : stop]
            num, self._position = num - (stop - self._position), stop
        return first_row_id, columns

    def _next_piece(self) -> Rows:
        while True:
            num_bytes, rows = self._begun[0]
            piece = next(rows, None)
            if piece is not None:
                return piece
            self._begun.popleft()
            self._bytes_begun -= num_bytes
            self._begin()

    def _begin(self) -> None:
        while self._to_come and (len(self._begun) < GROUPS_AHEAD or self._bytes_begun < BYTES_AHEAD):
            segment = self._to_come.popleft()
            num_bytes = int(self._files.manifest.bytes_of_group[segment.group])
            self._begun.append((num_bytes, self._files.read(segment, stopped=self._stopped)))
            self._bytes_begun += num_bytes
