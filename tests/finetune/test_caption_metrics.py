"""Words of any language, and CIDEr-D, BLEU and ROUGE-L beside the COCO caption
evaluation and cases worked by hand.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from finetune.tasks.summarization.caption_metrics import bleu, cider_d, cider_d_of_each, rouge_l
from finetune.tasks.summarization.metrics import (
    average_precisions,
    best_threshold,
    keyword_scores,
    sentence_scores,
)
from finetune.tasks.summarization.words import clean, stretches_of, words_of

# what pycocoevalcap 1.2 (the COCO caption evaluation's own scorers, sigma 6, closest
# reference length) said of these sentences
VALUES = json.loads((Path(__file__).parent / "coco_caption_values.json").read_text())


@pytest.mark.parametrize("case", VALUES, ids=lambda case: case["name"])
def test_numbers_equal_those_of_the_coco_caption_evaluation(case):
    candidates = [image["candidate"].split() for image in case["images"]]
    references = [[text.split() for text in image["references"]] for image in case["images"]]
    assert cider_d(candidates, references) == pytest.approx(case["cider_d"], abs=1e-9)
    assert cider_d_of_each(candidates, references) == pytest.approx(
        [image["cider_d"] for image in case["images"]], abs=1e-9
    )
    assert bleu(candidates, references) == pytest.approx(case["bleu"], abs=1e-9)
    assert rouge_l(candidates, references) == pytest.approx(case["rouge_l"], abs=1e-9)


def test_cider_d_worked_by_hand():
    # two images with words of their own: each n-gram is in one of two, its weight is log 2
    references = [[["a", "b"]], [["c", "d"]]]
    # all pairs and words right, no longer n-grams: half of the four n count
    assert cider_d([["a", "b"], ["c", "d"]], references) == pytest.approx(10 * 2 / 4)
    # a a b: words (2, 1) clipped to (1, 1), so 2 / (sqrt 5 * sqrt 2); pairs aa, ab:
    # 1 / sqrt 2; one pair longer
    expected = 10 * (2 / math.sqrt(10) + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    assert cider_d_of_each([["a", "a", "b"], []], references) == pytest.approx([expected, 0.0])
    # nothing is rare in a single image
    assert cider_d([["a", "b"]], [[["a", "b"]]]) == 0.0


def test_bleu_of_the_papers_examples():
    # Papineni et al. 2002, examples 1 and 2: modified precision of words 17/18, 8/14 and 2/7, of pairs 10/17
    references = [
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is the guiding principle which guarantees the military forces always being under the command "
        "of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    ]
    first = "It is a guide to action which ensures that the military always obeys the commands of the party"
    second = "It is to insure the troops forever hearing the activity guidebook that party direct"
    words = [[words_of(text) for text in references]]
    one, two = bleu([words_of(first)], words)[:2]
    assert one == pytest.approx(17 / 18) and two == pytest.approx(math.sqrt(17 / 18 * 10 / 17))
    shorter = math.exp(1 - 16 / 14)  # the closest reference has 16 words
    assert bleu([words_of(second)], words)[0] == pytest.approx(8 / 14 * shorter)
    the = [["the", "cat", "is", "on", "the", "mat"], ["there", "is", "a", "cat", "on", "the", "mat"]]
    assert bleu([["the"] * 7], [the])[0] == pytest.approx(2 / 7)


def test_rouge_l_of_the_papers_examples():
    # Lin 2004, section 3: longest common subsequences of three and of two words out of four
    reference = [["police", "killed", "the", "gunman"]]
    assert rouge_l([["police", "kill", "the", "gunman"]], [reference]) == pytest.approx(3 / 4)
    assert rouge_l([["the", "gunman", "kill", "police"]], [reference]) == pytest.approx(2 / 4)
    # precision 1 of one reference, recall 1/2 of another: (1 + 1.44) p r / (r + 1.44 p)
    assert rouge_l([["a", "b"]], [[["a", "b", "c", "d"]]]) == pytest.approx(2.44 * 0.5 / (0.5 + 1.44))
    assert rouge_l([[]], [reference]) == 0.0


def test_images_without_references_are_left_out():
    with_all = sentence_scores(["a red cat", "a dog"], [["a red cat"], ["a blue dog", "one dog"]])
    assert (
        sentence_scores(["a red cat", "x", "a dog"], [["a red cat"], [], ["a blue dog", "one dog"]])
        == with_all
    )
    assert with_all["cider_d"] > 0


@pytest.mark.parametrize(
    "text, words",
    [
        ("A man's dog doesn't like t-shirts, 3.5!",
         ["a", "man", "'s", "dog", "does", "n't", "like", "t-shirts", "3.5"]),
        ("“Salt & pepper” -- 1,000 of them...", ["salt", "&", "pepper", "1,000", "of", "them"]),
        ("Một con mèo ngồi trên ghế.", ["một", "con", "mèo", "ngồi", "trên", "ghế"]),
        ("一只猫，坐着。", ["一", "只", "猫", "坐", "着"]),
        ("हिन्दी में बिल्ली", ["हिन्दी", "में", "बिल्ली"]),
        ("ก้าน", ["ก้", "า", "น"]),
        ("e\u0301te\u0301", ["\u00e9t\u00e9"]),
    ],
)  # fmt: skip
def test_words(text, words):
    assert words_of(text) == words


def test_chinese_is_compared_by_characters():
    numbers = sentence_scores(
        ["一只猫坐在椅子上", "两只狗"], [["一只黑猫坐在椅子上", "椅子上的猫"], ["两只狗在跑"]]
    )
    assert 0.5 < numbers["rouge_l"] < 1 and numbers["cider_d"] > 1 and numbers["bleu_4"] > 0.1
    assert stretches_of("黑猫, a dog's 2 mats!") == [["黑", "猫"], ["a", "dog", "'s", "2", "mats"]]
    assert clean(" e\u0301  x\n") == "\u00e9 x"


def test_keyword_scores_equal_a_loop():
    generator = np.random.default_rng(0)
    scores = generator.random((60, 5)).astype(np.float32)
    truth = (generator.random((60, 5)) < 0.3).astype(np.float32)
    truth[:, 3] = 0  # never occurs
    expected = []
    for k in range(5):
        order = np.argsort(-scores[:, k])
        hits = np.cumsum(truth[order, k])
        found = truth[order, k] > 0
        expected.append((hits / np.arange(1, 61))[found].mean() if found.any() else 0.0)
    assert average_precisions(scores, truth) == pytest.approx(expected, abs=1e-6)
    numbers = keyword_scores(scores, truth, threshold=0.6)
    assert numbers["keyword_map"] == pytest.approx(np.mean([expected[k] for k in (0, 1, 2, 4)]), abs=1e-6)
    right = ((scores >= 0.6) & (truth > 0)).sum()
    assert numbers["keyword_f1"] == pytest.approx(2 * right / ((scores >= 0.6).sum() + truth.sum()))
    assert average_precisions(scores[:, :1], truth[:, :1]) == pytest.approx(expected[:1], abs=1e-6)
    assert keyword_scores(scores[:, :0], truth[:, :0], threshold=0.5) == {
        "keyword_map": 0.0,
        "keyword_f1": 0.0,
    }


def test_no_threshold_is_better_than_the_best_one():
    generator = np.random.default_rng(1)
    truth = (generator.random((80, 4)) < 0.2).astype(np.float32)
    scores = np.round(truth * 0.3 + generator.random((80, 4)) * 0.7, 2).astype(
        np.float32
    )  # rounded: many are equal

    def f1(threshold):
        return keyword_scores(scores, truth, threshold=threshold)["keyword_f1"]

    best = best_threshold(scores, truth)
    assert 0 < best < 1 and f1(best) == max(f1(threshold) for threshold in np.linspace(0, 1, 401))
    assert f1(best) > f1(0.9)
    assert best_threshold(scores[:, :0], truth[:, :0]) == best_threshold(scores, np.zeros_like(truth)) == 0.5
