"""Markup that cannot forget to escape: a plain string given to a tag is text, only `Html` is markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

VOID = frozenset({"br", "col", "hr", "link", "meta"})
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """Finished markup."""

    __slots__ = ()


def escape(value: Any) -> Html:
    """Text as markup; characters that HTML does not allow become U+FFFD."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", str(value)), quote=True))


def join(parts: Iterable[Any], between: Any = "") -> Html:
    """The parts, escaped where they are text."""
    return Html(escape(between).join(escape(part) for part in parts))


def tag(tag_name: str, *children: Any, **attributes: Any) -> Html:
    """An element: `tag("td", 3, class_="n")`; `_` in a name is `-`, None leaves an attribute out, True has no value."""
    words = [tag_name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Html(start) if tag_name in VOID else Html(f"{start}{join(children)}</{tag_name}>")


def section(identity: str, title: str, *children: Any) -> Html:
    """A section of the page; `identity` is its anchor."""
    return tag("section", tag("h2", title), *children, id=identity)


def missing(text: str) -> Html:
    """A plain word that something is not there."""
    return tag("p", text, class_="missing")


def note(*children: Any) -> Html:
    """A line of explanation in small print."""
    return tag("p", *children, class_="note")


def folded(title: Any, *children: Any, is_open: bool = False) -> Html:
    """Content that opens on demand."""
    return tag("details", tag("summary", title), *children, open=is_open)
