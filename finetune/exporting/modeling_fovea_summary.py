"""Fovea's summarizers as Hugging Face models: keywords by a call, sentences by `generate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from finetune.tasks.summarization.search import write
from finetune.tasks.summarization.seeing import Sight
from finetune.tasks.summarization.tokenizer import END, PAD, START
from pretrain.encoders.building import rebuild_encoder
from pretrain.exporting.modeling_fovea import FoveaConfig, FoveaPreTrainedModel

OF_GENERATION = ("num_beams", "length_penalty")


@dataclass
class FoveaSummaryOutput(ModelOutput):
    """`keyword_logits` [B, keywords] (names in `config.id2label`), where each keyword looks, [B, keywords,
    positions], and with `decoder_input_ids` the scores of the next token, `logits` [B, length, tokens]."""

    keyword_logits: Tensor | None = None
    keyword_attentions: Tensor | None = None
    logits: Tensor | None = None


class FoveaForImageCaptioning(FoveaPreTrainedModel, Sight):
    """An encoder, keywords that look over its maps,
    and a decoder that writes a sentence over what was seen.
    """

    if TYPE_CHECKING:  # transformers reads annotations of the class
        config: Any
        post_init: Any

    def __init__(self, config: FoveaConfig) -> None:
        super().__init__(config)
        self.encoder = rebuild_encoder(config.encoder, config.arguments, where="config.json")
        own = {key: value for key, value in config.summarizer.items() if key not in OF_GENERATION}
        self.make_parts(self.encoder.channels, **own)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        decoder_input_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Keywords of images [B, C, S, S], and the scores that follow the tokens of sentences,
        where these are given.
        """
        seen = self.look_at(self.encoder(pixel_values))
        scores = None if decoder_input_ids is None else self.decoder(decoder_input_ids, seen.memory_BMD)
        output = FoveaSummaryOutput(seen.logits_BK, seen.attention_BKT, scores)
        return output if return_dict is not False else output.to_tuple()

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor,
        num_beams: int | None = None,
        length_penalty: float | None = None,
        **_: Any,
    ) -> Tensor:
        """Token ids [B, length] of a sentence for each image, from its start to its end, padded;
        the tokenizer decodes them.
        """
        own = self.config.summarizer
        seen = self.look_at(self.encoder(pixel_values))
        written = write(
            self.decoder,
            seen.memory_BMD,
            num_beams=num_beams or own["num_beams"],
            penalty=own["length_penalty"] if length_penalty is None else length_penalty,
        )
        rows = [[START, *one.ids, END] for one in written]
        longest = max(map(len, rows))
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], device=pixel_values.device)
