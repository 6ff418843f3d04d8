"""LoRA (Hu et al., https://arxiv.org/abs/2106.09685) by peft:
small matrices learn beside the frozen layers of an encoder.

A layer of weights W computes (W + alpha / rank * B A) x with A [rank, in] and B [out, rank], B zero at
first. Of such a model only the adapters and the head are kept: the encoder is loaded from where it was, and
must be the same to the bit. `merge` adds B A to W, which leaves the plain network. A model is adapted before
its `TaskModel` is made around it, so no task needs to know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cluster.errors import UserError
from finetune.settings import LoraSettings
from pretrain.encoders import Encoder
from pretrain.encoders.fingerprints import weights_fingerprint
from pretrain.encoders.layers import PointwiseConv
from pretrain.encoders.sources import RANDOM, open_encoder

LORA = "lora"


def check_adaptable(encoder: str) -> None:
    """Raises UserError when the encoder of this name cannot be loaded a second time,
    or peft is not there.
    """
    if encoder.partition(":")[0] == RANDOM:
        raise UserError(
            f"mode=lora with encoder={encoder}: adapters need weights that can be loaded again; use "
            "mode=full, or an encoder folder or timm:NAME"
        )
    _peft()


def adapt(encoder: Encoder, settings: LoraSettings) -> dict[str, Any]:
    """Freezes an encoder and puts adapters beside its layers;
    returns what `load_adapted` must know, JSON.
    """
    alpha = settings.rank if settings.alpha is None else settings.alpha
    described = {"rank": settings.rank, "alpha": alpha, "encoder_sha256": fingerprint(encoder)}
    _inject(encoder, rank=settings.rank, alpha=alpha, dropout=settings.dropout)
    return described


def load_adapted(encoder_url: str, config: Mapping[str, Any]) -> Encoder:
    """The encoder that a model's `config` was adapted from, with adapters that know nothing yet.

    Raises UserError when it is not there or not the same.
    """
    lora, arguments = config["lora"], config["encoder"]["arguments"]
    try:
        encoder = open_encoder(encoder_url, "", arguments).encoder
    except UserError as error:
        raise UserError(
            f"this model holds adapters and a head for the encoder {encoder_url}, which cannot be loaded: "
            f"{error}; if it has moved: python -m finetune merge MODEL DEST --encoder URL"
        ) from error
    if fingerprint(encoder) != lora["encoder_sha256"]:
        raise UserError(
            f"the encoder {encoder_url} has different weights from those this model was adapted to; give "
            "the original one: python -m finetune merge MODEL DEST --encoder URL"
        )
    _inject(encoder, rank=lora["rank"], alpha=lora["alpha"], dropout=0.0)
    return encoder


def beside_the_encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a model's tensors that are not the encoder's own: its adapters and the head."""
    return {name: tensor for name, tensor in tensors.items() if not _is_encoders(name)}


def of_the_encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a model's tensors that are the encoder's own."""
    return {name: tensor for name, tensor in tensors.items() if _is_encoders(name)}


def merge(encoder: nn.Module) -> None:
    """Adds what the adapters learnt to the layers and takes the adapters away."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {
        name: module for name, module in encoder.named_modules() if isinstance(module, BaseTunerLayer)
    }
    for name, layer in adapted.items():
        with torch.no_grad():
            layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(encoder.get_submodule(parent), child, layer.get_base_layer())
    encoder.requires_grad_(True)


def layers_to_adapt(encoder: nn.Module) -> list[str]:
    """Names of the convolutions and linear layers that adapters can stand beside.

    Depthwise and other grouped convolutions are left as they are: they hold few weights, and an update of
    low rank is no smaller. So are kinds of their own (weights standardised on the fly, padding by the
    input's size), whose output is not that of W + B A.
    """
    return [
        name
        for name, module in encoder.named_modules()
        if type(module) is nn.Linear
        or (
            type(module) in (nn.Conv2d, PointwiseConv)
            and module.groups == 1
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
        )
    ]


def fingerprint(encoder: nn.Module) -> str:
    """A checksum of all weights and buffers with their names, types and shapes."""
    return weights_fingerprint(encoder.state_dict())


def _is_encoders(name: str) -> bool:
    return name.startswith("encoder.") and ".lora_" not in name


def _inject(encoder: Encoder, *, rank: int, alpha: float, dropout: float) -> None:
    names = layers_to_adapt(encoder)
    if not names:
        raise UserError(f"{encoder.spec['name']} has no layer that adapters can be added to; use mode=full")
    peft = _peft()
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        # a text is matched as a whole; a list would match ends of names
        target_modules="|".join(map(re.escape, names)),
    )
    peft.inject_adapter_in_model(config, encoder)


def _peft() -> Any:
    try:
        import peft  # takes seconds to import, and only this mode needs it
    except ImportError as error:
        raise UserError("mode=lora needs peft: pip install 'fovea[lora]'") from error
    return peft
