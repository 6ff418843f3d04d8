"""Runs of a toy problem go on: bit for bit where they were cut off, from another run's checkpoint,
with every line of their logs.
"""

import json
import os
import shutil
import sys

import pytest

from cluster import storage
from cluster.errors import UserError
from pretrain.training.plan import Evaluating
from pretrain.training.run_folder import RunFolder
from tests.pretrain.toy import assert_same_weights, run, trace


@pytest.mark.parametrize("log_every_steps", [1, 4])
def test_a_run_cut_off_anywhere_continues_bit_for_bit(tmp_path, log_every_steps):
    whole, outcome, _ = run(str(tmp_path / "whole"), log_every_steps=log_every_steps)
    assert outcome.status == "finished" and outcome.progress.samples_seen == 240
    for step in (3, 11, 20, 29):
        url = str(tmp_path / f"cut{step}")
        with pytest.raises(KeyboardInterrupt):
            run(url, die_at=8 * step, log_every_steps=log_every_steps)
        continued, outcome, records = run(url, log_every_steps=log_every_steps)
        assert_same_weights(whole, continued)
        assert trace(url) == trace(str(tmp_path / "whole"))
        assert outcome.progress.restarts == 1  # before the first checkpoint too
        (restart,) = outcome.progress.restart_log
        # what was logged after the checkpoint is what was lost
        logged = step // log_every_steps * log_every_steps
        assert (restart["from_step"], restart["lost_steps"]) == (
            step // 7 * 7,
            max(0, logged - step // 7 * 7),
        )
        assert 0 < restart["seconds_to_recover"] < 60 and restart["why"] == "the command was given again"
        assert continued.steps_called == 30 - 7 * (
            step // 7
        )  # from the newest checkpoint, not from the start
        assert any("continues at step" in str(record.get("text")) for record in records) == (step >= 7)


def test_a_stop_request_writes_a_checkpoint_at_once(tmp_path):
    url = str(tmp_path / "run")
    _, outcome, _ = run(url, stop_at=10, checkpoint_every_steps=1000)
    assert (
        outcome.status == "interrupted" and outcome.progress.step == 11
    )  # noticed in the next step's agreement
    whole, *_ = run(str(tmp_path / "whole"))
    continued, outcome, _ = run(url)
    assert continued.steps_called == 19
    assert_same_weights(whole, continued)


def test_a_finished_run_trains_no_further(tmp_path):
    url = str(tmp_path / "run")
    first, *_ = run(url)
    second, outcome, _ = run(url)
    assert second.steps_called == 0 and outcome.status == "finished"
    assert_same_weights(first, second)
    assert [line["step"] for line in trace(url)] == list(range(1, 31))


def test_junk_in_the_logs_ends_nothing(tmp_path):
    url = str(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(url, die_at=8 * 20)
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines()
    lines[2] = b"\xff\xfe\x00 no UTF-8"
    metrics.write_bytes(b"\n".join(lines) + b'\n{"step": 20, "lo')
    (tmp_path / "run" / "restarts.jsonl").write_bytes(b"\xff\n[]\n{")
    (tmp_path / "run" / "result.json").write_text('{"status": "fini')
    _, outcome, records = run(url)
    assert [line["step"] for line in trace(url)] == [1, 2, *range(4, 31)]
    assert any("1 lines of metrics.jsonl cannot be read" in str(record.get("text")) for record in records)
    assert outcome.progress.restarts == 1


@pytest.mark.parametrize("rewritten", [False, True])
def test_a_kill_at_any_write_of_a_restart_loses_no_line(tmp_path, rewritten):
    """A child process is ended before each of the writes that it would make, one after another."""
    source = tmp_path / "source"
    source.mkdir()
    lines = [json.dumps({"step": step, "loss": 0.5}) for step in range(1, 41)]
    if rewritten:  # lines that do not come first: the file cannot just be cut
        lines.insert(3, "junk")
    (source / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for number in range(100):
        url = tmp_path / f"killed{number}"
        shutil.copytree(source, url)
        child = os.fork()
        if not child:
            _die_before_write(number, str(url))
            folder = RunFolder(str(url))
            folder.start_at(30)
            folder.log({"step": 31, "loss": 0.5})
            os._exit(0)
        _, status = os.waitpid(child, 0)
        kept = [
            json.loads(line)["step"]
            for line in (url / "metrics.jsonl").read_text().splitlines()
            if line != "junk"
        ]
        assert kept[:30] == list(range(1, 31)), number
        if status == 0:
            assert number >= (3 if rewritten else 1) and kept == list(range(1, 32))
            break
        assert os.waitstatus_to_exitcode(status) == 9


def _die_before_write(number, url):
    left = number

    def hook(event, args):
        nonlocal left
        writes = event in ("os.rename", "os.truncate", "os.remove") or (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes and str(args[0]).startswith(url):
            if left == 0:
                os._exit(9)
            left -= 1

    sys.addaudithook(hook)


def test_the_best_evaluation_is_kept_and_its_score_survives_a_restart(tmp_path):
    scores = {10: 0.5, 20: 0.9, 30: 0.7}
    kept = []
    evaluating = Evaluating(
        lambda step, last: {"accuracy": scores[step]},
        every_steps=10,
        best_metric="accuracy",
        keep_best=kept.append,
    )
    url = str(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(url, die_at=8 * 25, evaluating=evaluating)
    _, outcome, _ = run(url, evaluating=evaluating)
    assert kept == [10, 20]
    assert (outcome.progress.best_score, outcome.progress.best_step) == (0.9, 20)
    assert outcome.progress.metrics == {"accuracy": 0.7}


def test_a_run_in_an_object_store_continues_too():
    url = "memory://loop-test/run"
    try:
        with pytest.raises(KeyboardInterrupt):
            run(url, die_at=8 * 20)
        continued, *_ = run(url)
        assert [line["step"] for line in trace(url)] == list(range(1, 31))
        assert [name for name in storage.names_in(storage.join(url, "tensorboard")) if "tfevents" in name]
        assert continued.steps_called == 16
    finally:
        storage.remove("memory://loop-test")


def test_a_run_goes_on_from_another_ones_checkpoint_with_settings_of_its_own(tmp_path):
    whole, *_ = run(str(tmp_path / "whole"))
    parent = str(tmp_path / "parent")
    run(parent, stop_at=14)
    before = sorted(os.listdir(f"{parent}/checkpoints"))
    same, outcome, records = run(str(tmp_path / "same"), parent=f"{parent}@14")
    assert_same_weights(whole, same)
    assert outcome.progress.parent == {"run": parent, "step": 14} and outcome.progress.restarts == 0
    assert [line["step"] for line in trace(str(tmp_path / "same"))] == list(range(15, 31))
    assert any(f"continues at step 14 of 30 ({parent}@14)" == record.get("text") for record in records)
    # longer, and killed on the way: its own checkpoint counts then
    child = str(tmp_path / "longer")
    with pytest.raises(KeyboardInterrupt):
        run(child, steps=50, parent=parent, die_at=8 * 40)
    longer, outcome, _ = run(child, steps=50, parent=parent)
    assert outcome.progress.step == 50 and outcome.progress.restarts == 1
    assert outcome.progress.parent == {"run": parent, "step": 15}
    assert [line["step"] for line in trace(child)] == list(range(16, 51))
    assert longer.steps_called == 50 - 35
    assert sorted(os.listdir(f"{parent}/checkpoints")) == before


@pytest.mark.parametrize(
    ("at", "more", "told"),
    [
        ("nowhere", {}, "has no complete checkpoint; name the folder that a run left"),
        ("parent@9", {}, "has no checkpoint of step 9; there are those of step 7, 14"),
        ("parent", {"steps": 14}, "is at step 14, and this run ends at step 14: no steps are left"),
        ("parent", {"batch_size_global": 4}, "whose 14 steps saw 112 images.*keep 8"),
    ],
)
def test_a_parent_that_cannot_be_gone_on_from(tmp_path, at, more, told):
    run(str(tmp_path / "parent"), steps=14)
    with pytest.raises(UserError, match=told):
        run(str(tmp_path / "child"), parent=str(tmp_path / at), **more)
