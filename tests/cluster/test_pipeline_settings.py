"""Pipeline files: what is right is filled in, what is wrong is one clear line."""

from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.jobs.pipeline.settings import filled, load_pipeline
from cluster.settings import load_settings

GOOD = """
out: runs/x
parameters: {steps: 10, lr: 1.0e-3, extra: [], data: null}
stages:
  last:
    after: [second]
    run: [python, -m, b, "{first.value}", "{second.out}/model", "{out}"]
  first:
    run: >-
      python -m a steps={steps} "views={crop_scale: [0.2, 1.0]}" {extra} out={out}
  second:
    after: [first]
    run: python -m b {first.value} {first.metrics.score} out={out}
    out: "{out}/elsewhere"
    cpus: 2
"""


def write(tmp_path, text):
    path = tmp_path / "night.yaml"
    path.write_text(text)
    return str(path)


def test_a_pipeline_is_ordered_and_filled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs/x"
    plan = load_pipeline(write(tmp_path, GOOD), ["steps=20", "extra=[a=1,b c]", "stages.first.gpus=1"])
    assert plan.name == "night"
    assert [stage.name for stage in plan.stages] == ["first", "second", "last"]
    first, second, last = plan.stages
    expected = (
        "python",
        "-m",
        "a",
        "steps=20",
        "views={crop_scale: [0.2, 1.0]}",
        "a=1",
        "b c",
        f"out={out}/first",
    )
    assert first.words == expected
    assert first.settings.gpus == 1.0
    assert second.out == f"{out}/elsewhere"
    assert second.words[3:] == ("{first.value}", "{first.metrics.score}", f"out={out}/elsewhere")
    assert last.words[-3:] == ("{first.value}", "{second.out}/model", f"{out}/last")
    assert second.settings.cpus == 2.0
    assert (
        plan.key
        == load_pipeline(write(tmp_path, GOOD), []).key
        != load_pipeline(write(tmp_path, GOOD), ["out=y"]).key
    )


def test_a_stage_that_is_null_is_left_out_and_a_parameter_may_name_what_another_made(tmp_path):
    text = GOOD.replace("data: null", "data: [--from, '{first.value}', '{out}']")
    text = text.replace("run: [python, -m, b, ", "run: [python, -m, b, '{data}', ")
    path = write(tmp_path, text)
    last = load_pipeline(path, []).stages[-1]
    assert last.words[3:7] == ("--from", "{first.value}", last.out, "{first.value}")
    plan = load_pipeline(path, ["stages.second=null", 'stages.last.run="python -m b {data}"', "data=[x y]"])
    assert [(stage.name, stage.after) for stage in plan.stages] == [("last", ()), ("first", ())]
    assert plan.stages[0].words == ("python", "-m", "b", "x y")
    with pytest.raises(UserError, match=r"stage last: {first.value} is known when first is done"):
        load_pipeline(path, ["stages.second=null"])
    with pytest.raises(UserError, match="the parameter data leads back to itself"):
        load_pipeline(path, ["data=['{lr}']", "lr='{data}'"])


def test_values_are_filled_as_yaml_reads_them():
    values = {"a": True, "b": None, "c": [1, "x"], "d": 0.5, "e": "text {a}"}
    assert filled(["x={a}", "{b}", "{c}", "y={c}", "{d}", "{e}", "{a: 1}", "{}"], values) == [
        *("x=true", "null", "1", "x", 'y=[1, "x"]', "0.5", "text {a}", "{a: 1}", "{}")
    ]


