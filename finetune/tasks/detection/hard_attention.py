"""Hard attention in an encoder whose weights were learnt with soft attention."""

from __future__ import annotations

from cluster.errors import UserError
from pretrain.encoders.base import Encoder
from pretrain.encoders.layers import AttentionOverMaps


def make_attention_hard(encoder: Encoder, *, num_keys: int, num_stages: int) -> None:
    """Lets each query of the last stages' attention keep its strongest keys only;
    the weights stay as they are.

    Raises UserError for an encoder whose attention cannot.
    """
    layers = {
        name: layer
        for name, layer in encoder.attention_layers().items()
        if isinstance(layer, AttentionOverMaps)
    }
    if not layers:
        raise UserError(
            f"detection.hard_attention_keys={num_keys}: {encoder.spec['name']} has no attention that can be "
            "hard (the convattn encoders have)"
        )
    stages = list(dict.fromkeys(_stage(name) for name in layers))[-num_stages:]
    for name, layer in layers.items():
        if _stage(name) in stages:
            layer.mode, layer.top_k = "hard", num_keys


def _stage(layer_name: str) -> str:
    return layer_name.partition(".")[0]
