"""Ray for the duration of one run: joins an existing cluster,
or starts a small private one and removes its traces.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import UserError
from cluster.training.ray_guard import start_guard
from cluster.training.shares import HOW_ON_CPUS

# of training only settings and results pass through it; Ray's default is 30 % of the memory
OBJECT_STORE_BYTES = 100 * 2**20

_TOKEN = secrets.token_hex(32)  # one a process, because Ray reads it once
_has_token = False

# Values that a user's environment may override. Ray reads them when it is imported,
# started or when a run starts.
DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or each print of a worker appears twice in its log
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how soon an end or a failure is seen; the default is 2
    "TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES": "1",  # ranks of one machine see each other's GPUs
    "RAY_ENABLE_AUTO_CONNECT": "0",  # no late call may start a second Ray while the first goes down
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in settings stay valid
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default, without its warning
}
ELASTIC_DEFAULTS = {
    # how long room that is gone is waited for before shrinking
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
}
EMBEDDED_DEFAULTS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody preempts a part of this machine
    "RAY_enable_metrics_collection": "false",
    "RAY_task_events_report_interval_ms": "0",  # no notes of calls, which are for the dashboard
    # no port has this number, so Ray goes on without these two servers,
    # which would answer anybody at all addresses
    "AUTOSCALER_METRIC_PORT": "65536",
    "DASHBOARD_METRIC_PORT": "65536",
    "RAY_worker_niceness": "0",  # the default of 15 lets any other program starve the training
}


@dataclass(frozen=True)
class Session:
    """The Ray in use; a private one has a folder that goes with it."""

    folder: Path | None = None

    @property
    def embedded(self) -> bool:
        """Whether this Ray is private to this run."""
        return self.folder is not None


@contextmanager
def ray_session(
    address: str | None,
    num_workers: int,
    cpus_per_worker: float,
    *,
    environment: Mapping[str, str] | None = None,
    object_store_bytes: int = OBJECT_STORE_BYTES,
) -> Iterator[Session]:
    """Connects this process to Ray and leaves things as they were: what it started it ends.

    In order of precedence: the Ray that this process is connected to; `address`; RAY_ADDRESS (set inside Ray
    jobs); a private Ray on this machine with as many CPUs as it has, or as the workers want if that is more.
    Raises UserError when the cluster cannot be reached. `environment` holds further defaults that Ray reads.
    """
    embedded = address is None and not os.environ.get("RAY_ADDRESS")
    connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    private = EMBEDDED_DEFAULTS | _own_token() if embedded and not connected else {}
    # before the import, which is when Ray reads how it authenticates
    with _environment({**DEFAULTS, **private, **(environment or {})}):
        import ray

        from cluster.training.ray_private import quiet_raylet

        if ray.is_initialized():  # its settings, its noise and its end are those of who started it
            yield Session()
        elif embedded:
            with quiet_raylet(), _embedded_ray(num_workers, cpus_per_worker, object_store_bytes) as folder:
                yield Session(folder)
        else:
            with quiet_raylet(), _joined_ray(address or os.environ["RAY_ADDRESS"]):
                yield Session()


def _own_token() -> dict[str, str]:
    """How the private Ray authenticates: by a token of this process,
    known to its children by their environment alone.

    Ray's processes listen on all interfaces, whatever address they are given, so without a token whoever
    reaches this machine could run code in them; and Ray's default would leave a file with a token in the
    home directory. A RAY_AUTH_MODE that is set is obeyed. Ray reads the mode when it is imported:
    where that was before, there is no token.
    """
    global _has_token
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    _has_token = _has_token or "ray" not in sys.modules
    return (
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN} if _has_token else {"RAY_AUTH_MODE": "disabled"}
    )


@contextmanager
def _embedded_ray(num_workers: int, cpus_per_worker: float, object_store_bytes: int) -> Iterator[Path]:
    import ray

    from cluster.training.ray_private import start_ray

    folder = _new_folder()
    guard = start_guard(folder)
    try:
        start_ray(
            _opened_by_ray(folder),
            num_cpus=max(os.cpu_count() or 1, math.ceil(num_workers * cpus_per_worker)),
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield folder
    finally:
        ray.shutdown()
        guard.communicate()  # closes its input and waits until nothing is left


@contextmanager
def _joined_ray(address: str) -> Iterator[None]:
    import ray

    check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"cannot join the Ray cluster at {address}: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def check_answers(address: str, *, connect_seconds: float = 5.0, answer_seconds: float = 20.0) -> None:
    """Raises UserError within seconds where no Ray answers at HOST:PORT;
    Ray itself tries for minutes, with many words.

    Addresses without a port (`auto`) are left to Ray.
    """
    host, _, port = (
        address.partition("://")[2].rpartition(":") if "://" in address else address.rpartition(":")
    )
    if not host or not port.isdigit():
        return
    way_out = "give another cluster.address, or unset RAY_ADDRESS to use a Ray of its own"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=connect_seconds).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot join the Ray cluster at {address}: nothing answers there ({error}); {way_out}"
        ) from error
    if "://" in address:  # a Ray client, which has a time limit of its own
        return
    import cluster.training.ray_private  # noqa: F401 - not within the time of the answer

    answered = threading.Event()
    threading.Thread(target=_ask, args=(address, answered), name="ask Ray", daemon=True).start()
    if not answered.wait(answer_seconds):
        raise UserError(
            f"cannot join the Ray cluster at {address}: something listens there and did not answer as Ray "
            f"within {answer_seconds:g} s; it hangs, or is another program; {way_out}"
        )


def _ask(address: str, answered: threading.Event) -> None:
    """Notes that a Ray answered, be it with an error: `ray.init` says what is wrong then."""
    from cluster.training.ray_private import ask_head

    try:
        ask_head(address)
    except Exception as error:
        if any(
            word in str(error).lower()
            for word in ("timed out", "timeout", "unavailable", "failed to connect", "deadline")
        ):
            return
    answered.set()


def check_resources(num_workers: int, resources_per_worker: dict[str, float]) -> None:
    """Raises UserError when no node or not all nodes together can ever
    hold the workers (busy is not refused).

    A cluster that grows by itself counts as the largest that it may become.
    """
    import ray

    from cluster.training.ray_private import max_resources

    totals = max_resources()
    if totals is None:
        totals = ray.cluster_resources()
        room = sum(
            _num_fitting(node["Resources"], resources_per_worker) for node in ray.nodes() if node["Alive"]
        )
    else:
        room = num_workers
    on_cpus = f"; {HOW_ON_CPUS}"
    for name, each in resources_per_worker.items():
        want, have = each * num_workers, totals.get(name, 0.0)
        if want > have:
            raise UserError(
                f"{num_workers} workers with {each:g} {name} each want {want:g} {name}, the Ray cluster has "
                f"{have:g}; ask for fewer workers or less per worker, or use a larger "
                f"cluster{on_cpus if name == 'GPU' else ''}"
            )
    if room < num_workers:
        each_has = ", ".join(f"{amount:g} {name}" for name, amount in resources_per_worker.items())
        raise UserError(
            f"{num_workers} workers with {each_has} each do not fit: the cluster's nodes hold {room} such "
            "workers"
        )


def _num_fitting(node: dict[str, float], per_worker: dict[str, float]) -> int:
    # the small number forgives fractions like 3 * 0.1
    fits = [int(node.get(name, 0.0) / each + 1e-9) for name, each in per_worker.items() if each > 0]
    return min(fits, default=10**9)


@contextmanager
def _environment(defaults: dict[str, str]) -> Iterator[None]:
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _opened_by_ray(folder: Path) -> Path:
    """What Ray is given of our folder: it opens its own to everybody,
    who would otherwise rename sockets and plant links.
    """
    inner = folder / "ray"
    inner.mkdir()
    return inner


def _new_folder() -> Path:
    """A folder for Ray's sockets and logs, of this user alone."""
    parent = tempfile.gettempdir()
    if len(parent) > 20 and os.access("/tmp", os.W_OK):  # noqa: S108 - Ray's sockets need a path below 107 bytes
        parent = "/tmp"  # noqa: S108
    return Path(tempfile.mkdtemp(prefix="fovea-ray-", dir=parent))
