"""What the page's server refuses, how much of it one visitor may take, and that many at once are kept apart."""

import asyncio
import base64
import gc
import html
import json
import re
import socket
import time
import types

import httpx
import jax
import psutil
import pytest
from waits import HANGS

import crs_jax
from crs_jax.data.dialogue import RECOMMENDER, SEEKER
from crs_jax.tools.chat import web
from crs_jax.tools.chat.conversation import Talker
from crs_jax.tools.chat.feedback import FeedbackWriter
from crs_jax.tools.chat.guard import Guard
from crs_jax.tools.chat.program import options

JOIN, DATA = "/gradio_api/queue/join", "/gradio_api/queue/data"
SERVED = {
    ("GET", "/"), ("HEAD", "/"), ("GET", "/assets/{path:path}"), ("GET", "/static/{path:path}"), ("GET", "/theme.css"),
    ("GET", "/favicon.ico"), ("GET", "/manifest.json"), ("GET", DATA), ("GET", "/gradio_api/heartbeat/{session_hash}"),
    ("POST", JOIN),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(finished_run) -> crs_jax.Run:
    run = crs_jax.load(finished_run)
    run.warm_up()
    return run


@pytest.fixture(scope="module")
def served(run):
    """App and address of the page, where fewer may wait than come at once."""
    with pytest.MonkeyPatch.context() as fewer:
        fewer.setattr(web, "WAITING", 40)
        app, url = web.start(Talker({"ppo": run}), "127.0.0.1", 0, 0.7)
    yield app, url
    app.close(verbose=False)


def routes(app) -> list[tuple[str, str, str]]:
    """Of the Gradio that is installed: methods that each has and has not, its pattern, and a path of it."""
    flat = []
    for route in app.app.routes:
        flat += route.original_router.routes if hasattr(route, "original_router") else [route]
    return [
        (method, route.path, re.sub(r"\{[^}]*\}", "x", route.path))
        for route in flat
        for method in sorted({*(getattr(route, "methods", None) or ()), "GET", "POST", "PUT"} - {"OPTIONS"})
    ]


def said(text: str, session: str) -> dict:
    return {"data": [text, 0.7, None], "fn_index": 0, "session_hash": session}


def test_of_all_that_gradio_serves_only_what_the_page_asks_for_is_there(served):
    app, url = served
    found, every = set(), routes(app)
    with httpx.Client(base_url=url) as client:
        for method, pattern, path in every:
            with client.stream(method, path, content=b"{}" if method == "POST" else None) as answer:
                refused = answer.status_code == 404 and answer.headers["content-type"].startswith("text/plain")
                if not refused:
                    found.add((method, pattern))
        assert len(every) > 200
        assert found == SERVED
        for path in ("/gradio_api/file=/etc/passwd", "/assets/../index.html", "/gradio_api/queue/join/", "/docs",
                     "/gradio_api/mcp/sse", "/%2e%2e/x", "/assets/%2e%2e/%2e%2e/package.json"):  # fmt: skip
            assert client.get(path).status_code == 404, path
        assert client.get("/theme.css").headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in client.get("/nothing").headers["content-security-policy"]
        big = client.post(JOIN, json=said("x" * 40_000, "big"))
        unsaid = client.post(JOIN, content=iter([b"{}"]))
        assert (big.status_code, unsaid.status_code) == (413, 413)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "LOCALHOST:9"}, 200),  # another port leads here through ssh -L
        ({"Host": "evil.example.org"}, 403),
        ({"Host": "evil.example.org:{port}", "Origin": "http://evil.example.org:{port}"}, 403),  # DNS rebinding
        ({"Host": "127.0.0.1.evil.example.org"}, 403),
        ({"Host": "192.0.2.7:{port}"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example.org"}, 403),
        ({"Origin": "http://localhost:{port}"}, 403),  # a page of another name is another page
        ({"Origin": "http://127.0.0.1:1"}, 403),  # and so is one of another program here
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),
    ],
)
def test_other_names_and_other_sites_pages_are_refused(served, headers, status):
    """For what is asked, what is streamed, and what is sent, of which nothing is queued."""
    app, url = served
    with httpx.Client(base_url=url) as client:
        given = {name: value.format(port=url.rpartition(":")[2]) for name, value in headers.items()}
        assert client.get("/", headers=given).status_code == status
        with client.stream("GET", DATA, params={"session_hash": "nobody"}, headers=given) as streamed:
            assert streamed.status_code == status
        joined = client.post(JOIN, json=said(" ", "guarded"), headers=given)
        assert joined.status_code == status
    if status == 403:
        assert "guarded" not in app._queue.pending_event_ids_session
    app._queue.pending_event_ids_session.pop("guarded", None)


