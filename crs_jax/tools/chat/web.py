"""The talk as a page in the browser, by Gradio. It fetches nothing from elsewhere and tells nobody of its use."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from crs_jax.runtime.errors import InputError
from crs_jax.tools.chat import guard, page
from crs_jax.tools.chat.conversation import Conversation, Talker

QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
         "GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000"}  # fmt: skip
LONGEST = 2000  # characters of a message
WAITING = 64  # requests of all visitors together
WAITING_EACH = 2  # of one, that which is answered included
SESSIONS = 1000  # that are remembered; the one longest unused goes first


def require_gradio() -> None:
    """`InputError` where it is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError("--web: the page needs Gradio; pip install -c launch/constraints.txt -e '.[chat]'")


def serve(talker: Talker, host: str, port: int, temperature: float, auth: str = "", url: str = "") -> None:
    """Serves the page until SIGINT or SIGTERM. `InputError` where the address cannot be had."""
    app, address = start(talker, host, port, temperature, auth, url)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    print(f"open {url or address} in a browser; Ctrl-C ends", flush=True)
    try:
        while not ended.wait(0.5):
            pass
    except KeyboardInterrupt:
        pass
    app.close(verbose=False)


def start(talker: Talker, host: str, port: int, temperature: float, auth: str = "", url: str = "") -> tuple[Any, str]:
    """Begins to serve; returns what `close` ends, and the address.

    Args:
      talker: what answers.
      host: address to serve at.
      port: its port; 0 takes a free one.
      temperature: of replies, until the visitor chooses another.
      auth: `USER:PASSWORD` that visitors log in with; empty: anybody may talk.
      url: origin that visitors use, where a proxy stands between; empty otherwise.
    """
    port = _free(host, port)
    alone = guard.is_loopback(host)
    if not alone:
        asked = "asks for a password" if auth else "asks nobody for a password (--auth=USER:PASSWORD does)"
        print(f"note: --host={host}: the page can be reached from other machines, unencrypted, and {asked}", flush=True)
    os.environ.update(QUIET)
    import gradio
    from starlette.middleware import Middleware

    app = build(talker, temperature)
    fonts: Any = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # on the machine
    theme = gradio.themes.Base(primary_hue="indigo", neutral_hue="slate", **fonts)
    user, _, password = auth.partition(":")
    place = f"[{host}]" if ":" in host else host
    app.launch(
        server_name=place, server_port=port, share=False, quiet=True, prevent_thread_lock=True, footer_links=[],
        theme=theme, css=page.CSS, app_kwargs={"middleware": [Middleware(guard.Guard, host, alone, url)]},
        ssr_mode=False, inbrowser=False, enable_monitoring=False, mcp_server=False, pwa=False, run_history=False,
        auth=(user, password) if auth else None, root_path=url, state_session_capacity=SESSIONS, num_workers=0,
    )  # fmt: skip
    return app, f"http://{place}:{port}"


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


def build(talker: Talker, temperature: float) -> Any:
    """The page, `gradio.Blocks`."""
    import gradio

    def shown(talk: Conversation, waiting: bool = False) -> list[str]:
        columns = [page.column(talk, model, waiting) for model in talker.runs]
        tables = [page.items(talk, model) for model in talker.runs]
        return [str(html) for html in (*columns, *tables, *([page.kept(talk)] if talker.log else []))]

    def respond(text: Any, heat: float, talk: Conversation, agreed: Any = False) -> Iterator[tuple[Any, ...]]:
        talk.agreed = bool(agreed) and (talk.agreed or not talk.user)  # a talk is kept from its beginning
        text = str(text or "")[:LONGEST]
        try:
            if not talker.hear(talk, text):
                yield "", talk, *shown(talk)
                return
            yield "", talk, *shown(talk, waiting=True)
            for _ in talker.answer(talk, heat):
                yield "", talk, *shown(talk, waiting=True)
        except OSError as error:  # of the log
            gradio.Warning(f"What you said could not be kept ({error.strerror}), so it does not count. Send it again.")
            yield text, talk, *shown(talk)
        except InputError as error:
            raise gradio.Error(str(error), print_exception=False) from None
        else:
            yield "", talk, *shown(talk)  # with its id in the log

    def anew() -> tuple[Any, ...]:
        return "", Conversation(), *shown(Conversation())

    def row(values: Sequence[str]) -> list[Any]:
        out = []
        with gradio.Row():
            for value in values:
                with gradio.Column(min_width=340):
                    out.append(html(value))
        return out

    def html(value: str = "") -> Any:
        return gradio.HTML(value, js_on_load=None, apply_default_css=False)

    with gradio.Blocks(title="crs_jax: talk", analytics_enabled=False) as app:
        html(str(page.head(talker)))
        agreed, kept = [], []
        if talker.log is not None:
            agreed = [gradio.Checkbox(label="Keep this talk to train on", elem_id="agreed", info=page.CONSENT)]
            kept = [html(str(page.kept(Conversation())))]
        talk = gradio.State(Conversation(), time_to_live=6 * 3600)
        begin, count = shown(Conversation()), len(talker.runs)
        columns = row(begin[:count])
        text = gradio.Textbox(
            label="Your message", placeholder="Something light and funny?", lines=1, max_lines=3, max_length=LONGEST,
            autofocus=True, submit_btn="Send", elem_id="message",
        )  # fmt: skip
        tables = row(begin[count : 2 * count])
        with gradio.Row(equal_height=True):
            heat = gradio.Slider(
                0, 2, value=min(temperature, 2.0), step=0.05, label="Temperature", scale=6, elem_id="temperature",
                info="0 takes the likeliest of each step", min_width=240,
            )  # fmt: skip
            button = gradio.Button("New talk", scale=1, min_width=120, elem_id="anew")
        inputs, out = [text, heat, talk, *agreed], [text, talk, *columns, *tables, *kept]
        settings: Any = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden",
                         "api_visibility": "private"}  # fmt: skip
        text.submit(respond, inputs, out, **settings)
        button.click(anew, None, out, **settings)
    app.queue(api_open=False, max_size=WAITING)
    _bound_each(app._queue)
    return app


def _bound_each(queue: Any) -> None:
    """One visitor's requests beyond `WAITING_EACH` are refused, and the page shows why."""
    push = queue.push

    async def bounded(body: Any, request: Any, username: str | None) -> Any:
        held = [event for events in queue.active_jobs for event in events or ()]
        held += [event for each in queue.event_queue_per_concurrency_id.values() for event in each.queue]
        if sum(event.session_hash == body.session_hash for event in held) >= WAITING_EACH:
            return False, "Please wait: what you sent before is not answered yet.", "error"
        return await push(body, request, username)

    queue.push = bounded
