"""python -m finetune merge MODEL DEST: merges a model of adapters with
its encoder into a stand-alone one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster import storage
from cluster.command_line import CommandLine
from cluster.errors import UserError
from finetune.adapting import LORA
from finetune.model import load_model, save_model


def parser() -> CommandLine:
    """The command line."""
    parser = CommandLine(prog="python -m finetune merge", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="model folder of mode lora, a path or any fsspec URL")
    parser.add_argument("dest", metavar="DEST", help="folder of the stand-alone model")
    parser.add_argument("--encoder", metavar="URL", help="where the encoder is now, if it has moved")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Reads the command line and merges; returns the exit code."""
    options = parser().parse_args(arguments)
    merge_model(options.model, options.dest, encoder_url=options.encoder)
    print(f"{options.dest} holds the stand-alone model")
    return 0


def merge_model(url: str, dest: str, *, encoder_url: str | None = None) -> None:
    """Writes the model folder `url`, of mode lora, as a whole model to `dest`.
    Raises UserError when it cannot be.
    """
    if storage.exists(storage.join(dest, "config.json")):
        raise UserError(f"{dest} holds a model or encoder already; choose another folder")
    predictor = load_model(url, encoder_url=encoder_url)  # which merges
    if predictor.config["mode"] != LORA:
        raise UserError(f"{url} is a stand-alone model already (mode {predictor.config['mode']})")
    config: dict[str, Any] = {key: value for key, value in predictor.config.items() if key != "lora"}
    save_model(dest, predictor.model, {**config, "mode": "full", "merged_from": url})
