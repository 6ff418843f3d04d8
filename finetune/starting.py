"""The encoder that a task model starts from: a folder, a timm network, or fresh weights."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cluster import storage
from cluster.errors import UserError
from pretrain.data.augment import IMAGENET_MEAN, IMAGENET_STD
from pretrain.data.decode import BadImage, num_bands
from pretrain.data.manifest import Manifest
from pretrain.data.order import Segment
from pretrain.data.pixels import open_picture
from pretrain.data.shards import Shards
from pretrain.encoders import Encoder, build_encoder, load_encoder, read_encoder_config

RANDOM, TIMM = "random", "timm"


@dataclass(frozen=True)
class EncoderSource:
    """An encoder to start from, and how its images are to be made. `image_size` is None where the encoder names none."""

    encoder: Encoder
    image_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def open_encoder(name: str, architecture: str, arguments: dict[str, Any]) -> EncoderSource:
    """The encoder of a URL, of `timm:NAME`, or `random`, `random:URL` and `random:timm:NAME` with fresh weights.

    `architecture` is the network of a bare `random`; `arguments` are its and timm's. Raises UserError when there is none.
    """
    kind, _, like = name.partition(":")
    fresh = kind == RANDOM
    network = like if fresh and like else name
    if name == RANDOM:
        return EncoderSource(build_encoder(architecture, **arguments), None, IMAGENET_MEAN, IMAGENET_STD)
    if network.startswith(f"{TIMM}:"):
        encoder = build_encoder(network, **{"pretrained": not fresh, **arguments})
        return EncoderSource(encoder, None, IMAGENET_MEAN, IMAGENET_STD)
    config = read_encoder_config(network)
    encoder = build_encoder(config.name, **config.arguments) if fresh else load_encoder(network)
    return EncoderSource(encoder, config.input_size, config.mean, config.std)


def check_images(manifest: Manifest, image_column: str, channels: int, *, num: int = 8) -> None:
    """Raises UserError when the first images have other channels than the encoder; damaged ones say nothing."""
    shards = Shards(manifest, image_column=image_column)
    rows = next(shards.read(Segment(0, 0, min(num, int(manifest.rows_of_group[0])))))
    found = None
    for data in rows.images:
        if data is None:
            continue
        with suppress(BadImage):
            found = num_bands(data)
            open_picture(data, channels=channels).decode(1)
            return
    if found is not None:
        raise UserError(
            f"the encoder takes images of {channels} channel{'s'[: channels != 1]}, and those of {manifest.files[0].url} have "
            f"{found}; give an encoder for these"
        )


def absolute_encoder(name: str) -> str:
    """The same with a local path made absolute: workers may run in another folder."""
    kind, _, like = name.partition(":")
    if kind == RANDOM:
        return f"{RANDOM}:{absolute_encoder(like)}" if like else name
    return name if kind == TIMM else storage.absolute(name)


def fresh_like(name: str) -> str:
    """What names the same network with fresh weights."""
    return name if name.partition(":")[0] == RANDOM else f"{RANDOM}:{name}"
