"""Replicas of a function on Ray Serve, for the time of one command.

Serve keeps as many replicas as were asked for, starts a dead one again, sends each request to a replica that
has room, and forms batches in it. The command calls them by a handle. No port of Serve's own serves HTTP:
whoever answers clients does that in front of the handle, where a request can be refused before it is read.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from cluster.errors import UserError, WorkerFailed

DEPLOYMENT = "replica"
BATCHES_AT_ONCE = 2  # of a replica: one is prepared (decoded) while another is computed
ENVIRONMENT = {"RAY_SERVE_LOG_TO_STDERR": "0"}
OBJECT_STORE_BYTES = 512 * 2**20  # of a private Ray; what is larger than 100 KB passes through it
# an item whose replica died is asked once more; what kills every replica must not be asked forever
ATTEMPTS = 2


class Answer(NamedTuple):
    """What an item was answered, and how many items were in its batch."""

    value: Any
    batch_size: int


class Unanswered(Exception):
    """The replicas that had a request in their hands died."""


class _Died(Exception):
    """The replica died with a call in its hands."""


class Asked(Protocol):
    """What answers: `Replicas`, or anything like them."""

    async def ask(self, items: Sequence[Any]) -> list[Answer]:
        """The answer to each item, in order. Raises Unanswered."""

    async def num_ready(self) -> int:
        """Replicas that can answer now."""


@dataclass(frozen=True)
class Service:
    """What is to be served.

    Attributes:
        make: called once in each replica, gives the function from a batch of items to as many answers; it is
            called in threads.
        num_replicas: how many there are.
        cpus, gpus: what each asks of Ray; None: chosen as for the workers of a training run.
        max_batch_size: items of a batch at most.
        batch_wait_seconds: how long a batch that is not full waits for more.
        address: a Ray cluster to join; else RAY_ADDRESS, else a private Ray on this machine.
    """

    make: Callable[[], Callable[[Sequence[Any]], Sequence[Any]]]
    num_replicas: int = 1
    cpus: float | None = None
    gpus: float | None = None
    max_batch_size: int = 32
    batch_wait_seconds: float = 0.005
    address: str | None = None


@contextmanager
def replicas(service: Service) -> Iterator[Replicas]:
    """Starts the replicas and waits until they are ready; ends them, and the Ray that was started for them.

    Raises UserError where Ray Serve is not installed or the cluster cannot hold the replicas, WorkerFailed
    when they cannot start.
    """
    from cluster.training.ray_session import check_resources
    from cluster.training.workers import session_and_share

    asked = service.num_replicas, service.cpus, service.gpus
    of_session: dict[str, Any] = {"environment": ENVIRONMENT, "object_store_bytes": OBJECT_STORE_BYTES}
    with session_and_share(service.address, *asked, **of_session) as (session, share):
        try:
            from ray import serve
        except ImportError as error:
            raise UserError(f"serving needs Ray Serve: pip install 'fovea[serve]' ({error})") from error
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        check_resources(service.num_replicas, share.resources)
        name = f"fovea-{uuid.uuid4().hex[:8]}"
        serve.start(
            proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False}
        )
        others = set(serve.status().applications)
        try:
            handle = _deploy(service, share.resources, name)
            yield Replicas(name, handle, service.num_replicas * BATCHES_AT_ONCE, service.max_batch_size)
        finally:
            # a private Ray takes all with it; of a cluster only what is ours
            if not session.embedded:
                serve.delete(name)
                if not others and not set(serve.status().applications):
                    serve.shutdown()


def _deploy(service: Service, resources: dict[str, float], name: str) -> Any:
    import ray.cloudpickle
    from ray import serve

    from cluster.serving.replica import Replica

    deployment: Any = serve.deployment(
        Replica,
        name=DEPLOYMENT,
        num_replicas=service.num_replicas,
        ray_actor_options={"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0)},
        # a batch more than it computes, so that the next is complete when one is done
        max_ongoing_requests=(BATCHES_AT_ONCE + 1) * service.max_batch_size,
        health_check_period_s=2,  # how soon a dead replica is started again
        graceful_shutdown_timeout_s=10,
    )
    try:
        return serve.run(
            deployment.bind(
                ray.cloudpickle.dumps(service.make), service.max_batch_size, service.batch_wait_seconds
            ),
            name=name,
            route_prefix=None,
        )
    except RuntimeError as error:
        raise WorkerFailed(f"the replicas cannot start\n{str(error).strip()}") from None


class Replicas:
    """Replicas that are ready to be asked, from one event loop.

    Items of several requests go to a replica in one call when all replicas are busy: a call costs as much
    CPU as a third of a small image, and Serve makes larger batches of what comes together.
    """

    def __init__(self, name: str, handle: Any, max_calls: int, max_items: int) -> None:
        self._name, self._handle = name, handle
        self._max_calls, self._max_items = max_calls, max_items
        self._waiting: deque[tuple[Any, asyncio.Future[Answer]]] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, items: Sequence[Any]) -> list[Answer]:
        """The answer to each item, in order; where its replica died, of another one. Raises Unanswered."""
        loop = asyncio.get_running_loop()
        asked = [(item, loop.create_future()) for item in items]
        self._waiting.extend(asked)
        self._send()
        return list(await asyncio.gather(*(answer for _, answer in asked)))

    def _send(self) -> None:
        """Sends what waits while a replica has a hand free."""
        while self._waiting and len(self._calls) < self._max_calls:
            sent: list[tuple[Any, asyncio.Future[Answer]]] = []
            while self._waiting and len(sent) < self._max_items:
                one = self._waiting.popleft()
                if not one[1].done():  # whoever asked may be gone
                    sent.append(one)
            if sent:
                call = asyncio.create_task(self._call(sent))
                self._calls.add(call)
                call.add_done_callback(self._called)

    def _called(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._send()

    async def _call(self, sent: Sequence[tuple[Any, asyncio.Future[Answer]]]) -> None:
        """Asks for some items together; where the replica died, for each alone:
        one of them may be what killed it.
        """
        try:
            answers: Sequence[Answer | BaseException] = await self._asked([item for item, _ in sent])
        except _Died:
            alone = (self._asked_again(item) for item, _ in sent)
            answers = await asyncio.gather(*alone, return_exceptions=True)
        except Exception as error:  # whoever asked is told
            answers = [error] * len(sent)
        for (_, waiting), answer in zip(sent, answers, strict=True):
            if waiting.done():
                continue
            if isinstance(answer, BaseException):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)

    async def _asked_again(self, item: Any) -> Answer:
        for _ in range(ATTEMPTS - 1):
            try:
                return (await self._asked([item]))[0]
            except _Died:
                continue
        raise Unanswered(f"{ATTEMPTS} replicas died with this request in their hands")

    async def _asked(self, items: list[Any]) -> list[Answer]:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import RayServeException

        try:
            return [Answer(*one) for one in await self._handle.ask.remote(items)]
        except RayActorError as error:
            raise _Died from error
        except RayServeException as error:  # no replica can be started any more
            raise Unanswered(f"no replica is available: {type(error).__name__}") from error

    async def num_ready(self) -> int:
        """Replicas that run, as Serve sees them; it notices within seconds that one has died."""
        return await asyncio.to_thread(self._num_ready)

    def _num_ready(self) -> int:
        from ray import serve

        application = serve.status().applications.get(self._name)
        states: dict[Any, int] = (
            {} if application is None else dict(application.deployments[DEPLOYMENT].replica_states)
        )
        return int(states.get("RUNNING", 0))
