"""A fine-tuned model as a folder: `model.safetensors` and `config.json`, loaded with one call and ready to predict."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cluster import storage
from cluster.errors import UserError, choose
from finetune.tasks.classification import Classification, Classifier
from pretrain.data.augment import normalise, to_images
from pretrain.data.decode import BadImage
from pretrain.data.views import CentralCrop
from pretrain.encoders import build_encoder
from pretrain.encoders.saving import load_state_strict, load_weights_folder, save_weights_folder

FORMAT_VERSION = 1
Picture = str | os.PathLike[str] | bytes | np.ndarray | Image.Image


def save_model(url: str, model: Classifier, *, class_names: Sequence[str], **details: Any) -> None:
    """Writes a model folder to any fsspec URL.

    `details` are `image_size`, `crop_share`, `mean`, `std`, and what else should be known of the model (JSON).
    """
    config = {
        "format_version": FORMAT_VERSION,
        "kind": "model",
        "task": "classification",
        "encoder": model.encoder.spec,
        "frozen": model.frozen,
        "class_names": list(class_names),
        **details,
    }
    save_weights_folder(url, model.state_dict(), config)


class ImageClassifier:
    """A classifier with all it needs to judge pictures. Made by `load_model`."""

    def __init__(self, model: Classifier, config: dict[str, Any]) -> None:
        self.model, self.config = model.eval(), config
        self.class_names: list[str] = config["class_names"]
        self.channels = model.encoder.in_channels
        self.crop = CentralCrop(config["image_size"], share=config["crop_share"], channels=self.channels)

    def to(self, device: str | torch.device) -> ImageClassifier:
        """Moves the model to a device."""
        self.model.to(device)
        return self

    def predict(self, images: Picture | Sequence[Picture], *, batch_size: int = 64) -> list[Classification]:
        """Judges pictures: paths or URLs, encoded bytes, uint8 arrays [H, W, C], or PIL images; one or several.

        Raises UserError that names the picture when one cannot be decoded.
        """
        pictures = list(images) if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
        results = []
        for start in range(0, len(pictures), batch_size):
            numbers = np.arange(len(pictures[start : start + batch_size]))
            filling = self.crop.begin(numbers, numbers)
            for index, picture in enumerate(pictures[start : start + batch_size]):
                try:
                    filling.fill(index, _encoded(picture, self.channels))
                except BadImage as error:
                    name = picture if isinstance(picture, str | os.PathLike) else f"picture {start + index}"
                    raise UserError(f"{name}: {error}") from error
            for row in self.probabilities(filling.arrays[0]).tolist():
                best = max(range(len(row)), key=row.__getitem__)
                scores = dict(zip(self.class_names, row, strict=True))
                results.append(Classification(label=self.class_names[best], score=row[best], scores=scores))
        return results

    @torch.no_grad()
    def probabilities(self, crops: np.ndarray) -> Tensor:
        """uint8 [B, 3, size, size] -> probabilities [B, num_classes] on the host."""
        return self.logits(crops).softmax(1).cpu()

    @torch.no_grad()
    def logits(self, crops: np.ndarray) -> Tensor:
        """uint8 [B, 3, size, size] -> [B, num_classes]."""
        device = next(self.model.parameters()).device
        images = normalise(to_images(crops, device), self.config["mean"], self.config["std"])
        return self.model.logits(images)


def load_model(url: str) -> ImageClassifier:
    """Loads a model folder from any fsspec URL. Raises UserError that says what is missing or damaged."""
    config, tensors = load_weights_folder(url, FORMAT_VERSION)
    if config.get("kind") != "model":
        raise UserError(f"{url} is an encoder folder, not a model; python -m finetune makes a model of it")
    choose("task", config.get("task", ""), ["classification"])
    encoder = build_encoder(config["encoder"]["name"], **config["encoder"]["arguments"])
    model = Classifier(encoder, num_classes=len(config["class_names"]), frozen=config["frozen"])
    load_state_strict(model, tensors, url)
    return ImageClassifier(model, config)


def _encoded(picture: Picture, channels: int) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        return storage.read_bytes(str(Path(picture)) if isinstance(picture, os.PathLike) else picture)
    buffer = io.BytesIO()
    if channels not in (1, 3) and not isinstance(picture, Image.Image):
        np.save(buffer, np.asarray(picture), allow_pickle=False)
        return buffer.getvalue()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    # lossless, and what a file with these pixels would go through
    image.save(buffer, "PNG", compress_level=0, exif=image.getexif())
    return buffer.getvalue()
