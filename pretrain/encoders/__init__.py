"""Encoders: images to feature maps, one contract for all tasks.
To add one, add its line to `building.ENCODERS`.
"""

from pretrain.encoders.base import Encoder, pooled
from pretrain.encoders.building import build_encoder, encoder_names
from pretrain.encoders.saving import EncoderConfig, load_encoder, read_encoder_config, save_encoder

__all__ = [
    "Encoder",
    "EncoderConfig",
    "build_encoder",
    "encoder_names",
    "load_encoder",
    "pooled",
    "read_encoder_config",
    "save_encoder",
]
