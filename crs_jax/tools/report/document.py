"""A page as one file: nothing is fetched, no script runs, and it follows the reader's light or dark."""

from __future__ import annotations

from crs_jax.tools.report.html import Html, join, tag
from crs_jax.tools.report.style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, body: Html) -> Html:
    """The whole page around `body`."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(STYLE)),
    )
    return join([Html("<!doctype html>\n"), tag("html", head, tag("body", body), lang="en"), Html("\n")])
