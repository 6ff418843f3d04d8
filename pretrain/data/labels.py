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
from pretrain.data.annotations import find_class_column, is_list_type, name_of_class, values_of
from pretrain.data.columns import column_by_file
from pretrain.data.footers import read_footer
from pretrain.data.manifest import Manifest
from pretrain.data.naming import NO_LABEL, declared_names, names_by_file


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

    def known(self, labels: Sequence[Any]) -> np.ndarray:
        """bool [labels]: which of them are classes."""
        return np.array([label in self._index for label in labels], dtype=bool)

    def multi_hot(self, labels: Sequence[Sequence[Any]]) -> np.ndarray:
        """float32 [rows, classes] of lists of labels: 1 where a list has the class. Raises UserError for one that is none."""
        hot = np.zeros((len(labels), len(self)), np.float32)
        for row, of_row in enumerate(labels):
            hot[row, self.ids(of_row)] = 1.0
        return hot


def read_class_names_of(manifest: Manifest, validation: Manifest, column: str) -> ClassNames:
    """The classes of the training data, in a fixed order; the column must be text or whole numbers, or lists of these.

    Names of whole numbers are those of a Hugging Face ClassLabel when the shards carry them. Raises UserError for another
    type, rows without a label, fewer than two classes, validation classes that training never shows, and where two files (of
    training or validation) number their classes differently.
    """
    found, unseen = distinct_labels(manifest, column), distinct_labels(validation, column)
    kinds = {type(value) for value in found | unseen}
    if len(kinds) > 1:
        told = [
            f"{one.files[0].url} ({_kind_in_words(one, labels, column)})"
            for one, labels in ((manifest, found), (validation, unseen))
        ]
        raise UserError(
            f"column {column!r} is text in one data set and whole numbers in another: "
            f"{' and '.join(dict.fromkeys(told))}; make them "
            "alike"
        )
    # numbers without names are compared by nobody
    names = None if kinds == {str} else declared_names([manifest, validation], column)
    if len(found) < 2:
        raise UserError(
            f"column {column!r} of {manifest.files[0].url} holds {len(found)} class; two are needed at least"
        )
    if never := unseen - found:
        told_never, told_found = (
            ", ".join(sorted(name_of_class(value, names) for value in values)) for values in (never, found)
        )
        raise UserError(
            f"the validation data {validation.files[0].url} has classes that the training data never shows: "
            f"{told_never}; training knows {told_found}"
        )
    values = tuple(sorted(found))
    if names is not None and all(isinstance(value, int) and 0 <= value < len(names) for value in values):
        # all declared classes, so that a model keeps the data set's numbering
        return ClassNames(tuple(range(len(names))), list(names))
    return ClassNames(values, [str(value) for value in values])


def check_numbering(manifest: Manifest, column: str, classes: ClassNames) -> None:
    """Raises UserError where the data names the numbers of the model's classes otherwise than the model does."""
    names = declared_names([manifest], column)
    for value, name in zip(classes.values, classes.names, strict=True):
        if (
            names is not None
            and isinstance(value, int)
            and 0 <= value < len(names)
            and names[value] != name != str(value)
        ):
            raise UserError(
                f"column {column!r} of {manifest.files[0].url} calls class {value} {names[value]!r}, and the "
                f"model calls it {name!r}; "
                "give the data in the numbering that the model was trained on, or labels as text"
            )


def _kind_in_words(manifest: Manifest, labels: set[Any], column: str) -> str:
    if all(isinstance(label, str) for label in labels):
        return f"text: {', '.join(sorted(map(str, labels))[:8])}"
    names = names_by_file(manifest, column)[0][1]
    return "whole numbers" + (f" that stand for {', '.join(names[:8])}" if names else "")


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


def labelled_rows(manifest: Manifest, column: str) -> np.ndarray | None:
    """int64: ids of the rows that have a label; None where all have. Hugging Face's -1 beside class names is none."""
    names = dict(names_by_file(manifest, column))
    parts = []
    for url, values in column_by_file(manifest, column):
        labels = values.combine_chunks()
        has_label = labels.is_valid()
        if pa.types.is_integer(labels.type) and names.get(url) is not None:
            has_label = pc.and_(has_label, pc.fill_null(pc.not_equal(labels, NO_LABEL), False))
        parts.append(has_label.to_numpy(zero_copy_only=False))
    known = np.concatenate(parts)
    return None if known.all() else np.flatnonzero(known)


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
        labels = _plain(values.combine_chunks())
        num_null = labels.null_count
        if is_list:
            labels = labels.flatten()
            num_null += labels.null_count
        is_signed = pa.types.is_signed_integer(labels.type)
        num_unknown = int(pc.sum(pc.equal(labels, NO_LABEL)).as_py() or 0) if is_signed else 0
        if num_unknown and dict(names_by_file(manifest, column)).get(url) is None:
            num_unknown = 0  # a class of that number
        if num_null or num_unknown:
            what = f"{num_null + num_unknown} rows have no label"
            what += f" ({num_unknown} have {NO_LABEL}, Hugging Face's number for none)" if num_unknown else ""
            raise UserError(
                f"{url}: {what} in column {column!r}; leave them out (datasets: data.filter(lambda row: "
                f"row[{column!r}] not in (None, "
                f"{NO_LABEL}))) or label them"
            )
        yield url, labels


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
