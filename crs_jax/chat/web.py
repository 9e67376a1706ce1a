"""The talk as a page in the browser, by Gradio. It fetches nothing from elsewhere and tells nobody of its use."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from crs_jax.chat import page
from crs_jax.chat.conversation import Conversation, Talker
from crs_jax.errors import InputError

QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
LONGEST = 2000  # characters of a message
POLICY = "; ".join(
    (
        "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'", "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:", "font-src 'self' data:", "connect-src 'self'", "frame-ancestors 'none'",
        "form-action 'self'", "base-uri 'self'",
    )
)  # fmt: skip
"""What a browser may fetch: from here alone, even if some markup asked for more."""


def require_gradio() -> None:
    """`InputError` where it is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError("--web: the page needs Gradio; pip install -c launch/constraints.txt -e '.[chat]'")


def serve(talker: Talker, host: str, port: int, temperature: float) -> None:
    """Serves the page until SIGINT or SIGTERM. `InputError` where the address cannot be had."""
    app, url = start(talker, host, port, temperature)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    print(f"open {url} in a browser; Ctrl-C ends", flush=True)
    try:
        while not ended.wait(0.5):
            pass
    except KeyboardInterrupt:
        pass
    app.close(verbose=False)


def start(talker: Talker, host: str, port: int, temperature: float) -> tuple[Any, str]:
    """Begins to serve; returns what `close` ends, and the address."""
    port = _free(host, port)
    os.environ.update(QUIET)
    import gradio
    from starlette.middleware import Middleware

    app = build(talker, temperature)
    fonts: Any = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # on the machine
    theme = gradio.themes.Base(primary_hue="indigo", neutral_hue="slate", **fonts)
    app.launch(
        server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, footer_links=[],
        theme=theme, css=page.CSS, app_kwargs={"middleware": [Middleware(_Policy)]}, ssr_mode=False, inbrowser=False,
        enable_monitoring=False, mcp_server=False, pwa=False, run_history=False,
    )  # fmt: skip
    return app, f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _free(host: str, port: int) -> int:
    """The port, a free one for 0."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise InputError(f"--host={host} --port={port}: cannot be served there ({error}); choose another") from None


class _Policy:
    """ASGI middleware: the browser's rules on each answer."""

    HEADERS = ((b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"),
               (b"referrer-policy", b"no-referrer"))  # fmt: skip

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self.HEADERS]}
            await send(message)

        await self.app(scope, receive, with_headers)


def build(talker: Talker, temperature: float) -> Any:
    """The page, `gradio.Blocks`."""
    import gradio

    def shown(talk: Conversation, waiting: bool = False) -> list[str]:
        columns = [page.column(talk, model, waiting) for model in talker.runs]
        return [str(html) for html in (*columns, *(page.items(talk, model) for model in talker.runs))]

    def respond(text: str, heat: float, talk: Conversation) -> Iterator[tuple[Any, ...]]:
        try:
            if not talker.hear(talk, text[:LONGEST]):
                yield "", talk, *shown(talk)
                return
            yield "", talk, *shown(talk, waiting=True)
            for _ in talker.answer(talk, heat):
                yield "", talk, *shown(talk, waiting=True)
        except OSError as error:  # of the log
            raise gradio.Error(f"What you said could not be kept ({error.strerror}), so it was not answered.") from None

    def anew() -> tuple[Any, ...]:
        return "", Conversation(), *shown(Conversation())

    def row() -> list[Any]:
        out = []
        with gradio.Row():
            for _ in talker.runs:
                with gradio.Column(min_width=340):
                    out.append(html())
        return out

    def html(value: str = "") -> Any:
        return gradio.HTML(value, js_on_load=None, apply_default_css=False)

    with gradio.Blocks(title="crs_jax: talk", analytics_enabled=False) as app:
        html(str(page.head(talker)))
        talk = gradio.State(Conversation(), time_to_live=6 * 3600)
        columns = row()
        text = gradio.Textbox(
            label="Your message", placeholder="Something light and funny?", lines=1, max_lines=3, max_length=LONGEST,
            autofocus=True, submit_btn="Send", elem_id="message",
        )  # fmt: skip
        tables = row()
        with gradio.Row(equal_height=True):
            heat = gradio.Slider(
                0, 2, value=min(temperature, 2.0), step=0.05, label="Temperature", scale=6, elem_id="temperature",
                info="0 takes the likeliest of each step", min_width=240,
            )  # fmt: skip
            button = gradio.Button("New talk", scale=1, min_width=120, elem_id="anew")
        out = [text, talk, *columns, *tables]
        settings: Any = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden",
                         "api_visibility": "private"}  # fmt: skip
        text.submit(respond, [text, heat, talk], out, **settings)
        button.click(anew, None, out, **settings)
        app.load(lambda: tuple(shown(Conversation())), None, [*columns, *tables], **settings)
    app.queue(api_open=False)
    return app
