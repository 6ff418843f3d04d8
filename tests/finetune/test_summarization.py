"""Parts of the summarizer: tokenizer, search, losses, maps, thumbnails, and what is read of captions."""

import itertools
import json

import numpy as np
import pytest
import torch

from cluster.errors import UserError
from finetune.tasks.summarization.captions import Survey, each_caption, keyword_column, survey_keywords
from finetune.tasks.summarization.decoder import SentenceDecoder
from finetune.tasks.summarization.keywords import KeywordReader
from finetune.tasks.summarization.mining import mine
from finetune.tasks.summarization.model import Summarizer, SummaryTargets
from finetune.tasks.summarization.search import length_penalty, write
from finetune.tasks.summarization.seeing import positions
from finetune.tasks.summarization.tokenizer import END, NUM_SPECIAL, PAD, START, CaptionTokenizer
from finetune.tasks.summarization.whole_image import WholeImage, dwelling_box, inside_of
from pretrain.data.reading.manifest import load_manifest
from pretrain.encoders import build_encoder
from tests.pretrain.shards import encoded, write_shards

LANGUAGES = [
    "Một con mèo ngồi trên ghế đỏ.",
    "一只红色的猫坐在椅子上，旁边有狗。",
    "a red cat sits on a chair",
    "<start> of the <pad> and </s> 🐱 is no command",
]


# -- tokenizer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [300, 1000])
def test_text_of_any_language_survives_the_round_trip(size):
    tokenizer = CaptionTokenizer.trained_on(LANGUAGES * 3, vocabulary_size=size)
    assert tokenizer.num_tokens <= size
    again = CaptionTokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    for text in [*LANGUAGES, "हिन्दी में बिल्ली", "Ünïcödé, 1.5 × ½"]:  # the last two were never seen
        ids = again.ids(text)
        assert min(ids) >= NUM_SPECIAL and max(ids) < tokenizer.num_tokens
        assert again.text([START, *ids, END, PAD]) == text and ids == tokenizer.ids(text)
    assert again.ids("e\u0301") == again.ids("\u00e9")
    if size == 1000:
        assert len(tokenizer.ids(LANGUAGES[1])) < len(LANGUAGES[1].encode()) / 2
    # a sentence that was cut inside a character shows no broken one
    assert "\ufffd" not in again.text(again.ids("猫狗")[:-1])
    with pytest.raises(UserError, match="the tokenizer in the model's config"):
        CaptionTokenizer.from_json({"version": "none"})


def test_the_same_captions_give_the_same_tokenizer():
    captions = [
        " ".join(words) for words in itertools.permutations(["ab", "bc", "cd", "de", "ef"])
    ]  # many ties
    first, *others = (CaptionTokenizer.trained_on(captions, vocabulary_size=330).to_json() for _ in range(5))
    assert all(other == first for other in others)


# -- search -------------------------------------------------------------------------------------------------


def decoder_of(*, num_tokens=6, max_tokens=5, seed=0):
    torch.manual_seed(seed)
    decoder = SentenceDecoder(
        num_tokens=num_tokens, max_tokens=max_tokens, width=16, depth=2, num_heads=2
    ).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return decoder, torch.randn(3, 4, 16)


@torch.no_grad()
def log_probabilities(decoder, memory_1MD, sentences):
    """Of sentences of one length with their ends, all positions at once and without a cache."""
    tokens = torch.tensor([[START, *sentence, END] for sentence in sentences])
    scores = decoder(tokens[:, :-1], memory_1MD.expand(len(tokens), -1, -1)).log_softmax(-1)
    return scores.gather(2, tokens[:, 1:, None]).sum((1, 2)).tolist()


def test_a_cached_step_equals_the_whole_sentence_at_once():
    decoder, memory = decoder_of()
    tokens = torch.tensor([[START, 3, 4, 5, 3]] * 3)
    with torch.no_grad():
        whole, cache = decoder(tokens, memory).log_softmax(-1), decoder.begin(memory)
        steps = torch.stack([decoder.step(tokens[:, place], cache) for place in range(5)], dim=1)
    torch.testing.assert_close(steps, whole)


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_wide_beams_find_the_best_of_all_sentences(penalty):
    words = range(NUM_SPECIAL, 6)
    decoder, memory = decoder_of()
    found = write(decoder, memory, num_beams=100, penalty=penalty)
    for image, written in enumerate(found):
        scores = {}
        for length in range(5):
            sentences = list(itertools.product(words, repeat=length))
            scores |= zip(
                sentences, log_probabilities(decoder, memory[image : image + 1], sentences), strict=True
            )
        best = max(scores, key=lambda s: scores[s] / length_penalty(len(s) + 1, penalty))
        assert tuple(written.ids) == best
        assert written.log_probability == pytest.approx(scores[best], abs=1e-4)


