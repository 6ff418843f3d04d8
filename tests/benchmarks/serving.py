"""A served model: images a second beside `predict`, latency at 1, 8 and 32 clients, bad inputs,
and a killed replica.

    python -m tests.benchmarks.serving [--size 128] [--encoder convattn_nano] [--replicas 2] [--images 1024]

A classifier with random weights and photo-like JPEGs of 640 x 480 pixels. `predict` runs over a folder of
them in this process; clients in a process of their own post the same files, one a request, with a token. CPU
seconds stand beside the clock: on a machine that does other work too they say more. Those of serving are of
the command, its replicas and its Ray, without the clients.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from finetune.model import save_model
from finetune.predicting.command import parser, predict
from finetune.tasks.classification.task import Classification
from pretrain.encoders import build_encoder

NAMES = [f"class {number}" for number in range(10)]
TOKEN = secrets.token_urlsafe(32)


def main(arguments: list[str] | None = None) -> None:
    """Makes a model and images, measures and prints."""
    options_of = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving", description=__doc__)
    options_of.add_argument("--size", type=int, default=128)
    options_of.add_argument("--encoder", default="convattn_nano")
    options_of.add_argument("--images", type=int, default=1024, help="for predict")
    options_of.add_argument("--seconds", type=float, default=10.0, help="of each load")
    options_of.add_argument("--rounds", type=int, default=3, help="of predict and 32 clients in turn")
    options_of.add_argument("--replicas", type=int, default=2)
    options = options_of.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(folder / "model")
        write_model(model, options.encoder, options.size)
        write_photos(folder / "photos", 64)
        write_photos(folder / "many", options.images)
        print(
            f"{options.encoder} at {options.size} pixels, {os.cpu_count()} CPUs, load "
            f"{os.getloadavg()[0]:.1f}"
        )
        with served(model, "--replicas", str(options.replicas)) as (process, address):
            measure_load(process, address, folder / "photos", 32, 2.0)  # to warm up
            measure_predict(model, folder / "photos", folder / "warm")
            at_rest(process, 5.0)
            ratios = []
            for turn in range(options.rounds):
                predicted = measure_predict(model, folder / "many", folder / f"out{turn}")
                busy = measure_load(process, address, folder / "photos", 32, options.seconds)
                ratios.append([mine / its for mine, its in zip(busy, predicted, strict=True)])
                print(
                    f"  32 clients / predict: {ratios[-1][0]:.2f} by the clock, {ratios[-1][1]:.2f} by CPU",
                    flush=True,
                )
            print("  median of {}: {:.2f} and {:.2f}".format(len(ratios), *np.median(ratios, axis=0)))
            for clients in (8, 1):
                measure_load(process, address, folder / "photos", clients, options.seconds)
            bad_inputs(process, address)
            killed_replica(process, address, folder / "photos", 2 * options.seconds)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            print(
                f"ended by SIGTERM with exit code {process.wait(120)} after {time.monotonic() - began:.1f} s"
            )


def write_model(url: str, encoder_name: str, size: int) -> None:
    """Writes a classifier with random weights."""
    torch.manual_seed(0)
    encoder = build_encoder(encoder_name, stem_stride=2).eval()
    config = {
        "task": "classification", "mode": "full", "encoder": encoder.spec, "encoder_url": "random",
        "image_size": size, "crop_share": 0.875, "mean": [0.5] * 3, "std": [0.25] * 3,
        "image_column": "image", "columns": {"label": "label"}, "class_names": NAMES, "class_values": NAMES,
    }  # fmt: skip
    save_model(url, Classification.new_model(encoder, config), config)


def write_photos(folder: Path, num: int, width: int = 640, height: int = 480) -> None:
    """Writes JPEGs with large shapes and fine grain, 64 different ones."""
    folder.mkdir()
    for number in range(num):
        generator = np.random.default_rng(number % 64)
        shapes = Image.fromarray(generator.integers(0, 255, (6, 8, 3), np.uint8)).resize((width, height))
        pixels = np.asarray(shapes) + generator.normal(0, 6, (height, width, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=85)


@contextlib.contextmanager
def served(model: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command and its HOST:PORT, from when it answers."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["FOVEA_SERVE_TOKEN"] = TOKEN
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", "serve", model, "--port", "0", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"http://(\S+) answers", line):
                print(f"{' '.join(options)}: answers after {time.monotonic() - began:.0f} s")
                yield process, found[1]
                return
        raise SystemExit(f"the command ended with {process.wait()} before it answered")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def measure_predict(model: str, images: Path, out: Path) -> tuple[float, float]:
    """Images a second and a CPU second of `predict`, with what loading the model takes."""
    began, cpu = time.monotonic(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        done = predict(parser().parse_args([model, str(images), str(out)]))
    assert done is not None
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    print(
        f"predict      {done.num_images / seconds:6.0f} images/s, {1000 * cpu / done.num_images:5.2f} ms of "
        "CPU each"
    )
    return done.num_images / seconds, done.num_images / cpu


def measure_load(
    process: subprocess.Popen[str], address: str, folder: Path, clients: int, seconds: float
) -> tuple[float, float]:
    """Images a second and a CPU second of the server under a load."""
    before = cpu_of(process)
    seen = clients_saw(address, folder, clients, seconds)
    cpu = cpu_of(process) - before
    answered = len(seen["milliseconds"])
    p50, p99 = np.percentile(seen["milliseconds"], [50, 99])
    mean = sum(int(size) * num for size, num in seen["batches"].items()) / answered
    print(
        f"{clients:2} clients   {answered / seen['seconds']:6.0f} images/s, {1000 * cpu / answered:5.2f} ms "
        f"of CPU each (clients {1000 * seen['cpu_seconds'] / answered:.2f}); p50 {p50:.0f} ms, p99 "
        f"{p99:.0f} ms; {answered} requests in batches of {mean:.1f} on average; statuses "
        f"{seen['statuses']}",
        flush=True,
    )
    return answered / seen["seconds"], answered / cpu


def at_rest(process: subprocess.Popen[str], seconds: float) -> None:
    """What the command and its Ray take when nobody asks."""
    before = cpu_of(process)
    time.sleep(seconds)
    print(
        f"at rest {1000 * (cpu_of(process) - before) / seconds:.0f} ms of CPU a second, load "
        f"{os.getloadavg()[0]:.1f}"
    )


def clients_saw(address: str, folder: Path, clients: int, seconds: float) -> Any:
    """Runs the clients in a process of their own."""
    return json.loads(start_clients(address, folder, clients, seconds).communicate()[0])


def start_clients(address: str, folder: Path, clients: int, seconds: float) -> subprocess.Popen[str]:
    """Starts them."""
    command = [sys.executable, "-m", "tests.benchmarks.load", address, str(folder), "--token", TOKEN]
    return subprocess.Popen(
        [*command, f"--clients={clients}", f"--seconds={seconds}"], stdout=subprocess.PIPE, text=True
    )


def cpu_of(process: subprocess.Popen[str]) -> float:
    """CPU seconds of a command and of all that it started."""
    root = psutil.Process(process.pid)
    times = [one.cpu_times() for one in (root, *root.children(recursive=True)) if one.is_running()]
    return float(sum(one.user + one.system for one in times))


def bad_inputs(process: subprocess.Popen[str], address: str) -> None:
    """What each is answered, how soon, and by how much the command's memory grew."""
    large = io.BytesIO()
    Image.new("RGB", (10_000, 10_000)).save(large, "PNG")  # 100 megapixels in 300 kB
    jpeg = {"Content-Type": "image/jpeg"}
    cases = {
        "no image": (b"", jpeg),
        "not an image": (b"GIF? no", jpeg),
        "100 megapixels": (large.getvalue(), jpeg),
        "200 MB": (bytes(200_000_000), jpeg),
        "200 MB, length unsaid": (iter([bytes(1_000_000)] * 200), jpeg),
        "text": (b"{}", {"Content-Type": "application/json"}),
        "no token": (b"", {"Authorization": ""}),
        "wrong token": (b"", {"Authorization": f"Bearer {TOKEN[:-1]}?"}),
    }
    for name, (body, headers) in cases.items():
        before, began = psutil.Process(process.pid).memory_info().rss, time.monotonic()
        status, answer = ask(address, body, headers)
        grown = max(0, psutil.Process(process.pid).memory_info().rss - before) / 1e6
        print(
            f"{name:22} {status} after {1000 * (time.monotonic() - began):4.0f} ms, +{grown:.0f} MB: "
            f"{answer}"
        )


