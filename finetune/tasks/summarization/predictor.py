"""A finished summarizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from cluster.errors import UserError
from cluster.training.rank_context import RankContext
from finetune.tasks.base import Evaluation, Predictor, TaskModel
from finetune.tasks.summarization.captions import captions_or_none
from finetune.tasks.summarization.keywords import KeywordReader
from finetune.tasks.summarization.metrics import (
    best_threshold,
    cider_error,
    keyword_scores,
    per_keyword,
    sentence_scores,
)
from finetune.tasks.summarization.model import Summarizer
from finetune.tasks.summarization.search import Written, write
from finetune.tasks.summarization.seeing import Seen
from finetune.tasks.summarization.tokenizer import CaptionTokenizer
from finetune.tasks.summarization.whole_image import Box, WholeImage, dwelling_box, inside_of
from pretrain.data.reading.shards import Shards
from pretrain.training.distributed import gathered_objects

EVALUATION_BATCH = 128
NUM_EXAMPLES = 20


@dataclass(frozen=True, eq=False)
class Keyword:
    """A keyword of an image, how sure the model is of it in [0, 1], and where it looked:
    float32, sums to 1.
    """

    text: str
    score: float
    map_HW: np.ndarray


@dataclass(frozen=True, eq=False)
class Summary:
    """What a summarizer predicts for an image.

    Attributes:
        keywords: those it is sure enough of, the surest first.
        sentence: text.
        log_probability: of the sentence and its end.
        thumbnail: the part of the image where most of the keywords' attention lies;
            None where the model is told not to.
    """

    keywords: list[Keyword]
    sentence: str
    log_probability: float
    thumbnail: Box | None


@dataclass(frozen=True)
class _Evaluated:
    """Predictions and truth for N images with K keywords, in the data's order."""

    scores_NK: np.ndarray
    truth_NK: np.ndarray
    has_keywords_N: np.ndarray
    sentences: list[str]
    references: list[list[str]]


