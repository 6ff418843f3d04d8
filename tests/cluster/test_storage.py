"""The same behaviour on a local disk, in memory and on a real S3 server."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import s3fs

from cluster import storage
from cluster.errors import UserError
from tests.conftest import S3Server


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder's URL in each kind of store."""
    if request.param == "local":
        return str(tmp_path / "a folder")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    server: S3Server = request.getfixturevalue("s3_server")
    return f"{server.url}/{uuid.uuid4().hex}"


def test_write_read_overwrite_remove(folder: str) -> None:
    url = storage.join(folder, "sub", "file.bin")
    assert not storage.exists(url)
    storage.write_bytes(url, b"one")
    assert storage.read_bytes(url) == b"one"
    storage.write_bytes(url, b"two")
    assert storage.read_bytes(url) == b"two"
    storage.remove(url)
    assert not storage.exists(url)
    storage.remove(url)  # nothing to remove is fine


def test_json_comes_back_and_refuses_nan(folder: str) -> None:
    url = storage.join(folder, "result.json")
    value = {"loss": 0.5, "names": ["ä", None], "nested": {"steps": 3}}
    storage.write_json(url, value)
    assert storage.read_json(url) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(url, {"loss": float("nan")})
    assert storage.read_json(url) == value
    storage.write_bytes(url, b"{broken")
    with pytest.raises(UserError, match=r"result\.json is not valid JSON"):
        storage.read_json(url)


def test_names_and_removal_of_a_tree(folder: str) -> None:
    assert storage.names_in(folder) == []
    for name in ("b/2", "a", "b/1"):
        storage.write_bytes(storage.join(folder, name), b"x")
    assert storage.names_in(folder) == ["a", "b"]
    assert storage.names_in(storage.join(folder, "b")) == ["1", "2"]
    storage.remove(storage.join(folder, "b"))
    assert storage.names_in(folder) == ["a"]


def test_find_files_by_file_folder_and_glob(folder: str) -> None:
    names = (
        "part-1.parquet",
        "part-0.parquet",
        "deep/er/x.parquet",
        "notes.txt",
        ".hidden.parquet",
        "_tmp/y.parquet",
    )
    for name in names:
        storage.write_bytes(storage.join(folder, name), name.encode())

    def found(url: str) -> list[str]:
        return [file.url.split("/")[-1] for file in storage.find_files(url, ".parquet")]

    assert found(folder) == ["x.parquet", "part-0.parquet", "part-1.parquet"]
    assert found(storage.join(folder, "part-*.parquet")) == ["part-0.parquet", "part-1.parquet"]
    assert found(storage.join(folder, "**", "*.parquet")).count("x.parquet") == 1
    (one,) = storage.find_files(storage.join(folder, "part-0.parquet"), ".parquet")
    assert one.size_bytes == len("part-0.parquet")
    assert storage.read_bytes(one.url) == b"part-0.parquet"  # the listed URL opens
    assert found(storage.join(folder, "nowhere")) == []


def test_a_files_version_changes_with_its_content(folder: str) -> None:
    url = storage.join(folder, "x.parquet")
    versions = set()
    for content in (b"one", b"two"):
        storage.write_bytes(url, content)
        versions.add(storage.find_files(folder, ".parquet")[0].version)
    assert len(versions) == 2
    assert storage.find_files(folder, ".parquet")[0].version in versions  # and only then


def test_upload_and_random_access(folder: str, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 1000)
    url = storage.join(folder, "copy.bin")
    storage.upload(source, url)
    with storage.open_input(url) as file:
        file.seek(256 * 999 + 7)
        assert file.read(3) == bytes([7, 8, 9])


