"""Signals and kills at random moments of a command's whole life:
given again, it ends with the undisturbed result.

`FOVEA_SIGNALS=30` sends so many to each command (default: 3). Pipelines have such a test of their own.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from pretrain.encoders import build_encoder, save_encoder
from tests.finetune.stripes import arguments as of_finetuning
from tests.finetune.stripes import stripes
from tests.pretrain.runs import arguments as of_pretraining
from tests.pretrain.runs import trace
from tests.pretrain.shards import write_shards

NUM = int(os.environ.get("FOVEA_SIGNALS", "3"))
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
ENDS = {
    0,
    2,
    130,
    -signal.SIGKILL,
    -signal.SIGTERM,
    -signal.SIGINT,
    -signal.SIGHUP,
}  # before its handlers stand, it dies
MAX_STARTS = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Photos in class folders, shards, and a model: what the commands work on."""
    folder = tmp_path_factory.mktemp("world")
    for name, numbers in (("train", range(64)), ("validation", range(100, 140))):
        images, labels = zip(*(stripes(number) for number in numbers))
        write_shards(folder / name, list(images), label=list(labels))
        for number, (data, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / "photos" / f"class{len(label)}" / f"{name}{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    torch.manual_seed(0)
    save_encoder(build_encoder("convattn_nano", stem_stride=2), str(folder / "encoder"), input_size=32)
    run(["finetune", *_finetuning(folder, folder / "classifier")])
    return folder


def _finetuning(world, out):
    more = {
        "encoder": "random",
        "architecture.name": "convattn_nano",
        "training.epochs": 2,
        "image_size": 32,
    }
    return of_finetuning(world, out, **more)


def command(kind, world, out):
    """The words of a command that leaves its result in `out`."""
    return {
        "import": ["pretrain.data", "import", world / "photos", out, "--workers", 1, "--rows-per-group", 8],
        "embed": ["pretrain", "embed", world / "encoder", world / "train", out, "--rows-per-part", 16],
        "pretrain": ["pretrain", *of_pretraining(world / "train", out, steps=8, workers=0, report_images=8)],
        "finetune": ["finetune", *_finetuning(world, out)],
        "predict": ["finetune", "predict", world / "classifier" / "model", world / "validation", out],
        "evaluate": [
            "finetune", "evaluate", world / "classifier" / "model", world / "validation", "--json",
            out / "found.json",
        ],
    }[kind]  # fmt: skip


def result_of(kind, out):
    """What must be the same."""
    if kind in ("import", "embed"):
        shards = sorted(out.rglob("*.parquet"))
        assert shards
        return {
            str(path.relative_to(out)): path.read_bytes() if kind == "import" else _table(path)
            for path in shards
        }
    if kind in ("pretrain", "finetune"):
        weights = safetensors.torch.load_file(
            out / ("encoder" if kind == "pretrain" else "model") / "model.safetensors"
        )
        assert (
            json.loads((out / "result.json").read_text())["status"] == "finished"
            and (out / "report.html").exists()
        )
        steps = [line[:2] for line in trace(out)] if kind == "pretrain" else _losses(out)
        return {"weights": {name: tensor.tolist() for name, tensor in weights.items()}, "steps": steps}
    if kind == "predict":
        return {
            "records": (out / "predictions.jsonl").read_text(),
            "table": _table(out / "predictions.parquet"),
        }
    return json.loads((out / "found.json").read_text())["metrics"]


def _table(path):
    return pq.read_table(path).to_pylist()


def _losses(out):
    return [
        (line["step"], line["loss"])
        for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    ]


def start(words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def run(words):
    """Runs a command to its end; seconds it took."""
    began = time.monotonic()
    process = start(words)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["import", "embed", "pretrain", "finetune", "predict", "evaluate"])
def test_a_command_that_was_cut_off_ends_as_if_it_was_not(kind, world, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    seconds = run(command(kind, world, whole))
    wanted = result_of(kind, whole)
    generator = random.Random(kind)
    for trial in range(NUM):
        out = tmp_path / f"trial{trial}"
        out.mkdir()
        number, moment = generator.choice(SIGNALS), generator.uniform(0, 1.05 * seconds)
        process = start(command(kind, world, out))
        with_time = f"{kind}, trial {trial}: {number.name} after {moment:.2f} of {seconds:.2f} s"
        try:
            said, _ = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            said, _ = process.communicate(timeout=300)
        # of Ctrl-C before its handlers stand Python tells itself
        untold = "Traceback" not in said or process.returncode == -signal.SIGINT
        assert process.returncode in ENDS and untold, f"{with_time}: {process.returncode}\n{said}"
        if process.returncode:
            for _ in range(MAX_STARTS):
                again = start(command(kind, world, out))
                said, _ = again.communicate(timeout=900)
                if again.returncode == 0:
                    break
            assert again.returncode == 0, f"{with_time}, given again: {again.returncode}\n{said}"
        assert result_of(kind, out) == wanted, with_time
        left = [path.name for path in Path(out).rglob(".tmp-*")]
        assert not left or number == signal.SIGKILL, f"{with_time}: {left}"
