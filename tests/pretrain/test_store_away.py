"""A store that is gone for a while, in the middle of a run whose data and results lie in it."""

import json
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import s3fs
import safetensors.torch
import torch

from cluster import storage
from tests.pretrain.runs import arguments, start
from tests.pretrain.shards import photo, write_shards
from tests.slow_store import SlowStore

STEPS = 40
PATIENCE_SECONDS = 1500  # more than any part of a run waits for a store


@pytest.fixture(scope="module")
def remote(s3_server, tmp_path_factory):
    """A folder of the store with shards, and what a run makes of them that nothing disturbs."""
    url = f"{s3_server.url}/{uuid.uuid4().hex}"
    local = write_shards(
        tmp_path_factory.mktemp("photos"), [photo(number) for number in range(96)], rows_per_group=4
    )
    for path in Path(local).iterdir():
        storage.upload(path, f"{url}/data/{path.name}")
    process = run_on(url, "whole", s3_server.endpoint)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    return url


@pytest.fixture
def proxy(s3_server):
    parts = urlsplit(s3_server.endpoint)
    with SlowStore(parts.hostname, parts.port) as store:
        yield store


def run_on(url, name, endpoint):
    more = {"data.keep": "none", "data.shuffle_window_rows": 16, "training.log_every_steps": 2}
    words = arguments(f"{url}/data", f"{url}/{name}", steps=STEPS, workers=0, **more)
    return start(*words, AWS_ENDPOINT_URL=endpoint)


def lines_of(url):
    s3fs.S3FileSystem.clear_instance_cache()
    if not storage.exists(f"{url}/metrics.jsonl"):
        return []
    return [json.loads(line) for line in storage.read_bytes(f"{url}/metrics.jsonl").splitlines()]


def wait_until(done, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def weights_of(url):
    return safetensors.torch.load(storage.read_bytes(f"{url}/encoder/model.safetensors"))


def assert_as_undisturbed(url, name):
    whole, found = lines_of(f"{url}/whole"), lines_of(f"{url}/{name}")
    assert [(line["step"], line["loss"]) for line in found] == [
        (line["step"], line["loss"]) for line in whole
    ]
    mine, theirs = weights_of(f"{url}/{name}"), weights_of(f"{url}/whole")
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    result = json.loads(storage.read_bytes(f"{url}/{name}/result.json"))
    assert result["status"] == "finished" and result["steps"] == STEPS


@pytest.mark.slow
def test_a_store_that_is_away_for_half_a_minute_costs_nothing(remote, proxy):
    process = run_on(remote, "short", f"http://127.0.0.1:{proxy.port}")
    wait_until(lambda: len(lines_of(f"{remote}/short")) >= 2, process)
    seen = len(proxy.requests)
    proxy.fail(lambda request: "reset")
    time.sleep(30)
    proxy.fail(lambda request: None)
    assert len(proxy.requests) > seen  # it was asked in vain
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0 and "Traceback" not in said, said
    assert_as_undisturbed(remote, "short")


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_run_in_words_and_it_continues(remote, proxy):
    process = run_on(remote, "long", f"http://127.0.0.1:{proxy.port}")
    wait_until(lambda: len(lines_of(f"{remote}/long")) >= 2, process)
    proxy.fail(lambda request: "reset")
    said = process.communicate(timeout=PATIENCE_SECONDS)[0]
    assert process.returncode not in (0, None) and "Traceback" not in said, said
    (told,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "s3://" in told and told.endswith("; give the same command again once the store answers"), said
    proxy.fail(lambda request: None)
    process = run_on(remote, "long", f"http://127.0.0.1:{proxy.port}")
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0 and "the command was given again" in said, said
    assert_as_undisturbed(remote, "long")
