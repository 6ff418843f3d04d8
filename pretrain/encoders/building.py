"""Encoders by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cluster.errors import UserError, choose, nearest
from pretrain.encoders.base import Encoder
from pretrain.encoders.classic import ClassicEncoder
from pretrain.encoders.convattn import SIZES, ConvAttnEncoder
from pretrain.encoders.timm_encoder import TimmEncoder

ENCODERS: dict[str, Callable[..., Encoder]] = {
    **{name: partial(ConvAttnEncoder, name) for name in SIZES},
    "convattn_classic": ClassicEncoder,
}


# arguments that only a caller may give
NOT_FROM_FOLDERS = ("name", "pretrained", "weights")


def encoder_names() -> list[str]:
    """The names that `build_encoder` knows, besides `timm:NAME`."""
    return sorted(ENCODERS)


def build_encoder(name: str, **arguments: Any) -> Encoder:
    """A fresh encoder: `convattn_nano|tiny|small|base`, `convattn_classic` or `timm:NAME`.

    Raises UserError for an unknown name or argument, naming the known ones.
    """
    if name.startswith("timm:"):
        return TimmEncoder(name.removeprefix("timm:"), **arguments)
    builder = ENCODERS[choose("encoder", name, [*ENCODERS, "timm:NAME"])]
    known = [
        key
        for key, value in inspect.signature(builder).parameters.items()
        if value.kind is value.KEYWORD_ONLY
    ]
    for key in arguments:
        if key not in known:
            raise UserError(
                f"{name}: unknown argument {key!r}{nearest(key, known)} (known: {', '.join(known)})"
            )
    try:
        return builder(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} cannot be built with {arguments}: {str(error).splitlines()[0]}") from error


def rebuild_encoder(name: object, arguments: object, *, where: str) -> Encoder:
    """The network that a saved folder describes, with fresh weights.

    Whoever wrote the folder decides of an architecture and nothing more: no weights are fetched, no file is
    written. Raises UserError, one line, for anything else that it says.
    """
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise UserError(
            f"{where} is damaged: an encoder's name and arguments are {name!r} and {arguments!r}"
        )
    check_from_folder(name, arguments, where=where)
    return build_encoder(name, **arguments)


def check_from_folder(name: str, arguments: Mapping[str, Any], *, where: str) -> None:
    """Raises UserError for an argument that is the caller's alone to give."""
    for key in NOT_FROM_FOLDERS:
        if key in arguments:
            raise UserError(f"{where}: {key!r} is not allowed in a saved folder for its encoder {name}")
