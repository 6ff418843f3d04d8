"""DINO: a student sees small and large crops and agrees with the outputs of a
slowly moving teacher for the large ones.

Caron et al., Emerging Properties in Self-Supervised Vision Transformers, https://arxiv.org/abs/2104.14294,
algorithm 1. The teacher's outputs are centred and sharpened,
which keeps them from being the same for all images. The teacher is exported.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from torch import Tensor

from pretrain.encoders import Encoder
from pretrain.methods.base import Method, momentum_copy, move_towards, relative_distance, rising_momentum
from pretrain.methods.host_numbers import HostNumber
from pretrain.training.contract import StepOutput
from pretrain.training.health import assignment_information, outputs_in_use


class DINO(Method):
    """DINO.

    Args:
        encoder: to be trained.
        output_dim: of the heads; 65536 in the paper, 2048 and more do for small data.
        student_temperature, teacher_temperature: the lower, the sharper.
        warmup_teacher_temperature, warmup_fraction: where the teacher's starts, and the fraction of the run
            in which it rises.
        momentum: of the teacher at the start; it rises to 1.
        center_momentum: of the mean output that is taken off the teacher's; 1 switches centring off.
        frozen_until: fraction of the run in which the last layer is kept as it is.
        norm_last_layer: keep the last layer's rows at unit length, which is more stable.
        num_global_views: views, the first ones, that the teacher sees.
        hidden_dim, bottleneck_dim: of the heads.
    """

    recipe = "dino"
    num_views = None

    def __init__(
        self,
        encoder: Encoder,
        *,
        output_dim: int = 65536,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.07,
        warmup_teacher_temperature: float = 0.04,
        warmup_fraction: float = 0.3,
        momentum: float = 0.996,
        center_momentum: float = 0.9,
        frozen_until: float = 0.01,
        norm_last_layer: bool = True,
        num_global_views: int = 2,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
    ) -> None:
        super().__init__(encoder)

        def head() -> DINOProjectionHead:
            return DINOProjectionHead(
                encoder.channels[-1], hidden_dim, bottleneck_dim, output_dim, norm_last_layer=norm_last_layer
            )

        self.head, self.teacher_head = head(), head()
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher_head.requires_grad_(False)
        self.teacher = cast(Encoder, momentum_copy(encoder))
        self.criterion = DINOLoss(
            output_dim=output_dim, student_temp=student_temperature, center_momentum=center_momentum
        )
        self.share: Tensor
        self.register_buffer("share", torch.zeros((), dtype=torch.float64))
        self._fraction = HostNumber(self, "share")
        self.temperatures = warmup_teacher_temperature, teacher_temperature
        self.warmup_fraction, self.momentum, self.frozen_until = warmup_fraction, momentum, frozen_until
        self.num_global_views, self.output_dim = num_global_views, output_dim

    @property
    def exported(self) -> Encoder:
        """The teacher, which is the better of the two (paper, figure 6)."""
        return self.teacher

    def forward(self, views: list[Tensor]) -> StepOutput:
        """Mean cross-entropy of teacher and student over pairs of views. At chance it is log(output_dim)."""
        fraction = self._fraction.get()
        features = self.features(views)
        frozen = {}
        if fraction < self.frozen_until:
            # gradients of zero rather than none, so that one rank and many do the same
            last_layer = {f"last_layer.{name}": p for name, p in self.head.last_layer.named_parameters()}
            frozen = {name: p.detach() + 0 * p for name, p in last_layer.items()}
        student = [torch.func.functional_call(self.head, frozen, (view,)) for view in features]
        with torch.no_grad():
            seen = self.features(views[: self.num_global_views], self.teacher)
            teacher = [self.teacher_head(view) for view in seen]
        start, end = self.temperatures
        temperature = (
            end
            if fraction >= self.warmup_fraction
            else start + (end - start) * fraction / self.warmup_fraction
        )
        with torch.no_grad():
            assigned = torch.softmax((teacher[0] - self.criterion.center[0]) / temperature, dim=1)
        return StepOutput(
            loss=self.criterion(teacher, student, teacher_temp=temperature),
            logs={
                "assignment_information": assignment_information(assigned),
                "outputs_in_use": outputs_in_use(assigned),
            },
            embeddings=(features[0].detach(), features[1].detach()),
            chance_loss=math.log(self.output_dim),
        )

    def after_step(self, step: int, num_steps: int) -> None:
        """Moves the teacher."""
        momentum = rising_momentum(self.momentum, step, num_steps)
        move_towards(self.teacher, self.encoder, momentum)
        move_towards(self.teacher_head, self.head, momentum)
        self._fraction.set((step + 1) / max(1, num_steps))

    def health(self) -> dict[str, float]:
        """How far the teacher is behind."""
        return {"teacher_distance": relative_distance(self.teacher, self.encoder)}
