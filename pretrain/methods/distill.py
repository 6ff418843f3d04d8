"""Distillation: an encoder learns to give for random crops what a frozen teacher gives for the images,
without labels.

What the teacher says is stored beside the rows by `python -m pretrain embed` (`features`), so it is computed
once, or asked for in each step (`teacher`). Whole images: the student predicts the teacher's features,
principal directions partly whitened, by their angle (as in CompRess, https://arxiv.org/abs/2010.14713, and
Proteus, https://arxiv.org/abs/2407.10366, the directions follow what features of networks need,
https://arxiv.org/abs/2007.06346), and is told apart from the other images of the batch (contrastive
representation distillation, https://arxiv.org/abs/1910.10699); or it imitates whom the teacher finds alike
(SEED, https://arxiv.org/abs/2101.04731). Positions, for detection: 1x1 convolutions of the student's last
maps predict the teacher's map (FitNets, https://arxiv.org/abs/1412.6550),
each view the part of it that it shows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn

from cluster.errors import UserError, choose
from pretrain.data.hashing import uniform
from pretrain.data.reading.loader import Batch
from pretrain.encoders import Encoder
from pretrain.methods.base import Method
from pretrain.methods.contrast import DecoupledNTXent
from pretrain.methods.host_numbers import HostNumber
from pretrain.methods.knowledge import Knowledge, Said, open_knowledge
from pretrain.training.contract import StepOutput
from pretrain.training.feeding import uploaded

LOSSES = ("cosine", "smooth_l1", "similarity")
NUM_NEIGHBOURS = 5
MIXING = 7  # domain separation: no other draw shares a hash with it


class DistillInputs(NamedTuple):
    """A batch: the student's views, and the teacher's features of them."""

    views: list[Tensor]
    said: Said


class Distill(Method):
    """Distillation.

    Args:
        encoder: to be trained, the student.
        features: folder that `python -m pretrain embed TEACHER DATA OUT` left, with the features of the
            run's own data.
        teacher: in place of `features`, a teacher that is asked in each step, see
            `pretrain.encoders.teachers.open_teacher`.
        sees: what a live teacher sees: `views`, the student's; or `whole`, the last view, which the recipe's
            `whole_size` adds and which the student does not see.
        loss: of whole images: `cosine` or `smooth_l1` (regression), or `similarity` (SEED: similarities to
            other images).
        image_weight: of that loss.
        batch_weight, batch_temperature: of a softmax over the teacher's features of the global batch, in
            which a view must find its own image.
        queue_size: teacher's features of former images that `similarity` compares with, beside those of the
            global batch.
        student_temperature, teacher_temperature: of the two softmaxes over similarities.
        map_weight: of the loss of positions, smooth L1; needs a teacher with maps (features: `embed
            --maps`).
        num_maps: how many of the student's last maps learn positions.
        contrast_weight, contrast_temperature: of the decoupled loss of SimCLR between the first two views,
            for images of which the teacher knows little.
        target_dim: principal directions of the stored features that are predicted.
        whitening: power of each direction's standard deviation by which it is divided: 0 leaves the features
            as they are, 1 makes all directions alike.
        mixing: fraction of the images that are mixed with the next one of the batch, their teacher's
            features likewise (mixup, https://arxiv.org/abs/1710.09412, which distillation gains from:
            https://arxiv.org/abs/2106.05237); not for maps.
        hidden_dim: of the heads.
    """

    recipe = "distill"
    num_views = None
    queue: Tensor
    queue_filled: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        features: str | None = None,
        teacher: str | None = None,
        sees: str = "views",
        loss: str = "cosine",
        image_weight: float = 1.0,
        batch_weight: float = 0.0,
        batch_temperature: float = 0.07,
        queue_size: int = 4096,
        student_temperature: float = 0.2,
        teacher_temperature: float = 0.04,
        map_weight: float = 0.0,
        num_maps: int = 2,
        contrast_weight: float = 0.0,
        contrast_temperature: float = 0.2,
        target_dim: int = 256,
        whitening: float = 0.0,
        mixing: float = 0.0,
        hidden_dim: int = 1024,
    ) -> None:
        super().__init__(encoder)
        self.loss = choose("method.arguments.loss", loss, LOSSES)
        weights = image_weight, batch_weight, map_weight, contrast_weight
        self.weights = dict(zip(("image", "batch", "map", "contrast"), weights, strict=True))
        if not 0 <= mixing <= 1 or (mixing and map_weight):
            raise UserError(
                f"method.arguments.mixing={mixing:g} is not possible: give 0 to 1, and 0 with map_weight "
                "(maps are not mixed)"
            )
        _check_weights(self.weights)
        self.knowledge: Knowledge = open_knowledge(
            features,
            teacher,
            sees=sees,
            with_maps=map_weight > 0,
            target_dim=target_dim,
            whitening=whitening,
            student_strides=encoder.strides[-num_maps:],
        )
        self.stored_features, self.stored_columns = self.knowledge.features_url, self.knowledge.columns
        self.learns_from = self.knowledge.described
        self.mixing = mixing
        self.batch_temperature = batch_temperature
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature

        channels, dim = encoder.channels[-1], self.knowledge.dim
        self.predictor: nn.Module | None = None
        if image_weight or batch_weight:
            self.predictor = _predictor(channels, hidden_dim, dim)
        self.map_predictors = nn.ModuleList()
        if map_weight:
            pairs = zip(encoder.channels[-num_maps:], self.knowledge.map_channels, strict=True)
            self.map_predictors.extend(nn.Conv2d(mine, theirs, 1) for mine, theirs in pairs)
        self.num_maps = len(self.map_predictors)
        self.projector: nn.Module | None = None
        self.criterion: nn.Module | None = None
        if contrast_weight:
            self.projector = SimCLRProjectionHead(
                channels, hidden_dim // 2, 128, num_layers=2, batch_norm=True
            )
            is_spread = self.ranks.world_size > 1
            self.criterion = DecoupledNTXent(contrast_temperature, gather_distributed=is_spread)
        if self.loss == "similarity":
            queue = F.normalize(torch.randn(queue_size, dim), dim=1)
            self.register_buffer("queue", queue)
            self.register_buffer("queue_filled", torch.zeros((), dtype=torch.int64))
            self._num_queued = HostNumber(self, "queue_filled", int)
        # predictions and targets of the step before, for `health`
        self._last: tuple[Tensor, Tensor] | None = None

    def to_inputs(self, views: list[Tensor], batch: Batch) -> DistillInputs:
        """Views of the student, and the teacher's features of them."""
        mine, said = self.knowledge.of(views, batch, self.normalisation)
        if self.weights["contrast"] and len(mine) < 2:
            raise UserError(
                "method.arguments.contrast_weight needs two views; set views.arguments={num_views: 2}"
            )
        if self.mixing and self.training:
            drawn_B = mixing_fractions(batch.passes, batch.row_ids, self.mixing)
            fractions_B = uploaded(drawn_B, mine[0].device).to(mine[0].dtype)
            mine = [mixed(view, fractions_B) for view in mine]
            said = said._replace(
                pooled=[mixed(pooled_BD, fractions_B.to(pooled_BD)) for pooled_BD in said.pooled]
            )
        return DistillInputs(mine, said)

    def forward(self, inputs: DistillInputs) -> StepOutput:
        """Weighted sum of the losses over the global batch."""
        views, said = inputs.views, inputs.said
        if self.pieces is not None:  # every rank computes the loss of the whole batch
            said = said.over_all_ranks()
        pyramids = self.pyramids(views, max(1, self.num_maps))
        pooled = [maps[-1].mean((2, 3)) for maps in pyramids]
        losses: dict[str, Tensor] = {}
        logs: dict[str, Tensor] = {}
        embeddings: tuple[Tensor, Tensor] | None = None
        if self.predictor is not None:
            targets = self.knowledge.targets(said, len(views))
            predicted = self.predictor(torch.cat(pooled)).chunk(len(views))
            unit = [F.normalize(prediction, dim=1) for prediction in predicted]
            losses["image"] = _mean(
                self._of_image(*each) for each in zip(predicted, unit, targets, strict=True)
            )
            losses["batch"] = _mean(self._in_batch(*each) for each in zip(unit, targets, strict=True))
            logs["teacher_explained"] = explained(torch.cat(unit).detach(), torch.cat(targets))
            embeddings = predicted[0].detach(), predicted[1].detach() if len(views) > 1 else targets[0]
            if self.loss == "similarity":
                self._remember(targets[0])
            self._last = (pooled[0].detach(), targets[0])
        if self.num_maps:
            wanted = self.knowledge.map_targets(
                said, [[level.shape[-2:] for level in maps] for maps in pyramids]
            )
            pairs = [
                (predict(level), target)
                for maps, of_view in zip(pyramids, wanted, strict=True)
                for predict, level, target in zip(self.map_predictors, maps, of_view, strict=True)
            ]
            losses["map"] = _mean(F.smooth_l1_loss(predicted, target) for predicted, target in pairs)
            logs["maps_explained"] = _mean(
                variance_explained(predicted, target) for predicted, target in pairs
            )
        if self.projector is not None and self.criterion is not None:
            first, second = self.projector(torch.cat(pooled[:2])).chunk(2)
            losses["contrast"] = self.criterion(first, second)
            if embeddings is None:
                embeddings = first.detach(), second.detach()
        # of maps alone there are none: means over positions may well lie near
        # one line while the positions differ
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        logs |= {f"{name}_loss": loss.detach() for name, loss in losses.items()}
        return StepOutput(loss=total, logs=logs, embeddings=embeddings)

    def health(self) -> dict[str, float]:
        """Which fraction of an image's nearest in the batch are also the teacher's nearest."""
        if self._last is None:
            return {}
        mine, theirs = self._last
        if self.pieces is None:
            mine, theirs = self.ranks.gathered(mine), self.ranks.gathered(theirs)
        return {"teacher_neighbours": shared_neighbours(mine, theirs)}

    def _of_image(self, prediction_BK: Tensor, unit_BK: Tensor, target_BK: Tensor) -> Tensor:
        if self.loss == "cosine":
            return 1 - (unit_BK * target_BK).sum(1).mean()
        if self.loss == "smooth_l1":
            return F.smooth_l1_loss(prediction_BK, target_BK * target_BK.shape[1] ** 0.5)
        # SEED: an image's own teacher features are the first that it is compared with
        others_NK = torch.cat([self.ranks.gathered(target_BK), self._queued()])
        theirs_BN = (target_BK @ others_NK.T / self.teacher_temperature).softmax(1)
        mine_BN = (unit_BK @ others_NK.T / self.student_temperature).log_softmax(1)
        return -(theirs_BN * mine_BN).sum(1).mean()

    def _in_batch(self, unit_BK: Tensor, target_BK: Tensor) -> Tensor:
        logits_BN = unit_BK @ self.ranks.gathered(target_BK).T / self.batch_temperature
        own = self.ranks.rank * len(unit_BK) + torch.arange(len(unit_BK), device=unit_BK.device)
        return F.cross_entropy(logits_BN, own)

    def _queued(self) -> Tensor:
        return self.queue[: self._num_queued.get()]

    @torch.no_grad()
    def _remember(self, target_BK: Tensor) -> None:
        if not len(self.queue):
            return
        new = self.ranks.gathered(target_BK)[: len(self.queue)]
        self.queue.copy_(torch.cat([new, self.queue])[: len(self.queue)])
        self._num_queued.set(min(self._num_queued.get() + len(new), len(self.queue)))


def _predictor(channels: int, hidden_dim: int, dim: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(channels, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, dim),
    )


def _check_weights(weights: dict[str, float]) -> None:
    """Raises UserError for weights of losses that cannot be."""
    for name, weight in weights.items():
        if not weight >= 0:
            raise UserError(f"method.arguments.{name}_weight={weight:g} is not possible: give 0 or more")
    if not any(weights.values()):
        raise UserError("all weights of method.arguments are 0: nothing would be learnt")


def mixing_fractions(passes: np.ndarray, row_ids: np.ndarray, probability: float) -> np.ndarray:
    """How much of itself each row keeps, float32 [B] of 0.5 to 1, by rows and passes alone."""
    drawn_B2 = uniform(MIXING, passes[:, None], row_ids[:, None], np.arange(2)[None, :])
    return np.where(drawn_B2[:, 0] < probability, 1 - drawn_B2[:, 1] / 2, 1.0).astype(np.float32)


def mixed(tensor: Tensor, fractions_B: Tensor) -> Tensor:
    """Each row with some of its partner, 2 k with 2 k + 1, so on the same rank; an odd last is alone."""
    partners = torch.arange(len(tensor), device=tensor.device) ^ 1
    partners = torch.where(partners < len(tensor), partners, partners ^ 1)
    fractions = fractions_B.view(-1, *[1] * (tensor.ndim - 1))
    return fractions * tensor + (1 - fractions) * tensor[partners]


def _mean(values: Any) -> Tensor:
    return torch.stack(list(values)).mean()


@torch.no_grad()
def explained(unit_BK: Tensor, target_BK: Tensor) -> Tensor:
    """Fraction of the targets' variance that predictions explain at their best common length, 0 to 1.

    Both have length 1 and the targets are centred, so it is the square of the mean cosine;
    0 where that is negative.
    """
    return (unit_BK * target_BK).sum(1).mean().clamp_min(0).square()


@torch.no_grad()
def variance_explained(predicted_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """R squared: the share of the variance of maps explained; 0 is what each channel's mean explains."""
    left = (predicted_BCHW - target_BCHW).square().sum()
    whole = (target_BCHW - target_BCHW.mean((0, 2, 3), keepdim=True)).square().sum()
    return 1 - left / whole.clamp_min(1e-12)


@torch.no_grad()
def shared_neighbours(mine_BC: Tensor, theirs_BK: Tensor, num: int = NUM_NEIGHBOURS) -> float:
    """Mean fraction, 0 to 1, of each row's nearest rows by one features that are so by the other."""
    num = min(num, len(mine_BC) - 1)
    if num < 1:
        return 0.0

    def nearest(features: Tensor) -> Tensor:
        unit = F.normalize(features.float(), dim=1)
        similar = (unit @ unit.T).fill_diagonal_(-math.inf)
        return torch.zeros_like(similar, dtype=torch.bool).scatter_(1, similar.topk(num).indices, True)

    return float((nearest(mine_BC) & nearest(theirs_BK)).sum() / (num * len(mine_BC)))
