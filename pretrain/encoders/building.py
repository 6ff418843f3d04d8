"""Encoders by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
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
    known = [key for key, value in inspect.signature(builder).parameters.items() if value.kind is value.KEYWORD_ONLY]
    for key in arguments:
        if key not in known:
            raise UserError(f"{name}: unknown argument {key!r}{nearest(key, known)} (known: {', '.join(known)})")
    try:
        return builder(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} cannot be built with {arguments}: {str(error).splitlines()[0]}") from error
