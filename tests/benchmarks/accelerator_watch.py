"""A training loop that is watched: what `tests.benchmarks.accelerator` does between
the steps of the project's own loop.
"""

from __future__ import annotations

import collections
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.training.loop import Outcome, train

NUM_KERNELS, NAME_LENGTH = 12, 72
WAITING_CALLS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
SYNCHRONIZED = "called a synchronizing CUDA operation"  # in torch's warning
FRACTIONS = (0.25, 0.5, 0.75, 0.9)
OURS = ("/pretrain/", "/cluster/", "/lightly/", "/timm/")


@dataclass(frozen=True)
class Phase:
    """So many steps within a context, which is given the module that trains."""

    steps: int
    around: Callable[[nn.Module], AbstractContextManager[None]]


def watched(phases: list[Phase], *, fixed: bool) -> Callable[..., Outcome]:
    """`pretrain.training.loop.train`, going through the phases; with `fixed` all steps see the first batch.

    The run must have a step more than the phases together: a loop's last step is followed by its checkpoint.
    """

    def loop(
        module: Any, optimizer: Any, plan: Any, *, batches_from: Callable[[int], Any], **others: Any
    ) -> Outcome:
        def watched_batches(samples_seen: int) -> _Watched:
            return _Watched(batches_from(samples_seen), module, phases, fixed)

        return train(module, optimizer, plan, batches_from=watched_batches, **others)

    return loop


class _Watched:
    """Batches; a step lasts from one being asked for to the next."""

    def __init__(self, batches: Any, module: nn.Module, phases: list[Phase], fixed: bool) -> None:
        self._batches, self._module, self._fixed = batches, module, fixed
        self._phases, self._left = iter(phases), 0
        self._open: AbstractContextManager[None] | None = None
        self._first = next(batches) if fixed else None

    def __next__(self) -> Any:
        if not self._left:
            self._end_phase()
            phase = next(self._phases, Phase(1, lambda module: nullcontext()))
            self._left = phase.steps
            with _guarded():
                around = phase.around(self._module)
                around.__enter__()
                self._open = around
        self._left -= 1
        began = time.perf_counter()
        batch = self._first if self._fixed else next(self._batches)
        WAITED.append(time.perf_counter() - began)
        return batch

    def _end_phase(self) -> None:
        if self._open is not None:
            with _guarded():
                self._open.__exit__(None, None, None)
        self._open = None

    def close(self) -> None:
        self._end_phase()
        self._batches.close()


@contextmanager
def _guarded() -> Iterator[None]:
    """What one phase cannot say does not cost the others their lines."""
    try:
        yield
    except Exception as error:
        print(f"not measured, {type(error).__name__}: {error}", flush=True)


WAITED: list[float] = []  # seconds of each step so far that the loop waited for its batch


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(found: dict[str, Any], prefix: str = "") -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Puts `seconds`, and `waited` of them for batches, into `found`."""

    @contextmanager
    def around(module: nn.Module) -> Iterator[None]:
        _synchronise()
        first, began = len(WAITED), time.perf_counter()
        yield
        _synchronise()
        found[f"{prefix}seconds"] = time.perf_counter() - began
        found[f"{prefix}waited"] = sum(WAITED[first:])

    return around


def told(line: Callable[[], str]) -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Prints a line when the phases before are over."""

    @contextmanager
    def around(module: nn.Module) -> Iterator[None]:
        print(line(), flush=True)
        yield

    return around


# -- kernels ------------------------------------------------------------------------------------------------


def profiled(steps: int) -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Prints lines on kernels, and on waits."""

    @contextmanager
    def around(module: nn.Module) -> Iterator[None]:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        _synchronise()
        began = time.perf_counter()
        with torch.profiler.profile(activities=activities) as profile:
            yield
            _synchronise()
            seconds = time.perf_counter() - began
        print(*_kernel_lines(profile, seconds, steps), sep="\n", flush=True)

    return around


def _kernel_lines(profile: Any, seconds: float, steps: int) -> list[str]:
    if not torch.cuda.is_available():
        rows = [(entry.self_cpu_time_total, entry.count, entry.key) for entry in profile.key_averages()]
        return [f"operations of the CPU by time, {1000 * seconds / steps:.1f} ms a step in the profiler:",
                *_table(rows, steps)]  # fmt: skip
    # annotations are shown on the GPU's rows, too
    kernels = [
        event
        for event in profile.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    waiting = collections.Counter(event.name for event in profile.events() if event.name in WAITING_CALLS)
    times: dict[str, list[float]] = {}
    for event in kernels:
        times.setdefault(event.name, []).append(event.time_range.elapsed_us())
    busy = _union([(event.time_range.start, event.time_range.end) for event in kernels])
    asked = ", ".join(f"{name} {count / steps:.1f}" for name, count in waiting.items()) or "none"
    return [
        f"{len(kernels) / steps:,.0f} kernels a step, the GPU busy for {busy / 1e6 / seconds:.0%} of "
        f"{1000 * seconds / steps:.1f} ms a step in the profiler; calls that wait, a step (one at the end "
        f"is the profiler's): {asked}",
        "kernels by time:",
        *_table([(sum(values), len(values), name) for name, values in times.items()], steps),
    ]


def _table(rows: list[tuple[float, int, str]], steps: int) -> list[str]:
    """Rows of microseconds, count and name as lines, the longest first."""
    whole = sum(row[0] for row in rows) or 1.0
    return [
        f"  {spent / whole:6.1%} {spent / steps / 1000:8.2f} ms {count / steps:7.1f} x  {name[:NAME_LENGTH]}"
        for spent, count, name in sorted(rows, reverse=True)[:NUM_KERNELS]
    ]


def _union(spans: list[tuple[float, float]]) -> float:
    """How much of the line the spans cover."""
    covered, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered


# -- waits --------------------------------------------------------------------------------------------------


def waits(steps: int) -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Prints a line on where the host waits for the device;
    on the CPU, where it asks a tensor for a number.
    """

    @contextmanager
    def around(module: nn.Module) -> Iterator[None]:
        if not torch.cuda.is_available():
            with _Asked() as asked:
                yield
            where = asked.where
        else:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    yield
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            waiting = [warning for warning in caught if SYNCHRONIZED in str(warning.message)]
            where = collections.Counter(
                f"{_short(warning.filename)}:{warning.lineno}" for warning in waiting
            )
        parts = ", ".join(f"{place} {count / steps:.1f}" for place, count in where.most_common(10))
        told_where = f" ({parts})" if parts else ""
        print(
            f"waits of the host for the device, a step, beside the one for the numbers of the step before "
            f"(goal 0): {where.total() / steps:.1f}{told_where}",
            flush=True,
        )

    return around


