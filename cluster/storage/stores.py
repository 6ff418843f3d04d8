"""Opening stores: which file system a URL means, with which options,
and what to install when its library is missing.

Stores find their keys where their libraries look (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, HF_TOKEN, ...).
Further options, such as `{"endpoint_url": ..., "key": ..., "secret": ..., "anon": true}` for s3://, are
given once a process by `use_options`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cluster import secrets
from cluster.errors import UserError
from cluster.storage import web_guard

# protocol -> the package that opens it and the extra of this project that installs it
PACKAGES = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "hf": ("huggingface_hub", "hf"),
    "http": ("aiohttp", "http"),
    "https": ("aiohttp", "http"),
}
OTHER_NAMES = {"s3a": "s3", "gcs": "gs"}
CONNECTIONS = 64  # to one store at a time; botocore's default of 10 would queue the parallel reads of a rank
CONNECT_SECONDS, SILENT_SECONDS = 10, 30

_options: dict[str, dict[str, Any]] = {}


def use_options(urls: str | Sequence[str], options: Mapping[str, Any]) -> None:
    """Opens the stores (protocol and bucket or host) of these URLs with options of fsspec from now on,
    in this process.

    Raises UserError when an option holds the mask that stands for a secret in a written settings.yaml.
    """
    plain = _plain(options)
    secret = secrets.secrets_in(plain, secrets.OPTIONS)
    if secrets.MASK in secret:
        raise UserError(
            f"data.storage_options holds {secrets.MASK!r}, which replaces a secret that was not written "
            "down; give the secret again, or in the store's environment variables"
        )
    secrets.remember(secret)
    for url in [urls] if isinstance(urls, str) else urls:
        if plain and not is_local(url):
            _options[_store(url)] = plain


def options_of(url: str) -> dict[str, Any]:
    """What `use_options` gave for the store of a URL; workers in other processes need to be told as well."""
    return _options.get(_store(url), {})


def is_local(url: str) -> bool:
    """True for plain paths and file:// URLs."""
    return "://" not in url or url.startswith(("file://", "local://"))


def filesystem(
    url: str, *, patient: bool = True, guarded: bool = False
) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path inside it.

    Args:
        url: a path or any URL that fsspec can open.
        patient: whether the store's library tries failed requests again by itself; False where we count the
            attempts.
        guarded: the URL stands in data, not in a command:
            redirects of web servers are looked at (`cluster.storage.web_guard`).

    Raises UserError for an unknown protocol, one whose package is missing (with the command that installs
    it), or options that it does not know.
    """
    if not url:
        raise UserError("an empty URL; give a path or something like s3://bucket/folder")
    if is_local(url):
        # not through url_to_fs, which would split a name that holds "::"
        fs = LocalFileSystem()
        return fs, fs._strip_protocol(os.path.expanduser(url) if "://" not in url else url)
    protocol = OTHER_NAMES.get(url.partition("://")[0], url.partition("://")[0])
    try:
        fs, path = fsspec.core.url_to_fs(url, **_with_defaults(protocol, options_of(url), patient, guarded))
    except ImportError as error:
        if protocol not in PACKAGES:
            raise UserError(f"cannot open {secrets.masked(url)}: {error}") from error
        package, extra = PACKAGES[protocol]
        raise UserError(
            f"cannot open {secrets.masked(url)}: the package {package} is missing; "
            f"pip install --constraint constraints.txt 'fovea[{extra}]' (or: pip install {package})"
        ) from error
    except (ValueError, TypeError) as error:
        given = f" with storage_options {', '.join(sorted(options_of(url)))}" if options_of(url) else ""
        raise UserError(f"cannot open {secrets.masked(url)}{given}: {secrets.masked(str(error))}") from error
    if not patient and protocol == "s3":
        fs.retries = 1  # s3fs has a loop of its own around botocore's
    return fs, path


def local_path(url: str) -> Path:
    """The path of a local URL."""
    assert is_local(url), url
    return Path(filesystem(url)[1])


def _store(url: str) -> str:
    parts = urlsplit(url)
    return f"{OTHER_NAMES.get(parts.scheme, parts.scheme)}://{parts.netloc.rpartition('@')[2]}"


def _plain(value: Any) -> Any:
    # OmegaConf's dicts and lists would not be known to the stores' libraries
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _with_defaults(protocol: str, options: dict[str, Any], patient: bool, guarded: bool) -> dict[str, Any]:
    if protocol == "s3":
        config = {"max_pool_connections": CONNECTIONS, **options.get("config_kwargs", {})}
        if not patient:
            config["retries"] = {"total_max_attempts": 1}
        # other processes write as well, so what a folder held a moment ago is no answer
        return {"use_listings_cache": False, **options, "config_kwargs": config}
    if protocol in ("http", "https") and guarded:
        with suppress(ImportError):  # said better where the file system is opened
            client = {**options.get("client_kwargs", {}), "trace_configs": [web_guard.guard()]}
            options = {**options, "client_kwargs": client}
    if protocol in ("http", "https") and "timeout" not in options.get("client_kwargs", {}):
        try:
            from aiohttp import ClientTimeout
        except ImportError:  # said better where the file system is opened
            return options
        # aiohttp would cut off what takes five minutes in all, however well it flows
        timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        return {**options, "client_kwargs": {**options.get("client_kwargs", {}), "timeout": timeout}}
    return options
