"""What must not be seen: secrets in settings, URLs and messages are replaced by `***`, by rules that stand here alone."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Any

MASK = "***"

# a name with one of these words holds a secret, wherever it stands: in settings, in the query of a URL, in a message
_WORDS = r"secret|passw|token|credential|signature|authorization|api_?key|access_?key|account_?key|private|cookie|sas\b"
_SECRET_NAME = re.compile(rf"(?i)({_WORDS})|^(key|sig|auth|username|connection_string)$")
_PAIR = re.compile(
    rf"(?i)([\w.-]*(?:{_WORDS})[\w-]*|\bstorage_options\.key|\bsig)"  # a name
    r"(['\"]?\s*[=:]\s*)(?!\*\*\*)['\"]?[^\s&'\",;)}]+"  # and its value
)
_USER = re.compile(r"(?<=://)[^/@\s]+@")

_lock = threading.Lock()
_known: set[str] = set()


def remember(values: Iterable[Any]) -> None:
    """Notes secret values of this process, so that `masked` finds them in any text. Short ones are too common to hide."""
    with _lock:
        _known.update(value for value in values if isinstance(value, str) and len(value) >= 6)


def masked(text: str) -> str:
    """A text without the secrets that were remembered, user:password in URLs, and `secret=...` of any kind."""
    with _lock:
        known = sorted(_known, key=len, reverse=True)
    for value in known:
        text = text.replace(value, MASK)
    return _PAIR.sub(rf"\1\2{MASK}", _USER.sub(f"{MASK}@", text))


def masked_tree(value: Any, name: str = "") -> Any:
    """Plain dicts, lists and scalars with every text under a secret's name replaced, and URLs without their secrets."""
    if isinstance(value, dict):
        return {key: masked_tree(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [masked_tree(inner, name) for inner in value]
    if not isinstance(value, str) or not value:
        return value
    if _SECRET_NAME.search(name):
        return MASK
    return masked(value) if "://" in value else value


def secrets_in(value: Any, name: str = "") -> list[str]:
    """The texts that `masked_tree` would replace."""
    if isinstance(value, dict):
        return [text for key, inner in value.items() for text in secrets_in(inner, str(key))]
    if isinstance(value, list):
        return [text for inner in value for text in secrets_in(inner, name)]
    return [value] if isinstance(value, str) and value and _SECRET_NAME.search(name) else []
