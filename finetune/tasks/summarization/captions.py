"""What the captions of a data set hold, read once before training: how many there are, which images have
none, and the keywords.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import UserError
from finetune.tasks.summarization.mining import CaptionSample
from finetune.tasks.summarization.words import clean
from pretrain.data.reading.annotation_columns import ClassColumn, find_captions_column, find_class_column
from pretrain.data.reading.annotations import (
    BadAnnotation,
    name_of_class,
    read_captions,
    read_classes,
    values_of,
)
from pretrain.data.reading.footers import read_footer
from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.naming import named, names_in
from pretrain.data.reading.shards import RowLocation

FILES_AT_ONCE = 8
NUM_LISTED = 20


@dataclass
class Survey:
    """What was seen of a column of captions, or of keywords.

    Attributes:
        num_images: rows read.
        num_texts: captions or keywords in all.
        num_without: rows that have none.
        without: the first of these rows, with the reason.
        images_of_keyword: how many images have each keyword of a column.
        sample: captions that keywords are mined from.
    """

    num_images: int = 0
    num_texts: int = 0
    num_without: int = 0
    without: list[str] = field(default_factory=list)
    images_of_keyword: Counter[str] = field(default_factory=Counter)
    sample: CaptionSample = field(default_factory=CaptionSample)

    def count(self, location: RowLocation, texts: list[str], reason: str = "") -> None:
        """Takes note of a row."""
        self.num_images += 1
        self.num_texts += len(texts)
        if not texts:
            self.num_without += 1
            if len(self.without) < NUM_LISTED:
                self.without.append(f"{location}: {reason}" if reason else str(location))

    @property
    def summary(self) -> dict[str, Any]:
        """For results: the numbers, and where nothing was found."""
        return {
            "images": self.num_images,
            "captions": self.num_texts,
            "images_without": self.num_without,
        } | ({"first_without": self.without} if self.without else {})


def captions_of(value: Any) -> list[str]:
    """The usable captions of a row: NFC, single blanks; none where it is null. Raises BadAnnotation."""
    return [clean(caption) for caption in read_captions(value)]


def captions_or_none(value: Any) -> list[str]:
    """The same, none where the row cannot be used."""
    try:
        return captions_of(value)
    except BadAnnotation:
        return []


def each_caption(manifest: Manifest, column: str, survey: Survey) -> Iterator[str]:
    """Every caption of a data set; fills `survey` on the way."""
    for location, value in _rows(manifest, column, check=find_captions_column):
        try:
            captions, reason = captions_of(value), ""
        except BadAnnotation as error:
            captions, reason = [], str(error)
        survey.count(location, captions, reason)
        survey.sample.add(captions)
        yield from captions


def survey_keywords(manifest: Manifest, column: ClassColumn) -> Survey:
    """The keywords that stand in a column."""
    survey = Survey()
    for location, value in _rows(manifest, column.column, check=find_class_column):
        try:
            keywords, reason = keywords_of(value, column), ""
        except BadAnnotation as error:
            keywords, reason = set(), str(error)
        survey.count(location, sorted(keywords), reason)
        survey.images_of_keyword.update(keywords)
    return survey


def keywords_of(value: Any, column: ClassColumn) -> set[str]:
    """The keywords of a row of a column. Raises BadAnnotation."""
    names = (clean(name_of_class(found)) for found in read_classes(value, column))
    return {name for name in names if name}


def keyword_column(manifest: Manifest, column: str) -> ClassColumn:
    """Raises UserError when the column holds no keywords."""
    file = manifest.files[0]
    return find_class_column(read_footer(file).schema, column, file.url)


def frequent_keywords(survey: Survey, *, num_keywords: int, min_images: int) -> list[str]:
    """The most frequent keywords of a column."""
    counts = [(count, term) for term, count in survey.images_of_keyword.items() if count >= min_images]
    return sorted(term for _, term in sorted(counts, key=lambda pair: (-pair[0], pair[1]))[:num_keywords])


def _rows(
    manifest: Manifest, column: str, *, check: Callable[[pa.Schema, str, str], Any]
) -> Iterator[tuple[RowLocation, Any]]:
    """Every row's value of a column and where it lies, of chosen rows only where some are chosen.

    A few files are read at a time, only this column of them.
    """

    def read(file: int) -> list[tuple[RowLocation, Any]]:
        url, found = manifest.files[file].url, []
        with storage.open_input(url) as source:
            parquet = pq.ParquetFile(source)
            check(parquet.schema_arrow, column, url)
            names = names_in(parquet.schema_arrow, column)
            for group in np.flatnonzero(manifest.file_of_group == file).tolist():
                number, choice = int(manifest.group_in_file[group]), manifest.choice_in_group(group)
                values = parquet.read_row_group(number, columns=[column]).column(0)
                rows = range(len(values)) if choice is None else choice.tolist()
                if choice is not None:
                    values = values.take(pa.array(choice))
                found += [
                    (RowLocation(url, number, row), named(value, names))
                    for row, value in zip(rows, values_of(values), strict=True)
                ]
        return found

    files = np.unique(manifest.file_of_group).tolist()
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for start in range(0, len(files), FILES_AT_ONCE):
            for found in pool.map(read, files[start : start + FILES_AT_ONCE]):
                yield from found


def require_captions(survey: Survey, column: str, manifest: Manifest) -> None:
    """Raises UserError when a data set has no caption at all."""
    if not survey.num_texts:
        raise UserError(
            f"column {column!r} of {manifest.files[0].url} holds no caption in any of {survey.num_images:,} "
            "rows; name another with summarization.captions_column, or caption some images"
        )
