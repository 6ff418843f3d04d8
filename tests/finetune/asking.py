"""A server that answers in the process of the test, and what is asked of it."""

import asyncio
import io
import json
import socket
import threading
from contextlib import contextmanager
from http.client import HTTPConnection

import numpy as np
import pytest
from PIL import Image
from urllib3.filepost import encode_multipart_formdata

from cluster.serving.replicas import Answer
from finetune.serving.app import new_app
from finetune.serving.server import new_server
from finetune.serving.settings import ServeSettings
from finetune.tasks.classification.predictor import Classification as Classified

NAMES = ["dark & stormy", "light", "grey"]


def photo(number):
    """A JPEG that differs from the others."""
    generator = np.random.default_rng(number)
    small = Image.fromarray(generator.integers(0, 255, (3, 4, 3), np.uint8)).resize((64, 48))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


class Here:
    """Answers in this process as replicas would."""

    def __init__(self, served):
        self.answer, self.ready = served, 1

    async def ask(self, items):
        return [Answer(record, len(items)) for record in await asyncio.to_thread(self.answer, items)]

    async def num_ready(self):
        return self.ready


@contextmanager
def answering(asked, *, token=None, **changes):
    """A server of this process; gives its port."""
    given = ServeSettings(max_megabytes=0.2, max_megapixels=1, max_images=3, **changes)
    app = new_app(asked, {"task": "classification", "image_size": 32}, NAMES, Classified, given, token=token)
    server = new_server(app, drain_seconds=5)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    yield listener.getsockname()[1]
    server.end()
    thread.join(10)
    assert not thread.is_alive()


def ask(port, body=b"", kind="image/jpeg", *, path="/predict", method="POST", **headers):
    """Status, headers, and the answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body=body, headers={"Content-Type": kind, **headers})
    response = connection.getresponse()
    text = response.read().decode()
    assert "Traceback" not in text and "\n" not in text
    return response.status, response.headers, json.loads(text)


def form(*files):
    """A multipart body of (name, bytes), and its type."""
    return encode_multipart_formdata([("image", file) for file in files])


def assert_same(record, expected):
    """Equal but for where the image lies, and for the last bits, which depend on the batch."""
    elsewhere = ("source", "index", "score", "scores")
    assert {**record, **dict.fromkeys(elsewhere)} == {**expected, **dict.fromkeys(elsewhere)}
    if record["error"] is None:
        assert record["scores"] == pytest.approx(expected["scores"], abs=1e-5)
        assert record["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert list(record) == list(expected)
