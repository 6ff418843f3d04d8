"""The page itself: what is on it, and how it becomes one HTML file."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pretrain.encoders.saving import code_version
from pretrain.reporting.verdict import Verdict

# a number with its unit, as far as it stands by itself; emphasised in the verdict
_NUMBER = re.compile(r"(?<![\w.#&/-])[+±−]?\d(?:[\d,.]*\d)?(?:e-?\d+)?(?: %| points)?(?![\w/])")


@dataclass(frozen=True)
class Tile:
    """One number in large type."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page with an anchor."""

    id: str
    title: str
    body: Markup
    lead: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart in its frame: `value` is its newest number, `keys` name its lines when there are several."""

    title: str
    svg: Markup
    value: str = ""
    note: str = ""
    keys: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """Everything that a page shows; texts are plain, whatever they hold."""

    kind: str
    title: str
    verdict: Verdict
    source: str
    chips: Sequence[tuple[str, str]] = ()
    tiles: Sequence[Tile] = ()
    notes: Sequence[str] = ()
    sections: Sequence[Section] = ()
    written_at: str = field(
        default_factory=lambda: datetime.datetime.now().astimezone().strftime("%d %b %Y, %H:%M")
    )


def emphasised(text: str) -> Markup:
    """A sentence with its numbers in bold; all else in it is escaped."""
    escaped = str(escape(text))
    return Markup(_NUMBER.sub(lambda found: f"<b>{found[0]}</b>", escaped))  # noqa: S704 - escaped a line above


@functools.cache  # an environment keeps the templates that it has compiled
def _environment(package: str | None) -> Environment:
    loaders: list[BaseLoader] = [PackageLoader(package)] if package else []
    environment = Environment(
        loader=ChoiceLoader([*loaders, PackageLoader("pretrain.reporting")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["emphasised"] = emphasised
    return environment


class Templates:
    """The templates of one package and, beneath them, those that all pages share. Everything is escaped."""

    def __init__(self, package: str | None = None) -> None:
        self._environment = _environment(package)
        self._package = package

    def render(self, name: str, **values: Any) -> Markup:
        """A part of a page."""
        return Markup(self._environment.get_template(name).render(values))  # noqa: S704 - autoescape is on

    def page(self, page: Page) -> bytes:
        """The file, UTF-8."""
        sheets = ["pretrain.reporting", self._package]
        style = "".join(
            sheet.read_text("utf-8")
            for package in dict.fromkeys(filter(None, sheets))
            if (sheet := files(package) / "templates" / "style.css").is_file()
        )
        whole = self.render("page.html", page=page, style=Markup(style), version=code_version())  # noqa: S704 - ours
        return str(whole).encode("utf-8", "replace")
