"""python -m finetune export MODEL OUT: a task model for other programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cluster.command_line import CommandLine
from cluster.errors import choose
from finetune.exporting.classifier import export_classifier
from finetune.exporting.detector import export_detector
from finetune.exporting.summarizer import export_summarizer
from finetune.model import load_model
from finetune.tasks.base import Predictor
from pretrain.exporting.command import export_parser, run_export
from pretrain.exporting.exported import Exported

# task -> what makes its models ready for export: f(url, predictor, facts)
KINDS: dict[str, Callable[[str, Any, dict[str, Any]], Exported]] = {
    "classification": export_classifier,
    "detection": export_detector,
    "summarization": export_summarizer,
}


def parser() -> CommandLine:
    """The command line."""
    return export_parser("python -m finetune export", "MODEL")


def main(arguments: Sequence[str]) -> int:
    """Reads the command line and exports; returns the exit code."""
    return run_export(parser().parse_args(arguments), open_model)


def open_model(url: str) -> Exported:
    """A model folder and what is known of it. Raises UserError when it is none."""
    predictor: Predictor = load_model(url)
    config = predictor.config
    facts = {
        "kind": config["task"],
        "network": config["encoder"]["name"],
        "arguments": config["encoder"]["arguments"],
        "started from": config.get("encoder_url"),
        "mode": config["mode"],
        "crop fraction": config["crop_fraction"],
        "Fovea": config.get("code_version"),
    }
    return KINDS[choose("task", config["task"], KINDS)](url, predictor, facts)
