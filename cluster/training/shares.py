"""What a worker asks of Ray: CPUs and GPUs, derived from the cluster's nodes where the user does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import UserError

HOW_ON_CPUS = "cluster.gpus_per_worker=0 trains on CPUs"


@dataclass(frozen=True)
class Share:
    """Of one worker. `words` say what was chosen and why, where that is not obvious."""

    cpus: float
    gpus: float
    words: str = ""

    @property
    def resources(self) -> dict[str, float]:
        """As Ray names them."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def share_here(
    num_cpus: int, num_workers: int, cpus: float | None, gpus: float | None, *, has_gpu: bool
) -> Share:
    """On a Ray of the run's own: this machine's CPUs shared evenly, and a GPU where there is one."""
    return Share(cpus or max(1, num_cpus // num_workers), float(has_gpu) if gpus is None else gpus)


def share_on_cluster(
    nodes: Sequence[Mapping[str, float]],
    may_become: Mapping[str, float] | None,
    cpus: float | None,
    gpus: float | None,
    *,
    kinds: Sequence[Mapping[str, float]] = (),
) -> Share:
    """On a cluster that was joined: a GPU where any node has one,
    and with it its part of the node's CPUs less one.

    Args:
        nodes: resources of each node that is alive.
        may_become: of all nodes together when the cluster has grown as far as it may, where that is known.
        cpus, gpus: what the user asks for; None: chosen here.
        kinds: resources of one node of each kind that the cluster may start, where that is known.
    """
    num_gpus = max(sum(node.get("GPU", 0.0) for node in nodes), (may_become or {}).get("GPU", 0.0))
    if gpus == 0 and num_gpus:
        return Share(
            cpus or 1,
            0,
            f"the cluster has {num_gpus:g} GPUs, and cluster.gpus_per_worker=0 leaves them idle",
        )
    if not num_gpus and not gpus:
        return Share(cpus or 1, 0)
    if cpus is not None:
        return Share(cpus, 1)
    # images are decoded by a worker's CPUs, and one of a node is left for Ray and the system
    of_each_gpu = [
        (node.get("CPU", 0.0) - 1) // node["GPU"] for node in (*nodes, *kinds) if node.get("GPU", 0.0) >= 1
    ]
    chosen = max(1.0, min(of_each_gpu, default=1.0))
    return Share(chosen, 1, f"each worker asks for a GPU and {chosen:g} CPUs, with which it decodes images")


def check_gpus(gpus: float | None) -> None:
    """Raises UserError for a number of GPUs that a worker cannot have: it computes on one, or on none."""
    if gpus not in (None, 0, 1):
        raise UserError(
            f"cluster.gpus_per_worker={gpus:g} is not possible: a worker computes on one GPU, or on none; "
            "for more GPUs take more workers"
        )
