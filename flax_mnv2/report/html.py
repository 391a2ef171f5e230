"""HTML from values: whatever is no :class:`Html` is text, and escaped where it is put in."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

_VOID = ("img", "meta", "wbr")
# What no HTML document may hold, and marks that would turn round the text after them.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


class Html(str):
    """Text that is HTML already; made by the functions below alone."""

    __slots__ = ()


def text(value: Any) -> Html:
    """Returns a value as HTML: as it is if it is Html, else escaped, forbidden characters as U+FFFD."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(_FORBIDDEN.sub("\ufffd", str(value)), quote=True))


def joined(parts: Iterable[Any]) -> Html:
    """Returns parts one after the other."""
    return Html("".join(map(text, parts)))


def element(name: str, /, *children: Any, **attributes: Any) -> Html:
    """Returns an element; ``class_`` is the attribute class, other underscores are hyphens, None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{joined(children)}</{name}>")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], *, wraps: bool = False) -> Html:
    """Returns a table that scrolls sideways where the screen is narrow; cells may be elements ``td`` themselves.

    Cells after the first break within words if it ``wraps``, as paths want it.
    """
    body = joined(element("tr", *map(_cell, row)) for row in rows)
    top = element("thead", element("tr", *(element("th", title) for title in head))) if head else ""
    return scrolling(element("table", top, element("tbody", body)), wraps=wraps)


def scrolling(content: Html, *, wraps: bool = False) -> Html:
    """Returns a table's frame; ``wraps`` as of ``table``."""
    return element("div", content, class_="scroll wraps" if wraps else "scroll")


def facts(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """Returns a table of names and values."""
    return table((), ((element("th", name, scope="row"), value) for name, value in pairs), wraps=True)


def details(summary: Any, *children: Any, open_: bool = False) -> Html:
    """Returns what opens when its summary is clicked."""
    return element("details", element("summary", summary), *children, open="" if open_ else None)


def section(name: str, title: str, *children: Any) -> Html:
    """Returns a section with a heading, which ``#name`` leads to."""
    return element("section", element("h2", title), *children, id=name)


def number(value: Any) -> str:
    """Returns a number as a person reads it: whole ones in groups, fractions with four digits; a dash for none."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"


def _cell(value: Any) -> Html:
    if isinstance(value, Html) and value.startswith(("<td", "<th")):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        bar = f"--part:{100 * value:.1f}%" if isinstance(value, float) and 0 <= value <= 1 else None
        return element("td", number(value), class_="number" + (" bar" if bar else ""), style=bar)
    return element("td", number(value) if value is None else value)
