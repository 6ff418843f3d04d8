"""The schema of a pipeline file, and every check that needs nothing but the file."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.errors import UserError, nearest
from cluster.jobs.job import Job, check_secrets
from cluster.jobs.pipeline.plan import all_above, in_order
from cluster.settings import load_settings, setting, settings_from

OUT = "out"
STATE_FOLDER = "pipeline"
_NAME = re.compile(r"[A-Za-z][\w-]{0,40}")
_PLACEHOLDER = re.compile(r"\{([A-Za-z][\w-]*(?:\.[\w-]+)*)\}")


@dataclass(frozen=True)
class StageSettings:
    """One stage."""

    title: str | None = setting(None, help="what it does, in a line that is shown when it starts")
    run: Any = setting(
        help="the command, a text or a list of words; {out}, {PARAMETER} and {STAGE.KEY} are filled in"
    )
    after: list[str] = setting([], help="stages that must be done first")
    out: str | None = setting(None, help="folder of the stage; null is OUT/STAGE")
    result: str = setting("result.json", help="file in out that {STAGE.KEY} and the table of results read")
    metrics: list[str] = setting([], help="metrics for the table; empty: that of best_metric, else all")
    baseline: str | None = setting(None, help="stage whose metrics are shown next to this one's")
    cpus: float = setting(
        0.0,
        minimum=0,
        help="CPUs of the command itself; its Ray workers ask for their own. On this machine stages run "
        "side by side as "
        "these allow, and one of 0 alone",
    )
    gpus: float = setting(0.0, minimum=0, help="GPUs of the command itself on a cluster")


@dataclass(frozen=True)
class PipelineSettings:
    """Everything a pipeline file can say."""

    out: str = setting(help="folder of the pipeline, a path or any fsspec URL; the same out continues it")
    name: str | None = setting(None, help="begins the ids of its jobs; null is the file's name")
    parameters: dict[str, Any] = setting(
        {},
        texts=True,
        help="values for {PARAMETER} in commands, which may hold others and {STAGE.KEY}; on the "
        "command line: NAME=value",
    )
    retries: int = setting(3, minimum=0, help="times a stage is started again whose job was killed or lost")
    stages: dict[str, Any] = setting({}, help="the stages by name; a stage that is null is left out")


@dataclass(frozen=True)
class Stage:
    """A stage whose settings are right; its words still hold {STAGE.KEY}."""

    name: str
    words: tuple[str, ...]
    after: tuple[str, ...]
    out: str
    settings: StageSettings

    @property
    def names_out(self) -> bool:
        """Whether the command is told where its folder is,
        so that something must be there when it is done.
        """
        return any(self.out in word for word in self.words)

    @property
    def result_url(self) -> str:
        """Where its result lies once it is done."""
        return storage.join(self.out, self.settings.result)


@dataclass(frozen=True)
class Pipeline:
    """A whole pipeline, its stages in an order that respects `after`."""

    name: str
    out: str
    retries: int
    stages: tuple[Stage, ...]

    @property
    def key(self) -> str:
        """A name for this pipeline with this out."""
        return f"{self.name}-{hashlib.sha256(self.out.encode()).hexdigest()[:6]}"

    @property
    def after(self) -> dict[str, tuple[str, ...]]:
        """What each stage waits for."""
        return {stage.name: stage.after for stage in self.stages}


def load_pipeline(path: str, overrides: Sequence[str]) -> Pipeline:
    """Reads a pipeline file and checks all of it. Raises UserError with one clear line."""
    settings = load_settings(PipelineSettings, path, _spelt_out(path, overrides))
    name = settings.name or Path(path).stem
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{path}: name={name!r} is not possible: a letter, then letters, digits, dashes and underscores"
        )
    if not settings.stages:
        raise UserError(f"{path}: there are no stages")
    absent = [stage for stage, values in settings.stages.items() if values is None]
    parsed = {
        stage: _stage_settings(path, stage, values, absent)
        for stage, values in settings.stages.items()
        if values is not None
    }
    try:
        order = in_order({stage: tuple(one.after) for stage, one in parsed.items()})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    out = storage.absolute(settings.out)
    stages = tuple(_stage(path, name, parsed, settings, out) for name in order)
    _check_outs(path, stages)
    return Pipeline(name, out, settings.retries, stages)


def filled(words: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Words with their placeholders replaced; a word that is nothing but
    one of a list becomes as many words.
    """
    made = []
    for word in words:
        whole = _PLACEHOLDER.fullmatch(word)
        if whole and isinstance(values[whole[1]], list | tuple):
            made += [_text(value) for value in values[whole[1]]]
        else:
            made.append(_PLACEHOLDER.sub(lambda found: _text(values[found[1]]), word))
    return made


