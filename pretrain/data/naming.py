"""Names of class numbers over all files of a data set. Numbers are compared only where the same ones have the same names."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cluster.errors import UserError
from pretrain.data.annotations import class_names_at
from pretrain.data.footers import read_footer
from pretrain.data.manifest import Manifest

NO_LABEL = -1  # what Hugging Face's ClassLabel has for a row without a label
FOOTER_THREADS = 16


def names_by_file(manifest: Manifest, *path: str) -> list[tuple[str, tuple[str, ...] | None]]:
    """(URL, class names or None) of each file with rows, for a place such as ("label",) or ("objects", "category")."""
    files = [manifest.files[int(index)] for index in dict.fromkeys(manifest.file_of_group.tolist())]
    with ThreadPoolExecutor(FOOTER_THREADS, thread_name_prefix="names") as pool:
        footers = pool.map(read_footer, files)
        return [(file.url, class_names_at(footer.schema, *path)) for file, footer in zip(files, footers, strict=True)]


def declared_names(manifests: Sequence[Manifest], *path: str) -> tuple[str, ...] | None:
    """The class names that all files of these data sets declare, or None where none declares any.

    Raises UserError where two files number their classes differently, or only some have names.
    """
    found = [pair for manifest in manifests for pair in names_by_file(manifest, *path)]
    first_url, first = found[0]
    place = ".".join(path)
    for url, names in found:
        if names == first:
            continue
        if names is not None and first is not None:
            raise UserError(
                f"column {place!r} of {url} has other class names ({_shown(names)}) than that of {first_url} "
                f"({_shown(first)}), so "
                "the same numbers would mean other classes; give labels as text, or in one numbering"
            )
        named, unnamed = (url, first_url) if first is None else (first_url, url)
        raise UserError(
            f"column {place!r} of {unnamed} has no names for its numbers, but that of {named} has "
            f"({_shown(names or first or ())}), so "
            "nothing says that they count the same classes; give labels as text, or names to both"
        )
    return first


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
