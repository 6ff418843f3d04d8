"""A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""

from __future__ import annotations

import json
import re
from typing import Any

import safetensors.torch
from torch import Tensor

from cluster.errors import UserError
from pretrain.encoders.timm_encoder import FEATURES_ONLY
from pretrain.exporting.exported import Exported


def timm_files(exported: Exported) -> dict[str, bytes]:
    """The folder's files by name.

    One of timm's own networks becomes a plain folder of timm's. Its maps are those of `features_only=True`; layers behind them
    (a last norm, a head) were never trained. The convattn family needs `pretrain.exporting.timm_models` imported.

    Raises UserError for a classifier on one of timm's networks: its head is not timm's.
    """
    spec = exported.encoder.spec
    arguments = {key: value for key, value in spec["arguments"].items() if key != "in_channels"}
    own = not spec["name"].startswith("timm:")
    if own:
        tensors = exported.tensors()
        if exported.head is not None and exported.head["norm"].state_dict():
            arguments["normalised_features"] = True
    elif exported.head is not None:
        raise UserError(
            f"a classifier on {spec['name']} has a head of its own, which timm cannot build; --format huggingface takes it"
        )
    else:
        arguments = {key: value for key, value in arguments.items() if key not in FEATURES_ONLY}
        tensors = _plain(exported, arguments)
    num_classes = len(exported.class_names)
    config: dict[str, Any] = {
        "architecture": spec["name"].removeprefix("timm:").split(".")[0],
        "num_classes": num_classes,
        "num_features": exported.encoder.channels[-1],
        # of timm's own networks, layers behind the maps were never trained; timm does not ask, a teacher does
        "maps_only": not own,
        "label_names": exported.class_names,
        "model_args": {**arguments, "num_classes": num_classes, "in_chans": exported.encoder.in_channels},
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [exported.encoder.in_channels, exported.size, exported.size],
            "mean": list(exported.mean),
            "std": list(exported.std),
            "interpolation": "bilinear",
            "crop_pct": exported.facts.get("crop share", 1.0),
            "classifier": "head",
            "first_conv": None,
        },
    }
    return {
        "config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
        "model.safetensors": safetensors.torch.save(tensors, {"format": "pt"}),
    }


def _plain(exported: Exported, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a timm encoder by the names of the whole network, which feature extraction took apart."""
    import timm

    spec = exported.encoder.spec
    name, channels = spec["name"].removeprefix("timm:"), exported.encoder.in_channels
    whole = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **arguments)
    tensors = {key: tensor.clone() for key, tensor in whole.state_dict().items()}
    for key, tensor in exported.encoder.state_dict().items():
        inner = key.removeprefix("network.").removeprefix("model.")
        # feature extraction joins the names of what it took out of a list: stages_0.blocks -> stages.0.blocks
        target = inner if inner in tensors else re.sub(r"^([a-z_]+)_(\d+)\.", r"\1.\2.", inner)
        if target not in tensors or tensors[target].shape != tensor.shape:
            raise UserError(f"{spec['name']} cannot be exported for timm: its {key} has no place in the whole network")
        tensors[target] = tensor.detach().cpu().contiguous().clone()
    return tensors
