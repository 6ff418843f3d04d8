"""Distillation by the command: stored features and live teachers, in step with the rows, exactly resumed."""

import json
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
import safetensors.numpy
import torch

from cluster.errors import UserError, run_command
from pretrain.__main__ import main
from pretrain.data.reading.feature_layout import STATISTICS
from pretrain.embedding import main as embed
from pretrain.encoders import build_encoder, save_encoder
from pretrain.methods.distill import shared_neighbours
from pretrain.methods.knowledge import Said, StoredKnowledge, open_knowledge, seen_part
from pretrain.training.health import HealthWatch
from tests.pretrain.features import describe_features_only
from tests.pretrain.runs import arguments, assert_equal_runs, start, trace, wait_for_step
from tests.pretrain.shards import photo, write_shards

CONFIG = "configs/pretrain/small/distill.yaml"
STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images = [photo(number) for number in range(96)]
    images[5], images[40] = b"nothing", None
    return write_shards(tmp_path_factory.mktemp("photos"), images, rows_per_group=10)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(1)
    url = str(tmp_path_factory.mktemp("teacher") / "encoder")
    save_encoder(build_encoder("convattn_nano", stem_stride=4), url, input_size=64)
    return url


@pytest.fixture(scope="module")
def features(data, teacher, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("features") / "of photos")
    assert embed([teacher, data, out, "--maps", "2", "--map-channels", "4", "--rows-per-part", "16"]) == 0
    return out


def options(data, out, features, *, steps=STEPS, workers=0, **more):
    settings = {
        "method.arguments.features": features,
        "method.arguments.map_weight": 0.5,
        "training.warmup_epochs": 1,
        # mild views and a high rate: something is learnt in a dozen steps
        "views.arguments": "{crop_scale: [0.5, 1.0], strength: 0.2}",
        "optimizer.learning_rate": 0.01,
    }
    return [CONFIG, *arguments(data, out, steps=steps, workers=workers, **(settings | more))[1:]]


@pytest.fixture(scope="module")
def whole(data, features, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run_command(lambda: main(options(data, out, features))) == 0
    return out


def test_a_run_says_whom_it_learnt_from_and_how_much(whole, teacher):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["image_loss"] < lines[0]["image_loss"] and lines[-1]["map_loss"] < lines[0]["map_loss"]
    assert 0 <= lines[0]["teacher_explained"] < lines[-1]["teacher_explained"] <= 1
    assert lines[-1]["maps_explained"] > lines[0]["maps_explained"]
    assert 0 <= lines[-1]["teacher_neighbours"] <= 1
    weights = json.loads((Path(teacher) / "config.json").read_text())
    for written in (whole / "result.json", whole / "encoder" / "config.json"):
        said = json.loads(written.read_text())["teacher"]
        assert said["name"] == teacher and len(said["weights_sha256"]) == 64, written
    assert weights["kind"] == "encoder"


def test_the_report_shows_the_teachers_neighbours(data, features, teacher, tmp_path):
    assert (
        run_command(lambda: main(options(data, tmp_path / "run", features, steps=4, report_images=30))) == 0
    )
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The teacher&#39;s nearest neighbours" in page or "The teacher's nearest neighbours" in page
    assert "nearest are also the teacher" in page and "could not be made" not in page


def test_patience_ends_a_run_that_learns_no_more(data, features, tmp_path):
    more = {"knn.every_epochs": 1, "patience": 2, "optimizer.learning_rate": 0.0, "best_metric": "rankme"}
    assert run_command(lambda: main(options(data, tmp_path / "run", features, steps=60, **more))) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (
        result["status"] == "finished" and result["steps"] == 18
    )  # the first of 6 steps each is the best, two follow
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "rankme" in line] == [6, 12, 18]


@pytest.mark.slow
def test_features_from_a_store_give_the_same_bits(data, features, whole, tmp_path, s3_server):
    url = f"{s3_server.url}/{uuid.uuid4().hex}"
    store = fsspec.filesystem("s3")
    store.put(f"{features}/", f"{url}/", recursive=True)
    assert run_command(lambda: main(options(data, tmp_path / "run", url))) == 0
    assert_equal_runs(whole, tmp_path / "run")


@pytest.mark.slow
def test_killed_and_continued_it_is_the_same_run_bit_for_bit(data, features, whole, tmp_path):
    out = tmp_path / "run"
    process = start(*options(data, out, features))
    wait_for_step(process, out, 6)
    process.kill()
    process.wait()
    assert run_command(lambda: main(options(data, out, features))) == 0
    assert_equal_runs(whole, out)


@pytest.mark.slow
@pytest.mark.ray
def test_continued_on_two_workers_the_same_rows_meet_the_same_features(data, features, tmp_path, shared_ray):
    more = {"method.exact_pieces": 4}
    alone, out = tmp_path / "alone", tmp_path / "run"
    assert run_command(lambda: main(options(data, alone, features, **more))) == 0
    process = start(*options(data, out, features, **more))
    wait_for_step(process, out, 6)
    process.kill()
    process.wait()
    assert run_command(lambda: main(options(data, out, features, workers=2, **more))) == 0
    assert_equal_runs(alone, out)
    for (_, loss, bad), (_, wanted, wanted_bad) in zip(trace(out), trace(alone), strict=True):
        assert (loss, bad) == (wanted, wanted_bad)


