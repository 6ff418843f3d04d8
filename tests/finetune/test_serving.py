"""`python -m finetune serve`: what is answered, what is refused and how, and what Ray Serve does with it."""

import asyncio
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from cluster.errors import run_command
from cluster.serving.replicas import Service, replicas
from finetune.__main__ import main
from finetune.model import load_model, save_model
from finetune.predicting.records import record_of
from finetune.serving.answers import answer_type
from finetune.serving.app import Refused, read_body
from finetune.serving.served_model import ServedModel
from finetune.tasks.classification.predictor import Classification as Classified
from finetune.tasks.classification.task import Classification
from finetune.tasks.detection.predictor import Detections
from finetune.tasks.summarization.predictor import Keyword, Summary
from pretrain.data.images.decode import set_max_pixels
from pretrain.encoders import build_encoder
from tests.finetune.asking import NAMES, Here, answering, ask, assert_same, form, photo

TOKEN = "a-token-of-twenty-four"


def square(side):
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A classifier with random weights."""
    url = str(tmp_path_factory.mktemp("model") / "model")
    torch.manual_seed(0)
    encoder = build_encoder("convattn_nano", stem_stride=2).eval()
    config = {
        "task": "classification", "mode": "full", "encoder": encoder.spec, "encoder_url": "random",
        "image_size": 32, "crop_share": 1.0, "mean": [0.5] * 3, "std": [0.25] * 3, "image_column": "image",
        "columns": {"label": "label"}, "class_names": NAMES, "class_values": NAMES,
    }  # fmt: skip
    save_model(url, Classification.new_model(encoder, config), config)
    return url


@pytest.fixture(scope="module")
def served(model):
    """What a replica holds."""
    yield ServedModel(model, 1_000_000, 1)()
    set_max_pixels(None)


@pytest.fixture(scope="module")
def port(served):
    """Of a server without a token."""
    with answering(Here(served)) as port:
        yield port


@pytest.fixture(scope="module")
def predicted(model, tmp_path_factory):
    """The records that `predict` writes of six photos and a file that is none."""
    folder = tmp_path_factory.mktemp("predicted")
    (folder / "photos").mkdir()
    for number in range(6):
        (folder / "photos" / f"{number}.jpg").write_bytes(photo(number))
    (folder / "photos" / "6.jpg").write_bytes(b"no image")
    assert run_command(lambda: main(["predict", model, str(folder / "photos"), str(folder / "out")])) == 0
    return [json.loads(line) for line in (folder / "out" / "predictions.jsonl").read_text().splitlines()]


def test_answers_are_the_records_of_predict(port, predicted):
    for number in range(6):
        status, headers, answer = ask(port, photo(number))
        assert status == 200 and headers["x-batch-size"] == "1"
        assert_same(answer["records"][0], predicted[number])
        assert answer["records"][0]["source"] == "body"
    status, headers, answer = ask(
        port, *form(("a b.jpg", photo(4)), ("no.jpg", b"no image"), ("ü.jpg", photo(5)))
    )
    assert status == 200 and headers["x-batch-size"] == "3"
    for index, (record, number) in enumerate(zip(answer["records"], (4, 6, 5), strict=True)):
        assert_same(record, predicted[number])
        assert record["index"] == index
    assert [record["source"] for record in answer["records"]] == ["a b.jpg", "no.jpg", "ü.jpg"]
    assert answer["records"][1]["error"] == "not an image" and "label" not in answer["records"][1]


@pytest.mark.parametrize(
    ("body", "kind", "status", "why"),
    [
        (b"", "image/jpeg", 400, "no image"),
        (b"GIF? no", "image/png", 400, "body: not an image"),
        (photo(0)[:300], "image/jpeg", 400, "body: truncated"),
        (square(1001), "image/png", 413, "too large: 1001x1001 pixels (at most 1 megapixels)"),
        (bytes(200_001), "image/jpeg", 413, "0.2 MB; a request has at most 0.2 MB"),
        (b"{}", "application/json", 415, "Content-Type application/json; send an image"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "multipart/form-data"),
        (b"x", "multipart/form-data", 400, "without a boundary"),
        (b"x", "multipart/form-data; boundary=b", 400, "does not occur"),
        (b"--b\r\n\r\nx", "multipart/form-data; boundary=b", 400, "cut off"),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 400, "no image"),
        (*form(*[("x.jpg", photo(0))] * 4), 413, "more than 3 images"),
        (
            *form(("x.jpg", b"x"), ("y.png", b"")),
            400,
            "none of 2 images can be used: x.jpg: not an image; y.png: empty",
        ),
    ],
    ids=lambda value: (
        None if isinstance(value, int) else ""
    ),  # boundaries are random, names of tests must not be
)
def test_what_cannot_be_used_is_refused_in_a_line(port, body, kind, status, why):
    seen, _, answer = ask(port, body, kind)
    assert seen == status
    assert why in answer["error"] and list(answer) == ["error"]


def test_a_large_body_is_refused_before_it_is_sent(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\n"
            b"Content-Type: image/png\r\nContent-Length: 200000000\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_unsaid_length_is_not_held_beyond_the_limit(port):
    pieces = iter([bytes(1000)] * 400)
    assert ask(port, pieces)[0] == 413

    class Endless:
        given = 0

        async def stream(self):
            while True:
                self.given += 1
                yield bytes(1000)

    endless = Endless()
    with pytest.raises(Refused) as refused:
        asyncio.run(read_body(endless, 5000, 0.005))
    assert refused.value.status == 413 and endless.given == 6


def test_other_paths_and_methods_say_what_there_is(port):
    assert ask(port, path="/nowhere")[::2] == (
        404,
        {"error": "Not Found: POST /nowhere; there are POST /predict, GET /, /health, /openapi.json"},
    )
    status, _, answer = ask(port, method="GET")
    assert status == 405 and "POST /predict" in answer["error"]


def test_the_model_is_described(port):
    status, _, answer = ask(port, path="/", method="GET")
    assert status == 200
    assert answer["task"] == "classification" and answer["names"] == NAMES and answer["image_size"] == 32


def test_clients_must_send_the_token(served):
    with answering(Here(served), token=TOKEN) as port:
        assert ask(port, path="/health", method="GET")[0] == 200
        for path, method in (("/predict", "POST"), ("/", "GET"), ("/openapi.json", "GET")):
            assert ask(port, photo(0), path=path, method=method, Authorization=f"Bearer {TOKEN}")[0] == 200
            for sent in (
                {},
                {"Authorization": f"Bearer {TOKEN}x"},
                {"Authorization": "Bearer "},
                {"Authorization": f"Basic {TOKEN}"},
            ):
                status, headers, answer = ask(port, photo(0), path=path, method=method, **sent)
                assert (
                    status == 401 and "token" in answer["error"] and headers["www-authenticate"] == "Bearer"
                )
        # before a byte of the body is looked at
        assert ask(port, bytes(200_001))[0] == 401


def test_openapi_says_what_is_answered(port):
    status, _, found = ask(port, path="/openapi.json", method="GET")
    assert status == 200
    answers = found["paths"]["/predict"]["post"]["responses"]
    assert {"200", "400", "401", "413", "415", "503"} <= set(answers)
    record = found["components"]["schemas"]["Record"]["properties"]
    assert set(record) == set(ask(port, photo(0))[2]["records"][0])
    origin = {"source": "body", "index": 0, "seconds": None, "error": None}
    keyword = Keyword("cat", 0.5, np.zeros((2, 2), np.float32))
    for result in (
        Classified("light", 0.5, {"light": 0.5}, ["light"]),
        Detections(np.ones((2, 4), np.float32), ["a", "b"], np.ones(2, np.float32)),
        Summary([keyword], "a cat", -1.0, (0.0, 0.0, 1.0, 1.0)),
    ):
        kind = answer_type(type(result))
        answer = {"records": [origin | record_of(result), {**origin, "error": "truncated"}]}
        assert (
            kind.model_validate_json(json.dumps(answer), strict=True).model_dump(exclude_unset=True)
            == answer
        )
        with pytest.raises(ValueError, match=r"records\.0"):
            kind.model_validate({"records": [origin | {name: {1: 1} for name in record_of(result)}]})


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_commands_of_the_page_are_answered(port, tmp_path):
    (tmp_path / "my").mkdir()
    for name in ("photo", "other"):
        (tmp_path / "my" / f"{name}.jpg").write_bytes(photo(len(name)))
    (block,) = re.findall(r"```console\n(.*?)```", Path("finetune/README.md").read_text(), re.DOTALL)
    for words, num_records in zip(map(shlex.split, block.splitlines()), (1, 2), strict=True):
        words = [word.replace(":8000/", f":{port}/") for word in words]
        told = subprocess.run(
            [*words, "-s"], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout
        assert [record["error"] for record in json.loads(told)["records"]] == [None] * num_records


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--port", "99999"], "port=99999 is not possible"),
        (["--threshold", "0.5"], "this classifier gives one class an image"),
        (["--host", "no.such.host.invalid"], "host=no.such.host.invalid is no address"),
        (["--token-file", "/no/such/file"], "the token cannot be read from the file /no/such/file: "),
        (["--max-images", "0"], "max_images=0 is not possible"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_started(model, words, why, capsys):
    assert run_command(lambda: main(["serve", model, "--port", "0", *words])) == 2
    told = capsys.readouterr()
    assert why in told.err and told.err.count("\n") == 1


def test_a_port_in_use_is_one_line(model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_command(lambda: main(["serve", model, "--port", str(port)])) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot listen on port {port} of 127.0.0.1: ")


def replica_processes():
    """Process ids of the replicas that this process or its children started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one that ends while it is looked at
            if any("ServeReplica" in word for word in [child.name(), *child.cmdline()]):
                found.append(child.pid)
    return found