class _Asked(TorchDispatchMode):
    """Counts numbers that are asked of tensors, for which a GPU would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.where: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_local_scalar_dense" in str(function):
            stack = [
                frame for frame in traceback.extract_stack() if any(part in frame.filename for part in OURS)
            ]
            self.where[f"{_short(stack[-1].filename)}:{stack[-1].lineno}" if stack else "elsewhere"] += 1
        return function(*args, **(kwargs or {}))


def _short(path: str) -> str:
    return "/".join(path.split("/")[-2:])


# -- gradients ----------------------------------------------------------------------------------------------


def gradients() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Prints a line on when, within the backward pass, which share of the gradients' bytes is ready."""

    @contextmanager
    def around(module: nn.Module) -> Iterator[None]:
        starts: list[Any] = []
        ready: list[tuple[Any, int]] = []

        def begin(_: nn.Module, __: Any, output: Any) -> None:
            ready.clear()
            starts.clear()
            output.loss.register_hook(lambda gradient: starts.append(_moment()))

        hooks = [module.register_forward_hook(begin)]
        hooks += [
            parameter.register_post_accumulate_grad_hook(lambda one: ready.append((_moment(), one.numel())))
            for parameter in module.parameters()
            if parameter.requires_grad
        ]
        yield
        _synchronise()
        for hook in hooks:
            hook.remove()
        lasted, whole, done = _between(starts[0], ready[-1][0]), sum(size for _, size in ready), 0
        parts, wanted = [], list(FRACTIONS)
        for moment, size in ready:
            done += size
            while wanted and done >= wanted[0] * whole:
                parts.append(f"{wanted.pop(0):.0%} at {_between(starts[0], moment) / lasted:.0%}")
        print(f"gradient bytes ready in the backward pass: {', '.join(parts)}", flush=True)

    return around


def _moment() -> Any:
    """Now, by the device's work where it is a GPU."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    return float(end - start) if isinstance(start, float) else float(start.elapsed_time(end))


# -- averaging over ranks -----------------------------------------------------------------------------------


class Averaging:
    """`torch.distributed.all_reduce` whose messages that nobody waits for at once are sent at once, late,
    or never.

    Attributes:
        way: `during` sends as asked, `after` when the first of them is waited for, `never` not at all.
        num_bytes, messages: of a step, as far as they are not waited for at once.
    """

    def __init__(self) -> None:
        self.way, self.num_bytes, self.messages = "during", 0, 0
        self._as_it_is = torch.distributed.all_reduce
        self._held: list[_Held] = []

    def __call__(self, tensor: Any, *arguments: Any, async_op: bool = False, **others: Any) -> Any:
        if not async_op:
            return self._as_it_is(tensor, *arguments, **others)
        self.num_bytes += tensor.numel() * tensor.element_size()
        self.messages += 1
        send = lambda: self._as_it_is(tensor, *arguments, async_op=True, **others)  # noqa: E731
        if self.way == "during":
            return send()
        self._held.append(held := _Held(self, send))
        return held

    def send_held(self) -> None:
        """Sends what was held back, unless nothing is to be sent."""
        for held in self._held if self.way == "after" else ():
            held.work = held.send()
        self._held.clear()


class _Held:
    """A message that is sent when one is waited for."""

    def __init__(self, averaging: Averaging, send: Callable[[], Any]) -> None:
        self._averaging, self.send, self.work = averaging, send, None

    def wait(self) -> None:
        self._averaging.send_held()
        if self.work is not None:
            self.work.wait()


def averaging(
    patched: Averaging, way: str, around: Callable[[nn.Module], AbstractContextManager[None]]
) -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Another phase, with gradients averaged in this way."""

    @contextmanager
    def changed(module: nn.Module) -> Iterator[None]:
        as_it_was = torch.distributed.all_reduce
        patched.way, patched.num_bytes, patched.messages = way, 0, 0
        torch.distributed.all_reduce = patched
        try:
            with around(module):
                yield
        finally:
            torch.distributed.all_reduce = as_it_was

    return changed
