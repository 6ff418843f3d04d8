"""Names that have changed: one table of old and new ones.

What a user types by an old name (a command, a settings file, a call from Python) is refused, and the message
says the new name. What runs and models wrote under old names is read as if it had the new ones, so that a
run that was cut off continues, and a model folder loads.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

# dotted settings; where a block is a mapping (method.arguments), keys in it as well
SETTINGS = {
    "data.max_bad_share": "data.max_bad_fraction",
    "optimizer.final_share": "optimizer.final_fraction",
    "knn.crop_share": "knn.crop_fraction",
    "method.arguments.warmup_share": "method.arguments.warmup_fraction",
    "crop_share": "crop_fraction",
    "classification.smallest_crop": "classification.min_crop",
    "detection.anchors_a_place": "detection.anchors_per_position",
    "detection.most_detections": "detection.max_detections",
    "detection.smallest_scale": "detection.min_scale",
    "detection.largest_scale": "detection.max_scale",
    "detection.smallest_visible": "detection.min_visible",
    "summarization.keyword_max_share": "summarization.keyword_max_fraction",
    "summarization.smallest_crop": "summarization.min_crop",
    "summarization.thumbnail_share": "summarization.thumbnail_fraction",
}
# options of commands, and values of options
OPTIONS = {"--crop-share": "--crop-fraction", "--region-share": "--region-fraction"}
VALUES = {"shares": "fractions"}
# keys in the config.json of a fine-tuned model
MODEL_KEYS = {
    "crop_share": "crop_fraction",
    "thumbnail_share": "thumbnail_fraction",
    "most": "max_detections",
}


def old_names(settings: Mapping[str, Any], known: Container[str] | None = None) -> Iterator[tuple[str, str]]:
    """(old, new) name of each setting that has an old one.
    With `known`, only of those that a schema with these keys has.
    """
    for old, new in SETTINGS.items():
        if known is None or new in known or new.rpartition(".")[0] in known:
            *blocks, name = old.split(".")
            inner: Any = settings
            for block in blocks:
                inner = inner.get(block) if isinstance(inner, Mapping) else None
            if isinstance(inner, Mapping) and name in inner:
                yield old, new


def with_new_names(settings: Mapping[str, Any], known: Container[str] | None = None) -> dict[str, Any]:
    """The settings that a run wrote down, nested, by the names of today."""
    renamed = dict(settings)
    for old, new in old_names(settings, known):
        *blocks, name = old.split(".")
        inner = renamed
        for block in blocks:
            inner[block] = dict(inner[block])
            inner = inner[block]
        inner[new.rpartition(".")[2]] = inner.pop(name)
    return renamed


def is_now_called(old: str, new: str) -> str:
    """How a message puts an old name."""
    return f"{old} is now called {new}"
