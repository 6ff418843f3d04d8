"""Files of tensors at any URL, from any source:
safetensors, or torch's own with nothing but tensors in it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cluster import storage
from cluster.errors import UserError
from cluster.secrets import masked

TORCH_ENDINGS = (".pth", ".pt", ".bin")
# under which training programs keep a network's tensors
WRAPPINGS = ("state_dict", "model", "model_state_dict")


def read_tensors(url: str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `.pth` file by their names.

    Raises UserError when there is no file, it is damaged, or it holds more than tensors and plain values.
    """
    path = url.partition("?")[0].lower()
    if not path.endswith((".safetensors", *TORCH_ENDINGS)):
        raise UserError(
            f"{masked(url)} is not named like a file of weights; give a .safetensors or .pth file"
        )
    data = storage.read_bytes(url)
    if path.endswith(".safetensors"):
        try:
            return safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise UserError(f"{masked(url)} is not a valid safetensors file: {error}") from error
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{masked(url)} is damaged or holds more than tensors, which would run code and is not opened; "
            "write its tensors with safetensors.torch.save_file"
        ) from error
    return _tensors(content, url)


def _tensors(content: object, url: str) -> dict[str, Tensor]:
    for key in WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise UserError(f"{masked(url)} holds no tensors by name")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(
            f"{masked(url)} holds no tensors by name (its keys: {', '.join(map(str, list(content)[:5]))})"
        )
    if all(key.startswith("module.") for key in tensors):  # of a network that was trained on several GPUs
        return {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    return tensors
