"""A stand-in of the Hugging Face hub: repositories from a folder, over HTTP on the loopback interface.

It answers what `huggingface_hub`, `datasets` and `transformers` ask. As at the hub, large files are a redirect to
another address, with their size and hash in headers, and what is not there is a 404 that says what is missing.
"""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse

LARGE = (".safetensors", ".bin", ".parquet")  # kept by Git LFS
FILE = re.compile(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")
API = re.compile(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")


@dataclasses.dataclass(frozen=True)
class Repository:
    """One repository at one commit, which `main` names too."""

    folder: pathlib.Path
    commit: str
    kind: str = "model"

    def entries(self, under: str = "", recursive: bool = True) -> list[dict]:
        """What is in one of its folders, as the hub lists it."""
        return [self.entry(p) for p in sorted((self.folder / under).glob("**/*" if recursive else "*"))]

    def entry(self, path: pathlib.Path) -> dict:
        name = path.relative_to(self.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "size": 0, "oid": oid(name.encode())}
        content = path.read_bytes()
        found = {"type": "file", "path": name, "size": len(content), "oid": oid(content)}
        if name.endswith(LARGE):
            found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 135}
        return found


def oid(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def answer(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urllib.parse.urlsplit(self.path)
        path, recursive = urllib.parse.unquote(address.path), "recursive=true" in address.query.lower()
        self.server.requests.append((self.command, path))
        if match := API.fullmatch(path):
            kind, name, what, revision, rest = match.groups()
            if repository := self.find(kind == "datasets", name, revision or "main"):
                self.api(repository, name, what or "revision", rest or "", recursive, sent)
        elif match := FILE.fullmatch(path):
            dataset, name, revision, file = match.groups()
            if repository := self.find(bool(dataset), name, revision):
                self.file(repository, file)
        elif path.startswith("/large/"):
            self.send(200, self.server.large[path.removeprefix("/large/")].read_bytes())
        else:
            self.send(404, b"{}")

    def find(self, dataset: bool, name: str, revision: str) -> Repository | None:
        """The repository at that revision; where there is none the request is answered."""
        repository = self.server.repositories.get(name)
        if repository is None or (repository.kind == "dataset") != dataset:
            self.send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return None
        if revision not in ("main", repository.commit):
            self.send(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository

    def api(self, repository: Repository, name: str, what: str, rest: str, recursive: bool, sent: bytes) -> None:
        found: dict | list = []
        if what == "tree":
            if not (repository.folder / rest).is_dir():
                self.send(404, b'{"error": "no such folder"}', {"X-Error-Code": "EntryNotFound"})
                return
            found = repository.entries(rest, recursive)
        elif what == "paths-info":
            asked = json.loads(sent)["paths"] if "json" in self.headers.get("Content-Type", "") else (
                urllib.parse.parse_qs(sent.decode())["paths"])  # fmt: skip
            found = [e for e in repository.entries() if e["path"] in asked]
        elif what == "revision":
            files = [{"rfilename": entry["path"], "size": entry["size"]} for entry in repository.entries()
                     if entry["type"] == "file"]  # fmt: skip
            found = {"_id": "0", "id": name, "sha": repository.commit, "siblings": files, "private": False,
                     "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip
        self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def file(self, repository: Repository, name: str) -> None:
        path, headers = repository.folder / name, {"X-Repo-Commit": repository.commit}
        if not path.is_file():
            self.send(404, b"Entry not found", {**headers, "X-Error-Code": "EntryNotFound"})
            return
        entry = repository.entry(path)
        if "lfs" not in entry:
            self.send(200, path.read_bytes(), {**headers, "ETag": f'"{entry["oid"]}"'})
            return
        sha = entry["lfs"]["oid"]
        self.server.large[sha] = path
        headers |= {"X-Linked-Size": str(entry["size"]), "X-Linked-ETag": f'"{sha}"'}
        self.send(302, b"", {**headers, "Location": f"http://localhost:{self.server.server_port}/large/{sha}"})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """The answer, or the part of it that a `Range` asks for."""
        start = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if start and status == 200:
            first, last = int(start[1]), int(start[2] or len(body) - 1)
            headers = {**(headers or {}), "Content-Range": f"bytes {first}-{last}/{len(body)}"}
            status, body = 206, body[first : last + 1]
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        """Not on the console."""


class Hub(http.server.ThreadingHTTPServer):
    """The server; `requests` are the (method, path) it was asked for."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Repository]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.requests, self.large = repositories, [], {}
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving(repositories: dict[str, Repository]):
    """A hub that holds these, by `owner/name`, for as long as the context lasts."""
    with Hub(repositories) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
