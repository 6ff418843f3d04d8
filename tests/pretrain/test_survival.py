"""Runs that machines and stores fail: what was learnt, and in which order,
is that of a run nobody disturbed.
"""

import json
import os
import random
import resource
import signal
import socket
import threading
import time

import numpy as np
import pytest

from cluster import storage
from cluster.errors import run_command
from cluster.settings import load_settings
from pretrain.__main__ import main
from pretrain.data.reading.manifest import load_manifest
from pretrain.papers import defaults_of
from pretrain.settings import PretrainSettings
from pretrain.training import checkpoints
from pretrain.training.recipe import order_of
from tests.pretrain.recording import rows_by_step
from tests.pretrain.runs import arguments, assert_equal_runs, start, trace, train_workers_of, wait_for_step
from tests.pretrain.shards import photo, write_shards
from tests.slow_store import RESET, SlowStore

NUM_IMAGES = 96


@pytest.fixture(scope="module")
def images():
    images = [photo(number) for number in range(NUM_IMAGES)]
    images[5], images[40] = b"nothing", None
    return images


@pytest.fixture(scope="module")
def shards(images, tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("photos"), images, rows_per_group=10)


@pytest.fixture
def dice():
    """Random moments, other ones in each run of the tests; the seed is printed with a failure."""
    seed = int(os.environ.get("FOVEA_TEST_SEED") or time.time_ns() % 2**32)
    print(f"FOVEA_TEST_SEED={seed} repeats these moments (as near as timing allows)")
    return random.Random(seed)


def finish(process, timeout_seconds=300):
    output, _ = process.communicate(timeout=timeout_seconds)
    assert process.returncode == 0, output
    return output


def undisturbed(shards, out, *, steps, workers, **more):
    finish(start(*arguments(shards, out, steps=steps, workers=workers, **more)))
    return out


def result_of(out):
    return json.loads(storage.read_bytes(storage.join(str(out), "result.json")))


