"""Which keywords an image has, of those that a model knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.tasks.summarization.captions import captions_or_none, keywords_of
from finetune.tasks.summarization.phrases import Phrases, phrase_of
from pretrain.data.reading.annotation_columns import ClassColumn
from pretrain.data.reading.annotations import BadAnnotation


class KeywordReader:
    """Reads the keywords of rows: from a column of them, or the terms of their captions.

    Args:
        keywords: that the model knows.
        phrases: by which captions are read; None for the keywords of several words among `keywords`.
    """

    def __init__(self, keywords: Sequence[str], phrases: Phrases | None = None) -> None:
        self.keywords = list(keywords)
        self.phrases = phrases or Phrases(words for words in map(phrase_of, self.keywords) if len(words) > 1)
        self._index = {keyword: index for index, keyword in enumerate(self.keywords)}

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> KeywordReader:
        """That of a model's config."""
        # models of before phrases were mined have none
        phrases = Phrases.of_config(config["phrases"]) if "phrases" in config else None
        return cls(config["keywords"], phrases)

    def read(
        self, values: Mapping[str, Sequence[Any]], columns: Mapping[str, str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """For B rows float32 [B, K], 1 for each keyword that a row has, and bool [B],
        whether its keywords are known.

        They are not where a row has no caption to take them from, or null in their column.
        """
        from_column = "keywords" in columns
        rows = values[columns["keywords" if from_column else "captions"]]
        truth_BK, known_B = np.zeros((len(rows), len(self.keywords)), np.float32), np.zeros(len(rows), bool)
        for row, value in enumerate(rows):
            found = self._of_column(value, columns["keywords"]) if from_column else self._of_captions(value)
            if found is None:
                continue
            known_B[row] = True
            truth_BK[row, [self._index[keyword] for keyword in found if keyword in self._index]] = 1.0
        return truth_BK, known_B

    def _of_column(self, value: Any, column: str) -> set[str] | None:
        if value is None:
            return None
        try:
            return keywords_of(value, ClassColumn(column, isinstance(value, list)))
        except BadAnnotation:
            return None

    def _of_captions(self, value: Any) -> set[str] | None:
        captions = captions_or_none(value)
        return set().union(*map(self.phrases.terms_of, captions)) if captions else None
