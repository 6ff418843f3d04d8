"""What a replica holds: a model, the threads that decode for it, and the records that it makes of images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch

from cluster.errors import UserError
from finetune.model import load_model
from finetune.predicting.sources import Item
from finetune.predicting.stream import begin, records_of
from finetune.tasks.base import Predictor
from pretrain.data.images.decode import set_max_pixels

# which of its numbers decides what a model reports
THRESHOLDS = {"classification": "threshold", "summarization": "keyword_threshold"}


@dataclass(frozen=True)
class ServedModel:
    """Makes records of images as `predict` does; sent to each replica, where calling it loads the model.

    Attributes:
        model_url: of the model folder.
        max_pixels: of an image.
        num_threads: that decode, and that compute; 0: as many as torch takes.
        threshold, top_k: see `ServeSettings`.
    """

    model_url: str
    max_pixels: int
    num_threads: int = 0
    threshold: float | None = None
    top_k: int | None = None

    def __call__(self) -> Callable[[Sequence[Item]], list[dict[str, Any]]]:
        """Loads the model and gives the function that makes a record of each image;
        threads may call it at the same time.
        """
        if self.num_threads:
            torch.set_num_threads(self.num_threads)
        set_max_pixels(self.max_pixels)
        predictor = with_threshold(load_model(self.model_url), self.threshold)
        predictor.to("cuda" if torch.cuda.is_available() else "cpu")
        pool = ThreadPoolExecutor(self.num_threads or torch.get_num_threads(), thread_name_prefix="decode")
        one_at_a_time = threading.Lock()  # of two batches one is decoded while the model works on the other

        def predict(items: Sequence[Item]) -> list[dict[str, Any]]:
            begun = begin(predictor, items, pool)
            wait(begun.jobs)
            with one_at_a_time:
                records = records_of(predictor, begun)
            return [shortened(record, self.threshold, self.top_k) for record in records]

        return predict


def with_threshold(predictor: Predictor, threshold: float | None) -> Predictor:
    """The model with another threshold, where one is given. Raises UserError for a model that has none."""
    task = predictor.config["task"]
    if threshold is not None and task in THRESHOLDS:
        if task == "classification" and not predictor.config.get("multi_label"):
            raise UserError(
                f"threshold={threshold:g} means nothing here: this classifier gives one class an image"
            )
        predictor.config[THRESHOLDS[task]] = threshold
    return predictor


def shortened(record: dict[str, Any], threshold: float | None, top_k: int | None) -> dict[str, Any]:
    """A record without what is below the threshold or behind the best `top_k`."""
    short = dict(record)
    if isinstance(scores := record.get("scores"), dict) and top_k is not None:
        short["scores"] = dict(sorted(scores.items(), key=lambda one: -one[1])[:top_k])
    if "boxes" in record:  # the surest first
        some = [
            index for index, score in enumerate(record["scores"]) if threshold is None or score >= threshold
        ]
        short |= {
            name: [record[name][index] for index in some[:top_k]] for name in ("boxes", "labels", "scores")
        }
    if "keywords" in record:
        short["keywords"] = record["keywords"][:top_k]
    return short
