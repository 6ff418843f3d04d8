"""What the training loop asks of the modules that it trains, and of the batches that it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from cluster.errors import RunStopped


class StepOutput(NamedTuple):
    """What a module gives for a batch.

    `loss` is the mean over this rank's samples; `logs` holds further scalars; `embeddings` are those of two views of the same
    images, [B, D] each without gradient, when health is to be watched; `chance_loss` is the loss of a network that knows
    nothing.
    """

    loss: Tensor
    logs: dict[str, Tensor] = {}  # noqa: RUF012 - never changed
    embeddings: tuple[Tensor, Tensor] | None = None
    chance_loss: float | None = None


@dataclass
class TrainingBatch:
    """One rank's input of a step: what the module takes, and the rows that could not be used with the reason."""

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


class Trainable(Protocol):
    """A module that the loop can train: `forward(inputs) -> StepOutput`, and `after_step` for momentum encoders.

    With `pieces` every rank computes the same loss of the whole global batch, and `pieces.finish()` takes the place of
    averaging gradients over ranks (`pretrain.methods.pieces`).
    """

    def after_step(self, step: int, num_steps: int) -> None: ...
