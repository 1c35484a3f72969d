"""A Hugging Face hub on loopback: the endpoints that a download needs, their failures, a record of requests."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "1234567890abcdef1234567890abcdef12345678"
REPO = "somebody/tiny"
TOKEN = "hf_secretsecretsecret"


@dataclass
class FakeHub:
    """What the server has and how it behaves; change it while it runs."""

    files: Path
    address: str = ""
    token: str = ""  # that it asks for, where it asks for one
    gated: bool = False
    down: bool = False
    ranges: bool = True
    cuts: dict[str, list[int]] = field(default_factory=dict)  # file -> bytes after which each next answer breaks off
    sizes: dict[str, int] = field(default_factory=dict)  # file -> a size that it lies about
    elsewhere: str = ""  # address of another server that large files are redirected to
    served: Counter[str] = field(default_factory=Counter)  # bytes of each file's content, without header requests
    asked: list[tuple[str, str]] = field(default_factory=list)  # method, path
    tokens: set[str] = field(default_factory=set)  # that requests came with


@contextmanager
def serve(files: Path, **behaviour: Any) -> Iterator[FakeHub]:
    """Serve the files of one folder as one commit of one repository."""
    hub = FakeHub(files, **behaviour)

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep the terminal clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.state, self.path.split("?")[0]
        hub.asked.append((self.command, path))
        if authorization := self.headers.get("Authorization"):
            hub.tokens.add(authorization.removeprefix("Bearer "))
        if hub.down:
            return self._refuse(503, "")
        if hub.token and authorization != f"Bearer {hub.token}":
            if authorization:
                return self._refuse(401, "", "Invalid credentials in Authorization header")
            return self._refuse(401, "GatedRepo" if hub.gated else "RepoNotFound")
        if match := re.fullmatch(rf"/api/models/{REPO}/(revision|tree)/([^/]+)", path):
            if match[2] not in ("main", "v1", COMMIT):
                return self._refuse(404, "RevisionNotFound")
            return self._json({"id": REPO, "sha": COMMIT, "siblings": []} if match[1] == "revision" else self._tree())
        if match := re.fullmatch(rf"/{REPO}/resolve/{COMMIT}/([^/]+)", path):
            return self._file(match[1])
        return self._refuse(404, "RepoNotFound")

    def _tree(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
            for file in sorted(self.state.files.iterdir())
        ]

    def _file(self, name: str) -> None:
        hub, file = self.state, self.state.files / name
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        content = file.read_bytes()
        large = name.endswith(".safetensors")
        if large and hub.elsewhere and self.command == "GET":
            self.send_response(302)
            self.send_header("Location", hub.elsewhere + self.path)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        start, end, status = 0, len(content), 200
        if hub.ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            start, end, status = int(match[1]), min(len(content), int(match[2] or len(content)) + 1), 206
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if large:
            self.send_header("X-Linked-Size", str(hub.sizes.get(name, len(content))))
        self.send_header("Content-Length", str(end - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        header = large and status == 206 and bool(match and match[2])
        if not header and (cuts := hub.cuts.get(name)):
            end = min(end, start + cuts.pop(0))
            self.close_connection = True
        self.wfile.write(content[start:end])
        if not header:
            hub.served[name] += end - start
        return None

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()