@pytest.mark.parametrize("sees", ["views", "whole"])
def test_a_live_teacher_teaches(data, teacher, tmp_path, sees):
    views = {"num_views": 2} if sees == "views" else {"whole_size": 48}
    method = {"teacher": teacher, "sees": sees, "map_weight": 0.5, "hidden_dim": 64}
    given = [
        CONFIG, *arguments(data, tmp_path / "run", steps=3 * STEPS, workers=0)[1:],
        f"views.arguments={json.dumps(views)}", f"method.arguments={json.dumps(method)}",
    ]  # fmt: skip
    given = [option for option in given if not option.startswith("method.arguments.hidden_dim")]
    assert run_command(lambda: main(given)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for name in ("image_loss", "map_loss"):
        losses = [line[name] for line in lines]
        assert np.mean(losses[-STEPS:]) < np.mean(losses[:STEPS]), name
    # nothing of the teacher is in what is written
    encoder = json.loads((tmp_path / "run" / "encoder" / "config.json").read_text())
    assert encoder["teacher"]["name"] == teacher


def test_a_part_of_a_map_is_what_the_view_shows():
    cells = torch.arange(16.0).view(1, 1, 4, 4)  # rises by 1 to the right and by 4 downwards
    whole, right_half, mirrored = [0, 0, 1, 1, 0], [0.5, 0, 1, 1, 0], [0, 0, 1, 1, 1]
    seen = {name: seen_part(cells, torch.tensor([box]), (4, 4))[0, 0] for name, box in
            (("whole", [0.0, 0, 1, 1, 0]), ("mirrored", [0.0, 0, 1, 1, 1]))}  # fmt: skip
    assert torch.allclose(seen["whole"], cells[0, 0], atol=0.65)  # the rim is read flat
    assert torch.allclose(seen["mirrored"], seen["whole"].flip(1))
    half = seen_part(cells, torch.tensor([[0.5, 0.0, 1, 1, 0]]), (4, 2))[0, 0]
    assert torch.allclose(half, seen["whole"][:, 2:], atol=1e-5)
    assert whole != right_half != mirrored


def test_shared_neighbours_are_counted():
    generator = torch.Generator().manual_seed(0)
    mine = torch.randn(40, 8, generator=generator)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    assert shared_neighbours(mine, 3 * mine @ turn) == 1.0
    by_chance = np.mean(
        [shared_neighbours(mine, torch.randn(40, 8, generator=generator)) for _ in range(20)]
    )
    assert 0.05 < by_chance < 0.25  # 5 of 39


def test_a_student_that_learns_nothing_is_told():
    watch = HealthWatch(num_steps=100, batch_size_global=64)
    assert not any(watch.look(step, {"teacher_explained": 0.2}) for step in range(20, 60, 10))
    found = [watch.look(step, {"teacher_explained": 0.001}) for step in range(60, 100, 10)]
    assert "0.1 % of the teacher's variance" in found[-1][0].text


def test_bad_input_is_one_line(data, features, teacher, tmp_path, capsys):
    other = write_shards(tmp_path / "other", [photo(number) for number in range(40)])
    damaged = tmp_path / "no maps"
    assert embed([teacher, data, str(damaged)]) == 0
    cases = [
        ({"method.arguments": "{}"}, "distill needs a teacher: give method.arguments.features=URL"),
        ({"method.arguments.features": tmp_path / "nowhere"}, "is not a folder of features"),
        ({"method.arguments.features": damaged}, "holds none; make them with: python -m pretrain embed"),
        ({"data.url": other}, "the features of 96 rows of"),
        ({"method.arguments.teacher": teacher}, "not both"),
        (
            {"method.arguments.image_weight": 0, "method.arguments.map_weight": 0},
            "all weights of method.arguments are 0",
        ),
        ({"method.arguments.loss": "cosin"}, "cosine"),
    ]
    for changes, message in cases:
        given = options(data, tmp_path / "run", features, **changes)
        if "method.arguments" in changes:
            given = [option for option in given if not option.startswith("method.arguments.")]
        assert run_command(lambda given=given: main(given)) == 2, changes
        error = capsys.readouterr().err.strip()
        assert message in error and "Traceback" not in error and len(error.splitlines()) == 1, error


@pytest.mark.parametrize("whitening", [0.0, 1.0])
def test_what_is_to_be_predicted_is_the_same_in_bfloat16(tmp_path, whitening):
    """The weakest direction varies a thousandth of the strongest."""
    folder = describe_features_only(tmp_path, deviations=np.geomspace(2, 0.002, 6))
    knowledge = StoredKnowledge(folder, with_maps=False, target_dim=6, whitening=whitening, num_levels=1)
    statistics = safetensors.numpy.load_file(tmp_path / STATISTICS)
    drawn = np.random.default_rng(1).standard_normal((32, 6)) * statistics["deviations"]
    stored = torch.from_numpy(drawn @ statistics["eigenvectors"].T + statistics["mean"]).float()
    (wanted,) = knowledge.targets(Said([stored], []), 1)
    with torch.autocast("cpu", torch.bfloat16):
        (target,) = knowledge.targets(Said([stored], []), 1)
    assert target.dtype == torch.float32 and torch.equal(target, wanted)
    along = drawn / statistics["deviations"] ** whitening
    unit = torch.from_numpy(along / np.linalg.norm(along, axis=1, keepdims=True)).float()
    torch.testing.assert_close(target, unit, atol=2e-3, rtol=0)  # as exact as float32 inputs can be


def test_stored_maps_of_central_crops_are_refused(tmp_path):
    folder = Path(describe_features_only(tmp_path))
    content = json.loads((folder / "features.json").read_text())
    content["images"]["whole_image"] = False
    (folder / "features.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="maps of whole images"):
        open_knowledge(
            str(folder),
            None,
            sees="views",
            with_maps=True,
            target_dim=4,
            whitening=0.0,
            student_strides=[16],
        )
