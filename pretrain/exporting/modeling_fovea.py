"""Fovea's encoders as Hugging Face models. A copy of this file and of the encoders' lies in each exported folder:

model = AutoModel.from_pretrained(folder, trust_remote_code=True)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from pretrain.encoders.base import pooled
from pretrain.encoders.building import rebuild_encoder


class FoveaConfig(PretrainedConfig):
    """Name and arguments of an encoder, and whether its classifier's features are normalised."""

    model_type = "fovea"

    def __init__(
        self,
        encoder: str = "convattn_nano",
        arguments: dict[str, Any] | None = None,
        normalised_features: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.encoder, self.arguments, self.normalised_features = encoder, arguments or {}, normalised_features


class FoveaPreTrainedModel(PreTrainedModel):
    """What both models share."""

    config_class = FoveaConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"

    def _init_weights(self, module: nn.Module) -> None:
        """Encoders initialise themselves."""


class FoveaModel(FoveaPreTrainedModel):
    """An encoder: `last_hidden_state` is its last map [B, C, H, W], `pooler_output` its mean, `hidden_states` all maps."""

    def __init__(self, config: FoveaConfig) -> None:
        super().__init__(config)
        self.encoder = rebuild_encoder(config.encoder, config.arguments, where="config.json")
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """`pixel_values` are normalised images [B, C, H, W] of any size that the encoder takes."""
        maps = self.encoder(pixel_values)
        return BaseModelOutputWithPooling(
            last_hidden_state=maps[-1], pooler_output=pooled(maps), hidden_states=tuple(maps)
        )


class FoveaForImageClassification(FoveaPreTrainedModel):
    """An encoder and a linear layer on its pooled last map."""

    def __init__(self, config: FoveaConfig) -> None:
        super().__init__(config)
        self.encoder = rebuild_encoder(config.encoder, config.arguments, where="config.json")
        features = self.encoder.channels[-1]
        self.norm = nn.BatchNorm1d(features, affine=False) if config.normalised_features else nn.Identity()
        self.head = nn.Linear(features, int(config.num_labels or 0))
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> ImageClassifierOutput:
        """Logits [B, num_labels]."""
        return ImageClassifierOutput(logits=self.head(self.norm(pooled(self.encoder(pixel_values)))))
