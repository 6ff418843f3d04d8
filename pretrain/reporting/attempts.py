"""A part of the page that cannot be made does not affect the others."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from cluster.errors import UserError, printable
from cluster.secrets import masked
from pretrain.reporting.elements import element
from pretrain.reporting.page import Section

MAX_CHARACTERS = 400


def attempted(id: str, title: str, make: Callable[[], Section]) -> Section:
    """The section that `make` gives, or one that says why there is none."""
    try:
        return make()
    except Exception as error:
        return missing(id, title, error)


def missing(id: str, title: str, error: Exception) -> Section:
    """A section that says why it is empty."""
    text = printable(masked(str(error).strip() or type(error).__name__))
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}"
    return Section(id, title, _apology(text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"))


def _apology(text: str) -> Markup:
    return element(
        "div", element("p", f"This part could not be made: {text}", class_="empty"), class_="card"
    )
