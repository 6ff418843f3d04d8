"""Pretraining as a user runs it: in-process, on Ray workers, cut off and continued."""

import json
import os
import pickle
import random
import signal
import time
from pathlib import Path

import pytest

from cluster.errors import run_command
from cluster.settings import load_settings
from cluster.training.rank_context import local_context
from pretrain.__main__ import main
from pretrain.papers import defaults_of
from pretrain.reporting.folder import read_run
from pretrain.reporting.verdict import pretraining_verdict
from pretrain.run import Parts, pretrain
from pretrain.settings import PretrainSettings
from pretrain.starting import resolved
from pretrain.training import checkpoints
from tests.finetune.stripes import cut_off_after
from tests.pretrain.runs import arguments, assert_equal_runs, start, trace, train_workers_of, wait_for_step
from tests.pretrain.shards import photo, write_shards

NUM_IMAGES = 96


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    images = [photo(number) for number in range(NUM_IMAGES)]
    images[5], images[40] = (
        b"nothing",
        None,
    )  # two bad rows, so that their replacement is in every comparison
    folder = tmp_path_factory.mktemp("photos")
    return write_shards(
        folder, images, rows_per_group=10, label=[f"class {n % 3}" for n in range(NUM_IMAGES)]
    )


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """An undisturbed run in this process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run_command(lambda: main(arguments(shards, out, steps=12, workers=0))) == 0
    return out


def test_a_run_leaves_what_the_readme_says(whole, shards, capsys):
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "settings.yaml", "metrics.jsonl", "result.json", "bad_rows.jsonl", "encoder", "checkpoints",
        "tensorboard", "report.html",
    }  # fmt: skip
    result = json.loads((whole / "result.json").read_text())
    assert result["status"] == "finished" and result["steps"] == 12 and result["samples_seen"] == 192
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    for key in (
        "loss", "learning_rate", "images_per_second", "data_wait_fraction", "spread", "effective_rank",
        "alignment", "uniformity", "epoch", "samples_seen",
    ):  # fmt: skip
        assert all(isinstance(line[key], int | float) for line in lines), key
    assert lines[-1]["loss"] < lines[0]["loss"]
    bad = [json.loads(line) for line in (whole / "bad_rows.jsonl").read_text().splitlines()]
    assert {(Path(row["file"]).name, row["row_group"], row["row"], row["reason"]) for row in bad} == {
        ("shard-00000.parquet", 0, 5, "not an image"),
        ("shard-00001.parquet", 0, 0, "null"),
    }
    assert run_command(lambda: main(arguments(shards, whole, steps=12, workers=0))) == 0
    assert "is finished already" in capsys.readouterr().out


def test_golden_losses(whole):
    """A change of these numbers is a change of what everybody's runs compute: it must be meant, and said."""
    losses = [loss for _, loss, _ in trace(whole)]
    golden = json.loads(Path(__file__).with_name("golden_losses.json").read_text())
    assert losses == pytest.approx(golden, abs=2e-3)


def test_check_tells_what_would_happen_and_leaves_nothing(shards, whole, tmp_path, capsys):
    out = tmp_path / "run"
    assert run_command(lambda: main([*arguments(shards, out, steps=12, workers=2), "--check"])) == 0
    told = capsys.readouterr().out
    for words in (
        "96 "
        "images", "6 steps of 16 images an epoch", "starts from scratch",
        "first batch of a worker: 8 images", "memory of a worker: about", "time: 12 steps of", "2 workers",
        "nothing was started",
    ):  # fmt: skip
        assert words in told, told
    assert not out.exists()

    before = sorted(path.stat().st_mtime_ns for path in whole.rglob("*"))
    assert run_command(lambda: main([*arguments(shards, whole, steps=12, workers=0), "--check"])) == 0
    assert "would do nothing: the run there is finished" in capsys.readouterr().out
    assert before == sorted(path.stat().st_mtime_ns for path in whole.rglob("*"))
    assert run_command(lambda: main([*arguments(shards, whole, steps=13, workers=0), "--check"])) == 2
    assert "holds a run with other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_activation_checkpointing_may_begin_on_the_way_and_changes_no_bit(
    shards, whole, tmp_path, monkeypatch
):
    from pretrain.training import recipe

    seen, checkpoint_blocks = [], recipe.checkpoint_blocks
    monkeypatch.setattr(
        recipe, "checkpoint_blocks", lambda module: (seen.append(module), checkpoint_blocks(module))
    )
    out = tmp_path / "run"
    with cut_off_after(6):
        assert run_command(lambda: main(arguments(shards, out, steps=12, workers=0))) == 130
    assert not seen
    options = arguments(shards, out, steps=12, workers=0, training__activation_checkpointing="true")
    assert run_command(lambda: main(options)) == 0
    assert len(seen) == 1
    assert_equal_runs(whole, out)


