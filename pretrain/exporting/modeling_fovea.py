"""Fovea's networks as Hugging Face models. A copy of this file and of the
encoders' lies in each exported folder:

model = AutoModel.from_pretrained(folder, trust_remote_code=True)
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from pretrain.encoders.base import pooled
from pretrain.encoders.building import rebuild_encoder

MULTI_LABEL = "multi_label_classification"


class FoveaConfig(PretrainedConfig):
    """Name and arguments of an encoder, and what is on top of it.

    Args:
        encoder, arguments: of the encoder.
        normalised_features: features of the classifier pass a batch norm without gain.
        grid: height and width of the last map where the classifier lays it flat;
            None where it sees its mean.
    """

    model_type = "fovea"

    def __init__(
        self,
        encoder: str = "convattn_nano",
        arguments: dict[str, Any] | None = None,
        normalised_features: bool = False,
        grid: list[int] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.encoder, self.arguments, self.grid = encoder, arguments or {}, grid
        self.normalised_features = normalised_features


class FoveaPreTrainedModel(PreTrainedModel):
    """What all models share."""

    config_class = FoveaConfig
    base_model_prefix = "fovea"
    main_input_name = "pixel_values"

    def _init_weights(self, module: nn.Module) -> None:
        """A new linear head on a loaded encoder (`ignore_mismatched_sizes=True`);
        encoders initialise themselves.
        """
        if isinstance(module, nn.Linear) and module is getattr(self, "head", None):
            nn.init.trunc_normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


class FoveaModel(FoveaPreTrainedModel):
    """An encoder: `last_hidden_state` is its last map [B, C, H, W], `pooler_output` its mean,
    `hidden_states` all maps.
    """

    def __init__(self, config: FoveaConfig) -> None:
        super().__init__(config)
        self.encoder = rebuild_encoder(config.encoder, config.arguments, where="config.json")
        self.post_init()

    def forward(self, pixel_values: Tensor, return_dict: bool | None = None, **_: Any) -> Any:
        """`pixel_values` are normalised images [B, C, H, W] of any size that the encoder takes."""
        maps = self.encoder(pixel_values)
        output = BaseModelOutputWithPooling(
            last_hidden_state=maps[-1], pooler_output=pooled(maps), hidden_states=tuple(maps)
        )
        return output if return_dict is not False else output.to_tuple()


class FoveaForImageClassification(FoveaPreTrainedModel):
    """An encoder and a linear layer on its pooled last map, or on all of it."""

    def __init__(self, config: FoveaConfig) -> None:
        super().__init__(config)
        self.encoder = rebuild_encoder(config.encoder, config.arguments, where="config.json")
        positions = config.grid[0] * config.grid[1] if config.grid else 1
        features = self.encoder.channels[-1] * positions
        self.norm = nn.BatchNorm1d(features, affine=False) if config.normalised_features else nn.Identity()
        self.head = nn.Linear(features, int(config.num_labels or 0))
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None, **_: Any
    ) -> Any:
        """Logits [B, num_labels]; with `labels` (class ids [B], or [B, num_labels] where
        there are several) also the loss.
        """
        maps = self.encoder(pixel_values)
        features = maps[-1].flatten(1) if self.config.grid else pooled(maps)
        logits = self.head(self.norm(features))
        loss = None
        if labels is not None and self.config.problem_type == MULTI_LABEL:
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        output = ImageClassifierOutput(loss=loss, logits=logits)
        return output if return_dict is not False else output.to_tuple()
