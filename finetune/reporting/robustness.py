"""What `python -m finetune evaluate --corruptions` found, in the report."""

from __future__ import annotations

from typing import Any

from cluster import storage
from finetune.reporting.base import PACKAGE, Score
from finetune.robustness import FILE
from pretrain.reporting.page import Section, Templates


def robustness_section(run_url: str, score: Score) -> list[Section]:
    """The table of corruptions.json, each cell shaded by the score; nothing where it was not measured.

    `score` is the task's deciding one.
    """
    url = storage.join(run_url, FILE)
    if not storage.exists(url):
        return []
    found: dict[str, Any] = storage.read_json(url)
    clean = float(found["clean"])
    rows = [
        {
            "kind": kind,
            "cells": [
                (score.text(value), round(100 * min(max(value / clean, 0), 1)) if clean else 0)
                for value in values
            ],
            "mean": score.text(found["by_kind"][kind]),
        }
        for kind, values in found["kinds"].items()
    ]
    strengths = range(1, 1 + len(found["by_strength"]))
    means = [score.text(value) for value in found["by_strength"]]
    body = Templates(PACKAGE).render(
        "robustness.html", rows=rows, strengths=strengths, means=means, mean=score.text(found["mean"])
    )
    lead = (
        f"{score.title} is {score.text(clean)} on the original images and {score.text(found['mean'])} on "
        f"average under these corruptions, over {found['rows']:,} rows; strength 1 is mild and 5 severe "
        "(ImageNet-C)."
    )
    return [Section("robustness", "Worse images", body, lead)]
