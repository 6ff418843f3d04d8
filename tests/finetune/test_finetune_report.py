"""report.html of classifiers, detectors and of several runs, as a browser shows it."""

import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from cluster.errors import UserError, run_command
from finetune.__main__ import main
from finetune.reporting.base import LEVEL, standing, worth_of_pretraining
from finetune.reporting.classes import classes_section, confusion_section
from finetune.reporting.classification import ClassificationReport
from finetune.reporting.command import write_joined_report, write_report
from finetune.reporting.detection import DetectionReport
from finetune.reporting.run_page import verdict
from finetune.reporting.summarization import SummarizationReport
from pretrain.reporting.folder import History, RunRecord
from tests.browser import assert_sound, look
from tests.finetune.shapes import write_images
from tests.finetune.stripes import NAMES, arguments, stripes
from tests.pretrain.shards import write_shards

EVIL = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def classifier(world, tmp_path_factory):
    """A classifier beside the same network from random weights;
    its report was written when both were there.
    """
    out = tmp_path_factory.mktemp("classifier") / "<i>run & report"
    settings = {"training.epochs": 2, "compare": "[random]", "report_images": 40}
    assert run_command(lambda: main(arguments(world, out, **settings))) == 0
    return out


@pytest.fixture(scope="module")
def detector(world, tmp_path_factory):
    """A detector of a few steps, one of whose classes is called by a piece of HTML."""
    folder = tmp_path_factory.mktemp("detector")

    def renamed(number, objects):
        return objects | {"category": [EVIL if name == "disc" else name for name in objects["category"]]}

    write_images(folder / "train", range(24), change=renamed)
    write_images(folder / "validation", range(100, 112), change=renamed)
    settings = {
        "encoder": world / "encoder",
        "data.url": folder / "train",
        "validation_url": folder / "validation",
        "out": folder / "run",
        "image_size": 64,
        "training.batch_size_global": 4,
        "training.steps": 4,
        "training.warmup_epochs": 0,
        "training.log_every_steps": 1,
        "evaluate_every_epochs": 0,
        "compare": "[]",
        "detection.channels": 32,
        "detection.depth": 1,
        "detection.score_threshold": 0.01,
        "cluster.workers": 0,
        "report_images": 12,
    }
    options = ["configs/finetune/detection.yaml", *(f"{key}={value}" for key, value in settings.items())]
    assert run_command(lambda: main(options)) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def summarizer(world, tmp_path_factory):
    """A summarizer of a few steps, whose captions hold HTML."""
    folder = tmp_path_factory.mktemp("summarizer")
    for name, numbers in (("train", range(48)), ("validation", range(100, 112))):
        images, labels = zip(*(stripes(number) for number in numbers), strict=True)
        captions = [[f"{EVIL} stripes {label}", "lines of light"] for label in labels]
        write_shards(folder / name, list(images), captions=captions)
    settings = {
        "encoder": world / "encoder",
        "data.url": folder / "train",
        "validation_url": folder / "validation",
        "out": folder / "run",
        "training.batch_size_global": 16,
        "training.steps": 6,
        "training.warmup_epochs": 0,
        "training.log_every_steps": 1,
        "evaluate_every_epochs": 0,
        "compare": "[]",
        "summarization.width": 32,
        "summarization.keyword_threshold": 0.05,
        "summarization.keyword_max_fraction": 0.6,
        "cluster.workers": 0,
        "report_images": 12,
    }
    options = ["configs/finetune/summarization.yaml", *(f"{key}={value}" for key, value in settings.items())]
    assert run_command(lambda: main(options)) == 0
    return folder / "run"


@pytest.mark.slow
def test_the_report_of_a_classifier_of_several_classes(world, tmp_path):
    for name, numbers in (("train", range(32)), ("validation", range(100, 116))):
        images, labels = zip(*(stripes(number) for number in numbers), strict=True)
        write_shards(
            tmp_path / name,
            list(images),
            label=[[label, EVIL][: 1 + n % 2] for n, label in enumerate(labels)],
        )
    settings = {
        "data.url": tmp_path / "train",
        "validation_url": tmp_path / "validation",
        "report_images": 16,
    }
    assert (
        run_command(lambda: main(arguments(world, tmp_path / "run", **settings, **{"training.epochs": 2})))
        == 0
    )
    html = (tmp_path / "run" / "report.html").read_text()
    assert (
        "mean average precision of" in html and "could not be made" not in html and "<img src=x" not in html
    )


