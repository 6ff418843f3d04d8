"""What all ranks know of a step, in one message that nobody waits for before the next step is under way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from pretrain.training.distributed import world_size
from pretrain.training.stepping import Gradients


@dataclass(frozen=True)
class StepNumbers:
    """The same on every rank: the mean loss, whether any rank has unsound gradients, stops, or asks."""

    loss: float
    unsound: bool
    stops: bool
    asked: bool
    num_bad_rows: int


class Agreement:
    """The numbers of a step, summed over ranks on the device and on their way to the host.

    Made when the backward pass is launched; the optimizer goes by `unsound` on the device. `read()` waits
    until the device has come as far, so it is called when the next step has been launched,
    or at once where something depends on the numbers.

    Args:
        step, samples_seen: before the step, and after it.
        loss_weight: of this rank's loss in the mean over the global batch.
        stops, asked, num_bad_rows: of this rank.

    Attributes:
        unsound: float32 scalar on the device, 1 where the gradients of any rank are not
            finite and the optimizer must not move.
    """

    def __init__(
        self,
        gradients: Gradients,
        *,
        step: int,
        samples_seen: int,
        loss_weight: float,
        stops: bool,
        asked: bool,
        num_bad_rows: int,
    ) -> None:
        self.step, self.samples_seen = step, samples_seen
        self.loss, self.norm, self.learning_rate = gradients.loss, gradients.norm, gradients.learning_rate
        device = gradients.loss.device
        # filled on the device: a copy from the host would wait for it
        of_host = [
            torch.full((), float(n), dtype=torch.float64, device=device)
            for n in (stops, asked, num_bad_rows)
        ]
        numbers = torch.stack([gradients.loss * loss_weight, (~gradients.sound).double(), *of_host])
        if world_size() > 1:
            dist.all_reduce(numbers)
        self.unsound = (numbers[1] > 0).float()
        self._numbers = numbers.to("cpu", non_blocking=True)  # into page-locked memory
        self._arrived: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> StepNumbers:
        """The numbers, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, unsound, stops, asked, num_bad_rows = self._numbers.tolist()
        return StepNumbers(loss, unsound > 0, stops > 0, asked > 0, int(num_bad_rows))
