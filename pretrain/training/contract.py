"""What the training loop expects of the modules that it trains and of the batches that it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from cluster.errors import RunStopped
from pretrain.training.distributed import GradientAverager


class StepOutput(NamedTuple):
    """What a module gives for a batch.

    `loss` is the mean over this rank's samples; `logs` holds further scalars; `embeddings` are those of two
    views of the same images, [B, D] each without gradient, when health is to be watched; `chance_loss` is
    the loss of a network that knows nothing.
    """

    loss: Tensor
    logs: dict[str, Tensor] = {}  # noqa: RUF012 - never changed
    embeddings: tuple[Tensor, Tensor] | None = None
    chance_loss: float | None = None


@dataclass
class TrainingBatch:
    """One rank's input of a step: what the module takes,
    and the rows that could not be used with the reason.
    """

    inputs: Any
    bad_rows: dict[str, str] = field(default_factory=dict)


class UnusableRows(RunStopped):
    """Rows that cannot be used, without any to take their place: where each lies -> why."""

    def __init__(self, message: str, bad_rows: dict[str, str]) -> None:
        super().__init__(message)
        self.bad_rows = bad_rows


class Batches(Protocol):
    """Endless batches from a position on."""

    def __next__(self) -> TrainingBatch: ...

    def close(self) -> None:
        """Frees threads and files."""


class GradientExchange(Protocol):
    """What ranks do with their gradients; `GradientAverager` and `pretrain.methods.pieces.Pieces` are such.

    Attributes:
        loss_weight: of this rank's loss in the mean over the global batch.
        chance: what random layers of this rank draw from beside the step.
    """

    loss_weight: float
    chance: int

    def finish(self) -> None:
        """Called after `backward()`: then `.grad` is that of the loss of the global batch."""

    def whole(self, tensor: Tensor) -> Tensor:
        """The rows of the global batch, of what a module's `StepOutput` has as embeddings; no gradient."""
        ...


class Trainable(nn.Module):
    """A module that the loop can train: `forward(inputs) -> StepOutput`.
    All of its state is in its state_dict.
    """

    @property
    def sees_global_batch(self) -> bool:
        """Whether every rank computes the loss of the whole global batch, not of its share."""
        return False

    def exchange(self) -> GradientExchange:
        """What is done with gradients; called once, when parameters are where they are trained."""
        return GradientAverager(self.parameters())

    def after_step(self, step: int, num_steps: int) -> None:
        """Called after each step, also one that was skipped: for momentum copies."""

    def health(self) -> dict[str, float]:
        """Numbers on the module's state, to be logged."""
        return {}
