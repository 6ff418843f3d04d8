"""Weights in a folder: `model.safetensors` and `config.json`, at any fsspec URL.
Encoders and fine-tuned models share it.

The weights are written first and `config.json`, which holds their checksum, last: a folder that was cut off
has no config, and a damaged file is noticed before a network is made of it. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

from cluster import storage
from cluster.errors import UserError
from pretrain.data.views.augment import IMAGENET_MEAN, IMAGENET_STD
from pretrain.encoders.base import Encoder
from pretrain.encoders.building import rebuild_encoder

FORMAT_VERSION = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def save_weights_folder(url: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes tensors and their config (JSON, with its `format_version`);
    adds the checksum and the code's version.

    Tied weights, which share memory, are written once for each of their names: safetensors knows no sharing.
    """
    own = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    data = safetensors.torch.save(own)
    storage.write_bytes(storage.join(url, WEIGHTS), data)
    # a config that was read from another folder brings a checksum along: ours must win
    whole = {"code_version": code_version(), **config, "weights_sha256": hashlib.sha256(data).hexdigest()}
    storage.write_json(storage.join(url, CONFIG), whole)


def code_version() -> str:
    """The installed version of Fovea, or that it is not installed (a checkout on the path)."""
    try:
        return importlib.metadata.version("fovea")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def read_config(url: str, format_version: int) -> dict[str, Any]:
    """The config of a folder. Raises UserError when there is none, or it is of another format version."""
    config_url = storage.join(url, CONFIG)
    if not storage.exists(config_url):
        raise UserError(f"{url} is not an encoder or model folder: it holds no {CONFIG}{_what_lies(url)}")
    config = storage.read_json(config_url)
    if not isinstance(config, dict):
        raise UserError(f"{config_url} must hold a JSON object, not {type(config).__name__}")
    version = config.get("format_version")
    if version is None and (
        made_for := next((name for key, name in EXPORTED.items() if key in config), None)
    ):
        raise UserError(
            f"{url} is a folder for {made_for}, not one of Fovea's; give the folder that it was exported "
            "from"
        )
    if version != format_version:
        raise UserError(
            f"{config_url} has format version {version!r}, this program reads version {format_version}; "
            "load it with the version of Fovea that wrote it"
            + (f" ({config['code_version']})" if "code_version" in config else "")
        )
    return config


# keys of the config.json of other programs, and of what we export for them
EXPORTED = {
    "auto_map": "Hugging Face",
    "model_type": "Hugging Face",
    "architecture": "timm",
    "preprocessing": "ONNX",
}


def _what_lies(url: str) -> str:
    """What is at a URL in place of an encoder or model, and what is meant instead, for an error message."""
    there = storage.names_in(url)
    if storage.is_local(url) and storage.local_path(url).is_file():
        return " (it is a file)"
    if "settings.yaml" in there:
        for name in ("model", "encoder"):
            if name in there:
                return f"; it is a run's folder, whose {name} is {storage.join(url, name)}"
        return "; it is the folder of a run that is not finished"
    if any(name.endswith((".parquet", ".pq")) for name in there):
        return "; it holds Parquet shards, which are data"
    return f" (there: {', '.join(there[:8]) or 'nothing'})"