def test_a_link_from_another_site_opens_the_page_and_no_more(served):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert httpx.get(served[1], headers=link).status_code == 200
    assert httpx.get(served[1] + DATA, headers=link).status_code == 403
    preflight = {"Origin": "http://evil.example.org", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(served[1] + JOIN, headers=preflight)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/", JOIN, DATA, "/gradio_api/mcp"])
def test_no_websocket_is_opened(served, path):
    host, port = served[1].removeprefix("http://").split(":")
    key = base64.b64encode(b"0" * 16).decode()
    head = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 403")


def refused(guard: Guard, **headers: str) -> bool:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    app = types.SimpleNamespace(auth=None)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": pairs, "query_string": b"", "app": app}
    return guard.refusal(scope) is not None


def test_names_of_a_page_that_others_reach():
    """By number, which no name can be made to stand for, by this machine's name, or by the proxy's."""
    every, one = Guard(None, "0.0.0.0", False), Guard(None, "talk.lan", False)
    proxied = Guard(None, "127.0.0.1", True, "https://talk.example.org")
    for guard, host, fine in (
        (every, "192.0.2.7:7860", True), (every, "[2001:db8::1]:7860", True), (every, "localhost:7860", True),
        (every, f"{socket.gethostname()}:7860", True), (every, "evil.example.org", False), (one, "talk.lan:80", True),
        (one, "Talk.LAN", True), (one, "192.0.2.7", False), (proxied, "talk.example.org", True), (proxied, "", False),
        (proxied, "127.0.0.1:7860", True), (proxied, "evil.example.org", False),
    ):  # fmt: skip
        assert refused(guard, host=host) is not fine, host
        assert refused(guard, host=host, origin="https://evil.example.org")
    for host in ("talk.example.org", "127.0.0.1:7860"):  # whether or not the proxy passes the name on
        assert not refused(proxied, host=host, origin="https://talk.example.org")


def test_an_address_for_others_is_warned_of_in_one_line(run, capsys):
    for host, auth, said in (("0.0.0.0", "", "asks nobody"), ("0.0.0.0", "me:secret", "asks for"), ("::1", "", None)):
        app, url = web.start(Talker({"ppo": run}), host, 0, 0.7, auth)
        try:
            out = capsys.readouterr().out
            assert out.count("\n") == (said is not None)
            assert said is None or (f"note: --host={host}: " in out and "unencrypted" in out and said in out)
            assert "secret" not in out
            assert httpx.get(url).status_code == 200
        finally:
            app.close(verbose=False)


def test_behind_a_proxy_the_page_is_the_proxys_whatever_gradios_variables_say(run, monkeypatch):
    monkeypatch.setenv("GRADIO_ROOT_PATH", "https://evil.example.org")
    monkeypatch.setenv("GRADIO_NUM_WORKERS", "1")  # servers of their own, which nothing stands before
    app, url = web.start(Talker({"ppo": run}), "127.0.0.1", 0, 0.7, url="https://talk.example.org")
    try:
        for more in ({}, {"Host": "talk.example.org"}, {"X-Forwarded-Host": "evil.example.org"}):
            page = httpx.get(url, headers={"Origin": "https://talk.example.org", **more}).text
            assert '"root":"https://talk.example.org"' in page
            assert "evil" not in page
        assert not getattr(app, "_static_worker_pool", None)
    finally:
        app.close(verbose=False)


def test_flags_that_cannot_be_used_are_named_without_the_password(monkeypatch):
    monkeypatch.setenv("CRS_JAX_AUTH", "me:a:b")
    assert options(["--workdir=x", "--web"]).auth == "me:a:b"
    assert options(["--workdir=x", "--web", "--auth=you:c"]).auth == "you:c"
    for bad in ("hunter2", "me:", ":hunter2"):
        with pytest.raises(crs_jax.InputError, match="take USER:PASSWORD") as met:
            options(["--workdir=x", "--web", f"--auth={bad}"])
        assert "hunter2" not in str(met.value)
    for bad in ("talk.example.org", "https://talk.example.org/path", "ftp://x", "https://me@x"):
        with pytest.raises(crs_jax.InputError, match=f"--url={bad}: take"):
            options(["--workdir=x", "--web", f"--url={bad}"])


def test_with_a_password_only_the_login_is_served_to_strangers(run):
    app, url = web.start(Talker({"ppo": run}), "127.0.0.1", 0, 0.7, "me:pass:wörd")
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            page = client.get("/")
            assert '"auth_required":true' in page.text.replace(" ", "")
            assert "recommender" not in page.text
            for method, pattern, path in routes(app):
                with client.stream(method, path, content=b"{}" if method == "POST" else None) as answer:
                    status = answer.status_code
                if pattern.startswith("/gradio_api/") and (method, pattern) in SERVED:
                    assert status == 401, pattern
                elif (method, pattern) not in {*SERVED, ("POST", "/login")}:
                    assert status == 404, pattern
            assert client.post(JOIN, json=said("hello", "stranger")).status_code == 401
            forged = {"Cookie": f"access-token-{app.app.cookie_id}=x"}
            assert client.post(JOIN, json=said("hello", "stranger"), headers=forged).status_code == 401
            for user, password in (("me", "pass"), ("you", "pass:wörd"), ("me", "")):
                login = client.post("/login", data={"username": user, "password": password})
                assert login.status_code in (400, 422)
            assert client.post("/login", data={"username": "me", "password": "pass:wörd"}).status_code == 200
            assert "A recommender of" in client.get("/").text
            assert client.post(JOIN, json=said("hello", "friend")).status_code == 200
    finally:
        app.close(verbose=False)


async def visit(client: httpx.AsyncClient, session: str, *texts: str) -> tuple[list[httpx.Response], str]:
    """Sends all at once, and waits; the answers to the sending, and the talk as it is shown at the end."""
    joined = await asyncio.gather(*[client.post(JOIN, json=said(text, session)) for text in texts])
    waited, shown = {answer.json()["event_id"] for answer in joined if answer.status_code == 200}, ""
    while waited:
        async with client.stream("GET", DATA, params={"session_hash": session}) as stream:
            async for line in stream.aiter_lines():
                message = json.loads(line.removeprefix("data: ") or "{}")
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    waited.remove(message["event_id"])
                    shown = message["output"]["data"][2]
    return joined, shown


async def rush(url: str, kind: str, visitors: int) -> dict[str, tuple[list[httpx.Response], str]]:
    """Each sends three messages at once and then a fourth, again and again until it is taken."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def one(name: str) -> tuple[list[httpx.Response], str]:
            answers, shown = await visit(client, name, *(f"{name} says {number}" for number in range(3)))
            while len(answers) == 3 or answers[-1].status_code != 200:
                await asyncio.sleep(0.3)
                last, shown = await visit(client, name, f"{name} says 3")
                answers += last
            return answers, shown

        names = [f"{kind}{number}" for number in range(visitors)]
        return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))


def test_fifty_visitors_at_once_are_answered_or_told_to_wait_and_kept_apart(served, run):
    app, url = served
    asyncio.run(rush(url, "early", 20))
    gc.collect()
    arrays, memory = len(jax.live_arrays()), psutil.Process().memory_info().rss
    found = asyncio.run(rush(url, "late", 50))
    statuses = []
    for name, (answers, shown) in found.items():
        told = {400: "Please wait: what you sent before is not answered yet.", 503: "Queue is full."}
        for answer in answers:
            statuses.append(answer.status_code)
            assert answer.status_code == 200 or answer.json()["detail"].startswith(told[answer.status_code])
        accepted = [f"{name} says {n}" for n, answer in enumerate(answers[:3]) if answer.status_code == 200]
        assert len(accepted) <= web.WAITING_EACH
        seen = re.findall(r'class="seeker"><p>([^<]*)', shown)
        assert sorted(seen) == [*accepted, f"{name} says 3"]
        replies = re.findall(r'class="recommender"><p>([^<]*)', shown)
        assert len(replies) == len(seen)
        if name.endswith("7"):
            alone = run.reply([("user", seen[0])], temperature=0.7, seed=1)
            assert html.unescape(replies[0]) == alone.text
    assert len(statuses) >= 200
    assert set(statuses) == {200, 400, 503}
    gc.collect()
    assert len(jax.live_arrays()) == arrays
    grown = psutil.Process().memory_info().rss - memory
    assert grown < 16e6  # a session's state is 60 kB; 100 kB kept of each request would be 20 MB
    assert len(app._queue) == 0


async def leave_at(url: str, text: str, event: str) -> None:
    """Says something, agreeing that it is kept, and is gone when the event comes."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        message = said(text, "leaver")
        message["data"].append(True)
        assert (await client.post(JOIN, json=message)).status_code == 200
        async with client.stream("GET", DATA, params={"session_hash": "leaver"}) as stream:
            async for line in stream.aiter_lines():
                if f'"msg":"{event}"' in line:
                    return


def test_who_leaves_before_the_reply_leaves_nothing_behind(run, tmp_path, monkeypatch):
    """While the message waits, and while its reply is made; who comes back and stays is kept from there."""
    log, reply = FeedbackWriter(tmp_path / "talks.jsonl", run.catalogue), run.reply
    monkeypatch.setattr(run, "reply", lambda *given: time.sleep(0.5) or reply(*given))
    app, url = web.start(Talker({"ppo": run}, log=log), "127.0.0.1", 0, 0.7)
    try:
        for event in ("process_starts", "process_generating"):
            asyncio.run(leave_at(url, f"gone at {event}", event))
            until = time.monotonic() + HANGS
            while any(app._queue.active_jobs) or len(app._queue):
                assert time.monotonic() < until
                time.sleep(0.05)
            assert log.path.read_text() == ""
        asyncio.run(leave_at(url, "stays", "process_completed"))
    finally:
        app.close(verbose=False)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["role"] for line in lines] == [SEEKER, RECOMMENDER]
    assert lines[0]["text"] == "stays"
