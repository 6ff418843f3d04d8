"""The encoder that training starts from, by name: a folder, one of timm's networks, or fresh weights.
Both stages use it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster import storage
from cluster.errors import UserError
from cluster.secrets import masked
from pretrain.data.views.viewing import default_mean, default_std
from pretrain.encoders.base import Encoder
from pretrain.encoders.building import build_encoder, rebuild_encoder
from pretrain.encoders.channels import with_channels
from pretrain.encoders.fingerprints import weights_fingerprint
from pretrain.encoders.saving import CONFIG, licence_of, load_encoder, read_encoder_config
from pretrain.encoders.sizes import IMG_SIZE, made_for
from pretrain.encoders.timm_weights import (
    absolute_weights,
    fresh_encoder,
    fresh_said,
    is_timm,
    read_timm,
    timm_encoder,
)

RANDOM = "random"


@dataclass(frozen=True, eq=False)
class EncoderSource:
    """An encoder to start from, and how its images are to be made.

    Attributes:
        image_size: side in pixels; None where the source names none.
        mean, std: of its images, one a channel, of values in [0, 1].
        name: as it was asked for.
        says_images: mean and std are the source's own, not those by default.
        weights_sha256: of its weights with their names as the source has them, hex; None for fresh ones.
        licence: of its weights; None where the source says nothing.
    """

    encoder: Encoder
    image_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str = RANDOM
    says_images: bool = False
    weights_sha256: str | None = None
    licence: str | None = None

    def described(self) -> dict[str, Any]:
        """What a run and its encoder remember of the start, JSON."""
        return {"name": masked(self.name), "weights_sha256": self.weights_sha256, "licence": self.licence}

    def for_channels(self, channels: int) -> EncoderSource:
        """The same for images of other channels, see `channels.with_channels`;
        what was said of mean and std is void then.
        """
        if channels == self.encoder.in_channels:
            return self
        encoder, said = with_channels(self.encoder, channels), False
        return dataclasses.replace(
            self, encoder=encoder, mean=default_mean(channels), std=default_std(channels), says_images=said
        )


def open_encoder(
    name: str,
    architecture: str,
    arguments: Mapping[str, Any],
    *,
    image_size: int | None = None,
    size_setting: str = "image_size",
) -> EncoderSource:
    """The encoder of a name, or a network like it with fresh weights.

        runs/first/encoder             a saved encoder, at any URL
        timm:NAME, timm:NAME@FILE, timm:local-dir:FOLDER, package:efficientnet_lite0    see `timm_weights`
        random                         `architecture` with fresh weights
        random:ANY OF THE ABOVE        that network with fresh weights

    `arguments` are those of `architecture` and of timm's networks; a saved encoder has its own. With
    `image_size`, which `size_setting` names, networks of timm that are made for one size are made for this
    one. Raises UserError when there is no such encoder, or it does not take images of that size.
    """
    kind, _, like = name.partition(":")
    fresh = kind == RANDOM
    network = like if fresh and like else name
    if name == RANDOM:
        encoder = made_for(
            image_size,
            lambda given: build_encoder(architecture, **given),
            arguments,
            name=architecture,
            own=None,
            setting=size_setting,
        )
        return EncoderSource(
            encoder, None, default_mean(encoder.in_channels), default_std(encoder.in_channels)
        )
    if is_timm(network):
        return _of_timm(name, network, fresh, dict(arguments), image_size, size_setting)
    config = read_encoder_config(network)
    if fresh:
        where = storage.join(network, CONFIG)
        encoder = rebuild_encoder(config.name, config.arguments, where=where)
        return EncoderSource(encoder, config.input_size, config.mean, config.std, name)
    encoder = made_for(
        image_size,
        lambda given: load_encoder(network),
        {IMG_SIZE: None},  # as it was saved
        name=network,
        own=config.input_size,
        setting=size_setting,
    )
    return EncoderSource(
        encoder,
        config.input_size,
        config.mean,
        config.std,
        name,
        says_images=True,
        weights_sha256=weights_fingerprint(encoder.state_dict()),
        licence=licence_of(network),
    )


def _of_timm(
    name: str,
    network: str,
    fresh: bool,
    arguments: dict[str, Any],
    image_size: int | None,
    size_setting: str,
) -> EncoderSource:
    channels = arguments.pop("in_channels", None)
    fresh = not arguments.pop("pretrained", True) or fresh
    weights = read_timm(network, tensors=not fresh)
    said: dict[str, Any] = {}

    def build(given: Mapping[str, Any]) -> Encoder:
        told = dataclasses.replace(weights, arguments=dict(given))
        encoder, about = fresh_encoder(told, channels=channels) if fresh else timm_encoder(told)
        said.update(about)
        return encoder

    arguments = {**weights.arguments, **arguments}
    # what the size of its images is by itself, before anything is built
    own = (dict(fresh_said(weights)).get("input_size") or [None])[-1]
    encoder = made_for(image_size, build, arguments, name=network, own=own, setting=size_setting)
    size = arguments.get("img_size") or (said.get("input_size") or [None])[-1]
    size = size[0] if isinstance(size, list | tuple) else size
    if fresh:  # it was trained on no images
        mean, std = default_mean(encoder.in_channels), default_std(encoder.in_channels)
        return EncoderSource(encoder, size, mean, std, name)
    source = EncoderSource(
        encoder,
        size,
        tuple(said.get("mean") or default_mean(encoder.in_channels)),
        tuple(said.get("std") or default_std(encoder.in_channels)),
        name,
        says_images="mean" in said and "std" in said,
        weights_sha256=weights_fingerprint(encoder.state_dict()),
        licence=said.get("license"),
    )
    return source if channels is None else source.for_channels(channels)


def absolute_encoder(name: str) -> str:
    """The same with a local path made absolute: workers may run in another folder."""
    kind, _, like = name.partition(":")
    if kind == RANDOM:
        return f"{RANDOM}:{absolute_encoder(like)}" if like else name
    return absolute_weights(name) if is_timm(name) else storage.absolute(name)


def fresh_like(name: str) -> str:
    """What names the same network with fresh weights."""
    return name if name.partition(":")[0] == RANDOM else f"{RANDOM}:{name}"


def check_is_start(name: str) -> None:
    """Raises UserError for a name of fresh weights, from which nothing is started."""
    if name.partition(":")[0] == RANDOM:
        raise UserError(
            f"encoder.url={name} does not name weights; give a saved encoder, timm:NAME, timm:NAME@FILE or "
            "timm:local-dir:FOLDER, or leave it out and name the network by encoder.name"
        )