def num_steps_of(out):
    metrics = out / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def undisturbed_rows(options, steps):
    """The rows of each global batch as the order has them: it is a function of the settings alone."""
    config, *overrides = options
    settings = load_settings(PretrainSettings, config, overrides, beneath=defaults_of)
    order = order_of(load_manifest(settings.data.urls), settings.data, settings.training, seed=settings.seed)
    epochs = [order.epoch_batches(epoch) for epoch in range(-(-steps // order.steps_per_epoch))]
    return np.concatenate(epochs)[:steps].tolist()


def wait_until(process, out, reached, timeout_seconds=240):
    """Waits until the restarts that a run has noted are as `reached` wants them."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        lines = (
            (out / "restarts.jsonl").read_text().splitlines() if (out / "restarts.jsonl").exists() else []
        )
        if reached([json.loads(line) for line in lines]):
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError(f"it did not come to that: {lines}")


def wait_for_workers(process, out, workers, at_least):
    wait_until(process, out, lambda noted: len(noted) >= at_least and noted[-1]["workers"] == workers)


def wait_for_restarts(process, out, num):
    wait_until(process, out, lambda restarts: len(restarts) >= num)


def recoveries(result):
    """Prints the restarts of a result and returns the seconds that each took."""
    for entry in result["restart_log"]:
        print(entry)
    seconds = sorted(
        entry["seconds_to_recover"] for entry in result["restart_log"] if entry["seconds_to_recover"]
    )
    print(
        f"{len(seconds)} recoveries: median {seconds[len(seconds) // 2]} s, {seconds[0]} to {seconds[-1]} s"
    )
    return seconds


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_checkpoints_and_nothing_else(shards, tmp_path):
    """Real failing writes: the system refuses files above a size, first to all that are written,
    then to none.
    """
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert run_command(lambda: main(arguments(shards, whole, steps=40, workers=0))) == 0
    process = start(*arguments(shards, out, steps=40, workers=0))
    wait_for_step(process, out, 6)  # the checkpoint of step 4 is there
    checkpointed = checkpoints.load_newest(str(out)).progress.step
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    for line in process.stdout:
        if "could not be written" in line:
            break
    else:
        raise AssertionError(f"no warning, exit code {process.wait()}")
    assert "File too large" in line and "the last complete one is of step" in line
    assert checkpoints.load_newest(str(out)).progress.step >= checkpointed  # it can still be read
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    finish(process)
    assert result_of(out)["failed_writes"] >= 1
    assert result_of(out)["restarts"] == 0
    assert_equal_runs(whole, out)
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == [checkpoints.folder_name(36), checkpoints.folder_name(40)]  # what was cut off is gone


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_with_the_last_whole_checkpoint(shards, tmp_path):
    out = tmp_path / "run"
    options = arguments(shards, out, steps=12, workers=0)
    process = start(*options)
    wait_for_step(process, out, 6)
    process.kill()
    process.wait()
    process = start(*options)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "restart 1: the command was given again" in output
    assert "File too large" in output.splitlines()[-1] and "Traceback" not in output
    assert checkpoints.load_newest(str(out)).progress.step in (4, 8)
    finish(start(*options))
    restarts = result_of(out)["restart_log"]
    assert [entry["why"] for entry in restarts] == ["the command was given again"] * 2
    assert all(entry["seconds_to_recover"] > 0 and entry["workers"] == 1 for entry in restarts)


@pytest.mark.ray
@pytest.mark.slow
def test_20_workers_killed_at_random_moments_of_one_run(shards, tmp_path, dice):
    steps = 160
    alone = undisturbed(shards, tmp_path / "alone", steps=steps, workers=2)
    out = tmp_path / "run"
    process = start(*arguments(shards, out, steps=steps, workers=2, cluster__max_failures=-1))
    wait_for_step(process, out, dice.randint(1, 6))
    for kill in range(20):
        wait_for_restarts(process, out, kill)
        if kill % 2:  # further on than the last time, in a step or in the writing of a checkpoint
            wait_for_step(process, out, num_steps_of(out) + dice.randint(1, 8))
        time.sleep(dice.uniform(0, 0.8))
        os.kill(dice.choice(train_workers_of(process)), signal.SIGKILL)
    output = finish(process)
    result = result_of(out)
    recoveries(result)
    assert result["restarts"] == len(result["restart_log"]) == 20
    assert all("its process died" in entry["why"] for entry in result["restart_log"])
    assert all(0 <= entry["lost_steps"] <= 8 for entry in result["restart_log"])
    assert sum(entry["from_step"] > 0 for entry in result["restart_log"]) >= 8
    assert 0 < output.count("restart ") <= 20  # a worker that is killed at once does not come to say it
    assert_equal_runs(alone, out)


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_that_hangs_is_given_up_and_replaced(shards, tmp_path):
    """SIGSTOP: the process is there and silent, and the other rank waits for it in a collective."""
    alone = undisturbed(shards, tmp_path / "alone", steps=24, workers=2)
    out = tmp_path / "run"
    process = start(*arguments(shards, out, steps=24, workers=2, cluster__hang_seconds=10))
    wait_for_step(process, out, 6)
    stopped = train_workers_of(process)[1]
    os.kill(stopped, signal.SIGSTOP)
    finish(process)
    result = result_of(out)
    recoveries(result)
    assert result["restarts"] == 1
    assert "gave up waiting for another worker" in result["restart_log"][0]["why"]
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)  # it does not stay
    assert_equal_runs(alone, out)


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_killed_five_times(shards, tmp_path, dice, monkeypatch):
    """A head and two nodes of a worker each: after each loss the run goes on with one worker,
    and grows again.

    In exact pieces it is then the undisturbed run bit for bit.
    """
    from ray.cluster_utils import Cluster

    steps, seconds_a_step = 160, 0.25
    recorded = {"module": "tests.pretrain.recording"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    health = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 5,
    }
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": health}
    cluster, process = Cluster(initialize_head=True, head_node_args=head), None
    out = tmp_path / "run"
    alone = undisturbed(shards, tmp_path / "alone", steps=steps, workers=0, method__exact_pieces=2)
    (tmp_path / "run.rows").mkdir()
    (tmp_path / "run.rows" / "seconds").write_text(str(seconds_a_step))
    late = dice.sample(range(5), 2)  # these losses are replaced only after the run goes on with one worker
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        options = arguments(
            shards,
            out,
            steps=steps,
            workers=2,
            cluster__min_workers=1,
            cluster__max_failures=-1,
            cluster__resize_seconds=5,
            cluster__address=cluster.address,
            method__exact_pieces=2,
        )
        process = start(*options, **recorded)
        step = 0
        for loss in range(5):
            step = max(step, num_steps_of(out)) + dice.randint(3, 8)
            wait_for_step(process, out, step, timeout_seconds=200)
            if loss:
                wait_for_workers(
                    process, out, 2, at_least=loss
                )  # so that each loss is of a node with a worker
            time.sleep(dice.uniform(0, seconds_a_step))
            cluster.remove_node(nodes.pop(dice.randrange(2)), allow_graceful=False)
            step = num_steps_of(out)
            if loss in late:
                step += 3
                wait_for_step(process, out, step, timeout_seconds=200)
            nodes.append(cluster.add_node(num_cpus=1))
        output = finish(process, timeout_seconds=300)
    finally:
        if process is not None and process.poll() is None:
            process.kill()
        cluster.shutdown()

    result = result_of(out)
    recoveries(result)
    print(output)
    assert result["restarts"] >= 5
    sizes = {entry["workers"] for entry in result["restart_log"]}
    assert sizes == {1, 2}  # it shrank, and grew
    rows, wanted = rows_by_step(tmp_path / "run.rows"), undisturbed_rows(options, steps)
    assert [rows[step] for step in sorted(rows)] == wanted
    assert [step for step, *_ in trace(out)] == list(range(1, steps + 1))
    assert_equal_runs(alone, out)


@pytest.mark.ray
@pytest.mark.slow
def test_an_s3_server_that_is_gone_for_30_seconds_twice(shards, images, s3_server, tmp_path, monkeypatch):
    """Data, run and encoder in S3. The server stops in the middle of training,
    and in the middle of a checkpoint's upload.
    """
    from moto.server import ThreadedMotoServer

    out_of_service = 30.0
    alone = undisturbed(shards, tmp_path / "alone", steps=44, workers=0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def serve():
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        return server

    servers, outages = [serve()], []

    def stop_for_a_while():
        server = servers.pop()
        server.stop()
        server._server.server_close()  # stop() leaves the port open, and requests waiting in it
        began = time.monotonic()
        time.sleep(out_of_service)
        servers.append(serve())  # moto keeps its buckets in this process
        outages.append(time.monotonic() - began)

    def outage():
        threading.Thread(target=stop_for_a_while).start()

    url = f"{s3_server.url}/outage"
    with SlowStore("127.0.0.1", port) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.port}")
        storage.filesystem(url)[0].clear_instance_cache()
        for path in sorted(os.listdir(shards)):
            with open(os.path.join(shards, path), "rb") as file:
                storage.write_bytes(f"{url}/shards/{path}", file.read())
        options = arguments(f"{url}/shards", f"{url}/run", steps=44, workers=2, data__prefetch_mib=1)

        def last_checkpoint():
            newest = checkpoints.load_newest(f"{url}/run")
            return 0 if newest is None else newest.progress.step

        cut = threading.Event()

        def fault(request):
            uploads = request.method in ("PUT", "POST") and "state.pt" in request.path
            if uploads and not cut.is_set() and f"{checkpoints.folder_name(16)}" in request.path:
                cut.set()
                print("the first outage begins", flush=True)
                outage()  # the server goes while it is being sent a checkpoint, which does not arrive
                return RESET
            return None

        process = start(*options)
        try:
            deadline = time.monotonic() + 600
            while last_checkpoint() < 4:
                time.sleep(0.1)
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < deadline
            store.fail(fault)
            assert cut.wait(60), "no checkpoint of step 16"
            while len(outages) < 1:
                time.sleep(0.1)
            while last_checkpoint() < 24:
                time.sleep(0.1)
                assert process.poll() is None, process.stdout.read()
            print("the second outage begins", flush=True)
            outage()
            print(finish(process))
            while len(outages) < 2:
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
        assert len(outages) == 2 and min(outages) >= out_of_service
        result = result_of(f"{url}/run")
        lines = [
            json.loads(line) for line in storage.read_bytes(f"{url}/run/metrics.jsonl").decode().splitlines()
        ]
        print(f"restarts {result['restarts']}, failed writes {result['failed_writes']}, "
              f"reads tried again {max(line['read_retries'] for line in lines)}")  # fmt: skip
        assert result["restarts"] == 0  # and checkpoints were left out at most, while one before was stuck
        assert max(line["read_retries"] for line in lines) > 0
        for (step, loss, bad), line in zip(trace(alone), lines, strict=True):
            assert (line["step"], line["bad_rows"]) == (step, bad)
            if step <= 12:  # later the roundings of two workers have grown
                assert line["loss"] == pytest.approx(loss, abs=1e-3)
        from pretrain.encoders import load_encoder

        load_encoder(f"{url}/run/encoder")
    storage.filesystem(url)[0].clear_instance_cache()
