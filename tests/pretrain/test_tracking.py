"""MLflow's and W&B's curves: the numbers of metrics.jsonl by the same names, each step once,
however often a run is cut off.
"""

import json
import os
import subprocess
import sys

import pytest

from cluster.errors import UserError, run_command
from pretrain.__main__ import main
from pretrain.training.run_folder import RunFolder
from pretrain.training.tracking import check_tracking
from tests.pretrain.shards import photo, write_shards

SECRET = "hunter2-is-a-secret"
RECORD = (
    "{'step': step, 'samples_seen': step * 8, 'loss': 1 / step, 'epoch': step / 3, 'spread': float('nan')}"
)
CUT_OFF = f"""
import os, sys
from pretrain.training.run_folder import RunFolder
run = RunFolder(sys.argv[1], tracking=["mlflow", "wandb"], config={{"seed": 3, "data": {{"url": "x"}}}})
run.start_at(0)
for step in (10, 20, 30, 40, 50):
    run.log({RECORD})
    assert not run.troubles, run.troubles
os._exit(9)
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """As a user without servers has it."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)


def mlflow_histories(out):
    """The points (step, value) of each metric of the one run in a run folder's MLflow store,
    and that run.
    """
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("fovea").experiment_id])
    points = {
        key: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    return run, points


def leveldb_records(log):
    """The records of a LevelDB log behind W&B's seven bytes:
    blocks of 32 KiB of [crc, length, part of a record].
    """
    assert log.startswith(b":W&B")
    place, record = 7, b""
    while place + 7 <= len(log):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = int.from_bytes(log[place + 4 : place + 6], "little"), log[place + 6]
        record += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole one, or the last part of one
            yield record
            record = b""


def wandb_histories(out):
    """The same of the W&B files in a run folder, in the order in which `wandb sync` would send them;
    and the runs' ids.
    """
    from wandb.proto import wandb_internal_pb2

    points, ids = {}, set()
    for path in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for data in leveldb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                for key in (key for key in items if not key.startswith("_")):
                    points.setdefault(key, []).append((items["_step"], items[key]))
    return ids, points


def lines_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def wanted_points(out):
    points = {}
    for line in lines_of(out):
        for key, value in line.items():
            if isinstance(value, int | float) and key != "step":
                points.setdefault(key, []).append((line["step"], pytest.approx(value)))
    return points


@pytest.mark.slow
def test_a_run_that_was_killed_continues_its_curves_without_doubles(tmp_path):
    out = tmp_path / "run"
    assert subprocess.run([sys.executable, "-c", CUT_OFF, str(out)]).returncode == 9
    first = json.loads((out / "tracking.json").read_text())
    for start, steps in (
        (30, (40,)),
        (30, (40, 50, 60)),
    ):  # it is cut off before it is where it was, and goes on again
        run = RunFolder(str(out), tracking=["mlflow", "wandb"], config={"seed": 3, "data": {"url": "x"}})
        run.start_at(start)
        for step in steps:
            run.log(eval(RECORD, {"step": step, "float": float}))
        run.close(finished=steps[-1] == 60)
        assert not run.troubles
    assert json.loads((out / "tracking.json").read_text()) == first
    run, points = mlflow_histories(out)
    assert points == wanted_points(out) and [step for step, _ in points["loss"]] == [10, 20, 30, 40, 50, 60]
    assert run.info.status == "FINISHED" and run.data.params == {"seed": "3", "data.url": "x"}
    ids, points = wandb_histories(out)
    assert points == wanted_points(out) and ids == {first["wandb"]}


def test_a_tracker_named_later_gets_the_curve_from_its_beginning_and_each_step_once(tmp_path):
    for start, names in ((0, []), (2, ["mlflow"]), (3, ["mlflow"])):
        run = RunFolder(str(tmp_path), tracking=names)
        run.start_at(start)
        for step in (start + 1, start + 2):
            run.log({"step": step, "samples_seen": step, "loss": 1 / step})
        run.close(finished=False)
        assert not run.troubles
    run, points = mlflow_histories(tmp_path)
    assert [step for step, _ in points["loss"]] == [1, 2, 3, 4, 5] and points == wanted_points(tmp_path)
    assert run.info.status == "KILLED"


def test_a_tracker_that_fails_is_left_out_and_said_so(tmp_path):
    run = RunFolder(str(tmp_path), tracking=["mlflow"])
    run.start_at(0)
    run.log({"step": 1, "samples_seen": 1, "loss": 1.0})
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    run.log({"step": 2, "samples_seen": 2, "loss": 1.0})
    run.log({"step": 3, "samples_seen": 3, "loss": 1.0})
    assert (
        len(run.troubles) == 1 and "nothing more is sent to mlflow until the next start" in run.troubles[0]
    )
    run.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("names", "out", "words"),
    [
        (["mlfow"], "/somewhere", "unknown tracking 'mlfow'; did you mean 'mlflow'"),
        (["mlflow"], "s3://bucket/run", "set MLFLOW_TRACKING_URI"),
    ],
)
def test_what_cannot_be_tracked_is_said_before_anything_starts(names, out, words):
    with pytest.raises(UserError, match=words):
        check_tracking(names, out)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fovea\[wandb\]'"):
        check_tracking(["wandb"], "/somewhere")


@pytest.mark.slow
def test_the_command_tracks_by_one_setting_and_writes_no_secret(tmp_path):
    write_shards(tmp_path / "shards", [photo(number) for number in range(16)])
    arguments = [
        "configs/pretrain/small/simclr.yaml", f"data.url={tmp_path}/shards", f"out={tmp_path}/run",
        "views.size=32",
        f"data.storage_options={{secret: {SECRET}}}", "training.batch_size_global=8", "training.steps=2",
        "training.log_every_steps=1", "cluster.workers=0", "rankme_images=0", "tracking=[mlflow,wandb]",
    ]  # fmt: skip
    assert run_command(lambda: main(arguments)) == 0
    out = tmp_path / "run"
    run, points = mlflow_histories(out)
    assert points == wanted_points(out) and {"loss", "learning_rate", "spread"} <= points.keys()
    assert wandb_histories(out)[1] == wanted_points(out)
    assert (
        run.data.params["method.name"] == "simclr"
        and run.data.params["data.storage_options.secret"] == "***"
    )
    files = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
