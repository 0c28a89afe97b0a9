"""A stand-in for the Hugging Face Hub (HF_ENDPOINT) that records requests and counts bytes.

Like the Hub: ``/api/models/ORG/REPO`` describes a repository (``/refs`` and ``/tree/REVISION``, which llama-server
requests, parts of it), ``/ORG/REPO/resolve/REVISION/FILE`` redirects to another host (here another port), which serves
ranges; refusals have the Hub's ``X-Error-Code``.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"  # noqa: S105 - opens the test's own server
SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """One repository; ``gated`` and ``private`` ones answer only to TOKEN."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    parameters: int | None = None


@dataclass
class HubServer:
    """The served repositories and the received requests. ``ranges`` False: files are always sent whole."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    ranges: bool = True
    endpoint: str = ""
    files: str = ""
    sent: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    """Host (hub or files), path, the Range and the Authorization of each request."""
    refuse: int | None = None
    """A status for every request."""
    size_shift: int = 0
    """Added to the reported size from the second range on, as if the file had changed."""

    def sent_bytes(self) -> int:
        return sum(self.sent.values())


_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_REFS = re.compile(r"/api/models/([^/]+/[^/]+)/refs")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    host: str

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.host, path, self.headers.get("Range"), self.headers.get("Authorization")))
        try:
            if self.hub.refuse is not None:
                self._answer(self.hub.refuse, b"no")
            elif self.host == "files":
                self._file(path)
            elif found := _API.fullmatch(path):
                self._describe(found[1], found[2])
            elif found := _REFS.fullmatch(path):
                self._refs(found[1])
            elif found := _TREE.fullmatch(path):
                self._tree(*found.groups())
            elif found := _RESOLVE.fullmatch(path):
                self._resolve(*found.groups())
            else:
                self._answer(404, b"nothing here")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client disconnected

    def _allowed(self, name: str, revision: str | None, *, content: bool) -> Repository | None:
        repository = self.hub.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not known):
            # The Hub returns 401 without a login, so that missing and private repositories look alike.
            self._answer(404 if known else 401, b"{}", X_Error_Code="RepoNotFound")
        elif repository.gated and content and not known:
            self._answer(401, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access to this model is restricted.")
        elif revision not in (None, "main", SHA):
            self._answer(404, b"{}", X_Error_Code="RevisionNotFound")
        else:
            return repository
        return None

    def _describe(self, name: str, revision: str | None) -> None:
        repository = self._allowed(name, revision, content=False)
        if repository is None:
            return
        siblings = [{"rfilename": path, "size": len(data)} for path, data in repository.files.items()]
        info: dict[str, Any] = {"id": name, "modelId": name, "sha": SHA, "siblings": siblings, "tags": []}
        info |= {"private": repository.private, "gated": "auto" if repository.gated else False}
        if repository.parameters is not None:
            info["safetensors"] = {"parameters": {"BF16": repository.parameters}, "total": repository.parameters}
        self._answer(200, json.dumps(info).encode(), Content_Type="application/json")

    def _refs(self, name: str) -> None:
        if self._allowed(name, None, content=False) is not None:
            document = {"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": SHA}], "tags": []}
            self._answer(200, json.dumps(document).encode(), Content_Type="application/json")

    def _tree(self, name: str, revision: str) -> None:
        repository = self._allowed(name, revision, content=False)
        if repository is not None:
            files = [
                {"type": "file", "path": path, "size": len(data), "oid": sha256(data).hexdigest()[:40]}
                for path, data in repository.files.items()
            ]
            self._answer(200, json.dumps(files).encode(), Content_Type="application/json")

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._allowed(name, revision, content=True)
        if repository is None:
            return
        if path not in repository.files:
            self._answer(404, b"{}", X_Error_Code="EntryNotFound")
        else:
            self._answer(302, Location=f"{self.hub.files}/{name}/{path}", X_Repo_Commit=SHA)

    def _file(self, path: str) -> None:
        org, repo, file = path.removeprefix("/").split("/", 2)
        repository = self.hub.repositories.get(f"{org}/{repo}")
        data = repository.files.get(file) if repository is not None else None
        if data is None:
            self._answer(404, b"nothing here")
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.hub.ranges else None
        if wanted is None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            for start in range(0, len(data), 1 << 16):
                self.wfile.write(data[start : start + (1 << 16)])
                self.hub.sent[path] = self.hub.sent.get(path, 0) + len(data[start : start + (1 << 16)])
            return
        start, end = int(wanted[1]), int(wanted[2])
        if start >= len(data):
            self._answer(416, Content_Range=f"bytes */{len(data)}")
            return
        part = data[start : end + 1]
        size = len(data) + (self.hub.size_shift if start else 0)
        self.hub.sent[path] = self.hub.sent.get(path, 0) + len(part)
        self._answer(206, part, Content_Range=f"bytes {start}-{start + len(part) - 1}/{size}")


@contextmanager
def serve_hub(repositories: dict[str, Repository]) -> Iterator[HubServer]:
    """Run a hub on two free ports within the block."""
    hub = HubServer(repositories)
    servers = []
    try:
        for host in ("hub", "files"):
            handler = type("Handler", (_Handler,), {"hub": hub, "host": host})
            server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            servers.append(server)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        hub.endpoint, hub.files = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
