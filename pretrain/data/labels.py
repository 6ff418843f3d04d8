"""Class names and class ids of a label column."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from cluster.errors import UserError
from pretrain.data.annotations import is_class_type, values_of
from pretrain.data.manifest import Manifest, read_class_names


@dataclass(frozen=True)
class ClassNames:
    """The classes of a data set. `values` are the labels as they stand in the column, `names` their texts."""

    values: tuple[Any, ...]
    names: list[str]

    @cached_property
    def _index(self) -> dict[Any, int]:
        return {value: index for index, value in enumerate(self.values)}

    def ids(self, labels: Sequence[Any]) -> np.ndarray:
        """Class ids int64 of labels as they stand in the column. Raises UserError for one that is no class."""
        try:
            return np.array([self._index[label] for label in labels], dtype=np.int64)
        except KeyError as error:
            raise UserError(
                f"the label {error.args[0]!r} is no class of the model ({', '.join(self.names[:20])})"
            ) from error


def read_class_names_of(manifest: Manifest, validation: Manifest, column: str) -> ClassNames:
    """The classes of the training data, in a fixed order; the column must be text or whole numbers without gaps.

    Names of whole numbers are those of a Hugging Face ClassLabel when the shards carry them. Raises UserError for another
    type, rows without a label, fewer than two classes, and validation classes that training never shows.
    """
    found, unseen = distinct_labels(manifest, column), distinct_labels(validation, column)
    if len(found) < 2:
        raise UserError(
            f"column {column!r} of {manifest.files[0].url} holds {len(found)} class; two are needed at least"
        )
    if never := unseen - found:
        raise UserError(
            f"the validation data {validation.files[0].url} has classes that the training data never shows: "
            f"{', '.join(sorted(map(str, never)))}; training knows {', '.join(sorted(map(str, found)))}"
        )
    if len({type(value) for value in found}) > 1:
        raise UserError(f"column {column!r} is text in one data set and whole numbers in another; make them alike")
    values = tuple(sorted(found))
    names = _declared_names(manifest, column)
    if names is not None and all(isinstance(value, int) and 0 <= value < len(names) for value in values):
        # all declared classes, so that a model keeps the data set's numbering
        return ClassNames(tuple(range(len(names))), names)
    return ClassNames(values, [str(value) for value in values])


def _declared_names(manifest: Manifest, column: str) -> list[str] | None:
    """The class names that the files declare. Raises UserError when data sets number their classes differently."""
    first_group_of_source = np.unique(manifest.source_of_group, return_index=True)[1]
    first_files = [manifest.files[int(manifest.file_of_group[group])].url for group in first_group_of_source]
    names = [read_class_names(url, column) for url in first_files]
    for url, other in zip(first_files, names, strict=True):
        if other != names[0]:
            raise UserError(
                f"column {column!r} of {url} has other class names than that of {first_files[0]}, so the same numbers would "
                "mean other classes; give labels as text, or in one numbering"
            )
    return names[0]


def distinct_labels(manifest: Manifest, column: str) -> set[Any]:
    """The distinct labels of a data set; only the label column is read. Raises UserError for nulls or another type."""

    def labels_of(url: str) -> set[Any]:
        with storage.open_input(url) as source:
            values = pq.ParquetFile(source).read(columns=[column]).column(0)
        kind = values.type
        if not is_class_type(kind):
            raise UserError(f"{url}: column {column!r} is {kind}; a class label must be text or a whole number")
        if values.null_count:
            raise UserError(
                f"{url}: {values.null_count} rows have no label in column {column!r}; leave them out or label them"
            )
        found = set(values_of(pc.unique(values)))
        if b"" in found:
            raise UserError(f"{url}: column {column!r} holds text that is not UTF-8; write it again as UTF-8")
        return found

    with ThreadPoolExecutor(8) as pool:
        return set().union(*pool.map(labels_of, [file.url for file in manifest.files]))
