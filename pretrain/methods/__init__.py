"""Self-supervised methods: one nn.Module in one file each.

A method takes an encoder and keyword arguments; `recipe` names the views it wants (`pretrain.data.recipes`) and `num_views` how
many it takes (None for two or more); `forward(views)` gives a `StepOutput`; `after_step(step, num_steps)`, where it has one,
moves momentum encoders; `.encoder` is what gets exported. All of its state is in its `state_dict`. To add one, write its file
and add its line to `METHODS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from cluster.errors import UserError, choose, nearest
from pretrain.data.recipes import ViewSpec, recipe_views
from pretrain.encoders import Encoder
from pretrain.methods.simclr import SimCLR

METHODS: dict[str, type[Any]] = {
    "simclr": SimCLR,
}


def method_views(method: str, recipe: str | None, size: int, arguments: Mapping[str, Any]) -> list[ViewSpec]:
    """The views of a recipe, by default of that of the method's paper.

    Raises UserError for an unknown method, recipe or argument, and for views that the method cannot use.
    """
    chosen = METHODS[choose("method", method, METHODS)]
    views = recipe_views(recipe or chosen.recipe, size, arguments)
    if chosen.num_views is not None and len(views) != chosen.num_views:
        raise UserError(
            f"method {method} takes {chosen.num_views} views, but views.recipe={recipe or chosen.recipe} makes {len(views)}"
        )
    return views


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
