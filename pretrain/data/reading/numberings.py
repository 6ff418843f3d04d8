"""Class names over all files: whose numbers stand for names, in which order, whether they are comparable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from cluster.errors import UserError
from pretrain.data.reading.annotation_columns import class_type_at
from pretrain.data.reading.footers import read_footer
from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.naming import names_at

FOOTER_THREADS = 16


@dataclass(frozen=True)
class _OfFile:
    """How a file has its classes: as numbers or text, and the names that numbers stand for."""

    url: str
    are_numbers: bool
    names: tuple[str, ...] | None

    def __str__(self) -> str:
        if not self.are_numbers:
            return "text"
        return "whole numbers" + (
            f" that stand for {_shown(self.names)}" if self.names else " without names"
        )


def names_by_file(manifest: Manifest, *path: str) -> list[tuple[str, tuple[str, ...] | None]]:
    """(URL, class names or None) of each file with rows; `location` is such as ("objects", "category")."""
    return [(file.url, file.names) for file in _by_file(manifest, path)]


def _by_file(manifest: Manifest, path: Sequence[str]) -> list[_OfFile]:
    files = [manifest.files[int(index)] for index in dict.fromkeys(manifest.file_of_group.tolist())]
    with ThreadPoolExecutor(FOOTER_THREADS, thread_name_prefix="names") as pool:
        schemas = (footer.schema for footer in pool.map(read_footer, files))
        found = []
        for file, schema in zip(files, schemas, strict=True):
            kind = class_type_at(schema, *path)
            are_numbers = kind is not None and pa.types.is_integer(kind)
            found.append(_OfFile(file.url, are_numbers, names_at(schema, *path) if are_numbers else None))
        return found


def declared_names(manifests: Iterable[Manifest], *path: str) -> dict[Manifest, tuple[str, ...]]:
    """The class names that the files of each data set declare, in the order in which they do; none of text.

    Raises UserError where numbers in one file have no names, and another has names or text:
    nothing says what they mean.
    """
    files = {manifest: _by_file(manifest, path) for manifest in manifests}
    everywhere = [file for of_manifest in files.values() for file in of_manifest]
    bare = next((file for file in everywhere if file.are_numbers and file.names is None), None)
    other = next((file for file in everywhere if not file.are_numbers or file.names is not None), None)
    if bare is not None and other is not None:
        raise UserError(
            f"column {'.'.join(path)!r} is {bare} in {bare.url}, and {other} in {other.url}, so it is "
            "unknown which classes are the same; give labels as text, or names to both"
        )
    return {
        manifest: tuple(dict.fromkeys(name for file in of_manifest for name in file.names or ()))
        for manifest, of_manifest in files.items()
    }


def numbered_differently(manifest: Manifest, *path: str) -> bool:
    """Whether two files declare other names, or others in another order; they are read by name."""
    return len({names for _, names in names_by_file(manifest, *path) if names is not None}) > 1


def _shown(names: Sequence[str] | None) -> str:
    return ", ".join((names or ())[:8]) + (", ..." if len(names or ()) > 8 else "")
