"""A folder for transformers: weights, configs, and the source of the network, so that Fovea itself is not needed to load it."""

from __future__ import annotations

import inspect
import json
import re
from types import ModuleType
from typing import Any

import safetensors.torch

import cluster.errors
import cluster.secrets
from pretrain.encoders import base, building, classic, convattn, layers, timm_arguments, timm_encoder
from pretrain.exporting.exported import Exported

# the modules that the copied model needs; each becomes a file of its own name
COPIED: tuple[ModuleType, ...] = (
    cluster.errors,
    cluster.secrets,
    base,
    building,
    classic,
    convattn,
    layers,
    timm_arguments,
    timm_encoder,
)
MODEL = "modeling_fovea"
# one class for both, so that the copied files lie side by side
OURS = re.compile(r"^(\s*)from (?:cluster|pretrain\.encoders)\.(\w+) import", re.MULTILINE)


def hugging_face_files(exported: Exported) -> dict[str, bytes]:
    """The folder's files by name."""
    files = {f"{module.__name__.rpartition('.')[2]}.py": _copied(inspect.getsource(module)) for module in COPIED}
    files[f"{MODEL}.py"] = _copied(_model_source())
    files["config.json"] = _json(_config(exported))
    files["preprocessor_config.json"] = _json(_preprocessor(exported))
    files["model.safetensors"] = safetensors.torch.save(exported.tensors(), {"format": "pt"})
    return files


def _config(exported: Exported) -> dict[str, Any]:
    kinds = {"AutoConfig": f"{MODEL}.FoveaConfig", "AutoModel": f"{MODEL}.FoveaModel"}
    config: dict[str, Any] = {
        "model_type": "fovea",
        "architectures": ["FoveaModel"],
        "encoder": exported.encoder.spec["name"],
        "arguments": exported.encoder.spec["arguments"],
    }
    if exported.head is not None:
        del kinds["AutoModel"]  # it would look for the weights by other names
        kinds["AutoModelForImageClassification"] = f"{MODEL}.FoveaForImageClassification"
        config |= {
            "architectures": ["FoveaForImageClassification"],
            "normalised_features": bool(exported.head["norm"].state_dict()),
            "id2label": dict(enumerate(exported.class_names)),
            "label2id": {name: index for index, name in enumerate(exported.class_names)},
        }
    return {**config, "auto_map": kinds}


def _preprocessor(exported: Exported) -> dict[str, Any]:
    side = {"height": exported.size, "width": exported.size}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": side,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(exported.mean),
        "image_std": list(exported.std),
    }


def _model_source() -> str:
    # read and not imported: transformers takes seconds, and is needed only where the folder is loaded
    from importlib.resources import files

    return files("pretrain.exporting").joinpath(f"{MODEL}.py").read_text(encoding="utf-8")


def _copied(source: str) -> bytes:
    return OURS.sub(r"\1from .\2 import", source).encode()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
