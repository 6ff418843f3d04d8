"""The loop on a toy problem: resume bit for bit, unsound gradients, stop requests, logs,
damaged checkpoints.
"""

import dataclasses
import errno
import json
import math
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from cluster import storage
from cluster.errors import RunStopped, UserError
from cluster.training.rank_context import local_context
from pretrain.training import checkpoints
from pretrain.training.contract import StepOutput, Trainable, TrainingBatch
from pretrain.training.loop import train
from pretrain.training.optimizers import Rates
from pretrain.training.plan import Evaluating, Plan
from pretrain.training.run_folder import RunFolder
from pretrain.training.settings import TrainingSettings


class Toy(Trainable):
    """A regression with dropout, a buffer that counts, and a loss that can be made to fail."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.poison_at = None
        self.steps_called = 0

    def forward(self, inputs):
        self.steps_called += 1
        loss = (self.layers(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        if self.poison_at is not None and int(self.seen) == self.poison_at:
            loss = loss * math.nan
        return StepOutput(loss=loss, logs={"twice": 2 * loss.detach()})

    def after_step(self, step, num_steps):
        self.seen += 1


class ToyBatches:
    """Batches that are a function of the position, and end the process's patience where told."""

    def __init__(self, samples_seen, die_at=None):
        self.position, self.die_at, self.closed = samples_seen, die_at, False

    def __next__(self):
        if self.die_at is not None and self.position >= self.die_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(self.position)
        self.position += 8
        bad = {"file: row group 0, row 3": "truncated"} if self.position == 16 else {}
        return TrainingBatch(torch.randn(8, 4, generator=generator), bad)

    def close(self):
        self.closed = True


def run(
    url,
    *,
    steps=30,
    module=None,
    die_at=None,
    stop_at=None,
    close=True,
    on_record=None,
    ask_at=None,
    optimizer=None,
    **options,
):
    module = module or Toy()
    optimizer = optimizer(module) if optimizer else torch.optim.AdamW(module.parameters(), lr=0.1)
    records = []

    def show(record):
        records.append(record)
        if on_record is not None:
            on_record(record)
        if ask_at is not None and record.get("step") == ask_at:
            context.request_checkpoint()
        if stop_at is not None and record.get("step") == stop_at:
            context.request_stop()

    with local_context(show) as context:
        folder = RunFolder(url)
        names = {field.name for field in dataclasses.fields(TrainingSettings)}
        settings = {
            "batch_size_global": 8, "log_every_steps": 1, "checkpoint_every_steps": 7,
            "checkpoint_every_seconds": 600.0, **options,
        }  # fmt: skip
        plan = Plan(
            url, TrainingSettings(**{name: settings[name] for name in names & settings.keys()}),
            steps, 10, lambda step: Rates(0.05 * (1 - step / 100), 0.05, 0.0), seed=7,
            **{name: value for name, value in settings.items() if name not in names},
        )  # fmt: skip
        try:
            outcome = train(
                module,
                optimizer,
                plan,
                context=context,
                run=folder,
                batches_from=lambda seen: ToyBatches(seen, die_at),
            )
        finally:
            if close:
                folder.close()
    return module, outcome, records


def trace(url):
    lines = storage.read_bytes(storage.join(url, "metrics.jsonl")).decode().splitlines()
    return [
        {key: json.loads(line)[key] for key in ("step", "loss", "gradient_norm", "twice")} for line in lines
    ]


def assert_same_weights(first, second):
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


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


def test_an_unsound_loss_never_moves_the_optimizer(tmp_path):
    module = Toy()
    module.poison_at = 9
    with pytest.raises(RunStopped, match=r"step 9: the loss \(nan\).*the parameters were not changed"):
        run(str(tmp_path / "run"), module=module)
    reference, *_ = run(str(tmp_path / "reference"), steps=9)
    assert_same_weights(reference, module)


def test_an_unsound_step_can_be_skipped(tmp_path):
    module = Toy()
    module.poison_at = 9
    _, outcome, records = run(str(tmp_path / "run"), module=module, on_nonfinite="skip")
    assert outcome.progress.skipped_steps == 1
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    assert sum(record.get("kind") == "warning" for record in records) == 1