def placeholders(words: Sequence[str]) -> Iterator[str]:
    """The names of all placeholders, such as `out`, `steps` or `STAGE.encoder`."""
    for word in words:
        yield from _PLACEHOLDER.findall(word)


def _spelt_out(path: str, overrides: Sequence[str]) -> list[str]:
    # steps=5 means parameters.steps=5; an unknown key is told with both kinds of names
    parameters = load_settings(PipelineSettings, path, ["out=x"]).parameters
    settings = PipelineSettings.__dataclass_fields__
    made = []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if equals and key in parameters:
            made.append(f"parameters.{override}")
            continue
        first, _, rest = key.partition(".")
        if equals and (first not in settings or (first == "parameters" and rest not in parameters)):
            known = [*parameters, *settings]
            raise UserError(
                f"{override}: unknown setting {key!r}{nearest(key, known)} "
                f"(parameters of {path}: {', '.join(parameters) or 'none'}; settings: {', '.join(settings)})"
            )
        made.append(override)
    return made


def _stage_settings(path: str, name: str, values: Any, absent: Sequence[str]) -> StageSettings:
    if not _NAME.fullmatch(name) or name in (STATE_FOLDER, OUT):
        raise UserError(
            f"{path}: {name!r} is not possible as a stage's name: letters, digits, dashes, underscores"
        )
    if not isinstance(values, dict):
        raise UserError(f"{path}: the stage {name} must hold `key: value` lines, run among them")
    found = settings_from(StageSettings, values, where=f"{path}: stage {name}")
    return replace(found, after=[other for other in found.after if other not in absent])


def _stage(
    path: str, name: str, parsed: dict[str, StageSettings], settings: PipelineSettings, root: str
) -> Stage:
    one, where = parsed[name], f"{path}: stage {name}"
    above = all_above({stage: tuple(other.after) for stage, other in parsed.items()})[name]
    if one.baseline is not None and one.baseline not in parsed:
        raise UserError(
            f"{where}: baseline names an unknown stage: {one.baseline!r}{nearest(one.baseline, parsed)}"
        )
    words = _words(where, one.run)
    parameters = settings.parameters
    for _ in parameters:  # the value of one may name others
        missing = [key for key, value in parameters.items() if value is None and key in placeholders(words)]
        if missing:
            raise UserError(f"{where}: the parameter {missing[0]} has no value; give it as {missing[0]}=...")
        words = filled(words, {key: parameters.get(key, f"{{{key}}}") for key in placeholders(words)})
    if ring := [key for key in placeholders(words) if key in parameters]:
        raise UserError(f"{where}: the value of the parameter {ring[0]} leads back to itself")
    out = (
        storage.join(root, name) if one.out is None else storage.absolute(filled([one.out], {OUT: root})[0])
    )
    values: dict[str, Any] = {**parameters, OUT: out}
    for key in placeholders(words):
        stage, dot, _ = key.partition(".")
        if not dot and key not in values:
            raise UserError(
                f"{where}: unknown placeholder {{{key}}}{nearest(key, values)} (known: {', '.join(values)}, "
                "STAGE.KEY)"
            )
        if dot and stage not in parsed:
            raise UserError(
                f"{where}: {{{key}}} names no stage{nearest(stage, parsed)} (known: {', '.join(parsed)})"
            )
        if dot and stage not in above:
            raise UserError(f"{where}: {{{key}}} is known when {stage} is done; add {stage} to its after")
        if dot:
            values[key] = f"{{{key}}}"
    made = tuple(filled(words, values))
    check_secrets(Job(made))
    return Stage(name, made, tuple(one.after), out, one)


def _words(where: str, run: Any) -> list[str]:
    if isinstance(run, str):
        try:
            words = shlex.split(run, comments=False)
        except ValueError as error:
            raise UserError(f"{where}: run is not a command line: {error}") from error
    elif isinstance(run, list):
        words = [_text(word) for word in run]
    else:
        raise UserError(f"{where}: run={run!r} must be a text or a list of words")
    if not words:
        raise UserError(f"{where}: run is empty")
    return words


def _check_outs(path: str, stages: Sequence[Stage]) -> None:
    seen: dict[str, str] = {}
    for stage in stages:
        if stage.out in seen:
            raise UserError(
                f"{path}: the stages {seen[stage.out]} and {stage.name} have the same out {stage.out}"
            )
        seen[stage.out] = stage.name


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value)  # true, null and [1, 2] are the same in YAML
