"""Tables of a classifier: which classes are confused, and the metrics of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.reporting.base import PACKAGE
from pretrain.reporting.page import Section, Templates

MAX_IN_MATRIX = 20


def confusion_section(matrix_CC: np.ndarray, names: Sequence[str]) -> Section:
    """Counts by true and said class; of very many classes those with most mistakes."""
    wrong = matrix_CC * (1 - np.eye(len(matrix_CC), dtype=matrix_CC.dtype))
    lead = "Rows are true classes, columns are predictions; darker cells hold a larger fraction of the row."
    chosen = list(range(len(names)))
    if len(names) > MAX_IN_MATRIX:
        chosen = sorted(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:MAX_IN_MATRIX].tolist())
        lead += f" The {MAX_IN_MATRIX} of {len(names)} classes with the most mistakes are shown."
    totals = matrix_CC.sum(1)
    rows = [
        {
            "name": names[true],
            "cells": [
                {
                    "count": int(matrix_CC[true, said]),
                    "share": round(100 * float(matrix_CC[true, said] / max(1, totals[true]))),
                    "right": true == said,
                    "title": f"{names[true]} taken for {names[said]}: "
                    f"{int(matrix_CC[true, said])} of {int(totals[true])}",
                }
                for said in chosen
            ],
        }
        for true in chosen
    ]
    body = Templates(PACKAGE).render("confusion.html", rows=rows, names=[names[index] for index in chosen])
    return Section("confusion", "Which classes are confused", body, lead)


def classes_section(per_class: Sequence[Mapping[str, Any]]) -> Section:
    """Precision, recall and F1 of each class, the weakest first."""
    rows = sorted((row for row in per_class if row["images"]), key=lambda row: (row["f1"], row["class"]))
    lead = (
        "Recall: how many images of a class are found. Precision: how often a prediction of the class is "
        "right. The weakest classes come first."
    )
    return Section("classes", "Classes", Templates(PACKAGE).render("classes.html", rows=rows), lead)