@pytest.mark.parametrize(
    ("old", "new", "overrides", "message"),
    [
        ("out: runs/x", "uot: runs/x", [], r"unknown setting 'uot'; did you mean 'out'\?"),
        ("cpus: 2", "cpu: 2", [], r"stage second: unknown setting 'cpu'; did you mean 'cpus'\?"),
        ("cpus: 2", "cpus: many", [], "stage second: cpus='many' has the wrong type"),
        ("cpus: 2", "cpus: -1", [], "stage second: cpus=-1.0 is not possible: it must be at least 0"),
        (
            "after: [second]",
            "after: [secnod]",
            [],
            r"stage last: after names an unknown stage: 'secnod'; did you mean 'second'\?",
        ),
        ("after: [first]", "after: [last]", [], "wait for each other: .*second"),
        (
            "after: [second]",
            "after: []",
            [],
            "stage last: {first.value} is known when first is done; add first to its after",
        ),
        (
            "{second.out}",
            "{secnd.out}",
            [],
            r"stage last: {secnd.out} names no stage; did you mean 'second'\?",
        ),
        ("{steps}", "{stepz}", [], r"stage first: unknown placeholder {stepz}; did you mean 'steps'\?"),
        ("{extra}", "{data}", [], "stage first: the parameter data has no value; give it as data=..."),
        (
            "",
            "",
            ["stpes=3"],
            r"stpes=3: unknown setting 'stpes'; did you mean 'steps'\? \(parameters of .*: steps, lr",
        ),
        ("", "", ["parameters.stpes=3"], "unknown setting 'parameters.stpes'"),
        ("", "", ["stages.first.gpu=1"], "stage first: unknown setting 'gpu'"),
        ("", "", ["steps"], "'steps' is not an override"),
        ("python -m a", "python -m 'a", [], "stage first: run is not a command line"),
        ('out: "{out}/elsewhere"', 'out: "{out}/first"', [], "first and second have the same out"),
        (
            "cpus: 2",
            "baseline: frist",
            [],
            r"baseline names an unknown stage: 'frist'; did you mean 'first'\?",
        ),
        ("  first:", "  pipeline:", [], "'pipeline' is not possible as a stage's name"),
        (
            "{extra}",
            "data.storage_options.secret=hunter22",
            [],
            "data.storage_options.secret holds a secret",
        ),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, old, new, overrides, message):
    assert old in GOOD
    with pytest.raises(UserError, match=message) as error:
        load_pipeline(write(tmp_path, GOOD.replace(old, new, 1)), overrides)
    assert "\n" not in str(error.value)
    assert "hunter22" not in str(error.value)


@pytest.mark.parametrize("path", sorted(Path("configs/pipelines").glob("*.yaml")), ids=str)
def test_the_pipelines_that_ship_are_right(path):
    needed = {
        "cluster": ["out=s3://bucket/night", "train=s3://bucket/train", "validation=s3://bucket/validation"]
    }
    plan = load_pipeline(str(path), needed.get(path.stem, []))
    assert "pretrain" in {stage.name for stage in plan.stages}
    assert f"python -m cluster pipeline {path}" in path.read_text().split("\n\n")[0]
    for stage in plan.stages:  # what is written there can be read by the commands
        for word in stage.words:
            if word.startswith("configs/"):
                assert Path(word).exists()


@pytest.mark.parametrize("path", sorted(Path("configs/pipelines").glob("*.yaml")), ids=str)
def test_the_commands_of_the_pipelines_that_ship_have_right_settings(path):
    """Each `pretrain` and `finetune` of a pipeline reads its settings without a complaint."""
    from finetune.settings import FinetuneSettings
    from pretrain.papers import defaults_of
    from pretrain.settings import PretrainSettings

    overrides = ["out=/x", "train=/t", "validation=/v"] if path.stem == "cluster" else ["out=/x"]
    for stage in load_pipeline(str(path), overrides).stages:
        words = filled(stage.words, {f"{other}.{key}": f"/{other}" for other in STAGES for key in KEYS})
        if words[2] == "pretrain" and words[3] != "embed":
            assert load_settings(PretrainSettings, words[3], words[4:], beneath=defaults_of).out == stage.out
        elif words[2] == "finetune" and words[3] not in ("evaluate", "report"):
            assert load_settings(FinetuneSettings, words[3], words[4:]).encoder == "/pretrain"


STAGES = (
    "data",
    "features",
    "pretrain",
    "simclr",
    "classify",
    "detect",
    "summarize",
    "classification",
    "detection",
    "summarization",
)
KEYS = ("out", "encoder", "model")
