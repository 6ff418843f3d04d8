"""The convattn family in timm's registry, for folders that `python -m pretrain export --format timm` wrote:

import timm
import pretrain.exporting.timm_models  # registers convattn_nano, ...

model = timm.create_model("local-dir:my/export", pretrained=True)                      # pooled features, or
logits model = timm.create_model("local-dir:my/export", pretrained=True, features_only=True)  # the maps
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from pretrain.encoders import build_encoder, encoder_names


class TimmModel(nn.Module):
    """An encoder with the methods that timm's networks have.

    Args:
        name: of the encoder.
        num_classes: of the linear layer on the pooled last map; 0 for none.
        in_chans: of the images.
        normalised_features: features pass a batch norm without gain before the linear layer.
        arguments: of the encoder.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int = 0,
        in_chans: int = 3,
        normalised_features: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(name, **{**arguments, "in_channels": in_chans})
        self.num_classes, self.num_features = num_classes, self.encoder.channels[-1]
        self.norm = nn.BatchNorm1d(self.num_features, affine=False) if normalised_features else nn.Identity()
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": channels, "reduction": stride, "module": f"map{number}"}
            for number, (channels, stride) in enumerate(
                zip(self.encoder.channels, self.encoder.strides, strict=True), 1
            )
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map [B, C, H, W]."""
        last: Tensor = self.encoder(x)[-1]
        return last

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the last map, or its pooled features."""
        features = x.mean((2, 3))
        if pre_logits:
            return features
        logits: Tensor = self.head(self.norm(features))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes], or features [B, C] without classes."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of `indices` (the last few where it is a number),
        and the last map before them unless told otherwise.
        """
        maps = self.encoder(x)
        numbers = range(len(maps))
        if indices is not None:
            numbers = range(len(maps))[-indices:] if isinstance(indices, int) else indices  # type: ignore[assignment]
        chosen = [maps[number] for number in numbers]
        return chosen if intermediates_only else (maps[-1], chosen)


def _entrypoint(name: str) -> Any:
    def entry(pretrained: bool = False, **options: Any) -> torch.nn.Module:
        options.pop("cache_dir", None)
        indices = tuple(range(1 if name == "convattn_classic" else 4))
        model: torch.nn.Module = build_model_with_cfg(
            TimmModel,
            name,
            pretrained,
            name=name,
            feature_cfg={"out_indices": indices, "feature_cls": "getter"},
            **options,
        )
        return model

    entry.__name__, entry.__module__ = name, __name__
    entry.__doc__ = f"`{name}` for timm.create_model."
    return entry


for _name in encoder_names():
    globals()[_name] = register_model(_entrypoint(_name))
