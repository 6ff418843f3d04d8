"""The table of results: metrics beside baselines, as Markdown and JSON."""

import json

from cluster.pipeline.plan import Status
from cluster.pipeline.settings import load_pipeline
from cluster.pipeline.table import write_results

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
        "linear", "result.json", {"best_metric": "accuracy", "metrics": {"accuracy": 0.5, "loss": 12.345, "epochs": 3}}
    )
    (out / "broken").mkdir()
    (out / "broken/result.json").write_text("{not json")
    status = dict.fromkeys(("data", "task", "linear"), Status.DONE) | {
        "broken": Status.FAILED,
        "after": Status.LEFT_OUT,
    }
    reason = {"broken": "exit code 7\n<script>", "after": "needs broken"}
    table = write_results(plan, status, reason, dict.fromkeys(status, 0.0) | {"task": 90.0, "linear": 7260.0})
    assert table.splitlines() == [
        "| stage | status | time | metric | value | linear | random \\| weights | difference |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
        "| data | done | 0 s |  |  |  |  |  |",
        "| task | done: no missing among its metrics (accuracy, loss) | 2 min | accuracy | 0.750 | 0.500 | 0.500 | +0.250 |",
        "| linear | done | 2 h 1 min | accuracy | 0.500 |  |  |  |",
        "| broken | failed: exit code 7 &lt;script> | 0 s |  |  |  |  |  |",
        "| after | left out: needs broken | 0 s |  |  |  |  |  |",
    ]
    assert (out / "results.md").read_text() == f"# p\n\n{table}\n"
    stages = {row["stage"]: row for row in json.loads((out / "results.json").read_text())["stages"]}
    assert stages["task"]["baselines"] == {"linear": {"accuracy": 0.5}, "random | weights": {"accuracy": 0.5}}
    assert stages["after"]["status"] == "left out"
