"""Whether an encoder takes images of a size, and what makes it take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from cluster.errors import UserError, first_line
from pretrain.encoders.base import Encoder

IMG_SIZE = "img_size"  # timm's argument of networks that are made for one size


@torch.no_grad()
def trouble_at(encoder: Encoder, size: int) -> str | None:
    """In a line why an encoder takes no square images of this size; None where it does."""
    was_training = encoder.training
    like = next(encoder.parameters())
    try:
        maps = encoder.eval()(like.new_zeros(1, encoder.in_channels, size, size))
        if any(min(one.shape[2:]) < 1 for one in maps):
            return "its last map would be empty"
    except Exception as error:  # whatever a network raises for a size that it was not made for
        return first_line(error)[:160]
    finally:
        encoder.train(was_training)
    return None


def made_for(
    size: int | None,
    build: Callable[[Mapping[str, Any]], Encoder],
    arguments: Mapping[str, Any],
    *,
    name: str,
    own: int | None,
    setting: str,
) -> Encoder:
    """The encoder that `build(arguments)` makes, or with `img_size` where it takes this size only so.

    Args:
        size: side of the images; None asks nothing of the encoder.
        name: of the network, for errors.
        own: the size that it was made for, if it says one.
        setting: that names the size.

    Raises UserError, one line with sizes that it takes, where it takes images of this size neither way.
    """
    encoder = build(arguments)
    if size is None or (reason := trouble_at(encoder, size)) is None:
        return encoder
    if IMG_SIZE not in arguments:
        try:
            other = build({**arguments, IMG_SIZE: size})
            if trouble_at(other, size) is None:
                return other
        except UserError:
            pass  # it has no such argument
    near = {own or 0, *(max(1, size // step + more) * step for step in (32, 14) for more in (0, 1))}
    taken = [str(one) for one in sorted(near) if one and one != size and trouble_at(encoder, one) is None]
    advice = (
        f"set {setting} to a size that it takes: {', '.join(taken)}" if taken else "take another network"
    )
    raise UserError(f"{name} does not take images of {size} x {size} pixels ({reason}); {advice}")
