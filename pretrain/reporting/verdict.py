"""Two sentences in plain words that say whether a run worked, each with the number behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.durations import duration
from pretrain.reporting.folder import RunRecord
from pretrain.reporting.numbers import percent, short
from pretrain.training.health import COLLAPSES, MIN_SPREAD
from pretrain.training.probes import UNTRAINED

GOOD_SPREAD = 0.5


@dataclass(frozen=True)
class Verdict:
    """What stands at the top of a page.

    Attributes:
        word: one or two words for the badge.
        tone: `good`, `warn`, `bad` or `open` (not known yet).
        first, second: the sentences.
    """

    word: str
    tone: str
    first: str
    second: str


VerdictOn = Callable[[RunRecord], Verdict]
InWords = Callable[[Mapping[str, float]], str | None]


def verdict_of(run: RunRecord, of_finished: VerdictOn, *, so_far: InWords) -> Verdict:
    """The verdict on a run: `of_finished` says what a finished and healthy one is worth, `so_far` what the
    newest numbers of one that goes on say; the rest is the same for all runs."""
    if run.status == "failed":
        return Verdict(
            "failed",
            "bad",
            f"This run failed {_where(run)}: {reason(run)}.",
            _what_is_left(run, "once that is fixed"),
        )
    if collapsed := _collapse(run):
        kept_on = "but trained to the end" if run.status == "finished" else f"and ended {_where(run)}"
        first = f"This run collapsed {kept_on}: {collapsed}."
        return Verdict("collapsed", "bad", first, _after_collapse(run))
    if run.status == "stopped":
        return Verdict(
            "stopped",
            "bad",
            f"This run was stopped by a rule {_where(run)}: {reason(run)}.",
            _what_is_left(run),
        )
    if run.status == "killed":
        silence = (
            f", and it has written nothing for {duration(run.silent_seconds)}"
            if run.silent_seconds is not None
            else ""
        )
        first = f"This run was killed {_where(run)}: its process ended without a result{silence}."
        return Verdict("killed", "bad", first, _what_is_left(run))
    if run.status == "interrupted":
        return Verdict("interrupted", "warn", f"This run was interrupted {_where(run)}.", _what_is_left(run))
    if run.status in ("running", "unfinished"):
        first = f"This run is not finished: it is {_where(run)}."
        return Verdict(
            "running" if run.status == "running" else "unfinished", "open", first, _so_far(run, so_far)
        )
    return of_finished(run)


def reason(run: RunRecord) -> str:
    """Why a run ended, in a line."""
    lines = [
        line.strip()
        for line in str(run.result.get("reason") or "no reason is known").splitlines()
        if line.strip()
    ]
    # the last line of a traceback says it; the text of a rule or a mistake has one line
    text = (lines[-1] if len(lines) > 1 else lines[0]) if lines else "no reason is known"
    return (text if len(text) <= 400 else f"{text[:400]}…").rstrip(".")


def pretraining_verdict(run: RunRecord, *, chance: float | None = None) -> Verdict:
    """Of a pretraining run. `chance`: the kNN accuracy of always naming the most frequent class,
    where it is known.
    """

    def of_finished(run: RunRecord) -> Verdict:
        findings, metrics = run.history.findings, run.metrics
        knn, health = metrics.get("knn_accuracy"), _health(metrics)
        if findings:
            text = next(iter(findings.values()))
            return Verdict(
                "finished, unhealthy", "warn", f"This run finished, but something is wrong: {text}.", health
            )
        if knn is not None:
            untrained = metrics.get(f"knn_accuracy_{UNTRAINED}")
            beside = (
                [f"the weights it started from reach {percent(untrained)}"] if untrained is not None else []
            )
            beside += (
                [f"always guessing the most frequent class reaches {percent(chance)}"] if chance else []
            )
            where = f", where {' and '.join(beside)}" if beside else ""
            seen = (
                f"a vote of nearest neighbours classifies {percent(knn)} of unseen images correctly{where}"
            )
            if (chance and knn < 1.2 * chance) or (untrained is not None and knn <= untrained):
                return Verdict(
                    "finished, little learnt",
                    "warn",
                    f"The encoder learnt little about the classes: {seen}.",
                    health,
                )
            return Verdict("finished", "good", f"Pretraining worked: {seen}.", health)
        loss = f"This run finished, and {_loss(run) or 'its loss was not logged'}."
        spread = metrics.get("spread")
        tone = "good" if spread is None or spread >= GOOD_SPREAD else "warn"
        return Verdict("finished", tone, loss, health)

    def so_far(metrics: Mapping[str, float]) -> str | None:
        knn = metrics.get("knn_accuracy")
        return (
            None
            if knn is None
            else f"a vote of nearest neighbours classifies {percent(knn)} of unseen images correctly"
        )

    return verdict_of(run, of_finished, so_far=so_far)


def _collapse(run: RunRecord) -> str | None:
    for kind, text in run.history.findings.items():
        if kind in COLLAPSES:
            return text.partition(";")[0].removeprefix(f"{kind}: ")
    spread = run.metrics.get("spread")
    if spread is not None and spread < MIN_SPREAD and len(run.history.values("spread")) >= 3:
        return f"all images get nearly the same embedding (spread {short(spread)} of 1)"
    return None


def _after_collapse(run: RunRecord) -> str:
    rate = run.setting("optimizer", "learning_rate")
    now = f" than optimizer.learning_rate={rate:g}" if isinstance(rate, int | float) else ""
    batch = run.setting("training", "batch_size_global")
    larger = f" than {batch}" if isinstance(batch, int) else ""
    return (
        f"Its encoder cannot tell images apart and should not be used; a lower rate{now}, a longer warm-up "
        f"or a larger batch{larger} usually helps."
    )


def _health(metrics: Mapping[str, float]) -> str:
    spread, rank = metrics.get("spread"), metrics.get("rankme", metrics.get("effective_rank"))
    parts = []
    if spread is not None:
        words = "are well spread" if spread >= GOOD_SPREAD else "are close together"
        parts.append(f"embeddings {words} ({spread:.2f}; 1 fills the sphere, 0 is collapsed)")
    if rank is not None:
        parts.append(
            f"they use about {rank:.0f} dimensions"
            if parts
            else f"embeddings use about {rank:.0f} dimensions"
        )
    if not parts:
        return "The method has no embeddings, so its health cannot be measured."
    text = " and ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _loss(run: RunRecord) -> str | None:
    first, last = run.history.first("loss"), run.history.last("loss")
    if first is None or last is None:
        return None
    if len(run.history.values("loss")) == 1:
        return f"the loss is {short(last)}"
    verb = "fell" if last < first else "rose"
    return f"the loss {verb} from {short(first)} to {short(last)}"


def _so_far(run: RunRecord, in_words: InWords) -> str:
    parts = [text for text in (_loss(run), in_words(run.metrics)) if text]
    findings = run.history.findings
    if findings:
        parts.append(f"something is wrong: {next(iter(findings.values()))}")
    if not parts:
        return "No number has been logged yet (0 lines)."
    text = ", and ".join(parts)
    return f"So far {text}."


def _what_is_left(run: RunRecord, when: str = "") -> str:
    before = _loss(run)
    until = f"Until then {before}; " if before else ""
    again = f"the same command{f' {when}' if when else ''}"
    if run.checkpoint_step is None:
        text = f"{until}there is no checkpoint, so {again} starts from scratch at step 0"
    else:
        text = f"{until}{again} continues from the checkpoint of step {run.checkpoint_step:,}"
    return f"{text[0].upper()}{text[1:]}."


def _where(run: RunRecord) -> str:
    step, num_steps = max(run.history.step, int(run.result.get("step") or 0)), run.num_steps
    if not num_steps:
        return f"at step {step:,}"
    return f"at step {step:,} of {num_steps:,} ({percent(step / num_steps, 0)})"
