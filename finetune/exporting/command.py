"""python -m finetune export MODEL OUT: a classifier for other programs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from cluster.errors import UserError
from finetune.model import load_model
from finetune.tasks.classification.model import Classifier
from pretrain.exporting.command import run_export
from pretrain.exporting.exported import Exported, run_beside


def main(arguments: Sequence[str]) -> int:
    """Reads the command line and exports; returns the exit code."""
    return run_export("python -m finetune export", "MODEL", arguments, open_model)


def open_model(url: str) -> Exported:
    """A model folder and what is known of it. Raises UserError when it is none, or no classifier."""
    predictor = load_model(url)
    model, config = predictor.model, predictor.config
    if not isinstance(model, Classifier):
        raise UserError(
            f"{url} is a {config['task']} model, and only classifiers are exported; `python -m pretrain export` takes encoders"
        )
    facts = {
        "kind": config["task"],
        "network": config["encoder"]["name"],
        "arguments": config["encoder"]["arguments"],
        "started from": config.get("encoder_url"),
        "mode": config["mode"],
        "crop share": config["crop_share"],
        "Fovea": config.get("code_version"),
    }
    return Exported(
        url,
        model.encoder.eval(),
        tuple(config["mean"]),
        tuple(config["std"]),
        config["image_size"],
        head=nn.ModuleDict({"norm": model.norm, "head": model.head}).eval(),
        class_names=list(config["class_names"]),
        facts=facts,
        run=run_beside(url),
    )
