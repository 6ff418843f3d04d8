"""Self-supervised methods: one nn.Module in one file each.

A method takes an encoder and keyword arguments; `views(size, **arguments)` names the views it wants; `forward(views)` gives a
`StepOutput`; `after_step(step, num_steps)`, where it has one, moves momentum encoders; `.encoder` is what gets exported. All
of its state is in its `state_dict`. To add one, write its file and add its line to `METHODS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from cluster.errors import UserError, choose, nearest
from pretrain.data.recipes import ViewSpec
from pretrain.encoders import Encoder
from pretrain.methods.simclr import SimCLR

METHODS: dict[str, type[Any]] = {
    "simclr": SimCLR,
}


def method_views(name: str, size: int, arguments: Mapping[str, Any]) -> list[ViewSpec]:
    """The views a method wants. Raises UserError for an unknown method or view argument."""
    method = METHODS[choose("method", name, METHODS)]
    check_arguments(f"views.arguments of {name}", method.views, arguments, given=("size",))
    return method.views(size, **arguments)


def build_method(name: str, encoder: Encoder, arguments: Mapping[str, Any]) -> nn.Module:
    """Builds a method around an encoder. Raises UserError for an unknown method or argument."""
    method = METHODS[choose("method", name, METHODS)]
    check_arguments(f"method.arguments of {name}", method, arguments, given=("encoder",))
    return method(encoder, **arguments)


def check_arguments(
    what: str, function: Callable[..., Any], arguments: Mapping[str, Any], given: tuple[str, ...]
) -> None:
    """Raises UserError for an argument that a function does not take, naming the nearest one it does."""
    known = [name for name in inspect.signature(function).parameters if name not in given]
    for name in arguments:
        if name not in known:
            raise UserError(f"{what}: unknown argument {name!r}{nearest(name, known)} (known: {', '.join(known)})")