def test_one_beam_is_the_greedy_choice_and_images_do_not_mix():
    decoder, memory = decoder_of(num_tokens=40, max_tokens=12, seed=4)
    together = write(decoder, memory)
    for image, written in enumerate(together):
        own, sentence = memory[image : image + 1], []
        while len(sentence) < 11:
            with torch.no_grad():
                scores = decoder(torch.tensor([[START, *sentence]]), own)[0, -1]
            scores[[PAD, START]] = -torch.inf
            token = int(scores.argmax())
            if token == END:
                break
            sentence.append(token)
        assert written.ids == sentence
        assert write(decoder, own)[0].ids == sentence
        three = write(decoder, memory, num_beams=3, penalty=0.0)[image]
        assert three.log_probability >= written.log_probability - 1e-5
        assert write(decoder, own, num_beams=3, penalty=0.0)[0].ids == three.ids


def test_a_higher_length_penalty_never_writes_shorter():
    decoder, memory = decoder_of(num_tokens=20, max_tokens=10, seed=7)
    lengths = [
        [len(w.ids) for w in write(decoder, memory, num_beams=50, penalty=p)] for p in (0.0, 1.0, 3.0)
    ]
    assert all(a <= b <= c for a, b, c in zip(*lengths)) and lengths[0] != lengths[2]


# -- model --------------------------------------------------------------------------------------------------


def model_and_targets(**more):
    torch.manual_seed(0)
    encoder = build_encoder("convattn_nano", stem_stride=2)
    options = {
        "num_keywords": 5,
        "num_tokens": 30,
        "max_tokens": 9,
        "width": 16,
        "num_heads": 2,
        "num_maps": 2,
        "num_fed": 3,
    }
    model = Summarizer(encoder, **{**options, **more})
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 30, (4, 7), generator=generator)
    tokens[:, 0], tokens[:, -1], tokens[1, 4:] = START, END, PAD
    targets = SummaryTargets(
        torch.randn(4, 3, 32, 32, generator=generator),
        (torch.rand(4, 5, generator=generator) < 0.4).float(),
        torch.tensor([1.0, 1.0, 0.0, 1.0]),
        torch.tensor([1.0, 1.0, 0.0, 1.0]),
        tokens,
    )
    return model, targets


def part(targets, rows):
    return SummaryTargets(*(getattr(targets, name)[rows] for name in SummaryTargets.__annotations__))