@pytest.mark.slow
def test_the_report_of_a_summarizer_in_a_browser(summarizer):
    seen = look(summarizer / "report.html", schemes=("dark",))
    for one in seen.values():
        assert one.console == [] and one.requests == [] and one.failed_images == [] and one.overflow <= 0
        assert (
            f"{EVIL} stripes {NAMES[0]}" in one.text
            and "lines of light" in one.text
            and "CIDEr-D" in one.text
        )
        assert "could not be made" not in one.text and "24 captions of 12 validation images" in one.text
    html = (summarizer / "report.html").read_text()
    assert html.count('class="keyword-maps"') == 12 and "<img src=x" not in html


def test_the_report_of_a_classifier_in_a_browser(classifier):
    seen = look(classifier / "report.html")
    assert_sound(seen, min_images=80)
    for one in seen.values():
        for words in (
            "classifier "
            "report", "<i>run & report", NAMES[0], "pretrained", "random weights",
            "Which classes are confused", "Predictions", "Where it looks", "Nearest neighbours",
            "Map of embeddings", "of 40 validation images",
        ):  # fmt: skip
            assert words in one.text, words
        assert "could not be made" not in one.text
        assert "he same network from random weights reaches 100.0 %" in one.text


@pytest.mark.slow
def test_the_report_of_a_detector_in_a_browser(detector):
    seen = look(detector / "report.html", schemes=("light",))
    for one in seen.values():
        assert one.console == [] and one.requests == [] and one.failed_images == [] and one.overflow <= 0
        assert EVIL in one.text and "detector report" in one.text and "12 validation images" in one.text
        assert "could not be made" not in one.text
    html = (detector / "report.html").read_text()
    assert html.count('class="true"') >= 12 and html.count('class="found"') > 0
    assert "<img src=x" not in html


def test_one_page_joins_runs_and_says_what_is_missing(classifier, tmp_path):
    target = tmp_path / "pipeline" / "report.html"
    outs = [str(classifier), str(classifier / "compare" / "random"), str(tmp_path / "nowhere")]
    assert run_command(lambda: main(["report", *outs, "--out", str(target)])) == 0
    seen = look(target)
    assert_sound(seen, min_images=0)
    text = seen[1400, "light"].text
    assert "1 of 3 runs did not work (first: nowhere, missing)." in text
    assert (
        "Classification" in text and "<i>run & report: random weights" in text and "random: this run" in text
    )
    (link,) = re.findall(
        r'href="([^"#]*report\.html)"', target.read_text()
    )  # only one of them has a report of its own
    assert (target.parent / unquote(link)).samefile(classifier / "report.html")
    without = Path(write_joined_report(outs[:2], str(tmp_path / "two.html"))).read_text()
    assert "All <b>2</b> runs are finished" in without
    with pytest.raises(UserError, match="have no folder in common"):
        write_joined_report(["memory://a/run", "/b/run"])


