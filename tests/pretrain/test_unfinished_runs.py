"""What may change under an unfinished run, what may not, and what a start that fails leaves behind."""

import json
import shutil

import pytest

from cluster.errors import run_command
from pretrain.__main__ import main
from pretrain.data.reading.manifest import load_manifest
from pretrain.training import checkpoints
from pretrain.training.data_identity import differences, identity_of
from tests.pretrain.runs import arguments
from tests.pretrain.shards import photo, write_shards


@pytest.fixture(scope="module")
def photos():
    return [photo(number, side=32) for number in range(48)]


@pytest.fixture
def shards(photos, tmp_path):
    return write_shards(tmp_path / "shards", photos, rows_per_file=24)


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs the command in this process; gives its exit code and what it said."""

    def run(shards, out, *, steps=6, stop_at=None, **more):
        if stop_at is not None:
            taken = checkpoints.CheckpointWriter.write

            def write(writer, module, optimizer, progress, **options):
                taken(writer, module, optimizer, progress, **options)
                writer.wait()
                raise KeyboardInterrupt

            monkeypatch.setattr(checkpoints.CheckpointWriter, "write", write)
            more["training.checkpoint_every_steps"] = stop_at
        code = run_command(
            lambda: main(arguments(shards, out, steps=steps, workers=0, **{"rankme_images": 0, **more}))
        )
        monkeypatch.undo()
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_other_data_is_refused_by_name_unless_the_user_says_so(command, shards, photos, tmp_path):
    out = tmp_path / "run"
    assert command(shards, out, stop_at=2)[0] == 130
    more = write_shards(tmp_path / "more", photos[:10])
    shutil.copy(f"{more}/shard-00000.parquet", f"{shards}/shard-00009.parquet")
    for flags in ({}, {"data.max_bad_fraction": 0.5}):
        code, said = command(shards, out, **flags)
        assert (
            code == 2
            and "48 -> 58 rows; shard-00009.parquet is new" in said
            and "data.on_change=continue" in said
        )
    code, said = command(shards, out, **{"data.on_change": "continue"})
    assert code == 0 and "continues with other data: data.url: 48 -> 58 rows" in said
    result = json.loads((out / "result.json").read_text())
    assert result["data"]["train"]["rows"] == 58
    # a finished run says on which data it is finished, and that they changed since
    (tmp_path / "shards" / "shard-00009.parquet").unlink()
    code, said = command(shards, out)
    assert code == 0 and "finished already" in said and "on 58 rows" in said and "58 -> 48 rows" in said


def test_a_run_that_wrote_its_settings_by_former_names_continues(command, shards, tmp_path, capsys):
    out = tmp_path / "run"
    given = {"optimizer.final_fraction": 0.25, "data.max_bad_fraction": 0.5}
    assert command(shards, out, stop_at=2, **given)[0] == 130
    written = (out / "settings.yaml").read_text()
    former = written.replace("final_fraction", "final_share").replace("bad_fraction", "bad_share")
    former = former.replace("crop_fraction", "crop_share")
    assert former.count("_share: ") == 3
    (out / "settings.yaml").write_text(former)
    code, said = command(shards, out, **{**given, "optimizer.final_fraction": 0.5})
    assert code == 2 and "optimizer.final_fraction: 0.25 -> 0.5" in said
    # the command that the report gives continues it: the file of the run itself
    code = run_command(lambda: main([str(out / "settings.yaml"), f"out={out}"]))
    said = capsys.readouterr().out
    assert (
        code == 0 and "continues at step 2 of 6" in said and "note" not in said.replace("settings.yaml", "")
    )
    assert (out / "settings.yaml").read_text().count("_share: ") == 0


def test_the_same_data_at_another_location_goes_on_with_a_note(command, shards, tmp_path):
    out = tmp_path / "run"
    assert command(shards, out, stop_at=2)[0] == 130
    (tmp_path / "shards").rename(tmp_path / "moved")
    code, said = command(tmp_path / "moved", out)
    assert code == 0, said
    assert "the same data at another location (data.url: " in said and "continues at step 2 of 6" in said


def test_other_data_of_equal_rows_at_another_location_is_refused(command, shards, photos, tmp_path):
    out = tmp_path / "run"
    assert command(shards, out, stop_at=2)[0] == 130
    other = write_shards(tmp_path / "other", photos[::-1], rows_per_file=24)
    code, said = command(other, out)
    assert code == 2 and "holds a run with other settings (data.url" in said


def test_content_decides_not_names_or_times(photos, tmp_path):
    first = write_shards(tmp_path / "a", photos, rows_per_file=24)
    second = write_shards(tmp_path / "b", photos, rows_per_file=24)
    (tmp_path / "b" / "shard-00000.parquet").rename(tmp_path / "b" / "part-0.parquet")
    one, two = (identity_of({"train": load_manifest(url)}) for url in (first, second))
    assert one["train"]["fingerprint"] == two["train"]["fingerprint"] and not differences(one, two)
    changed = bytearray((tmp_path / "b" / "part-0.parquet").read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "b" / "part-0.parquet").write_bytes(changed)
    (change,) = differences(one, identity_of({"train": load_manifest(second)}))
    assert (
        "48 -> 48 rows; the first file that differs is part-0.parquet instead of shard-00000.parquet"
        in change
    )


def test_rules_that_ended_a_run_and_what_is_watched_may_change(command, photos, tmp_path):
    images = [b"nothing" if number % 3 == 0 else data for number, data in enumerate(photos)]
    shards, out = write_shards(tmp_path / "bad", images), tmp_path / "run"
    code, said = command(shards, out)
    assert code == 3 and "more than data.max_bad_fraction=0.05" in said
    assert len((out / "bad_rows.jsonl").read_text().splitlines()) >= 11
    free = {
        "data.max_bad_fraction": 1, "training.log_every_steps": 2, "training.on_nonfinite": "skip",
        "data.keep": "host", "method.on_collapse": "stop", "rankme_images": 8,
    }  # fmt: skip
    code, said = command(shards, out, **free)
    assert code == 0, said
    assert "continues with data.max_bad_fraction: 0.05 -> 1.0" in said
    assert "continues with method.on_collapse: 'warn' -> 'stop'" in said
    code, said = command(shards, out, **free, seed=3)
    assert code == 2 and "holds a run with other settings (seed: 0 -> 3)" in said


@pytest.mark.parametrize("was_there", [False, True])
def test_a_start_that_fails_before_its_first_step_leaves_out_as_it_was(
    command, shards, tmp_path, monkeypatch, was_there
):
    out = tmp_path / "deep" / "run"
    if was_there:
        out.mkdir(parents=True)

    def fails(*args, **options):
        raise ZeroDivisionError("no first step")

    monkeypatch.setattr("pretrain.training.loop.equalise", fails)
    with pytest.raises(ZeroDivisionError):
        main(arguments(shards, out, steps=2, workers=0))
    monkeypatch.undo()
    assert out.exists() == was_there and not list(tmp_path.rglob("settings.yaml"))
    assert command(shards, out, steps=2, seed=5)[0] == 0  # other settings find it free


def test_settings_of_a_start_that_was_killed_before_its_first_step_bind_nobody(command, shards, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "settings.yaml").write_text("seed: 9\ntraining: {steps: 99}\n")
    (out / "running.json").write_text('{"host": "elsewhere", "pid": 1, "started_at": 1}')
    assert command(shards, out, steps=2)[0] == 0


def test_an_out_that_is_a_file_is_said_to_be_one(command, shards, tmp_path):
    (tmp_path / "f.json").write_text("{}")
    code, said = command(shards, tmp_path / "f.json")
    assert code == 2 and "f.json is a file; out must be a folder" in said
