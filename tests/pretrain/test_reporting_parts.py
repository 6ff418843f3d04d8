"""The pure functions behind the report: numbers, ticks, charts, samples, neighbours."""

import json
import math
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup

from pretrain.data.reading.manifest import load_manifest
from pretrain.reporting.charts import Line, Mark, line_chart, running_mean, sparkline, thinned
from pretrain.reporting.elements import element
from pretrain.reporting.embeddings import neighbours, plane, principal_components
from pretrain.reporting.encoder_sections import agreement, embedding_map, spread_queries
from pretrain.reporting.folder import History, _lines
from pretrain.reporting.numbers import log_ticks, margin, percent, points, short, tick_texts, ticks
from pretrain.reporting.page import emphasised
from pretrain.reporting.samples import draw_sample, majority_fraction, spread_segments
from tests.pretrain.shards import photo, write_shards


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.0, "0"), (3.14159, "3.14"), (1234.5, "1,234"), (99.96, "100"), (0.00021, "0.00021"),
        (2.34e-8, "2.3e-8"), (-3.26, "−3.26"), (1.5e6, "1,500,000"), (1.0, "1"), (None, "–"),
        (math.nan, "–"), (math.inf, "–"),
    ],
)  # fmt: skip
def test_numbers_are_written_short(value, text):
    assert short(value) == text


def test_shares_and_differences():
    assert percent(0.2431) == "24.3 %" and percent(None) == "–" and percent(1.0, 0) == "100 %"
    assert points(0.138) == "+13.8 points" and points(-0.02) == "−2.0 points"
    # half the width of Wilson's interval: 50 of 100 is 0.4038 to 0.5962 (Agresti and Coull 1998)
    assert margin(0.5, 100) == pytest.approx(0.0962, abs=1e-4) and math.isnan(margin(0.5, 0))


@pytest.mark.parametrize("low", [0.0, -3.3, 0.00012, 5e4])
@pytest.mark.parametrize("width", [1e-6, 0.013, 1.0, 7.7, 450, 3.2e7])
@pytest.mark.parametrize("max_ticks", [3, 5, 8])
def test_ticks_are_round_and_inside(low, width, max_ticks):
    found = ticks(low, low + width, max_ticks)
    assert 1 <= len(found) <= max_ticks
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in found)
    steps = {f"{b - a:.3e}" for a, b in pairwise(found)}
    assert len(steps) <= 1 and all(float(step.split("e")[0]) in (1, 2, 2.5, 5) for step in steps)


def test_ticks_have_texts_that_tell_them_apart():
    for low, high in [(0, 1), (0, 0.0015), (3.5, 5.7), (0, 450), (0, 30_000), (-3.3, -2.5), (0, 3e-8)]:
        texts = tick_texts(ticks(low, high))
        assert len(set(texts)) == len(texts), texts
    assert tick_texts([0, 10_000, 20_000]) == ["0", "10k", "20k"] and tick_texts([0.0, 0.5, 1.0]) == [
        "0.0",
        "0.5",
        "1.0",
    ]
    assert log_ticks(0.5, 2000) == [1, 10, 100, 1000] and len(log_ticks(3, 40)) >= 2


def test_elements_escape_what_they_are_given():
    made = element("text", "<script>&", data_x='"><b', stroke_width=1.23456, class_="a", nothing=None)
    assert made == '<text data-x="&#34;&gt;&lt;b" stroke-width="1.23" class="a">&lt;script&gt;&amp;</text>'
    assert element("g", made, Markup("<i/>")).count("<script") == 0


def test_a_chart_is_well_formed_and_keeps_every_text_a_text():
    evil = '<img src=x onerror="alert(1)">'
    svg = line_chart(
        [Line(evil, [1, 2, 3], [1.0, None, math.nan]), Line("b", [1, 2, 3], [2.0, 3.0, 5.0])],
        label=evil, x_name=evil, marks=[Mark(evil, x=2.0), Mark(evil, y=4.0)],
    )  # fmt: skip
    tree = ElementTree.fromstring(svg)
    assert "<img" not in svg and tree.get("aria-label") == evil
    assert sum(evil in (text.text or "") for text in tree.iter("text")) >= 2
    assert (
        line_chart([Line("a", [], [])], label="nothing")
        == '<p class="empty">Nothing has been logged yet.</p>'
    )


def test_a_chart_shows_the_values_where_they_are():
    svg = ElementTree.fromstring(line_chart([Line("a", [0, 10], [0.0, 1.0])], label="a", bounds=(0.0, 1.0)))
    first, second = (circle for circle in svg.iter("circle") if circle.get("r") == "2.4")
    assert float(first.get("cx")) < float(second.get("cx")) and float(first.get("cy")) > float(
        second.get("cy")
    )
    titles = ["".join(node.itertext()) for node in svg.iter("g") if node.get("class") == "tip"]
    assert titles == ["step 0 · 0", "step 10 · 1"]


def test_one_value_and_equal_values_can_be_drawn_also_on_a_logarithmic_axis():
    for ys in ([3.0], [2.0, 2.0], [0.0, 0.0], [1e-9, 1e9]):
        for log in (False, True):
            ElementTree.fromstring(line_chart([Line("a", list(range(len(ys))), ys)], label="a", log=log))
    assert sparkline([1.0], label="a") == "" and "<path" in sparkline([1.0, None, 3.0], label="a")


