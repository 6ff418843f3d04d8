"""Pretraining that starts from existing weights: what the settings must agree with,
and how far a run has moved from them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from cluster.errors import UserError
from pretrain.encoders import Encoder, build_encoder
from pretrain.encoders.sizes import made_for
from pretrain.encoders.sources import EncoderSource, absolute_encoder, check_is_start, open_encoder
from pretrain.encoders.timm_weights import fresh_size, is_timm
from pretrain.settings import PretrainEncoderSettings, PretrainSettings

DEFAULT_ENCODER = "convattn_small"
WITHOUT_WEIGHTS = ("drop_path",)  # arguments that a started network may have otherwise


def resolved(settings: PretrainSettings) -> tuple[PretrainSettings, list[str]]:
    """The settings with what the start says filled in, so that OUT/settings.yaml holds it,
    and notes for the user.

    The weights' checksum is among them: a run that is continued must start from the same ones. Raises
    UserError for a start that is not there or that the settings contradict.
    """
    encoder = settings.encoder
    if encoder.url is None:
        if encoder.weights_sha256 is not None:
            raise UserError("encoder.weights_sha256 is that of encoder.url; give both or neither")
        if settings.method.keep:
            raise UserError(
                f"method.keep={settings.method.keep:g} pulls back to the weights of encoder.url; give that, "
                "or method.keep=0"
            )
        return dataclasses.replace(
            settings, encoder=dataclasses.replace(encoder, name=encoder.name or DEFAULT_ENCODER)
        ), []
    settings = dataclasses.replace(
        settings, encoder=dataclasses.replace(encoder, url=absolute_encoder(encoder.url))
    )
    own = _opened(settings.encoder, settings.views.size)
    source = _checked(own, settings)
    views, channels, notes = settings.views, settings.views.channels, []
    if channels != own.encoder.in_channels:
        how = (
            "summed over them"
            if channels == 1
            else f"repeated and scaled by {own.encoder.in_channels}/{channels}"
        )
        notes.append(
            f"{encoder.url} takes images of {own.encoder.in_channels} channels, views.channels={channels}: "
            f"the weights of its first convolution are {how}"
        )
    if source.says_images:
        views = dataclasses.replace(
            views, mean=views.mean or list(source.mean), std=views.std or list(source.std)
        )
    pinned = dataclasses.replace(settings.encoder, weights_sha256=source.weights_sha256)
    licence = f", licence {source.licence}" if source.licence else ""
    notes.append(f"starts from {encoder.url} ({source.encoder.spec['name']}{licence})")
    return dataclasses.replace(settings, encoder=pinned, views=views), notes


def start_of(settings: PretrainSettings) -> EncoderSource | None:
    """The encoder to start from, for images of `views.channels`; None for fresh weights.

    Raises UserError when it is not there, has other weights than the run began with,
    or the settings contradict it.
    """
    encoder = settings.encoder
    if encoder.url is None:
        return None
    return _checked(_opened(encoder, settings.views.size), settings)


def _checked(source: EncoderSource, settings: PretrainSettings) -> EncoderSource:
    encoder = settings.encoder
    if encoder.weights_sha256 not in (None, source.weights_sha256):
        raise UserError(
            f"{encoder.url} now holds different weights from those this run started from "
            f"(encoder.weights_sha256 was {str(encoder.weights_sha256)[:12]}..., is "
            f"{str(source.weights_sha256)[:12]}...); put the former ones back, or choose another out"
        )
    return source.for_channels(settings.views.channels)


def fresh_encoder(settings: PretrainSettings) -> Encoder:
    """A network with fresh weights, as the settings name it."""
    name, arguments = settings.encoder.name or DEFAULT_ENCODER, dict(settings.encoder.arguments)
    if settings.views.channels != 3:
        arguments.setdefault("in_channels", settings.views.channels)
    if name.startswith("convattn_") and name != "convattn_classic":
        # as many pixels in the last map for small images as for large ones
        size = settings.views.size
        arguments.setdefault("stem_stride", 1 if size <= 48 else 2 if size <= 128 else 4)
    return made_for(
        settings.views.size,
        lambda given: build_encoder(name, **given),
        arguments,
        name=name,
        own=fresh_size(name),
        setting="views.size",
    )


def layer_factor(parameter_name: str, encoder: Encoder, decay: float) -> float:
    """A parameter's fraction of the learning rate: 1 for heads and the last layer,
    `decay` less with each layer below it.

    Layer-wise learning-rate decay, ELECTRA, https://arxiv.org/abs/2003.10555, and BEiT.
    """
    if decay == 1 or not parameter_name.startswith("encoder."):
        return 1.0
    layer = encoder.layer_of(parameter_name.removeprefix("encoder."))
    return float(decay ** (encoder.num_layers - 1 - layer))


@torch.no_grad()
def moved(encoder: Encoder, start: dict[str, Tensor]) -> dict[str, Any]:
    """How far parameters are from the start: norm of the difference over that of the start,
    of all and of each layer.

    Layers are `Encoder.layer_of`'s, the stem first; None for one whose parameters were all 0.
    """
    squares = torch.zeros(2, encoder.num_layers, dtype=torch.float64)
    for name, parameter in encoder.named_parameters():
        was, layer = start[name].double(), encoder.layer_of(name)
        squares[0, layer] += (parameter.detach().double().cpu() - was.cpu()).square().sum()
        squares[1, layer] += was.square().sum().cpu()
    overall, by_layer = squares.sum(1), []
    for distance, norm in squares.T.tolist():
        by_layer.append((distance / norm) ** 0.5 if norm else None)
    return {"overall": float((overall[0] / overall[1].clamp_min(1e-30)).sqrt()), "by_layer": by_layer}


def parameters_of(encoder: Encoder) -> dict[str, Tensor]:
    """A copy of an encoder's parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}


def _opened(settings: PretrainEncoderSettings, size: int) -> EncoderSource:
    """The source as it is. Raises UserError where name or arguments contradict it."""
    url, name = str(settings.url), settings.name
    check_is_start(url)
    arguments = settings.arguments if is_timm(url) else {}
    source = open_encoder(url, "", arguments, image_size=size, size_setting="views.size")
    spec = source.encoder.spec
    if name is not None and name != spec["name"] and name != spec["name"].partition(".")[0]:
        raise UserError(
            f"encoder.url={url} is a {spec['name']}, but encoder.name says {name}; encoder.name=null takes "
            "it as it is"
        )
    changed = {}
    for key, value in settings.arguments.items():
        has = spec["arguments"].get(key)
        if has == value or (
            isinstance(has, list | tuple) and isinstance(value, list) and list(has) == value
        ):
            continue
        if key == "stem_stride" and "stem_stride" in spec["arguments"]:
            raise UserError(
                f"encoder.arguments.stem_stride={value}, but {url} was trained with a stem of stride {has}, "
                "whose weights fit no other stride; leave it out, or start with fresh weights"
            )
        if key in WITHOUT_WEIGHTS and key in spec["arguments"]:
            changed[key] = value
            continue
        raise UserError(
            f"encoder.arguments.{key}={value!r}, but {url} has {has!r}; with encoder.url the network stays "
            "as it was saved: leave it out"
        )
    if not changed:
        return source
    encoder = build_encoder(spec["name"], **{**spec["arguments"], **changed})
    encoder.load_state_dict(source.encoder.state_dict())
    return dataclasses.replace(source, encoder=encoder)
