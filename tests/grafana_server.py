"""A stand-in for the part of Grafana's HTTP API that pushing dashboards uses: Grafana is not available in the tests.

Paths, bodies, status codes and messages are those of Grafana 11 (pkg/api/dashboard.go, pkg/api/folder.go).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class GrafanaServer(ThreadingHTTPServer):
    """Keeps folders and dashboards; accepts one token, whose role is ``role``. A context manager."""

    daemon_threads = True

    def __init__(
        self,
        token: str | None = None,
        role: str = "Editor",
        version: str = "11.6.0",
        provisioned: Collection[str] = (),
    ) -> None:
        """``provisioned``: uids of dashboards that were provisioned from a file."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.provisioned = frozenset(provisioned)
        self.token, self.role, self.version = token, role, version
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.folders: dict[str, str] = {}
        """Title by uid."""
        self.dashboards: dict[str, tuple[dict[str, Any], str | None]] = {}
        """Model and folder's uid, by uid."""
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: GrafanaServer

    def do_GET(self) -> None:
        if self.path == "/api/health":
            self._answer(200, {"database": "ok", "version": self.server.version})
        elif not self.path.startswith("/api/folders?"):
            self.send_error(404)
        elif self._allowed("Viewer"):
            self._answer(200, [{"uid": uid, "title": title} for uid, title in self.server.folders.items()])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed("Editor"):
            return
        if self.path == "/api/folders":
            if body["uid"] in self.server.folders:
                self._answer(412, {"message": "a folder with the same uid already exists"})
                return
            self.server.folders[body["uid"]] = body["title"]
            self._answer(200, {"uid": body["uid"], "title": body["title"]})
        elif self.path == "/api/dashboards/db":
            self._dashboard(body)

    def _dashboard(self, body: dict[str, Any]) -> None:
        model, folder = body["dashboard"], body.get("folderUid")
        if model.get("id") is not None:
            self._answer(404, {"message": "Dashboard not found", "status": "not-found"})
        elif model["uid"] in self.server.provisioned:
            self._answer(400, {"message": "Cannot save provisioned dashboard"})
        elif folder is not None and folder not in self.server.folders:
            self._answer(400, {"message": "folder not found"})
        elif model["uid"] in self.server.dashboards and not body.get("overwrite"):
            conflict = {"message": "The dashboard has been changed by someone else", "status": "version-mismatch"}
            self._answer(412, conflict)
        else:
            self.server.dashboards[model["uid"]] = (model, folder)
            self._answer(200, {"status": "success", "uid": model["uid"], "url": f"/d/{model['uid']}/a"})

    def _allowed(self, role: str) -> bool:
        server = self.server
        if server.token is not None and self.headers.get("Authorization") != f"Bearer {server.token}":
            self._answer(401, {"message": "Invalid API key"})
        elif role == "Editor" and server.role == "Viewer":
            self._answer(403, {"message": "You'll need additional permissions to perform this action."})
        else:
            return True
        return False

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
        """Tests check the stored dashboards."""
