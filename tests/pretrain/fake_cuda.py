"""CUDA tensors without a GPU: torch's fake tensors, which have a device, a shape and a dtype, but no values.

What runs on them shows which tensors lie where, what is copied between host and device, and where the host
would wait. Their backward pass needs a real device;
that of tensors on torch's `meta` device runs, and shows the same waits.
"""

from __future__ import annotations

import collections
import contextlib
import traceback
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.cuda.amp.common
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
SIZED_BY_VALUES = ("nonzero", "masked_select", "unique", "repeat_interleave.Tensor")


class Watch(TorchDispatchMode):
    """Notes while it is entered what makes the host wait, and what is copied between devices,
    each with its place.

    Attributes:
        waits: numbers read on the host, results whose size depends on values, and copies that block
            (those to the device from memory that is not page-locked, too).
        copies: between devices that do not block.
        mixed: operations whose tensors lie on several devices, scalars aside.
        ops: `(operation, dtype of its result)` -> how often.
    """

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self.device = device
        self.waits: collections.Counter[str] = collections.Counter()
        self.copies: collections.Counter[str] = collections.Counter()
        self.mixed: collections.Counter[str] = collections.Counter()
        self.ops: collections.Counter[tuple[str, torch.dtype]] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See torch's class."""
        kwargs = kwargs or {}
        name = str(func).removeprefix("aten.")
        self._look(name, args, kwargs)
        if name.startswith("_fused_sgd_"):
            return None  # works in place, and has no version for tensors without values
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.ops[name, result.dtype] += 1
        return result

    def _look(self, name: str, args: Any, kwargs: Any) -> None:
        tensors = [one for one in args if isinstance(one, Tensor)]
        indices = (
            [one for one in args[1] if isinstance(one, Tensor)] if "index" in name and _is_list(args) else []
        )
        if name.startswith(SIZED_BY_VALUES) or any(one.dtype == torch.bool for one in indices):
            self.waits[f"{name} {place()}"] += 1
        target = kwargs.get("device") if name.startswith("_to_copy") else None
        if name.startswith("copy_") and tensors[0].device != tensors[1].device:
            target, tensors = tensors[0].device, tensors[1:2]
            blocks = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        else:
            blocks = not kwargs.get("non_blocking")
        if target is not None and torch.device(target).type == "cuda":
            # from other memory CUDA copies when the stream has come as far, whatever was asked for
            blocks = blocks or not getattr(tensors[0], "page_locked", False)
        if target is not None and torch.device(target).type != tensors[0].device.type:
            copy = f"{tensors[0].device.type} to {torch.device(target).type} {place()}"
            (self.waits if blocks else self.copies)[copy] += 1
        elif (
            len(
                {
                    one.device.type
                    for one in [*tensors, *indices]
                    if one.ndim or one.device.type == self.device
                }
            )
            > 1
        ):
            self.mixed[f"{name} {place()}"] += 1

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Enters the watch, in which numbers that are read are 0, false or 0.5, and noted."""

        def read(name: str, real: Any, number: Any) -> Any:
            def method(tensor: Tensor) -> Any:
                if tensor.device.type != self.device:
                    return real(tensor)
                self.waits[f"{name} {place()}"] += 1
                return number

            return method

        patches = [
            mock.patch.object(Tensor, name, read(name, getattr(Tensor, name), number))
            for name, number in (("__bool__", False), ("__float__", 0.5), ("__int__", 0), ("item", 0))
        ]
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            stack.enter_context(self)
            yield


def _is_list(args: Any) -> bool:
    return len(args) > 1 and isinstance(args[1], list | tuple)


def place() -> str:
    """The line of the project, or of a library of methods or optimizers, that is being run,
    and the project's that called.
    """
    lines = [
        f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}"
        for frame in traceback.extract_stack()
        if any(part in frame.filename for part in ("/pretrain/", "/finetune/", "/lightly/", "/torch/optim/"))
        and "fake_cuda" not in frame.filename
    ]
    return " < ".join(lines[::-1][:3])


def page_locked(tensor: Tensor) -> Tensor:
    """What `Tensor.pin_memory` gives: a copy, which the watch knows again."""
    copied: Any = tensor.clone()
    copied.page_locked = True
    return copied  # type: ignore[no-any-return]


class FakeEvent:
    """A CUDA event."""

    def record(self, stream: Any = None) -> None:
        """Does nothing."""

    def synchronize(self) -> None:
        """Does nothing."""


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """In it tensors may be made on `CUDA`, and autocast works as on a GPU."""
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
            (torch.cuda, "Event", FakeEvent),
            (Tensor, "pin_memory", page_locked),
            (torch.random, "fork_rng", lambda *_, **__: contextlib.nullcontext()),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()))
        yield


def move_to_fake(module: nn.Module) -> None:
    """Puts tensors without values on `CUDA` in the place of a module's parameters and buffers."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is not None:
                    fake = torch.empty_strided(
                        tensor.size(), tensor.stride(), dtype=tensor.dtype, device=CUDA
                    )
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
