"""Class names and class ids of a label column: one class a row, or a list of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import UserError
from pretrain.data.annotations import find_class_column, values_of
from pretrain.data.columns import column_by_file
from pretrain.data.footers import read_footer
from pretrain.data.manifest import Manifest, read_class_names


@dataclass(frozen=True)
class ClassNames:
    """The classes of a data set. `values` are the labels as they stand in the column, `names` their texts."""

    values: tuple[Any, ...]
    names: list[str]

    def __len__(self) -> int:
        return len(self.values)

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

    def multi_hot(self, labels: Sequence[Sequence[Any]]) -> np.ndarray:
        """float32 [rows, classes] of lists of labels: 1 where a list has the class. Raises UserError for one that is none."""
        hot = np.zeros((len(labels), len(self)), np.float32)
        for row, of_row in enumerate(labels):
            hot[row, self.ids(of_row)] = 1.0
        return hot


def read_class_names_of(manifest: Manifest, validation: Manifest, column: str) -> ClassNames:
    """The classes of the training data, in a fixed order; the column must be text or whole numbers, or lists of these.

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


def is_multi_label(manifest: Manifest, column: str) -> bool:
    """Whether the column holds a list of classes for each row. Raises UserError when it cannot hold classes."""
    file = manifest.files[int(manifest.file_of_group[0])]
    return find_class_column(read_footer(file).schema, column, file.url).is_list


def distinct_labels(manifest: Manifest, column: str) -> set[Any]:
    """The distinct labels of a data set; only the label column is read. Raises UserError for nulls or another type."""
    found: set[Any] = set()
    for url, labels in _labels(manifest, column):
        found |= set(values_of(pc.unique(labels)))
        if b"" in found:
            raise UserError(f"{url}: column {column!r} holds text that is not UTF-8; write it again as UTF-8")
    return found


def label_codes(manifest: Manifest, column: str) -> np.ndarray:
    """int64 [num_rows]: a number for each row's class, of a column with one class a row; they count the sorted classes."""
    return _places(manifest, column, sorted(distinct_labels(manifest, column)))


def class_counts(manifest: Manifest, column: str, classes: ClassNames) -> np.ndarray:
    """int64 [num_classes]: rows that show each class; a class that a list names twice counts twice."""
    return np.bincount(_places(manifest, column, classes.values), minlength=len(classes))


def _places(manifest: Manifest, column: str, values: Sequence[Any]) -> np.ndarray:
    """int64: the place in `values` of each label, one row's labels after another's."""
    place = {value: index for index, value in enumerate(values)}
    parts = [np.zeros(0, np.int64)]
    for _, labels in _labels(manifest, column):
        encoded = labels if pa.types.is_dictionary(labels.type) else pc.dictionary_encode(labels)
        known = np.array([place[value] for value in values_of(encoded.dictionary)], dtype=np.int64)
        parts.append(known[encoded.indices.to_numpy(zero_copy_only=False)])
    return np.concatenate(parts)


def _labels(manifest: Manifest, column: str) -> Iterator[tuple[str, pa.Array]]:
    """URL and labels of each file, lists laid end to end. Raises UserError for nulls or a type that cannot be a class."""
    is_list = is_multi_label(manifest, column)
    for url, values in column_by_file(manifest, column):
        labels = values.combine_chunks()
        num_null = labels.null_count
        if is_list:
            labels = labels.flatten()
            num_null += labels.null_count
        if num_null:
            raise UserError(f"{url}: {num_null} rows have no label in column {column!r}; leave them out or label them")
        yield url, labels
