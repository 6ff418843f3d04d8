"""One page for several runs: how each ended, and the results of the same task side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cluster import storage
from cluster.durations import duration
from cluster.errors import UserError
from cluster.secrets import masked
from finetune.reporting.base import PACKAGE, Score
from finetune.reporting.run_page import comparison_of, report_of, result_rows, verdict
from pretrain.reporting.charts import Line, line_chart, sparkline
from pretrain.reporting.folder import RunRecord, read_run
from pretrain.reporting.numbers import percent
from pretrain.reporting.page import Figure, Page, Section, Templates, Tile
from pretrain.reporting.verdict import Verdict, pretraining_verdict

REPORT = "report.html"
WORST_FIRST = ("bad", "open", "warn", "good")


@dataclass(frozen=True)
class Member:
    """One of the runs. `run` is None where there is no run folder (yet)."""

    name: str
    verdict: Verdict
    run: RunRecord | None
    link: str | None = None

    @property
    def task(self) -> str | None:
        """Its task; None for pretraining."""
        task = self.run.setting("task") if self.run is not None else None
        return None if task is None else str(task)


def joined_page(outs: Sequence[str], target: str) -> Page:
    """The page of several runs, pretraining among them;
    `target` is where it will lie, so that it can link to theirs.
    """
    members = [_member(out, target) for out in outs]
    runs = [member.run for member in members if member.run is not None]
    sections = [
        Section(
            "runs", "Runs", Templates(PACKAGE).render("members.html", members=[_card(m) for m in members])
        )
    ]
    for task in dict.fromkeys(member.task for member in members if member.task is not None):
        sections.append(
            _task_section(task, [m.run for m in members if m.task == task and m.run is not None])
        )
    figures = [
        Figure(
            run.name,
            line_chart(
                [Line("loss", *run.history.column("loss"))], label=f"Loss of {run.name}", smooth=True
            ),
        )
        for run in runs
    ]
    sections.append(Section("loss", "Loss", Templates().render("charts.html", figures=figures)))
    return Page(
        kind="report on several runs",
        title=target.rstrip("/").rpartition("/")[0].rpartition("/")[2] or "runs",
        verdict=joined_verdict(members),
        source=f"{len(members)} run folders",
        chips=[("runs", str(len(members)))],
        tiles=_tiles(members, runs),
        sections=sections,
    )


def joined_verdict(members: Sequence[Member]) -> Verdict:
    """Whether all worked; where one did not, which and why, else what the first task's model is worth."""
    by_tone = {tone: [member for member in members if member.verdict.tone == tone] for tone in WORST_FIRST}
    num, good = len(members), len(by_tone["good"])
    if trouble := [*by_tone["bad"], *by_tone["open"]]:
        first = trouble[0]
        tone = first.verdict.tone
        words = "did not work" if tone == "bad" else "are not finished"
        sentence = f"{len(trouble)} of {num} runs {words} (first: {first.name}, {first.verdict.word})."
        return Verdict(
            "trouble" if tone == "bad" else "not finished",
            tone,
            sentence,
            f"{first.name}: {first.verdict.first}",
        )
    tasks = [member for member in members if member.task is not None] or list(members)
    tone = "good" if good == num else "warn"
    sentence = f"All {num} runs are finished, and {good} of them worked."
    return Verdict("finished", tone, sentence, f"{tasks[0].name}: {tasks[0].verdict.first}")


def _member(out: str, target: str) -> Member:
    name = out.rstrip("/").rpartition("/")[2] or out
    try:
        run = read_run(out)
    except UserError as error:
        there = Verdict(
            "missing", "bad", f"There is nothing to show: {masked(str(error))}.", "It has 0 lines of a log."
        )
        return Member(name, there, None)
    if run.setting("task") is None:
        said = pretraining_verdict(run)
    else:
        said = verdict(run, report_of(run), comparison_of(run))
    return Member(name, said, run, _link(storage.join(run.url, REPORT), target))


def _link(report: str, target: str) -> str | None:
    """From one page to another beside it, which may be moved together; only on one disk."""
    if not (storage.is_local(report) and storage.is_local(target) and storage.exists(report)):
        return None
    here = storage.local_path(target).absolute().parent
    return quote(os.path.relpath(storage.local_path(report).absolute(), here))


def _card(member: Member) -> dict[str, Any]:
    run = member.run
    return {
        "name": member.name,
        "kind": "missing" if run is None else member.task or "pretraining",
        "verdict": member.verdict,
        "link": member.link,
        "spark": sparkline([] if run is None else run.history.column("loss")[1], label="loss"),
    }


def _task_section(task: str, runs: Sequence[RunRecord]) -> Section:
    report = report_of(runs[0])
    present = {name for run in runs for name in (run.result.get("metrics") or {})}
    shown: list[Score] = [score for score in report.scores if score.name in present]
    if not shown:
        return Section(task, task.capitalize(), Templates(PACKAGE).render("nothing_yet.html"))
    rows = [
        row | {"name": f"{run.name}: {row['name']}"}
        for run in runs
        for row in result_rows(run, shown[0], shown[1:], comparison_of(run))
    ]
    body = Templates(PACKAGE).render("results.html", rows=rows, best=shown[0], more=shown[1:])
    return Section(
        task,
        task.capitalize(),
        body,
        "On the validation data of each run, compared with the same network trained from other weights.",
    )


def _tiles(members: Sequence[Member], runs: Sequence[RunRecord]) -> list[Tile]:
    finished = sum(run.status == "finished" for run in runs)
    seconds = sum(float(run.result.get("seconds") or run.history.last("seconds") or 0.0) for run in runs)
    tiles = [
        Tile("Finished", f"{finished} of {len(members)}"),
        Tile("Training time", duration(seconds), "all runs together"),
    ]
    for run in runs:
        knn = run.metrics.get("knn_accuracy")
        if run.setting("task") is not None:
            best = report_of(run).scores[0]
            if best.name in run.metrics:
                tiles.append(Tile(best.title, best.text(run.metrics[best.name]), run.name))
        elif knn is not None:
            tiles.append(Tile("kNN accuracy", percent(knn), run.name))
    return tiles
