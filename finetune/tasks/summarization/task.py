"""Summarization during training."""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.errors import UserError
from finetune.settings import FinetuneSettings
from finetune.tasks.base import Task
from finetune.tasks.summarization.captions import (
    Survey,
    captions_or_none,
    each_caption,
    frequent_keywords,
    keyword_column,
    require_captions,
    survey_keywords,
)
from finetune.tasks.summarization.keywords import KeywordReader
from finetune.tasks.summarization.mining import mine
from finetune.tasks.summarization.model import Summarizer, SummaryTargets
from finetune.tasks.summarization.phrases import Phrases
from finetune.tasks.summarization.predictor import ImageSummarizer
from finetune.tasks.summarization.tokenizer import END, PAD, START, CaptionTokenizer
from pretrain.data.hashing import hash64
from pretrain.data.reading.loader import Batch
from pretrain.data.reading.manifest import Manifest
from pretrain.data.views.recipes import ViewSpec, weak_views
from pretrain.encoders import Encoder
from pretrain.training.feeding import uploaded

# domain separation between what is drawn for views (11, 12) and for captions
CAPTION = 21
CAPTIONS_MEASURED = 10_000


class Summarization(Task):
    """Keywords and a sentence, from a column of captions."""

    best_metric = "cider_d"
    predictor = ImageSummarizer

    @staticmethod
    def columns_of(settings: FinetuneSettings) -> dict[str, str]:
        """The captions' column, and that of the keywords where there is one."""
        own = settings.summarization
        columns = {"captions": own.captions_column}
        return columns if own.keywords_column is None else {**columns, "keywords": own.keywords_column}

    def __init__(self, settings: FinetuneSettings, train: Manifest, validation: Manifest) -> None:
        self.settings, self.seed = settings.summarization, settings.seed
        self.columns = self.columns_of(settings)
        own, column = self.settings, self.columns["captions"]

        # -- the captions: tokenizer, terms, and where there are none ---------------------------------------
        survey = Survey()
        self.tokenizer = CaptionTokenizer.trained_on(
            each_caption(train, column, survey), vocabulary_size=own.vocabulary_size
        )
        require_captions(survey, column, train)
        unseen = Survey()
        for _ in each_caption(validation, column, unseen):
            pass
        require_captions(unseen, column, validation)
        self.findings = {"training_captions": survey.summary}
        self.notes = []
        for which, found in (("training", survey), ("validation", unseen)):
            if found.num_without:
                self.notes.append(
                    f"{found.num_without:,} of {found.num_images:,} {which} images have no caption and are "
                    f"left out of what captions are needed for (first: {found.without[0]})"
                )

        # -- keywords ---------------------------------------------------------------------------------------
        keywords, phrases = self._keywords(train, survey)
        self.reader = KeywordReader(keywords, phrases)

        # -- what a model must know -------------------------------------------------------------------------
        some = islice(each_caption(train, column, Survey()), CAPTIONS_MEASURED)
        lengths = [min(len(self.tokenizer.ids(caption)) + 1, own.max_tokens) for caption in some]
        self.config = {
            "keywords": keywords,
            "phrases": phrases.to_json(),
            "tokenizer": self.tokenizer.to_json(),
            "mean_tokens": sum(lengths) / len(lengths),
            "head": {
                "width": own.width,
                "depth": own.depth,
                "num_heads": own.num_heads,
                "num_maps": own.num_maps,
                "num_fed": own.num_fed,
                "max_tokens": own.max_tokens,
            },
            "num_beams": own.num_beams,
            "length_penalty": own.length_penalty,
            "keyword_threshold": own.keyword_threshold,
            "thumbnail_fraction": own.thumbnail_fraction,
        }

    def _keywords(self, train: Manifest, survey: Survey) -> tuple[list[str], Phrases]:
        """The keywords, of their column or mined from captions. Raises UserError where there are none."""
        own, phrases, also = self.settings, Phrases(), ""
        limits = {"num_keywords": own.num_keywords, "min_images": own.keyword_min_images}
        if own.keywords_column is not None:
            found_column = keyword_column(train, own.keywords_column)
            keywords = frequent_keywords(survey_keywords(train, found_column), **limits)
        else:
            most = own.keyword_max_fraction
            keywords, phrases = mine(survey.sample, **limits, max_fraction=most, stop_words=own.stop_words)
            also = f" and at most a fraction of {most:g} of them, and tells something of them"
        if not keywords and own.num_keywords:
            raise UserError(
                f"no keyword occurs in {own.keyword_min_images} images or more of {train.files[0].url}{also}"
                "; lower summarization.keyword_min_images, or set summarization.num_keywords=0"
            )
        return keywords, phrases

    @classmethod
    def new_model(cls, encoder: Encoder, config: dict[str, Any], **training: Any) -> Summarizer:
        """An encoder, keywords and a decoder."""
        return Summarizer(
            encoder,
            num_keywords=len(config["keywords"]),
            num_tokens=CaptionTokenizer.from_json(config["tokenizer"]).num_tokens,
            mode=config["mode"],
            **config["head"],
            **training,
        )

    def training_model(self, encoder: Encoder, config: dict[str, Any]) -> Summarizer:
        """With dropout, label smoothing and the weights of the losses."""
        return self.new_model(
            encoder,
            config,
            dropout=self.settings.dropout,
            label_smoothing=self.settings.label_smoothing,
            keyword_weight=self.settings.keyword_weight,
            mean_tokens=config["mean_tokens"],
        )

    def views(self, size: int) -> list[ViewSpec]:
        """A mild crop, for captions tell of whole images; mirrored if they do not tell left from right."""
        specs = weak_views(size, crop_scale=(self.settings.min_crop, 1.0))
        return [dataclasses.replace(spec, flip=0.5 if self.settings.flip else 0.0) for spec in specs]

    def to_inputs(self, images: list[Tensor], batch: Batch, device: torch.device) -> SummaryTargets:
        """Images, keywords, and one of each image's captions, another in each pass over the data."""
        keywords_BK, has_keywords_B = self.reader.read(batch.columns, self.columns)
        captions = [captions_or_none(value) for value in batch.columns[self.columns["captions"]]]
        draws_B = hash64(CAPTION, self.seed, batch.passes, batch.row_ids)
        chosen = [
            several[int(draw) % len(several)] if several else ""
            for several, draw in zip(captions, draws_B, strict=True)
        ]
        # a caption that is too long has no end, so that it teaches no early one
        longest = self.settings.max_tokens
        tokens = [[START, *[*self.tokenizer.ids(caption), END][:longest]] for caption in chosen]
        tokens_BL = np.full((len(tokens), max(map(len, tokens))), PAD, np.int64)
        for row, ids in zip(tokens_BL, tokens, strict=True):
            row[: len(ids)] = ids
        has_caption_B = np.array([bool(several) for several in captions])
        return SummaryTargets(
            images[0],
            *(
                uploaded(array, device)
                for array in (
                    keywords_BK,
                    has_keywords_B.astype(np.float32),
                    has_caption_B.astype(np.float32),
                    tokens_BL,
                )
            ),
        )
