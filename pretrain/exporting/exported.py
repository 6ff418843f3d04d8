"""What is exported: a network from normalised images to features or logits, and what must be known to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cluster import storage
from cluster.errors import UserError
from pretrain.encoders import Encoder, load_encoder, pooled, read_encoder_config
from pretrain.training.run_folder import RESULT, SETTINGS

DEFAULT_SIZE = 224


@dataclass(frozen=True)
class Exported:
    """An encoder, and the head of a classifier where there is one.

    Attributes:
        head: norm and linear layer on the pooled last map, by the names `norm` and `head`; None for an encoder alone.
        class_names: of the head's logits.
        facts: what the folder's config says, for the model card.
        run: of the run that made it, `settings` (text) and `result`, where they lie beside the folder.
    """

    source: str
    encoder: Encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    head: nn.ModuleDict | None = None
    class_names: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """The weights by their names in the exported network, contiguous."""
        named = {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        if self.head is not None:
            named |= self.head.state_dict()
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}


class FromPixels(nn.Module):
    """Images with values in [0, 1] to the maps and pooled features of an encoder, or to a classifier's logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, exported: Exported) -> None:
        super().__init__()
        self.encoder, self.head = exported.encoder, exported.head
        self.register_buffer("mean", torch.tensor(exported.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(exported.std).view(-1, 1, 1))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """`maps...` and `features`, or `logits`."""
        maps = self.encoder((images_BCHW - self.mean) / self.std)
        features = pooled(maps)
        if self.head is None:
            return (*maps, features)
        return (self.head["head"](self.head["norm"](features)),)

    @property
    def output_names(self) -> list[str]:
        """What `forward` gives."""
        if self.head is not None:
            return ["logits"]
        return [*(f"map{number}" for number in range(1, 1 + len(self.encoder.channels))), "features"]


def open_encoder(url: str) -> Exported:
    """An encoder folder and what is known of it. Raises UserError when it is none."""
    config = read_encoder_config(url)
    facts = {
        "kind": "encoder",
        "network": config.name,
        "arguments": config.arguments,
        "method": config.method,
        **_said_of("teacher", config.teacher),
        **_said_of("started from", config.started_from),
        "samples seen": config.samples_seen,
        "data fingerprint": config.dataset_fingerprint,
        "Fovea": config.code_version,
    }
    size = config.input_size or DEFAULT_SIZE
    encoder = load_encoder(url).eval()
    return Exported(url, encoder, config.mean, config.std, size, facts=facts, run=run_beside(url))


def _said_of(what: str, described: Mapping[str, Any] | None) -> dict[str, Any]:
    """Facts on a network that an encoder learnt from or began with: its name, its weights, its licence."""
    if not described:
        return {}
    return {
        what: described.get("name"),
        f"{what}: weights (sha256)": described.get("weights_sha256"),
        f"{what}: licence": described.get("licence") or "not said",
    }


def run_beside(url: str) -> dict[str, Any]:
    """Settings and result of the run in whose folder an encoder or model lies."""
    out = storage.absolute(url).rstrip("/").rpartition("/")[0]
    run: dict[str, Any] = {}
    if storage.exists(storage.join(out, SETTINGS)):
        run["settings"] = storage.read_bytes(storage.join(out, SETTINGS)).decode()
    if storage.exists(storage.join(out, RESULT)):
        run["result"] = storage.read_json(storage.join(out, RESULT))
    return run


def check_empty(out: str) -> None:
    """Sees to it that a folder can be filled. Raises UserError when something is in it."""
    there = storage.names_in(out)
    if there:
        raise UserError(f"{out} is not empty (it holds {there[0]!r}); name another folder or empty this one")
