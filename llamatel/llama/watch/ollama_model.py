"""One model of an Ollama, across its loads: its llama-server if there is one, its log, state and counts."""

from __future__ import annotations

from dataclasses import replace

from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.log.log_clock import LogClock
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.llama.watch.ollama_children import OllamaChild
from llamatel.llama.watch.server_lifecycle import Lifecycle
from llamatel.llama.watch.server_log import ServerLog
from llamatel.records import ServerInfo
from llamatel.snapshots import RouterModel, ServerSnapshot

_STATES = {"starting": "loading", "ready": "loaded", "failed": "failed"}


class OllamaModel:
    """Not thread-safe, except for ``observed``."""

    def __init__(self, weights: str, info: ServerInfo, *, has_log: bool, interval_s: float) -> None:
        """``weights``: the file name of its weights, which identifies it; ``info``: Ollama's address, its own name."""
        self.weights = weights
        self.info = info
        self.log = ServerLog(info, LogClock()) if has_log else None
        self.observed = ObservedServer(
            info, log=self.log, lifecycle=self._lifecycle, interval_s=interval_s, has_metrics=False
        )
        self.number: int | None = None
        """The number of its server while it is loaded."""
        self.state = "stopped"
        self.client: ServerClient | None = None
        self.child: OllamaChild | None = None
        self.ran_before: frozenset[tuple[int, int]] = frozenset()
        """Slots and tasks of its server when it was found."""
        self.started_at: float | None = None
        self.loading_s: float | None = None
        self.loads = self.evictions = self.failures = 0

    def start(self, number: int, at: float | None, *, state: str = "starting") -> None:
        """Record that it has a server now."""
        self.number, self.state, self.started_at, self.loading_s = number, state, at, None
        self.ran_before = frozenset()
        self.observed.process_replaced()
        if self.log is not None:
            self.log.restart(self.info)

    def rename(self, name: str) -> None:
        """Set its name, if it was unknown or Ollama has another for the same weights."""
        self.info = replace(self.info, model=name)
        if self.log is not None:
            self.log.identify(self.info)

    def use(self, child: OllamaChild) -> None:
        """Poll this child of Ollama's: it is the model's server."""
        self.child = child
        self.client = ServerClient(f"http://127.0.0.1:{child.port}")
        self.observed.launch(child.flags, child.environ)

    def stop(self, state: str = "stopped") -> None:
        """Record that its server exited."""
        self.number, self.state, self.child = None, state, None
        if self.client is not None:
            self.client.close()
            self.client = None

    def snapshot(self, *, has_log: bool) -> ServerSnapshot | None:
        """Its state; None before the first poll."""
        own = next(iter(self.observed.snapshots()), None)
        if own is None:
            return None
        loading = self.state == "ready" and own.state == "starting"
        loaded = self.state == "ready" and not loading
        return replace(
            own, server=replace(own.server, model=self.info.model), up=True if loaded else None, restarts=None,
            state="loading" if loading else _STATES.get(self.state, "unloaded"),
            kv_cache=own.kv_cache if loaded else None,
            router_model=RouterModel(
                self.loads, self.evictions if has_log else None, self.failures if has_log else None
            ),
        )  # fmt: skip

    def _lifecycle(self) -> Lifecycle:
        pid = None if self.child is None else self.child.pid
        return Lifecycle(
            replace(self.info, pid=pid), self.state, client=self.client if self.state == "ready" else None,
            started_at=self.started_at, loading_s=self.loading_s,
        )  # fmt: skip