def ask(address: str, body: Any, headers: dict[str, str]) -> tuple[int, str]:
    """Posts a body; returns the status and the answer."""
    connection = HTTPConnection(address, timeout=60)
    connection.request(
        "POST", "/predict", body=body, headers={"Authorization": f"Bearer {TOKEN}", **headers}
    )
    response = connection.getresponse()
    return response.status, response.read().decode()


def killed_replica(process: subprocess.Popen[str], address: str, folder: Path, seconds: float) -> None:
    """Kills one of two replicas in the middle of a load."""
    clients = start_clients(address, folder, 8, seconds)
    time.sleep(seconds / 3)
    replicas = replicas_of(process)
    os.kill(replicas[0], signal.SIGKILL)
    seen = json.loads(clients.communicate()[0])
    p50, p99 = np.percentile(seen["milliseconds"], [50, 99])
    print(
        f"one of {len(replicas)} replicas killed under 8 clients: statuses {seen['statuses']}, p50 "
        f"{p50:.0f} ms, p99 {p99:.0f} ms, slowest {max(seen['milliseconds']):.0f} ms"
    )


def replicas_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of a command's replicas."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [
        child.pid
        for child in children
        if "ServeReplica" in child.name() or "SERVE_REPLICA" in " ".join(child.cmdline())
    ]


if __name__ == "__main__":
    main()
