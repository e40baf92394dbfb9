"""A fake Hugging Face hub: repositories of files, over the hub's own wire.

Small files are answered directly. Weights are redirected to another path, as the hub redirects to
its storage, where transfers can break and be resumed by range.
"""

import hashlib
import http.server
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    """Let the hub's client use this address and cache, which it reads from the environment once."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


class Hub:
    """Repositories {"owner/name": {file: content}}, and what the server does with requests.

    Attributes:
      private, gated: repositories that need TOKEN, and that nobody may read.
      broken: how many transfers of weights break halfway.
      log: (method, path, range) of each request.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.broken = 0
        self.log: list[tuple[str, str, str]] = []

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Serve on the loopback; yield the address."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        if self.path.startswith("http:"):  # a client that takes this server for its proxy
            return self._refuse(407, "", "Proxy Authentication Required")
        path = urllib.parse.unquote(self.path)
        self.hub.log.append((self.command, path, self.headers.get("Range", "")))
        if path.startswith("/storage/"):
            repo, file = path.removeprefix("/storage/").rsplit("/", 1)
            return self._send(self.hub.repos[repo][file], body, may_break=True)
        owner, name, kind, revision, file = [*path[1:].split("/", 4), "", "", "", ""][:5]
        repo = f"{owner}/{name}"
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo not in self.hub.repos or (repo in self.hub.private and not allowed):
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if repo in self.hub.gated:
            return self._refuse(403, "GatedRepo", "Access to this model is restricted")
        if kind != "resolve" or revision not in ("main", "v1", COMMIT):
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        content = self.hub.repos[repo].get(file)
        if content is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        if not file.endswith(".safetensors"):
            return self._send(content, body)
        self.send_response(302)
        self.send_header("Location", f"/storage/{repo}/{file}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, body: bool, may_break: bool = False) -> None:
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        part = content[first:]
        self.send_response(206 if first else 200)
        if first:
            end = len(content) - 1
            self.send_header("Content-Range", f"bytes {first}-{end}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body and may_break and self.hub.broken:
            self.hub.broken -= 1
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(part)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()
