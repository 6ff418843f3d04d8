"""What must not be seen: secrets in settings, URLs and messages are replaced by `***`,
by rules that are only here.

Of the options of a store only those with a harmless name are shown, whatever the others are called and hold.
Of a URL with a query, scheme, host and path are shown:
signatures and keys in queries go by too many names to know them all.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Any

MASK = "***"
OPTIONS = "storage_options"

# a name with one of these words holds a secret, wherever it stands:
# in settings, in the query of a URL, in a message
_WORDS = (
    r"secret|passw|passphrase|token|credential|signature|authorization|bearer|api_?key|access_?key|account_?key|private|cookie"
    r"|customer_?key|hmac|sas\b"
)
_SECRET_NAME = re.compile(rf"(?i)({_WORDS})|^(key|sig|auth|auth_key|pwd|pat|username|connection_string)$")
_PAIR = re.compile(
    rf"(?i)([\w.-]*(?:{_WORDS})[\w-]*|\bstorage_options\.[\w.-]+|\bsig|\bpwd|\bhdnts|\bhdnea)"  # a name
    r"(['\"]?\s*[=:]\s*)(?!\*\*\*)['\"]?(?:(?:bearer|basic)\s+)?[^\s&'\",;)}]+"  # and its value
)
_USER = re.compile(r"(?<=://)[^/@\s]+@")
# in stores other than web servers "?" may be a letter of a name or stand for one
_QUERY = re.compile(
    r"((?:\bhttps?://[^\s?'\"<>]*)\?|(?:\b[a-z][a-z0-9+.-]*://[^\s?'\"<>]*)\?(?=[^\s'\"<>]*=))[^\s'\"<>]*"
)

# options of fsspec and its stores that say where and how, and nothing that opens a door
_HARMLESS = frozenset([
    "access", "account_name", "acl", "addressing_style", "anon", "asynchronous", "auto_mkdir", "block_size",
    "cache_regions", "cache_type", "compression", "connect_timeout", "consistency", "default_block_size",
    "default_cache_type", "default_fill_cache", "default_location", "encoding", "endpoint", "endpoint_url",
    "fixed_upload_size", "follow_redirects", "location", "max_attempts", "max_concurrency",
    "max_pool_connections", "mode", "project", "read_timeout", "region", "region_name", "repo_type",
    "requester_pays", "requests_timeout", "retries", "retry_mode", "revision", "s3_accelerate",
    "session_kwargs", "signature_version", "simple_links", "skip_instance_cache", "timeout",
    "total_max_attempts", "trust_env", "use_listings_cache", "use_ssl", "user_agent", "version_aware",
])  # fmt: skip

_lock = threading.Lock()
_known: set[str] = set()


def remember(values: Iterable[Any]) -> None:
    """Notes secret values of this process, so that `masked` finds them in any text.
    Short ones are too common to hide.
    """
    with _lock:
        _known.update(value for value in values if isinstance(value, str) and len(value) >= 6)


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def masked_url(url: str) -> str:
    """A path or URL as it may be shown: no user, no query, and no secret that was remembered."""
    shown = _without_known(url)
    return _QUERY.sub(rf"\1{MASK}", _USER.sub(f"{MASK}@", shown)) if "://" in shown else shown


def masked(text: str) -> str:
    """A text without the secrets that were remembered, users and queries of URLs,
    and `secret=...` of any kind.
    """
    return _PAIR.sub(rf"\1\2{MASK}", masked_url(text))


def _without_known(text: str) -> str:
    with _lock:
        known = sorted(_known, key=len, reverse=True)
    for value in known:
        text = text.replace(value, MASK)
    return text


def masked_tree(value: Any, name: str = "") -> Any:
    """Plain dicts, lists and scalars with every text under a secret's name replaced,
    and URLs without their secrets.

    `name` is that of the setting, dotted or not.
    """
    return _tree(value, name.rsplit(".", 1)[-1], f".{OPTIONS}." in f".{name}.")


def _tree(value: Any, name: str, of_store: bool) -> Any:
    if isinstance(value, dict):
        return {
            (masked(key) if isinstance(key, str) else key): _tree(
                inner, str(key), of_store or str(key) == OPTIONS
            )
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_tree(inner, name, of_store) for inner in value]
    if value is None or value == "":
        return value
    if _is_secret(value, name, of_store):
        return MASK
    return masked(value) if isinstance(value, str) and "://" in value else value


def _is_secret(value: Any, name: str, of_store: bool) -> bool:
    if of_store:
        return name not in _HARMLESS
    return isinstance(value, str) and is_secret_name(name)


def secrets_in(value: Any, name: str = "") -> list[str]:
    """The values that `masked_tree` would replace, as texts."""
    return _secrets(value, name.rsplit(".", 1)[-1], f".{OPTIONS}." in f".{name}.")


def _secrets(value: Any, name: str, of_store: bool) -> list[str]:
    if isinstance(value, dict):
        return [
            text
            for key, inner in value.items()
            for text in _secrets(inner, str(key), of_store or str(key) == OPTIONS)
        ]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in _secrets(inner, name, of_store)]
    if value is None or value == "" or isinstance(value, bool):
        return []
    return [str(value)] if _is_secret(value, name, of_store) else []
