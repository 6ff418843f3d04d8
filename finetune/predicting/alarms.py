"""Alarms over a video: frames with a class score above a threshold, and the events that neighbours form."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from cluster.errors import UserError


@dataclass(frozen=True)
class Rule:
    """`class>0.9`: what raises an alarm."""

    name: str
    threshold: float

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Reads `class>0.9`. Raises UserError for anything else."""
        match = re.fullmatch(r"(.+?)\s*>=?\s*([0-9.eE+-]+)", text.strip())
        try:
            name, threshold = (match[1], float(match[2])) if match else ("", -1.0)
        except ValueError:
            name, threshold = "", -1.0
        if not name or not 0 <= threshold <= 1:
            raise UserError(
                f"--alarm {text!r} is not possible: write CLASS>FRACTION with a fraction from 0 to 1, like "
                "person>0.9"
            )
        return cls(name, threshold)


def score_of(record: dict[str, Any], name: str) -> float:
    """How sure a record is of a class: its probability, or its surest box or keyword; 0 for none."""
    if isinstance(record.get("scores"), dict):
        return float(record["scores"].get(name, 0.0))
    if "keywords" in record:
        return max(
            (float(word["score"]) for word in record["keywords"] if word["text"] == name), default=0.0
        )
    pairs = zip(record.get("labels") or [], record.get("scores") or [], strict=False)
    return max((float(score) for label, score in pairs if label == name), default=0.0)


@dataclass(frozen=True)
class Event:
    """Neighbouring frames over a threshold. Seconds are of the first and the last, None without a time."""

    source: str
    alarm: str
    first_index: int
    last_index: int
    start_seconds: float | None
    end_seconds: float | None
    num_frames: int
    peak_score: float
    peak_index: int


class Alarms:
    """Takes in records in order, and gives the alarm of a frame and the event that has ended.

    Args:
        rule: what raises an alarm.
        gap_seconds, gap_frames: two frames belong to one event when no more lies between them;
            seconds where there is a time.
    """

    def __init__(self, rule: Rule, *, gap_seconds: float = 1.0, gap_frames: int = 1) -> None:
        self.rule, self._gap_seconds, self._gap_frames = rule, gap_seconds, gap_frames
        self._open: Event | None = None

    def look(self, record: dict[str, Any]) -> tuple[dict[str, Any] | None, Event | None]:
        """The alarm of a record, if it is one, and the event that it ended, if any."""
        if record.get("error") is not None:
            return None, None
        score = score_of(record, self.rule.name)
        source, index, seconds = record["source"], record["index"], record["seconds"]
        ended = self._open if self._open is not None and not self._joins(source, index, seconds) else None
        if ended is not None:
            self._open = None
        if score <= self.rule.threshold:
            return None, ended
        if self._open is None:
            self._open = Event(source, self.rule.name, index, index, seconds, seconds, 1, score, index)
        else:
            now = self._open
            peak = (score, index) if score > now.peak_score else (now.peak_score, now.peak_index)
            self._open = Event(
                source,
                now.alarm,
                now.first_index,
                index,
                now.start_seconds,
                seconds,
                now.num_frames + 1,
                *peak,
            )
        alarm = {
            "kind": "frame",
            "source": source,
            "index": index,
            "seconds": seconds,
            "time": clock(seconds),
        }
        return {**alarm, "alarm": self.rule.name, "score": score}, ended

    def close(self) -> Event | None:
        """The event that is still open, at the end of a video."""
        ended, self._open = self._open, None
        return ended

    def _joins(self, source: str, index: int, seconds: float | None) -> bool:
        now = self._open
        assert now is not None
        if seconds is None or now.end_seconds is None:
            # images of a folder are one video: their sources differ
            return index - now.last_index <= 1 + self._gap_frames
        return seconds - now.end_seconds <= self._gap_seconds


def event_record(event: Event) -> dict[str, Any]:
    """An event as a line of alarms.jsonl."""
    times = {"start": clock(event.start_seconds), "end": clock(event.end_seconds)}
    return {"kind": "event", **asdict(event), **times}


def clock(seconds: float | None) -> str | None:
    """Seconds as hours, minutes, seconds: 00:01:02.500."""
    if seconds is None:
        return None
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{milliseconds:03d}"
