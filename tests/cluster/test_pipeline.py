"""Whole pipelines: on this machine, on a real Ray head, killed at random, and run again."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cluster.jobs.job_server import JobServer

STAGE = "python -m tests.cluster.stages"
FILE = f"""
retries: 2
parameters: {{steps: 4, code: 0, pause: 0.05}}
stages:
  first: {{run: "{STAGE} {{out}} {{steps}} --pause {{pause}}"}}
  left:
    after: [first]
    run: "{STAGE} {{out}} {{steps}} {{first.value}} --exit {{code}} --pause {{pause}}"
    baseline: right
  right: {{after: [first], run: "{STAGE} {{out}} {{steps}} x{{first.value}} --pause {{pause}}"}}
  last: {{after: [left], run: "{STAGE} {{out}} {{steps}} {{left.value}} --pause {{pause}}"}}
"""


class Commands:
    """Runs `python -m cluster pipeline` on a file, with or without a cluster."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.file, self.out = folder / "p.yaml", folder / "out"
        self.file.write_text(FILE)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
        self.environment = {**clean, **environment}

    def start(
        self, *settings: str, out: Path | None = None, file: Path | None = None
    ) -> subprocess.Popen[str]:
        words = ["pipeline", str(file or self.file), f"out={out or self.out}", *settings]
        return subprocess.Popen(
            [sys.executable, "-m", "cluster", *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *settings: str, **more: Path) -> tuple[int, str]:
        process = self.start(*settings, **more)
        text, _ = process.communicate(timeout=280)
        return process.returncode, text


@pytest.fixture
def here(tmp_path):
    return Commands(tmp_path, {})


@pytest.fixture
def on_head(tmp_path, head):
    return Commands(tmp_path, head.environment)


def scores(out):
    """What the table holds but for times, and how each stage ended."""
    rows = json.loads((out / "results.json").read_text())["stages"]
    return [(row["stage"], row["status"], row["metrics"], row["baselines"]) for row in rows]


def read_until(process, text):
    found = ""
    while text not in found:
        line = process.stdout.readline()
        assert line, found
        found += line
    return found


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in re.search(r"\) (\S)", Path(f"/proc/{pid}/stat").read_text())[1]


def stage_processes(out):
    """The processes of this pipeline's stages that live, by stage."""
    found = {}
    for journal in out.glob("*/processes"):
        pid = int(journal.read_text().split()[-1])
        if alive(pid):
            found[journal.parent.name] = pid
    return found


def test_a_failed_stage_stops_neither_its_sibling_nor_the_next_run(here):
    code, text = here.run("code=7")
    assert code == 1, text
    assert "left | the words before the end, 7" in text
    assert "[left] failed: exit code 7" in text
    assert [row[:2] for row in scores(here.out)] == [
        *(("first", "done"), ("left", "failed"), ("right", "done"), ("last", "left out"))
    ]
    assert "not done: left, last; the same command does what is missing" in text

    code, text = here.run()  # it is mended
    assert code == 0, text
    assert text.count("is done already") == 2
    assert "[left] starts again (attempt 2)" in text
    assert [row[1] for row in scores(here.out)] == ["done"] * 4
    values = {row[0]: row[2]["score"] for row in scores(here.out)}
    assert scores(here.out)[1][3] == {"right": {"score": values["right"], "steps": 4}}
    line = rf"\| left \| done \| [\d.]+ s \| score \| {values['left']:.3f} \| {values['right']:.3f} \|"
    assert re.search(line, (here.out / "results.md").read_text())
    assert re.search(rf"left +done +[\d.]+ s +score +{values['left']:.3f} +{values['right']:.3f}", text)

    before = [path.stat().st_mtime_ns for path in here.out.glob("*/result.json")]
    code, text = here.run()
    assert code == 0
    assert text.count("is done already") == 4
    assert [path.stat().st_mtime_ns for path in here.out.glob("*/result.json")] == before
    assert json.loads((here.out / "pipeline/left.json").read_text())["attempt"] == 2


def test_what_was_made_from_an_earlier_run_is_not_passed_off(here):
    assert here.run()[0] == 0
    (here.out / "first/result.json").unlink()
    (here.out / "first/place.json").unlink()
    (here.out / "first/processes").unlink()
    (here.out / "first").rmdir()
    code, text = here.run()
    assert code == 1
    assert (
        f"[left] failed: it was made from an earlier run of a stage it depends on; remove {here.out}/left"
        in text
    )


def test_a_killed_driver_takes_its_stage_along_and_the_next_goes_on(here):
    driver = here.start("steps=20")
    read_until(driver, "step 3/20")
    driver.kill()
    driver.wait()
    code, text = here.run("steps=20", "pause=0")  # at once: it waits until the former stage is gone
    assert code == 0, text
    reference = here.out.with_name("undisturbed")
    assert here.run("steps=20", "pause=0", out=reference)[0] == 0
    assert scores(here.out) == scores(reference)
    starts = (here.out / "first/processes").read_text().split()
    assert len(starts) == 2
    assert "stage: starts at step 0" not in text.split("[first] is done")[0]
    assert not any(alive(int(pid)) for pid in starts)


def test_a_killed_stage_is_started_again_and_ctrl_c_ends_all(here):
    driver = here.start("steps=40")
    read_until(driver, "step 3/40")
    os.kill(stage_processes(here.out)["first"], signal.SIGKILL)
    text = read_until(driver, "starts again (attempt 2)")
    assert "[first] ended early (exit code 137); it is started again in 2 s" in text
    read_until(driver, "step 9/40")
    driver.send_signal(signal.SIGINT)
    text, _ = driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert "interrupted; the same command continues" in text
    assert not stage_processes(here.out)


def test_stages_run_side_by_side_on_this_machine_as_its_cpus_allow(here):
    """What asks for no CPUs runs alone, also where there is room for others."""
    third = len(os.sched_getaffinity(0)) / 3
    longer = f"stages.right.run={STAGE} {{out}} 8 --pause 0.3"
    code, text = here.run("steps=8", longer, *(f"stages.{name}.cpus={third}" for name in ("left", "right")))
    assert code == 0, text
    left, right, last = (
        json.loads((here.out / name / "result.json").read_text()) for name in ("left", "right", "last")
    )
    assert left["began"] < right["ended"] and right["began"] < left["ended"] < right["ended"] < last["began"]
    assert left["threads"] == str(max(1, int(third))) and f"\n$ {STAGE} {here.out}/first 8" in text


@pytest.mark.slow
@pytest.mark.ray
def test_stages_are_ray_jobs_that_a_later_driver_finds_again(on_head, head, monkeypatch):
    driver = on_head.start("pause=0.3", "steps=8")
    read_until(driver, "right | stage: step 2/8")
    driver.kill()
    driver.wait()
    assert len(stage_processes(on_head.out)) >= 1  # its jobs go on
    code, text = on_head.run("pause=0.3", "steps=8")
    assert code == 0, text
    assert "[first] is done already" in text
    assert re.search(r"\[(left|right)\] (runs already as job|is done after)", text)
    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)
    prefix = re.search(r"as job (p-\w+)-", text)[1]
    jobs = {job.id: job for job in JobServer().jobs() if job.id.startswith(prefix)}
    assert sorted(jobs) == sorted(
        f"{prefix}-{name}-1" for name in ("first", "left", "right", "last")
    )  # none twice
    left, right = jobs[f"{prefix}-left-1"], jobs[f"{prefix}-right-1"]
    assert left.started < right.ended
    assert right.started < left.ended  # side by side
    reference = on_head.out.with_name("undisturbed")
    assert Commands(on_head.out.parent, {}).run("pause=0", "steps=8", out=reference)[0] == 0
    assert scores(on_head.out) == scores(reference)


