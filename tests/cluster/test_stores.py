"""Options of stores and their secrets: given once, never shown."""

from __future__ import annotations

import subprocess
import sys
import uuid
from dataclasses import dataclass
from typing import Any

import pytest
import s3fs

from cluster import settings, storage
from cluster.errors import EXIT_USER_ERROR, UserError, run_command
from cluster.secrets import masked, masked_tree
from cluster.settings import load_settings, setting
from cluster.storage import stores
from tests.conftest import S3Server

SECRET = "wJalrXUtnFEMI-K7MDENG"
OPTIONS = {
    "key": "AKIA-some-key",
    "secret": SECRET,
    "anon": False,
    "client_kwargs": {"region_name": "eu-west-1"},
}


@dataclass(frozen=True)
class Data:
    url: str = setting("s3://b", help="where")
    storage_options: dict[str, Any] = setting({}, help="options")


@dataclass(frozen=True)
class Schema:
    data: Data = setting(Data, help="data")


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_options", {})
    monkeypatch.setattr("cluster.secrets._known", set())


def test_settings_are_written_without_secrets_and_compare_without_them() -> None:
    overrides = [f"data.storage_options.secret={SECRET}", "data.storage_options.anon=false"]
    loaded = load_settings(Schema, None, [*overrides, "data.url='https://me:pass-word@h/x?sig=abcdef'"])
    assert loaded.data.storage_options["secret"] == SECRET
    text = settings.to_yaml(loaded)
    assert SECRET not in text and "pass-word" not in text and "abcdef" not in text
    assert settings.to_dict(loaded)["data"]["storage_options"] == {"secret": "***", "anon": False}
    other = load_settings(
        Schema, None, ["data.storage_options.secret=rotated", *overrides[1:], "data.url=s3://b"]
    )
    assert [line.partition(":")[0] for line in settings.differences(text, other, ignored=[])] == ["data.url"]
    with pytest.raises(UserError, match="give the secret again"):
        storage.use_options("s3://b", settings.to_dict(loaded)["data"]["storage_options"])


def test_a_misspelt_override_does_not_show_its_secret(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        load_settings(Schema, None, [f"data.storage_option.secret={SECRET}"])
        return 0

    assert run_command(main) == EXIT_USER_ERROR
    shown = capsys.readouterr().err
    assert SECRET not in shown and "did you mean" in shown


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{SECRET}@host/x", f"https://h/x?X-Amz-Signature={SECRET}&a=1", f"token: {SECRET}",
        "{'secret': "
        f"'{SECRET}'}}", f"data.storage_options.key={SECRET}", f"HF_TOKEN={SECRET}", f"?sig={SECRET}",
    ],
)  # fmt: skip
def test_texts_are_masked(text: str) -> None:
    assert SECRET not in masked(text) and "***" in masked(text)


def test_ordinary_texts_and_settings_stay() -> None:
    for text in (
        "encoder.arguments.num_tokens=3 is fine",
        "s3://bucket/a=b/c.parquet",
        "keep_checkpoints=0",
    ):
        assert masked(text).startswith(text[:20])
    tree = {
        "name": "adamw",
        "arguments": {"pool_tokens": 3, "layers": ["a", "b"]},
        "url": "s3://bucket/key=1",
    }
    assert masked_tree(tree) == tree


def test_options_open_the_store_they_belong_to(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any environment variable: endpoint, key, secret and region from the options alone."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    url = f"{s3_server.url}/{uuid.uuid4().hex}"
    try:
        storage.use_options([url, "/some/local/folder"], {**OPTIONS, "endpoint_url": s3_server.endpoint})
        storage.write_bytes(url, b"x")
        assert storage.read_bytes(url) == b"x"
        assert (
            stores.options_of("s3://another-bucket/x") == {}
            and stores.options_of("/some/local/folder") == {}
        )
        assert stores.options_of(s3_server.url.replace("s3:", "s3a:"))["secret"] == SECRET
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_errors_do_not_show_secrets_or_unknown_options(s3_server: S3Server) -> None:
    storage.use_options(s3_server.url, {"secret": SECRET, "endpoint_url": f"http://{SECRET}.invalid:1"})
    with pytest.raises(UserError) as caught, storage.explained("read", f"{s3_server.url}/x"):
        raise OSError(f"could not connect with {SECRET}")
    assert SECRET not in str(caught.value) and "could not connect with ***" in str(caught.value)
    storage.use_options("http://127.0.0.1:1", {"client_kwargs": 3})
    with pytest.raises(
        UserError, match=r"cannot open http://127\.0\.0\.1:1/x with storage_options client_kwargs"
    ):
        storage.read_bytes("http://127.0.0.1:1/x")


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [("s3://b/x", "s3fs", "s3"), ("gs://b/x", "gcsfs", "gcs"),
     ("hf://datasets/a/b", "huggingface_hub", "hf"),
     ("https://h/x", "aiohttp", "http")],
)  # fmt: skip
def test_a_missing_package_is_told_with_the_command(url: str, package: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"  # importing it now fails
        "from cluster import storage\nfrom cluster.errors import run_command\n"
        f"sys.exit(run_command(lambda: storage.read_bytes({url!r}) and None))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == EXIT_USER_ERROR, result.stderr
    (line,) = result.stderr.splitlines()
    assert f"the package {package} is missing; pip install" in line and f"fovea[{extra}]" in line
