"""Going on from a checkpoint of another run, as a run of one's own:
with another learning rate, schedule, length or rule.

A run's own settings may not change what was computed (`run_folder.claim`). A run with `training.parent`
begins where the other stood, with the other's weights, state of the optimizer and position in the data, and
its own settings from there; the other is left as it is and named in result.json.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from cluster import storage
from cluster.errors import UserError
from pretrain.training import checkpoints
from pretrain.training.checkpoints import Checkpoint, Progress

SETTING = "training.parent"


class Parent(NamedTuple):
    """A run, and the step of one of its checkpoints; None for its newest."""

    url: str
    step: int | None


def parsed(text: str) -> Parent:
    """`RUN` or `RUN@STEP`."""
    found = re.fullmatch(r"(.+)@(\d+)", text)
    return Parent(text, None) if found is None else Parent(found[1], int(found[2]))


def absolute(text: str | None) -> str | None:
    """The same with a local path made absolute: workers may run in another folder."""
    if text is None:
        return None
    url, step = parsed(text)
    return storage.absolute(url) + ("" if step is None else f"@{step}")


def chosen_step(text: str) -> int:
    """The step to begin at. Raises UserError where there is no such checkpoint, and says which there are."""
    url, step = parsed(text)
    steps = sorted(progress.step for progress in checkpoints.progress_newest_first(url))
    if not steps:
        raise UserError(
            f"{SETTING}={text}: {url} has no complete checkpoint; name the folder that a run left (its out)"
        )
    if step is None:
        return steps[-1]
    if step not in steps:
        there = ", ".join(map(str, steps))
        raise UserError(
            f"{SETTING}={text}: {url} has no checkpoint of step {step}; there are those of step {there} "
            "(training.keep_checkpoints keeps more)"
        )
    return step


def begin(text: str, step: int, *, num_steps: int, batch_size_global: int) -> Checkpoint:
    """The parent's checkpoint, with its position and nothing else of its history.

    Raises UserError where it cannot be used, or nothing would be left to do.
    """
    url, _ = parsed(text)
    if step >= num_steps:
        raise UserError(
            f"{SETTING}={text} is at step {step}, and this run ends at step {num_steps}: no steps are left; "
            "give more training.epochs or training.steps"
        )
    found = checkpoints.load_newest(url, at_step=step)
    if found is None:
        raise UserError(
            f"{SETTING}={text}: the checkpoint of step {step} in {url} is not seen here; with workers on "
            "several machines it must be in a storage that all of them reach"
        )
    was = found.progress
    if was.samples_seen != was.step * batch_size_global:
        raise UserError(
            f"training.batch_size_global={batch_size_global} is not that of {SETTING}={text}, whose "
            f"{was.step} steps saw {was.samples_seen} images; positions are counted in batches, so keep "
            f"{was.samples_seen // was.step}"
        )
    progress = Progress(
        step=was.step, samples_seen=was.samples_seen, data=was.data, parent={"run": url, "step": was.step}
    )
    return dataclasses.replace(found, progress=progress)
