"""Keywords are words that a reader would choose, in each language."""

import itertools
import sys

import pytest

from finetune.tasks.summarization.keywords import KeywordReader
from finetune.tasks.summarization.mining import CaptionSample, mine
from finetune.tasks.summarization.phrases import Phrases
from pretrain.data.scenes.captions import captions as captions_of_scene
from tests.finetune.caption_corpora import FUNCTION_WORDS, captions_in

LIMITS = {"num_keywords": 30, "min_images": 10, "max_fraction": 0.25}
# of each language terms of several words (or characters) that are in most captions of their scene
TERMS = {
    "English": {"living room", "restaurant", "surfboard", "frisbee"},
    "Vietnamese": {"xe đạp", "theo dõi", "người đàn ông", "bác sĩ", "bệnh viện", "máy bay", "nhà hàng"},
    "German": {"glas wein", "wohnzimmer", "surfbrett"},
    "Chinese": {"自行车", "公共汽车", "动物园", "红绿灯", "飞机", "公园"},
}
# no words on their own, only halves of them
HALVES = {
    "Vietnamese": {"đàn", "dõi", "viện", "sĩ", "hiểm", "đạp"},
    "Chinese": {"汽", "厅", "灯", "披", "萨"},
}


def mined(texts, **limits):
    sample = CaptionSample()
    for text in texts:
        sample.add([text] if isinstance(text, str) else text)
    return mine(sample, **{**LIMITS, **limits})


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("language", list(TERMS))
def test_first_keywords_are_no_function_words_nor_halves_of_words(language, seed):
    keywords, _ = mined(captions_in(language, 400, seed=seed))
    assert len(keywords) == 30
    assert FUNCTION_WORDS[language].isdisjoint(keywords)
    assert HALVES.get(language, set()).isdisjoint(keywords)
    assert len(TERMS[language] & set(keywords)) >= len(TERMS[language]) - 1, keywords


def test_captions_of_one_image_agree_on_its_keywords():
    things = ["dog", "cat", "horse", "bird", "cow"]
    places = ["grass", "fire hydrant", "sand", "snow"]
    people = "my your"
    images = []
    for number, (thing, place, whose) in enumerate(itertools.product(things, places, people.split())):
        verb, odd = ("sits", "stands")[number % 2], ("left", "right", "above")[number % 3]
        images.append(
            [
                f"{whose} {thing} {verb} on the {place}",
                f"a {place} under the {thing}",
                f"the {thing} {odd} of a {place}",
            ]
        )
    # one writer in three says them: nothing of the image calls for them
    keywords, _ = mined(images, min_images=5, max_fraction=0.4)
    assert keywords == ["bird", "cat", "cow", "dog", "fire hydrant", "grass", "horse", "sand", "snow"]


def test_scenes_of_the_demo_need_no_stop_words():
    kinds = ["cat", "rocket", "motorcycle", "clock", "camera"]
    small = ["coin", "face", "handwritten seven", "handwritten two"]
    grounds = [
        ("on grass", "in the grass"),
        ("on bricks", "in front of bricks"),
        ("among stars", "in a night of stars"),
    ]
    where = itertools.cycle([(0, 0), (60, 10), (20, 75), (70, 70), (5, 40)])
    images = []
    for number, (kind, thing, ground) in enumerate(itertools.product(kinds, small, grounds * 2)):
        left, top = next(where)
        things = [(kind, (30, 30, 60, 60)), (thing, (left, top, left + 15, top + 15))][
            : 1 + (number % 5 > 0)
        ]
        images.append(captions_of_scene(things, ground))
    keywords, _ = mined(images, max_fraction=0.4)
    assert {"left", "right", "above", "below", "front", "to", "of", "with"}.isdisjoint(keywords)
    assert {*kinds, "coin", "face", "bricks"} <= set(keywords)


def test_phrases_are_read_as_they_were_mined():
    texts = captions_in("Vietnamese", 400)
    keywords, phrases = mined(texts)
    reader = KeywordReader(keywords, Phrases.of_config(phrases.to_json()))
    truth, known = reader.read(
        {"c": ["Một người đàn ông và một xe đạp.", "xe, đạp", None]}, {"captions": "c"}
    )
    found = [{keywords[index] for index in row.nonzero()[0]} for row in truth]
    assert (
        {"người đàn ông", "xe đạp"} <= found[0]
        and found[1:] == [set(), set()]
        and known.tolist() == [True, True, False]
    )
    # models of before phrases were kept know them by their keywords
    old = KeywordReader(["xe đạp", "黑猫"])
    assert old.read({"c": ["hai xe đạp", "一只黑猫"]}, {"captions": "c"})[0].tolist() == [[1, 0], [0, 1]]


def test_a_longer_phrase_goes_before_a_shorter_one():
    phrases = Phrases([("hot", "dog"), ("hot", "dog", "stand"), ("stop", "sign")])
    assert phrases.terms_of("A hot dog stand, a hot, dog. Stop sign stop") == {
        "hot dog stand",
        "hot",
        "dog",
        "stop sign",
        "stop",
    }


def test_mining_is_deterministic_and_does_not_grow_beyond_its_sample():
    texts = captions_in("English", 2000)
    assert mined(texts)[0] == mined(list(texts))[0]
    small, whole = CaptionSample(max_images=300), CaptionSample()
    for text in texts:
        small.add([text])
        whole.add([text])
    assert (
        150 <= len(list(small.images())) <= 300
        and small.num_images == 2000
        and small.scale == pytest.approx(8, rel=0.1)
    )
    of_small, of_whole = (set(mine(sample, **{**LIMITS, "min_images": 40})[0]) for sample in (small, whole))
    assert len(of_small & of_whole) >= 15


def test_work_is_linear():
    few, many = (calls_of(mined, captions_in("English", num)) for num in (1000, 4000))
    assert few > 100_000 and many < 4.5 * few


def calls_of(function, *arguments):
    """How many functions are called, which the machine's load does not change."""
    num_calls = 0

    def count(frame, event, argument):
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return num_calls
