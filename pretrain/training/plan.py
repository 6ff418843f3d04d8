"""What the loop will do, decided before its first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pretrain.training.data_identity import Identity
from pretrain.training.optimizers import Rates
from pretrain.training.settings import TrainingSettings


@dataclass(frozen=True)
class Evaluating:
    """What is measured on the way, and what is done with it.

    Attributes:
        function: called with the step, and whether it is the last, on every rank; its numbers are logged.
        every_steps: steps between two calls; 0 for the last step only.
        best_metric, best_is_lowest, keep_best: `keep_best(step)` is called on every rank when this number of
            `function` is its highest (or lowest) so far.
        patience: evaluations in a row without a better number after which training is finished;
            0 for any number.
    """

    function: Callable[[int, bool], dict[str, float]]
    every_steps: int = 0
    best_metric: str | None = None
    best_is_lowest: bool = False
    keep_best: Callable[[int], None] | None = None
    patience: int = 0


@dataclass(frozen=True)
class Plan:
    """A run of the loop.

    Attributes:
        out: URL of the run folder.
        training: batch size, precision, rules, and how often to log and to write checkpoints.
        num_steps: of the whole run. `training.steps` and `training.epochs` are what it was made of.
        steps_per_epoch: passes over the data are counted by it.
        rates_at: learning rates and weight decay of a step.
        seed: of what random layers draw.
        on_collapse: `warn` or `stop`.
        max_bad_fraction: of the rows of an epoch, and later of all that were seen: the run stops when more
            are bad.
        evaluating: None for nothing.
        data: what is learnt from, on rank 0; with other data than before a run goes on
            where `on_data_change` is `continue`.
    """

    out: str
    training: TrainingSettings
    num_steps: int
    steps_per_epoch: int
    rates_at: Callable[[int], Rates]
    seed: int = 0
    on_collapse: str = "warn"
    max_bad_fraction: float = 0.05
    evaluating: Evaluating | None = None
    data: Mapping[str, Identity] = field(default_factory=dict)
    on_data_change: str = "refuse"
