"""A summarizer for transformers: keywords, and sentences by `generate` and a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from finetune.tasks.summarization import decoder, search, seeing, tokenizer
from finetune.tasks.summarization.model import Summarizer
from finetune.tasks.summarization.predictor import ImageSummarizer
from finetune.tasks.summarization.tokenizer import END, NUM_SPECIAL, PAD, START, CaptionTokenizer
from pretrain.exporting.exported import (
    STRETCH,
    Answers,
    Exported,
    Framing,
    HuggingFace,
    model_source,
    of_model,
    run_beside,
)

MODELING = "modeling_fovea_summary"
SPECIAL = {"<|pad|>": PAD, "<|start|>": START, "<|end|>": END}


def export_summarizer(url: str, predictor: ImageSummarizer, facts: dict[str, Any]) -> Exported:
    """A summarizer with all that its export needs."""
    model, config = cast(Summarizer, predictor.model), predictor.config
    mean, std, size = tuple(config["mean"]), tuple(config["std"]), config["image_size"]

    def answer(arrays: list[np.ndarray], geometry_VB5: np.ndarray | None) -> Answers:
        with torch.no_grad():
            seen, written = predictor.summarized(arrays[0])
        return {
            "keywords": seen.logits_BK.float().sigmoid().numpy(),
            "tokens": _padded([[START, *one.ids, END] for one in written]),
        }

    def answers_of(outputs: dict[str, np.ndarray], geometry_VB5: np.ndarray | None) -> Answers:
        scores = torch.from_numpy(outputs["keywords"]).sigmoid().numpy()
        return {**outputs, "keywords": scores}

    own = {
        **config["head"],
        "num_keywords": len(config["keywords"]),
        "num_tokens": predictor.tokenizer.num_tokens,
        "num_beams": config["num_beams"],
        "length_penalty": config["length_penalty"],
    }
    ids = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END, "decoder_start_token_id": START}
    return Exported(
        url,
        config["task"],
        model.encoder.eval(),
        mean,
        std,
        Framing(STRETCH, size, config["crop_fraction"]),
        None,
        predictor.transform,
        answer,
        answers_of,
        HuggingFace(
            "AutoModelForImageTextToText",
            "FoveaForImageCaptioning",
            MODELING,
            model_source("finetune.exporting", MODELING),
            modules=(seeing, decoder, search, tokenizer),
            config={"summarizer": own, "keyword_threshold": config["keyword_threshold"], **ids},
            files=_tokenizer_files(predictor.tokenizer),
        ),
        lambda: of_model(model, model.encoder),
        class_names=list(config["keywords"]),
        facts={**facts, "keywords": len(config["keywords"]), "tokens": predictor.tokenizer.num_tokens},
        run=run_beside(url),
    )


def _padded(rows: Sequence[Sequence[int]]) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows), default=0)), PAD, np.int64)
    for row, one in zip(table, rows, strict=True):
        row[: len(one)] = one
    return table


def _tokenizer_files(own: CaptionTokenizer) -> dict[str, bytes]:
    """The tokenizer as transformers reads it, with the model's numbers:
    its own come after those of no text.
    """
    tree = own.to_json()
    vocabulary = {token: number + NUM_SPECIAL for token, number in tree["model"]["vocab"].items()}
    tree["model"]["vocab"] = {**SPECIAL, **vocabulary}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tree["added_tokens"] = [{"id": number, "content": token, **plain} for token, number in SPECIAL.items()]
    pad, start, end = SPECIAL
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "bos_token": start,
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
    }
    return {
        name: (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
        for name, value in (("tokenizer.json", tree), ("tokenizer_config.json", config))
    }
