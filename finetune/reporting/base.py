"""What a task's part of the report is made of."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.tasks.base import Predictor
from pretrain.reporting.folder import RunRecord
from pretrain.reporting.numbers import percent, points, short
from pretrain.reporting.page import Section, Tile
from pretrain.reporting.samples import Sample
from pretrain.reporting.verdict import Verdict

PACKAGE = "finetune.reporting"
RANDOM_WEIGHTS = "random weights"
AHEAD, BEHIND, LEVEL = "ahead", "behind", "no difference beyond noise"
Z95 = 1.96  # standard errors to either side that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Score:
    """A metric of a model. `is_fraction`: between 0 and 1, shown in percent."""

    name: str
    title: str
    note: str = ""
    is_fraction: bool = True

    def text(self, value: float | None) -> str:
        """The number for people."""
        return percent(value) if self.is_fraction else short(value)


@dataclass(frozen=True)
class Material:
    """What the sections with images are made of: the finished model,
    and a sample of the data that it is evaluated on.
    """

    run: RunRecord
    predictor: Predictor
    sample: Sample
    deadline: float


class TaskReport(ABC):
    """What a task says about its runs.

    Attributes:
        noun: what its model is called.
        scores: its metrics, the deciding one first.
    """

    noun: str
    scores: Sequence[Score]

    def of(self, run: RunRecord) -> TaskReport:
        """The report that fits a run: this one, unless the task has several kinds of data."""
        return self

    @abstractmethod
    def verdict(self, run: RunRecord, others: Sequence[Mapping[str, Any]]) -> Verdict:
        """The verdict on a finished run; `others` are the rows of comparison.json but its own."""

    @abstractmethod
    def numbers(self, run: RunRecord) -> list[Section]:
        """Sections that result.json alone is enough for."""

    @abstractmethod
    def image_sections(self, material: Material) -> list[tuple[str, str, Any]]:
        """(id, title, function that makes the section) of what needs the model and images."""

    def labels(self, material: Material) -> list[str] | None:
        """A class for each image of the sample, where there is one."""
        return None

    def tiles(self, run: RunRecord) -> list[Tile]:
        """The deciding number and up to two more."""
        metrics = run.metrics
        return [
            Tile(score.title, score.text(metrics[score.name]), score.note)
            for score in self.scores[:3]
            if score.name in metrics
        ]

    def so_far(self, metrics: Mapping[str, float]) -> str | None:
        """The deciding number of a run that goes on, in words."""
        best = self.scores[0]
        value = metrics.get(best.name)
        return (
            None if value is None else f"{best.title.lower()} on the validation data is {best.text(value)}"
        )


def random_row(others: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row of the same network from random weights, when it is finished."""
    return next((row for row in others if row.get("name") == RANDOM_WEIGHTS and row.get("metrics")), None)


def noise_of(name: str, run: Mapping[str, Any], other: Mapping[str, Any], *, min_noise: float) -> float:
    """Half the 95 % interval of the difference of a number of two results, taken as independent: images of
    one set make both harder or easier, so the true one is rather smaller.

    `least` is the answer where a result has no standard error (of before they were kept),
    and never undercut.
    """
    errors = [(of.get("standard_errors") or {}).get(name) for of in (run, other)]
    if None in errors:
        return min_noise
    return max(min_noise, Z95 * math.hypot(*map(float, errors)))  # type: ignore[arg-type]


def standing(value: float, other: float, noise: float) -> str:
    """How a number, better when it is higher, stands to another:
    `ahead`, `behind` or `no difference beyond noise`.
    """
    if abs(value - other) <= noise or math.isnan(noise):
        return LEVEL
    return AHEAD if value > other else BEHIND


def worth_of_pretraining(
    value: float, other: float, noise: float, *, num: int | None, unit: str | None = None
) -> tuple[str, str]:
    """A sentence on the difference to random weights, and its tone.

    Args:
        value, other: of the model and of the same network from random weights.
        noise: half the 95 % interval of their difference.
        num: images that they were evaluated on.
        unit: what is counted; None for fractions of one.
    """
    show = percent if unit is None else short
    size = (
        points(abs(value - other)).lstrip("+") if unit is None else f"{short(abs(value - other))} in {unit}"
    )
    reached = f"the same network from random weights reaches {show(other)}"
    stands = standing(value, other, noise)
    if stands == AHEAD:
        return f"Pretraining gains {'+' if unit is None else ''}{size}: {reached}.", "good"
    if stands == BEHIND:
        return f"Pretraining did not help here: {reached}, which is {size} better.", "warn"
    reach = f"{100 * noise:.1f}" if unit is None else short(noise, 2)
    seen = f"what {num:,} images can tell" if num else "the noise"
    signed = f"{'+' if value >= other else '−'}{size}"
    return (
        f"{reached[0].upper()}{reached[1:]}: no difference beyond noise, {signed} is within {seen} (± "
        f"{reach}).",
        "warn",
    )
