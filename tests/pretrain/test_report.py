"""report.html as a browser shows it, of runs that ended in every way."""

import base64
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.errors import UserError, run_command
from pretrain.__main__ import main
from pretrain.report import write_report
from tests.browser import assert_sound, look
from tests.pretrain.shards import encoded, photo, write_shards

CONFIG = "configs/pretrain/small/simclr.yaml"
EVIL = '<img src=x onerror="document.title=1"> & </title><script>alert(1)</script>'


def arguments(shards, out, *, steps=12, **more):
    settings = {
        "data.url": shards,
        "out": out,
        "views.size": 32,
        "encoder.arguments.stem_stride": 2,
        "method.arguments.hidden_dim": 64,
        "training.batch_size_global": 16,
        "training.steps": steps,
        "training.warmup_epochs": 1,
        "training.log_every_steps": 1,
        "training.checkpoint_every_steps": 4,
        "cluster.workers": 0,
        **more,
    }
    return [CONFIG, *(f"{key}={value}" for key, value in settings.items())]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    images = [photo(number) for number in range(96)]
    images[5] = b"nothing"
    labels = [EVIL if n % 3 == 0 else f"class {n % 3}" for n in range(96)]
    return write_shards(
        tmp_path_factory.mktemp("photos_" + "x" * 60), images, rows_per_group=10, label=labels
    )


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory):
    """A run that wrote its report when it ended."""
    out = tmp_path_factory.mktemp("finished") / "run"
    knn = {"knn.train_url": shards, "knn.test_url": shards, "report_images": 64}
    assert run_command(lambda: main(arguments(shards, out, **knn))) == 0
    return out


def first_sentences(out, **how):
    """The badge and the two sentences of a report that is written now."""
    html = Path(write_report(str(out), num_images=0, **how)).read_text()
    inside = re.search(r'id="verdict">(.*?)</div>', html, re.S)[1]
    return " ".join(re.sub(r"<[^>]+>", "", inside).split())


def test_the_report_of_a_run_in_a_browser(finished):
    path = finished / "report.html"
    seen = look(path)
    # views 6 x 5, neighbours 12 x 7, attention 8 x 5 and thumbnails of the map
    assert_sound(seen, min_images=150)
    for one in seen.values():
        for words in (
            "pretraining "
            "report", "finished", "Loss", "Learning rate", "kNN accuracy", "Spread of embeddings",
            "Images a "
            "second", "Nearest neighbours", "Map of embeddings", "stage 4", "Rows that could not be used",
            "not an image",
            f"python -m pretrain {finished}/settings.yaml",
        ):  # fmt: skip
            assert words in one.text, words
        assert EVIL in one.text  # a class's name, as it is
        assert "could not be made" not in one.text
    html = path.read_text()
    assert "<script" not in html and "onerror=\"" not in html and "http" not in re.sub(
        r"http-equiv|https?://[\w./-]+(?=[^\"']*</pre>)", "", html
    )  # fmt: skip
    assert len(html) < 3e6
    for data in re.findall(r"data:image/webp;base64,([\w+/=]+)", html):
        assert base64.b64decode(data)[8:12] == b"WEBP"


def test_the_same_run_gives_the_same_page(finished):
    pages = []
    for _ in range(2):
        html = Path(write_report(str(finished))).read_text()
        pages.append(re.sub(r"<time>.*?</time>", "", html))
    assert pages[0] == pages[1]


def test_a_finished_run_says_what_it_is_worth(finished):
    text = first_sentences(finished)
    # always naming the most frequent class gets a third
    assert text.startswith("finished") and re.search(
        r"[\d.]+ % of unseen images correctly, .* reaches 33\.3 %", text
    )


def test_without_its_data_or_encoder_the_page_says_so(finished, tmp_path):
    settings = (finished / "settings.yaml").read_text()
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "settings.yaml").write_text(re.sub(r"_url: .*", "_url: /nowhere/at/all", settings))
    (moved / "metrics.jsonl").write_text((finished / "metrics.jsonl").read_text())
    html = Path(write_report(str(moved), num_images=8)).read_text()
    assert (
        html.count("This part could not be made: /nowhere/at/all does not exist") == 4
        and "Spread of embeddings" in html
    )
    (moved / "settings.yaml").write_text(settings)
    html = Path(write_report(str(moved), num_images=8)).read_text()
    assert html.count("neither an encoder nor a checkpoint") == 3 and "view 1, epoch 1" in html


def test_an_unfinished_run_shows_the_encoder_of_its_checkpoint(finished, tmp_path):
    half = tmp_path / "half"
    subprocess.run(["cp", "-r", finished, half], check=True)
    subprocess.run(["rm", "-r", half / "encoder", half / "result.json"], check=True)
    assert first_sentences(half).startswith(
        "unfinished This run is not finished: it is at step 12 of 12 (100 %)."
    )
    html = Path(write_report(str(half), num_images=24)).read_text()
    assert "could not be made" not in html and html.count("stage 4") >= 8


def test_a_collapsed_run_says_so_first(tmp_path, capsys):
    # images without anything in them: all embeddings are one
    shards = write_shards(tmp_path / "grey", [encoded(0x808080, size=(32, 32)) for _ in range(64)])
    for rule, code in (("warn", 0), ("stop", 3)):
        out = tmp_path / rule
        options = {"views.arguments": "{strength: 0}", "method.on_collapse": rule, "report_images": 0}
        assert run_command(lambda options=options, out=out: main(arguments(shards, out, **options))) == code
        assert (
            "collapse: all images get nearly the same embedding"
            in capsys.readouterr().out + (out / "metrics.jsonl").read_text()
        )
        text = first_sentences(out)
        assert re.match(
            r"collapsed This run collapsed (and|but) .*: all images get nearly the same "
            r"embedding \(spread 0\.0\d* of 1",
            text,
        )
        assert "should not be used" in text
        assert "collapsed" in (out / "report.html").read_text()


def test_running_and_killed_are_told_apart(finished, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for name in ("settings.yaml", "metrics.jsonl"):
        (out / name).write_text((finished / name).read_text())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()

    def mark(**more):
        (out / "running.json").write_text(
            json.dumps({"host": os.uname().nodename, "pid": os.getpid(), "started_at": 0} | more)
        )

    mark()
    assert first_sentences(out).startswith("running This run is not finished: it is at step 12 of 12")
    mark(pid=dead.pid)
    assert first_sentences(out).startswith(
        "killed This run was killed at step 12 of 12 (100 %): its process ended"
    )
    mark(host="another")
    assert first_sentences(out).startswith("running")
    os.utime(out / "metrics.jsonl", (time.time() - 3600, time.time() - 3600))
    assert re.match(
        r"killed This run was killed at step 12 .* it has written nothing for 1:00 h", first_sentences(out)
    )


def test_a_fault_in_the_report_does_not_fail_the_run(shards, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"

    def fault(*_, **__):
        raise OSError("no room")

    monkeypatch.setattr("pretrain.report.page_of", fault)
    assert run_command(lambda: main(arguments(shards, out, steps=2, report_images="0"))) == 0
    assert "warning: the report of" in capsys.readouterr().out


def test_the_command_refuses_what_is_no_run_folder(tmp_path):
    assert run_command(lambda: main(["report", str(tmp_path)])) == 2
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(str(tmp_path))
