"""The table of results: metrics beside baselines, as Markdown and JSON."""

import json

from cluster.jobs.pipeline.plan import Status
from cluster.jobs.pipeline.settings import load_pipeline
from cluster.jobs.pipeline.table import for_terminal, write_results

FILE = """
stages:
  data: {run: "true"}
  task: {run: "true", metrics: [accuracy, missing], baseline: linear}
  linear: {run: "true"}
  broken: {run: "false"}
  after: {run: "true", after: [broken]}
"""


def test_metrics_stand_beside_what_they_are_compared_with(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(FILE)
    out = tmp_path / "out"
    plan = load_pipeline(str(path), [f"out={out}"])

    def write(stage, name, value):
        (out / stage).mkdir(parents=True, exist_ok=True)
        (out / stage / name).write_text(json.dumps(value))

    write("task", "result.json", {"metrics": {"accuracy": 0.75, "loss": 1.5, "note": "x", "flag": True}})
    rows = [
        {"name": "pretrained", "metrics": {"accuracy": 0.75}},
        {"name": "random | weights", "metrics": {"accuracy": 0.5}},
    ]
    write("task", "comparison.json", {"rows": rows})
    write(
        "linear",
        "result.json",
        {"best_metric": "accuracy", "metrics": {"accuracy": 0.5, "loss": 12.345, "epochs": 3}},
    )
    (out / "broken").mkdir()
    (out / "broken/result.json").write_text("{not json")
    status = dict.fromkeys(("data", "task", "linear"), Status.DONE) | {
        "broken": Status.FAILED,
        "after": Status.LEFT_OUT,
    }
    reason = {"broken": "exit code 7\n<script>", "after": "needs broken"}
    shown = write_results(
        plan, status, reason, dict.fromkeys(status, 0.0) | {"task": 90.0, "linear": 7260.0}
    )
    title, empty, *table = (out / "results.md").read_text().splitlines()
    assert (title, empty) == ("# p", "")
    assert table == [
        "| stage | status | time | metric | value | linear | random \\| weights | difference |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
        "| data | done | 0 s |  |  |  |  |  |",
        "| task | done: no missing among its metrics (accuracy, loss) | 1:30 min | accuracy | 0.750 | "
        "0.500 | 0.500 | +0.250 |",
        "| linear | done | 2:01 h | accuracy | 0.500 |  |  |  |",
        "| broken | failed: exit code 7 &lt;script> | 0 s |  |  |  |  |  |",
        "| after | left out: needs broken | 0 s |  |  |  |  |  |",
    ]
    assert "broken: failed: exit code 7\n<script>" in shown and "random |" in shown
    stages = {row["stage"]: row for row in json.loads((out / "results.json").read_text())["stages"]}
    assert stages["task"]["baselines"] == {
        "linear": {"accuracy": 0.5},
        "random | weights": {"accuracy": 0.5},
    }
    assert stages["after"]["status"] == "left out"


def test_on_a_terminal_of_80_columns_nothing_is_cut():
    names = ("knn_accuracy", "expected_calibration_error", "top5_accuracy")
    baselines = {"linear": dict.fromkeys(names, 0.5), "random weights": dict.fromkeys(names, 0.1234)}
    rows = [
        {
            "stage": stage,
            "status": "done",
            "seconds": 7260.0,
            "metrics": dict.fromkeys(names, 0.75),
            "baselines": baselines,
            "reason": "exit code 2 " * 3 if stage == "report" else None,
        }
        for stage in ("classification", "summarization", "report")
    ]
    *lines, reason = for_terminal(rows, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    words = " ".join(lines).split()
    for word in (
        "stage",
        "difference",
        "random",
        "weights",
        "linear",
        "classification",
        "summarization",
        "0.123",
        "+0.250",
    ):
        assert word in words, word
    assert reason.startswith("report: done: exit code 2") and "…" not in " ".join(lines)
