"""What a run evaluates every few epochs: how much its encoder knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.errors import UserError, choose
from cluster.training.rank_context import RankContext
from pretrain.data.reading.manifest import Manifest
from pretrain.encoders import Encoder
from pretrain.methods import Method
from pretrain.settings import PretrainSettings
from pretrain.training.health import MIN_RANK, fallen_rank
from pretrain.training.plan import Evaluating
from pretrain.training.probes import UNTRAINED, LabelProbe, rankme
from pretrain.training.recipe import num_decode_threads

KNN, LINEAR, RANKME = "knn_accuracy", "linear_accuracy", "rankme"


class Evaluation:
    """kNN accuracy and a linear probe where there are labels, and RankMe.

    Args:
        settings: of the run.
        manifest: of the images that RankMe looks at.
        context: where the run computes; all ranks compute together.
        probe: of `label_probe`.
        first_weights: gives the encoder as the run began with it: without its scores others say little.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        manifest: Manifest,
        context: RankContext,
        probe: LabelProbe | None,
        first_weights: Callable[[], Encoder],
    ) -> None:
        self._settings, self._manifest, self._context = settings, manifest, context
        self._probe, self._first_weights = probe, first_weights
        self._before: dict[str, float] | None = None

    def evaluating(self, method: Method) -> Evaluating:
        """For the loop. Raises UserError for a best metric that is not measured."""
        return Evaluating(
            lambda step, last: self(method.exported, step),
            best_metric=best_metric(self._settings),
            patience=self._settings.patience,
        )

    def __call__(self, encoder: Encoder, step: int) -> dict[str, float]:
        """The scores of the encoder, and those of the first weights by names that end in `untrained`."""
        settings, scores = self._settings, {}
        if self._probe is not None:
            scores = self._probe(encoder, self._context, linear=settings.knn.linear)
            if self._before is None:
                before = self._probe(self._fresh(), self._context, linear=settings.knn.linear)
                self._before = {f"{name}_{UNTRAINED}": score for name, score in before.items()}
            scores |= self._before
        if settings.rankme_images:
            scores[RANKME] = self._dimensions(encoder)
            if scores[RANKME] < MIN_RANK:
                finding = fallen_rank(scores[RANKME], self._dimensions(self._fresh()))
                if finding is not None and self._context.rank == 0:
                    self._context.warn(f"step {step}: {finding.text}")
        return scores

    def _fresh(self) -> Encoder:
        return self._first_weights().to(self._context.device)

    def _dimensions(self, encoder: Encoder) -> float:
        return rankme(
            encoder,
            self._manifest,
            self._context,
            num_images=self._settings.rankme_images,
            image_column=self._settings.data.image_column,
            **how_to_look(self._settings),
        )


def best_metric(settings: PretrainSettings) -> str | None:
    """The number that `patience` goes by, if any is measured. Raises UserError for one that is not."""
    labelled = settings.knn.train_url is not None
    measured = (
        [KNN] * labelled
        + [LINEAR] * (labelled and settings.knn.linear)
        + [RANKME] * bool(settings.rankme_images)
    )
    if settings.best_metric is not None and measured:
        return choose("best_metric", settings.best_metric, measured)
    if not measured and (settings.patience or settings.best_metric is not None):
        raise UserError(
            f"patience={settings.patience} needs a metric: knn.train_url and knn.test_url, or rankme_images "
            "above 0"
        )
    if settings.patience and not settings.knn.every_epochs:
        raise UserError(
            f"patience={settings.patience} counts evaluations, but knn.every_epochs=0 evaluates only at the "
            "end"
        )
    return measured[0] if measured else None


def label_probe(settings: PretrainSettings) -> LabelProbe | None:
    """The probe on labelled data, where the settings name some. Raises UserError when it is not there."""
    knn = settings.knn
    if knn.train_url is None and knn.test_url is None:
        return None
    if knn.train_url is None or knn.test_url is None:
        raise UserError(
            "kNN needs both knn.train_url and knn.test_url; give the missing one or set both to null"
        )
    return LabelProbe(
        knn.train_url,
        knn.test_url,
        image_column=settings.data.image_column,
        label_column=knn.label_column,
        neighbours=knn.neighbours,
        **how_to_look(settings),
    )


def how_to_look(settings: PretrainSettings) -> dict[str, Any]:
    """How images are looked at outside of training."""
    return {
        "size": settings.views.size,
        "crop_fraction": settings.knn.crop_fraction,
        "decode_threads": num_decode_threads(settings.data),
        "mean": settings.views.mean,
        "std": settings.views.std,
        "precision": settings.training.precision,
    }
