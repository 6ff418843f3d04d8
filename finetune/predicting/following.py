"""What is done with records as they come, in order: alarms, tracks, heat maps, drawn images and videos."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cluster import storage
from finetune.predicting import drawing
from finetune.predicting.alarms import Alarms, Event, Rule, event_record
from finetune.predicting.localizing import Localizer, fields_of, heat_png
from finetune.predicting.sources import Clip, Item, frame_rate
from finetune.predicting.tracking import Tracker, mot_lines
from finetune.predicting.videos import VideoWriter
from pretrain.data.images.heat_maps import overlay

DEFAULT_FPS = 25.0
SHOWN_SCORE = 0.3  # of a box or region that is drawn


class Follower(Protocol):
    """Takes in the records of one clip after the other. It may add fields to a record."""

    def begin(self, clip: Clip) -> None: ...

    def take(self, item: Item, record: dict[str, Any]) -> None: ...

    def end(self) -> None: ...


def stem_of(source: str, index: int | None = None) -> str:
    """A file name for what comes of an image, whatever its own name holds."""
    name = source.rstrip("/").rpartition("/")[2]
    stem = re.sub(r"[^\w.-]+", "_", name.rpartition(".")[0] or name)[-60:]
    return stem if index is None else f"{index:06d}-{stem}"


class AlarmFollower:
    """Writes alarms.jsonl: a line for each frame over a threshold and for each event of such frames."""

    def __init__(self, out: str, rules: list[Rule], *, gap_seconds: float) -> None:
        self._out, self._rules, self._gap = out, rules, gap_seconds
        self._alarms: list[Alarms] = []
        self._lines: list[str] = []
        self.num_frames, self.events = 0, 0

    def begin(self, clip: Clip) -> None:
        """A video or folder begins: events do not reach over its borders."""
        self._alarms = [Alarms(rule, gap_seconds=self._gap) for rule in self._rules]

    def take(self, item: Item, record: dict[str, Any]) -> None:
        """Looks at the record of a frame; the image is not needed."""
        for alarms in self._alarms:
            alarm, event = alarms.look(record)
            self._add(event)
            if alarm is not None:
                self.num_frames += 1
                self._lines.append(json.dumps(alarm, ensure_ascii=False))

    def end(self) -> None:
        """The clip is over."""
        for alarms in self._alarms:
            self._add(alarms.close())
        text = "".join(f"{line}\n" for line in self._lines)
        storage.write_bytes(storage.join(self._out, "alarms.jsonl"), text.encode())

    def _add(self, event: Event | None) -> None:
        if event is not None:
            self.events += 1
            self._lines.append(json.dumps(event_record(event), ensure_ascii=False))


class LocalizeFollower:
    """Adds where a class is seen to each record, and writes the heat map and the map over the image."""

    def __init__(self, out: str, localizer: Localizer) -> None:
        self._out, self._localizer = out, localizer

    def begin(self, clip: Clip) -> None:
        """Nothing to prepare."""

    def take(self, item: Item, record: dict[str, Any]) -> None:
        """Looks for the class."""
        if record["error"] is not None:
            return
        pixels = item.pixels()
        localization = self._localizer.localize_pixels(pixels)
        record |= fields_of(localization)
        name = stem_of(item.source, item.index)
        storage.write_bytes(storage.join(self._out, "maps", f"{name}.png"), heat_png(localization.heat_HW))
        image = drawing.draw(overlay(pixels, localization.heat_HW), drawing.marks_of(record))
        storage.write_bytes(storage.join(self._out, "maps", f"{name}.jpg"), drawing.jpeg(image))

    def end(self) -> None:
        """Nothing is left to do."""


@dataclass
class TrackFollower:
    """Links a detector's boxes over a clip's frames: tracks/NAME.txt in MOT format, tracks/NAME.mp4."""

    out: str
    labels: list[str]
    min_score: float
    fps: float | None = None
    tracks: int = 0
    _lines: list[str] = field(default_factory=list)

    def begin(self, clip: Clip) -> None:
        """Tracks do not reach over the borders of clips."""
        rate = frame_rate(clip.urls[0]) if clip.kind == "video" else self.fps or DEFAULT_FPS
        self._tracker = Tracker(self.labels, frame_rate=rate, min_score=self.min_score)
        self._name, self._lines, self._seen = stem_of(clip.name), [], set[int]()
        self._folder = tempfile.TemporaryDirectory(prefix="fovea-tracks-")
        self._video = Path(self._folder.name) / "video.mp4"
        self._writer = VideoWriter(self._video, frame_rate=rate)
        self._writer.__enter__()
        self._frame = 0

    def take(self, item: Item, record: dict[str, Any]) -> None:
        """Links a frame's boxes."""
        bad = record["error"] is not None
        tracked = [] if bad else self._tracker.follow(record["boxes"], record["labels"], record["scores"])
        record["tracks"] = [
            {"track": t.track, "label": t.label, "score": t.score, "box": list(t.box)} for t in tracked
        ]
        self._lines.append(mot_lines(self._frame, tracked))
        self._seen |= {t.track for t in tracked}
        self._frame += 1
        if not bad:
            marks = [drawing.Mark(t.box, t.label, str(t.track)) for t in tracked]
            self._writer.write(np.asarray(drawing.draw(item.pixels(), marks)))

    def end(self) -> None:
        """Writes the clip's tracks and video."""
        self._writer.__exit__(None, None, None)
        text = "".join(self._lines)
        storage.write_bytes(storage.join(self.out, "tracks", f"{self._name}.txt"), text.encode())
        if self._video.exists():
            storage.upload(self._video, storage.join(self.out, "tracks", f"{self._name}.mp4"))
        self._folder.cleanup()
        self.tracks += len(self._seen)


class DrawFollower:
    """Writes each image with its prediction drawn in to drawn/."""

    def __init__(self, out: str) -> None:
        self._out = out

    def begin(self, clip: Clip) -> None:
        """Nothing to prepare."""

    def take(self, item: Item, record: dict[str, Any]) -> None:
        """Draws an image."""
        if record["error"] is not None:
            return
        marks = drawing.marks_of(record, min_score=SHOWN_SCORE)
        image = drawing.draw(item.pixels(), marks, words=drawing.words_of(record))
        url = storage.join(self._out, "drawn", f"{stem_of(item.source, item.index)}.jpg")
        storage.write_bytes(url, drawing.jpeg(image))

    def end(self) -> None:
        """Nothing is left to do."""
