"""Arize Phoenix, a user interface for GenAI traces: stores what it receives over OTLP in a SQLite file."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from .environments import phoenix as phoenix_python
from .processes import Child, free_port

PROJECT = "openinference.project.name"
"""The resource attribute that names the project of its traces."""


class Phoenix:
    """A running Phoenix. A context manager. Raises MissingPart."""

    def __init__(self, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        """Of its pages, and of OTLP over HTTP."""
        env = {
            "PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": self.url.rpartition(":")[2],
            "PHOENIX_GRPC_PORT": str(free_port()), "PHOENIX_WORKING_DIR": str(folder),
            "PHOENIX_TELEMETRY_ENABLED": "false", "PYTHONPATH": "",
        }  # fmt: skip
        program: list[str | Path] = [phoenix_python(), "-m", "phoenix.server.main", "serve"]
        self._child = Child(program, folder / "phoenix.log", env)
        self._child.wait_ready(self._ready, 240)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def query(self, graphql: str) -> Any:
        """The ``data`` of a GraphQL query's response."""
        body = json.dumps({"query": graphql}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            document = json.load(answer)
        assert not document.get("errors"), document["errors"]
        return document["data"]

    def __enter__(self) -> Phoenix:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.stop()