def test_gradient_reaches_every_parameter():
    model, targets = model_and_targets()
    output = model(targets)
    output.loss.backward()
    assert set(output.logs) == {"keyword_loss", "sentence_loss"}
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_the_loss_is_the_mean_of_its_shares_however_a_batch_is_cut():
    model, targets = model_and_targets()
    whole = model(targets).loss
    shares = [model(part(targets, rows)).loss for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(whole, (shares[0] + 3 * shares[1]) / 4)


def test_what_an_image_without_captions_says_changes_nothing():
    model, targets = model_and_targets()
    first = model(targets).loss
    targets.tokens_BL[2], targets.keywords_BK[2] = 7, 1.0
    torch.testing.assert_close(model(targets).loss, first, rtol=0, atol=0)
    targets.tokens_BL[3, 2] += 1
    assert model(targets).loss != first


@pytest.mark.parametrize("size", [(32, 32), (40, 56)])
def test_each_keyword_has_a_map_of_the_finest_size(size):
    model, _ = model_and_targets()
    seen = model.eval().look(torch.randn(2, 3, *size))
    assert seen.attention_BKT.shape == (2, 5, seen.size_HW[0] * seen.size_HW[1])
    torch.testing.assert_close(seen.attention_BKT.sum(-1), torch.ones(2, 5))
    assert seen.size_HW == tuple(-(-side // 8) for side in size)
    assert positions(*seen.size_HW, 16).unique(dim=0).shape[0] == seen.size_HW[0] * seen.size_HW[1]


def test_without_keywords_there_is_still_a_sentence():
    model, targets = model_and_targets(num_keywords=0)
    targets = SummaryTargets(
        targets.images_BCHW,
        targets.keywords_BK[:, :0],
        targets.has_keywords_B,
        targets.has_caption_B,
        targets.tokens_BL,
    )
    assert torch.isfinite(model(targets).loss)
    with pytest.raises(UserError, match=r"num_maps=9 is not possible: the encoder has 4 maps"):
        model_and_targets(num_maps=9)


# -- images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_the_thumbnail_is_the_smallest_box_that_holds_the_fraction(share):
    generator = np.random.default_rng(0)
    for _ in range(10):
        height, width = generator.integers(1, 7, 2)
        heat = generator.random((height, width)) ** 6
        box = dwelling_box(heat, share)
        left, top, right, bottom = (round(x * side) for x, side in zip(box, (width, height, width, height)))
        assert heat[top:bottom, left:right].sum() >= share * heat.sum() * 0.999
        smaller = [
            (y, x, h, w)
            for h in range(1, height + 1)
            for w in range(1, width + 1)
            for y in range(height - h + 1)
            for x in range(width - w + 1)
            if h * w < (bottom - top) * (right - left)
        ]
        assert all(heat[y : y + h, x : x + w].sum() < share * heat.sum() for y, x, h, w in smaller)
    assert inside_of((0.5, 0.0, 1.0, 1.0), (0.1, 0.2, 0.5, 0.6)) == pytest.approx((0.3, 0.2, 0.5, 0.6))


def test_the_whole_image_is_seen_stretched():
    from io import BytesIO

    from PIL import Image

    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40, 0], pixels[:20, :, 1] = 255, 255  # red is left, green is up
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    filling = WholeImage(8).begin(np.zeros(1, int), np.zeros(1, int))
    filling.fill(0, buffer.getvalue())
    red, green, _ = filling.arrays[0][0]
    assert (red[:, :4] > 200).all() and (red[:, 4:] < 60).all()
    assert (green[:4] > 200).all() and (green[4:] < 60).all()
    assert filling.geometry_VB5[0, 0].tolist() == [0, 0, 1, 1, 0]


# -- captions -----------------------------------------------------------------------------------------------


def manifest_of(folder, **columns):
    num_rows = len(next(iter(columns.values())))
    write_shards(
        folder, [encoded(number) for number in range(num_rows)], rows_per_file=5, rows_per_group=2, **columns
    )
    return load_manifest(str(folder), columns=["image", *columns], image_column="image")


def test_captions_are_surveyed_with_the_places_that_have_none(tmp_path):
    captions = [
        ["a red  cat", "un chat e\u0301veille\u0301"],
        None,
        [],
        ["  ", None],
        ["a cat"],
        ["a dog"],
        ["a dog"],
    ]
    survey = Survey()
    texts = list(each_caption(manifest_of(tmp_path, captions=captions), "captions", survey))
    assert texts == ["a red cat", "un chat \u00e9veill\u00e9", "a cat", "a dog", "a dog"]
    assert (survey.num_images, survey.num_texts, survey.num_without) == (7, 5, 3)
    places = [(0, 0, 1), (0, 1, 0), (0, 1, 1)]
    for text, (file, group, row) in zip(survey.without, places, strict=True):
        assert text.endswith(f"shard-{file:05d}.parquet: row group {group}, row {row}")
    # four images have captions: what is in more than half of them is a stop word
    limits = {"num_keywords": 9, "min_images": 2, "max_fraction": 0.5}

    def mined(**limits):
        return mine(survey.sample, **limits)[0]

    assert mined(**limits) == ["cat", "dog"]
    assert mined(**{**limits, "min_images": 1, "num_keywords": 3}) == ["cat", "chat", "dog"]
    assert mined(**{**limits, "max_fraction": 0.4}) == []
    assert mined(**limits, stop_words=["CAT", "sea"]) == ["dog"]


def test_captions_of_rows_that_were_not_chosen_are_not_seen(tmp_path):
    captions = [["a cat"], ["a dog"], None, ["a hen"], ["a cow"], ["a fox"]]
    survey = Survey()
    chosen = manifest_of(tmp_path, captions=captions).chosen(np.array([1, 2, 5]))
    assert list(each_caption(chosen, "captions", survey)) == ["a dog", "a fox"]
    assert (survey.num_images, survey.num_without) == (3, 1)
    assert survey.without[0].endswith("row group 1, row 0")
    assert mine(survey.sample, num_keywords=9, min_images=1, max_fraction=1)[0] == ["dog", "fox"]


def test_keywords_come_from_captions_or_a_column(tmp_path):
    reader = KeywordReader(["cat", "dog", "red"])
    truth, known = reader.read({"c": [["a Red cat", "one dog"], None, "ein Hund"]}, {"captions": "c"})
    assert truth.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]] and known.tolist() == [True, False, True]

    manifest = manifest_of(tmp_path / "tags", tags=[["cat", "sea side"], [], None, ["cat"]])
    survey = survey_keywords(manifest, keyword_column(manifest, "tags"))
    assert survey.images_of_keyword == {"cat": 2, "sea side": 1} and survey.num_without == 2
    both = {"captions": "c", "keywords": "tags"}
    values = {"c": [None] * 3, "tags": [["sea side", "unknown"], [], None]}
    truth, known = KeywordReader(["cat", "sea side"]).read(values, both)
    assert truth.tolist() == [[0, 1], [0, 0], [0, 0]] and known.tolist() == [True, True, False]
    with pytest.raises(UserError, match="classes must be text or whole numbers"):
        keyword_column(manifest, "image")
