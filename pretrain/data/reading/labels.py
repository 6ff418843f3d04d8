"""Class names and class ids of a label column: one class a row, or a list of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import UserError
from pretrain.data.reading.annotation_columns import find_class_column, is_list_type
from pretrain.data.reading.annotations import name_of_class, values_of
from pretrain.data.reading.columns import column_by_file
from pretrain.data.reading.footers import read_footer
from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.naming import NO_LABEL, named_array
from pretrain.data.reading.numberings import declared_names, names_by_file


@dataclass(frozen=True)
class ClassNames:
    """The classes of a data set: `values` are the labels as in the column, `names` their texts."""

    values: tuple[Any, ...]
    names: list[str]

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def _index(self) -> dict[Any, int]:
        # by name as well: values are numbers in models of old, and where data has names it is read by these
        by_name = {name: index for index, name in enumerate(self.names)}
        return by_name | {value: index for index, value in enumerate(self.values)}

    def ids(self, labels: Sequence[Any]) -> np.ndarray:
        """Class ids int64 of labels as in the column. Raises UserError for one that is no class."""
        try:
            return np.array([self._index[label] for label in labels], dtype=np.int64)
        except KeyError as error:
            raise UserError(
                f"the label {error.args[0]!r} is not a class of the model ({', '.join(self.names[:20])})"
            ) from error

    def known(self, labels: Sequence[Any]) -> np.ndarray:
        """bool [labels]: which of them are classes."""
        return np.array([label in self._index for label in labels], dtype=bool)

    def multi_hot(self, labels: Sequence[Sequence[Any]]) -> np.ndarray:
        """float32 [rows, classes]: 1 where a list has the class. Raises UserError for what is no class."""
        hot = np.zeros((len(labels), len(self)), np.float32)
        for row, of_row in enumerate(labels):
            hot[row, self.ids(of_row)] = 1.0
        return hot


def read_class_names_of(manifest: Manifest, validation: Manifest, column: str) -> ClassNames:
    """The classes of the training data, in a fixed order;
    the column must be text or whole numbers, or lists of these.

    Numbers that stand for names (a Hugging Face ClassLabel) are these names, by each file's own numbering;
    of the training data all declared names are classes, in the declared order. Raises UserError for another
    type, rows without a label, fewer than two classes, validation classes that training never shows, and
    where numbers have names in some files only.
    """
    declared = declared_names([manifest, validation], column)
    found, unseen = distinct_labels(manifest, column), distinct_labels(validation, column)
    if len(found) < 2:
        raise UserError(
            f"column {column!r} of {manifest.files[0].url} holds {len(found)} class; two are needed at least"
        )
    if never := unseen - found:
        told_never, told_found = (", ".join(sorted(map(name_of_class, values))) for values in (never, found))
        raise UserError(
            f"the validation data {validation.files[0].url} has classes that the training data never shows: "
            f"{told_never}; training knows {told_found}"
        )
    return in_order(found, declared.get(manifest, ()))


def in_order(found: Iterable[Any], declared: Sequence[str]) -> ClassNames:
    """The classes in the order that the data declares, so that a model keeps its numbering,
    then others by name.

    Raises UserError for a number among names: the data declares none for it.
    """
    others = set(found) - set(declared)
    if declared and (numbers := sorted(value for value in others if isinstance(value, int))):
        raise UserError(
            f"the class {numbers[0]} has no name; the data names {len(declared)}: {', '.join(declared[:8])}"
        )
    values = (*declared, *sorted(others))
    return ClassNames(values, [str(value) for value in values])


def is_multi_label(manifest: Manifest, column: str) -> bool:
    """Whether the column holds lists of classes. Raises UserError when it cannot hold classes."""
    file = manifest.files[int(manifest.file_of_group[0])]
    return find_class_column(read_footer(file).schema, column, file.url).is_list


def distinct_labels(manifest: Manifest, column: str) -> set[Any]:
    """The distinct labels, from the label column alone. Raises UserError for nulls or another type."""
    found: set[Any] = set()
    for url, labels in _labels(manifest, column):
        found |= set(values_of(pc.unique(labels)))
        if b"" in found:
            raise UserError(
                f"{url}: column {column!r} holds text that is not UTF-8; write it again as UTF-8"
            )
    return found


def labelled_rows(manifest: Manifest, column: str) -> np.ndarray | None:
    """int64: rows that have a label; None where all have. Hugging Face's -1 beside class names is none."""
    names = dict(names_by_file(manifest, column))
    parts = []
    for url, values in column_by_file(manifest, column):
        labels = _plain(values.combine_chunks())
        if pa.types.is_integer(labels.type):
            labels = _named(labels, names[url], url, column)
        parts.append(labels.is_valid().to_numpy(zero_copy_only=False))
    known = np.concatenate(parts)
    return None if known.all() else np.flatnonzero(known)