@pytest.mark.ray
@pytest.mark.usefixtures("shared_ray")
def test_replicas_answer_in_batches_and_one_that_is_killed_costs_nothing(model, predicted):
    async def load(running, num_images, kill_after):
        answers = await asyncio.gather(*(asked(running, number % 6) for number in range(kill_after)))
        first = [asyncio.create_task(asked(running, number % 6)) for number in range(num_images)]
        killed = replica_processes()
        assert len(killed) == 2
        os.kill(killed[0], signal.SIGKILL)
        return answers, await asyncio.gather(*first), await running.num_ready()

    async def asked(running, number):
        from finetune.predicting.sources import Item

        return number, await running.ask(
            [Item("body", 0, None, photo(number)), Item("no.jpg", 1, None, b"no image")]
        )

    with replicas(
        Service(ServedModel(model, 1_000_000, 1), 2, batch_wait_seconds=0.05, max_batch_size=16)
    ) as running:
        before, after, ready = asyncio.run(load(running, 200, 60))
    assert len(before) == 60 and len(after) == 200 and ready >= 1
    for number, (good, bad) in [*before, *after]:
        assert_same(good.value, predicted[number])
        assert_same(bad.value, predicted[6])
    sizes = [good.batch_size for _, (good, _) in before]
    assert max(sizes) <= 16 and np.mean(sizes) > 4
    assert not replica_processes()


