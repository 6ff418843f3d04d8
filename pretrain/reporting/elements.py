"""Elements of HTML and SVG with everything in them escaped: text from the data stays text."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape


def element(name: str, *children: Any, **attributes: Any) -> Markup:
    """`<name attribute="...">children</name>`; children that are no Markup are escaped.

    `class_` is `class` and `stroke_width` is `stroke-width`; numbers are rounded to 0.01;
    an attribute of None is left out.
    """
    tag = escape(name)
    parts: list[str] = ["<", tag]
    for key, value in attributes.items():
        if value is not None:
            parts += [" ", escape(key.rstrip("_").replace("_", "-")), '="', escape(_plain(value)), '"']
    parts += [">", *map(escape, children), "</", tag, ">"] if children else ["/>"]
    # joined as plain text, a page with a thousand points is there in a quarter of the time
    return Markup("".join(parts))  # noqa: S704 - each part is escaped


def joined(*parts: Any) -> Markup:
    """Elements and texts one after another."""
    return Markup("").join(escape(part) for part in parts)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) < 1e15 else str(value)
    return value
