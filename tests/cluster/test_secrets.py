"""A hundred marked secrets go in by every door of the settings, and none comes out by any."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

import pytest

from cluster import secrets, settings
from cluster.errors import UserError, run_command
from cluster.settings import load_settings, setting, settings_from
from cluster.storage import stores

NAMES = [
    "key", "secret", "token", "password", "passphrase", "pwd", "pat", "bearer", "hmac", "SSECustomerKey",
    "sse_customer_key", "x-api-key", "x_functions_key", "account_key", "sas_token", "connection_string",
    "credential", "client_secret", "refresh_token", "id_token", "cookie", "cookies", "username", "login",
    "pin", "otp", "seed", "salt", "private_key", "cert", "ssl_key", "signing", "what", "foo", "data",
    "value", "headers.Authorization", "headers.X-Vault-Token", "headers.Cookie",
    "client_kwargs.headers.Proxy-Authorization", "client_kwargs.auth", "config_kwargs.proxies.https",
    "s3_additional_kwargs.SSECustomerKey", "s3_additional_kwargs.SSEKMSKeyId",
    "client_kwargs.aws_session_token", "profile", "shared", "anything_else_that_a_store_may_take",
]  # fmt: skip
QUERIES = [
    "sig", "X-Amz-Signature", "X-Amz-Credential", "X-Goog-Signature", "hdnts", "hdnea", "auth_key",
    "verify", "token", "st", "Policy", "Key-Pair-Id", "Signature", "e", "hmac", "md5", "expires_sig",
    "__token__", "k", "s", "ticket", "code",
]  # fmt: skip


@dataclass(frozen=True)
class Data:
    url: Any = setting("s3://b", texts=True, help="where")
    storage_options: dict[str, Any] = setting({}, help="options")


@dataclass(frozen=True)
class Schema:
    data: Data = setting(Data, help="data")
    out: str = setting("o", help="out")
    encoder: str = setting("e", help="encoder")


def mark(number: int) -> str:
    return f"mark{number:04d}wJalrXUtnFEMI"


OPTIONS = [f"data.storage_options.{name}={mark(number)}" for number, name in enumerate(NAMES)]
URLS = [
    f"https://h/x/*.parquet?a=1&{name}={mark(500 + number)}~acl=/*&z=(2)"
    for number, name in enumerate(QUERIES)
]
URLS += [
    f"https://user:{mark(800)}@h/x",
    f"https://{mark(801)}@h/x",
    f"s3://b/k?versionId=1&token={mark(802)}",
]


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_options", {})
    monkeypatch.setattr("cluster.secrets._known", set())


def test_no_marked_secret_comes_out() -> None:
    assert len(OPTIONS) + len(URLS) > 65
    given = [*OPTIONS, f"data.url={json.dumps(URLS)}", f"encoder={URLS[0]}", f"out={URLS[-1]}/out"]
    given.append("data.storage_options.endpoint_url=https://store:9000")
    loaded = load_settings(Schema, None, given)
    assert mark(0) in str(loaded) and mark(500) in str(loaded)  # they did go in
    came_out = [settings.to_yaml(loaded), json.dumps(settings.to_dict(loaded))]
    came_out += settings.differences("data: {url: s3://other}\n", loaded, ignored=[])
    stores.use_options(["s3://b"], loaded.data.storage_options)
    for number in range(len(NAMES)):  # once options are in use their values are known, wherever they turn up
        came_out.append(secrets.masked(f"could not connect: {mark(number)} was refused"))
    for url in URLS:
        came_out += [
            secrets.masked(f"cannot read '{url}': 403"),
            secrets.masked_url(url),
            secrets.masked(f"{url}, {url}"),
        ]
    for wrong in [*OPTIONS, *(f"data.url={url}" for url in URLS)][::3]:
        came_out.append(
            shown_by(lambda wrong=wrong: load_settings(Schema, None, [wrong.replace("data.", "dat.", 1)]))
        )
    tree = {"data": {"storage_options": {"key": mark(0)}, "url": 3, "urll": URLS[0]}}
    came_out.append(shown_by(lambda: settings_from(Schema, tree, where="x")))
    whole = "\n".join(came_out)
    assert "mark" not in whole, [line for line in whole.splitlines() if "mark" in line][:5]
    assert "https://h/x/*.parquet?***" in whole and "https://store:9000" in whole


def shown_by(action: Any) -> str:
    shown = io.StringIO()
    with redirect_stderr(shown):
        assert run_command(action) == 2
    return shown.getvalue()


def test_headers_in_messages() -> None:
    for scheme in ("Bearer ", "Basic ", "bearer ", ""):
        assert mark(0) not in secrets.masked(f"sent {{'Authorization': '{scheme}{mark(0)}'}} to it")
        assert mark(0) not in secrets.masked(f"Proxy-Authorization: {scheme}{mark(0)}")


def test_a_traceback_shows_no_secret() -> None:
    code = (
        "from cluster.errors import run_command\nfrom cluster import secrets\n"
        f"secrets.remember(['{mark(1)}'])\n"
        f"def main(): raise ZeroDivisionError('at https://h/x?st={mark(2)} with {mark(1)}')\n"
        "run_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ZeroDivisionError: at https://h/x?*** with ***" in done.stderr
    assert "Traceback" in done.stderr and "mark" not in done.stderr.splitlines()[-1]


def test_what_is_harmless_is_shown() -> None:
    tree = {
        "url": [
            "s3://b/year=2024/*.parquet",
            "s3://b/img?.parquet",
            "https://h/x.parquet",
            "/local/a=b?.parquet",
        ],
        "storage_options": {
            "anon": True,
            "client_kwargs": {"region_name": "eu-west-1"},
            "max_concurrency": 8,
        },
        "encoder": {"arguments": {"num_tokens": 3, "key": ""}},
    }
    assert secrets.masked_tree(tree) == tree
    assert secrets.masked_url("/data/token=5/x.jpg") == "/data/token=5/x.jpg"


def test_masks_in_place_of_secrets_are_refused() -> None:
    for name in ("pwd", "what", "secret"):
        with pytest.raises(UserError, match="give the secret again"):
            stores.use_options("s3://b", {name: secrets.MASK})