def test_thinning_keeps_ends_and_spikes():
    points_ = [(float(x), 1000.0 if x == 6543 else math.sin(x)) for x in range(10_000)]
    kept = thinned(points_, 200)
    assert (
        len(kept) <= 202 and kept[0] == points_[0] and kept[-1] == points_[-1] and (6543.0, 1000.0) in kept
    )
    assert thinned(points_[:50], 200) == points_[:50]
    line = [(float(x), 2.0 * x) for x in range(40)]
    assert np.allclose(running_mean(line, 5), line)  # a straight line stays, to its ends


def test_numbers_in_a_sentence_are_bold_and_html_is_not():
    assert (
        emphasised("3.87, and 24.3 % of <b>x2</b>")
        == "<b>3.87</b>, and <b>24.3 %</b> of &lt;b&gt;x2&lt;/b&gt;"
    )
    assert "<b>39" not in emphasised("it's")  # the number of an entity


def test_very_long_histories_are_thinned_but_rare_numbers_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": step, "loss": 1.0, **({"knn_accuracy": 0.5} if step % 100 == 0 else {})}
        for step in range(1, 1001)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 10')  # the last line was cut off
    history = History(_lines(str(path), 128))
    assert len(history.rows) <= 128 + 10 and history.step == 1000
    assert history.column("knn_accuracy")[0] == list(range(100, 1001, 100))


@pytest.mark.parametrize(
    ("rows", "num", "spots"), [(100, 30, 8), (100, 100, 64), (7, 30, 64), (1000, 64, 16), (1, 5, 3)]
)
def test_a_sample_is_spread_and_never_shows_a_row_twice(tmp_path, rows, num, spots):
    manifest = load_manifest(write_shards(tmp_path, [b"x"] * rows), cache_dir=str(tmp_path / "cache"))
    segments = spread_segments(manifest, num, spots)
    starts = manifest.start_of_group
    taken = [int(starts[s.group]) + row for s in segments for row in range(s.start, s.stop)]
    assert len(taken) == len(set(taken)) <= num and max(taken) < rows
    assert len(segments) == min(spots, num, rows)
    half = sorted(int(starts[s.group]) + s.start for s in segments[: max(1, len(segments) // 2)])
    assert (
        half[-1] - half[0] >= 0.4 * rows or len(segments) < 3
    )  # whenever it stops, all of the data set was seen


def test_a_sample_leaves_bad_images_out_and_tells_the_majority(tmp_path):
    images = [photo(number) for number in range(40)]
    images[3], images[20] = b"nothing", None
    url = write_shards(tmp_path, images, label=["a" if n % 4 else "b" for n in range(40)])
    sample = draw_sample(
        url,
        image_column="image",
        columns=["label"],
        size=24,
        crop_fraction=1.0,
        num_images=40,
        deadline=math.inf,
    )
    assert (
        len(sample) == 38
        and sample.crops_NCSS.shape == (38, 3, 24, 24)
        and sample.tiles[0].shape == (128, 128, 3)
    )
    assert sorted(sample.row_ids) == [n for n in range(40) if n not in (3, 20)]
    assert [("a" if n % 4 else "b") for n in sample.row_ids] == sample.columns["label"]
    assert majority_fraction(url, "label") == 0.75
    assert 0 < len(draw_sample(
        url, image_column="image", size=24, crop_fraction=1.0, num_images=40, deadline=-math.inf
    )) <= 32  # fmt: skip


def test_neighbours_plane_and_queries():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 16)) * 5
    features = np.concatenate([centre + generator.normal(size=(10, 16)) for centre in centres]).astype(
        np.float32
    )
    labels = [name for name in "abc" for _ in range(10)]
    order, similarity = neighbours(features, 5)
    assert order.shape == (30, 5) and all(query not in row for query, row in enumerate(order.tolist()))
    assert (np.diff(similarity, axis=1) <= 0).all()
    share, guess = agreement(order, labels)
    assert share > 0.95 and guess == pytest.approx(9 / 29)
    places = plane(features)
    assert places.min() >= 0 and places.max() <= 1 and np.array_equal(places, plane(features))
    of_place, _ = neighbours(places - places.mean(0), 3)
    assert of_place.shape == (30, 3)
    assert plane(features[:2]).shape == (2, 2) and plane(np.ones((20, 4), np.float32)).shape == (20, 2)
    chosen = spread_queries(labels, 30, 12)
    assert len(set(chosen)) == 12 and {labels[index] for index in chosen} == set("abc")
    assert spread_queries(None, 5, 12) == [0, 1, 2, 3, 4]
    centred = features - features.mean(0)
    assert np.allclose(np.linalg.norm(principal_components(centred, 16)), np.linalg.norm(centred), rtol=1e-5)


def test_the_map_escapes_labels_and_shows_each_image_once():
    tiles = [np.full((8, 8, 3), 30 * n, np.uint8) for n in range(4)]
    places = np.array([[0, 0], [0, 0.001], [1, 1], [0.5, 0.5]])
    svg = embedding_map(tiles, places, [0, 1, 0, 11], ["<script>alert(1)</script>"] * 4)
    tree = ElementTree.fromstring(svg)
    assert (
        "<script" not in svg and len(list(tree.iter("image"))) == 3 and len(list(tree.iter("circle"))) == 1
    )