def test_moved_to(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, url = tmp_path / "source", f"{folder}/moved/target"
    storage.make_dirs(f"{folder}/moved")
    source.write_bytes(b"one")
    storage.move_to(source, url)
    assert storage.read_bytes(url) == b"one" and not source.exists()
    monkeypatch.setattr(os, "replace", failing_for(source))  # as over the border of a file system
    source.write_bytes(b"two")
    storage.move_to(source, url)
    assert storage.read_bytes(url) == b"two" and not source.exists()


def failing_for(source: Path) -> Callable[..., None]:
    real = os.replace

    def replace(old: Path, new: Path) -> None:
        if old == source:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(old, new)

    return replace


def test_errors_name_the_url(folder: str) -> None:
    url = storage.join(folder, "missing.bin")
    with pytest.raises(UserError, match=r"cannot read .*missing\.bin: it does not exist"):
        storage.read_bytes(url)
    with pytest.raises(UserError, match=r"cannot read .*missing\.bin"), storage.open_input(url) as file:
        file.read()


def test_check_writable_leaves_nothing(folder: str) -> None:
    storage.make_dirs(folder)
    storage.check_writable(folder)
    assert storage.names_in(folder) == []
    storage.check_writable(storage.join(folder, "new", "run"))
    assert storage.names_in(folder) == []


def test_no_new_folders_removes_what_is_new_and_empty(tmp_path: Path) -> None:
    deep = str(tmp_path / "new" / "run")
    with storage.no_new_folders(deep):
        storage.check_writable(deep)
    assert not (tmp_path / "new").exists()
    with storage.no_new_folders(deep):
        storage.write_bytes(storage.join(deep, "kept"), b"somebody else's")
    assert storage.names_in(deep) == ["kept"]
    (tmp_path / "empty").mkdir()
    with storage.no_new_folders(str(tmp_path / "empty")):
        pass
    assert (tmp_path / "empty").exists()


def test_a_reader_sees_the_old_or_the_new_never_a_part(tmp_path: Path) -> None:
    url = str(tmp_path / "state.bin")
    contents = {bytes([n]) * 300_000 for n in range(4)}
    storage.write_bytes(url, min(contents))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                storage.write_bytes(url, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {storage.read_bytes(url) for _ in range(300)} <= contents
    finally:
        stop.set()
        writer.join()
    assert os.listdir(tmp_path) == ["state.bin"]  # no temporary file stays


def test_a_failed_local_write_keeps_the_old_and_leaves_no_temporary(tmp_path: Path) -> None:
    url = str(tmp_path / "kept.bin")
    storage.write_bytes(url, b"old")
    with pytest.raises(UserError, match="cannot write"):
        storage.upload(tmp_path / "no such source", url)
    assert storage.read_bytes(url) == b"old"
    assert os.listdir(tmp_path) == ["kept.bin"]


def test_names_at_the_systems_limit(tmp_path: Path) -> None:
    url = str(tmp_path / ("n" * 255))
    storage.write_bytes(url, b"x")
    assert storage.read_bytes(url) == b"x"


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("runs/a", True),
        ("/runs/a", True),
        ("file:///runs/a", True),
        ("s3://b/a", False),
        ("memory://a", False),
    ],
)
def test_what_is_local(url: str, local: bool) -> None:
    assert storage.is_local(url) is local


def test_absolute_and_join(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.absolute("runs/a") == str(tmp_path / "runs" / "a")
    assert storage.absolute("~/a") == str(tmp_path / "home" / "a")
    assert storage.absolute("s3://b/a/") == "s3://b/a"
    assert storage.join("s3://b/", "/a/", "c") == "s3://b/a/c"
    assert storage.local_path("file:///runs/a") == Path("/runs/a")


def test_unknown_protocols_and_empty_urls_are_refused() -> None:
    with pytest.raises(UserError, match="cannot open nowhere://x"):
        storage.exists("nowhere://x")
    with pytest.raises(UserError, match="empty URL"):
        storage.exists("")


def test_a_missing_bucket_is_told(s3_server: S3Server) -> None:
    with pytest.raises(UserError, match="cannot write to s3://no-such-bucket-here"):
        storage.check_writable("s3://no-such-bucket-here/runs")


def test_missing_credentials_are_told_without_a_traceback(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(UserError, match=rf"cannot write to {s3_server.url}: .*credentials"):
            storage.check_writable(s3_server.url)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permission denied"):
        storage.check_writable(str(tmp_path))


def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write to"):
        storage.check_writable(str(tmp_path / "file"))


def test_links_to_files_are_files(tmp_path):
    """The cache of Hugging Face holds links to files that lie elsewhere."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    (blobs / "1a2b").write_bytes(b"content")
    (folder / "a.parquet").symlink_to(blobs / "1a2b")
    (folder / "nothing.parquet").symlink_to(blobs / "missing")
    for url in (folder, folder / "a.parquet", f"{folder}/*.parquet"):
        (found,) = storage.find_files(str(url), ".parquet")
        assert found.url.endswith("a.parquet") and found.size_bytes == 7
        assert found.version == str((blobs / "1a2b").stat().st_mtime)
        assert storage.read_range(found, 0, 7) == b"content"


def test_a_relative_path_in_a_job_must_name_something_that_came_along(tmp_path, monkeypatch):
    copy = tmp_path / "session/runtime_resources/working_dir_files/_ray_pkg_1"
    (copy / "samples").mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert storage.absolute("samples") == str(copy / "samples")
    assert storage.absolute("/shared/run") == "/shared/run"
    assert storage.absolute("s3://bucket/run/") == "s3://bucket/run"
    with pytest.raises(UserError, match="runs/first is a relative path, which in a Ray job"):
        storage.absolute("runs/first")
