"""What is exported: a network from images to answers, and how an image file becomes the network's input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cluster import storage
from cluster.errors import UserError
from pretrain.data.reading.loader import HostTransform
from pretrain.data.views.random_views import CentralCrop
from pretrain.encoders import Encoder, load_encoder, pooled, read_encoder_config
from pretrain.training.run_folder import RESULT, SETTINGS

DEFAULT_SIZE, DEFAULT_FRACTION = 224, 0.875
SIZES = "picture_sizes"  # what networks for letterboxed images take beside them, see `sizes_on_canvas`
CENTRE, STRETCH, LETTERBOX = "centre", "stretch", "letterbox"

Answers = dict[str, np.ndarray]
"""A network's answers for B images, by name: float arrays [B, ...]; of a detector `boxes` [B, N, 4] in
fractions of the image's sides, `scores` [B, N] and `labels` [B, N],
with scores of 0 where there are fewer.
"""


@dataclass(frozen=True)
class HuggingFace:
    """What is of one kind of network in a folder for transformers.

    Attributes:
        auto: the class of transformers that loads it.
        model: the class in `source`, which is the text of the file `file`.
        modules: whose source is copied beside it, after those of the encoders.
        config: further keys of config.json.
        files: further files of the folder.
    """

    auto: str
    model: str
    file: str
    source: str
    modules: tuple[ModuleType, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Framing:
    """How an image becomes the input of the network: `centre` (its central square), `stretch` (all of it,
    made square) or `letterbox` (all of it, in the upper left corner of a square,
    filled with the mean colour).

    `fraction` is the part of the short side (of both sides, with `stretch`) that is kept.
    """

    kind: str
    size: int
    fraction: float = 1.0

    def described(self) -> dict[str, Any]:
        """In words of other programs, JSON."""
        scaled = max(self.size, round(self.size / self.fraction))
        steps: dict[str, list[str]] = {
            CENTRE: [f"scale the short side to {scaled} (bilinear, antialiased)",
                     f"cut the central {self.size} x {self.size}"],
            STRETCH: [f"scale to {scaled} x {scaled} (bilinear, antialiased)",
                      f"cut the central {self.size} x {self.size}"],
            LETTERBOX: [
                f"scale the long side to {self.size} (bilinear, antialiased)",
                f"put it into the upper left corner of {self.size} x {self.size}, filled with the mean",
            ],
        }  # fmt: skip
        return {
            "framing": self.kind,
            "size": self.size,
            "share": self.fraction,
            "steps": [*steps[self.kind], "divide by 255"],
        }


@dataclass(frozen=True)
class Exported:
    """A network with all that other programs need of it.

    Attributes:
        kind: `encoder`, or a task.
        network: from images with values in [0, 1] to the outputs of its `output_names`, for ONNX; None where
            there is no such export.
        transform: what Fovea makes of an image.
        answer: Fovea's answers for batches that `transform` made.
        answers_of: the same of what another program computes: the outputs of `network` by name with the
            geometry of the batch, or, with no geometry, what transformers gives.
        hugging_face: what transformers needs; its weights are `tensors`.
        head: norm and linear layer on the pooled last map, by the names `norm` and `head`, of a classifier
            that is no more.
        fixed_size: the network takes no other size than its own.
        images_bound: how far, on average, answers of other programs may lie from Fovea's where these scale
            the images.
        onnx_bound: how far answers of onnxruntime may lie from Fovea's.
        class_names: of a classifier or detector.
        facts: what the folder's config says, for the model card.
        run: of the run that made it, `settings` (text) and `result`, where they lie beside the folder.
    """

    source: str
    kind: str
    encoder: Encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    framing: Framing
    network: ForPixels | None
    transform: HostTransform
    answer: Callable[[list[np.ndarray], np.ndarray | None], Answers]
    answers_of: Callable[[dict[str, np.ndarray], np.ndarray | None], Answers]
    hugging_face: HuggingFace
    tensors: Callable[[], dict[str, Tensor]]
    head: nn.ModuleDict | None = None
    fixed_size: bool = False
    images_bound: float = 0.1
    onnx_bound: float = 1e-4
    class_names: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.framing.size


class ForPixels(nn.Module):
    """A network whose images have values in [0, 1]: it normalises them itself.
    `forward` gives `output_names`.

    `optional` are further inputs [1, ...] with their default values; given, they have a row for each image.
    """

    output_names: Sequence[str]
    optional: Mapping[str, Tensor] = MappingProxyType({})
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def translations(self) -> dict[Any, Any] | None:
        """Operators of its own -> what they are in ONNX, for the exporter."""
        return None

    def normalised(self, images_BCHW: Tensor) -> Tensor:
        """As the encoder takes them."""
        return (images_BCHW - self.mean) / self.std


class Features(ForPixels):
    """The maps of an encoder and their pooled features."""

    def __init__(self, encoder: Encoder, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(mean, std)
        self.encoder = encoder
        self.output_names = [*(f"map{number}" for number in range(1, 1 + len(encoder.channels))), "features"]

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """`maps...` and `features`."""
        maps = self.encoder(self.normalised(images_BCHW))
        return (*maps, pooled(maps))


def sizes_on_canvas(geometry_VB5: np.ndarray, size: int) -> np.ndarray:
    """float32 [B, 2]: height and width of letterboxed images on their canvases, in pixels."""
    window_B5, image_B5 = geometry_VB5
    scale_B = size / (window_B5[:, 2] - window_B5[:, 0])
    return np.stack([image_B5[:, 3] * scale_B, image_B5[:, 2] * scale_B], 1).astype(np.float32)


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host as safetensors takes them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def of_encoder(encoder: Encoder) -> dict[str, Tensor]:
    """An encoder's weights by their names in an exported network."""
    return contiguous({f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()})


