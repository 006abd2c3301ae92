"""HTML and SVG of which every text is escaped, whoever wrote it."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from fastmeta._text import printable_lines

#: elements without an end
_VOID = ("img", "meta", "br", "line", "rect", "polyline", "polygon", "circle")


class Markup(str):
    """Is HTML already; every other text is escaped where it is put into an element."""


def escaped(value: object) -> Markup:
    """`value` as text of a page: no markup, no control and direction characters."""
    return value if isinstance(value, Markup) else Markup(html.escape(printable_lines(value), quote=True))


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """``element("td", "a<b", class_="n")`` is ``<td class="n">a&lt;b</td>``.

    Children are texts, markup, None, which is nothing, or rows of such. Of the attributes None is left out, and an
    underscore is a hyphen; one at the end is dropped.
    """
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(printable_lines(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{told}>" if name in ("img", "meta", "br") else f"<{name}{told}/>")
    return Markup(f"<{name}{told}>{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Markup:
    """These one after the other."""
    parts = []
    for child in children:
        if child is None:
            continue
        rows = isinstance(child, Iterable) and not isinstance(child, str)
        parts.append(joined(child) if rows else escaped(child))
    return Markup("".join(parts))


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]], numbers_from: int = 1) -> Markup:
    """Cells from column `numbers_from` on are numbers, to the right."""

    def line(cells: Iterable[Any], kind: str) -> Markup:
        made = (element(kind, cell, class_="n" if k >= numbers_from else None) for k, cell in enumerate(cells))
        return element("tr", list(made))

    return element(
        "div",
        element("table", element("thead", line(head, "th")), element("tbody", [line(row, "td") for row in rows])),
        class_="wide",
    )