def label_codes(manifest: Manifest, column: str) -> np.ndarray:
    """int64 [num_rows]: of a column with one class a row, the number of each among the sorted classes."""
    return _positions(manifest, column, sorted(distinct_labels(manifest, column)))


def class_counts(manifest: Manifest, column: str, classes: ClassNames) -> np.ndarray:
    """int64 [num_classes]: rows that show each class; a class that a list names twice counts twice."""
    return np.bincount(_positions(manifest, column, classes.values), minlength=len(classes))


def _positions(manifest: Manifest, column: str, values: Sequence[Any]) -> np.ndarray:
    """int64: the position in `values` of each label, one row's labels after another's."""
    position = {value: index for index, value in enumerate(values)}
    parts = [np.zeros(0, np.int64)]
    for _, labels in _labels(manifest, column):
        encoded = labels if pa.types.is_dictionary(labels.type) else pc.dictionary_encode(labels)
        # a dictionary may hold what no row has
        known = np.array(
            [position.get(value, -1) for value in values_of(encoded.dictionary)], dtype=np.int64
        )
        parts.append(known[encoded.indices.to_numpy(zero_copy_only=False)])
    return np.concatenate(parts)


def _labels(manifest: Manifest, column: str) -> Iterator[tuple[str, pa.Array]]:
    """URL and labels of each file, lists laid end to end.
    Raises UserError for nulls or a type that cannot be a class.
    """
    is_list = is_multi_label(manifest, column)
    names = dict(names_by_file(manifest, column))
    for url, values in column_by_file(manifest, column):
        labels = _plain(values.combine_chunks())
        num_null = labels.null_count
        if is_list:
            labels = labels.flatten()
        labels = _named(labels, names[url], url, column)
        if num_null := labels.null_count + num_null * is_list:
            raise UserError(
                f"{url}: {num_null} rows have no label in column {column!r} (null, or {NO_LABEL} beside "
                f"class names); leave them out (datasets: data.filter(lambda row: row[{column!r}] not in "
                f"(None, {NO_LABEL}))) or label them"
            )
        yield url, labels


def _named(labels: pa.Array, names: tuple[str, ...] | None, url: str, column: str) -> pa.Array:
    if names is None or not pa.types.is_integer(labels.type):
        return labels
    return named_array(labels, names, f"{url}: column {column!r}")


def _plain(labels: pa.Array) -> pa.Array:
    """The same values in a type whose kernels pyarrow has: no views, no dictionaries of views."""
    kind = labels.type
    if pa.types.is_dictionary(kind):
        return _plain(labels.dictionary_decode())
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return labels.cast(pa.string())
    if is_list_type(kind):
        inner = kind.value_type
        text = pa.types.is_string_view(inner) or pa.types.is_large_string(inner)
        plain = pa.list_(pa.string() if text else inner)
        return labels if plain == kind or pa.types.is_dictionary(inner) else labels.cast(plain)
    return labels
