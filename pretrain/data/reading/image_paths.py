"""Images that a data set names by path and does not hold:
`data.image_root` says below which folder they lie.

Like the options of stores, the folder is one of the process. What a column of paths holds is untrusted data:
it may name files below the folder and nothing outside of it.
"""

from __future__ import annotations

import argparse
import posixpath
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from cluster import storage
from cluster.errors import UserError
from pretrain.data.images.planes import MAGIC

# stored decoded, copying an image takes a third of the time of its crops; what lies beside such large ones
# in memory is little
MIN_VIEW_BYTES = 2**16

_roots: list[str] = []


def use_image_root(folder: str | None) -> None:
    """Makes this process look below `folder` for images that Parquet files name by their paths;
    None for nowhere.
    """
    _roots[:] = [] if folder is None else [storage.absolute(folder).rstrip("/") or "/"]


def image_root() -> str | None:
    """The folder that `use_image_root` said."""
    return _roots[0] if _roots else None


def add_image_root_option(parser: argparse.ArgumentParser) -> None:
    """`--image-root FOLDER`, which the command gives to `use_image_root`."""
    parser.add_argument(
        "--image-root",
        metavar="FOLDER",
        help="folder of the images, if the Parquet files hold only their paths (as data.image_root)",
    )


def location_of(path: str, root: str) -> str | None:
    """The URL of an image below `root`; None for a path that leads out of it."""
    start = f"{root.rstrip('/')}/"
    path = path.replace("\\", "/") if "/" not in path else path
    if path.startswith(start):
        path = path[len(start) :]
    if posixpath.isabs(path) or "://" in path or "::" in path or ".." in path.split("/") or not path.strip():
        return None
    return storage.join(root, path)


def read_image(path: str | None) -> bytes | None:
    """The encoded image; None where there is no path, it leads out of the folder,
    or nothing can be read there.
    """
    root = image_root()
    url = location_of(path, root) if path and root is not None else None
    try:
        return None if url is None else storage.read_bytes(url, from_data=True)
    except UserError:
        return None


def check_paths(paths: Sequence[str | None], what: str) -> float:
    """Mean bytes of those files that are there. Raises UserError, which names `what`,
    where there is none of them.
    """
    root = image_root()
    assert root is not None
    found = [read_image(path) for path in paths]
    sizes = [len(data) for data in found if data is not None]
    if not sizes:
        first = next((path for path in paths if path), None)
        raise UserError(
            f"{what}: {first!r} is no image below data.image_root={root}; name the folder that paths begin "
            "in"
        )
    return sum(sizes) / len(sizes)


def _unless_encoded(view: memoryview) -> bytes | memoryview:
    return view if view[: len(MAGIC)] == MAGIC else bytes(view)


def encoded_images(images: pa.Array, mapped: Callable[..., Iterable[Any]] = map) -> list[Any]:
    """The encoded images of a column, as bytes, or as views of them where they are large and stored decoded;
    None where null.

    Those that lie outside of it are read by `mapped(function, paths)`.
    """
    paths: list[str | None] = []
    if pa.types.is_struct(images.type):
        # flatten() applies the struct's own validity to its child, field() does not
        fields = dict(zip([field.name for field in images.type], images.flatten(), strict=True))
        images = fields["bytes"]
        if image_root() is not None and images.null_count and "path" in fields:
            paths = fields["path"].to_pylist()
    encoded: list[Any] = []
    if len(images) and images.nbytes >= MIN_VIEW_BYTES * len(images):
        encoded = [
            _unless_encoded(memoryview(value.as_buffer()).cast("B")) if value.is_valid else None
            for value in images
        ]
    else:
        # copies: views would keep all rows that were decoded with one in
        # memory until the last of them is used
        encoded = images.to_pylist()
    if paths:
        outside = [index for index, data in enumerate(encoded) if data is None]
        read = mapped(read_image, [paths[index] for index in outside])
        for index, data in zip(outside, read, strict=True):
            encoded[index] = data
    return encoded