def test_workers_read_no_footers_again(shards, whole, tmp_path, monkeypatch, one_thread):
    config, *overrides = arguments(shards, tmp_path / "run", steps=12, workers=0)
    settings, _ = resolved(load_settings(PretrainSettings, config, overrides, beneath=defaults_of))
    known = pickle.loads(pickle.dumps(Parts.of(settings).known))  # as it comes to a worker
    monkeypatch.setattr("pretrain.data.reading.manifest.find_shards", None)
    with local_context() as context:
        assert pretrain(context, settings, known=known)["status"] == "finished"
    assert_equal_runs(whole, tmp_path / "run")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_change_what_is_learnt(shards, whole, tmp_path, shared_ray, workers):
    out = tmp_path / "run"
    steps = 12
    assert run_command(lambda: main(arguments(shards, out, steps=steps, workers=workers))) == 0
    for (step, loss, bad), (wanted_step, wanted, wanted_bad) in zip(trace(out), trace(whole), strict=True):
        assert (step, bad) == (wanted_step, wanted_bad)
        assert loss == pytest.approx(wanted, abs=1e-4)
    assert (out / "bad_rows.jsonl").read_text() == (whole / "bad_rows.jsonl").read_text()


@pytest.mark.ray
@pytest.mark.slow
def test_fifty_steps_in_process_and_on_one_and_two_workers(shards, tmp_path, shared_ray):
    # the paper's optimizer and rate; without exact pieces roundings of 1e-7 grow
    # as fast as the training makes them
    rate = {"optimizer.name": "lars", "optimizer.learning_rate": 0.3, "optimizer.weight_decay": 1e-6}
    outs = [tmp_path / f"run{workers}" for workers in range(3)]
    for workers, out in enumerate(outs):
        options = arguments(shards, out, steps=50, workers=workers, method__exact_pieces=4, **rate)
        assert run_command(lambda options=options: main(options)) == 0
    assert_equal_runs(outs[0], outs[1])
    assert_equal_runs(outs[0], outs[2])


def test_killed_and_continued_equals_undisturbed(shards, whole, tmp_path, capsys):
    out = tmp_path / "run"
    options = arguments(shards, out, steps=12, workers=0)
    process = start(*options)
    wait_for_step(process, out, 6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "result.json").exists() and (out / "running.json").exists()
    verdict = pretraining_verdict(read_run(str(out)))
    assert verdict.first.startswith("This run was killed at step") and "of 12" in verdict.first
    assert "continues from the checkpoint of step 4" in verdict.second
    capsys.readouterr()
    assert run_command(lambda: main(options)) == 0
    assert not (out / "running.json").exists()
    assert "continues at step" in capsys.readouterr().out
    assert_equal_runs(whole, out)


