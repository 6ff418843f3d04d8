"""The same network for images with another number of channels."""

from __future__ import annotations

import torch
from torch import Tensor

from cluster.errors import UserError
from pretrain.encoders.base import Encoder
from pretrain.encoders.building import build_encoder


def with_channels(encoder: Encoder, channels: int) -> Encoder:
    """An encoder's weights in the network for images of other channels; the first convolution is adapted.

    For one channel its weights are summed over the former ones, which sees a grey image as it saw its
    coloured copy; for several they are repeated and scaled by former / new channels, as timm does.
    Raises UserError where that cannot be.
    """
    if channels == encoder.in_channels:
        return encoder
    name, arguments = encoder.spec["name"], {**encoder.spec["arguments"], "in_channels": channels}
    other = build_encoder(name, **arguments)
    tensors = dict(encoder.state_dict())
    for key, wanted in other.state_dict().items():
        found = tensors[key]
        if found.shape == wanted.shape:
            continue
        if found.ndim != 4 or found.shape[1] != encoder.in_channels or wanted.shape[1] != channels:
            raise UserError(
                f"{name} cannot take {channels} channels in place of {encoder.in_channels}: {key} has the "
                f"shape {tuple(found.shape)} and would need {tuple(wanted.shape)}"
            )
        tensors[key] = adapted(found, channels)
    other.load_state_dict(tensors)
    return other


def adapted(kernel_OIHW: Tensor, channels: int) -> Tensor:
    """A kernel for other input channels; for 1 and for multiples of the former it
    gives the same of equal channels.
    """
    former = kernel_OIHW.shape[1]
    if channels == 1:
        return kernel_OIHW.sum(1, keepdim=True)
    return kernel_OIHW[:, torch.arange(channels) % former] * (former / channels)
