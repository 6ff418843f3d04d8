"""One command holds a folder; who died, or fell silent, holds nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import lease
from cluster.lease import InUse, held


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    url, folder = str(tmp_path / "run" / "running.json"), str(tmp_path / "run")
    with held(url, folder):
        mark = json.loads(Path(url).read_text())
        assert mark["pid"] == os.getpid() and mark["host"] == socket.gethostname()
        with (
            pytest.raises(InUse, match=rf"run is in use: process {os.getpid()} on .* since 20"),
            held(url, folder),
        ):
            raise AssertionError
        assert Path(url).exists()  # who is refused takes nothing away
    assert not Path(url).exists()
    with held(url, folder):
        pass
    assert os.listdir(folder) == []


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    url = tmp_path / "running.json"
    code = (
        "import sys, time\nfrom cluster.lease import InUse, held\n"
        f"while time.time() < float(sys.argv[1]): pass\n"
        f"try:\n  with held({str(url)!r}, 'f'): print('mine', flush=True); sys.stdin.read()\n"
        "except InUse as error: print(error, flush=True)\n"
    )
    at = str(time.time() + 3)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, at], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = [process.stdout.readline() for process in started]
    for process in started:
        process.communicate()
    assert sum(line == "mine\n" for line in said) == 1
    assert sum("is in use: process" in line for line in said) == 2


@pytest.mark.parametrize(
    ("change", "is_held"),
    [
        ({}, False),  # the process is gone
        ({"pid": 1}, False),  # another has its number now
        ({"pid": 1, "process_started": None}, True),
        ({"host": "elsewhere"}, True),
        ({"host": "elsewhere", "renewed_at": 0}, False),
        ({"pid": "x"}, False),
        ({"started_at": None}, False),
    ],
)
def test_who_holds_a_folder_no_more(tmp_path: Path, change: dict[str, object], is_held: bool) -> None:
    url = tmp_path / "running.json"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    now = time.time()
    mark = {
        "host": socket.gethostname(),
        "pid": dead.pid,
        "process_started": 10**12,  # no process did
        "started_at": now,
        "renewed_at": now,
    }
    url.write_text(json.dumps(mark | change))
    if is_held:
        with pytest.raises(InUse):
            lease.check_free(str(url), "f")
    else:
        with held(str(url), "f"):
            pass


def test_junk_holds_nothing(tmp_path: Path) -> None:
    for junk in ("", "{", "[]", "null", "7", '{"pid": 3}', "\x00"):
        (tmp_path / "running.json").write_text(junk)
        with held(str(tmp_path / "running.json"), "f"):
            pass


def test_a_mark_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED_EVERY_SECONDS", 0.05)
    url = tmp_path / "running.json"
    with held(str(url), "f"):
        first, deadline = json.loads(url.read_text())["renewed_at"], time.monotonic() + 20
        while json.loads(url.read_text())["renewed_at"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_in_a_store_with_conditional_writes_one_gets_it(capsys: pytest.CaptureFixture[str]) -> None:
    url, folder = "memory://lease-test/run/running.json", "memory://lease-test/run"
    mark = {"token": "other", "host": "elsewhere", "pid": 7, "process_started": 1, "started_at": time.time()}
    with held(url, folder):
        assert not lease._made_in_store(url, b"{}")  # a second one is refused by the store itself
        assert json.loads(lease.storage.read_bytes(url))["pid"] == os.getpid()
    lease.storage.write_json(url, {**mark, "renewed_at": time.time()})
    with pytest.raises(InUse, match="process 7 on elsewhere"), held(url, folder):
        raise AssertionError
    lease.storage.write_json(url, {**mark, "renewed_at": time.time() - 1000})
    with held(url, folder):  # who fell silent holds nothing, and it is said
        assert json.loads(lease.storage.read_bytes(url))["pid"] == os.getpid()
    assert "process 7 on elsewhere, which held it, is gone; it is taken over" in capsys.readouterr().out
    assert not lease.storage.exists(url)


def test_beside_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    with lease.held_beside(str(folder)):
        assert not folder.exists() and len(os.listdir(tmp_path)) == 1
        with pytest.raises(InUse), lease.held_beside(f"{folder}/"):
            raise AssertionError
    assert os.listdir(tmp_path) == []