def test_ctrl_c_writes_a_checkpoint_and_the_same_command_continues(shards, whole, tmp_path):
    out = tmp_path / "run"
    options = arguments(shards, out, steps=12, workers=0, training__checkpoint_every_steps=1000)
    process = start(*options)
    wait_for_step(process, out, 3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in output, output
    assert "Traceback" not in output
    assert checkpoints.load_newest(str(out)).progress.step >= 3
    assert run_command(lambda: main(options)) == 0
    assert_equal_runs(whole, out)


@pytest.fixture
def dice():
    """Random moments, other ones in each run of the tests; the seed is printed with a failure."""
    seed = int(os.environ.get("FOVEA_TEST_SEED") or time.time_ns() % 2**32)
    print(f"FOVEA_TEST_SEED={seed} repeats these moments (as near as timing allows)")
    return random.Random(seed)


@pytest.mark.slow
def test_killed_again_and_again_at_random_moments(shards, whole, tmp_path, dice):
    out = tmp_path / "run"
    options = arguments(shards, out, steps=12, workers=0, training__checkpoint_every_steps=1)
    for step in sorted(dice.sample(range(1, 12), 4)):
        process = start(*options)
        wait_for_step(process, out, step)
        time.sleep(dice.uniform(0, 0.3))  # anywhere in a step, and in the writing of a checkpoint
        process.kill()
        process.wait()
    process = start(*options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert_equal_runs(whole, out)


@pytest.mark.ray
@pytest.mark.slow
def test_kill_9_of_the_run_and_of_a_worker_at_random_steps_under_ray(shards, tmp_path, dice):
    """Two workers. One run is left alone, one loses a worker, one is killed whole and continued:
    all end the same.
    """
    outs = {name: tmp_path / name for name in ("alone", "worker", "whole")}

    def options(name):
        return arguments(shards, outs[name], steps=24, workers=2)

    process = start(*options("alone"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output

    process = start(*options("worker"))
    wait_for_step(process, outs["worker"], step := dice.randint(1, 22))
    os.kill(dice.choice(train_workers_of(process)), signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    # before the first checkpoint there is nothing to continue from
    assert "continues at step" in output or step < 5
    assert json.loads((outs["worker"] / "result.json").read_text())["restarts"] == 1
    assert_equal_runs(outs["alone"], outs["worker"])

    for _ in range(2):
        process = start(*options("whole"))
        wait_for_step(process, outs["whole"], dice.randint(1, 22))
        process.kill()
        process.wait()
        time.sleep(12)  # its Ray ends by itself
    process = start(*options("whole"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert_equal_runs(outs["alone"], outs["whole"])


@pytest.mark.ray
@pytest.mark.slow
def test_continued_on_another_number_of_workers_the_same_batches_follow(shards, whole, tmp_path, shared_ray):
    out = tmp_path / "run"
    process = start(*arguments(shards, out, steps=12, workers=0))
    wait_for_step(process, out, 6)
    process.kill()
    process.wait()
    assert run_command(lambda: main(arguments(shards, out, steps=12, workers=2))) == 0
    for (_, loss, bad), (_, wanted, wanted_bad) in zip(trace(out), trace(whole), strict=True):
        assert loss == pytest.approx(wanted, abs=1e-4) and bad == wanted_bad


@pytest.mark.ray
def test_killed_and_continued_on_two_workers_in_exact_pieces_it_is_the_same_run_bit_for_bit(
    shards, tmp_path, shared_ray
):
    more = {"method.exact_pieces": 4, "encoder.arguments.drop_path": 0.1}
    alone, out = tmp_path / "alone", tmp_path / "run"
    assert run_command(lambda: main(arguments(shards, alone, steps=12, workers=0, **more))) == 0
    process = start(*arguments(shards, out, steps=12, workers=0, **more))
    wait_for_step(process, out, 6)
    process.kill()
    process.wait()
    assert run_command(lambda: main(arguments(shards, out, steps=12, workers=2, **more))) == 0
    assert_equal_runs(alone, out)


def test_pieces_that_do_not_fit_are_refused(shards, tmp_path, capsys):
    for pieces, workers, message in (
        (3, 0, "method.exact_pieces=3 does not divide training.batch_size_global=16"),
        (2, 4, "cluster.workers=4 does not divide method.exact_pieces=2; possible numbers of workers: 1, 2"),
    ):
        options = arguments(shards, tmp_path / "run", steps=4, workers=workers, method__exact_pieces=pieces)
        assert run_command(lambda options=options: main(options)) == 2
        assert message in capsys.readouterr().err
