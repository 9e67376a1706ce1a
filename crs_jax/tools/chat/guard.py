"""What stands before the page: the few requests that it makes reach Gradio, and only from the page itself."""

from __future__ import annotations

import ipaddress
import re
import socket
import urllib.parse
from typing import Any

FILES = r"/(?:|favicon\.ico|manifest\.json|theme\.css|(?:assets|static)/(?:[\w-][\w.-]*/)*[\w-][\w.-]*)"
ROUTES = {
    "GET": re.compile(rf"{FILES}|/gradio_api/(?:queue/data|heartbeat/\w+)"),
    "HEAD": re.compile("/"),
    "POST": re.compile("/gradio_api/queue/join"),
}
"""What the page asks for, by method. All else that Gradio has (uploads, files, proxies, its API) is not served."""
LARGEST = 32_768  # bytes of a request's body
POLICY = "; ".join(
    (
        "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'", "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:", "font-src 'self' data:", "connect-src 'self'", "frame-ancestors 'none'",
        "form-action 'self'", "base-uri 'self'",
    )
)  # fmt: skip
"""What a browser may fetch: from here alone, even if some markup asked for more."""


def is_loopback(host: str) -> bool:
    """Whether this machine alone reaches the address."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    return ipaddress.ip_address(str(found).partition("%")[0]).is_loopback


def netloc(origin: str) -> str:
    """Name and port of an origin such as https://talk.example.org; empty for what is none."""
    found = re.fullmatch(r"https?://([^/?#@\s]+)", origin.lower())
    return found[1] if found else ""


def hostname(place: str) -> str:
    """The name in name and port; empty for what is none."""
    try:
        return urllib.parse.urlsplit(f"//{place}").hostname or ""
    except ValueError:
        return ""


class Guard:
    """ASGI middleware.

    Args:
      app: what it stands before.
      host: address served at.
      alone: whether this machine alone reaches that.
      url: origin that visitors use, where a proxy stands between; empty otherwise.
    """

    HEADERS = ((b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"),
               (b"referrer-policy", b"no-referrer"))  # fmt: skip

    def __init__(self, app: Any, host: str, alone: bool, url: str = "") -> None:
        self.app, self.url, self.any_address = app, netloc(url), host in ("0.0.0.0", "::")
        self.names = {host.lower(), "localhost", *(["127.0.0.1", "::1"] if alone else [socket.gethostname().lower()])}
        self.names |= {hostname(self.url)} if url else set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, or answers it by a line that says why not."""
        from starlette.responses import PlainTextResponse

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self.HEADERS]}
            await send(message)

        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # which is 403: the page has none
        elif refusal := self.refusal(scope):
            status, why = refusal
            await PlainTextResponse(why, status)(scope, receive, with_headers)
        else:
            await self.app(scope, receive, with_headers)

    def refusal(self, scope: Any) -> tuple[int, str] | None:
        """Status and reason, for what does not pass."""
        from starlette.requests import Request

        request, app = Request(scope), scope["app"]
        headers, path, method = request.headers, scope["path"], scope["method"]
        hosts = [each.lower() for each in headers.getlist("host")]
        if len(hosts) != 1 or not self._is_own(hostname(hosts[0])):
            return 403, "The page is not served by this name."  # a name made to point here: DNS rebinding
        own = {hosts[0], self.url} - {""}
        followed = path == "/" and headers.get("sec-fetch-mode") == "navigate"  # a link to the page
        if any(netloc(origin) not in own for origin in headers.getlist("origin")) or (
            headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not followed
        ):
            return 403, "Another site's page may not ask here."
        if path == "/gradio_api/startup-events" and not app.startup_events_triggered:
            return None  # which Gradio asks of itself, once
        login = app.auth is not None and (method, path) == ("POST", "/login")
        if not login and not (method in ROUTES and ROUTES[method].fullmatch(path)):
            return 404, "There is no such page."
        if method == "POST":
            length = headers.get("content-length", "")
            if not re.fullmatch("[0-9]{1,9}", length) or int(length) > LARGEST:
                return 413, "That is too long, or does not say how long it is."
        if app.auth is not None and not login and not re.fullmatch(FILES, path):
            cookies = [f"access-token-{kind}{app.cookie_id}" for kind in ("", "unsecure-")]
            if not any(request.cookies.get(name) in app.tokens for name in cookies):
                return 401, "Log in first."
        return None

    def _is_own(self, name: str) -> bool:
        if name in self.names or not self.any_address:
            return name in self.names
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return False
