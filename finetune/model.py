"""A fine-tuned model as a folder: `model.safetensors` and `config.json`,
loaded with one call and ready to predict.

The folder of a model with adapters (mode `lora`) holds these and the head;
its encoder is loaded from where it was.
"""

from __future__ import annotations

from typing import Any

from cluster import storage
from cluster.errors import UserError, choose
from cluster.renamed import MODEL_KEYS
from finetune import adapting
from finetune.tasks import TASKS
from finetune.tasks.base import Predictor, TaskModel
from pretrain.encoders.building import rebuild_encoder
from pretrain.encoders.saving import CONFIG, load_state_strict, load_weights_folder, save_weights_folder

FORMAT_VERSION = 1


def save_model(url: str, model: TaskModel, config: dict[str, Any]) -> None:
    """Writes a model folder to any fsspec URL. `config` is what the model was made of."""
    tensors = model.state_dict()
    if config["mode"] == adapting.LORA:
        tensors = adapting.beside_the_encoder(tensors)
    save_weights_folder(url, tensors, {"format_version": FORMAT_VERSION, "kind": "model", **config})


def load_model(url: str, *, encoder_url: str | None = None) -> Predictor:
    """Loads a model folder from any fsspec URL: `.predict(images)` gives typed results.

    Args:
        encoder_url: where the encoder of a model with adapters lies now, if it has moved.

    Raises UserError that says what is missing or damaged.
    """
    stored, tensors = load_weights_folder(url, FORMAT_VERSION)
    config = {MODEL_KEYS.get(key, key): value for key, value in stored.items()}
    if config.get("kind") != "model":
        raise UserError(f"{url} is an encoder folder, not a model; python -m finetune makes a model of it")
    task = TASKS[choose("task", config.get("task", ""), TASKS)]
    adapted = config["mode"] == adapting.LORA
    if adapted:
        encoder = adapting.load_adapted(encoder_url or config["encoder_url"], config)
    else:
        spec = config.get("encoder")
        if not isinstance(spec, dict):
            raise UserError(f"{storage.join(url, CONFIG)} is damaged: encoder is {spec!r}")
        encoder = rebuild_encoder(spec.get("name"), spec.get("arguments"), where=storage.join(url, CONFIG))
    model = task.new_model(encoder, config)
    if adapted:
        tensors = adapting.of_the_encoder(model.state_dict()) | tensors
    load_state_strict(model, tensors, url)
    if adapted:
        adapting.merge(encoder)
    return task.predictor(model, config)