@pytest.mark.slow
@pytest.mark.ray
def test_a_pipeline_is_a_job_itself_and_stopping_it_stops_its_stages(on_head, head, monkeypatch):
    command = [sys.executable, "-m", "cluster", "submit", "--name", "night", "--"]
    words = ["python", "-m", "cluster", "pipeline", str(on_head.file), f"out={on_head.out}"]
    done = subprocess.run(
        [*command, *words], env=on_head.environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "last | stage: step 4/4" in done.stdout
    assert [row[1] for row in scores(on_head.out)] == ["done"] * 4
    assert "working tree" not in done.stdout.split("submitted")[1]  # its stages got what it got

    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)
    follower = subprocess.Popen(
        [*command, *words[:-1], f"out={on_head.out}2", "pause=1", "steps=100"],
        env=on_head.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    text = read_until(follower, "first | stage: step 2/100")
    JobServer().stop(re.search(r"submitted (\S+) to", text)[1])
    text = follower.communicate(timeout=30)[0]
    assert follower.returncode == 130
    stage = re.search(r"\[first\] starts as job (\S+)", text + read_id(on_head, "2"))[1]
    deadline = time.monotonic() + 20
    while not JobServer().state(stage).over:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert JobServer().state(stage).status == "STOPPED"


def read_id(commands, suffix):
    record = json.loads((Path(f"{commands.out}{suffix}") / "pipeline/first.json").read_text())
    return f"[first] starts as job {record['job']}"


def kill_at_random(commands, settings, *, num_drivers, num_jobs, longest_seconds, processes, **more):
    """Runs a pipeline while its driver and its jobs are killed, so many times each;
    returns what the last driver printed.
    """
    generator = random.Random(7)
    drivers_killed = jobs_killed = 0
    driver = commands.start(*settings, **more)
    while drivers_killed < num_drivers or jobs_killed < num_jobs:
        time.sleep(generator.uniform(0.3, longest_seconds))
        assert driver.poll() is None, driver.communicate()[0]
        if drivers_killed >= num_drivers or (jobs_killed < num_jobs and generator.random() < 0.5):
            for pid in processes()[:1]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    jobs_killed += 1
        else:
            driver.kill()
            driver.communicate()
            drivers_killed += 1
            driver = commands.start(*settings, **more)
    text, _ = driver.communicate(timeout=280)
    assert driver.returncode == 0, text
    return text


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("where", ["here", "on_head"])
def test_killed_at_random_the_table_is_that_of_an_undisturbed_run(where, request):
    commands = request.getfixturevalue(where)
    reference = commands.out.with_name("undisturbed")
    settings = ["steps=150", "retries=20"]  # more than can be done before the last kill
    assert Commands(commands.out.parent, {}).run(*settings, "pause=0", out=reference)[0] == 0
    kill_at_random(
        commands,
        settings,
        num_drivers=8,
        num_jobs=6,
        longest_seconds=3.0,
        processes=lambda: list(stage_processes(commands.out).values()),
    )
    assert scores(commands.out) == scores(reference)
    assert sum(len(path.read_text().split()) for path in commands.out.glob("*/processes")) > 4


@pytest.mark.slow
def test_the_demo_killed_at_random_comes_to_the_same_table(here):
    """Real stages: a data set, an encoder, a classifier beside one from random weights."""
    here.file.write_text(Path("configs/pipelines/demo.yaml").read_text())
    absent = ("simclr", "detect", "summarize", "report")  # more of the same, for minutes
    few = ["training.steps=20", "training.batch_size_global=8"]
    pretrain = [
        "method.arguments.features={features.out}",
        *few,
        "knn.train_url={train}",
        "knn.test_url={validation}",
    ]
    settings = [
        "images=60", "unlabelled=60", "retries=20", f"pretrain_settings={json.dumps(pretrain)}",
        f"classify_settings={json.dumps([*few, 'compare=[random]'])}",
        *(f"stages.{name}=null" for name in absent),
    ]  # fmt: skip
    reference = here.out.with_name("undisturbed")
    code, text = here.run(*settings, out=reference)
    assert code == 0, text

    def processes():
        found = []
        for child in psutil.process_iter(["pid", "cmdline"]):
            words = child.info["cmdline"] or []
            if (
                words[1:2] == ["-m"]
                and words[2:3] != ["cluster"]
                and any(str(here.out) in word for word in words)
            ):
                found.append(child.info["pid"])
        return found

    kill_at_random(here, settings, num_drivers=6, num_jobs=6, longest_seconds=15.0, processes=processes)
    assert scores(here.out) == scores(reference)
    assert [row[1] for row in scores(here.out)] == ["done"] * 4
    assert "random weights" in (here.out / "results.md").read_text()
