"""Self-supervised methods: one nn.Module in one file each.

A method is a `Method`: it takes an encoder and keyword arguments; `recipe` names the views it wants
(`pretrain.data.views.recipes`) and `num_views` how many it takes; `forward(views)` gives a `StepOutput`;
`after_step(step, num_steps)`, where it has one, moves momentum encoders; `health()`, where it has one, gives
numbers on its state to be logged; `exported` is the encoder that a run leaves behind. All of its state is in
its `state_dict`. To add one, write its file, add its line to `METHODS` and its
paper's settings to `pretrain.papers`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from cluster.errors import UserError, choose, nearest
from cluster.registry import Registry
from pretrain.data.views.recipes import ViewSpec, recipe_views
from pretrain.encoders import Encoder
from pretrain.methods.base import Method

__all__ = ["METHODS", "Method", "build_method", "check_arguments", "method_views"]

METHODS: Registry[type[Method]] = Registry(
    {
        "barlow_twins": "pretrain.methods.barlow_twins:BarlowTwins",
        "byol": "pretrain.methods.byol:BYOL",
        "densecl": "pretrain.methods.densecl:DenseCL",
        "dino": "pretrain.methods.dino:DINO",
        "distill": "pretrain.methods.distill:Distill",
        "lejepa": "pretrain.methods.lejepa:LeJEPA",
        "moco": "pretrain.methods.moco:MoCo",
        "mocov3": "pretrain.methods.mocov3:MoCoV3",
        "simclr": "pretrain.methods.simclr:SimCLR",
        "simsiam": "pretrain.methods.simsiam:SimSiam",
        "swav": "pretrain.methods.swav:SwAV",
        "vicreg": "pretrain.methods.vicreg:VICReg",
    }
)


def method_views(method: str, recipe: str | None, size: int, arguments: Mapping[str, Any]) -> list[ViewSpec]:
    """The views of a recipe, by default of that of the method's paper.

    Raises UserError for an unknown method, recipe or argument, and for views that the method cannot use.
    """
    chosen = METHODS[choose("method", method, METHODS)]
    views = recipe_views(recipe or chosen.recipe, size, arguments)
    if chosen.num_views is not None and len(views) != chosen.num_views:
        raise UserError(
            f"method {method} takes {chosen.num_views} views, but views.recipe={recipe or chosen.recipe} "
            f"makes {len(views)}"
        )
    return views


def build_method(
    name: str,
    encoder: Encoder,
    arguments: Mapping[str, Any],
    *,
    images_per_pass: int = 0,
    exact_pieces: int = 0,
) -> Method:
    """Builds a method around an encoder.

    Args:
        images_per_pass: most images that the encoder sees at once; 0: no limit.
        exact_pieces: pieces of the global batch, see `pretrain.methods.pieces`; 0:
            each rank's share as it comes.

    Raises UserError for an unknown method or argument,
    and for batch norm in an encoder that does not see the batch at once.
    """
    chosen = METHODS[choose("method", name, METHODS)]
    check_arguments(f"method.arguments of {name}", chosen, arguments, given=("encoder",))
    for setting, value in (("images_per_pass", images_per_pass), ("exact_pieces", exact_pieces)):
        if value and any(isinstance(part, _BatchNorm) for part in encoder.modules()):
            raise UserError(
                f"method.{setting}={value} is not possible with batch norm in the encoder, whose statistics "
                "would be those of a part of the batch; take an encoder with layer norm, or 0"
            )
    method: Method = chosen(encoder, **arguments)
    method.images_per_pass = images_per_pass
    if exact_pieces:
        method.see_in_pieces(exact_pieces)
    return method


def check_arguments(
    what: str, function: Callable[..., Any], arguments: Mapping[str, Any], given: tuple[str, ...]
) -> None:
    """Raises UserError for an argument that a function does not take, naming the nearest one it does."""
    known = [name for name in inspect.signature(function).parameters if name not in given]
    for name in arguments:
        if name not in known:
            raise UserError(
                f"{what}: unknown argument {name!r}{nearest(name, known)} (known: {', '.join(known)})"
            )
