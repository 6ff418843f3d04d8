"""A summarizer's part of the report: sentences beside references, and where it looked for each keyword."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from finetune.image_inputs import encoded
from finetune.reporting.base import (
    PACKAGE,
    Material,
    Score,
    TaskReport,
    noise_of,
    random_row,
    worth_of_pretraining,
)
from finetune.tasks.summarization.captions import captions_or_none
from finetune.tasks.summarization.predictor import ImageSummarizer, Summary
from pretrain.data.images.decode import decode_image
from pretrain.data.images.heat_maps import overlay
from pretrain.data.reading.loader import filled
from pretrain.reporting.folder import RunRecord
from pretrain.reporting.numbers import percent, short
from pretrain.reporting.page import Section, Templates
from pretrain.reporting.page_images import data_url
from pretrain.reporting.samples import Row
from pretrain.reporting.verdict import Verdict

NUM_IMAGES, LONGEST, MAX_KEYWORDS, MAX_REFERENCES, MAX_CHARACTERS = 12, 260, 4, 5, 300
MIN_CIDER = 0.1  # below this sentences say nothing of their images
MIN_NOISE = 0.02  # differences below this are none, however many images there are


class SummarizationReport(TaskReport):
    """See the module."""

    noun = "summarizer"
    scores = (
        Score("cider_d", "CIDEr-D", "of 10; sentences", is_fraction=False),
        Score("keyword_map", "Keyword mAP", "ranking of keywords"),
        Score("bleu_4", "BLEU-4", "runs of four words"),
        Score("rouge_l", "ROUGE-L", "longest common run"),
        Score("keyword_f1", "Keyword F1"),
    )

    def verdict(self, run: RunRecord, others: Sequence[Mapping[str, Any]]) -> Verdict:
        """CIDEr-D and keywords, beside random weights."""
        metrics, result = run.metrics, run.result
        cider = metrics["cider_d"]
        captions, images = (int(result.get(f"validation_{what}") or 0) for what in ("captions", "images"))
        first = (
            f"The summarizer's sentences reach a CIDEr-D of {short(cider)} (of 10) against {captions:,} "
            f"captions of {images:,} validation images, and its keywords a mean average precision of "
            f"{percent(metrics.get('keyword_map'))}."
        )
        word, tone = ("finished", "good") if cider >= MIN_CIDER else ("finished, says little", "warn")
        baseline = random_row(others)
        if baseline is None:
            second = (
                f"BLEU-4 is {percent(metrics.get('bleu_4'))} and ROUGE-L {percent(metrics.get('rouge_l'))}."
            )
            return Verdict(word, tone, first, second)
        other = float(baseline["metrics"]["cider_d"])
        noise = noise_of("cider_d", result, baseline, min_noise=MIN_NOISE)
        second, second_tone = worth_of_pretraining(cider, other, noise, num=images, unit="CIDEr-D")
        return Verdict(word, tone if second_tone == "good" else "warn", first, second)

    def numbers(self, run: RunRecord) -> list[Section]:
        """Average precision of each keyword."""
        rows = [row for row in run.result.get("per_keyword") or [] if row["images"]]
        if not rows:
            return []
        rows.sort(key=lambda row: (-row["images"], row["keyword"]))
        lead = (
            f"How well images with a keyword are ranked above those without; the {min(40, len(rows))} "
            "most frequent."
        )
        body = Templates(PACKAGE).render("keywords.html", rows=rows[:40])
        return [Section("keywords", "Keywords", body, lead)]

    def image_sections(self, material: Material) -> list[tuple[str, str, Any]]:
        """Sentences beside references, with the map of each keyword."""
        return [("predictions", "Sentences", partial(self._predictions, material))]

    def _predictions(self, material: Material) -> Section:
        predictor = cast(ImageSummarizer, material.predictor)
        rows = material.sample.first[:NUM_IMAGES]
        summaries = predictor.predict([row.data for row in rows])
        cards = [_card(row, summary, predictor) for row, summary in zip(rows, summaries, strict=True)]
        lead = (
            "What the model writes, and what people wrote. Bright areas show where it looked for a keyword."
        )
        return Section(
            "predictions", "Sentences", Templates(PACKAGE).render("sentences.html", cards=cards), lead
        )


def _card(row: Row, summary: Summary, predictor: ImageSummarizer) -> dict[str, Any]:
    pixels_HW3 = decode_image(encoded(row.data, predictor.channels))
    filling, _ = filled(predictor.transform, [row.data])
    assert filling.geometry_VB5 is not None
    height, width = pixels_HW3.shape[:2]
    left, top, right, bottom = filling.geometry_VB5[0, 0, :4].tolist()
    seen = pixels_HW3[
        round(top * height) : max(round(bottom * height), round(top * height) + 1),
        round(left * width) : max(round(right * width), round(left * width) + 1),
    ]
    captions = captions_or_none(row.columns[predictor.columns["captions"]])
    return {
        "url": data_url(pixels_HW3, longest=LONGEST),
        "sentence": summary.sentence,
        "references": [text[:MAX_CHARACTERS] for text in captions[:MAX_REFERENCES]],
        "keywords": [
            {
                "text": keyword.text,
                "score": f"{100 * keyword.score:.0f} %",
                "url": data_url(overlay(seen, keyword.map_HW), longest=130),
            }
            for keyword in summary.keywords[:MAX_KEYWORDS]
        ],
    }
