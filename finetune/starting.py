"""Checks of the encoder that a task model starts from; `pretrain.encoders.sources` opens it."""

from __future__ import annotations

from contextlib import suppress

from cluster.errors import UserError
from pretrain.data.images.bands import num_bands
from pretrain.data.images.decode import BadImage
from pretrain.data.images.pixels import open_image
from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.order import Segment
from pretrain.data.reading.shards import Shards


def check_images(manifest: Manifest, image_column: str, channels: int, *, num: int = 8) -> None:
    """Raises UserError when the first images, damaged ones aside, have other channels than the encoder."""
    shards = Shards(manifest, image_column=image_column)
    rows = next(shards.read(Segment(0, 0, min(num, int(manifest.rows_of_group[0])))))
    found = None
    for data in rows.images:
        if data is None:
            continue
        with suppress(BadImage):
            found = num_bands(data)
            open_image(data, channels=channels).decode(1)
            return
    if found is not None:
        raise UserError(
            f"the encoder takes images of {channels} channel{'s'[: channels != 1]}, and those of "
            f"{manifest.files[0].url} have {found}; give an encoder for these"
        )
