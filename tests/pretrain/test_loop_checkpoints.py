"""Checkpoints of a toy problem that cannot be written, are damaged, or are of another model,
and which of them are kept.
"""

import errno
import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cluster import storage
from cluster.errors import UserError
from pretrain.training import checkpoints
from pretrain.training.checkpoints import Checkpoint, restore
from pretrain.training.optimizers import build_optimizer, parameter_groups
from tests.pretrain.toy import Toy, assert_same_weights, run, trace


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


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_a_checkpoint_fits_weights_of_another_layout_in_memory(name):
    def made(layout):
        torch.manual_seed(0)
        module = nn.Conv2d(3, 4, 3).to(memory_format=layout)
        return module, build_optimizer(name, parameter_groups(module, weight_decay=0.1), learning_rate=0.1)

    def step(module, optimizer, seed):
        optimizer.zero_grad()
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        module(images).square().mean().backward()
        optimizer.step()

    first, optimizer = made(torch.channels_last)  # as on a GPU
    step(first, optimizer, 1)
    state = {"module": first.state_dict(), "optimizer": optimizer.state_dict()}
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    second, other = made(torch.contiguous_format)
    checkpoint = Checkpoint(SimpleNamespace(step=1), torch.load(file, weights_only=True))
    restore(checkpoint, second, other)
    step(first, optimizer, 2)
    step(second, other, 2)
    torch.testing.assert_close(first.weight, second.weight)
