"""hf:// and gs:// through their own libraries: a loopback server that answers as the Hub does,
and an emulator of GCS.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
import pytest

from cluster import storage
from cluster.errors import UserError
from cluster.storage import stores

CONTENT = {
    "README.md": b"words",
    "data/train-00000-of-00002.parquet": bytes(range(256)) * 40,
    "data/train-00001-of-00002.parquet": bytes(range(255, -1, -1)) * 30,
}
REPO, COMMIT = "datasets/owner/name", "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """What https://huggingface.co/.well-known/openapi.json says of one public
    data set without large-file storage.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path in (f"/api/{REPO}", f"/api/{REPO}/revision/main"):
            self.answer(
                {"_id": "1", "id": "owner/name", "sha": COMMIT, "siblings": [], "private": False, "tags": []}
            )
        elif path.startswith(f"/api/{REPO}/tree/main"):
            self.answer(
                self.listed(
                    path.removeprefix(f"/api/{REPO}/tree/main").strip("/"),
                    "recursive=true" in self.path.lower(),
                )
            )
        elif path.startswith(f"/{REPO}/resolve/main/"):
            self.send_file(path.removeprefix(f"/{REPO}/resolve/main/"))
        else:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        wanted = self.rfile.read(int(self.headers["Content-Length"])).decode()
        asked = (
            json.loads(wanted)["paths"]
            if wanted.startswith("{")
            else [unquote(part.partition("=")[2]) for part in wanted.split("&") if part.startswith("paths=")]
        )
        found = {entry["path"]: entry for folder in ("", "data") for entry in self.listed(folder, False)}
        self.answer([found[path] for path in asked if path in found])

    def listed(self, folder: str, recursive: bool) -> list[dict[str, object]]:
        entries = {}
        for path, data in CONTENT.items():
            inside = path.removeprefix(f"{folder}/" if folder else "")
            if folder and inside == path:
                continue
            if "/" in inside:
                name = "/".join(filter(None, (folder, inside.partition("/")[0])))
                entries[name] = {"type": "directory", "path": name, "size": 0, "oid": "d" * 40}
            if "/" not in inside or recursive:
                entries[path] = {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
        return list(entries.values())

    def send_file(self, path: str) -> None:
        data = CONTENT.get(path)
        if data is None:
            return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        wanted = self.headers.get("Range")
        start, stop = (
            (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            if wanted
            else (0, len(data) - 1)
        )
        part = data[start : stop + 1]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(data)}"', "Accept-Ranges": "bytes"}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        return self.send(part, 206 if wanted else 200, headers)

    def answer(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(
            json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})}
        )

    def send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a data set on a loopback Hub."""
    pytest.importorskip("huggingface_hub")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(stores, "_options", {})
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    storage.use_options("hf://datasets/owner/name", {"endpoint": endpoint, "token": False})
    yield f"hf://{REPO}"
    server.shutdown()
    server.server_close()


def test_a_data_set_of_the_hub_is_listed_and_read_in_ranges(hub: str) -> None:
    urls = [f"{hub}/{name}" for name in CONTENT if name.endswith(".parquet")]
    for url in (hub, f"{hub}/data", f"{hub}/**/*.parquet", f"{hub}/data/train-*.parquet"):
        files = storage.find_files(url, ".parquet")
        assert [(file.url, file.size_bytes) for file in files] == [
            (u, len(CONTENT[u.removeprefix(f"{hub}/")])) for u in urls
        ]
    assert len({file.version for file in files}) == 2 and all(file.version for file in files)
    data = CONTENT[urls[0].removeprefix(f"{hub}/")]
    assert storage.read_range(files[0], 100, 5000) == data[100:5000]
    assert storage.read_bytes(urls[0]) == data
    assert storage.exists(urls[0]) and not storage.exists(f"{hub}/data/none.parquet")


def test_what_the_hub_does_not_have_is_told_with_its_url(hub: str) -> None:
    with pytest.raises(UserError, match=rf"cannot read {hub}/none.parquet: it does not exist"):
        storage.read_bytes(f"{hub}/none.parquet")
    assert storage.find_files(f"{hub}/nothing", ".parquet") == []


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket of an emulator of Google Cloud Storage."""
    # read when gcsfs is imported: it would ask by gRPC for the kind of the bucket, which no emulator answers
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(stores, "_options", {})
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="photos")
    server.start()
    storage.use_options("gs://photos", {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port}"})
    yield "gs://photos"
    server.stop()
    fsspec.get_filesystem_class("gs").clear_instance_cache()


def test_google_cloud_storage_is_written_listed_and_read(bucket: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    storage.write_bytes(f"{bucket}/shards/a.parquet", data)
    (tmp_path / "b.parquet").write_bytes(data[::-1])
    storage.upload(tmp_path / "b.parquet", f"{bucket}/shards/b.parquet")
    for url in (f"{bucket}/shards", f"{bucket}/*/*.parquet"):
        files = storage.find_files(url, ".parquet")
        assert [file.url for file in files] == [f"{bucket}/shards/{name}.parquet" for name in "ab"]
    assert files[0].size_bytes == len(data) and files[0].version != files[1].version
    assert storage.read_range(files[1], 50, 9000) == data[::-1][50:9000]
    storage.check_writable(f"{bucket}/run")
    assert storage.names_in(bucket) == ["shards"]
    with pytest.raises(UserError, match=rf"cannot read {bucket}/none: it does not exist"):
        storage.read_bytes(f"{bucket}/none")
    storage.remove(f"{bucket}/shards")
    assert not storage.exists(f"{bucket}/shards/a.parquet")
