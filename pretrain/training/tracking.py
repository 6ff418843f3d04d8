"""The same numbers for MLflow and Weights & Biases, beside TensorBoard, by one setting:
`tracking: [mlflow, wandb]`.

Both work without a network, and where they keep their runs is set by their own variables:
- mlflow: `MLFLOW_TRACKING_URI`, else a SQLite file `mlflow.db` in OUT; `MLFLOW_EXPERIMENT_NAME`, else
  `fovea`.
- wandb: `WANDB_API_KEY` or `WANDB_MODE=online` send to `WANDB_BASE_URL`; else it writes OUT/wandb, for
  `wandb sync`; `WANDB_PROJECT`, else `fovea`.

`tracking.json` in OUT remembers the ids of the runs. A run that is continued repeats the steps since its
checkpoint, with the same numbers: those that a tracker holds already are not sent twice, and those of
metrics.jsonl that it lacks are sent first, so a tracker may also be named later. W&B's files are written
anew by each start, for a killed process leaves them behind cut off. Secrets are masked, and nothing of the
environment or the command line is sent.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cluster import storage
from cluster.errors import UserError, choose, first_line
from cluster.secrets import masked
from cluster.settings import flattened

STATE = "tracking.json"
NEEDS = {"mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}
BEFORE_ALL = -1
MAX_PARAMETER = 500  # characters of a setting that MLflow's stores take for sure


class Tracker(Protocol):
    """A run at a tracker."""

    run_id: str
    until: int  # the last step that it holds numbers of

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds numbers of a step beyond `until`."""

    def close(self, finished: bool) -> None:
        """Hands over what is left and says how the run ended."""


def check_tracking(names: Sequence[str], out: str) -> None:
    """Sees to it that the trackers can be used. Raises UserError for an unknown or a missing one,
    or where it cannot write.
    """
    for name in names:
        choose("tracking", name, TRACKERS)
        if any(importlib.util.find_spec(module) is None for module in NEEDS[name]):
            raise UserError(
                f"tracking={name} needs packages that are not installed: pip install 'fovea[{name}]'"
            )
    if "mlflow" in names and not storage.is_local(out) and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            f"tracking=mlflow cannot keep its file in {out}, which is not a local folder; set "
            "MLFLOW_TRACKING_URI to a server or a file (sqlite:///mlflow.db)"
        )


class Trackers:
    """The trackers of a run folder.

    Args:
        names: of `TRACKERS`.
        url: OUT.
        local: the folder in which the run folder's files lie or from which they are uploaded.
        config: the settings, without secrets.
        lines: what metrics.jsonl holds, of steps that were done.

    Attributes:
        troubles: what went wrong. A tracker that fails is left out from then on.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        url: str,
        local: Path,
        config: dict[str, Any],
        lines: Sequence[dict[str, Any]],
    ) -> None:
        self._open: dict[str, Tracker] = {}
        self.troubles: list[str] = []
        if not names:
            return
        path = storage.join(url, STATE)
        ids: dict[str, str] = storage.read_json(path) if storage.exists(path) else {}
        for name in names:
            try:
                self._open[name] = TRACKERS[name](url, local, config, ids.get(name))
            except Exception as error:  # a server that is away must not end a training run
                self._tell(name, error)
        storage.write_json(path, ids | {name: tracker.run_id for name, tracker in self._open.items()})
        for line in lines:
            self.log(line)

    def log(self, line: Mapping[str, Any]) -> None:
        """Hands on the numbers of a line of metrics.jsonl."""
        numbers = {
            key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"
        }
        self._each(lambda tracker: _log(tracker, int(line["step"]), numbers))

    def close(self, finished: bool) -> None:
        """Closes all."""
        self._each(lambda tracker: tracker.close(finished))
        self._open = {}

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                action(tracker)
            except Exception as error:  # the same
                del self._open[name]
                self._tell(name, error)

    def _tell(self, name: str, error: Exception) -> None:
        reason = masked(first_line(error))
        self.troubles.append(f"nothing more is sent to {name} until the next start ({reason})")


def _log(tracker: Tracker, step: int, numbers: Mapping[str, float]) -> None:
    if step > tracker.until:
        tracker.log(step, numbers)
        tracker.until = step


class MlflowRun:
    """A run in an MLflow store."""

    def __init__(self, url: str, local: Path, config: dict[str, Any], run_id: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # by default it keeps a step waiting for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        import logging

        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
        self._client = MlflowClient(
            os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{local / 'mlflow.db'}"
        )
        self.until = BEFORE_ALL
        if run_id is None:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fovea"
            known = self._client.get_experiment_by_name(experiment)
            number = known.experiment_id if known else self._client.create_experiment(experiment)
            run_id = self._client.create_run(number, run_name=_name(url)).info.run_id
            params = [Param(key, str(value)[:MAX_PARAMETER]) for key, value in flattened(config).items()]
            self._client.log_batch(run_id, params=params)
        else:
            self._client.update_run(run_id, status="RUNNING")
            history = self._client.get_metric_history(run_id, "samples_seen")
            self.until = max((metric.step for metric in history), default=BEFORE_ALL)
        self.run_id: str = run_id

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One message a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for key, value in numbers.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self, finished: bool) -> None:
        """Marks the run."""
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


class WandbRun:
    """A run of Weights & Biases, in its cloud or in files."""

    def __init__(self, url: str, local: Path, config: dict[str, Any], run_id: str | None) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or (
            "online" if os.environ.get("WANDB_API_KEY") else "offline"
        )
        self.run_id: str = run_id or uuid.uuid4().hex
        if mode != "online":
            for former in (local / "wandb").glob(f"offline-run-*-{self.run_id}"):
                shutil.rmtree(former)
        # no console, git, command line or machine: settings without secrets and numbers are all that leaves
        quiet = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "fovea",
            id=self.run_id,
            name=_name(url),
            dir=str(local),
            config=config,
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=quiet,
        )
        self.until = self._run.step - 1

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a step."""
        self._run.log(dict(numbers), step=step, commit=True)

    def close(self, finished: bool) -> None:
        """Waits until all is sent or written."""
        self._run.finish(exit_code=0 if finished else 1)


TRACKERS: dict[str, Callable[[str, Path, dict[str, Any], str | None], Tracker]] = {
    "mlflow": MlflowRun,
    "wandb": WandbRun,
}


def _name(url: str) -> str:
    """What people call the run: the last two parts of OUT."""
    return "/".join([part for part in url.split("/") if part][-2:])[-100:]
