"""The summarizer: an encoder, keywords that each look at their own positions,
and a sentence written over what was seen.

Shapes: B images, T positions of the map, K keywords, D channels, M memory entries, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from cluster.errors import UserError
from finetune.tasks.base import TaskModel
from finetune.tasks.summarization.seeing import Seen, Sight
from finetune.tasks.summarization.tokenizer import PAD
from pretrain.encoders import Encoder
from pretrain.training.contract import StepOutput


@dataclass(frozen=True)
class SummaryTargets:
    """Images and what is to be said of them.

    Attributes:
        images_BCHW: normalised.
        keywords_BK: 1 for each keyword of the image, else 0, float32.
        has_keywords_B, has_caption_B: 1 where they are known, float32; the others teach nothing of it.
        tokens_BL: a caption from its start to its end, padded; an image without one has any.
    """

    images_BCHW: Tensor
    keywords_BK: Tensor
    has_keywords_B: Tensor
    has_caption_B: Tensor
    tokens_BL: Tensor


class Summarizer(TaskModel, Sight):
    """Keywords and a sentence.

    Args:
        encoder: takes images_BCHW.
        num_keywords: K, may be 0.
        num_tokens: size of the tokenizer's vocabulary.
        max_tokens: longest sentence, its end included.
        width, depth, num_heads: of the decoder; the keywords share width and heads. `width` is divisible by
            4 and by the heads.
        num_maps: how many of the encoder's last maps are looked at. Raises UserError when it has fewer.
        num_fed: how many of the likeliest keywords the sentence is told, each with what it saw.
        mode: with `linear` only keywords and decoder learn.
        dropout, label_smoothing: of the decoder while training.
        keyword_weight: of the keywords' loss beside the sentence's.
        mean_tokens: of a caption, what the sentence loss is divided by.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        num_keywords: int,
        num_tokens: int,
        max_tokens: int,
        width: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        num_maps: int = 1,
        num_fed: int = 8,
        mode: str = "full",
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        keyword_weight: float = 1.0,
        mean_tokens: float = 10.0,
    ) -> None:
        super().__init__(encoder, mode=mode)
        if num_maps > len(encoder.channels):
            raise UserError(
                f"summarization.num_maps={num_maps} is not possible: the encoder has "
                f"{len(encoder.channels)} maps"
            )
        self.label_smoothing = label_smoothing
        self.keyword_weight = keyword_weight
        self.mean_tokens = mean_tokens
        self.make_parts(
            encoder.channels,
            num_keywords=num_keywords,
            num_tokens=num_tokens,
            max_tokens=max_tokens,
            width=width,
            depth=depth,
            num_heads=num_heads,
            num_maps=num_maps,
            num_fed=num_fed,
            dropout=dropout,
        )

    def look(self, images_BCHW: Tensor) -> Seen:
        """Keywords and the memory of images."""
        return self.look_at(self.maps(images_BCHW))

    def forward(self, inputs: SummaryTargets) -> StepOutput:
        """Binary cross entropy of the keywords (mean over K) and cross entropy of the caption's tokens,
        mean over the images.

        The sentence's loss is a sum over tokens divided by `mean_tokens`, and not by this batch's, so that
        it does not depend on how a batch is shared out over ranks.
        """
        seen = self.look(inputs.images_BCHW)
        num_images = len(inputs.images_BCHW)
        keyword_B = F.binary_cross_entropy_with_logits(
            seen.logits_BK.float(), inputs.keywords_BK, reduction="none"
        ).sum(1) / max(1, inputs.keywords_BK.shape[1])
        keyword_loss = (keyword_B * inputs.has_keywords_B).sum() / num_images
        scores_BLV = self.decoder(inputs.tokens_BL[:, :-1], seen.memory_BMD)
        token_BL = F.cross_entropy(
            scores_BLV.float().flatten(0, 1),
            inputs.tokens_BL[:, 1:].flatten(),
            ignore_index=PAD,
            reduction="none",
            label_smoothing=self.label_smoothing,
        ).unflatten(0, (num_images, -1))
        sentence_loss = (token_BL.sum(1) * inputs.has_caption_B).sum() / (num_images * self.mean_tokens)
        return StepOutput(
            loss=sentence_loss + self.keyword_weight * keyword_loss,
            logs={"keyword_loss": keyword_loss.detach(), "sentence_loss": sentence_loss.detach()},
        )
