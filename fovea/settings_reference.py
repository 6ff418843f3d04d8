"""python -m fovea.settings_reference [FILE.md]: the page of all settings, made from their schemas."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from cluster.calling import option_of, short_names
from cluster.errors import run_command
from cluster.schemas import Described, described
from finetune.api import FinetuneKeywords
from finetune.serving.settings import ServeSettings
from finetune.settings import FinetuneSettings
from pretrain.api import PretrainKeywords
from pretrain.settings import PretrainSettings

PAGE = "docs/settings.md"
INTRODUCTION = f"""# All settings

Made by `python -m fovea.settings_reference {PAGE}`; a test keeps it current. Settings come from a YAML file
and any number of `key=value` after it; lists and mappings are written `[a, b]` and `{{a: 1}}`. From Python
they are given by the short names in the last column, or as `settings={{"training.epochs": 10}}`. Where
pretraining says nothing, the settings of the method's paper apply before the defaults here
(`pretrain/papers.py`). Serving takes options.
"""
STAGES = (
    ("Pretraining", "python -m pretrain CONFIG [key=value ...]", PretrainSettings, PretrainKeywords),
    ("Fine-tuning", "python -m finetune CONFIG [key=value ...]", FinetuneSettings, FinetuneKeywords),
    ("Serving", "python -m finetune serve MODEL [--option VALUE ...]", ServeSettings, None),
)
ON_FIRST = {"data.url": "first argument"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the page, or writes it to a file."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words:
        print(page(), end="")
    for file in words:
        Path(file).write_text(page(), encoding="utf-8")
    return 0


def page() -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION]
    for title, usage, schema, keywords in STAGES:
        if keywords is None:
            column, names = "option", {one.key: f"`{option_of(one.key)}`" for one in described(schema)}
        else:
            column = "from Python"
            names = {key: f"`{name}`" for name, key in short_names(keywords).items()} | ON_FIRST
        parts.append(f"\n## {title}\n\n`{usage}`\n")
        for block, settings in groupby(_sorted(described(schema)), key=_block):
            parts.append(f"\n### {block}\n" if block else "")
            parts.append(f"\n| setting | default | meaning | {column} |\n|---|---|---|---|\n")
            parts += [_row(one, names.get(one.key, "")) for one in settings]
    return "".join(parts)


def _sorted(settings: Iterator[Described]) -> list[Described]:
    """Those without a block first; blocks in the order of the schema."""
    found = list(settings)
    order = {block: number for number, block in enumerate(dict.fromkeys(["", *map(_block, found)]))}
    return sorted(found, key=lambda one: order[_block(one)])


def _block(one: Described) -> str:
    return one.key.rpartition(".")[0]


def _row(one: Described, name: str) -> str:
    meaning = f"{one.help} ({one.possible})" if one.possible else one.help
    default = "required" if one.default == "(required)" else f"`{_yaml(one.default.removeprefix('= '))}`"
    cells = (f"`{one.key}`", default, meaning, name)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _yaml(default: str) -> str:
    return {"None": "null", "True": "true", "False": "false", "": "''"}.get(default, default)


if __name__ == "__main__":
    sys.exit(run_command(main))
