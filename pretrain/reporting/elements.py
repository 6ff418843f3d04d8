"""Elements of HTML and SVG with everything in them escaped: text from the data stays text."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape


def element(name: str, *children: Any, **attributes: Any) -> Markup:
    """`<name attribute="...">children</name>`; children that are no Markup are escaped.

    `class_` is `class` and `stroke_width` is `stroke-width`; numbers are rounded to 0.01;
    an attribute of None is left out.
    """
    parts = [Markup("<{}").format(name)]
    for key, value in attributes.items():
        if value is not None:
            parts.append(Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value)))
    if not children:
        return Markup("").join([*parts, Markup("/>")])
    return Markup("").join(
        [*parts, Markup(">"), *(escape(child) for child in children), Markup("</{}>").format(name)]
    )


def joined(*parts: Any) -> Markup:
    """Elements and texts one after another."""
    return Markup("").join(escape(part) for part in parts)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) < 1e15 else str(value)
    return value