def test_without_model_or_data_the_numbers_stand(classifier, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(classifier, copy)
    shutil.rmtree(copy / "model")
    html = Path(write_report(str(copy))).read_text()
    assert (
        "This part could not be made: the run has no model yet" in html
        and "Which classes are confused" in html
    )
    assert run_command(lambda: main(["report", str(tmp_path)])) == 2


def record(metrics, **result):
    return RunRecord(
        "runs/a", {"task": "x", "training": {"steps": 10}}, History([{"step": 10, "loss": 1.0}]),
        status="finished",
        result={"metrics": metrics, **result},
    )  # fmt: skip


def classified(right, num=400):
    half = num // 2
    matrix = [[half - 10, 10], [num - half - (right - half + 10), right - half + 10]]
    details = {"validation_images": num, "confusion_matrix": matrix, "class_names": ["a", EVIL]}
    return record({"accuracy": right / num}, **details)


def others(accuracy):
    return [{"name": "random weights", "metrics": {"accuracy": accuracy}}]


@pytest.mark.parametrize(
    ("run", "rows", "tone", "first", "second"),
    [
        (classified(300), others(0.5), "good", r"75\.0 % \(± 4\.2 points\) of 400 .* gets 50\.0 %",
         r"gains \+25\.0 points"),
        (classified(300), others(0.74), "warn", "75",
         r"beyond noise, \+1\.0 points .* 400 images .* \(± 6\.0\)"),
        (classified(300), others(0.9), "warn", "75",
         r"did not help here: .* 90\.0 %, which is 15\.0 points better"),
        (classified(300), [], "good", "75", rf"take “{re.escape(EVIL)}” for “a” \(90 of 200 images\)"),
        (classified(205), [], "warn", r"51\.2 %", "most frequent mistake"),
    ],
)  # fmt: skip
def test_verdicts_of_classifiers(run, rows, tone, first, second):
    said = ClassificationReport().verdict(run, rows)
    assert said.tone == tone and re.search(first, said.first) and re.search(second, said.second), said


def test_verdicts_of_classifiers_of_several_classes():
    rows = [
        {"class": EVIL, "images": 10, "average_precision": 0.4},
        {"class": "b", "images": 30, "average_precision": 0.8},
    ]
    run = record({"mean_average_precision": 0.6}, validation_images=100, per_class=rows)
    report = ClassificationReport().of(run)
    said = report.verdict(run, [])
    assert (
        "60.0 % over 2 classes of 100" in said.first
        and "a random ranking gets 20.0 %" in said.first
        and said.tone == "good"
    )
    assert f"“{EVIL}” with 40.0 %" in said.second
    said = report.verdict(run, [{"name": "random weights", "metrics": {"mean_average_precision": 0.595}}])
    assert said.tone == "warn" and "no difference beyond noise" in said.second


def test_verdicts_of_detectors_and_of_runs_that_go_on():
    rows = [
        {"class": "a", "boxes": 9, "ap50": 0.9, "ap": 0.5},
        {"class": "b", "boxes": 9, "ap50": 0.1, "ap": 0.0},
    ]
    run = record({"map": 0.3, "ap50": 0.5}, validation_boxes=18, validation_images=4, per_class=rows)
    said = DetectionReport().verdict(run, [])
    assert (
        "50.0 % at an overlap of one half (mAP 30.0 %) on 18 boxes in 4" in said.first
        and "“b” worst (10.0 %" in said.second
    )
    said = DetectionReport().verdict(run, [{"name": "random weights", "metrics": {"map": 0.1}}])
    assert said.tone == "good" and "gains +20.0 points" in said.second
    # four images tell little, and the run says so itself
    told = record({"map": 0.3, "ap50": 0.5}, validation_images=4, standard_errors={"map": 0.09})
    other = {"name": "random weights", "metrics": {"map": 0.1}, "standard_errors": {"map": 0.08}}
    said = DetectionReport().verdict(told, [other])
    assert (
        said.tone == "warn"
        and "no difference beyond noise, +20.0 points is within what 4 images can tell (± 23.6)"
        in said.second
    )
    going = RunRecord(
        "x", run.settings, History([{"step": 4, "loss": 2.0, "accuracy": 0.25}]), status="running"
    )
    said = verdict(going, ClassificationReport(), [])
    assert (
        "it is at step 4 of 10" in said.first and "accuracy on the validation data is 25.0 %" in said.second
    )


def test_verdicts_of_summarizers():
    metrics = {"cider_d": 0.8, "keyword_map": 0.31, "bleu_4": 0.2, "rouge_l": 0.4}
    run = record(metrics, validation_images=9, validation_captions=45)
    said = SummarizationReport().verdict(run, [])
    assert (
        "CIDEr-D of 0.8 (of 10) against 45 captions of 9" in said.first
        and "31.0 %" in said.first
        and said.tone == "good"
    )
    for other, tone, words in (
        (0.5, "good", "gains 0.3 in CIDEr-D"),
        (
            0.79,
            "warn",
            "no difference beyond noise, +0.01 in CIDEr-D is within what 9 images can tell (± 0.02)",
        ),
        (0.9, "warn", "did not help"),
    ):
        said = SummarizationReport().verdict(
            run, [{"name": "random weights", "metrics": {"cider_d": other}}]
        )
        assert said.tone == tone and words in said.second


def test_differences_are_worth_something_only_beyond_the_noise():
    assert worth_of_pretraining(0.5, 0.4, 0.05, num=100)[1] == "good"
    assert worth_of_pretraining(0.5, 0.47, 0.05, num=100)[1] == "warn"
    assert worth_of_pretraining(0.4, 0.5, 0.05, num=100)[0].startswith("Pretraining did not help")
    assert [standing(value, 0.5, 0.05) for value in (0.4, 0.46, 0.54, 0.6)] == [
        "behind",
        LEVEL,
        LEVEL,
        "ahead",
    ]


def test_tables_escape_names_and_show_the_worst_of_many_classes():
    matrix = np.eye(30, dtype=int) * 5
    matrix[29, 3] = 7
    names = [EVIL, *map(str, range(1, 30))]
    body = confusion_section(matrix, names).body
    assert body.count("<tr>") == 21 and "29 taken for 3: 7 of 12" in body
    per_class = [{"class": EVIL, "images": 3, "precision": 0.5, "recall": 1.0, "f1": 0.67}]
    assert (
        "<img" not in classes_section(per_class).body
        and "<img" not in confusion_section(matrix[:2, :2], names[:2]).body
    )