def of_model(model: nn.Module, encoder: Encoder) -> dict[str, Tensor]:
    """Those of a model by the same names, those of its encoder among them."""
    rest = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
    return of_encoder(encoder) | rest


def open_encoder(url: str) -> Exported:
    """An encoder folder and what is known of it. Raises UserError when it is none."""
    config = read_encoder_config(url)
    facts = {
        "kind": "encoder",
        "network": config.name,
        "arguments": config.arguments,
        "method": config.method,
        **_said_of("teacher", config.teacher),
        **_said_of("started from", config.started_from),
        "samples seen": config.samples_seen,
        "data fingerprint": config.dataset_fingerprint,
        "Fovea": config.code_version,
    }
    size = config.input_size or DEFAULT_SIZE
    encoder = load_encoder(url).eval()
    network = Features(encoder, config.mean, config.std).eval()

    def answer(arrays: list[np.ndarray], geometry_VB5: np.ndarray | None) -> Answers:
        with torch.no_grad():
            *_, features_BC = network(torch.from_numpy(arrays[0]).float() / 255)
        return {"features": features_BC.numpy()}

    return Exported(
        url,
        "encoder",
        encoder,
        config.mean,
        config.std,
        Framing(CENTRE, size, DEFAULT_FRACTION),
        network,
        CentralCrop(size, fraction=DEFAULT_FRACTION, channels=encoder.in_channels),
        answer,
        lambda outputs, geometry: {"features": outputs["features"]},
        HuggingFace("AutoModel", "FoveaModel", MODELING, model_source("pretrain.exporting", MODELING)),
        lambda: of_encoder(encoder),
        images_bound=0.5,  # features of small images turn with a shift of half a pixel
        facts=facts,
        run=run_beside(url),
    )


MODELING = "modeling_fovea"


def model_source(package: str, module: str) -> str:
    """The text of a module that needs transformers: read and not imported, for that takes seconds."""
    from importlib.resources import files

    return files(package).joinpath(f"{module}.py").read_text(encoding="utf-8")


def _said_of(what: str, described: Mapping[str, Any] | None) -> dict[str, Any]:
    """Facts on a network that an encoder learnt from or began with: its name, its weights, its licence."""
    if not described:
        return {}
    return {
        what: described.get("name"),
        f"{what}: weights (sha256)": described.get("weights_sha256"),
        f"{what}: licence": described.get("licence") or "not said",
    }


def run_beside(url: str) -> dict[str, Any]:
    """Settings and result of the run in whose folder an encoder or model lies."""
    out = storage.absolute(url).rstrip("/").rpartition("/")[0]
    run: dict[str, Any] = {}
    if storage.exists(storage.join(out, SETTINGS)):
        run["settings"] = storage.read_bytes(storage.join(out, SETTINGS)).decode()
    if storage.exists(storage.join(out, RESULT)):
        run["result"] = storage.read_json(storage.join(out, RESULT))
    return run


def check_empty(out: str) -> None:
    """Sees to it that a folder can be filled. Raises UserError when something is in it."""
    there = storage.names_in(out)
    if there:
        raise UserError(f"{out} is not empty (it holds {there[0]!r}); name another folder or empty this one")
