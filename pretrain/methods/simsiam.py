"""SimSiam: predict the other view's projection, through which no gradient goes;
nothing repels and nothing lags.

Chen & He, Exploring Simple Siamese Representation Learning, https://arxiv.org/abs/2011.10566, algorithm 1.
"""

from __future__ import annotations

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Method
from pretrain.training.contract import StepOutput


class SimSiam(Method):
    """SimSiam.

    Args:
        encoder: to be trained.
        hidden_dim: of the projection head.
        projection_dim: of projections and predictions.
        bottleneck_dim: of the prediction head, a quarter of `projection_dim` in the paper.
    """

    recipe = "moco_v2"
    num_views = 2
    constant_rate = ("predictor.",)  # section 4.1: "h is trained with a constant lr (without decay)"

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden_dim: int = 2048,
        projection_dim: int = 2048,
        bottleneck_dim: int = 512,
    ) -> None:
        super().__init__(encoder)
        self.projector = SimSiamProjectionHead(encoder.channels[-1], hidden_dim, projection_dim)
        self.predictor = SimSiamPredictionHead(projection_dim, bottleneck_dim, projection_dim)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, views: list[Tensor]) -> StepOutput:
        """Negative cosine similarity of predictions and projections, mean of both ways: from -1 to 1."""
        projections = [self.projector(features) for features in self.features(views)]
        predictions = [self.predictor(projection) for projection in projections]
        first, second = (projection.detach() for projection in projections)
        loss = (self.criterion(predictions[0], second) + self.criterion(predictions[1], first)) / 2
        return StepOutput(loss=loss, embeddings=(first, second))