def load_weights_folder(url: str, format_version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a folder. Raises UserError when a file is missing, damaged,
    or of another format version.
    """
    config = read_config(url, format_version)
    weights_url = storage.join(url, WEIGHTS)
    data = storage.read_bytes(weights_url)
    if hashlib.sha256(data).hexdigest() != config.get("weights_sha256"):
        raise UserError(
            f"{weights_url} is damaged: its checksum is not the one in {CONFIG}; copy the folder again"
        )
    try:
        return config, safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{weights_url} is not a valid safetensors file: {error}") from error


def licence_of(url: str) -> str | None:
    """The licence of a folder's weights, as its config or the head of its model card (README.md) says;
    None without a word.
    """
    there = storage.names_in(url)
    if CONFIG in there:
        config = storage.read_json(storage.join(url, CONFIG))
        said = config.get("licence") if isinstance(config, dict) else None
        if isinstance(said, str):
            return said
    if CARD not in there:
        return None
    text = storage.read_bytes(storage.join(url, CARD)).decode(errors="replace")
    head = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    try:
        said = yaml.safe_load(head)
    except yaml.YAMLError:
        return None
    licence = said.get("license") if isinstance(said, dict) else None
    return licence if isinstance(licence, str) else None


def load_state_strict(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Loads tensors into a module. Raises UserError that lists every missing,
    unexpected and differently shaped key.
    """
    wanted = module.state_dict()
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    reshaped = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & tensors.keys())
        if wanted[key].shape != tensors[key].shape
    ]
    if missing or unexpected or reshaped:
        raise UserError(
            f"the weights in {where} do not fit the network: missing {missing}, unexpected {unexpected}, "
            f"of another shape {reshaped}"
        )
    module.load_state_dict(dict(tensors))


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder folder says about its encoder. Unknown is None or empty."""

    name: str
    arguments: dict[str, Any]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int | None
    method: str | None
    samples_seen: int | None
    dataset_fingerprint: str | None
    code_version: str
    teacher: dict[str, Any] | None = None
    started_from: dict[str, Any] | None = None


def save_encoder(
    encoder: Encoder,
    url: str,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    input_size: int | None = None,
    method: str | None = None,
    samples_seen: int | None = None,
    dataset_fingerprint: str | None = None,
    code_version: str | None = None,
    teacher: Mapping[str, Any] | None = None,
    started_from: Mapping[str, Any] | None = None,
) -> None:
    """Writes an encoder folder, with the normalisation of its images and how it came about.

    `teacher` and `started_from` describe the networks that it learnt from and began with: `name`,
    `weights_sha256` and `licence` at least, JSON.
    `code_version` is that of the installed package when it is not given
    (`name+commit`, where more is known).
    """
    config = {
        "format_version": FORMAT_VERSION,
        "kind": "encoder",
        **encoder.spec,
        "channels": list(encoder.channels),
        "strides": list(encoder.strides),
        "in_channels": encoder.in_channels,
        "mean": list(mean),
        "std": list(std),
        "input_size": input_size,
        "method": method,
        "samples_seen": samples_seen,
        "dataset_fingerprint": dataset_fingerprint,
    }
    for key, described in (("teacher", teacher), ("started_from", started_from)):
        if described is not None:
            config[key] = dict(described)
    if code_version is not None:
        config["code_version"] = code_version
    save_weights_folder(url, encoder.state_dict(), config)


def read_encoder_config(url: str) -> EncoderConfig:
    """The config of an encoder folder. Raises UserError when it is none, damaged,
    or of another format version.
    """
    return _encoder_config(url, read_config(url, FORMAT_VERSION))


def load_encoder(url: str) -> Encoder:
    """The encoder of a folder at any fsspec URL. Raises UserError that names what is missing,
    damaged or does not fit.
    """
    raw, tensors = load_weights_folder(url, FORMAT_VERSION)
    config = _encoder_config(url, raw)
    try:
        encoder = rebuild_encoder(config.name, config.arguments, where=storage.join(url, CONFIG))
    except UserError as error:
        raise UserError(
            f"{storage.join(url, CONFIG)} does not describe an encoder of this program: {error}"
        ) from error
    load_state_strict(encoder, tensors, url)
    for key in ("channels", "strides", "in_channels"):
        said, is_ = getattr(config, key), getattr(encoder, key)
        if said != is_:
            raise UserError(
                f"{storage.join(url, CONFIG)} says {key}={said}, but the encoder it describes has {is_}"
            )
    return encoder


def _encoder_config(url: str, raw: dict[str, Any]) -> EncoderConfig:
    if raw.get("kind") != "encoder":
        raise UserError(
            f"{url} is a {raw.get('kind', 'unknown')} folder, not an encoder's; give the folder of an "
            "encoder"
        )
    where = storage.join(url, CONFIG)

    def field(key: str, *kinds: type) -> Any:
        if key not in raw:
            raise UserError(f"{where} is damaged: it has no {key!r}")
        value = raw[key]
        if not isinstance(value, kinds) or isinstance(value, bool):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise UserError(f"{where} is damaged: {key} is {value!r}, not {expected}")
        return value

    def numbers(key: str, *kinds: type) -> tuple[Any, ...]:
        values = field(key, list)
        if not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
            raise UserError(f"{where} is damaged: {key} is {values!r}, not a list of numbers")
        return tuple(values)

    nothing = type(None)
    return EncoderConfig(
        name=field("name", str),
        arguments=field("arguments", dict),
        channels=numbers("channels", int),
        strides=numbers("strides", int),
        in_channels=field("in_channels", int),
        mean=numbers("mean", int, float),
        std=numbers("std", int, float),
        input_size=field("input_size", int, nothing),
        method=field("method", str, nothing),
        samples_seen=field("samples_seen", int, nothing),
        dataset_fingerprint=field("dataset_fingerprint", str, nothing),
        code_version=field("code_version", str),
        # folders of older versions have neither
        teacher=field("teacher", dict, nothing) if "teacher" in raw else None,
        started_from=field("started_from", dict, nothing) if "started_from" in raw else None,
    )
