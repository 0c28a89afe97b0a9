"""The process of a launched server, as its supervisor reports it."""

from __future__ import annotations

from dataclasses import dataclass

from llamatel.llama.http.server_client import ServerClient
from llamatel.records import ServerInfo


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """The process of a server that this program launched, as reported by its supervisor."""

    info: ServerInfo
    state: str
    """stopped, starting, ready, stopping, failed."""
    client: ServerClient | None = None
    """None unless it is ready."""
    restarts: int = 0
    started_at: float | None = None
    loading_s: float | None = None

    @property
    def alive(self) -> bool:
        """Whether there is a process that should be running."""
        return self.state in ("starting", "ready")