def test_a_step_that_does_not_fit_into_memory_is_the_users_to_mend(tmp_path):
    class Large(Toy):
        def forward(self, inputs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")

    with pytest.raises(
        UserError,
        match=r"a step of 8 images on each of 1 workers .*Tried to allocate 20.*"
        r"activation_checkpointing.*batch_size_global",
    ):
        run(str(tmp_path / "run"), module=Large())
    with pytest.raises(UserError, match="does not fit") as told:
        run(str(tmp_path / "other"), module=Large(), activation_checkpointing=True)
    assert "activation_checkpointing" not in str(told.value)  # it is on already


class Blinded(Toy):
    """Its embeddings, logs and loss are not finite at some steps."""

    def forward(self, inputs):
        output = super().forward(inputs)
        bad = math.nan if 9 <= int(self.seen) < 12 else 1.0
        embeddings = self.layers[0](inputs).detach() * bad
        return output._replace(
            loss=output.loss * bad,
            embeddings=(embeddings, embeddings),
            logs={"twice": output.loss.detach() * bad},
        )


@pytest.mark.parametrize("log_every_steps", [1, 3])
def test_skipped_steps_are_logged_ones_too(tmp_path, log_every_steps):
    url = str(tmp_path / "run")
    options = {"on_nonfinite": "skip", "log_every_steps": log_every_steps, "checkpoint_every_steps": 10}
    _, outcome, _ = run(url, module=Blinded(), **options)
    assert outcome.progress.skipped_steps == 3 and checkpoints.load_newest(url).progress.step == 30
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text and [json.loads(line)["step"] for line in text.splitlines()][-1] == 30


@pytest.mark.parametrize("scores", [[math.nan, 0.9, 0.7], [math.nan] * 3, [0.5, math.inf, 0.9]])
def test_a_score_that_is_not_finite_is_never_the_best(tmp_path, scores):
    kept = []
    _, outcome, records = run(
        str(tmp_path / "run"),
        evaluating=Evaluating(
            lambda step, last: {"accuracy": scores[step // 10 - 1]}, every_steps=10, best_metric="accuracy",
            keep_best=kept.append,
        ),
    )  # fmt: skip
    progress = outcome.progress
    assert kept and kept[-1] == progress.best_step  # there always is a model
    finite = [score for score in scores if math.isfinite(score)]
    assert progress.best_score == max(finite, default=None)
    if finite:
        assert scores[progress.best_step // 10 - 1] == max(finite)
    assert checkpoints.load_newest(str(tmp_path / "run")).progress.step == 30
    assert any("accuracy is" in record.get("text", "") for record in records)


def test_checkpoints_that_cannot_be_written_are_told_and_end_nothing(tmp_path):
    url, folder = str(tmp_path / "run"), tmp_path / "run" / "checkpoints"
    whole, *_ = run(str(tmp_path / "whole"))
    seen = {}

    def break_and_mend(record):
        for thread in threading.enumerate():
            if thread.name == "checkpoint" and record.get("step") in (8, 25):
                thread.join()
        if record.get("step") == 8:  # a file where the folder was: nothing can be written below it
            folder.rename(tmp_path / "away")
            folder.write_text("in the way")
        if record.get("step") == 25:
            folder.unlink()
            (tmp_path / "away").rename(folder)
            seen["newest"] = checkpoints.load_newest(url).progress.step

    trained, outcome, records = run(url, on_record=break_and_mend)
    warnings = [record["text"] for record in records if record.get("kind") == "warning"]
    assert len(warnings) == outcome.progress.failed_writes == 2  # of steps 14 and 21
    assert "the checkpoint of step 14 could not be written" in warnings[0]
    assert "the last complete one is of step 7" in warnings[1]
    assert seen["newest"] == 7
    assert_same_weights(whole, trained)
    assert checkpoints.load_newest(url).progress.step == 30


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*checkpoints"):
        run(str(tmp_path / "run"))


@pytest.mark.parametrize("damage", ["no meta", "short state", "changed state"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    url = str(tmp_path / "run")
    run(url, keep_checkpoints=3)
    newest = tmp_path / "run" / "checkpoints" / checkpoints.folder_name(30)
    state = newest / "state.pt"
    if damage == "no meta":
        (newest / "checkpoint.json").unlink()
    elif damage == "short state":
        state.write_bytes(state.read_bytes()[:-100])
    else:
        data = bytearray(state.read_bytes())
        data[len(data) // 2] ^= 1
        state.write_bytes(bytes(data))
    assert checkpoints.load_newest(url).progress.step == 28


def _damage(folder, how):
    """Damages a checkpoint that was whole."""
    state, meta = folder / "state.pt", folder / "checkpoint.json"
    if how == "no state":
        state.unlink()
    elif how == "empty state":
        state.write_bytes(b"")
    elif how == "half meta":
        meta.write_bytes(meta.read_bytes()[: meta.stat().st_size // 2])
    elif how == "junk bytes":
        meta.write_bytes(bytes(range(256)))
    else:
        meta.write_text(how)


DAMAGES = [
    "no state", "empty state", "half meta", "", "[1, 2]", "7", "null", '{"step": 28}', "junk bytes",
    '{"format_version": 1, "step": "28", "samples_seen": 1, "state_bytes": 3, "state_sha256": "x"}',
    '{"format_version": 1, "step": 28, "samples_seen": 224, "restart_log": 3, '
    '"state_bytes": 3, "state_sha256": "x"}',
    '{"format_version": 1, "step": 28, "samples_seen": 224, "colour": 3, '
    '"state_bytes": 3, "state_sha256": "x"}',
]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_what_was_wrong_with_a_newer_checkpoint_is_said_and_kept(tmp_path, how):
    url, folder = str(tmp_path / "run"), tmp_path / "run" / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        run(url, die_at=8 * 29)
    _damage(folder / checkpoints.folder_name(28), how)
    assert checkpoints.newest_progress(url).step in (21, 28)
    with pytest.raises(KeyboardInterrupt):
        run(url, die_at=8 * 26, checkpoint_every_steps=2)
    # the damaged one is not kept in the place of a whole one
    assert checkpoints.load_newest(url).progress.step == 26
    whole, *_ = run(str(tmp_path / "whole"))
    continued, _, _ = run(url)
    assert_same_weights(whole, continued)
    assert trace(url) == trace(str(tmp_path / "whole"))
    restarts = [json.loads(line) for line in (tmp_path / "run" / "restarts.jsonl").read_text().splitlines()]
    assert restarts[0]["from_step"] == 21 and list(restarts[0]["passed_over"]) == [
        checkpoints.folder_name(28)
    ]


def test_where_no_checkpoint_is_whole_nothing_starts_at_step_0_unsaid(tmp_path):
    url, folder = str(tmp_path / "run"), tmp_path / "run" / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        run(url, die_at=8 * 20)
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 2
    _damage(folder / names[0], "no state")
    _damage(folder / names[1], "half meta")
    with pytest.raises(
        UserError, match=r"none of the checkpoints in .* is complete .*remove .*checkpoints to start at"
    ) as told:
        run(url)
    assert all(name in str(told.value) for name in names)
    assert [line["step"] for line in trace(url)] == list(range(1, 21))  # nothing was touched


def test_a_first_checkpoint_that_was_cut_off_is_told(tmp_path):
    url, folder = str(tmp_path / "run"), tmp_path / "run" / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        run(url, die_at=8 * 9)
    (folder / checkpoints.folder_name(7) / "checkpoint.json").unlink()
    _, outcome, records = run(url)
    assert any(
        "starts at step 0: the first checkpoint was not complete" in str(r.get("text")) for r in records
    )
    assert outcome.progress.step == 30


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


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(str(tmp_path / "run"), keep_checkpoints=2)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        checkpoints.folder_name(28),
        checkpoints.folder_name(30),
    ]


def test_a_checkpoint_of_another_model_or_version_is_refused(tmp_path):
    url = str(tmp_path / "run")
    run(url)
    other = Toy()
    other.layers[0] = nn.Linear(4, 8)
    other.extra = nn.Linear(2, 2)
    with pytest.raises(
        UserError, match=r"missing \['extra.bias', 'extra.weight'\].*of another shape \['layers.0"
    ):
        run(url, module=other)
    meta = tmp_path / "run" / "checkpoints" / checkpoints.folder_name(30) / "checkpoint.json"
    meta.write_text(meta.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(UserError, match="format version 99, this program reads version 1"):
        run(url)


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


def test_bad_rows_are_counted_and_too_many_stop_the_run(tmp_path):
    _, outcome, _ = run(str(tmp_path / "run"))
    assert outcome.progress.bad_row_count == 1
    assert outcome.progress.bad_rows == {"file: row group 0, row 3": "truncated"}

    class Rotten(ToyBatches):
        def __next__(self):
            batch = super().__next__()
            return TrainingBatch(batch.inputs, {f"row {self.position + i}": "empty" for i in range(4)})

    with pytest.raises(
        RunStopped, match=r"12 of 24 rows could not be used, more than data.max_bad_fraction=0.05"
    ):
        module = Toy()
        with local_context() as context:
            training = TrainingSettings(batch_size_global=8)
            plan = Plan(str(tmp_path / "rotten"), training, 30, 10, lambda step: Rates(0.1, 0.1, 0.0))
            train(
                module,
                torch.optim.SGD(module.parameters()),
                plan,
                context=context,
                run=None,
                batches_from=Rotten,
            )


def test_bad_rows_that_lie_together_do_not_stop_a_run_as_long_as_the_share_holds(tmp_path):
    class Clustered(ToyBatches):
        def __next__(self):
            batch = super().__next__()
            bad = {f"f.parquet: row group 0, row {self.position + i}": "empty" for i in range(8)}
            return TrainingBatch(batch.inputs, bad if self.position % 4000 in range(9, 25) else {})

    def trained(max_bad_fraction, url):
        module, records = Toy(), []
        with local_context(records.append) as context:
            folder = RunFolder(str(url))
            try:
                plan = Plan(
                    str(url), TrainingSettings(batch_size_global=8), 30, 500,
                    lambda step: Rates(0.01, 0.1, 0.0),
                    max_bad_fraction=max_bad_fraction,
                )  # fmt: skip
                train(
                    module,
                    torch.optim.SGD(module.parameters()),
                    plan,
                    context=context,
                    run=folder,
                    batches_from=Clustered,
                )
            finally:
                folder.close()
        return [record["text"] for record in records if record.get("kind") == "warning"]

    (warning,) = trained(0.01, tmp_path / "run")  # 16 of the first 24, and of 4,000
    assert "16 of 24 rows could not be used, more than data.max_bad_fraction=0.01" in warning
    with pytest.raises(RunStopped, match="16 of 24 rows could not be used"):
        trained(0.002, tmp_path / "stopped")
    for name in ("run", "stopped"):
        assert len((tmp_path / name / "bad_rows.jsonl").read_text().splitlines()) == 16


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


class Disk:
    """Lets only so many bytes lie in the checkpoints of a run, as a disk of that size does."""

    def __init__(self, url, monkeypatch, *, room):
        self.folder, self.room, self.write = Path(url) / "checkpoints", room, storage.write_bytes
        monkeypatch.setattr(storage, "write_bytes", self)

    def __call__(self, url, data):
        if url.endswith("state.pt"):
            used = sum(file.stat().st_size for file in self.folder.rglob("state.pt"))
            with storage.explained("write", url):
                if used + len(data) > self.room:
                    raise OSError(errno.ENOSPC, "No space left on device")
        self.write(url, data)


def size_of_state(url):
    return next(Path(url).rglob("state.pt")).stat().st_size


def test_on_a_full_disk_the_oldest_checkpoint_makes_room(tmp_path, monkeypatch):
    url = str(tmp_path / "run")
    run(url, steps=14)  # two, of steps 7 and 14
    Disk(url, monkeypatch, room=int(2.5 * size_of_state(url)))
    _, outcome, _ = run(url, steps=30)
    assert outcome.status == "finished" and outcome.progress.failed_writes == 0
    assert checkpoints.load_newest(url).progress.step == 30


def test_where_only_one_checkpoint_fits_it_stays_and_a_finished_training_is_not_lost(tmp_path, monkeypatch):
    url = str(tmp_path / "run")
    run(url, steps=14)
    Disk(url, monkeypatch, room=int(1.5 * size_of_state(url)))
    _, outcome, records = run(url, steps=30)
    assert outcome.status == "finished" and outcome.progress.failed_writes == 3  # of steps 21, 28 and 30
    said = [record["text"] for record in records if record.get("kind") == "warning"]
    assert len(said) == 3 and all(
        "No space left" in one and "the last complete one is of step 14" in one for one in said
    )
    with pytest.raises(UserError, match="No space left on device"):  # an interrupted one has steps to lose
        run(url, steps=40, stop_at=33)
    assert storage.names_in(f"{url}/checkpoints") == [checkpoints.folder_name(14)]
    assert checkpoints.load_newest(url).progress.step == 14


def test_a_checkpoint_that_is_asked_for_is_written_and_training_goes_on(tmp_path):
    url = str(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(url, die_at=8 * 20, ask_at=10, checkpoint_every_steps=1000)
    assert checkpoints.load_newest(url).progress.step == 11  # at the next step