class ImageSummarizer(Predictor):
    """A summarizer with all it needs to predict for images."""

    result_type = Summary

    def __init__(self, model: TaskModel, config: dict[str, Any]) -> None:
        super().__init__(model, config)
        self.tokenizer = CaptionTokenizer.from_json(config["tokenizer"])
        self.reader = KeywordReader.of_config(config)

    def host_transform(self) -> WholeImage:
        """The whole image, stretched to a square."""
        return WholeImage(
            self.config["image_size"], fraction=self.config["crop_fraction"], channels=self.channels
        )

    @torch.no_grad()
    def results(self, arrays: list[np.ndarray], geometry_VB5: np.ndarray | None) -> list[Summary]:
        """The summary of each image."""
        assert geometry_VB5 is not None
        seen, written = self.summarized(arrays[0])
        scores_BK = seen.logits_BK.float().sigmoid().cpu().numpy()
        maps_BKHW = seen.attention_BKT.float().unflatten(-1, seen.size_HW).cpu().numpy()
        return [
            self._summary(scores_K, maps_KHW, sentence, cast(Box, tuple(frame.tolist())))
            for scores_K, maps_KHW, sentence, frame in zip(
                scores_BK, maps_BKHW, written, geometry_VB5[0, :, :4], strict=True
            )
        ]

    def _summary(self, scores_K: np.ndarray, maps_KHW: np.ndarray, written: Written, frame: Box) -> Summary:
        order = np.argsort(-scores_K, kind="stable")
        sure = [int(index) for index in order if scores_K[index] >= self.config["keyword_threshold"]]
        thumbnail, fraction = None, self.config["thumbnail_fraction"]
        if fraction and len(order):
            # without a sure keyword the likeliest one says where to look
            looked_at = sure or [int(order[0])]
            heat_HW = np.einsum("k,khw->hw", scores_K[looked_at], maps_KHW[looked_at])
            thumbnail = inside_of(dwelling_box(heat_HW, fraction), frame)
        return Summary(
            keywords=[Keyword(self.reader.keywords[k], float(scores_K[k]), maps_KHW[k]) for k in sure],
            sentence=self.tokenizer.text(written.ids),
            log_probability=written.log_probability,
            thumbnail=thumbnail,
        )

    @torch.no_grad()
    def summarized(self, images: np.ndarray) -> tuple[Seen, list[Written]]:
        """What is seen in uint8 [B, C, size, size], and the sentences."""
        model = cast(Summarizer, self.model)
        seen = model.look(self.images(images))
        beams, penalty = self.config["num_beams"], self.config["length_penalty"]
        return seen, write(model.decoder, seen.memory_BMD, num_beams=beams, penalty=penalty)

    def evaluate(self, shards: Shards, context: RankContext, *, decode_threads: int = 1) -> Evaluation:
        """Scores of keywords and sentences, each keyword's, and some sentences beside their references."""
        evaluated = self.evaluated(shards, context, decode_threads=decode_threads)
        known = evaluated.has_keywords_N
        scores_NK, truth_NK = evaluated.scores_NK[known], evaluated.truth_NK[known]
        num_captions = sum(map(len, evaluated.references))
        without = sum(not several for several in evaluated.references)
        if not num_captions:
            raise UserError(
                f"column {self.columns['captions']!r} of {shards.manifest.files[0].url} holds no caption: "
                "there is nothing to evaluate sentences against"
            )
        threshold, calibrated = self.config["keyword_threshold"], {}
        if threshold is None:  # while training; a finished model knows it
            threshold = best_threshold(scores_NK, truth_NK)
            calibrated = {"keyword_threshold": threshold}
        metrics = sentence_scores(evaluated.sentences, evaluated.references) | keyword_scores(
            scores_NK, truth_NK, threshold=threshold
        )
        examples = [pair for pair in zip(evaluated.sentences, evaluated.references, strict=True) if pair[1]]
        details = {
            "validation_images": len(evaluated.sentences),
            "standard_errors": {"cider_d": cider_error(evaluated.sentences, evaluated.references)},
            "validation_captions": num_captions,
            "validation_images_without_captions": without,
            "keyword_threshold": threshold,
            "per_keyword": per_keyword(scores_NK, truth_NK, self.reader.keywords),
            "examples": [
                {"sentence": one, "references": several} for one, several in examples[:NUM_EXAMPLES]
            ],
        }
        return Evaluation(metrics, details, calibrated)

    def evaluated(self, shards: Shards, context: RankContext, *, decode_threads: int = 1) -> _Evaluated:
        """Predictions for a whole data set, on every rank, whatever their number."""
        nothing_NK = np.zeros((0, len(self.reader.keywords)), np.float32)
        parts = [_Evaluated(nothing_NK, nothing_NK, np.zeros(0, bool), [], [])]
        for batch in self.batches(
            shards, context, batch_size=EVALUATION_BATCH, decode_threads=decode_threads
        ):
            seen, written = self.summarized(batch.arrays[0])
            truth, known = self.reader.read(batch.columns, self.columns)
            parts.append(
                _Evaluated(
                    seen.logits_BK.float().sigmoid().cpu().numpy(),
                    truth,
                    known,
                    [self.tokenizer.text(sentence.ids) for sentence in written],
                    [captions_or_none(value) for value in batch.columns[self.columns["captions"]]],
                )
            )
        parts = [part for of_rank in gathered_objects(parts) for part in of_rank]
        if not any(part.sentences for part in parts):
            raise UserError(
                "no image of the validation data can be decoded; `python -m pretrain.data check` says why"
            )
        scores, truths, known = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("scores_NK", "truth_NK", "has_keywords_N")
        )
        return _Evaluated(
            scores,
            truths,
            known,
            [sentence for part in parts for sentence in part.sentences],
            [several for part in parts for several in part.references],
        )
