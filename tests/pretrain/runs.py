"""Pretraining runs for tests: a small command, started in a process of its own,
and what two runs must have in common.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import safetensors.torch
import torch

from pretrain.training import checkpoints

CONFIG = "configs/pretrain/small/simclr.yaml"
BATCH = 16


def arguments(shards, out, *, steps, workers, **more):
    settings = {
        "data.url": shards,
        "out": out,
        "views.size": 32,
        "encoder.arguments.stem_stride": 2,
        "method.arguments.hidden_dim": 64,
        "training.batch_size_global": BATCH,
        "training.steps": steps,
        "training.warmup_epochs": 1,
        "training.log_every_steps": 1,
        "training.checkpoint_every_steps": 4,
        "cluster.workers": workers,
        "cluster.cpus_per_worker": 1,
        "report_images": 0,
        **more,
    }
    return [CONFIG, *(f"{key.replace('__', '.')}={value}" for key, value in settings.items())]


def trace(out):
    lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"], line["bad_rows"]) for line in map(json.loads, lines)]


def weights(out):
    return safetensors.torch.load_file(Path(out) / "encoder" / "model.safetensors")


def assert_equal_runs(first, second):
    assert trace(first) == trace(second)
    mine, theirs = weights(first), weights(second)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    states = [checkpoints.load_newest(str(out)).state["module"] for out in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def start(*options, module="pretrain", **environment):
    """Starts the command with a Ray of its own; its output comes by a pipe."""
    environment = {
        **os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        **environment
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-m", module, *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(process, out, step, timeout_seconds=240):
    deadline = time.monotonic() + timeout_seconds
    metrics = Path(out) / "metrics.jsonl"
    while time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= step:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")


def train_workers_of(process):
    """Process ids of the Ray Train workers on the private Ray of a command."""
    return [
        child.pid
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]