@pytest.mark.slow
@pytest.mark.ray
def test_the_command_serves_until_it_is_interrupted(model, predicted, tmp_path):
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")
    }
    words = [
        sys.executable,
        "-m",
        "finetune",
        "serve",
        model,
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        "--top-k",
        "2",
    ]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    told = []
    for line in process.stdout:
        told.append(line)
        if " answers" in line:
            break
    found = re.search(r"http://0\.0\.0\.0:(\d+) answers", told[-1])
    assert found, [*told, process.stderr.read()]
    token = re.search(r"not shown again: (\S+)", told[-2])[1]
    port = int(found[1])
    assert ask(port, photo(0))[0] == 401
    status, _, answer = ask(port, photo(0), Authorization=f"Bearer {token}")
    best = sorted(predicted[0]["scores"].values())[-2:]
    assert status == 200 and sorted(answer["records"][0]["scores"].values()) == pytest.approx(best, abs=1e-5)
    folder = next(one for one in psutil.Process(process.pid).open_files() if "/fovea-ray-" in one.path).path
    folder = re.match(r".*/fovea-ray-[^/]+", folder)[0]
    assert os.stat(folder).st_mode & 0o777 == 0o700
    with ThreadPoolExecutor(24) as pool:
        asked = [
            pool.submit(ask, port, photo(number % 6), Authorization=f"Bearer {token}")
            for number in range(24)
        ]
        time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        statuses = []
        for one in asked:
            try:
                statuses.append(one.result()[0])
            except ConnectionError:  # it came too late
                statuses.append(0)
    assert process.wait(120) == 0
    assert set(statuses) <= {200, 0} and 200 in statuses
    assert process.stdout.read() == "serve: ended\n" and process.stderr.read() == ""
    assert not os.path.exists(folder)
    assert load_model(model).predict(photo(0))  # the folder of the model is as it was
